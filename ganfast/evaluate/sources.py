"""Where pictures to be scored come from: a run or one of its checkpoints, a folder or array of pictures, an exported bundle."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from ganfast import checkpoint as checkpoints
from ganfast.device import find_device, prepared
from ganfast.engine import draw
from ganfast.errors import InputError
from ganfast.export.latents import latents, philox_words
from ganfast.images import Pictures
from ganfast.kernels.to_uint8 import to_uint8
from ganfast.models import build_generator
from ganfast.random import Purpose
from ganfast.run import Run
from ganfast.saving import load_module

_CHUNK = 250  # pictures a forward pass


class Fakes(Protocol):
    """Pictures to be scored. Picture i is the same in whatever chunk it is asked for."""

    name: str
    facts: dict[str, Any]  # of the protocol: what was drawn and how
    count: int | None  # None: as many as are asked for
    shape: tuple[int, int, int]  # (H, W, C)
    classes: int  # classes asked for; 0 = none

    def pictures(self, start: int, stop: int, labels: np.ndarray | None) -> Pictures:
        """Pictures start .. stop, uint8 (N, H, W, C), of the classes int64 (N,) where there are any."""
        ...


class Generated:
    """A generator of torch in evaluation mode, drawing from the stream of latents that users sample from."""

    def __init__(self, net: torch.nn.Module, latent: int, shape: tuple[int, int, int], classes: int, seed: int, psi: float) -> None:
        if not 0 <= psi <= 2:
            raise InputError(f"psi is {psi}; expected 0 (one picture) to 2, where 1 is as trained")
        self.net, self.latent, self.shape, self.classes, self.seed, self.psi = net, latent, shape, classes, seed, psi
        self.name = "generator"
        self.count: int | None = None
        self.facts: dict[str, Any] = {"seed": seed, "psi": psi}

    def pictures(self, start: int, stop: int, labels: np.ndarray | None) -> Pictures:
        parts = []
        device = next(self.net.parameters()).device
        z = torch.from_numpy(latents(self.seed, np.arange(start, stop), self.latent) * np.float32(self.psi)).to(device)
        chosen = None if labels is None or not self.classes else torch.from_numpy(labels).to(device)
        with torch.no_grad():
            for first in range(0, len(z), _CHUNK):
                rows = slice(first, first + _CHUNK)
                parts.append(to_uint8(draw(self.net, z[rows], None if chosen is None else chosen[rows])).cpu().numpy())
        return np.concatenate(parts)


def of_run(run: Run, checkpoint: str, seed: int, psi: float, device: str, ema: bool = True) -> Generated:
    """The averaged generator of a run's checkpoint ("" = the newest), or the trained one as it is."""
    path = run.find(checkpoint)
    net = build_generator(run.spec())
    part = "ema" if ema else "generator"
    record, contents = checkpoints.read(path, [part])
    load_module(net, contents[part], f"{path} holds another {part}")
    images = record.images
    net = prepared(net, find_device(device)).eval().requires_grad_(False)
    size, channels = run.data["size"], run.data["channels"]
    made = Generated(net, run.config.net.latent, (size, size, channels), len(run.classes), seed, psi)
    made.name = f"{run.folder}" + (f" at {images / 1000:g} kimg" if checkpoint else "")
    made.facts |= {"ema": ema, "images": images}
    return made


@dataclass
class Stored:
    """Pictures on disk: a folder, zip or array, as `ganfast.data` reads them."""

    name: str
    stored: np.ndarray  # uint8 (N, C, H, W)
    labels: np.ndarray | None
    facts: dict[str, Any]

    @property
    def count(self) -> int:
        return len(self.stored)

    @property
    def shape(self) -> tuple[int, int, int]:
        _, channels, height, width = self.stored.shape
        return height, width, channels

    classes = 0

    def pictures(self, start: int, stop: int, labels: np.ndarray | None) -> Pictures:
        return np.ascontiguousarray(np.asarray(self.stored[start:stop]).transpose(0, 2, 3, 1))


class Bundle:
    """An exported bundle, through its own sampler: whatever back end that takes."""

    def __init__(self, path: Path, seed: int, psi: float) -> None:
        from ganfast.export import load_sampler

        self.sampler = load_sampler(path)
        m = self.sampler.manifest
        self.seed, self.psi, self.name, self.count = seed, psi, str(path), None
        self.shape = (m.size, m.size, m.channels)
        self.classes = len(m.classes)
        self.facts: dict[str, Any] = {"seed": seed, "psi": psi, "backend": self.sampler.backend_name, "bundle": m.digest}

    def pictures(self, start: int, stop: int, labels: np.ndarray | None) -> Pictures:
        found: Pictures = self.sampler.sample(
            stop - start, seed=self.seed, psi=self.psi, first=start, labels=labels if self.classes else None
        )
        return found


def classes_like(counts: np.ndarray, seed: int, start: int, stop: int) -> np.ndarray:
    """A class for each picture start .. stop, int64, drawn in proportion to counts (K,)."""
    words = philox_words(seed, Purpose.SAMPLE_CLASS, np.arange(start, stop), 1)[:, 0]
    u = (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return np.searchsorted(np.cumsum(counts) / counts.sum(), u, side="right").clip(0, len(counts) - 1).astype(np.int64)
