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
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ganfast.engine.convolution import Convolution
from ganfast.kernels.bias_act import bias_act, bias_act_delta, bias_act_tangent, same_layout
from ganfast.tensors import laid_out_like

# effective values by name: after spectral normalisation, in the type of the computation
Weights = Mapping[str, Tensor]
Kept = tuple[Tensor, ...]
Gradients = dict[str, Tensor]  # by the name of the weight
Settled = tuple[Tensor, Gradients]
aten = torch.ops.aten


class Block(NamedTuple):
    """Some rows, and a number for each of them that is not multiplied in yet; None = 1."""

    rows: Tensor
    factor: Tensor | None = None


Blocks = Sequence[Block]


class Layer:
    """A layer without weights and without curvature; subclasses say what differs.

    `forward` as written here is right for a map that is linear in x, and `delta` for a symmetric
    linearisation, such as a factor for every element.
    """

    curved = False
    mixes = False  # whether samples meet
    draws = False  # whether `forward` also takes random numbers, made by `draw`
    pairs = True  # whether `gradients` reads inputs and deltas; a bias reads blocks of deltas only
    weights: tuple[str, ...] = ()  # names of what `gradients` and `settle` return

    def forward(self, w: Weights, *x: Tensor) -> tuple[Tensor, Kept]:
        return self.tangent(w, (), *x), (x[0],)

    def delta(self, w: Weights, kept: Kept, dy: Tensor) -> Sequence[Tensor]:
        """One tensor per input."""
        return (self.tangent(w, kept, dy),)

    def tangent(self, w: Weights, kept: Kept, *t: Tensor) -> Tensor:
        raise NotImplementedError

    def second(self, kept: Kept, t: Tensor, dy: Tensor) -> Tensor:
        raise NotImplementedError

    def draw(self, like: Tensor) -> Tensor:
        """Random numbers for an input such as ``like``, from torch's generator."""
        raise NotImplementedError

    def settle(self, w: Weights, kept: Kept, dy: Tensor, bias_weight: Tensor | None) -> Settled:
        """The delta that `delta` and `gradients` take, and gradients that are complete already.

        ``bias_weight`` (rows,): how much of each row reaches the biases; None = all of it.
        """
        return dy, {}

    def gradients(self, w: Weights, inputs: Tensor, deltas: Tensor, biases: Blocks) -> Gradients:
        """Weight gradients, summed over rows: weights pair ``inputs`` with ``deltas``.

        Biases sum the deltas in ``biases``.
        """
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

    def _weight_gradient(self, w: Weights, deltas: Tensor, inputs: Tensor) -> Gradients:
        weight = w[self.weight]
        deltas, inputs = deltas.to(weight.dtype), inputs.to(weight.dtype)
        return {self.weight: self.shape.weight_gradient(deltas, inputs, weight)}

    def forward(self, w: Weights, *x: Tensor) -> tuple[Tensor, Kept]:
        return self._apply(w, x[0], w[self.bias] if self.bias else None), (x[0],)

    def delta(self, w: Weights, kept: Kept, dy: Tensor) -> Sequence[Tensor]:
        x, kind = kept[0], w[self.weight].dtype
        x = x if x.dtype == kind else torch.empty_like(x, dtype=kind)  # for its shape: no cast
        return (self.shape.data_gradient(dy.to(kind), w[self.weight], x),)

    def tangent(self, w: Weights, kept: Kept, *t: Tensor) -> Tensor:
        return self._apply(w, t[0], None)

    def gradients(self, w: Weights, inputs: Tensor, deltas: Tensor, biases: Blocks) -> Gradients:
        gradients = self._weight_gradient(w, deltas, inputs) if self.weight in self.weights else {}
        if self.bias in self.weights:
            gradients[str(self.bias)] = sum_blocks(biases, [0, *range(2, deltas.dim())])
        return gradients


@dataclass
class ConvAct(Conv):
    """Convolution, bias and leaky ReLU as one, by the kernels of `ganfast.kernels.bias_act`.

    One bit an element keeps the side of the kink. A sample's bits fill whole bytes, so that rows
    can be sliced.
    """

    slope: float = 0.0

    def forward(self, w: Weights, *x: Tensor) -> tuple[Tensor, Kept]:
        y, bits = bias_act(self._apply(w, x[0], None), w[str(self.bias)], self.slope)
        return y, (x[0], bits.view(len(y), -1), y)

    def settle(self, w: Weights, kept: Kept, dy: Tensor, bias_weight: Tensor | None) -> Settled:
        _, bits, y = kept
        weight = dy.new_ones(len(dy), dtype=torch.float32) if bias_weight is None else bias_weight
        dy = same_layout(dy.to(y.dtype), y)
        dz, db = bias_act_delta(dy, bits.reshape(-1), self.slope, weight)
        return dz, {str(self.bias): db}

    def tangent(self, w: Weights, kept: Kept, *t: Tensor) -> Tensor:
        _, bits, y = kept
        c = same_layout(self._apply(w, t[0], None), y)
        return bias_act_tangent(c, bits.reshape(-1), self.slope)

    def tangent_over_output(self, w: Weights, kept: Kept, *t: Tensor) -> Tensor:
        """The tangent, written over y: nobody may read those rows of y any more."""
        _, bits, y = kept
        c = same_layout(self._apply(w, t[0], None), y)
        return bias_act_tangent(c, bits.reshape(-1), self.slope, out=y)

    def gradients(self, w: Weights, inputs: Tensor, deltas: Tensor, biases: Blocks) -> Gradients:
        return self._weight_gradient(w, deltas, inputs)


