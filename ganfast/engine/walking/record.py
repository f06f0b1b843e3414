"""The graph of a recorded forward, whoever recorded it, and what its nodes tell."""

from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn


@dataclass
class Record:
    """A recorded forward, whoever recorded it."""

    root: nn.Module  # which holds what the graph calls
    graph: fx.Graph
    pictures: fx.Node
    labels: set[fx.Node]
    answers: tuple[fx.Node, ...]
    takes_labels: bool
    # of a trace only
    batch: set[fx.Node] = field(default_factory=set)
    tensors: dict[fx.Node, str] = field(default_factory=dict)
    constants: set[fx.Node] = field(default_factory=set)  # tensors that are no parameters
    drawing: set[fx.Node] = field(default_factory=set)

    @property
    def traced(self) -> bool:
        return "example_value" in self.pictures.meta


def sets_gradients(node: fx.Node) -> bool:
    return node.target is torch._C._set_grad_enabled


def is_context(node: fx.Node) -> bool:
    """Whether the node makes nothing, but changes how later ones compute."""
    silent = node.target is torch._C._log_api_usage_once
    return node.op == "call_function" and not silent and node.meta.get("example_value") is None


def module_of(node: fx.Node) -> tuple[str, str]:
    """The path in the critic, and the class, of the module that a traced node was called in."""
    places = [("", ""), *(node.meta.get("nn_module_stack") or {}).values()]
    path, kind = places[-1]
    return path.partition("]")[2].lstrip("."), getattr(kind, "__name__", kind)


def kind_of(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target))


def shape_of(node: fx.Node) -> tuple[Any, ...]:
    return tuple(getattr(node.meta["example_value"], "shape", ()))


def ancestors(nodes: Sequence[fx.Node], known: Container[fx.Node] = ()) -> set[fx.Node]:
    """The nodes, and what they are made of as far as it is not known."""
    found: set[fx.Node] = set()
    pending = list(nodes)
    while pending:
        node = pending.pop()
        if node not in found and node not in known:
            found.add(node)
            pending += node.all_input_nodes
    return found
