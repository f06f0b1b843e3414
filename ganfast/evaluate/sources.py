"""Where pictures to be scored come from: a run or one of its checkpoints, a folder or array of pictures, an exported bundle."""

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
_STORED = (
    2**31 - 2
)  # the shuffle of pictures on disk: another than that which splits the reference, in case they are the same


class Fakes(Protocol):
    """Pictures to be scored. Picture i is the same in whatever chunk it is asked for."""

    name: str
    facts: dict[str, Any]  # of the protocol: what was drawn and how
    count: int | None  # None: as many as are asked for
    shape: tuple[int, int, int]  # (H, W, C)
    classes: tuple[str, ...]  # what their classes are called; () = none
    labels: (
        np.ndarray | None
    )  # int64 (count,) of pictures that have their classes; None where they are asked for, or none are

    def pictures(self, start: int, stop: int, labels: np.ndarray | None) -> Pictures:
        """Pictures start .. stop, uint8 (N, H, W, C), of the classes int64 (N,) where there are any."""
        ...


class Generated:
    """A generator of torch in evaluation mode, drawing from the stream of latents that users sample from."""

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
        self.net, self.latent, self.shape, self.classes, self.seed, self.psi = (
            net,
            latent,
            shape,
            classes,
            seed,
            psi,
        )
        self.name = "generator"
        self.count: int | None = None
        self.facts: dict[str, Any] = {"seed": seed, "psi": psi}

    def pictures(self, start: int, stop: int, labels: np.ndarray | None) -> Pictures:
        parts = []
        device = next(self.net.parameters()).device
        z = torch.from_numpy(
            latents(self.seed, np.arange(start, stop), self.latent) * np.float32(self.psi)
        ).to(device)
        chosen = None if labels is None or not self.classes else torch.from_numpy(labels).to(device)
        with torch.no_grad():
            for first in range(0, len(z), _CHUNK):
                rows = slice(first, first + _CHUNK)
                parts.append(
                    to_uint8(draw(self.net, z[rows], None if chosen is None else chosen[rows]))
                    .cpu()
                    .numpy()
                )
        return np.concatenate(parts)


class Stored:
    """Pictures on disk: a folder, zip or array, as `ganfast.data` reads them; shuffled, for they often lie there class by class."""

    def __init__(self, name: str, pack: Pack, seed: int) -> None:
        info = pack.info
        self.name, self.classes, self.count = name, info.classes, len(pack.images)
        self.shape = (info.size, info.size, info.channels)
        self.stored, self.order = pack.images, shuffled(self.count, seed, _STORED)
        self.labels = None if pack.labels is None else pack.labels[self.order]
        self.facts: dict[str, Any] = {"pictures": info.source_hash[:8], "shuffled": seed}

    def pictures(self, start: int, stop: int, labels: np.ndarray | None) -> Pictures:
        return np.ascontiguousarray(
            np.asarray(self.stored[self.order[start:stop]]).transpose(0, 2, 3, 1)
        )


def classes_like(counts: np.ndarray, seed: int, start: int, stop: int) -> np.ndarray:
    """A class for each picture start .. stop, int64, drawn in proportion to counts (K,)."""
    words = philox_words(seed, Purpose.SAMPLE_CLASS, np.arange(start, stop), 1)[:, 0]
    u = (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return (
        np.searchsorted(np.cumsum(counts) / counts.sum(), u, side="right")
        .clip(0, len(counts) - 1)
        .astype(np.int64)
    )


def shuffled(count: int, seed: int, which: int) -> np.ndarray:
    """0 .. count - 1, int64, in an order that (seed, which) names."""
    position = torch.arange(count)
    return permute(position, count, seed, Purpose.JUDGE, torch.full_like(position, which)).numpy()