@dataclass
class Linear(Layer):
    """x W^T + b over the last axis."""

    weight: str
    bias: str | None

    def __post_init__(self) -> None:
        self.weights = (self.weight, *([self.bias] if self.bias else []))

    def forward(self, w: Weights, *x: Tensor) -> tuple[Tensor, Kept]:
        weight, bias = w[self.weight], w[self.bias] if self.bias else None
        return F.linear(x[0].to(weight.dtype), weight, bias), (x[0],)

    def delta(self, w: Weights, kept: Kept, dy: Tensor) -> Sequence[Tensor]:
        return (dy.to(w[self.weight].dtype) @ w[self.weight],)

    def tangent(self, w: Weights, kept: Kept, *t: Tensor) -> Tensor:
        return F.linear(t[0].to(w[self.weight].dtype), w[self.weight])

    def gradients(self, w: Weights, inputs: Tensor, deltas: Tensor, biases: Blocks) -> Gradients:
        rows = [x.to(w[self.weight].dtype).flatten(0, -2) for x in (deltas, inputs)]
        gradients = {self.weight: rows[0].t() @ rows[1]}
        if self.bias:
            gradients[self.bias] = sum_blocks(biases, list(range(deltas.dim() - 1)))
        return gradients


@dataclass
class LeakyReLU(Layer):
    """max(x, slope x), 0 <= slope; 0 is ReLU. The sign of the output tells the side of the kink."""

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
class AvgPool(Layer):
    """Average pooling over two axes; arguments as `torch.nn.functional.avg_pool2d` has them."""

    # kernel, stride, padding, ceil_mode, count_include_pad, divisor_override
    arguments: tuple[Any, ...]

    def delta(self, w: Weights, kept: Kept, dy: Tensor) -> Sequence[Tensor]:
        return (aten.avg_pool2d_backward(dy, kept[0], *self.arguments),)

    def tangent(self, w: Weights, kept: Kept, *t: Tensor) -> Tensor:
        x = t[0]
        pairs = self.arguments[:3] == ((2, 2), (2, 2), (0, 0)) and self.arguments[5] is None
        even = x.dim() == 4 and x.is_contiguous() and not (x.shape[2] % 2 or x.shape[3] % 2)
        if pairs and even and x.device.type == "cpu":
            return _halved(x)
        return aten.avg_pool2d(x, *self.arguments)


def _halved(x: Tensor) -> Tensor:
    """Means of 2x2 pixels. torch's own kernel for contiguous maps is not vectorised: it takes three
    times as long (48 maps of 64 channels, 32x32 and 16x16, one thread)."""
    rows = x.unflatten(2, (-1, 2))
    both = rows[:, :, :, 0] + rows[:, :, :, 1]
    return (both[..., ::2] + both[..., 1::2]) * 0.25


@dataclass
class Reshape(Layer):
    """Another shape of a sample's numbers; ``function`` must not depend on the size of a batch."""

    function: Callable[[Tensor], Tensor]

    def delta(self, w: Weights, kept: Kept, dy: Tensor) -> Sequence[Tensor]:
        return (laid_out_like(dy.reshape(len(dy), *kept[0].shape[1:]), kept[0]),)

    def tangent(self, w: Weights, kept: Kept, *t: Tensor) -> Tensor:
        return self.function(t[0])


@dataclass
class Column(Layer):
    """x[:, column]."""

    column: int

    def delta(self, w: Weights, kept: Kept, dy: Tensor) -> Sequence[Tensor]:
        dx = dy.new_zeros(len(dy), *kept[0].shape[1:])
        dx[:, self.column] = dy
        return (dx,)

    def tangent(self, w: Weights, kept: Kept, *t: Tensor) -> Tensor:
        return t[0][:, self.column]


class LabelColumn(Layer):
    """x (N, K) -> (N, 1): each sample's column of its label.

    The label index (N, 1) is the second input and has no derivative.
    """

    def forward(self, w: Weights, *x: Tensor) -> tuple[Tensor, Kept]:
        return x[0].gather(1, x[1]), (x[0], x[1])

    def delta(self, w: Weights, kept: Kept, dy: Tensor) -> Sequence[Tensor]:
        return (dy.new_zeros(len(dy), kept[0].shape[1]).scatter(1, kept[1], dy),)

    def tangent(self, w: Weights, kept: Kept, *t: Tensor) -> Tensor:
        return t[0].gather(1, kept[1])


class Sum(Layer):
    """a + b: a residual connection. Either may stretch along axes of length 1 behind the batch."""

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

    def tangent(self, w: Weights, kept: Kept, *t: Tensor) -> Tensor:
        return t[0] * self.factor


def sum_blocks(blocks: Blocks, axes: list[int]) -> Tensor:
    """Sum over ``axes``, of which 0 is the first, in float32 or more."""
    return sum([_summed(block, axes) for block in blocks[1:]], _summed(blocks[0], axes))


def _summed(block: Block, axes: list[int]) -> Tensor:
    rows, factor = block
    kind = torch.promote_types(rows.dtype, torch.float32)
    if factor is None:
        return rows.sum(axes, dtype=kind)
    # Each row's sum by its factor: rows times factors would be another tensor as large as rows.
    each = rows.sum(axes[1:], dtype=kind) if axes[1:] else rows.to(kind)
    return (each * factor.to(kind).view(-1, *[1] * (each.dim() - 1))).sum(0)


def sum_blocks_to(blocks: Blocks, shape: Sequence[int]) -> Tensor:
    """The same sums where a weight of ``shape`` was stretched to the shape of the blocks."""
    missing = blocks[0].rows.dim() - len(shape)
    stretched = [k for k, size in enumerate(shape, missing) if size == 1 and k > 0]
    axes = [0, *range(1, missing), *stretched]
    return sum_blocks(blocks, axes).view(tuple(shape))
