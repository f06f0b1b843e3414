"""Dropout (Srivastava 2014) whose random numbers are cheap on a CPU too.

There torch's own draws one number an element, in sequence: a fifth of the original GAN's critic
phase on two cores. Sixteen bits an element are enough, and torch's generator gives sixty-four at a
time.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ganfast.models.members import is_known, modules

_LEVELS = 1 << 16
# Torch's layers that draw while they train.
DRAWING = nn.modules.dropout._DropoutNd | nn.RReLU | nn.FractionalMaxPool2d | nn.FractionalMaxPool3d
# Their weights have copies elsewhere, or their dropouts are no layers.
UNTRACED = nn.RNNBase | nn.MultiheadAttention
_part, _parts = 0, 1  # of a batch: which one the process computes, and of how many


@contextmanager
def part_of_batch(part: int, parts: int) -> Iterator[None]:
    """Inside, every batch is part number ``part`` of a whole one of ``parts`` equal parts.

    `Dropout` draws the numbers of the whole batch and takes those of the part. So the parts have
    the numbers that the whole would have, wherever each begins with the same state of the
    generator.
    """
    global _part, _parts
    before, (_part, _parts) = (_part, _parts), (part, parts)
    try:
        yield
    finally:
        _part, _parts = before


def draws_by_part(*nets: nn.Module) -> bool:
    """Whether all that networks draw while they train is by `Dropout`, as far as is known."""
    drawing = DRAWING | UNTRACED
    layers = [m for net in nets for m in modules(net)]
    own = [m for m in layers if isinstance(m, drawing) and not isinstance(m, Dropout)]
    return not own and all(map(is_known, nets))


class Dropout(nn.Dropout):
    """`torch.nn.Dropout`, on a CPU with ``p`` rounded to a multiple of 2**-16 below 1."""

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask(self.numbers(x), x) if self.training and self.p > 0 else x

    def numbers(self, like: Tensor) -> Tensor:
        """What `mask` takes, laid out as ``like``: float32 whole numbers on a CPU, else the
        mask."""
        count, start = _parts * like.numel(), _part * like.numel()
        if like.device.type != "cpu":
            drawn = F.dropout(like.new_ones(count), self.p)
            return drawn.as_strided(like.shape, torch.empty_like(like).stride(), start)
        words = torch.randint(-(2**63), 2**63 - 1, (-(-count // 4),)).view(torch.int16)
        strides = torch.empty_like(like, dtype=torch.int16).stride()
        return words.as_strided(like.shape, strides, start).float()

    def mask(self, numbers: Tensor, like: Tensor) -> Tensor:
        """0 with probability p, else 1 / (1 - p): laid out as ``numbers``, typed as ``like``."""
        if like.device.type != "cpu":
            return numbers
        dropped = min(round(self.p * _LEVELS), _LEVELS - 1)
        numbers = numbers.double() if like.dtype == torch.float64 else numbers
        scale = torch.full_like(numbers, _LEVELS / (_LEVELS - dropped))
        # A tenth of the time of a comparison whose truth values become numbers.
        mask = torch.ops.aten.threshold_backward(scale, numbers, dropped - _LEVELS // 2 - 1)
        return mask.to(like.dtype)
