"""The original GAN's perceptrons (Goodfellow 2014, arXiv:1406.2661); leaky ReLU in the critic."""

from torch import nn

from ganfast.models.dropout import Dropout
from ganfast.models.parts import LEAK, Critic, Generator, norm_layer_1d


def mlp_critic(
    size: int,
    channels: int,
    width: int,
    norm: str,
    classes: int,
    conditional: str,
    dropout: float = 0.0,
) -> Critic:
    """Pixels, 16 width units, 8 width units, score; dropout as in the original's discriminator."""
    layers: list[nn.Module] = [nn.Flatten()]
    before = channels * size * size
    for stage, after in enumerate((16 * width, 8 * width)):
        normalise = norm_layer_1d(norm, after) if stage else []
        layers += [nn.Linear(before, after), *normalise, nn.LeakyReLU(LEAK)]
        layers += [Dropout(dropout)] if dropout else []
        before = after
    return Critic(nn.Sequential(*layers), before, classes, conditional)


def mlp_generator(
    size: int, channels: int, width: int, norm: str, latent: int, classes: int
) -> Generator:
    """z, 8 width units, 16 width units, pixels."""
    units = (8 * width, 16 * width)
    layers = nn.Sequential(
        *norm_layer_1d(norm, units[0]),
        nn.ReLU(),
        nn.Linear(units[0], units[1]),
        *norm_layer_1d(norm, units[1]),
        nn.ReLU(),
        nn.Linear(units[1], channels * size * size),
        nn.Unflatten(1, (channels, size, size)),
    )
    return Generator(latent, units[:1], layers, classes)
