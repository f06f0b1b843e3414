"""A function of tensors as one compiled graph, traced anew for every shape it meets."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_flatten, tree_unflatten


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as torch.compile makes it, in one graph for each set of shapes.

    It is recorded below autograd first (`make_fx`), with every derivative that it takes inside, because torch.compile does not
    differentiate twice. So it must compute its own gradients, depend on its arguments alone, and return tensors.
    """
    graphs: dict[Any, tuple[Callable[..., Any], Any]] = {}

    def run(*args: Any) -> Any:
        leaves, structure = tree_flatten(args)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        key = (structure, *((t.shape, t.stride(), t.dtype, t.device) if isinstance(t, Tensor) else t for t in leaves))
        if key not in graphs:
            result: list[Any] = []

            def flat(*given: Tensor) -> list[Tensor]:
                it = iter(given)
                made, shape = tree_flatten(
                    function(*tree_unflatten([next(it) if isinstance(x, Tensor) else x for x in leaves], structure))
                )
                result[:] = [shape]
                return made

            traced = make_fx(flat, tracing_mode="fake")(*(t.detach() for t in tensors))  # the same tensor twice is two inputs
            graphs[key] = torch.compile(traced, fullgraph=True, dynamic=False), result[0]
        graph, shape = graphs[key]
        return tree_unflatten(graph(*tensors), shape)

    return run
