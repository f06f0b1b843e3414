"""Layers that a forward of somebody else's is written with: linear maps without weights, products
and sums with any tensor that is not made of pictures, and maps of single channels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ganfast.engine.layers import Block, Blocks, Gradients, Kept, Layer, Weights, sum_blocks_to
from ganfast.tensors import full_precision


@dataclass
class Map(Layer):
    """A linear map of each sample without weights: pooling, resizing, padding, sums, slices.

    Autograd transposes it, on tensors whose numbers do not matter.
    """

    function: Callable[[Tensor], Tensor]

    def delta(self, w: Weights, kept: Kept, dy: Tensor) -> Sequence[Tensor]:
        with torch.enable_grad():
            x = torch.empty_like(kept[0], dtype=dy.dtype).requires_grad_()
            y = self.function(x)
        return torch.autograd.grad(y, x, dy.to(y.dtype))

    def tangent(self, w: Weights, kept: Kept, *t: Tensor) -> Tensor:
        return self.function(t[0])


@dataclass
class Multiply(Layer):
    """x times a weight that stretches over the batch."""

    weight: str

    def __post_init__(self) -> None:
        self.weights = (self.weight,)

    def delta(self, w: Weights, kept: Kept, dy: Tensor) -> Sequence[Tensor]:
        return ((dy * w[self.weight]).sum_to_size(kept[0].shape),)

    def tangent(self, w: Weights, kept: Kept, *t: Tensor) -> Tensor:
        return t[0] * w[self.weight]

    def gradients(self, w: Weights, inputs: Tensor, deltas: Tensor, biases: Blocks) -> Gradients:
        return {self.weight: _summed(inputs * deltas, w[self.weight])} if self.weights else {}


@dataclass
class Add(Layer):
    """x plus a weight that stretches over the batch."""

    weight: str
    pairs = False

    def __post_init__(self) -> None:
        self.weights = (self.weight,)

    def forward(self, w: Weights, *x: Tensor) -> tuple[Tensor, Kept]:
        return x[0] + w[self.weight], (x[0],)

    def delta(self, w: Weights, kept: Kept, dy: Tensor) -> Sequence[Tensor]:
        return (dy.sum_to_size(kept[0].shape),)

    def tangent(self, w: Weights, kept: Kept, *t: Tensor) -> Tensor:
        return t[0].expand(torch.broadcast_shapes(t[0].shape, w[self.weight].shape))

    def gradients(self, w: Weights, inputs: Tensor, deltas: Tensor, biases: Blocks) -> Gradients:
        return {self.weight: sum_blocks_to(biases, w[self.weight].shape)} if self.weights else {}


def _summed(v: Tensor, weight: Tensor) -> Tensor:
    return full_precision(v).sum_to_size(weight.shape)


class Shift(Layer):
    """x plus a number."""

    def __init__(self, number: float) -> None:
        self.number = number

    def forward(self, w: Weights, *x: Tensor) -> tuple[Tensor, Kept]:
        return x[0] + self.number, ()

    def tangent(self, w: Weights, kept: Kept, *t: Tensor) -> Tensor:
        return t[0]


@dataclass
class Joined(Layer):
    """Values of the same samples behind each other along an axis."""

    axis: int

    def forward(self, w: Weights, *x: Tensor) -> tuple[Tensor, Kept]:
        return torch.cat(x, self.axis), x

    def delta(self, w: Weights, kept: Kept, dy: Tensor) -> Sequence[Tensor]:
        return dy.split([x.shape[self.axis] for x in kept], self.axis)

    def tangent(self, w: Weights, kept: Kept, *t: Tensor) -> Tensor:
        return torch.cat(t, self.axis)


@dataclass
class LabelRows(Layer):
    """x (N, K) times each sample's row of a table (classes, K): a projection (arXiv:1802.05637).

    The labels (N,) are the second input and have no derivative.
    """

    weight: str

    def __post_init__(self) -> None:
        self.weights = (self.weight,)

    def forward(self, w: Weights, *x: Tensor) -> tuple[Tensor, Kept]:
        return x[0] * w[self.weight][x[1]], (x[1],)

    def tangent(self, w: Weights, kept: Kept, *t: Tensor) -> Tensor:
        return t[0] * w[self.weight][kept[0]]

    def by_label(self, w: Weights, inputs: Tensor, deltas: Tensor, labels: Tensor) -> Gradients:
        table = full_precision(torch.zeros_like(w[self.weight]))
        return {self.weight: table.index_add(0, labels, (inputs * deltas).to(table.dtype))}


@dataclass
class Folded(Layer):
    """A layer that is given the channels of N samples as N * channels samples: (N * channels, ...).

    Outside of it they are (N, channels, ...), so that rows can be sliced.
    """

    layer: Layer
    channels: int

    def __post_init__(self) -> None:
        self.weights, self.curved = self.layer.weights, self.layer.curved
        self.pairs = self.layer.pairs

    def _folded(self, kept: Kept) -> Kept:
        return tuple(k.flatten(0, 1) for k in kept)

    def _unfolded(self, y: Tensor) -> Tensor:
        return y.unflatten(0, (-1, self.channels))

    def forward(self, w: Weights, *x: Tensor) -> tuple[Tensor, Kept]:
        y, kept = self.layer.forward(w, *self._folded(x))
        return self._unfolded(y), tuple(self._unfolded(k) for k in kept)

    def delta(self, w: Weights, kept: Kept, dy: Tensor) -> Sequence[Tensor]:
        deltas = self.layer.delta(w, self._folded(kept), dy.flatten(0, 1))
        return [self._unfolded(d) for d in deltas]

    def tangent(self, w: Weights, kept: Kept, *t: Tensor) -> Tensor:
        return self._unfolded(self.layer.tangent(w, self._folded(kept), *self._folded(t)))

    def second(self, kept: Kept, t: Tensor, dy: Tensor) -> Tensor:
        t, dy = t.flatten(0, 1), dy.flatten(0, 1)
        return self._unfolded(self.layer.second(self._folded(kept), t, dy))

    def gradients(self, w: Weights, inputs: Tensor, deltas: Tensor, biases: Blocks) -> Gradients:
        if self.pairs:
            inputs, deltas = inputs.flatten(0, 1), deltas.flatten(0, 1)
        return self.layer.gradients(w, inputs, deltas, [self._block(b) for b in biases])

    def _block(self, block: Block) -> Block:
        rows, factor = block
        factor = None if factor is None else factor.repeat_interleave(self.channels)
        return Block(rows.flatten(0, 1), factor)


def unfolded(layer: Layer) -> Layer:
    """The layer that is folded, or the layer itself."""
    return layer.layer if isinstance(layer, Folded) else layer
