"""From any `nn.Module` to the steps of the explicit engine.

torch.fx records the operations of its forward; each becomes a `Layer`, if `translate` knows it.
"""

import inspect
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ganfast.engine.layers import LabelColumn, Layer, Sum
from ganfast.engine.norms import BatchNorm
from ganfast.engine.translate import function_layers, module_layers

Value = int  # an entry of the list of values that a walk fills; 0 is the picture


@dataclass
class Step:
    """value[output] = layer(values[inputs]). A LabelColumn also reads ``label_index(labels)``."""

    name: str  # where it stands in the module
    layer: Layer
    inputs: tuple[Value, ...]
    output: Value
    label_index: Callable[[Tensor], Tensor] | None = None


@dataclass
class Tail:
    """The end of a critic that is not walked: from some values, and labels, to the answer."""

    module: fx.GraphModule
    inputs: tuple[Value, ...]
    takes_labels: bool
    weights: tuple[str, ...]  # names of the critic's tensors that it reads


@dataclass
class Walk:
    """A critic as steps, then either its outputs or a tail."""

    steps: list[Step] = field(default_factory=list)
    outputs: tuple[Value, ...] = ()  # score, and class logits if there are some; () with a tail
    tail: Tail | None = None
    refused: list[str] = field(default_factory=list)  # "name (kind)" of what the tail had to take

    @property
    def curved(self) -> bool:
        """Whether a linearisation depends on its input. A penalty then has more terms."""
        return self.tail is not None or any(step.layer.curved for step in self.steps)

    @property
    def separable(self) -> bool:
        """Whether samples are known not to meet: then some can be computed without the others."""
        mixes = any(step.layer.mixes for step in self.steps)
        return self.tail is None and not self.draws and not mixes

    @property
    def draws(self) -> bool:
        """Whether a layer draws random numbers. A sample's numbers then depend on its batch."""
        return any(step.layer.draws for step in self.steps)

    @property
    def normed(self) -> list[BatchNorm]:
        """The batch norms, whose running statistics a step moves."""
        return [step.layer for step in self.steps if isinstance(step.layer, BatchNorm)]

    @property
    def count(self) -> int:
        return 1 + max((step.output for step in self.steps), default=0)


class CannotWalk(Exception):
    """Why the explicit engine does not take a critic."""


def walk(critic: nn.Module) -> Walk:
    """The steps of a critic in the order of its forward pass.

    Raises:
        CannotWalk: Python control flow on values, or nothing before the first unknown layer; names
            the layers.
    """
    tracer = _Tracer()
    if critic._forward_hooks or critic._forward_pre_hooks:
        raise CannotWalk(f"hooks change what goes into {type(critic).__name__} or comes out")
    try:
        graph = tracer.trace(critic, concrete_args=_unused_arguments(critic))
    except Exception as error:  # whatever a user's forward does when it is given symbols
        reason = " ".join(str(error).split())[:200]
        name = type(critic).__name__
        raise CannotWalk(f"the forward of {name} cannot be recorded: {reason}") from error
    _refuse_unread_statistics(critic, graph)
    fx.GraphModule(critic, graph)  # the graph asks its module which nodes have side effects
    graph.eliminate_dead_code()
    takes_labels = bool(getattr(critic, "takes_labels", False))
    result = _Walker(critic, graph, takes_labels).walk()
    if result.draws and result.tail is not None:
        # The tail may draw as well, between the layers' draws: then no layer that draws is walked.
        result = _Walker(critic, graph, takes_labels, draws=False).walk()
    return result


def _refuse_unread_statistics(critic: nn.Module, graph: fx.Graph) -> None:
    """Refuse a batch norm whose result nobody reads: its statistics move, but a walk drops it."""
    for node in graph.nodes:
        if node.op == "call_module" and not node.users:
            norm = critic.get_submodule(str(node.target))
            if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.training:
                raise CannotWalk(f"nobody reads what {node.target} ({type(norm).__name__}) gives")


def _unused_arguments(critic: nn.Module) -> dict[str, Any]:
    """Arguments that a critic without labels is not called with, by their defaults.

    The defaults decide branches of its forward, which symbols could not.
    """
    if getattr(critic, "takes_labels", False):
        return {}
    parameters = list(inspect.signature(critic.forward).parameters.values())[1:]
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


class _Tracer(fx.Tracer):
    """Records known layers whole and looks into other modules.

    A module whose forward fails on symbols is recorded whole too, for the tail.
    """

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) is not nn.Sequential and (
            module_layers(m, "") is not None or super().is_leaf_module(m, module_qualified_name)
        )

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            return self.create_proxy("call_module", self.path_of_module(m), args, kwargs)


