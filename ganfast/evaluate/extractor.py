"""Feature networks behind one interface: pictures in, features and perhaps class logits out.

Scores are comparable only where the extractor is the same: each carries its name, the hash of its weights and how it prepares
pictures, and `published` is true only of the one that is committed with ganfast.
"""

import hashlib
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ganfast.errors import InputError
from ganfast.images import Pictures


@dataclass(frozen=True)
class Features:
    """What an extractor says of N pictures, on its device."""

    features: Tensor  # float32 (N, D)
    logits: Tensor | None  # float32 (N, K); None for a network without classes of the data


class Extractor(ABC):
    """A feature network. ``extract`` is all that differs between them."""

    name: str
    sha256: str  # of the weights (hex)
    preprocessing: str  # what is done to a picture before it goes in, in words
    published: bool = False  # committed with ganfast: its scores compare across machines
    judges_labels: bool = False  # its logits are over the classes of the data at hand
    dim: int  # of the features

    @abstractmethod
    def extract(self, pictures: Tensor) -> Features:
        """Features of uint8 (N, H, W, C) pictures on the extractor's device, no gradients."""

    def __call__(self, pictures: Pictures | Tensor) -> Features:
        """Features of uint8 (N, H, W, C) pictures, from anywhere."""
        with torch.no_grad():
            found = self.extract(
                torch.from_numpy(np.array(pictures))
                if isinstance(pictures, np.ndarray)
                else pictures
            )
        return Features(
            found.features.float(), None if found.logits is None else found.logits.float()
        )


@dataclass(frozen=True)
class Preprocessing:
    """How uint8 pictures become a network's input. Written as "size=299,channels=3,mean=128,std=128".

    The input is (picture - mean) / std with picture in 0..255, RGB or BGR, resized to size x size (bilinear, corners not aligned).
    """

    size: int = 0  # side in pixels; 0 = as the pictures are
    channels: int = 3  # 1 or 3: converts
    mean: tuple[float, ...] = (127.5,)  # per channel or one for all, in units of 0..255
    std: tuple[float, ...] = (127.5,)
    bgr: bool = False  # channels in reverse order
    antialias: bool = True  # smooth what is made smaller

    @staticmethod
    def parse(text: str) -> "Preprocessing":
        """From "size=64,channels=3,mean=123.7/116.3/103.5,std=58.4/57.1/57.4,bgr=no".

        Raises:
            InputError: a field that is not one of these, or a value that is no number.
        """
        values: dict[str, object] = {}
        for part in filter(None, (p.strip() for p in text.split(","))):
            name, _, value = part.partition("=")
            try:
                if name in ("size", "channels"):
                    values[name] = int(value)
                elif name in ("mean", "std"):
                    values[name] = tuple(float(v) for v in value.split("/"))
                elif name in ("bgr", "antialias") and value in ("yes", "no"):
                    values[name] = value == "yes"
                else:
                    raise ValueError
            except ValueError:
                known = "size=N, channels=1|3, mean=A or A/B/C, std=A or A/B/C, bgr=yes|no, antialias=yes|no"
                raise InputError(
                    f"preprocessing has {part!r}; expected a comma-separated list of {known}"
                ) from None
        made = Preprocessing(**values)  # type: ignore[arg-type]
        if made.channels not in (1, 3) or made.size < 0:
            raise InputError(f"preprocessing {text!r}: channels must be 1 or 3 and size 0 or more")
        if any(len(v) not in (1, made.channels) for v in (made.mean, made.std)) or 0 in made.std:
            raise InputError(
                f"preprocessing {text!r}: mean and std take one number or {made.channels}, std none that is 0"
            )
        return made

    def __str__(self) -> str:
        mean, std = ("/".join(f"{v:g}" for v in values) for values in (self.mean, self.std))
        last = f"bgr={'yes' if self.bgr else 'no'}" + ("" if self.antialias else ",antialias=no")
        return f"size={self.size},channels={self.channels},mean={mean},std={std},{last}"

    def __call__(self, pictures: Tensor) -> Tensor:
        """uint8 (N, H, W, C) to float32 (N, channels, size, size)."""
        x = pictures.permute(0, 3, 1, 2).float()
        if self.channels == 3 and x.shape[1] == 1:
            x = x.expand(-1, 3, -1, -1)
        elif self.channels == 1 and x.shape[1] == 3:
            x = (x * x.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(
                1, keepdim=True
            )  # ITU-R BT.601
        if self.size and tuple(x.shape[2:]) != (self.size, self.size):
            x = F.interpolate(
                x,
                (self.size, self.size),
                mode="bilinear",
                antialias=self.antialias,
                align_corners=False,
            )
        if self.bgr:
            x = x.flip(1)
        mean, std = (x.new_tensor(values).view(1, -1, 1, 1) for values in (self.mean, self.std))
        return (x - mean) / std


class NetworkExtractor(Extractor):
    """A network of torch behind a `Preprocessing`. The network returns features (N, D), or (features, logits)."""

    def __init__(
        self,
        net: nn.Module,
        preprocessing: Preprocessing,
        name: str,
        sha256: str,
        device: torch.device,
        dim: int,
    ) -> None:
        self.net = net.eval().to(device)
        self.prepare, self.device = preprocessing, device
        self.name, self.sha256, self.preprocessing, self.dim = name, sha256, str(preprocessing), dim

    def extract(self, pictures: Tensor) -> Features:
        answer = self.net(
            self.prepare(pictures.to(self.device)).contiguous(memory_format=torch.channels_last)
        )
        features, logits = answer if isinstance(answer, tuple) else (answer, None)
        if features.dim() == 4:  # maps: their means
            features = features.mean((2, 3))
        return Features(features.flatten(1), logits)


class StackedExtractor(Extractor):
    """An extractor of grey pictures on each channel of colour ones: features side by side, one class per triple of classes."""

    judges_labels = True

    def __init__(self, of_one: Extractor) -> None:
        self.of_one = of_one
        self.name, self.sha256, self.dim = f"{of_one.name} x3", of_one.sha256, 3 * of_one.dim
        self.preprocessing, self.published = (
            f"per channel: {of_one.preprocessing}",
            of_one.published,
        )

    def extract(self, pictures: Tensor) -> Features:
        n = len(pictures)
        found = self.of_one.extract(
            pictures.permute(0, 3, 1, 2).reshape(n * 3, *pictures.shape[1:3], 1)
        )
        assert found.logits is not None
        a, b, c = found.logits.log_softmax(1).view(n, 3, -1).unbind(1)
        logits = (a[:, :, None, None] + b[:, None, :, None] + c[:, None, None, :]).flatten(
            1
        )  # of 100 a + 10 b + c
        return Features(found.features.reshape(n, -1), logits)


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_hash(path: Path, wanted: str) -> str:
    """The file's sha256. Raises InputError when another one is wanted; ``wanted`` may be its first 8 digits or more."""
    if wanted and not re.fullmatch("[0-9a-fA-F]{8,64}", wanted):
        raise InputError(
            f"sha256 is {wanted!r}; expected the 64 hex digits of the hash of {path}, or the first 8 of them or more"
        )
    found = sha256_of(path)
    if not found.startswith(wanted.lower()):
        raise InputError(
            f"{path} has sha256 {found}; expected {wanted}: another file, or a damaged one"
        )
    return found
