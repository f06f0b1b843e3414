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

    `make_fx` records it below autograd, with every derivative inside, because torch.compile does
    not differentiate twice. So the function must compute its own gradients, depend on its arguments
    alone, and return tensors. The recorded graph goes to inductor without torch.compile: its guards
    would take a tenth of a small network's step.
    """
    compiled_for: dict[Any, tuple[Callable[..., Any], Any]] = {}

    def run(*args: Any) -> Any:
        tensors: list[Tensor] = []
        settings = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
        key = _kind(args, tensors), *settings
        with _without_autocast(tensors):
            if key not in compiled_for:
                compiled_for[key] = _compile(function, args, tensors)
            graph, shape = compiled_for[key]
            return _rebuilt(shape, graph(*tensors))

    return run


def _without_autocast(tensors: list[Tensor]) -> AbstractContextManager[Any]:
    """A recorded graph holds its own casts: a caller's autocast would cast once more."""
    kind = tensors[0].device.type if tensors else "cpu"
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def _kind(x: Any, tensors: list[Tensor]) -> Any:
    """An argument's part of a graph's key. Appends its tensors in the order of torch's pytrees."""
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

    def flat(*inputs: Tensor) -> list[Tensor]:
        nonlocal shape
        it = iter(inputs)
        filled = [next(it) if isinstance(x, Tensor) else x for x in leaves]
        outputs, spec = tree_flatten(function(*tree_unflatten(filled, structure)))
        shape = tree_unflatten(range(len(outputs)), spec)
        return outputs

    with torch.no_grad():
        inputs: list[Any] = [t.detach() for t in tensors]  # the same tensor twice is two inputs
        graph = inductor(make_fx(flat, tracing_mode="fake")(*inputs), inputs)
    graphs[getattr(function, "__name__", type(function).__name__)] += 1
    return graph, shape


def _rebuilt(shape: Any, tensors: Any) -> Any:
    """The tensors at their places."""
    if isinstance(shape, int):
        return tensors[shape]
    if isinstance(shape, dict):
        return {name: _rebuilt(value, tensors) for name, value in shape.items()}
    return type(shape)(_rebuilt(value, tensors) for value in shape)
