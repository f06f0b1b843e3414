"""Feature networks behind one interface: pictures in, features and perhaps class logits out.

Scores are comparable only where the extractor is the same. An extractor carries its name, the hash
of its weights and how it prepares pictures; `published` is true only of the one that is committed
with ganfast.
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
    device: torch.device = torch.device("cpu")

    @abstractmethod
    def extract(self, pictures: Tensor) -> Features:
        """Features of uint8 (N, H, W, C) pictures on the extractor's device, no gradients."""

    def __call__(self, pictures: Pictures | Tensor) -> Features:
        """Features of uint8 (N, H, W, C) pictures, from anywhere."""
        if isinstance(pictures, np.ndarray):
            pictures = torch.from_numpy(np.array(pictures))
        with torch.no_grad():
            answer = self.extract(pictures)
        logits = None if answer.logits is None else answer.logits.float()
        return Features(answer.features.float(), logits)


@dataclass(frozen=True)
class Preprocessing:
    """How uint8 pictures become a network's input, as in "size=299,channels=3,mean=128,std=128".

    The input is (picture - mean) / std with picture in 0..255, RGB or BGR, resized to size x size
    (bilinear, corners not aligned).
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
                raise InputError(
                    f"preprocessing has {part!r}; expected a comma-separated list of size=N, "
                    "channels=1|3, mean=A or A/B/C, std=A or A/B/C, bgr=yes|no, antialias=yes|no"
                ) from None
        parsed = Preprocessing(**values)  # type: ignore[arg-type]
        channels, means, stds = parsed.channels, parsed.mean, parsed.std
        if channels not in (1, 3) or parsed.size < 0:
            raise InputError(f"preprocessing {text!r}: channels must be 1 or 3 and size 0 or more")
        if any(len(numbers) not in (1, channels) for numbers in (means, stds)) or 0 in stds:
            raise InputError(
                f"preprocessing {text!r}: "
                f"mean and std take one number or {channels}, std none that is 0"
            )
        return parsed

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
            luma = x.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)  # ITU-R BT.601
            x = (x * luma).sum(1, keepdim=True)
        size = self.size, self.size
        if self.size and tuple(x.shape[2:]) != size:
            x = F.interpolate(x, size, mode="bilinear", antialias=self.antialias)
        if self.bgr:
            x = x.flip(1)
        mean, std = (x.new_tensor(values).view(1, -1, 1, 1) for values in (self.mean, self.std))
        return (x - mean) / std


class NetworkExtractor(Extractor):
    """A network of torch behind a `Preprocessing`; it returns features (N, D), or also logits."""

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
        x = self.prepare(pictures.to(self.device)).contiguous(memory_format=torch.channels_last)
        answer = self.net(x)
        features, logits = answer if isinstance(answer, tuple) else (answer, None)
        if features.dim() == 4:  # maps: their means
            features = features.mean((2, 3))
        return Features(features.flatten(1), logits)


class StackedExtractor(Extractor):
    """An extractor of grey pictures on each channel of colour pictures.

    Features lie side by side; a class is a triple of classes.
    """

    judges_labels = True

    def __init__(self, of_one: Extractor) -> None:
        self.of_one, self.device, self.published = of_one, of_one.device, of_one.published
        self.name, self.sha256, self.dim = f"{of_one.name} x3", of_one.sha256, 3 * of_one.dim
        self.preprocessing = f"per channel: {of_one.preprocessing}"

    def extract(self, pictures: Tensor) -> Features:
        n = len(pictures)
        channels = pictures.permute(0, 3, 1, 2).reshape(n * 3, *pictures.shape[1:3], 1)
        answer = self.of_one.extract(channels)
        assert answer.logits is not None
        a, b, c = answer.logits.log_softmax(1).view(n, 3, -1).unbind(1)
        logits = a[:, :, None, None] + b[:, None, :, None] + c[:, None, None, :]
        return Features(answer.features.reshape(n, -1), logits.flatten(1))  # of 100 a + 10 b + c


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_hash(path: Path, expected: str) -> str:
    """The file's sha256; InputError where it does not begin with ``expected``, 8 digits or more."""
    if expected and not re.fullmatch("[0-9a-fA-F]{8,64}", expected):
        raise InputError(
            f"sha256 is {expected!r}; "
            f"expected the 64 hex digits of the hash of {path}, or the first 8 of them or more"
        )
    digest = sha256_of(path)
    if not digest.startswith(expected.lower()):
        raise InputError(
            f"{path} has sha256 {digest}; expected {expected}: another file, or a damaged one"
        )
    return digest
