"""Critics as papers describe them, with classes of their own, at 32x32.

Their forwards do what published code does: they cast, scale and expand weights, fold channels into
the batch, and call functions in place of modules.
"""

from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Activation before each convolution; the shortcut is a convolution of size 1."""

    def __init__(self, inputs: int, outputs: int, down: bool) -> None:
        super().__init__()
        self.down = down
        self.first = nn.Conv2d(inputs, inputs, 3, padding=1)
        self.second = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.second(F.relu(self.first(F.relu(x))))
        if self.down:
            return F.avg_pool2d(h, 2) + self.shortcut(F.avg_pool2d(x, 2))
        return h + self.shortcut(x)


class Residual(nn.Module):
    """The residual critic of WGAN-GP (Gulrajani 2017, arXiv:1704.00028, appendix), with no norm."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.shortcut = nn.Conv2d(3, width, 1)
        self.blocks = nn.Sequential(
            *(ResidualBlock(width, width, down) for down in (True, False, False))
        )
        self.head = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.second(F.relu(self.first(x)))
        h = F.avg_pool2d(h, 2) + self.shortcut(F.avg_pool2d(x, 2))
        return self.head(F.relu(self.blocks(h)).sum((2, 3)))


def scaled(layer: nn.Module, gain: float) -> nn.Module:
    """With normal weights that keep the variance of a leaky ReLU's result, times ``gain``^2."""
    weight = layer.weight
    nn.init.normal_(weight, 0, gain / sqrt(weight[0].numel()))
    return layer


class CastConv(nn.Module):
    """A convolution that casts its weight to the type of its input."""

    def __init__(self, inputs: int, outputs: int, size: int, groups: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs // groups, size, size))
        self.groups, self.padding = groups, size // 2
        scaled(self, sqrt(2 / (1 + 0.2**2)))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.to(x.dtype)
        return F.conv2d(x, weight, padding=self.padding, groups=self.groups)


class BiasAct(nn.Module):
    """Bias, leaky ReLU and gain as a function of its own, in place of a bias of the convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias, self.gain = nn.Parameter(torch.zeros(channels)), sqrt(2 / (1 + 0.2**2))

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(x + self.bias.to(x.dtype).view(1, -1, 1, 1), 0.2) * self.gain


class R3Block(nn.Module):
    """Size 1, then grouped size 3, then size 1: an inverted bottleneck."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.expand = CastConv(width, 2 * width, 1)
        self.group = CastConv(2 * width, 2 * width, 3, groups)
        self.shrink = CastConv(2 * width, width, 1)
        self.acts = nn.ModuleList([BiasAct(2 * width), BiasAct(2 * width)])
        with torch.no_grad():
            self.shrink.weight.mul_(0.3)  # the paper's zeros would leave nothing to differentiate

    def forward(self, x: Tensor) -> Tensor:
        h = self.acts[0](self.expand(x))
        return x + self.shrink(self.acts[1](self.group(h)))


class Halved(nn.Module):
    """A fixed low-pass filter and every second pixel, of each channel as a picture of its own."""

    def __init__(self) -> None:
        super().__init__()
        taps = torch.tensor([1.0, 2.0, 1.0])
        self.register_buffer("filter", torch.outer(taps, taps)[None, None] / 16)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        single = x.view(n * c, 1, h, w)
        single = F.conv2d(single, self.filter.to(x.dtype), stride=2, padding=1)
        return single.view(n, c, h // 2, w // 2)


class R3(nn.Module):
    """A critic in the manner of R3GAN (Huang 2024, arXiv:2501.05441)."""

    def __init__(
        self,
        width: int = 96,
        side: int = 32,
        groups: int = 8,
        blocks: int = 2,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.dtype = dtype
        self.pictures = CastConv(3, width, 1)
        stages: list[nn.Module] = []
        while side > 4:
            stages += [*(R3Block(width, groups) for _ in range(blocks)), Halved()]
            side //= 2
        self.stages = nn.Sequential(*stages, R3Block(width, groups))
        self.last = CastConv(width, width, 4, width)
        self.last.padding = 0
        self.head = nn.Linear(width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.last(self.stages(self.pictures(x.to(self.dtype))))
        return self.head(h.view(h.shape[0], -1)).view(h.shape[0])


class EqualConv(nn.Module):
    """A convolution with an equalised learning rate: the forward scales the weight."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int = 1, bias: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, size, size))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.scale, self.stride = 1 / sqrt(inputs * size**2), stride
        self.padding = size // 2 if stride == 1 else 0

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.scale, self.bias, self.stride, self.padding)


class EqualLinear(nn.Module):
    """The same for a linear layer."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs))
        self.bias, self.scale = nn.Parameter(torch.zeros(outputs)), 1 / sqrt(inputs)

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias.unsqueeze(0), x, (self.weight * self.scale).t())


class Blur(nn.Module):
    """A fixed low-pass filter of size 4, the same for every channel."""

    def __init__(self, padding: int, stride: int = 1) -> None:
        super().__init__()
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
        self.register_buffer("filter", torch.outer(taps, taps) / 64)
        self.padding, self.stride = padding, stride

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        each = self.filter[None, None].repeat(channels, 1, 1, 1)
        return F.conv2d(x, each, stride=self.stride, padding=self.padding, groups=channels)


def activated(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.2) * sqrt(2)


class Style2Block(nn.Module):
    """Two convolutions, the second of every second pixel behind a blur; a skip that is filtered."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = EqualConv(inputs, inputs, 3)
        self.blur, self.halved = Blur(2), Blur(1, stride=2)
        self.second = EqualConv(inputs, outputs, 3, stride=2)
        self.skip = EqualConv(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = activated(self.second(self.blur(activated(self.first(x)))))
        return (h + self.skip(self.halved(x))) * (1 / sqrt(2))


class Style2(nn.Module):
    """The residual critic of StyleGAN2 (Karras 2020, arXiv:1912.04958), with no statistics of a
    batch."""

    def __init__(self, width: int = 32, most: int = 128) -> None:
        super().__init__()
        widths = [min(width * 2**k, most) for k in range(4)]
        self.pictures = EqualConv(3, width, 1)
        self.blocks = nn.Sequential(*map(Style2Block, widths[:-1], widths[1:]))
        self.last = EqualConv(widths[-1], widths[-1], 3)
        self.hidden = EqualLinear(widths[-1] * 16, widths[-1])
        self.head = EqualLinear(widths[-1], 1)

    def forward(self, x: Tensor) -> Tensor:
        h = activated(self.last(self.blocks(activated(self.pictures(x)))))
        return self.head(activated(self.hidden(h.flatten(1))))
