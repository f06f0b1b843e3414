"""A function of tensors as one compiled graph, traced anew for every shape it meets."""

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_flatten, tree_unflatten

graphs: Counter[str] = Counter()  # compiled since the start, by the name of what they compute


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as torch's compiler makes it, in one graph for each set of shapes.

    It is recorded below autograd (`make_fx`), with every derivative that it takes inside, because
    torch.compile does not differentiate twice. So it must compute its own gradients, depend on its
    arguments alone, and return tensors. What is recorded goes to inductor as it is: torch.compile's
    guards would take a tenth of a small network's step to find what is known here.
    """
    made: dict[Any, tuple[Callable[..., Any], Any]] = {}

    def run(*args: Any) -> Any:
        tensors: list[Tensor] = []
        key = (
            _kind(args, tensors),
            torch.get_num_threads(),
            torch.are_deterministic_algorithms_enabled(),
        )
        with _without_autocast(tensors):
            if key not in made:
                made[key] = _compile(function, args, tensors)
            graph, shape = made[key]
            return _rebuilt(shape, graph(*tensors))

    return run


def _without_autocast(tensors: list[Tensor]) -> AbstractContextManager[Any]:
    """A recorded graph holds its own casts. A caller's autocast would cast again, also in the
    kernels that a finished graph calls."""
    kind = tensors[0].device.type if tensors else "cpu"
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def _kind(x: Any, tensors: list[Tensor]) -> Any:
    """The part of a graph's key that an argument decides, hashable. Its tensors are appended to
    ``tensors`` in the order of torch's pytrees."""
    if isinstance(x, Tensor):
        tensors.append(x)
        return x.shape, x.stride(), x.dtype, x.device
    if isinstance(x, dict):
        return tuple([(name, _kind(value, tensors)) for name, value in x.items()])
    if isinstance(x, tuple | list):
        return tuple([_kind(value, tensors) for value in x])
    return x


def _compile(
    function: Callable[..., Any], args: Any, tensors: list[Tensor]
) -> tuple[Callable[..., Any], Any]:
    """The graph, and what it returns with the places of its tensors in them."""
    from torch._inductor import compile as inductor  # here: it takes a second to import

    leaves, structure = tree_flatten(args)
    shape: Any = None

    def flat(*given: Tensor) -> list[Tensor]:
        nonlocal shape
        it = iter(given)
        result = function(
            *tree_unflatten([next(it) if isinstance(x, Tensor) else x for x in leaves], structure)
        )
        found, spec = tree_flatten(result)
        shape = tree_unflatten(range(len(found)), spec)
        return found

    with torch.no_grad():
        given: list[Any] = [t.detach() for t in tensors]  # the same tensor twice is two inputs
        graph = inductor(make_fx(flat, tracing_mode="fake")(*given), given)
    graphs[getattr(function, "__name__", type(function).__name__)] += 1
    return graph, shape


def _rebuilt(shape: Any, tensors: Any) -> Any:
    """The tensors at their places."""
    if isinstance(shape, int):
        return tensors[shape]
    if isinstance(shape, dict):
        return {name: _rebuilt(value, tensors) for name, value in shape.items()}
    return type(shape)(_rebuilt(value, tensors) for value in shape)
