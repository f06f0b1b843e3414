"""DCGAN (Radford 2015, arXiv:1511.06434) for any square size from 16 to 128, 28 included.

Each stage halves (critic) or doubles (generator) the side with a 4 x 4 kernel and stride 2, down to
a side of 3 to 5: 28 -> 14 -> 7 -> 3, 64 -> 32 -> 16 -> 8 -> 4, 17 -> 8 -> 4. Channels double as the
side halves, up to 8 times the width.
"""

from torch import nn

from ganfast.models.dropout import Dropout
from ganfast.models.parts import LEAK, Critic, Generator, norm_layer


def sides(size: int) -> list[int]:
    """Sides of the feature maps from the picture inwards: [28, 14, 7, 3]."""
    chain = [size]
    while chain[-1] >= 6:
        chain.append(chain[-1] // 2)
    return chain


def channels_of(stage: int, width: int) -> int:
    """Channels after ``stage`` halvings: width, 2 width, 4 width, 8 width, 8 width, ..."""
    return width * 2 ** min(stage - 1, 3)


def dcgan_critic(
    size: int,
    channels: int,
    width: int,
    norm: str,
    classes: int,
    conditional: str,
    dropout: float = 0.0,
) -> Critic:
    """Strided convolutions and leaky ReLU; no norm on the first layer (DCGAN section 3)."""
    layers: list[nn.Module] = []
    before = channels
    chain = sides(size)
    for stage in range(1, len(chain)):
        after = channels_of(stage, width)
        normalise = norm_layer(norm, after) if stage > 1 else []
        # A batch norm right behind subtracts any bias again.
        layers += [nn.Conv2d(before, after, 4, 2, 1, bias=not (normalise and norm == "batch"))]
        layers += [*normalise, nn.LeakyReLU(LEAK), *([Dropout(dropout)] if dropout else [])]
        before = after
    features = before * chain[-1] ** 2
    return Critic(nn.Sequential(*layers, nn.Flatten()), features, classes, conditional)


def dcgan_generator(
    size: int, channels: int, width: int, norm: str, latent: int, classes: int
) -> Generator:
    """A linear layer to the smallest map, then transposed convolutions with ReLU."""
    chain = sides(size)
    before = channels_of(len(chain) - 1, width)
    first = (before, chain[-1], chain[-1])
    layers: list[nn.Module] = [*norm_layer(norm, before), nn.ReLU()]
    for stage in range(len(chain) - 2, -1, -1):
        after = channels_of(stage, width) if stage else channels
        normalise = norm_layer(norm, after) if stage else []
        odd = chain[stage] % 2  # 8 -> 17 needs one more row than twice
        bias = not (normalise and norm == "batch")
        layers.append(nn.ConvTranspose2d(before, after, 4, 2, 1, output_padding=odd, bias=bias))
        layers += [*normalise, nn.ReLU()] if stage else []
        before = after
    return Generator(latent, first, nn.Sequential(*layers), classes)
