"""What the explicit engine knows of each layer: four maps on a batch.

For y = f(x) with weights held fixed, at the x of the forward pass:

- ``forward``   x -> y, and what the other maps need of it;
- ``delta``     d(something)/dy -> d(something)/dx: the transposed linearisation;
- ``tangent``   a direction in x -> the direction in y: the linearisation;
- ``second``    for curved layers: what a tangent t and a delta add to the adjoint of x, because the
                linearisation depends on x.

A layer with weights is linear in them: its weight gradient pairs inputs with deltas, and the same
call serves loss (h with its adjoint) and penalty (t with delta). So normalisation is two layers
here: statistics, curved and without weights; then scale and shift. Convolutions and linear layers
compute in the type of their weights.

All tensors have the batch first, also those in ``kept``, so that a pass over some of the rows can
slice them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ganfast.engine.convolution import Convolution
from ganfast.errors import InputError
from ganfast.kernels.bias_act import bias_act, bias_act_delta, bias_act_tangent, same_layout
from ganfast.tensors import full_precision, laid_out_like

# effective values by name: after spectral normalisation, in the type of the computation
Weights = Mapping[str, Tensor]
Kept = tuple[Tensor, ...]
aten = torch.ops.aten


class Layer:
    """A layer without weights and without curvature; subclasses say what differs."""

    curved = False
    mixes = False  # whether samples meet
    draws = False  # whether `forward` also takes random numbers, made by `draw`
    weights: tuple[str, ...] = ()  # names of what `gradients` and `settle` return

    def forward(self, w: Weights, *x: Tensor) -> tuple[Tensor, Kept]:
        raise NotImplementedError

    def delta(self, w: Weights, kept: Kept, dy: Tensor) -> Sequence[Tensor]:
        """One tensor per input."""
        raise NotImplementedError

    def tangent(self, w: Weights, kept: Kept, *t: Tensor) -> Tensor:
        raise NotImplementedError

    def second(self, kept: Kept, t: Tensor, dy: Tensor) -> Tensor:
        raise NotImplementedError

    def draw(self, like: Tensor) -> Tensor:
        """Random numbers for an input such as ``like``, from torch's generator."""
        raise NotImplementedError

    def settle(
        self, w: Weights, kept: Kept, dy: Tensor, bias_weight: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The delta that `delta` and `gradients` take, and gradients that are complete with it:
        none, where nothing is fused.

        ``bias_weight`` (rows,): how much of each row reaches the biases; None = all of it.
        """
        return dy, {}

    def gradients(
        self, w: Weights, inputs: Tensor, deltas: Tensor, bias_deltas: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """Weight gradients summed over rows that pair ``inputs`` with ``deltas``; biases see
        ``bias_deltas``, blocks of rows."""
        return {}


@dataclass
class Conv(Layer):
    """Convolution over any number of axes."""

    weight: str
    bias: str | None
    shape: Convolution

    def __post_init__(self) -> None:
        self.weights = (self.weight, *([self.bias] if self.bias else []))

    def _apply(self, w: Weights, x: Tensor, bias: Tensor | None) -> Tensor:
        return self.shape.forward(x.to(w[self.weight].dtype), w[self.weight], bias)

    def _weight_gradient(self, w: Weights, deltas: Tensor, inputs: Tensor) -> dict[str, Tensor]:
        kind = w[self.weight].dtype
        return {
            self.weight: self.shape.weight_gradient(
                deltas.to(kind), inputs.to(kind), w[self.weight]
            )
        }

    def forward(self, w: Weights, *x: Tensor) -> tuple[Tensor, Kept]:
        return self._apply(w, x[0], w[self.bias] if self.bias else None), (x[0],)

    def delta(self, w: Weights, kept: Kept, dy: Tensor) -> Sequence[Tensor]:
        kind = w[self.weight].dtype
        return (self.shape.data_gradient(dy.to(kind), w[self.weight], kept[0].to(kind)),)

    def tangent(self, w: Weights, kept: Kept, *t: Tensor) -> Tensor:
        return self._apply(w, t[0], None)

    def gradients(
        self, w: Weights, inputs: Tensor, deltas: Tensor, bias_deltas: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        found = self._weight_gradient(w, deltas, inputs)
        if self.bias:
            found[self.bias] = sum_blocks(bias_deltas, [0, *range(2, deltas.dim())])
        return found


@dataclass
class ConvAct(Conv):
    """Convolution, bias and leaky ReLU as one: the kernels of `ganfast.kernels.bias_act` do what
    lies between two convolutions.

    The side of the kink is kept as one bit an element; rows can be sliced because a sample's bits
    fill whole bytes.
    """

    slope: float = 0.0

    def forward(self, w: Weights, *x: Tensor) -> tuple[Tensor, Kept]:
        y, bits = bias_act(self._apply(w, x[0], None), w[str(self.bias)], self.slope)
        return y, (x[0], bits.view(len(y), -1), y)

    def settle(
        self, w: Weights, kept: Kept, dy: Tensor, bias_weight: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        _, bits, y = kept
        weight = dy.new_ones(len(dy), dtype=torch.float32) if bias_weight is None else bias_weight
        dz, db = bias_act_delta(
            same_layout(dy.to(y.dtype), y), bits.reshape(-1), self.slope, weight
        )
        return dz, {str(self.bias): db}

    def tangent(self, w: Weights, kept: Kept, *t: Tensor) -> Tensor:
        _, bits, y = kept
        return bias_act_tangent(
            same_layout(self._apply(w, t[0], None), y), bits.reshape(-1), self.slope
        )

    def gradients(
        self, w: Weights, inputs: Tensor, deltas: Tensor, bias_deltas: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        return self._weight_gradient(w, deltas, inputs)


@dataclass
class Linear(Layer):
    """x W^T + b over the last axis."""

    weight: str
    bias: str | None

    def __post_init__(self) -> None:
        self.weights = (self.weight, *([self.bias] if self.bias else []))

    def forward(self, w: Weights, *x: Tensor) -> tuple[Tensor, Kept]:
        return F.linear(
            x[0].to(w[self.weight].dtype), w[self.weight], w[self.bias] if self.bias else None
        ), (x[0],)

    def delta(self, w: Weights, kept: Kept, dy: Tensor) -> Sequence[Tensor]:
        return (dy.to(w[self.weight].dtype) @ w[self.weight],)

    def tangent(self, w: Weights, kept: Kept, *t: Tensor) -> Tensor:
        return F.linear(t[0].to(w[self.weight].dtype), w[self.weight])

    def gradients(
        self, w: Weights, inputs: Tensor, deltas: Tensor, bias_deltas: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        kind = w[self.weight].dtype
        found = {self.weight: deltas.to(kind).flatten(0, -2).t() @ inputs.to(kind).flatten(0, -2)}
        if self.bias:
            found[self.bias] = sum_blocks(bias_deltas, list(range(deltas.dim() - 1)))
        return found


@dataclass
class Affine(Layer):
    """x * weight + bias, with one number a channel (axis 1) or one for every element of the last
    axes."""

    weight: str | None
    bias: str | None
    per_channel: bool

    def __post_init__(self) -> None:
        self.weights = tuple(name for name in (self.weight, self.bias) if name)

    def _meeting(self, v: Tensor, x: Tensor) -> Tensor:
        return v.view(-1, *[1] * (x.dim() - 2)) if self.per_channel else v

    def _summed(self, v: Tensor, like: Tensor) -> Tensor:
        return full_precision(v).sum_to_size(self._meeting(like, v).shape).view_as(like)

    def _scaled(self, w: Weights, x: Tensor) -> Tensor:
        return x * self._meeting(w[self.weight], x) if self.weight else x

    def forward(self, w: Weights, *x: Tensor) -> tuple[Tensor, Kept]:
        y = self._scaled(w, x[0])
        return (y + self._meeting(w[self.bias], y) if self.bias else y), (x[0],)

    def delta(self, w: Weights, kept: Kept, dy: Tensor) -> Sequence[Tensor]:
        return (self._scaled(w, dy),)

    def tangent(self, w: Weights, kept: Kept, *t: Tensor) -> Tensor:
        return self._scaled(w, t[0])

    def gradients(
        self, w: Weights, inputs: Tensor, deltas: Tensor, bias_deltas: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        found = {}
        if self.weight:
            found[self.weight] = self._summed(inputs * deltas, w[self.weight])
        if self.bias:
            found[self.bias] = torch.stack(
                [self._summed(d, w[self.bias]) for d in bias_deltas]
            ).sum(0)
        return found


@dataclass
class BatchNorm(Layer):
    """Batch normalisation of reals and fakes, each half of the rows with statistics of its own.

    A critic with batch norms has no penalty, because a penalty needs samples that do not meet. So
    there is no tangent.

    What it settles are its weights' gradients, and running statistics that have moved by the
    reals', then by the fakes'.
    """

    weight: str | None
    bias: str | None
    running: tuple[str, ...]  # buffers with mean and variance; () = none are kept
    counter: str | None  # the buffer with the number of batches that they have seen
    momentum: float
    eps: float
    mixes = True

    def __post_init__(self) -> None:
        self.weights = (*(name for name in (self.weight, self.bias) if name), *self.running)

    def _affine(self, w: Weights) -> tuple[Tensor | None, Tensor | None]:
        return w[self.weight] if self.weight else None, w[self.bias] if self.bias else None

    def forward(self, w: Weights, *x: Tensor) -> tuple[Tensor, Kept]:
        running = [w[name] for name in self.running]
        normed, statistics = [], []
        for half in x[0].chunk(2):
            if half.numel() == half.shape[1]:
                raise InputError(
                    f"a batch norm is given one value a channel, {tuple(half.shape)}; "
                    "expected 2 or more pictures"
                )
            given = (half, *self._affine(w))
            if running:
                y, mean, scale, *running = aten._native_batch_norm_legit_functional(
                    *given, *running, True, self.momentum, self.eps
                )
            else:
                y, mean, scale = aten._native_batch_norm_legit(
                    *given, True, self.momentum, self.eps
                )
            normed.append(y)
            statistics += [mean, scale]
        return torch.cat(normed), (x[0], *statistics, *running)

    def settle(
        self, w: Weights, kept: Kept, dy: Tensor, bias_weight: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        x, statistics, running = kept[0], (kept[1:3], kept[3:5]), kept[5:]
        wanted = [True, self.weight is not None, self.bias is not None]
        deltas: list[Tensor] = []
        found: dict[str, Tensor] = {}
        for half, d, (mean, scale) in zip(
            x.chunk(2), laid_out_like(dy.to(x.dtype), x).chunk(2), statistics, strict=True
        ):
            weight, _ = self._affine(w)
            dx, *own = aten.native_batch_norm_backward(
                d, half, weight, None, None, mean, scale, True, self.eps, wanted
            )
            deltas.append(dx)
            for name, gradient in zip((self.weight, self.bias), own, strict=True):
                if name:
                    found[name] = found[name] + gradient if name in found else gradient
        return torch.cat(deltas), found | dict(zip(self.running, running, strict=True))

    def delta(self, w: Weights, kept: Kept, dy: Tensor) -> Sequence[Tensor]:
        return (dy,)


@dataclass
class LeakyReLU(Layer):
    """max(x, slope x), 0 <= slope; slope = 0 is ReLU. The sign of its output tells the side of
    the kink."""

    slope: float

    def forward(self, w: Weights, *x: Tensor) -> tuple[Tensor, Kept]:
        y = F.leaky_relu(x[0], self.slope)
        return y, (y,)

    def _through(self, kept: Kept, v: Tensor) -> Tensor:
        return aten.leaky_relu_backward(v, kept[0], self.slope, True)

    def delta(self, w: Weights, kept: Kept, dy: Tensor) -> Sequence[Tensor]:
        return (self._through(kept, dy),)

    def tangent(self, w: Weights, kept: Kept, *t: Tensor) -> Tensor:
        return self._through(kept, t[0])


@dataclass
class Dropout(Layer):
    """x times a random mask (Srivastava 2014), made of the numbers that are the second input."""

    numbers: Callable[[Tensor], Tensor]  # random ones, shaped and laid out as its argument
    mask: Callable[[Tensor, Tensor], Tensor]  # of numbers, for the tensor that it is to multiply
    draws = True

    def draw(self, like: Tensor) -> Tensor:
        return self.numbers(like)

    def forward(self, w: Weights, *x: Tensor) -> tuple[Tensor, Kept]:
        mask = self.mask(x[1], x[0])
        return x[0] * mask, (mask,)

    def delta(self, w: Weights, kept: Kept, dy: Tensor) -> Sequence[Tensor]:
        return (dy * kept[0],)

    def tangent(self, w: Weights, kept: Kept, *t: Tensor) -> Tensor:
        return t[0] * kept[0]


@dataclass
class Smooth(Layer):
    """An elementwise function with its first and second derivative."""

    function: Callable[[Tensor], Tensor]
    first_derivative: Callable[[Tensor], Tensor]
    second_derivative: Callable[[Tensor], Tensor]
    curved = True

    def forward(self, w: Weights, *x: Tensor) -> tuple[Tensor, Kept]:
        return self.function(x[0]), (x[0],)

    def delta(self, w: Weights, kept: Kept, dy: Tensor) -> Sequence[Tensor]:
        return (dy * self.first_derivative(kept[0]),)

    def tangent(self, w: Weights, kept: Kept, *t: Tensor) -> Tensor:
        return t[0] * self.first_derivative(kept[0])

    def second(self, kept: Kept, t: Tensor, dy: Tensor) -> Tensor:
        return dy * t * self.second_derivative(kept[0])


def silu() -> Smooth:
    """x sigmoid(x)."""

    def first(x: Tensor) -> Tensor:
        s = torch.sigmoid(x)
        return s * (1 + x * (1 - s))

    def second(x: Tensor) -> Tensor:
        s = torch.sigmoid(x)
        return s * (1 - s) * (2 + x * (1 - 2 * s))

    return Smooth(F.silu, first, second)


def softplus() -> Smooth:
    """log(1 + exp x)."""

    def second(x: Tensor) -> Tensor:
        s = torch.sigmoid(x)
        return s * (1 - s)

    return Smooth(F.softplus, torch.sigmoid, second)


def tanh() -> Smooth:
    """tanh x."""

    def first(x: Tensor) -> Tensor:
        return 1 - torch.tanh(x).square()

    def second(x: Tensor) -> Tensor:
        y = torch.tanh(x)
        return -2 * y * (1 - y.square())

    return Smooth(torch.tanh, first, second)


@dataclass
class Standardise(Layer):
    """(x - mean) / sqrt(var + eps) over groups: GroupNorm without its weights; LayerNorm and
    InstanceNorm by their group counts.

    With y the result, sigma the root and m() the mean over a group, J v = (v - m(v) - y m(y v)) /
    sigma is the linearisation and its transpose. Computed, and handed on, in float32 or more, as
    autocast does.
    """

    groups: int  # 0 = one for each channel; -n = over the last n axes
    eps: float
    curved = True

    def _grouped(self, x: Tensor) -> Tensor:
        x = full_precision(x)
        if self.groups >= 0:
            return x.reshape(len(x), self.groups or x.shape[1], -1)
        return x.reshape(len(x), -1, prod(x.shape[self.groups :]))

    def _jacobian(self, kept: Kept, v: Tensor) -> Tensor:
        y, sigma = kept
        return (v - mean(v) - y * mean(y * v)) / sigma

    def forward(self, w: Weights, *x: Tensor) -> tuple[Tensor, Kept]:
        grouped = self._grouped(x[0])
        sigma = (grouped.var(2, correction=0, keepdim=True) + self.eps).sqrt()
        y = (grouped - mean(grouped)) / sigma
        return y.view(x[0].shape), (y, sigma)

    def delta(self, w: Weights, kept: Kept, dy: Tensor) -> Sequence[Tensor]:
        return (self._jacobian(kept, self._grouped(dy)).view(dy.shape),)

    def tangent(self, w: Weights, kept: Kept, *t: Tensor) -> Tensor:
        return self.delta(w, kept, t[0])[0]

    def second(self, kept: Kept, t: Tensor, dy: Tensor) -> Tensor:
        y, sigma = kept
        d, v = self._grouped(dy), self._grouped(t)
        dx, ty = self._jacobian(kept, d), self._jacobian(kept, v)
        return -((y * mean(d * ty) + dx * mean(y * v) + ty * mean(y * d)) / sigma).view(dy.shape)


@dataclass
class AvgPool(Layer):
    """Average pooling over two axes; arguments as `torch.nn.functional.avg_pool2d` has them."""

    # kernel, stride, padding, ceil_mode, count_include_pad, divisor_override
    arguments: tuple[Any, ...]

    def forward(self, w: Weights, *x: Tensor) -> tuple[Tensor, Kept]:
        return aten.avg_pool2d(x[0], *self.arguments), (x[0],)

    def delta(self, w: Weights, kept: Kept, dy: Tensor) -> Sequence[Tensor]:
        return (aten.avg_pool2d_backward(dy, kept[0], *self.arguments),)

    def tangent(self, w: Weights, kept: Kept, *t: Tensor) -> Tensor:
        return aten.avg_pool2d(t[0], *self.arguments)


class GlobalAverage(Layer):
    """Mean over height and width, which stay as axes of length 1."""

    def forward(self, w: Weights, *x: Tensor) -> tuple[Tensor, Kept]:
        return x[0].mean((2, 3), keepdim=True), (x[0],)

    def delta(self, w: Weights, kept: Kept, dy: Tensor) -> Sequence[Tensor]:
        return ((dy / prod(kept[0].shape[2:])).expand(-1, -1, *kept[0].shape[2:]),)

    def tangent(self, w: Weights, kept: Kept, *t: Tensor) -> Tensor:
        return t[0].mean((2, 3), keepdim=True)


@dataclass
class Resize(Layer):
    """Nearest or bilinear interpolation to a size, or by factors, which keep their exact values
    as in `torch.nn.functional.interpolate`."""

    mode: str  # nearest, bilinear
    size: tuple[int, int] | None
    factors: tuple[float, float] | None
    corners: tuple[bool, ...] = ()  # (align_corners,) for bilinear
    antialias: bool = False

    def __post_init__(self) -> None:
        kernel = {
            "nearest": "upsample_nearest2d",
            "bilinear": "_upsample_bilinear2d_aa" if self.antialias else "upsample_bilinear2d",
        }
        self._map, self._transposed = (
            getattr(aten, kernel[self.mode]),
            getattr(aten, kernel[self.mode] + "_backward"),
        )

    def _to(self, x: Tensor) -> tuple[int, ...]:
        return self.size or tuple(
            int(s * f) for s, f in zip(x.shape[2:], self.factors or (), strict=True)
        )

    def forward(self, w: Weights, *x: Tensor) -> tuple[Tensor, Kept]:
        return self.tangent(w, (), *x), (x[0],)

    def delta(self, w: Weights, kept: Kept, dy: Tensor) -> Sequence[Tensor]:
        shape = [len(dy), *kept[0].shape[1:]]
        return (
            self._transposed(
                dy, self._to(kept[0]), shape, *self.corners, *(self.factors or (None, None))
            ),
        )

    def tangent(self, w: Weights, kept: Kept, *t: Tensor) -> Tensor:
        return self._map(t[0], self._to(t[0]), *self.corners, *(self.factors or (None, None)))


@dataclass
class Reshape(Layer):
    """Another shape of a sample's numbers. ``function`` must not depend on the size of the
    batch."""

    function: Callable[[Tensor], Tensor]

    def forward(self, w: Weights, *x: Tensor) -> tuple[Tensor, Kept]:
        return self.function(x[0]), (x[0],)

    def delta(self, w: Weights, kept: Kept, dy: Tensor) -> Sequence[Tensor]:
        return (laid_out_like(dy.reshape(len(dy), *kept[0].shape[1:]), kept[0]),)

    def tangent(self, w: Weights, kept: Kept, *t: Tensor) -> Tensor:
        return self.function(t[0])


@dataclass
class Column(Layer):
    """x[:, column]."""

    column: int

    def forward(self, w: Weights, *x: Tensor) -> tuple[Tensor, Kept]:
        return x[0][:, self.column], (x[0],)

    def delta(self, w: Weights, kept: Kept, dy: Tensor) -> Sequence[Tensor]:
        dx = dy.new_zeros(len(dy), *kept[0].shape[1:])
        dx[:, self.column] = dy
        return (dx,)

    def tangent(self, w: Weights, kept: Kept, *t: Tensor) -> Tensor:
        return t[0][:, self.column]


class LabelColumn(Layer):
    """x (N, K) -> (N, 1): of each sample the column of its label. The label index (N, 1) is the
    second input and has no derivative."""

    def forward(self, w: Weights, *x: Tensor) -> tuple[Tensor, Kept]:
        return x[0].gather(1, x[1]), (x[0], x[1])

    def delta(self, w: Weights, kept: Kept, dy: Tensor) -> Sequence[Tensor]:
        return (dy.new_zeros(len(dy), kept[0].shape[1]).scatter(1, kept[1], dy),)

    def tangent(self, w: Weights, kept: Kept, *t: Tensor) -> Tensor:
        return t[0].gather(1, kept[1])


class Sum(Layer):
    """a + b: a residual connection. One may be stretched along axes of length 1, but not the
    batch's."""

    def forward(self, w: Weights, *x: Tensor) -> tuple[Tensor, Kept]:
        a, b = x
        if a.dim() != b.dim():
            raise ValueError(
                f"the sum of {tuple(a.shape)} and {tuple(b.shape)} would pair the axes of a sample "
                "with the batch"
            )
        return a + b, () if a.shape == b.shape else (a, b)

    def delta(self, w: Weights, kept: Kept, dy: Tensor) -> Sequence[Tensor]:
        return [dy.sum_to_size(k.shape) for k in kept] if kept else (dy, dy)

    def tangent(self, w: Weights, kept: Kept, *t: Tensor) -> Tensor:
        return t[0] + t[1]


@dataclass
class Scale(Layer):
    """x times a number."""

    factor: float

    def forward(self, w: Weights, *x: Tensor) -> tuple[Tensor, Kept]:
        return x[0] * self.factor, ()

    def delta(self, w: Weights, kept: Kept, dy: Tensor) -> Sequence[Tensor]:
        return (dy * self.factor,)

    def tangent(self, w: Weights, kept: Kept, *t: Tensor) -> Tensor:
        return t[0] * self.factor


def mean(v: Tensor) -> Tensor:
    """Over a group, kept as an axis."""
    return v.mean(2, keepdim=True)


def sum_blocks(blocks: Sequence[Tensor], axes: list[int]) -> Tensor:
    """Sum over ``axes`` of several blocks of rows, in float32 or more."""
    total = blocks[0].sum(axes, dtype=torch.promote_types(blocks[0].dtype, torch.float32))
    for block in blocks[1:]:
        total = total + block.sum(axes, dtype=total.dtype)
    return total
