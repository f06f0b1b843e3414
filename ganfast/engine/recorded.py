"""Computations of networks as one compiled graph. Its arguments are the networks' tensors, and
the random numbers of their dropouts."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from ganfast.engine.check import ROUNDING, nothing_changed, relative_error
from ganfast.engine.compiled import compiled
from ganfast.errors import is_out_of_memory
from ganfast.log import logger
from ganfast.models.dropout import Dropout
from ganfast.models.members import HOOKS, holding, modes, modules, named_tensors, parameters

# a function, and the networks that are its first arguments
Way = tuple[Callable[..., Any], tuple[nn.Module, ...]]
_ATTEMPTS = 4  # a value that rounds across a kink in one batch does not in another
_MOST = 8  # graphs, one for each state of the networks: training or not, frozen or not


class Compiled:
    """``compiled(*args)`` is ``function(*nets, *args)`` by a compiler. Where that fails, the
    function itself takes over, with one warning.

    Args:
        name: of what it computes, for that line.
        way: of tensors and None; returns a tensor, or with ``trained`` a 0-d tensor and more of
            them by name.
        trained: differentiate what is returned by the trainable parameters of the first net: then
            the result is the list of gradients, in their order, and the rest.
    """

    def __init__(self, name: str, way: Way, trained: bool = False) -> None:
        self.name, self.way, self.trained, self.active = name, way, trained, True

    def tried(self, *args: Tensor | None) -> Any:
        """By the compiler; any error means that it cannot."""
        raise NotImplementedError

    def __call__(self, *args: Tensor | None) -> Any:
        problem: Exception | None = None
        if self.active:
            try:
                return self.tried(*args)
            except Exception as error:  # whatever a compiler comes up with
                # then it may be the capture's
                capturing = torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
                if is_out_of_memory(error) or capturing:
                    raise
                problem = error
        # a caller's mistake is raised here, in its own words, and costs no graph
        found = written(self.way, self.trained, *args)
        if problem is not None:
            named = "" if isinstance(problem, CannotRecord) else f"{type(problem).__name__}: "
            logger.warning(
                "%s: not compiled (%s%s)", self.name, named, " ".join(str(problem).split())[:200]
            )
            self.active = False
        return found


class Recorded(Compiled):
    """``recorded(*args)`` is ``function(*nets, *args)`` as one graph, computed with the tensors
    that the networks have at the call.

    Other state of the networks may change where `modes` sees it: each such state has a graph of its
    own. Buffers are updated as by the function. The first call of a graph is compared with the
    function; a graph that differs is not used.

    What else they compute with may change in ways that `modes` sees: there is a graph for each.
    Buffers are updated as the function does it. The first call of each graph is compared with the
    function, and a graph that differs not used.

    Args:
        name, way, trained: as of `Compiled`.
        exactly: the same in float32, where ``way`` computes in less: a graph may be as far from it
            as twice the function.
        check: compare.
    """

    def __init__(
        self,
        name: str,
        way: Way,
        trained: bool = False,
        exactly: Way | None = None,
        check: bool = True,
    ) -> None:
        super().__init__(name, way, trained)
        self._exactly, self._wants_check = exactly, check
        self._graphs: dict[Any, _Graph] = {}

    def tried(self, *args: Tensor | None) -> Any:
        return self._graph(args)(*args)

    def _graph(self, args: Sequence[Tensor | None]) -> "_Graph":
        _, nets = self.way
        seen = tuple(
            state
            for net in nets
            for state in (*modes(net), *[p.requires_grad for p in parameters(net)])
        )
        if seen not in self._graphs:
            if why := why_not_recorded(*nets):
                raise CannotRecord(why)
            if len(self._graphs) == _MOST:
                raise CannotRecord(f"its networks were changed {_MOST} times between steps")
            graph = _Graph(self.way, self.trained)
            if self._wants_check:
                self._check(graph, *args)
            self._graphs[seen] = graph
        return self._graphs[seen]

    def _check(self, graph: "_Graph", z: Any, *more: Any) -> None:
        for attempt in range(_ATTEMPTS):
            args = (0.99**attempt * z, *more)
            found, plain = (
                self._compared(graph, *args),
                self._compared(written, self.way, self.trained, *args),
            )
            exact = (
                plain
                if self._exactly is None
                else self._compared(written, self._exactly, self.trained, *args)
            )
            error = relative_error(found, exact)
            if error <= ROUNDING + 2 * relative_error(plain, exact):
                return
        raise CannotRecord(f"what a graph gives is {error:.2g} off what it should")

    def _compared(self, run: Callable[..., Any], *args: Any) -> list[Tensor]:
        """The gradients, or the result. Networks that draw random numbers draw the same in every
        call."""
        nets = nn.ModuleList([*self.way[1], *(self._exactly[1] if self._exactly else ())])
        with nothing_changed(nets):
            torch.manual_seed(0)
            found = run(*args)
        if not self.trained:
            return [found]
        trained = [p for p in parameters(self.way[1][0]) if p.requires_grad]
        return [
            torch.zeros_like(p) if g is None else g for g, p in zip(found[0], trained, strict=True)
        ]


class CannotRecord(Exception):
    """The reason why a graph is not used."""


def written(way: Way, trained: bool, *args: Tensor | None) -> Any:
    """The computation without a compiler. Where it is trained, autograd makes the gradients:
    None for a parameter without influence."""
    function, nets = way
    found = function(*nets, *args)
    if not trained:
        return found
    total, more = found
    return torch.autograd.grad(
        total, [p for p in parameters(nets[0]) if p.requires_grad], allow_unused=True
    ), more


class _Graph:
    """The function for one state of the networks."""

    def __init__(self, way: Way, trained: bool) -> None:
        self._function, nets = way
        self._nets, self._trained = nn.ModuleList(nets), trained
        self._trainable = (
            {id(p) for p in parameters(nets[0]) if p.requires_grad} if trained else set()
        )
        self._run = compiled(self._compute)
        self._taken: dict[Any, list[tuple[Dropout, Tensor]]] = {}

    @torch.no_grad()
    def __call__(self, *args: Any) -> Any:
        known = tuple(None if x is None else x.shape for x in args)
        if known not in self._taken:
            self._taken[known] = self._dropouts(args)
        tensors = {name: x.detach() for name, x in named_tensors(self._nets)}
        numbers = [
            layer.numbers(
                torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=args[0].device)
            )
            for layer, x in self._taken[known]
        ]
        return self._run(tensors, numbers, args)

    def _compute(
        self, tensors: dict[str, Tensor], numbers: list[Tensor], args: tuple[Tensor | None, ...]
    ) -> Any:
        taken = iter(numbers)
        names = [name for name, x in named_tensors(self._nets) if id(x) in self._trainable]
        leaves = {name: tensors[name].detach().requires_grad_() for name in names}
        dropped, held = (
            _each_dropout(self._nets, lambda layer, like: next(taken)),
            holding(self._nets, tensors | leaves),
        )
        with dropped, held, torch.set_grad_enabled(self._trained):
            found = self._function(*self._nets, *args)
            if not self._trained:
                return found
            total, more = found
            gradients = torch.autograd.grad(total, list(leaves.values()), materialize_grads=True)
        return list(gradients), {name: value.detach() for name, value in more.items()}

    def _dropouts(self, args: Sequence[Tensor | None]) -> list[tuple[Dropout, Tensor]]:
        """Every dropout in the order in which they draw, with the shape of its input. One call
        without a graph finds them."""
        found: list[tuple[Dropout, Tensor]] = []

        def note(layer: Dropout, like: Tensor) -> Tensor:
            found.append((layer, torch.empty_like(like, device="meta")))
            return Dropout.numbers(layer, like)

        if any(isinstance(m, Dropout) for m in modules(self._nets)):
            with nothing_changed(self._nets), _each_dropout(self._nets, note):
                self._function(*self._nets, *args)
        return found


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


_DRAWING = (
    nn.modules.dropout._DropoutNd | nn.RReLU | nn.FractionalMaxPool2d | nn.FractionalMaxPool3d
)
# have copies of their weights elsewhere, or dropouts that are no layers
_UNTRACED = nn.RNNBase | nn.MultiheadAttention


def why_not_recorded(*nets: nn.Module) -> str:
    """A sentence on the first layer whose graph might not compute what the layer does; "" =
    none."""
    for module in (m for net in nets for m in modules(net)):
        kind: Any = type(module).__bases__[0] if is_parametrized(module) else type(module)
        name, known = kind.__name__, ("torch.nn.", "ganfast.models.")
        if not kind.__module__.startswith(known) or not kind.forward.__module__.startswith(known):
            return f"{name} is a class of its own, which may compute something else in every step"
        if any(getattr(module, hooks) for hooks in HOOKS) or "forward" in vars(module):
            return f"{name} has hooks or a forward of its own"
        if isinstance(module, _DRAWING) and not isinstance(module, Dropout):
            return f"{name} draws numbers, and would draw others when compiled"
        if isinstance(module, _UNTRACED):
            return f"{name} keeps weights or dropouts that are no members of it"
    if any(p._backward_hooks for net in nets for p in parameters(net)):
        return "a parameter has hooks"
    return ""
