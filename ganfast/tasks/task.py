"""What every task says of its conditions."""

import torch
from torch import Tensor

from ganfast.config import TaskConfig


class Task:
    """A task for pictures (size, size, channels).

    ``given`` is (h, w, k) of the condition as users hand it in: ``channels`` of a picture first,
    then those of a mask if it has one. ``shown`` is how many channels the critic is shown.
    """

    def __init__(self, config: TaskConfig, size: int, channels: int) -> None:
        self.config, self.size, self.channels = config, size, channels
        self.given, self.shown = (size, size, channels), channels
        self.check()

    def check(self) -> None:
        """Set what differs. Raises InputError where such pictures cannot have the task."""

    def derive(self, pictures: Tensor, index: Tensor, seed: int) -> Tensor:
        """Conditions for pictures (N, C, H, W) in [-1, 1]: float32 (N, k, h, w), `scaled`.

        A pure function on their device of (seed, index), where ``index`` int64 (N,) is the counter
        of each picture; a held-out picture's is its position, so that its condition never changes.
        """
        raise NotImplementedError

    def show(self, given: Tensor) -> Tensor:
        """What the critic is shown of conditions: (N, shown, H, W)."""
        return given

    def view(self, given: Tensor) -> Tensor:
        """Conditions as pictures (N, C, H, W), for a person."""
        return given

    def baseline(self, given: Tensor, mean: Tensor) -> Tensor:
        """Pictures that a rule of thumb makes of conditions. ``mean`` (C, H, W) is that of the
        training pictures."""
        raise NotImplementedError

    def free(self, given: Tensor) -> Tensor:
        """Which pixels a generator chooses, float (N, 1, H, W): 1 = chosen, 0 = given."""
        return given.new_ones(len(given), 1, self.size, self.size)

    def scores(self, drawn: Tensor, real: Tensor, given: Tensor) -> dict[str, Tensor]:
        """What the task asks beside likeness: by name, (N,) of pictures on uint8's levels."""
        return {}

    def __str__(self) -> str:
        """The degradation, as a protocol names it."""
        raise NotImplementedError


def scaled(given: Tensor, channels: int) -> Tensor:
    """Conditions as networks are given them: float (N, k, h, w) of the levels 0 to 255.

    The ``channels`` of a picture become x / 127.5 - 1, in [-1, 1]; those behind them, which are of
    a mask, x / 255: 1 where a pixel is known, 0 in a hole.
    """
    if given.shape[1] == channels:
        return given / 127.5 - 1
    return torch.cat([given[:, :channels] / 127.5 - 1, given[:, channels:] / 255], 1)


def levels(pictures: Tensor) -> Tensor:
    """Pictures in [-1, 1] as uint8 holds them, still in [-1, 1]."""
    return ((pictures.float() + 1) * 127.5).round().clamp(0, 255) / 127.5 - 1


def psnr(one: Tensor, other: Tensor, weight: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio of each pair in [-1, 1], dB, (N,); 60 where they are equal.

    ``weight`` (N, 1, H, W): of pixels; a picture without any has NaN.
    """
    error = (one - other).square()
    weight = torch.ones_like(error) if weight is None else weight.expand_as(error)
    mean = (error * weight).flatten(1).sum(1) / weight.flatten(1).sum(1)
    return 10 * torch.log10(4 / mean.clamp_min(4e-6))
