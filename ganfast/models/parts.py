"""The parts of the networks, all of which the explicit engine can walk."""

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _SpectralNorm

from ganfast.models.members import modules

LEAK = 0.2  # slope of the critic's leaky ReLU, DCGAN section 3


class Judgement(NamedTuple):
    """What a critic says of N pictures."""

    score: Tensor  # (N,), unbounded: a logit or a Wasserstein potential
    classes: Tensor | None = None  # (N, K) logits of an auxiliary class head


class Critic(nn.Module):
    """A trunk of features and linear heads on them.

    score = head(f), plus the label's row of a projection (Miyato & Koyama 2018, arXiv:1802.05637)
    where ``classes`` is learnt by "projection"; "auxiliary" adds a class head instead (ACGAN).
    """

    def __init__(
        self, trunk: nn.Sequential, features: int, classes: int = 0, conditional: str = "no"
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = nn.Linear(features, 1)
        projected, auxiliary = conditional == "projection", conditional == "auxiliary"
        self.projection = nn.Linear(features, classes, bias=False) if projected else None
        self.takes_labels = projected  # what `judge` goes by
        self.class_head = nn.Linear(features, classes) if auxiliary else None

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Judgement:
        """Scores of pictures x (N, C, H, W) in [-1, 1]; ``labels`` int64 (N,) with a projection."""
        features = self.trunk(x)
        score = self.head(features)
        if self.projection is not None:
            if labels is None:
                raise ValueError(
                    "this critic judges a picture as one of its class: give labels (N,)"
                )
            score = score + self.projection(features).gather(1, labels[:, None])
        classes = self.class_head(features) if self.class_head is not None else None
        return Judgement(score[:, 0], classes)


class Generator(nn.Module):
    """From z, and a class if there are classes, to a feature map, through ``layers``, to tanh."""

    def __init__(
        self,
        latent: int,
        first: tuple[int, ...],
        layers: nn.Sequential,
        classes: int = 0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.first = first
        units = prod(first)
        self.project = nn.Linear(latent, units, bias=bias)
        # The same map as a one-hot label beside z, but its rows start as large as the whole
        # contribution of z.
        self.classes = nn.Embedding(classes, units) if classes else None
        self.layers = layers

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Pictures (N, C, H, W) in [-1, 1] for z (N, latent); ``labels`` int64 (N,) with
        classes."""
        hidden = self.project(z)
        if self.classes is not None:
            if labels is None:
                raise ValueError("this generator draws a class on request: give labels (N,)")
            hidden = hidden + self.classes(labels)
        return torch.tanh(self.layers(hidden.unflatten(1, self.first)))


class Residual(nn.Module):
    """body(x) added to x, or to shortcut(x) where the shapes differ."""

    def __init__(self, body: nn.Sequential, shortcut: nn.Sequential | None = None) -> None:
        super().__init__()
        self.body, self.shortcut = body, shortcut

    def forward(self, x: Tensor) -> Tensor:
        return (x if self.shortcut is None else self.shortcut(x)) + self.body(x)


def halved_sides(size: int) -> list[int]:
    """Sides of the feature maps from the picture inwards, each half of the one before: [28, 14, 7].

    The last is 4 to 7 where ``size`` is such a number times a power of two; `fits` tells.
    """
    chain = [size]
    while chain[-1] >= 8 and chain[-1] % 2 == 0:
        chain.append(chain[-1] // 2)
    return chain


def fits(size: int) -> bool:
    """Whether a side can be halved exactly until it is 4 to 7."""
    return 4 <= halved_sides(size)[-1] <= 7


def widths(stages: int, width: int, most: int) -> list[int]:
    """Channels from the picture inwards: they double, up to ``most`` or a width that is larger."""
    return [min(width * 2**stage, max(width, most)) for stage in range(stages)]


def norm_layer(kind: str, channels: int) -> list[nn.Module]:
    """Zero or one layer for (N, channels, H, W). "spectral" normalises weights: no layer."""
    match kind:
        case "batch":
            return [nn.BatchNorm2d(channels)]
        case "layer":
            # over C, H and W of one sample, as WGAN-GP section 4 recommends
            return [nn.GroupNorm(1, channels)]
        case "instance":
            return [nn.InstanceNorm2d(channels, affine=True)]
    return []


def norm_layer_1d(kind: str, units: int) -> list[nn.Module]:
    """The same for (N, units); instance normalisation of single numbers is none."""
    match kind:
        case "batch":
            return [nn.BatchNorm1d(units)]
        case "layer":
            return [nn.LayerNorm(units)]
    return []


def spectral(module: nn.Module) -> nn.Module:
    """Spectral normalisation (arXiv:1802.05957) on every convolution and linear layer below."""
    for child in list(module.modules()):
        if isinstance(child, nn.Conv2d | nn.Linear):
            nn.utils.parametrizations.spectral_norm(child)
    return module


@contextmanager
def held_power_iteration(net: nn.Module) -> Iterator[None]:
    """Spectral normalisation keeps its estimates inside: a critic step makes one iteration only."""
    estimates = [m for m in modules(net) if isinstance(m, _SpectralNorm) and m.training]
    for estimate in estimates:
        estimate.eval()
    try:
        yield
    finally:
        for estimate in estimates:
            estimate.train()


def he_init(module: nn.Module) -> None:
    """Weights N(0, 2 / fan-in), biases 0 (He 2015, arXiv:1502.01852, eq. 14, for the critic's
    slope); heads and shortcuts keep unit gain.

    Signals and gradients keep their scale through the critic, so that its gradient norm starts near
    1 where torch's default initial weights start it far below.
    """
    for name, child in module.named_modules():
        if isinstance(child, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            fan_in = child.weight[0].numel()
            if isinstance(child, nn.ConvTranspose2d):
                # Each output pixel sums kernel / stride^2 taps of every input channel.
                taps, (sy, sx) = child.weight[0, 0].numel(), child.stride
                fan_in = child.in_channels * taps // (sy * sx)
            inside = name.startswith(("trunk", "layers")) and ".shortcut." not in name
            gain = 2 / (1 + LEAK**2) if inside else 1
            nn.init.normal_(child.weight, 0.0, (gain / fan_in) ** 0.5)
            if child.bias is not None:
                nn.init.zeros_(child.bias)
        elif isinstance(child, Generator) and child.classes is not None:
            nn.init.normal_(child.classes.weight, 0.0, 1.0)


def dcgan_init(module: nn.Module) -> None:
    """Weights N(0, 0.02), batch-norm scales N(1, 0.02), biases 0: DCGAN section 4."""
    for child in module.modules():
        if isinstance(child, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.normal_(child.weight, 0.0, 0.02)
        elif isinstance(child, nn.BatchNorm2d | nn.BatchNorm1d):
            nn.init.normal_(child.weight, 1.0, 0.02)
        elif isinstance(child, Generator) and child.classes is not None:
            nn.init.normal_(child.classes.weight, 0.0, 0.02 * child.project.in_features**0.5)
        bias = getattr(child, "bias", None)
        if isinstance(bias, Tensor):
            nn.init.zeros_(bias)
