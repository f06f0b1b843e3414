"""Where pictures to be scored come from: a generator, or a folder, zip or array of pictures."""

from typing import Any, Protocol

import numpy as np
import torch

from ganfast.data import Pack
from ganfast.engine import draw
from ganfast.errors import InputError
from ganfast.images import Pictures
from ganfast.kernels.to_uint8 import to_uint8
from ganfast.latents import Purpose, latents, philox_words
from ganfast.random import permute

_CHUNK = 250  # pictures a forward pass
# The shuffle of pictures on disk: not the one that splits the reference, which may be the same set.
_STORED = 2**31 - 2


class Fakes(Protocol):
    """Pictures to be scored. Picture i does not depend on the chunk that it is drawn in."""

    name: str
    facts: dict[str, Any]  # of the protocol: what was drawn and how
    count: int | None  # None: as many as are asked for
    shape: tuple[int, int, int]  # (H, W, C)
    classes: tuple[str, ...]  # what their classes are called; () = none
    labels: np.ndarray | None  # int64 (count,) of pictures with classes of their own; else None

    def pictures(self, start: int, stop: int, labels: np.ndarray | None) -> Pictures:
        """Pictures start .. stop, uint8 (N, H, W, C), of classes int64 (N,) where there are any."""
        ...


class Generated:
    """A generator of torch in evaluation mode; its latents are those that users sample from."""

    labels: np.ndarray | None = None

    def __init__(
        self,
        net: torch.nn.Module,
        latent: int,
        shape: tuple[int, int, int],
        classes: tuple[str, ...],
        seed: int,
        psi: float,
    ) -> None:
        if not 0 <= psi <= 2:
            raise InputError(f"psi is {psi}; expected 0 (one picture) to 2, where 1 is as trained")
        self.net, self.latent, self.seed, self.psi = net, latent, seed, psi
        self.shape, self.classes = shape, classes
        self.name = "generator"
        self.count: int | None = None
        self.facts: dict[str, Any] = {"seed": seed, "psi": psi}

    def pictures(self, start: int, stop: int, labels: np.ndarray | None) -> Pictures:
        parts = []
        device = next(self.net.parameters()).device
        numbers = latents(self.seed, np.arange(start, stop), self.latent) * np.float32(self.psi)
        z, classes = torch.from_numpy(numbers).to(device), None
        if labels is not None and self.classes:
            classes = torch.from_numpy(labels).to(device)
        with torch.no_grad():
            for first in range(0, len(z), _CHUNK):
                rows = slice(first, first + _CHUNK)
                drawn = draw(self.net, z[rows], None if classes is None else classes[rows])
                parts.append(to_uint8(drawn).cpu().numpy())
        return np.concatenate(parts)


class Stored:
    """Pictures on disk: a folder, zip or array, as `ganfast.data` reads them.

    They are shuffled, because they often lie there class by class.
    """

    def __init__(self, name: str, pack: Pack, seed: int) -> None:
        info = pack.info
        self.name, self.classes, self.count = name, info.classes, len(pack.images)
        self.shape = (info.size, info.size, info.channels)
        self.stored, self.order = pack.images, shuffled(self.count, seed, _STORED)
        self.labels = None if pack.labels is None else pack.labels[self.order]
        self.facts: dict[str, Any] = {"pictures": info.source_hash[:8], "shuffled": seed}

    def pictures(self, start: int, stop: int, labels: np.ndarray | None) -> Pictures:
        pictures = np.asarray(self.stored[self.order[start:stop]])
        return np.ascontiguousarray(pictures.transpose(0, 2, 3, 1))


def classes_like(counts: np.ndarray, seed: int, start: int, stop: int) -> np.ndarray:
    """A class for each picture start .. stop, int64, drawn in proportion to counts (K,)."""
    words = philox_words(seed, Purpose.SAMPLE_CLASS, np.arange(start, stop), 1)[:, 0]
    u = (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
    classes = np.searchsorted(np.cumsum(counts) / counts.sum(), u, side="right")
    return classes.clip(0, len(counts) - 1).astype(np.int64)


def shuffled(count: int, seed: int, which: int) -> np.ndarray:
    """0 .. count - 1, int64, in an order that (seed, which) names."""
    position = torch.arange(count)
    return permute(position, count, seed, Purpose.JUDGE, torch.full_like(position, which)).numpy()
