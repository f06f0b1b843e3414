"""The residual networks of WGAN-GP (Gulrajani 2017, arXiv:1704.00028, appendix).

Blocks have their activations in front of 3x3 convolutions. The critic halves the side by means of
2x2 pixels, down to 5 to 8; the generator doubles it by repetition, from 4 to 7. Channels double as
the side halves, as `widths` says: with 128 at 32x32, the networks of the paper.
"""

from torch import nn

from ganfast.models.dropout import Dropout
from ganfast.models.parts import Critic, Generator, Residual, halved_sides, norm_layer, widths

_LAST = 2  # blocks at the critic's smallest side, after those that halve
BLOCKS = 1  # a stage, the first of which changes the side


def _most(size: int) -> int:
    """Most channels of a stage, unless the width is larger. At 32x32 the paper has 128."""
    return 128 if size <= 32 else 512


def resnet_critic(
    size: int,
    channels: int,
    width: int,
    norm: str,
    classes: int,
    conditional: str,
    dropout: float = 0.0,
    blocks: int = BLOCKS,
) -> Critic:
    """Blocks that halve the side, two that do not, then the mean over positions."""
    sides = [side for side in halved_sides(size) if side > 4]
    each = widths(len(sides) - 1, width, _most(size))
    layers: list[nn.Module] = []
    before = channels
    for after in each:
        layers += [_block(before, after, norm, dropout, "down", bare=before == channels)]
        layers += [_block(after, after, norm, dropout) for _ in range(blocks - 1)]
        before = after
    layers += [_block(before, before, norm, dropout) for _ in range(_LAST)]
    layers += [*_activated(norm, before, dropout), nn.AvgPool2d(sides[-1]), nn.Flatten()]
    return Critic(nn.Sequential(*layers), before, classes, conditional)


def resnet_generator(
    size: int, channels: int, width: int, norm: str, latent: int, classes: int, blocks: int = BLOCKS
) -> Generator:
    """Blocks that double the side, then a 3x3 convolution to the picture."""
    sides = halved_sides(size)
    each = widths(len(sides) - 1, width, _most(size))[::-1]
    layers: list[nn.Module] = []
    before = each[0]
    for after in each:
        layers += [_block(before, after, norm, change="up")]
        layers += [_block(after, after, norm) for _ in range(blocks - 1)]
        before = after
    layers += [*_activated(norm, before), nn.Conv2d(before, channels, 3, 1, 1)]
    return Generator(latent, (each[0], sides[-1], sides[-1]), nn.Sequential(*layers), classes)


def _block(
    before: int, after: int, norm: str, dropout: float = 0.0, change: str = "", bare: bool = False
) -> Residual:
    """Two 3x3 convolutions. ``change``: "up" or "down"; ``bare``: the input is the picture, which
    no activation precedes."""
    inside = after if change == "up" or bare else before
    body: list[nn.Module] = [
        *([] if bare else _activated(norm, before, dropout)),
        *([nn.Upsample(scale_factor=2)] if change == "up" else []),
        # A batch norm right behind subtracts any bias again.
        nn.Conv2d(before, inside, 3, 1, 1, bias=norm != "batch"),
        *_activated(norm, inside, dropout),
        nn.Conv2d(inside, after, 3, 1, 1),
    ]
    # Of a mean, or of repetition, and a 1x1 convolution: the one first that leaves fewer positions.
    shortcut: list[nn.Module] = [] if before == after else [nn.Conv2d(before, after, 1)]
    if change == "down":
        body, shortcut = [*body, nn.AvgPool2d(2)], [nn.AvgPool2d(2), *shortcut]
    elif change == "up":
        shortcut = [*shortcut, nn.Upsample(scale_factor=2)]
    return Residual(nn.Sequential(*body), nn.Sequential(*shortcut) if shortcut else None)


def _activated(norm: str, channels: int, dropout: float = 0.0) -> list[nn.Module]:
    return [*norm_layer(norm, channels), nn.ReLU(), *([Dropout(dropout)] if dropout else [])]
