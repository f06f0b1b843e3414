"""The modules and tensors of a network as lists in torch's order.

torch's own walks take longer than a small network's layers, in every step.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from types import FunctionType
from typing import Any, cast

import numpy as np
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized


def paths(net: nn.Module, prefix: str = "") -> list[tuple[str, nn.Module]]:
    """Every module below by its path, ``net`` first; one that is shared under each of its paths."""
    below = [(prefix, net)]
    for name, child in net._modules.items():
        if child is not None:
            below += paths(child, f"{prefix}.{name}" if prefix else name)
    return below


def modules(net: nn.Module) -> list[nn.Module]:
    """Every module below, ``net`` first, each once."""
    seen: dict[int, nn.Module] = {}

    def visit(module: nn.Module) -> None:
        if id(module) not in seen:
            seen[id(module)] = module
            for child in module._modules.values():
                if child is not None:
                    visit(child)

    visit(net)
    return list(seen.values())


def named_parameters(net: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Every parameter by its name; one that is shared under each of its names."""
    return [
        (f"{path}.{name}" if path else name, parameter)
        for path, module in paths(net)
        for name, parameter in module._parameters.items()
        if parameter is not None
    ]


def parameters(net: nn.Module) -> list[nn.Parameter]:
    """Every parameter, each once."""
    held = [p for module in modules(net) for p in module._parameters.values()]
    return list({id(p): p for p in held if p is not None}.values())


def named_tensors(net: nn.Module) -> list[tuple[str, Tensor]]:
    """Every parameter and buffer, each once, by its first name; those of a module together."""
    first: dict[int, tuple[str, Tensor]] = {}
    for path, module in paths(net):
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    first.setdefault(id(tensor), (f"{path}.{name}" if path else name, tensor))
    return list(first.values())


@contextmanager
def holding(net: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside, the net has ``tensors`` in place of its own, by the first name of each.

    `torch.func.functional_call` does not do: a module that has two paths keeps its replacements.
    """
    other = {id(own): tensors[name] for name, own in named_tensors(net) if name in tensors}
    replaced: list[tuple[Any, str, Any]] = []
    for module in modules(net):
        for held in (module._parameters, module._buffers):
            replaced += [(held, name, own) for name, own in held.items() if id(own) in other]
    try:
        for held, name, own in replaced:
            held[name] = other[id(own)]
        yield
    finally:
        for held, name, own in replaced:
            if held.get(name) is other[id(own)]:  # a buffer that the forward assigned stays
                held[name] = own


HOOKS = "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"
_GLOBAL_HOOKS = (
    *("_global_forward_hooks", "_global_forward_pre_hooks"),
    *("_global_backward_hooks", "_global_backward_pre_hooks"),
)


class _Plain(dict[type, bool]):
    """Whether values of a class are options that can be compared. Looked up once for each class:
    `isinstance` would double the time of `modes`."""

    def __missing__(self, kind: type) -> bool:
        options = bool, int, float, str, tuple, list, type(None), np.generic
        self[kind] = issubclass(kind, options)
        return self[kind]


_plain = _Plain()


def has_batch_norm(net: nn.Module) -> bool:
    """Whether a network has statistics of its batch, which ranks do not share."""
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in net.modules())


def is_known(net: nn.Module) -> bool:
    """Whether every module is of a class of torch's or ours, and computes what its class does.

    Such a network reads no more from Python than `modes` compares.
    """
    return all(map(_is_known, modules(net)))


def is_hooked(net: nn.Module) -> bool:
    """Whether hooks may change gradients where no graph shows it: those of parameters, and those
    that torch calls for every module."""
    everywhere = any(getattr(nn.modules.module, name) for name in _GLOBAL_HOOKS)
    return everywhere or any(p._backward_hooks for p in parameters(net))


def _is_known(module: nn.Module) -> bool:
    kind: Any = type(module).__bases__[0] if is_parametrized(module) else type(module)
    hooks = any(getattr(module, hooks) for hooks in HOOKS)
    return is_known_class(kind) and not hooks and "forward" not in vars(module)


@cache
def is_known_class(kind: Any) -> bool:
    """Whether a class of modules, and its forward, are torch's or ours."""
    known = "torch.nn.", "ganfast.models."
    return kind.__module__.startswith(known) and kind.forward.__module__.startswith(known)


def modes(net: nn.Module) -> list[tuple[Any, ...]]:
    """State of modules that a user may change between two steps, and that a step relies on: options
    of known classes, training or not, hooks, and which modules there are."""
    states: list[tuple[Any, ...]] = [
        tuple([len(getattr(nn.modules.module, name)) for name in _GLOBAL_HOOKS])
    ]
    others: set[Any] = set()
    for module in modules(net):
        own, kind = module.__dict__, cast(Any, type(module))
        options: list[Any] = [module.training]
        if is_known_class(kind):
            values = [v for v in own.values() if _plain[v.__class__]]
            options = [tuple(v) if v.__class__ is list else v for v in values]
        else:
            others.add(kind)
        states.append((id(module), len(own), *options, *[len(own.get(name, ())) for name in HOOKS]))
    # What a recorder guards in a class of somebody else's are its attributes, not its methods.
    for kind in others:
        bases = [base for base in kind.__mro__ if not base.__module__.startswith("torch.")]
        functions = [f for base in bases for f in vars(base).values() if type(f) is FunctionType]
        states.append((kind, *functions))
    return states