class _Walker:
    """Turns the recorded graph into steps.

    A node that cannot be walked becomes the tail, with all nodes that need its value.
    """

    def __init__(
        self, critic: nn.Module, graph: fx.Graph, takes_labels: bool, draws: bool = True
    ) -> None:
        self.critic, self.graph, self.takes_labels, self.draws = critic, graph, takes_labels, draws
        self.modules = dict(critic.named_modules())
        self.values: dict[fx.Node, Value] = {}
        self.label_nodes: set[fx.Node] = set()
        self.result = Walk()

    def walk(self) -> Walk:
        placeholders = [n for n in self.graph.nodes if n.op == "placeholder"]
        self.values[placeholders[0]] = 0
        self.label_nodes |= set(placeholders[1:])
        unknown: list[fx.Node] = []
        output = next(n for n in self.graph.nodes if n.op == "output")
        answer = output.args[0]
        for node in self.graph.nodes:
            if node.op in ("placeholder", "output"):
                continue
            if node is answer and isinstance(node.target, type) and issubclass(node.target, tuple):
                answer = node.args  # a named tuple is a tuple
                continue
            inputs = node.all_input_nodes
            if node.op != "call_module" and inputs and all(n in self.label_nodes for n in inputs):
                self.label_nodes.add(node)
            elif not self._step(node):
                unknown.append(node)
        if unknown:
            begins = [n for n in unknown if any(i in self.values for i in n.all_input_nodes)]
            self.result.refused = [self._described(n) for n in begins]
            if not self.result.steps:
                first = ", ".join(self.result.refused[:3])
                raise CannotWalk(f"it begins with {first}, which the explicit engine does not know")
            self.result.tail = self._tail(output)
        else:
            answers = answer if isinstance(answer, tuple | list) else (answer,)
            self.result.outputs = tuple(self.values[a] for a in answers if a is not None)
        return self.result

    def _step(self, node: fx.Node) -> bool:
        """Append the node's steps; False when it cannot be walked."""
        inputs = node.all_input_nodes
        if self._overwrites(node) and len(inputs[0].users) > 1:
            return False
        if not inputs or inputs[0] not in self.values:
            return False
        if node.target in (operator.add, torch.add, operator.iadd):
            return self._sum(node)
        if node.op != "call_module" and node.target in ("gather", torch.gather):
            return self._label_column(node)
        if len(inputs) != 1:
            return False
        if node.op == "call_module":
            layers, name = self._module(node), str(node.target)
        else:
            layers, name = function_layers(node), node.name
        if layers is None:
            return False
        self.values[node] = self.values[inputs[0]]
        for layer in layers:
            self._append(node, name, layer, (self.values[node],))
        return True

    def _module(self, node: fx.Node) -> list[Layer] | None:
        layers = module_layers(self.modules[str(node.target)], str(node.target))
        if any(layer.mixes for layer in layers or ()) and self._uses(node) > 1:
            return None  # the order in which its running statistics move is autograd's to keep
        if any(layer.draws for layer in layers or ()) and not self.draws:
            return None
        return layers

    def _sum(self, node: fx.Node) -> bool:
        both = [self.values.get(n) for n in node.args if isinstance(n, fx.Node)]
        inputs = tuple(v for v in both if v is not None)
        if len(node.args) != 2 or node.kwargs or len(inputs) != 2:
            return False
        self._append(node, node.name, Sum(), inputs)
        return True

    def _label_column(self, node: fx.Node) -> bool:
        if len(node.args) != 3 or node.args[1] != 1 or node.args[2] not in self.label_nodes:
            return False
        label_index = self._label_function(node.args[2])
        value = self.values[node.all_input_nodes[0]]
        self._append(node, node.name, LabelColumn(), (value,), label_index)
        return True

    def _uses(self, node: fx.Node) -> int:
        return sum(
            other.op == "call_module" and other.target == node.target for other in self.graph.nodes
        )

    def _overwrites(self, node: fx.Node) -> bool:
        """Whether the node changes its input in place, which matters to other readers of it."""
        if node.op == "call_module":
            return bool(getattr(self.modules[str(node.target)], "inplace", False))
        return bool(node.kwargs.get("inplace", False)) or (
            len(node.args) > 2 and node.target is F.leaky_relu and bool(node.args[2])
        )

    def _append(
        self,
        node: fx.Node,
        name: str,
        layer: Layer,
        inputs: tuple[Value, ...],
        label_index: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.values[node] = self.result.count
        self.result.steps.append(Step(name, layer, inputs, self.values[node], label_index))

    def _label_function(self, index: Any) -> Callable[[Tensor], Tensor]:
        """The part of the graph that makes node ``index`` of the labels alone."""
        graph = fx.Graph()
        copied: dict[fx.Node, fx.Node] = {}
        for node in self.graph.nodes:
            if node in self.label_nodes:
                copied[node] = graph.node_copy(node, lambda n: copied[n])
        graph.output(copied[index])
        return fx.GraphModule(self.critic, graph)

    def _tail(self, output: fx.Node) -> Tail:
        """A module of all nodes that are not walked. It takes the walked values that they read."""
        rest = [n for n in self.graph.nodes if n not in self.values and n not in self.label_nodes]
        read = [n for n in self.values if any(user in rest for user in n.users)]
        graph = fx.Graph()
        copied = {n: graph.placeholder(f"value_{i}") for i, n in enumerate(read)}
        labels = [n for n in self.graph.nodes if n in self.label_nodes]
        for node in [*labels, *(n for n in rest if n is not output)]:
            copied[node] = graph.node_copy(node, lambda n: copied[n])
        graph.output(fx.map_arg(output.args[0], lambda n: copied[n]))
        module = fx.GraphModule(self.critic, graph)
        weights = tuple(name for name, _ in module.named_parameters())
        return Tail(module, tuple(self.values[n] for n in read), self.takes_labels, weights)

    def _described(self, node: fx.Node) -> str:
        if node.op == "call_module":
            return f"{node.target} ({type(self.modules[str(node.target)]).__name__})"
        return f"{node.name} ({getattr(node.target, '__name__', node.target)})"
