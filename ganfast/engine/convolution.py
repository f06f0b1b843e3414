"""A convolution without its tensors, and the two operations that it and all its derivatives are made of."""

from typing import NamedTuple

import torch
from torch import Tensor

from ganfast.engine.small import is_small, patch_product
from ganfast.engine.thin import is_thin, overlapped, told_last


class Convolution(NamedTuple):
    """Over any number of axes; weights are (out, in / groups, *kernel)."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    last: bool = False  # the result is channels last even where pictures of one channel do not say so; else as torch has it

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        zeros = [0] * len(self.stride)
        x = told_last(x) if self.last and is_thin(x, weight, self.groups) else x
        return torch.ops.aten.convolution(
            x, weight, bias, self.stride, self.padding, self.dilation, False, zeros, self.groups
        )  # fmt: skip

    def data_gradient(self, dy: Tensor, weight: Tensor, x: Tensor) -> Tensor:
        """``x`` gives the shape only."""
        if is_thin(dy, weight, self.groups):
            return overlapped(dy, weight, x.shape[2:], self.stride, self.padding, self.dilation)
        return self._backward(dy, x, weight, [True, False, False])[0]

    def weight_gradient(self, dy: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """``weight`` gives the shape only."""
        if is_small(dy, weight, self.groups):
            return patch_product(dy, x, weight, self.stride, self.padding, self.dilation)
        return self._backward(dy, x, weight, [False, True, False])[1]

    def _backward(self, dy: Tensor, x: Tensor, weight: Tensor, mask: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
        zeros = [0] * len(self.stride)
        return torch.ops.aten.convolution_backward(
            dy, x, weight, None, self.stride, self.padding, self.dilation, False, zeros, self.groups, mask
        )
