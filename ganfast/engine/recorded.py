"""Computations of networks as one compiled graph.

Arguments of the graph are the networks' tensors and the random numbers of their dropouts.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from ganfast.engine.check import (
    ROUNDING,
    full_float32,
    nothing_changed,
    relative_error,
    tried_scale,
)
from ganfast.engine.compiled import compiled
from ganfast.errors import is_out_of_memory
from ganfast.log import logger
from ganfast.models.dropout import DRAWING, UNTRACED, Dropout
from ganfast.models.members import (
    HOOKS,
    holding,
    is_known_class,
    modes,
    modules,
    named_tensors,
    parameters,
)

# A function, and the networks that are its first arguments.
Computation = tuple[Callable[..., Any], tuple[nn.Module, ...]]
_ATTEMPTS = 4  # a value that rounds across a kink in one batch does not in another
_MOST = 8  # graphs, one for each state of the networks: training or not, frozen or not


class Compiled:
    """``compiled(*args)`` is ``function(*nets, *args)`` by a compiler. Where that fails, the
    function itself takes over, with one warning.

    Args:
        name: of the computation, for the warning.
        computation: takes tensors and None. It returns a tensor, or with ``trained`` a 0-d tensor
            and more of them by name.
        trained: differentiate the 0-d tensor by the trainable parameters of the first network. Then
            the result is the list of gradients, in the order of the parameters, and the rest.
    """

    def __init__(self, name: str, computation: Computation, trained: bool = False) -> None:
        self.name, self.computation, self.trained, self.active = name, computation, trained, True

    def tried(self, *args: Tensor | None) -> Any:
        """By the compiler; any error means that it cannot."""
        raise NotImplementedError

    def __call__(self, *args: Tensor | None) -> Any:
        problem: Exception | None = None
        if self.active:
            try:
                return self.tried(*args)
            except Exception as error:  # whatever a compiler comes up with
                # An error during a capture may be the capture's own.
                capturing = torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
                if is_out_of_memory(error) or capturing:
                    raise
                problem = error
        # A caller's mistake is raised here, in its own words, and switches no graph off.
        result = eager(self.computation, self.trained, *args)
        if problem is not None:
            kind = "" if isinstance(problem, CannotRecord) else f"{type(problem).__name__}: "
            reason = " ".join(str(problem).split())[:200]
            logger.warning("%s: not compiled (%s%s)", self.name, kind, reason)
            self.active = False
        return result


class Recorded(Compiled):
    """``recorded(*args)`` is ``function(*nets, *args)`` as one graph, computed with the tensors
    that the networks have at the call.

    Other state of the networks may change where `modes` sees it: each such state has a graph of its
    own. Buffers are updated as by the function. The first call of a graph is compared with the
    function; a graph that differs is not used.

    Args:
        name, computation, trained: as of `Compiled`.
        exactly: the same in float32, where ``computation`` computes in less. The graph's error
            against it may be twice that of the function.
        check: compare.
        scaled: the last argument is a scale of the loss, or None; see `check.tried_scale`.
    """

    def __init__(
        self,
        name: str,
        computation: Computation,
        trained: bool = False,
        exactly: Computation | None = None,
        check: bool = True,
        scaled: bool = False,
    ) -> None:
        super().__init__(name, computation, trained)
        self._exactly, self._wants_check, self._scaled = exactly, check, scaled
        self._graphs: dict[Any, _Graph] = {}

    def tried(self, *args: Tensor | None) -> Any:
        return self._graph(args)(*args)

    def _graph(self, args: Sequence[Tensor | None]) -> "_Graph":
        _, nets = self.computation
        frozen = [[p.requires_grad for p in parameters(net)] for net in nets]
        states = zip(map(modes, nets), frozen, strict=True)
        key = tuple(state for pair in states for part in pair for state in part)
        if key not in self._graphs:
            if why := why_not_recorded(*nets):
                raise CannotRecord(why)
            if len(self._graphs) == _MOST:
                raise CannotRecord(f"its networks were changed {_MOST} times between steps")
            graph = _Graph(self.computation, self.trained)
            if self._wants_check:
                self._check(graph, *args)
            self._graphs[key] = graph
        return self._graphs[key]

    def _check(self, graph: "_Graph", z: Any, *more: Any) -> None:
        for attempt in range(_ATTEMPTS):
            args = [0.99**attempt * z, *more]
            if self._scaled and args[-1] is not None:
                args[-1] = tried_scale(args[-1], attempt)
            by_graph = self._compared(graph, *args)
            exact = plain = self._compared(eager, self.computation, self.trained, *args)
            # A GPU may round the factors of float32 products to fewer bits, in eager autograd too.
            if self._exactly is not None or z.is_cuda:
                exactly = self._exactly or self.computation
                with full_float32():
                    exact = self._compared(eager, exactly, self.trained, *args)
            error = relative_error(by_graph, exact)
            if error <= ROUNDING + 2 * relative_error(plain, exact):
                return
        raise CannotRecord(f"what a graph gives is {error:.2g} off what it should")

    def _compared(self, run: Callable[..., Any], *args: Any) -> list[Tensor]:
        """The gradients, or the result. Random numbers are the same in every call."""
        nets = nn.ModuleList([*self.computation[1], *(self._exactly[1] if self._exactly else ())])
        with nothing_changed(nets):
            torch.manual_seed(0)
            result = run(*args)
        if not self.trained:
            return [result]
        pairs = zip(result[0], _trainable(self.computation), strict=True)
        return [torch.zeros_like(p) if g is None else g for g, p in pairs]


class CannotRecord(Exception):
    """The reason why a graph is not used."""


def eager(computation: Computation, trained: bool, *args: Tensor | None) -> Any:
    """The computation without a compiler; its gradients are None without influence."""
    function, nets = computation
    result = function(*nets, *args)
    if not trained:
        return result
    total, more = result
    return torch.autograd.grad(total, _trainable(computation), allow_unused=True), more


def _trainable(computation: Computation) -> list[nn.Parameter]:
    return [p for p in parameters(computation[1][0]) if p.requires_grad]


class _Graph:
    """The function for one state of the networks."""

    def __init__(self, computation: Computation, trained: bool) -> None:
        self._function, nets = computation
        self._nets, self._trained = nn.ModuleList(nets), trained
        self._trainable = {id(p) for p in _trainable(computation)} if trained else set()
        self._run = compiled(self._compute)
        self._inputs: dict[Any, list[tuple[Dropout, Tensor]]] = {}

    @torch.no_grad()
    def __call__(self, *args: Any) -> Any:
        shapes = tuple(None if x is None else x.shape for x in args)
        if shapes not in self._inputs:
            self._inputs[shapes] = self._dropouts(args)
        tensors = {name: x.detach() for name, x in named_tensors(self._nets)}
        numbers = [
            layer.numbers(torch.empty_like(x, device=args[0].device))
            for layer, x in self._inputs[shapes]
        ]
        return self._run(tensors, numbers, args)

    def _compute(
        self, tensors: dict[str, Tensor], numbers: list[Tensor], args: tuple[Tensor | None, ...]
    ) -> Any:
        drawn = iter(numbers)
        names = [name for name, x in named_tensors(self._nets) if id(x) in self._trainable]
        leaves = {name: tensors[name].detach().requires_grad_() for name in names}
        dropped = _each_dropout(self._nets, lambda layer, like: next(drawn))
        held = holding(self._nets, tensors | leaves)
        graded = torch.set_grad_enabled(self._trained)
        with dropped, held, _batches_counted_at_once(self._nets), graded:
            result = self._function(*self._nets, *args)
            if not self._trained:
                return result
            total, more = result
            gradients = torch.autograd.grad(total, list(leaves.values()), materialize_grads=True)
        return list(gradients), {name: value.detach() for name, value in more.items()}

    def _dropouts(self, args: Sequence[Tensor | None]) -> list[tuple[Dropout, Tensor]]:
        """Every dropout in the order of drawing, with its input, from one call without a graph."""
        inputs: list[tuple[Dropout, Tensor]] = []

        def note(layer: Dropout, like: Tensor) -> Tensor:
            inputs.append((layer, torch.empty_like(like, device="meta")))
            return Dropout.numbers(layer, like)

        if any(isinstance(m, Dropout) for m in modules(self._nets)):
            with nothing_changed(self._nets), _each_dropout(self._nets, note):
                self._function(*self._nets, *args)
        return inputs


@contextmanager
def _each_dropout(net: nn.Module, numbers: Callable[[Dropout, Tensor], Tensor]) -> Iterator[None]:
    """The dropouts of ``net`` take their random numbers from ``numbers`` inside."""
    layers = [m for m in modules(net) if isinstance(m, Dropout)]
    for layer in layers:
        layer.__dict__["numbers"] = lambda like, layer=layer: numbers(layer, like)
    try:
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("numbers")


class _Calls:
    """Stands for a batch norm's counter of batches while a graph is recorded."""

    def __init__(self) -> None:
        self.count = 0

    def add_(self, calls: int) -> None:
        self.count += calls


