"""The modules and tensors of a network as lists in torch's order.

torch's own walks take longer than a small network's layers, in every step.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


def paths(net: nn.Module, prefix: str = "") -> list[tuple[str, nn.Module]]:
    """Every module below by its path, ``net`` first; one that is shared under each of its paths."""
    found = [(prefix, net)]
    for name, child in net._modules.items():
        if child is not None:
            found += paths(child, f"{prefix}.{name}" if prefix else name)
    return found


def modules(net: nn.Module) -> list[nn.Module]:
    """Every module below, ``net`` first, each once."""
    found: dict[int, nn.Module] = {}

    def visit(module: nn.Module) -> None:
        if id(module) not in found:
            found[id(module)] = module
            for child in module._modules.values():
                if child is not None:
                    visit(child)

    visit(net)
    return list(found.values())


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
    found = {
        id(p): p for module in modules(net) for p in module._parameters.values() if p is not None
    }
    return list(found.values())


def named_tensors(net: nn.Module) -> list[tuple[str, Tensor]]:
    """Every parameter and buffer, each once, by its first name; those of a module together."""
    found: dict[int, tuple[str, Tensor]] = {}
    for path, module in paths(net):
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    found.setdefault(id(tensor), (f"{path}.{name}" if path else name, tensor))
    return list(found.values())


@contextmanager
def holding(net: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Parameters and buffers are these inside, by the first name of each; others stay.

    `torch.func.functional_call` leaves a module that has two paths with the tensors it was given.
    """
    given = {id(own): tensors[name] for name, own in named_tensors(net) if name in tensors}
    places: list[Any] = [
        held for module in modules(net) for held in (module._parameters, module._buffers)
    ]
    before = [dict(held) for held in places]
    try:
        for held in places:
            held.update({name: given[id(own)] for name, own in held.items() if id(own) in given})
        yield
    finally:
        for held, own in zip(places, before, strict=True):
            held.update(own)


_ATTRIBUTES = "momentum", "eps", "p", "negative_slope"
HOOKS = "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"


def modes(net: nn.Module) -> list[tuple[Any, ...]]:
    """State of modules that a user may change between two steps, and that a step relies on."""
    found = []
    for module in modules(net):
        own, kind = module.__dict__, type(module)
        values = [
            own[name] if name in own else getattr(module, name) if hasattr(kind, name) else None
            for name in _ATTRIBUTES
        ]
        found.append((id(module), module.training, *values, *[len(own[name]) for name in HOOKS]))
    return found
