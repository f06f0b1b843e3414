"""What networks compute as one compiled graph, whose arguments are their tensors and the numbers of their dropouts."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ganfast.engine.check import nothing_changed
from ganfast.engine.compiled import compiled
from ganfast.models.dropout import Dropout
from ganfast.models.members import modes, modules, named_buffers, named_parameters

_KNOWN = ("torch.nn.", "ganfast.models.")  # packages whose layers compute the same in every step


class Recorded:
    """``recorded(*args)`` is ``function(*args)`` as one graph, with the tensors that ``nets`` have at the time.

    What is neither an argument nor a parameter or buffer of ``nets`` must not change, but for their training mode and hooks and
    what norms and dropouts have as attributes: then the graph is made anew. Buffers are updated as the function does it.

    Args:
        function: of tensors and None; returns tensors, or with ``trained`` a 0-d tensor and more of them by name.
        nets: whatever it computes with.
        trained: differentiate what it returned by the trainable parameters of the first net; in place of it comes the list of the
            gradients, in their order. None reaches a caller: a parameter without influence has zeros.
    """

    def __init__(self, function: Callable[..., Any], nets: Sequence[nn.Module], trained: bool = False) -> None:
        self._whole, self._trained = _Whole(function, nets), trained
        self._prepare()

    def _prepare(self) -> None:
        self._made_for = self._seen()
        self._graph = compiled(self._compute)
        self._taken: dict[Any, list[tuple[Dropout, Tensor]]] = {}

    def _seen(self) -> Any:
        return modes(self._whole), [p.requires_grad for _, p in named_parameters(self._whole)]

    def __call__(self, z: Tensor, *more: Tensor | None) -> Any:
        if self._made_for != self._seen():
            self._prepare()
        args = (z, *more)
        known = tuple(None if x is None else x.shape for x in args)
        with torch.no_grad():
            if known not in self._taken:
                self._taken[known] = self._dropped(args)
            tensors = {name: p.detach() for name, p in self._named()} | dict(named_buffers(self._whole))
            numbers = [
                layer.numbers(torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=z.device))
                for layer, x in self._taken[known]
            ]
            return self._graph(tensors, numbers, args)

    def _named(self) -> list[tuple[str, nn.Parameter]]:
        """Each parameter under its first name."""
        first: dict[int, tuple[str, nn.Parameter]] = {}
        for name, p in named_parameters(self._whole):
            first.setdefault(id(p), (name, p))
        return list(first.values())

    def _compute(self, tensors: dict[str, Tensor], numbers: list[Tensor], args: tuple[Tensor | None, ...]) -> Any:
        taken = iter(numbers)
        names = [name for name, p in self._named() if p.requires_grad and name.startswith("nets.0.")] if self._trained else []
        leaves = {name: tensors[name].detach().requires_grad_() for name in names}
        with _each_dropout(self._whole, lambda layer, like: next(taken)), torch.set_grad_enabled(self._trained):
            result = functional_call(self._whole, tensors | leaves, args)
            if not self._trained:
                return result
            total, more = result
            found = torch.autograd.grad(total, list(leaves.values()), materialize_grads=True)
        return list(found), {name: value.detach() for name, value in more.items()}

    def _dropped(self, args: tuple[Tensor | None, ...]) -> list[tuple[Dropout, Tensor]]:
        """Every dropout in the order in which they draw, with what it is given: found out by computing once, without a trace."""
        found: list[tuple[Dropout, Tensor]] = []

        def note(layer: Dropout, like: Tensor) -> Tensor:
            found.append((layer, torch.empty_like(like, device="meta")))
            return Dropout.numbers(layer, like)

        if any(isinstance(m, Dropout) for m in modules(self._whole)):
            with nothing_changed(self._whole), _each_dropout(self._whole, note):
                self._whole(*args)
        return found


class _Whole(nn.Module):
    """The function as a module that has the networks below it."""

    def __init__(self, function: Callable[..., Any], nets: Sequence[nn.Module]) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nets)
        self._function = function

    def forward(self, *args: Any) -> Any:
        return self._function(*args)


@contextmanager
def _each_dropout(net: nn.Module, numbers: Callable[[Dropout, Tensor], Tensor]) -> Iterator[None]:
    """Dropouts inside take their numbers from there."""
    layers = [m for m in modules(net) if isinstance(m, Dropout)]
    for layer in layers:
        layer.__dict__["numbers"] = lambda like, layer=layer: numbers(layer, like)
    try:
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("numbers")


def why_not_recorded(*nets: nn.Module) -> str:
    """Which layer of theirs a graph may not compute as it is written, as far as can be told, and why; "" = none."""
    for net in nets:
        for module in modules(net):
            kind = type(module)
            if not kind.__module__.startswith(_KNOWN):
                return f"{kind.__name__} is a class of its own, which may compute something else in every step"
            if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
                return f"a {kind.__name__} has hooks or a forward of its own"
            if isinstance(module, nn.modules.dropout._DropoutNd | nn.RReLU) and not isinstance(module, Dropout):
                return f"{kind.__name__} draws numbers, and would draw others when compiled"
    return ""
