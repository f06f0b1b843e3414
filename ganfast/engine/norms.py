"""Normalisations as layers of the explicit engine: their statistics, then their scale and shift."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from ganfast.engine.layers import (
    Blocks,
    Gradients,
    Kept,
    Layer,
    Settled,
    Weights,
    aten,
    sum_blocks_to,
)
from ganfast.errors import InputError
from ganfast.tensors import full_precision, laid_out_like


@dataclass
class Affine(Layer):
    """x * weight + bias: one number a channel (axis 1), or one an element of the last axes."""

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

    def tangent(self, w: Weights, kept: Kept, *t: Tensor) -> Tensor:
        return self._scaled(w, t[0])

    def gradients(self, w: Weights, inputs: Tensor, deltas: Tensor, biases: Blocks) -> Gradients:
        gradients = {}
        if self.weight:
            gradients[self.weight] = self._summed(inputs * deltas, w[self.weight])
        if self.bias:
            bias = w[self.bias]
            met = self._meeting(bias, biases[0].rows)
            gradients[self.bias] = sum_blocks_to(biases, met.shape).view_as(bias)
        return gradients


@dataclass
class BatchNorm(Layer):
    """Batch normalisation of reals and fakes, each half of the rows with statistics of its own.

    A critic with batch norms has no penalty, because a penalty needs samples that do not meet. So
    there is no tangent.

    It settles the gradients of its weights, and the running statistics: moved by the statistics of
    the reals, then of the fakes.
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
            inputs, options = (half, *self._affine(w)), (True, self.momentum, self.eps)
            if running:
                y, mean, scale, *running = aten._native_batch_norm_legit_functional(
                    *inputs, *running, *options
                )
            else:
                y, mean, scale = aten._native_batch_norm_legit(*inputs, *options)
            normed.append(y)
            statistics += [mean, scale]
        return torch.cat(normed), (x[0], *statistics, *running)

    def settle(self, w: Weights, kept: Kept, dy: Tensor, bias_weight: Tensor | None) -> Settled:
        x, statistics, running = kept[0], (kept[1:3], kept[3:5]), kept[5:]
        mask = [True, self.weight is not None, self.bias is not None]
        halves = zip(x.chunk(2), laid_out_like(dy.to(x.dtype), x).chunk(2), statistics, strict=True)
        deltas: list[Tensor] = []
        total: Gradients = {}
        for half, d, (mean, scale) in halves:
            weight, _ = self._affine(w)
            dx, *own = aten.native_batch_norm_backward(
                d, half, weight, None, None, mean, scale, True, self.eps, mask
            )
            deltas.append(dx)
            for name, gradient in zip((self.weight, self.bias), own, strict=True):
                if name:
                    total[name] = total[name] + gradient if name in total else gradient
        return torch.cat(deltas), total | dict(zip(self.running, running, strict=True))

    def delta(self, w: Weights, kept: Kept, dy: Tensor) -> Sequence[Tensor]:
        return (dy,)


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

    def tangent(self, w: Weights, kept: Kept, *t: Tensor) -> Tensor:
        return self._jacobian(kept, self._grouped(t[0])).view(t[0].shape)

    def second(self, kept: Kept, t: Tensor, dy: Tensor) -> Tensor:
        y, sigma = kept
        d, v = self._grouped(dy), self._grouped(t)
        dx, ty = self._jacobian(kept, d), self._jacobian(kept, v)
        return -((y * mean(d * ty) + dx * mean(y * v) + ty * mean(y * d)) / sigma).view(dy.shape)


def mean(v: Tensor) -> Tensor:
    """Over a group, kept as an axis."""
    return v.mean(2, keepdim=True)
