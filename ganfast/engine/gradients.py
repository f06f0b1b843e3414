"""Gradients of a network in one flat buffer, which an all-reduce or an optimizer can take whole."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ganfast.errors import InputError
from ganfast.models.members import parameters


class FlatGradients:
    """``flat`` (total,) holds the gradients of a network's trainable parameters. Each ``.grad`` is
    a view into it, laid out as its parameter.

    The layout matters: a double backward returns weight gradients with strides of their own, and
    fused Adam walks gradient and weight by address: it would move every weight by the gradient of
    another.
    """

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self.parameters = trainable(net)
        self._made_for = self._state()
        total, first = sum(p.numel() for p in self.parameters), self.parameters[0]
        self.flat = torch.zeros(total, dtype=first.dtype, device=first.device)
        self.views = views_of(self.flat, self.parameters)

    def _state(self) -> list[tuple[Any, ...]]:
        trained = [p for p in parameters(self.net) if p.requires_grad]
        return [(id(p), p.stride(), p.device, p.dtype, bool(p._backward_hooks)) for p in trained]

    @property
    def fits(self) -> bool:
        """False after parameters were moved, cast, laid out anew, replaced, hooked, frozen or
        thawed: make another."""
        return self._state() == self._made_for

    @torch.no_grad()
    def fill(self, gradients: Sequence[Tensor | None]) -> None:
        """Copy one gradient for each parameter. Each ``.grad`` is the view again.

        None is 0 in ``flat``, and None in ``.grad`` as autograd leaves it: an optimizer then
        passes the parameter over, with its decay and its counts.
        """
        pairs: list[tuple[Tensor, Tensor]] = []
        for parameter, view, gradient in zip(self.parameters, self.views, gradients, strict=True):
            if gradient is None:
                view.zero_()
                parameter.grad = None
                continue
            pairs.append((view, gradient))
            if parameter.grad is not view:
                parameter.grad = view
        if self.flat.is_cuda:
            _copy_together(pairs)
        else:
            for view, gradient in pairs:
                view.copy_(gradient)


def _copy_together(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Copy each second tensor into the first, in one launch for each type of the second ones.

    torch does so for tensors whose strides are those of their targets; any others take a launch
    each.
    """
    of_type: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
    for target, source in pairs:
        source = _strides_of(target, source)
        if source.stride() != target.stride():
            target.copy_(source)
            continue
        targets, sources = of_type.setdefault(source.dtype, ([], []))
        targets.append(target)
        sources.append(source)
    for targets, sources in of_type.values():
        torch._foreach_copy_(targets, sources)


def _strides_of(like: Tensor, x: Tensor) -> Tensor:
    """x with the strides of ``like``, if its numbers lie in memory as they say.

    Two tensors of one layout may differ in the strides of axes of length 1.
    """
    same = all(a == b for a, b, n in zip(x.stride(), like.stride(), x.shape, strict=True) if n != 1)
    return x.as_strided(like.shape, like.stride()) if same else x


def trainable(net: nn.Module) -> list[nn.Parameter]:
    """The parameters that require a gradient; InputError if there are none, or several types."""
    parameters = [p for p in net.parameters() if p.requires_grad]
    if not parameters:
        raise InputError(f"{type(net).__name__} has no parameter that requires a gradient")
    kinds = {p.dtype for p in parameters}
    if len(kinds) > 1:
        raise InputError(
            f"{type(net).__name__} has parameters of {' and '.join(map(str, kinds))}; "
            "expected one type"
        )
    return parameters


def views_of(flat: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Consecutive parts of ``flat`` (total,), each shaped and laid out as its parameter."""
    views, start = [], 0
    for p in parameters:
        part = flat[start : start + p.numel()]
        # A parameter with holes in memory has other strides than empty_like's.
        dense = torch.empty_like(p).stride() == p.stride()
        views.append(part.as_strided(p.shape, p.stride()) if dense else part.view(p.shape))
        start += p.numel()
    return views
