"""The modules and tensors of a network as lists in torch's order.

torch's own walks take longer than a small network's layers, in every step.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


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
    places: list[Any] = []
    for module in modules(net):
        places += module._parameters, module._buffers
    before = [dict(held) for held in places]
    try:
        for held in places:
            held.update({name: other[id(own)] for name, own in held.items() if id(own) in other})
        yield
    finally:
        for held, own in zip(places, before, strict=True):
            held.update(own)


_ATTRIBUTES = "momentum", "eps", "p", "negative_slope"
HOOKS = "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"


def modes(net: nn.Module) -> list[tuple[Any, ...]]:
    """State of modules that a user may change between two steps, and that a step relies on."""
    states = []
    for module in modules(net):
        own, kind = module.__dict__, type(module)
        values = [
            own[name] if name in own else getattr(module, name) if hasattr(kind, name) else None
            for name in _ATTRIBUTES
        ]
        states.append((id(module), module.training, *values, *[len(own[name]) for name in HOOKS]))
    return states
