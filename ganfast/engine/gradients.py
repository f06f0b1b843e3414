"""Gradients of a network in one flat buffer, which an all-reduce or an optimizer can take whole."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class FlatGradients:
    """``flat`` (total,) of a network's trainable parameters; each ``.grad`` is a view into it, laid out as its parameter is.

    The layout matters: a double backward returns weight gradients with strides of their own, and fused Adam walks gradient and
    weight by address: it would move every weight by the gradient of another.
    """

    def __init__(self, net: nn.Module) -> None:
        self.parameters = [p for p in net.parameters() if p.requires_grad]
        total = sum(p.numel() for p in self.parameters)
        first = self.parameters[0] if self.parameters else torch.empty(0)
        self.flat = torch.zeros(total, dtype=first.dtype, device=first.device)
        self.views: list[Tensor] = []
        start = 0
        for p in self.parameters:
            part = self.flat[start : start + p.numel()]
            dense = p.is_contiguous() or p.is_contiguous(memory_format=torch.channels_last) if p.dim() == 4 else p.is_contiguous()
            self.views.append(part.as_strided(p.shape, p.stride()) if dense else part.view(p.shape))
            start += p.numel()

    @torch.no_grad()
    def fill(self, gradients: Sequence[Tensor | None]) -> None:
        """Copy one gradient for each parameter; None is 0. Parameters whose .grad was taken away get it back."""
        for parameter, view, gradient in zip(self.parameters, self.views, gradients, strict=True):
            if gradient is None:
                view.zero_()
            else:
                view.copy_(gradient)
            if parameter.grad is not view:
                parameter.grad = view
