"""Batches drawn on the device that trains: uint8 pictures in its memory, shuffled, mirrored and scaled there, with no loader.

Which pictures a batch holds is a function of (seed, image counter) alone, see `ganfast.random`.
"""

import logging

import numpy as np
import torch
from torch import Tensor

from ganfast.data.pack import Pack
from ganfast.data.stacked import StackedImages
from ganfast.errors import InputError
from ganfast.latents import Purpose
from ganfast.random import permute, uniform

_log = logging.getLogger("ganfast")
_ROOM = 0.6  # share of the free device memory that pictures may take


class ResidentData:
    """Training batches of a pack.

    Args:
        pack: the pictures.
        device: where batches are wanted.
        seed: of order and flips.
        flip: mirror each picture with probability 1/2.
        balanced: draw every class equally often.
        imbalance: ratio of the first class's count to the last's, falling geometrically between; 0 or 1 keeps all.

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
    ) -> None:
        self.seed, self.flip, self.device = seed, flip, device
        self.classes = len(pack.info.classes)
        labels = None if pack.labels is None else torch.from_numpy(np.array(pack.labels))
        if labels is None and (balanced or imbalance > 1):
            raise InputError(
                f"{pack.info.name} has no classes: --balanced and --imbalance need some (sub-folders, or --attributes)"
            )

        kept = (
            long_tail(labels, self.classes, imbalance, seed)
            if labels is not None and imbalance > 1
            else None
        )
        stacked = pack.images if isinstance(pack.images, StackedImages) else None
        self.images = _on_device(stacked.digits if stacked else pack.images, device)
        self.triples = (
            torch.from_numpy(stacked.triples).to(device) if stacked else None
        )  # of digits that make one picture
        self.labels = None if labels is None else labels.to(device)
        self.kept = (
            None if kept is None else kept.to(device)
        )  # positions in the pack; None = all of them
        self.count = len(pack.images) if kept is None else len(kept)
        self.class_counts = None
        if labels is not None:
            used = labels if kept is None else labels[kept]
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
        """Pictures start .. start + count of the run: float32 (count, C, H, W) in [-1, 1], and labels int64 (count,) or None."""
        index = torch.arange(start, start + count, device=self.device)
        position = self.positions(index)
        return self.pictures(position, self.mirrored(index)), self.labels_at(position)

    def positions(self, index: Tensor) -> Tensor:
        """Where in the pack the pictures shown as number ``index``, int64 (N,), are: int64 (N,). Elementwise, without waiting."""
        shown = self._balanced(index) if self.balanced else self._shuffled(index)
        return shown if self.kept is None else self.kept[shown]

    def mirrored(self, index: Tensor) -> Tensor | None:
        """Which of them are shown mirrored: bool (N,); None where none ever is."""
        return uniform(self.seed, Purpose.FLIP, index)[:, 0] < 0.5 if self.flip else None

    def pictures(self, position: Tensor, mirrored: Tensor | None) -> Tensor:
        """Float32 (N, C, H, W) in [-1, 1], channels last."""
        pictures = (
            self._gather(position).float().div_(127.5).sub_(1).to(memory_format=torch.channels_last)
        )
        return (
            pictures
            if mirrored is None
            else torch.where(mirrored[:, None, None, None], pictures.flip(3), pictures)
        )

    def labels_at(self, position: Tensor) -> Tensor | None:
        """Classes int64 (N,), or None for a set without."""
        return None if self.labels is None else self.labels.index_select(0, position)

    @property
    def resident(self) -> bool:
        """Whether the pictures lie on the device that trains; else they are streamed, and every batch waits for the host."""
        return self.images.device.type == self.device.type

    def _shuffled(self, index: Tensor) -> Tensor:
        """Each epoch shows every picture once, in an order of its own."""
        return permute(
            index % self.count, self.count, self.seed, Purpose.ORDER, index // self.count
        )

    def _balanced(self, index: Tensor) -> Tensor:
        """Every K pictures show each of K classes once; each class goes through its own pictures in epochs of its own."""
        classes = len(self.present)
        round_ = index // classes
        chosen = self.present[permute(index % classes, classes, self.seed, Purpose.ORDER, round_)]
        size = self.counts[chosen]
        epoch = (
            round_ // size * self.classes + chosen
        )  # a different shuffle for every class and epoch
        within = permute(round_ % size, size, self.seed, Purpose.BALANCED_ORDER, epoch)
        return self.by_class[self.first[chosen] + within]

    def _gather(self, position: Tensor) -> Tensor:
        if self.triples is not None:
            triples = self.triples[position]
            return self._stored(triples.flatten()).view(*triples.shape, *self.images.shape[2:])
        return self._stored(position)

    def _stored(self, position: Tensor) -> Tensor:
        if self.resident:
            return self.images.index_select(
                0, position
            )  # whole pictures at a time: a tenth of what indexing takes on a CPU
        host = position.cpu()
        order = torch.argsort(
            host
        )  # rising addresses: pages of a memory map are read once, in order
        picked = torch.empty(len(host), *self.images.shape[1:], dtype=torch.uint8, pin_memory=True)
        picked[order] = self.images[host[order]]
        return picked.to(self.device, non_blocking=True)


def _on_device(images: np.ndarray, device: torch.device) -> Tensor:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", UserWarning
        )  # the map is read-only, and nothing here writes to it
        host = torch.from_numpy(images)
    if device.type != "cuda":
        return host
    free, _ = torch.cuda.mem_get_info(device)
    if images.nbytes <= _ROOM * free:
        return host.to(device)
    _log.warning(
        "the pictures need %.1f GB of the %.1f GB free on %s: streaming them from host memory instead",
        images.nbytes / 1e9,
        free / 1e9,
        device,
    )
    return host


def long_tail(labels: Tensor, classes: int, ratio: float, seed: int) -> Tensor:
    """Positions of a long-tailed subset: class k keeps n ratio^(-k / (K - 1)) pictures, n that of the smallest class.

    The exponential profile of Cui et al. 2019, arXiv:1901.05555. Which pictures stay depends on the seed alone.

    Returns:
        int64, rising.

    Raises:
        InputError: a class would keep nothing.
    """
    counts = torch.bincount(labels, minlength=classes)
    smallest = int(counts[counts > 0].min())
    kept = []
    for k in range(classes):
        share = round(smallest * ratio ** (-k / max(1, classes - 1)))
        if not counts[k]:
            raise InputError(f"class {k} has no picture: a long tail needs some of every class")
        if share < 1:
            raise InputError(
                f"imbalance {ratio:g} leaves class {k} with no picture of its {int(counts[k])}; use {smallest:g} or less"
            )
        position = torch.arange(int(counts[k]))
        rank = permute(
            position, len(position), seed, Purpose.IMBALANCE, torch.full_like(position, k)
        )
        kept.append(torch.nonzero(labels == k)[:, 0][rank < share])
    return torch.cat(kept).sort().values
