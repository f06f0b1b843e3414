"""A run directory: its config, its checkpoints, and pictures drawn from the newest.

config.yaml  log.jsonl  tensorboard/  samples/<images>.png  checkpoints/<images>/
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ganfast import configfile
from ganfast.config import Config, require_run
from ganfast.device import find_device, prepared
from ganfast.engine import draw
from ganfast.errors import InputError
from ganfast.images import Pictures, refuse_third_value
from ganfast.kernels.to_uint8 import to_uint8
from ganfast.latents import class_list, latents, picture_index, random_classes
from ganfast.models import NetSpec, build_generator
from ganfast.outside import read_json
from ganfast.runs import checkpoint as checkpoints
from ganfast.runs.critic import Critic
from ganfast.runs.identity import refuse_foreign
from ganfast.tasks import scaled
from ganfast.training.state import load_module

_CHUNK = 32  # pictures a forward pass; always full, so that a picture depends on no other


@dataclass(frozen=True, repr=False)
class Run:
    """A trained, or training, run on disk."""

    folder: Path
    config: Config
    data: dict[str, Any]  # manifest of the pictures it was trained on: size, channels, classes, ...

    def __repr__(self) -> str:
        config = self.config
        return f"<Run {self.folder}: {config.preset} on {config.data}, {config.kimg:g} kimg>"

    @staticmethod
    def open(folder: Path | str) -> "Run":
        """The run in a directory.

        Raises:
            InputError: the directory holds no run.
        """
        folder = Path(folder)
        require_run(folder)
        data = read_json(folder / "data.json")
        damaged = f"{folder / 'data.json'} is damaged"
        if not isinstance(data, dict):
            raise InputError(f"{damaged}: it holds no JSON object")
        data = {"rules": 1} | data  # of versions before the field
        missing = {"size", "channels", "classes", "source_hash"} - set(data)
        if missing:
            raise InputError(f"{damaged}: it has no {', '.join(sorted(missing))}")
        names = data["classes"]
        sides = type(data["size"]) is int and data["size"] > 0 and data["channels"] in (1, 3)
        classes = isinstance(names, list) and all(isinstance(name, str) for name in names)
        if not (sides and classes and isinstance(data["source_hash"], str)):
            raise InputError(
                f"{damaged}: size, channels, classes or source_hash is of a wrong kind"
            )
        return Run(folder, configfile.read(folder / "config.yaml"), data)

    @property
    def checkpoint_folder(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes the generator draws on request; () for an unconditional one."""
        return tuple(self.data["classes"]) if self.config.conditional != "no" else ()

    @property
    def latent(self) -> int:
        """Size of z."""
        return self.config.net.latent

    def spec(self) -> NetSpec:
        """What the networks of this run are built for."""
        size, channels, classes = (self.data[name] for name in ("size", "channels", "classes"))
        return NetSpec.of(self.config, size, channels, len(classes), self.config.conditional)

    def latest(self) -> Path:
        """The newest checkpoint whose average is whole; InputError where there is none."""
        newest = checkpoints.newest_whole(self.checkpoint_folder, ["ema"])
        if not newest:
            raise InputError(
                f"{self.folder} has no checkpoint yet; "
                f"train it further with `ganfast train --out {self.folder}`"
            )
        return newest.path

    def find(self, which: str) -> Path:
        """A checkpoint: "" = the newest, "best", its number of images ("12800"), or its path."""
        if not which:
            return self.latest()
        if which == "best" and (best := checkpoints.best(self.checkpoint_folder)):
            return best
        paths = checkpoints.listed(self.checkpoint_folder)
        for path in paths:
            if which.isdecimal() and path.name.lstrip("0") == which.lstrip("0"):
                return path
        if os.path.isdir(which):  # also False for a text that no path can have
            return Path(which)
        names = ", ".join(p.name for p in paths) or "none"
        raise InputError(f"no checkpoint {which} in {self.folder}; there: {names}")

    def part(self, checkpoint: Path, part: str) -> tuple[checkpoints.Record, dict[str, Tensor]]:
        """What state.json says of a checkpoint, and the tensors of one of its parts.

        Raises:
            InputError: it is damaged, or of another run.
        """
        record, contents = checkpoints.read(checkpoint, [part])
        refuse_foreign(self, checkpoint, record)
        return record, contents[part]

    @cached_property
    def _generators(self) -> dict[tuple[str, str], nn.Module]:
        return {}

    def generator(self, checkpoint: str = "", device: str = "auto") -> nn.Module:
        """The averaged generator, evaluating: z (N, latent) [, labels (N,)] -> float in [-1, 1]."""
        path, where = self.find(checkpoint), find_device(device)
        key = (str(path), str(where))
        if key not in self._generators:
            net = build_generator(self.spec())
            load_module(net, self.part(path, "ema")[1], f"{path} holds another ema")
            self._generators.clear()
            self._generators[key] = prepared(net, where).eval().requires_grad_(False)
        return self._generators[key]

    def critic(self, checkpoint: str = "", device: str = "auto") -> Critic:
        """The critic of a checkpoint, to be asked about pictures.

        Raises:
            InputError: there is no such checkpoint, or it holds no critic.
        """
        return Critic(self, checkpoint, device)

    def directions(self, checkpoint: str = "", device: str = "auto") -> NDArray[np.float32]:
        """Latent directions, unit rows (min(latent, units), latent), the strongest first.

        They are the right singular vectors of the weight of the averaged generator's first linear
        layer that reads z, by falling singular value (SeFa, arXiv:2007.06600, eq. 4). The largest
        number of each is positive, so that it does not depend on the machine.

        Raises:
            InputError: no linear layer of the generator reads z.
        """
        for layer in self.generator(checkpoint, device).modules():
            if isinstance(layer, nn.Linear) and layer.in_features == self.latent:
                _, _, rows = torch.linalg.svd(layer.weight.double().cpu(), full_matrices=False)
                largest = rows.gather(1, rows.abs().argmax(1, keepdim=True))
                return (rows * largest.sign()).float().numpy()
        raise InputError(
            f"no linear layer of the generator of {self.folder} takes {self.latent} numbers, as z "
            "has: its directions are those of such a layer"
        )

    def sample(
        self,
        n: int,
        seed: int = 0,
        labels: Sequence[int] | None = None,
        psi: float = 1.0,
        first: int = 0,
        checkpoint: str = "",
        device: str = "auto",
    ) -> Pictures:
        """Draw pictures. Picture (seed, index) is the same however many are drawn with it.

        Args:
            n: how many, > 0.
            seed: names the stream of latents, 0 <= seed < 2**64.
            labels: classes used in turn: picture i is of class labels[i % len(labels)]; None =
                random classes.
            psi: z <- psi * z: 1 as trained, less is more typical and less varied, 0 one picture; up
                to 2.
            first: index of the first picture.
            checkpoint, device: which weights, where; "" and "auto" choose.

        Returns:
            uint8 (n, H, W, C).

        Raises:
            InputError: labels that the run does not have; n, seed or psi out of range.
        """
        return self.sample_labelled(n, seed, labels, psi, first, checkpoint, device)[0]

    def sample_labelled(
        self,
        n: int,
        seed: int = 0,
        labels: Sequence[int] | None = None,
        psi: float = 1.0,
        first: int = 0,
        checkpoint: str = "",
        device: str = "auto",
    ) -> tuple[Pictures, np.ndarray | None]:
        """`sample`, and the class of each picture, int64 (n,); None for a run without classes."""
        index = picture_index(n, seed, first)
        z, classes = latents(seed, index, self.latent), self.labels_of(index, seed, labels)
        return self.draw(z, classes, psi, checkpoint, device), classes

    def draw(
        self,
        z: Any,
        labels: Any = None,
        psi: float = 1.0,
        checkpoint: str = "",
        device: str = "auto",
        condition: Pictures | None = None,
    ) -> Pictures:
        """Pictures uint8 (N, H, W, C) of latents, float32 (N, latent), labels, int64 (N,), and
        conditions as of `apply`."""
        if not 0 <= psi <= 2:
            raise InputError(f"psi is {psi}; expected 0 (one picture) to 2, where 1 is as trained")
        spec = self.spec()
        if spec.given and condition is None:
            raise InputError(
                f"{self.folder} makes pictures from others ({self.config.task.kind}): "
                "give it some by `apply` in the place of `sample`"
            )
        generator = self.generator(checkpoint, device)
        where = next(generator.parameters()).device
        pictures = []
        for start in range(0, len(z), _CHUNK):
            rows = slice(start, start + _CHUNK)
            part = torch.from_numpy(np.ascontiguousarray(z[rows]))
            count = len(part)
            full = torch.zeros(_CHUNK, part.shape[1])
            full[:count] = part * psi
            classes = None
            if labels is not None:
                classes = torch.zeros(_CHUNK, dtype=torch.long)
                classes[:count] = torch.from_numpy(np.asarray(labels[rows], dtype=np.int64))
                classes = classes.to(where)
            given = None
            if condition is not None:
                levels = torch.zeros(_CHUNK, *spec.given)
                levels[:count] = torch.from_numpy(np.ascontiguousarray(condition[rows]))
                given = scaled(levels.permute(0, 3, 1, 2).to(where), spec.channels)
            with torch.no_grad():
                drawn = to_uint8(draw(generator, full.to(where), classes, given))
            pictures.append(drawn[:count].cpu().numpy())
        return np.concatenate(pictures)

    def apply(
        self,
        condition: Pictures,
        seed: int = 0,
        first: int = 0,
        psi: float = 1.0,
        labels: Sequence[int] | None = None,
        checkpoint: str = "",
        device: str = "auto",
    ) -> Pictures:
        """Pictures made from conditions. Picture i has latent (seed, first + i).

        Args:
            condition: uint8 (N, h, w, k) of `spec().given`: a picture, and behind its channels a
                mask where the task has one, 255 = known and 0 = hole.
            seed, first, psi, labels, checkpoint, device: as of `sample`; psi 0 = one answer.

        Returns:
            uint8 (N, H, W, C).

        Raises:
            InputError: a run without a task, a condition of another shape, a mask with a third
                value, or as `sample`.
        """
        spec = self.spec()
        if not spec.given:
            raise InputError(
                f"{self.folder} draws from latents alone and takes no condition: use sample"
            )
        shape: tuple[int, ...] = tuple(getattr(condition, "shape", ()))
        kind = str(getattr(condition, "dtype", type(condition).__name__))
        if kind != "uint8" or len(shape) != 4 or shape[1:] != spec.given:
            raise InputError(
                f"the condition is {kind} {shape}; expected uint8 (N, "
                f"{', '.join(map(str, spec.given))}) as {self.folder} was trained on"
            )
        refuse_third_value(condition[..., spec.channels :])
        index = picture_index(len(condition), seed, first)
        z, classes = latents(seed, index, self.latent), self.labels_of(index, seed, labels)
        return self.draw(z, classes, psi, checkpoint, device, condition)

    def labels_of(
        self, index: np.ndarray, seed: int, labels: Sequence[int] | None
    ) -> np.ndarray | None:
        """The class of each picture, int64 (N,): ``labels`` in turn, or random classes.

        None for a run without classes.
        """
        count = len(self.classes)
        if not count:
            if labels is not None:
                raise InputError(
                    f"{self.folder} was trained without classes: "
                    "it cannot draw one on request; leave --labels out"
                )
            return None
        if labels is None:
            return random_classes(seed, index, count)
        if not len(labels):
            raise InputError("labels are empty; leave them out for classes at random")
        for label in labels:
            if not 0 <= label < count:
                raise InputError(
                    f"there is no class {label}; {self.folder} has {count}: {self.class_list()}"
                )
        return np.asarray(labels)[index % len(labels)]

    def class_list(self) -> str:
        """ "0 = zero, 1 = one, ..." for messages."""
        return class_list(self.classes)