@contextmanager
def _batches_counted_at_once(net: nn.Module) -> Iterator[None]:
    """The counters of all batch norms are raised in one operation, when the block is through.

    On a GPU each of them would be a launch of its own, which adds 1 to one number.
    """
    layers: list[Any] = [
        m
        for m in modules(net)
        if isinstance(m, nn.modules.batchnorm._BatchNorm)
        # Without a momentum the counter is read as well.
        and m.momentum is not None
        and m.num_batches_tracked is not None
    ]
    counters = [layer.num_batches_tracked for layer in layers]
    calls = [_Calls() for _ in layers]
    for layer, own in zip(layers, calls, strict=True):
        layer._buffers["num_batches_tracked"] = own
    try:
        yield
    finally:
        for layer, counter in zip(layers, counters, strict=True):
            layer._buffers["num_batches_tracked"] = counter
    for count in {own.count for own in calls if own.count}:
        of_count = [c for c, own in zip(counters, calls, strict=True) if own.count == count]
        torch._foreach_add_(of_count, count)


def why_not_recorded(*nets: nn.Module) -> str:
    """Why a graph might not compute what the networks' layers do; "" = no reason known."""
    for module in (m for net in nets for m in modules(net)):
        kind: Any = type(module).__bases__[0] if is_parametrized(module) else type(module)
        name = kind.__name__
        if not is_known_class(kind):
            return f"{name} is a class of its own, which may compute something else in every step"
        if any(getattr(module, hooks) for hooks in HOOKS) or "forward" in vars(module):
            return f"{name} has hooks or a forward of its own"
        if isinstance(module, DRAWING) and not isinstance(module, Dropout):
            return f"{name} draws numbers, and would draw others when compiled"
        if isinstance(module, UNTRACED):
            return f"{name} keeps weights or dropouts that are no members of it"
    if any(p._backward_hooks for net in nets for p in parameters(net)):
        return "a parameter has hooks"
    return ""
