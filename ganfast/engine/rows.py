"""All pictures of a critic step as one batch."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ganfast.augment import augmented, linear, transposed
from ganfast.config import PenaltyConfig
from ganfast.engine.objective import Inputs
from ganfast.penalties import holds
from ganfast.tensors import behind, full_precision


@dataclass
class Rows:
    """The loss's 2N pictures come first, the penalised last, so that every pass takes one slice."""

    pictures: Tensor
    labels: Tensor | None
    count: int  # N
    # what the penalised rows are, N each: "fake", "real", or the number of a batch of points
    segments: tuple[str | int, ...]
    penalties: Sequence[PenaltyConfig]
    scale: Tensor | None  # of `Inputs`
    penalty_share: Tensor | None  # of `Inputs`
    transforms: Tensor | None  # (rows, 7); the pictures are transformed already
    channels: int  # of a picture; behind them are those of its condition, if it has one

    @staticmethod
    def of(inputs: Inputs, penalties: Sequence[PenaltyConfig]) -> "Rows":
        real_first = Rows._real_first(penalties)
        pair = [(inputs.real, inputs.real_labels), (inputs.fake, inputs.fake_labels)]
        points = [(x, inputs.real_labels) for x in inputs.points]
        batches = [*(pair if real_first else pair[::-1]), *points]
        pictures, labels, transforms = torch.cat([x for x, _ in batches]), None, None
        if inputs.real_labels is not None:
            labels = torch.cat([y for _, y in batches if y is not None])
        if inputs.transforms is not None:
            first, second, *others = inputs.transforms.unbind()
            pair_seen = [first, second] if real_first else [second, first]
            transforms = torch.cat([*pair_seen, *others[: len(points)]])
            pictures = augmented(pictures, transforms)
        held = tuple(name for name in ("real", "fake") if holds(penalties, name))
        segments = (*held, *range(len(inputs.points)))
        more = segments, penalties, inputs.scale, inputs.penalty_share, transforms
        channels, condition = pictures.shape[1], inputs.condition
        if condition is not None:
            condition = condition.repeat(len(batches), *[1] * (condition.dim() - 1))
        shown = behind(pictures, condition)
        return Rows(shown, labels, len(inputs.real), *more, channels)

    def scaled(self, x: Tensor) -> Tensor:
        """x times the scale. Of the loss and of the directions of the penalised rows, it is in
        every adjoint and tangent, and so once in every gradient of a weight."""
        return x if self.scale is None else x * self.scale

    def back(self, g: Tensor) -> Tensor:
        """The gradients of the penalised rows by their pictures before the transforms."""
        if self.transforms is None:
            return g
        return transposed(full_precision(g), self.transforms[self.penalised])

    def through(self, direction: Tensor) -> Tensor:
        """What the transforms make of a direction at the pictures of the penalised rows."""
        if self.transforms is None:
            return direction
        return linear(direction, self.transforms[self.penalised])

    @property
    def conditioned(self) -> bool:
        """Whether a condition is behind the pictures, which penalties do not differentiate by."""
        return self.pictures.shape[1] > self.channels

    def of_picture(self, x: Tensor) -> Tensor:
        """The channels (rows, C, ...) of x that are a picture's."""
        return x[:, : self.channels]

    def unmoved(self, direction: Tensor) -> Tensor:
        """A direction at pictures as one at what the critic is shown: a condition stays."""
        if not self.conditioned:
            return direction
        more = self.pictures.shape[1] - self.channels
        zeros = direction.new_zeros(len(direction), more, *direction.shape[2:])
        return behind(direction, zeros)

    @staticmethod
    def _real_first(penalties: Sequence[PenaltyConfig]) -> bool:
        return not (holds(penalties, "real") and not holds(penalties, "fake"))

    @staticmethod
    def starts(count: int, groups: int, penalties: Sequence[PenaltyConfig]) -> list[int]:
        """First rows of the reals, the fakes, and each batch of points; ``count`` rows in each."""
        first, second, *points = (k * count for k in range(groups))
        return [first, second, *points] if Rows._real_first(penalties) else [second, first, *points]

    @property
    def loss(self) -> int:
        """Where the loss's rows end."""
        return 2 * self.count

    @property
    def shared(self) -> int:
        """How many rows the loss and a penalty both hold; negative = rows between them."""
        return self.loss - self.start

    @property
    def start(self) -> int:
        """Where the penalised rows begin."""
        return len(self.pictures) - self.count * len(self.segments)

    @property
    def penalised(self) -> slice:
        return slice(self.start, None)

    @property
    def groups(self) -> list[slice]:
        """Reals, fakes, then each batch of points."""
        return [
            slice(at, at + self.count)
            for at in Rows.starts(self.count, len(self.pictures) // self.count, self.penalties)
        ]
