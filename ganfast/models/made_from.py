"""Generators of conditional runs: a picture from z and a condition. They have no batch norm, so
that a picture depends on no other one.

Both end in a layer whose weights begin at 0: the first pictures are what the skip gives.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ganfast.models.parts import LEAK, Residual

_DEPTH = 4  # residual blocks at the condition's size
_BOTTOM = 8  # side down to which the U-Net halves


class MadeFrom(nn.Module):
    """Called as ``generator(z[, labels], condition)`` with z (N, latent), labels int64 (N,) where
    there are classes, and the condition float (N, k, h, w) as `ganfast.tasks.scaled` makes it.

    z, and the class, enter as a linear map to ``units`` numbers.
    """

    def __init__(self, latent: int, units: int, classes: int) -> None:
        super().__init__()
        self.project = nn.Linear(latent, units)
        self.classes = nn.Embedding(classes, units) if classes else None

    def code(self, z: Tensor, *more: Tensor) -> tuple[Tensor, Tensor]:
        """The linear map, (N, units), and the condition."""
        code, condition = self.project(z), more[-1]
        if self.classes is not None:
            code = code + self.classes(more[0])
        return code, condition


class ResidualGenerator(MadeFrom):
    """Residual blocks at the condition's size, then nearest-neighbour doublings with convolutions,
    on top of bilinear interpolation (EDSR, arXiv:1707.02921, without its sub-pixel layers)."""

    def __init__(
        self,
        size: int,
        channels: int,
        width: int,
        latent: int,
        classes: int,
        given: tuple[int, ...],
    ) -> None:
        super().__init__(latent, 2 * width, classes)
        self.scale = size // given[0]
        self.head = _conv(given[2], width)
        self.layers = nn.ModuleList(
            Residual(nn.Sequential(_conv(width, width), nn.ReLU(), _conv(width, width)))
            for _ in range(_DEPTH)
        )
        ups, before = [], width
        for _ in range(self.scale.bit_length() - 1):
            after = max(8, before // 2)
            ups += [nn.Upsample(scale_factor=2), _conv(before, after), nn.LeakyReLU(LEAK)]
            before = after
        self.ups = nn.Sequential(*ups)
        self.tail = _conv(before, channels)

    def forward(self, z: Tensor, *more: Tensor) -> Tensor:
        code, condition = self.code(z, *more)
        gain, shift = code[:, :, None, None].chunk(2, 1)
        hidden = self.head(condition)
        for block in self.layers:  # z at every depth
            hidden = block(hidden * (1 + 0.1 * gain) + 0.1 * shift)
        skip = condition
        if self.scale > 1:
            skip = F.interpolate(condition, scale_factor=float(self.scale), mode="bilinear")
        return skip + self.tail(self.ups(hidden))


class UNet(MadeFrom):
    """Strided convolutions down, nearest-neighbour doublings with convolutions up, and each map
    beside its like (arXiv:1505.04597). z is a map of its own at the bottom.

    A mask behind the picture's channels is 1 where a pixel is known: there the given pixel is
    returned, so that it is the same on uint8's levels. Else the last layer is added to the picture.
    """

    def __init__(
        self,
        size: int,
        channels: int,
        width: int,
        latent: int,
        classes: int,
        given: tuple[int, ...],
    ) -> None:
        sides = [size]
        while sides[-1] >= 2 * _BOTTOM and sides[-1] % 2 == 0:
            sides.append(sides[-1] // 2)
        most = 4 * width
        widths = [min(width * 2**k, most) for k in range(len(sides))]
        super().__init__(latent, width * sides[-1] ** 2, classes)
        self.channels, self.masked = channels, given[2] > channels
        self.bottom = (width, sides[-1], sides[-1])
        self.head = _conv(given[2], width)
        pairs = list(pairwise(widths))
        self.downs = nn.ModuleList(nn.Conv2d(a, b, 4, 2, 1) for a, b in pairs)
        self.layers = nn.Sequential(_conv(widths[-1] + width, widths[-1]), nn.LeakyReLU(LEAK))
        self.ups = nn.ModuleList(_conv(b + a, a) for a, b in reversed(pairs))
        self.tail = _conv(width, channels)

    def forward(self, z: Tensor, *more: Tensor) -> Tensor:
        code, condition = self.code(z, *more)
        picture, known = condition[:, : self.channels], condition[:, self.channels :]
        if self.masked:
            condition = torch.cat([picture * known, known], 1)  # whatever the hole holds
        hidden = F.leaky_relu(self.head(condition), LEAK)
        maps = []
        for down in self.downs:
            maps.append(hidden)
            hidden = F.leaky_relu(down(hidden), LEAK)
        hidden = self.layers(torch.cat([hidden, code.unflatten(1, self.bottom)], 1))
        for up in self.ups:
            hidden = F.interpolate(hidden, scale_factor=2.0, mode="nearest")
            hidden = F.leaky_relu(up(torch.cat([hidden, maps.pop()], 1)), LEAK)
        drawn = self.tail(hidden)
        if self.masked:
            return picture * known + torch.tanh(drawn) * (1 - known)
        return picture + drawn


def made_from(
    size: int, channels: int, width: int, latent: int, classes: int, given: tuple[int, ...]
) -> MadeFrom:
    """The generator for conditions (h, w, k): residual for smaller ones, else a U-Net."""
    kind = ResidualGenerator if given[0] < size else UNet
    return kind(size, channels, width, latent, classes, given)


def begin_at_skip(net: MadeFrom) -> None:
    """Let the last layer, and the second of each residual block, begin at 0 or near it."""
    for block in net.modules():
        if isinstance(block, Residual):
            last = block.body[-1]
            assert isinstance(last, nn.Conv2d)
            last.weight.data.mul_(0.1)
    tail = net.tail
    assert isinstance(tail, nn.Conv2d)
    nn.init.zeros_(tail.weight)
    if tail.bias is not None:
        nn.init.zeros_(tail.bias)


def _conv(before: int, after: int) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, 1, 1)
