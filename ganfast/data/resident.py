"""Batches drawn on the device that trains, with no loader.

The pictures lie in its memory as uint8, and it shuffles, mirrors and scales them.
Which pictures a batch holds is a function of (seed, image counter) alone, see `ganfast.random`.
"""

import warnings

import numpy as np
import torch
from torch import Tensor

from ganfast.data.pack import Pack
from ganfast.data.stacked import StackedImages
from ganfast.errors import InputError
from ganfast.kernels._triton import use_triton
from ganfast.kernels.pictures import as_pictures, gather_pictures
from ganfast.latents import Purpose
from ganfast.log import logger
from ganfast.random import coin, permute

_ROOM = 0.6  # share of the free device memory that pictures may take


class ResidentData:
    """Training batches of a pack.

    Args:
        pack: the pictures.
        device: where batches are used.
        seed: of order and flips.
        flip: mirror each picture with probability 1/2.
        balanced: draw every class equally often.
        holdout: share that is held out, as `held_out` names it.
        imbalance: ratio of the first class's count to the last's, falling geometrically between;
            0 or 1 keeps all.

    Raises:
        InputError: balance or imbalance asked of a set without classes; a class left empty.
    """

    def __init__(
        self,
        pack: Pack,
        device: torch.device,
        seed: int,
        flip: bool = False,
        balanced: bool = False,
        imbalance: float = 0.0,
        holdout: float = 0.0,
    ) -> None:
        self.seed, self.flip, self.device = seed, flip, device
        self.classes = len(pack.info.classes)
        labels = None if pack.labels is None else torch.from_numpy(np.array(pack.labels))
        if labels is None and (balanced or imbalance > 1):
            raise InputError(
                f"{pack.info.name} has no classes: "
                "--balanced and --imbalance need some (sub-folders, or --attributes)"
            )

        subset = None
        if labels is not None and imbalance > 1:
            subset = long_tail(labels, self.classes, imbalance, seed)
        if holdout:
            kept = torch.ones(len(pack.images), dtype=torch.bool)
            kept[held_out(len(kept), holdout, seed)] = False
            every = torch.arange(len(kept)) if subset is None else subset
            subset = every[kept[every]]
        stacked = pack.images if isinstance(pack.images, StackedImages) else None
        self.images = _on_device(stacked.digits if stacked else pack.images, device)
        # the digits that make a picture of stacked-mnist
        self.triples = torch.from_numpy(stacked.triples).to(device) if stacked else None
        self.labels = None if labels is None else labels.to(device)
        # positions in the pack; None = all of them
        self.subset = None if subset is None else subset.to(device)
        self.count = len(pack.images) if subset is None else len(subset)
        self.class_counts = None
        if labels is not None:
            used = labels if subset is None else labels[subset]
            self.class_counts = torch.bincount(used, minlength=self.classes)
            if balanced:
                self._prepare_balance(used, device)
        self.balanced = balanced

    def _prepare_balance(self, used: Tensor, device: torch.device) -> None:
        counts = torch.bincount(used, minlength=self.classes)
        self.present = torch.nonzero(counts)[:, 0].to(device)  # classes that have pictures
        self.by_class = torch.argsort(used, stable=True).to(device)
        self.first = (counts.cumsum(0) - counts).to(device)
        self.counts = counts.to(device)

    def batch(self, start: int, count: int) -> tuple[Tensor, Tensor | None]:
        """The run's next pictures from ``start`` on, float32 (count, C, H, W) in [-1, 1].

        Labels are int64 (count,), or None.
        """
        index = torch.arange(start, start + count, device=self.device)
        position = self.positions(index)
        return self.pictures(position, self.mirrored(index)), self.labels_at(position)

    def positions(self, index: Tensor) -> Tensor:
        """Places in the pack, int64 (N,), of the pictures that the run shows as number ``index``.

        Elementwise, and without waiting for the device.
        """
        shown = self._balanced(index) if self.balanced else self._shuffled(index)
        return shown if self.subset is None else self.subset[shown]

    def mirrored(self, index: Tensor, out: Tensor | None = None) -> Tensor | None:
        """Which pictures are shown mirrored, bool (N,); None without mirroring. ``out``: as of
        `ganfast.random.normal`."""
        return coin(self.seed, Purpose.FLIP, index, out).squeeze(-1) if self.flip else None

    def pictures(self, position: Tensor, mirrored: Tensor | None) -> Tensor:
        """Float32 (N, C, H, W) in [-1, 1], channels last."""
        if self.resident and use_triton(self.images):
            return gather_pictures(self.images, self.triples, position, mirrored)
        return as_pictures(self._gather(position), mirrored)

    def labels_at(self, position: Tensor) -> Tensor | None:
        """Classes int64 (N,), or None for a set without."""
        return None if self.labels is None else self.labels.index_select(0, position)

    @property
    def resident(self) -> bool:
        """Whether the pictures lie on the device that trains; else a batch waits for the host."""
        return self.images.device.type == self.device.type

    def _shuffled(self, index: Tensor) -> Tensor:
        """Each epoch shows every picture once, in an order of its own."""
        count = self.count
        return permute(index % count, count, self.seed, Purpose.ORDER, index // count)

    def _balanced(self, index: Tensor) -> Tensor:
        """Every K pictures show each of K classes once, and a class has epochs of its own."""
        classes = len(self.present)
        round_ = index // classes
        chosen = self.present[permute(index % classes, classes, self.seed, Purpose.ORDER, round_)]
        size = self.counts[chosen]
        # a different shuffle for every class and epoch
        epoch = round_ // size * self.classes + chosen
        within = permute(round_ % size, size, self.seed, Purpose.BALANCED_ORDER, epoch)
        return self.by_class[self.first[chosen] + within]

    def _gather(self, position: Tensor) -> Tensor:
        if self.triples is not None:
            triples = self.triples[position]
            return self._stored(triples.flatten()).view(*triples.shape, *self.images.shape[2:])
        return self._stored(position)

    def _stored(self, position: Tensor) -> Tensor:
        if self.resident:
            # copies whole pictures: a tenth of the time of indexing on a CPU
            return self.images.index_select(0, position)
        host = position.cpu()
        order = torch.argsort(host)  # rising: a memory map's pages are read once, in order
        picked = torch.empty(len(host), *self.images.shape[1:], dtype=torch.uint8, pin_memory=True)
        picked[order] = self.images[host[order]]
        return picked.to(self.device, non_blocking=True)


def _on_device(images: np.ndarray, device: torch.device) -> Tensor:
    with warnings.catch_warnings():  # of a read-only map, to which nothing here writes
        warnings.simplefilter("ignore", UserWarning)
        host = torch.from_numpy(images)
    if device.type != "cuda":
        return host
    free, _ = torch.cuda.mem_get_info(device)
    if images.nbytes <= _ROOM * free:
        return host.to(device)
    logger.warning(
        "the pictures need %.1f GB of the %.1f GB free on %s: "
        "streaming them from host memory instead",
        *(images.nbytes / 1e9, free / 1e9, device),
    )
    return host


def held_out(count: int, share: float, seed: int) -> Tensor:
    """Positions of the pictures that a run never trains on, one at least, int64, rising; the seed
    chooses."""
    position = torch.arange(count)
    rank = permute(position, count, seed, Purpose.HOLDOUT, torch.zeros_like(position))
    return torch.nonzero(rank < max(1, round(share * count)))[:, 0]


def long_tail(labels: Tensor, classes: int, ratio: float, seed: int) -> Tensor:
    """Positions of a long-tailed subset: class k keeps n ratio^(-k / (K - 1)) pictures.

    n is the count of the smallest class. The profile is that of Cui et al. 2019, arXiv:1901.05555.
    Which pictures stay depends on the seed alone.

    Returns:
        int64, rising.

    Raises:
        InputError: a class would keep nothing.
    """
    counts = torch.bincount(labels, minlength=classes)
    smallest = int(counts[counts > 0].min())
    positions = []
    for k in range(classes):
        share = round(smallest * ratio ** (-k / max(1, classes - 1)))
        if not counts[k]:
            raise InputError(f"class {k} has no picture: a long tail needs some of every class")
        if share < 1:
            raise InputError(
                f"imbalance {ratio:g} leaves class {k} with no picture of its {int(counts[k])}; "
                f"use {smallest:g} or less"
            )
        position = torch.arange(int(counts[k]))
        epoch = torch.full_like(position, k)
        rank = permute(position, len(position), seed, Purpose.IMBALANCE, epoch)
        positions.append(torch.nonzero(labels == k)[:, 0][rank < share])
    return torch.cat(positions).sort().values
