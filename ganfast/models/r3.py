"""R3GAN's networks (Huang 2025, arXiv:2501.05441): residual, without normalisation.

The picture's side halves exactly from stage to stage, down to a side of 4 to 7: 64 -> 32 -> 16 -> 8
-> 4, 28 -> 14 -> 7. Channels double as the side halves, as `widths` says. With the papers' widths
at full resolution these are its networks: 768 at 32x32, 384 at 64x64, 96 at 256x256, all with 2
blocks a stage. Pictures end in tanh, as those of all generators of ganfast do.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ganfast.models.dropout import Dropout
from ganfast.models.parts import (
    LEAK,
    Generator,
    Judgement,
    Residual,
    halved_sides,
    norm_layer,
    widths,
)

_MOST = 768  # channels that a stage has at most, unless the width is larger
_GROUP = 16  # channels of a group in the middle of a block, or a few more
BLOCKS = 2  # residual blocks a stage


class Resample(nn.Module):
    """Halves or doubles the side of a map: every channel by the filter [1, 3, 3, 1] / 8 a side."""

    weight: Tensor

    def __init__(self, channels: int, up: bool) -> None:
        super().__init__()
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / (4 if up else 8)
        self.register_buffer("weight", torch.outer(taps, taps).repeat(channels, 1, 1, 1))
        self.channels, self.up = channels, up

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, 2 H, 2 W), or half of both where ``up`` is false."""
        if self.up:
            return F.conv_transpose2d(x, self.weight, None, 2, 1, 0, self.channels)
        return F.conv2d(x, self.weight, None, 2, 1, 1, self.channels)


class Block(Residual):
    """1x1 to twice the channels, grouped 3x3, 1x1 back; biases only in front of activations."""

    def __init__(self, channels: int, norm: str = "none", dropout: float = 0.0) -> None:
        hidden = 2 * channels
        bias = norm != "batch"  # which subtracts any bias again
        layers: list[nn.Module] = []
        for convolution in (
            nn.Conv2d(channels, hidden, 1, bias=bias),
            nn.Conv2d(hidden, hidden, 3, 1, 1, groups=groups_of(hidden), bias=bias),
        ):
            layers += [convolution, *norm_layer(norm, hidden), nn.LeakyReLU(LEAK)]
            layers += [Dropout(dropout)] if dropout else []
        super().__init__(nn.Sequential(*layers, nn.Conv2d(hidden, channels, 1, bias=False)))


def groups_of(channels: int) -> int:
    """How many groups of 16 channels or more there are, all equal: 96 of 1536, 2 of 40, 1 of 24."""
    most = max(1, channels // _GROUP)
    return max(groups for groups in range(1, most + 1) if channels % groups == 0)


class R3Critic(nn.Module):
    """A trunk of features (N, C), and a linear map of them without bias.

    With "projection" the map has C outputs, and the score is their product with an embedding of
    the class over the square root of C. "auxiliary" adds a class head.
    """

    def __init__(self, trunk: nn.Sequential, features: int, classes: int, conditional: str) -> None:
        super().__init__()
        projected, auxiliary = conditional == "projection", conditional == "auxiliary"
        self.trunk = trunk
        self.head = nn.Linear(features, features if projected else 1, bias=False)
        # Its rows are the embeddings. All classes are multiplied, because that is a linear layer.
        self.classes = nn.Linear(features, classes, bias=False) if projected else None
        self.class_head = nn.Linear(features, classes) if auxiliary else None
        self.takes_labels = projected  # what `judge` goes by
        self.scale = features**-0.5

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Judgement:
        """Scores of pictures x (N, C, H, W) in [-1, 1]; ``labels`` int64 (N,) with a projection."""
        features = self.trunk(x)
        score = self.head(features)
        if self.classes is not None:
            if labels is None:
                raise ValueError(
                    "this critic judges a picture as one of its class: give labels (N,)"
                )
            score = self.classes(score).gather(1, labels[:, None]) * self.scale
        classes = self.class_head(features) if self.class_head is not None else None
        return Judgement(score[:, 0], classes)


def r3_critic(
    size: int,
    channels: int,
    width: int,
    norm: str,
    classes: int,
    conditional: str,
    dropout: float = 0.0,
    blocks: int = BLOCKS,
) -> R3Critic:
    """From the picture inwards: blocks, then half the side, then 1x1 where the width changes."""
    sides = halved_sides(size)
    each = widths(len(sides), width, _MOST)
    layers: list[nn.Module] = [nn.Conv2d(channels, width, 1, bias=False)]
    for before, after in zip(each, [*each[1:], 0], strict=True):
        layers += _blocks(blocks, before, norm, dropout)
        if after:
            layers += [Resample(before, up=False), *_changed(before, after)]
    last = each[-1]
    end = nn.Conv2d(last, last, sides[-1], groups=last, bias=False)
    return R3Critic(nn.Sequential(*layers, end, nn.Flatten()), last, classes, conditional)


def r3_generator(
    size: int, channels: int, width: int, norm: str, latent: int, classes: int, blocks: int = BLOCKS
) -> Generator:
    """The critic's mirror image. It begins with a learnt map a channel times a number of z's."""
    sides = halved_sides(size)[::-1]
    each = widths(len(sides), width, _MOST)[::-1]
    # Of a map of one position this is the product of each channel with its own basis.
    layers: list[nn.Module] = [
        nn.ConvTranspose2d(each[0], each[0], sides[0], groups=each[0], bias=False)
    ]
    for before, after in zip([0, *each], each, strict=False):
        if before:
            layers += [*_changed(before, after), Resample(after, up=True)]
        layers += _blocks(blocks, after, norm)
    layers += [nn.Conv2d(width, channels, 1, bias=False)]
    return Generator(latent, (each[0], 1, 1), nn.Sequential(*layers), classes, bias=False)


def _blocks(count: int, channels: int, norm: str, dropout: float = 0.0) -> Iterable[nn.Module]:
    return [Block(channels, norm, dropout) for _ in range(count)]


def _changed(before: int, after: int) -> list[nn.Module]:
    return [] if before == after else [nn.Conv2d(before, after, 1, bias=False)]


def r3_init(net: nn.Module) -> None:
    """Weights N(0, gain^2 / fan-in), biases 0.

    The gain is 1, and sqrt(2 / (1 + 0.2^2)) / L^(1/4) in front of activations, for L blocks in all.
    A block's last weights are 0: it begins as the identity.
    """
    for child in net.modules():
        if isinstance(child, nn.Conv2d | nn.Linear):
            nn.init.normal_(child.weight, 0.0, child.weight[0].numel() ** -0.5)
            if child.bias is not None:
                nn.init.zeros_(child.bias)
        elif isinstance(child, nn.ConvTranspose2d | nn.Embedding):  # the basis; classes
            nn.init.normal_(child.weight, 0.0, 1.0)
    if isinstance(net, R3Critic) and net.classes is not None:
        nn.init.normal_(net.classes.weight, 0.0, 1.0)
    blocks = [child for child in net.modules() if isinstance(child, Block)]
    gain = (2 / (1 + LEAK**2)) ** 0.5 * len(blocks) ** -0.25
    for block in blocks:
        *activated, last = [m for m in block.body if isinstance(m, nn.Conv2d)]
        nn.init.zeros_(last.weight)
        for convolution in activated:
            with torch.no_grad():
                convolution.weight.mul_(gain)
