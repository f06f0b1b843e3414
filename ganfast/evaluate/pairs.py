"""Held-out pictures and their conditions, which never change: what conditional runs are shown by
and scored on."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ganfast.config import Config
from ganfast.data.heldout import held_out_pictures
from ganfast.data.pack import Pack
from ganfast.engine import draw
from ganfast.evaluate.sources import shuffled
from ganfast.images import Pictures, grid
from ganfast.kernels.pictures import as_pictures
from ganfast.kernels.to_uint8 import to_uint8
from ganfast.latents import latents
from ganfast.tasks import Task

_CHUNK = 100  # pictures a forward pass
_SHEET = 16  # pictures on a sheet
_MEAN = 2000  # training pictures that a mean is of
_ORDER = 2**31 - 4  # the shuffle of held-out pictures


class Pair(NamedTuple):
    """Some held-out pictures: float32 (N, C, H, W) and (N, k, h, w); classes int64 (N,) or None."""

    real: Tensor
    given: Tensor
    labels: Tensor | None
    first: int  # number of the first


class Pairs:
    """Held-out pictures in a shuffled order, each with the condition of its position.

    Args:
        pack, positions: where they lie, as of `ganfast.data.heldout.held_out_pictures`.
        train, mean_of: training pictures, and the positions whose mean baselines may take.
        classes: whether generators draw a class on request.
    """

    def __init__(
        self,
        task: Task,
        pack: Pack,
        positions: np.ndarray,
        train: Pack,
        mean_of: np.ndarray,
        device: torch.device,
        classes: bool,
    ) -> None:
        self.task, self.pack, self.positions, self.device = task, pack, positions, device
        self.train, self.trained_on, self.classes = train, mean_of, classes
        some = np.sort(mean_of[:: max(1, len(mean_of) // _MEAN)])
        mean = np.asarray(train.images[some]).mean(0, dtype=np.float64) / 127.5 - 1
        self.mean = torch.from_numpy(mean).float().to(device)

    @staticmethod
    def of(
        task: Task, config: Config, pack: Pack, device: torch.device, count: int = _SHEET
    ) -> "Pairs":
        """The first ``count`` of a run's held-out pictures. ``pack``: of its training pictures."""
        held, positions = held_out_pictures(config, pack)
        trained_on = np.arange(len(pack.images))
        if held is pack and len(positions) < len(trained_on):
            trained_on = np.setdiff1d(trained_on, positions)
        chosen = positions[shuffled(len(positions), 0, _ORDER)[:count]]
        return Pairs(task, held, chosen, pack, trained_on, device, config.conditional != "no")

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def kind(self) -> str:
        """What the pictures are to the run."""
        same = self.pack is self.train and len(self.trained_on) == len(self.train.images)
        return "trained-on" if same else "held-out"

    def __iter__(self) -> Iterator[Pair]:
        for first in range(0, len(self), _CHUNK):
            rows = self.positions[first : first + _CHUNK]
            order = np.argsort(rows)  # a memory map's pages are read once, in order
            stored = np.empty((len(rows), *self.pack.images.shape[1:]), np.uint8)
            stored[order] = self.pack.images[rows[order]]
            real = as_pictures(torch.from_numpy(stored).to(self.device), None)
            labels = None
            if self.classes and self.pack.labels is not None:
                labels = torch.from_numpy(np.asarray(self.pack.labels)[rows]).to(self.device)
            index = torch.from_numpy(rows).to(self.device)
            yield Pair(real, self.task.derive(real, index, 0), labels, first)

    @torch.no_grad()
    def drawn(
        self, net: nn.Module, latent: int, pair: Pair, seed: int = 0, psi: float = 1.0
    ) -> Tensor:
        """What a generator makes of conditions: picture i from latent (seed, i)."""
        index = np.arange(pair.first, pair.first + len(pair.real))
        z = torch.from_numpy(latents(seed, index, latent) * np.float32(psi)).to(self.device)
        return draw(net, z, pair.labels, pair.given)

    def sheet(self, net: nn.Module, latent: int, seed: int = 0, psi: float = 1.0) -> Pictures:
        """given | baseline | drawn | real of the first 16, two of them a row."""
        real, given, labels, first = next(iter(self))
        few = slice(0, _SHEET)
        pair = Pair(real[few], given[few], None if labels is None else labels[few], first)
        columns = (
            self.task.view(pair.given),
            self.task.baseline(pair.given, self.mean),
            self.drawn(net, latent, pair, seed, psi),
            pair.real,
        )
        tiles = torch.stack([to_uint8(x) for x in columns], 1).flatten(0, 1)
        return grid(tiles.cpu().numpy(), 8)
