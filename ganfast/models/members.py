"""What a network is made of, as lists in torch's order: its own walks take longer than a small network's layers, in every step."""

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
    found = {id(p): p for module in modules(net) for p in module._parameters.values() if p is not None}
    return list(found.values())


def named_buffers(net: nn.Module) -> list[tuple[str, Tensor]]:
    """Every buffer by its name; one that is shared under each of its names."""
    return [
        (f"{path}.{name}" if path else name, buffer)
        for path, module in paths(net)
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]


def modes(net: nn.Module) -> list[tuple[Any, ...]]:
    """What may be changed of modules between two steps that a step has taken into account when it was made."""
    said = [(module.__dict__, module) for module in modules(net)]
    return [
        (m.training, d.get("momentum"), d.get("eps"), d.get("p"), len(m._forward_hooks), len(m._forward_pre_hooks)) for d, m in said
    ]
