"""From the graph of a recorded forward to the steps of the explicit engine."""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from ganfast.engine.layers import LabelColumn, Layer, Linear, Reshape, Scale, Sum
from ganfast.engine.maps import Add, Folded, Joined, LabelRows, Multiply, Shift, unfolded
from ganfast.engine.walking.functions import (
    Fixed,
    changes_nothing,
    column,
    function_layers,
    is_reshape,
)
from ganfast.engine.walking.gains import gains_in_weights
from ganfast.engine.walking.record import (
    Record,
    ancestors,
    kind_of,
    module_of,
    sets_gradients,
    shape_of,
)
from ganfast.engine.walking.steps import CannotWalk, Making, Step, Tail, Value, Walk
from ganfast.engine.walking.translate import module_layers

_ADD = operator.add, operator.iadd, torch.add, "add"
_SUBTRACT = operator.sub, operator.isub, torch.sub, torch.subtract, "sub", "subtract"
_MULTIPLY = operator.mul, operator.imul, torch.mul, torch.multiply, "mul", "multiply"
_DIVIDE = operator.truediv, operator.itruediv, torch.div, torch.true_divide, "div", "true_divide"
_MATRIX = operator.matmul, torch.matmul, torch.mm, torch.addmm, "matmul", "mm"
_JOIN = torch.cat, torch.concat, torch.concatenate
ARITHMETIC = {*_ADD, *_SUBTRACT, *_MULTIPLY, *_DIVIDE, operator.neg, operator.pow}
Layers = list[Layer]


class Walker:
    """Turns the recorded graph into steps.

    A node that cannot be walked becomes the tail, with all nodes that need its value.
    """

    def __init__(self, record: Record, draws: bool = True) -> None:
        self.record, self.draws = record, draws
        self.modules = dict(record.root.named_modules())
        self.values: dict[fx.Node, Value] = {record.pictures: 0}
        self.labels, self.batch = set(record.labels), set(record.batch)
        # So are products of weights. Names with ":" are never a parameter's.
        self.fixed = {n: Fixed(name, shape_of(n), n) for n, name in record.tensors.items()}
        self.trainable = {n for n in self.fixed if n not in record.constants}
        self.result = Walk()

    def walk(self) -> Walk:
        graph, needed = self.record.graph, ancestors(self.record.answers)
        unknown: list[fx.Node] = []
        with_gradients = True
        for node in list(graph.nodes):
            if sets_gradients(node):
                with_gradients = bool(node.args[0])
            elif node not in needed or node.op == "placeholder" or self._is_no_picture(node):
                continue
            elif not (with_gradients and self._step(node)):
                unknown.append(node)
        live = ancestors(self.record.answers, self.values)
        unknown = [n for n in unknown if n in live]  # a row of labels went into a step
        if unknown:
            begins = [n for n in unknown if any(i in self.values for i in n.all_input_nodes)]
            described = map(self._described, begins or unknown)
            self.result.refused = list(dict.fromkeys(described))
            if not self.result.steps:
                first = ", ".join(self.result.refused[:3])
                raise CannotWalk(f"it begins with {first}, which the explicit engine does not know")
            self.result.tail = self._tail(unknown)
        else:
            self.result.outputs = tuple(self.values[a] for a in self.record.answers)
        if self.record.traced:
            gains_in_weights(self.result, {f.name: f for f in self.fixed.values()}, self._made)
        self.result.making = self._making()
        return self.result

    def tail_only(self) -> Walk:
        """Everything that pictures reach as the tail."""
        needed = ancestors(self.record.answers)
        nodes = [n for n in self.record.graph.nodes if n in needed and n.op != "placeholder"]
        self.result.tail = self._tail([n for n in nodes if not self._is_no_picture(n)])
        self.result.making = self._making()
        return self.result

    def _is_no_picture(self, node: fx.Node) -> bool:
        """Whether labels, the number of pictures, or weights are all that the node is made of."""
        inputs = node.all_input_nodes
        if node.op == "call_module" or node in self.record.drawing:
            return False
        if inputs and all(n in self.labels or n in self.batch for n in inputs):
            (self.batch if all(n in self.batch for n in inputs) else self.labels).add(node)
            return True
        if not self.record.traced or not all(n in self.fixed for n in inputs):
            return False
        if inputs and changes_nothing(node):
            self.fixed[node] = self.fixed[inputs[0]]
            if inputs[0] in self.trainable:
                self.trainable.add(node)
            return True
        self.fixed[node] = Fixed(f"made:{node.name}", shape_of(node), node)
        if any(n in self.trainable for n in inputs):
            self.trainable.add(node)
        return True

    def _step(self, node: fx.Node) -> bool:
        """Append the node's steps; False when it cannot be walked."""
        inputs = node.all_input_nodes
        if not any(n in self.values for n in inputs):
            return False
        if node.op == "call_module":
            if self._overwrites(node) and len(inputs[0].users) > 1:
                return False
            layers = self._module(node) if len(inputs) == 1 and inputs[0] in self.values else None
            return layers is not None and self._append(node, str(node.target), layers, inputs)
        if self.record.traced and self._channels(node) is None:
            return False
        for targets, make in (
            (_ADD, self._sum),
            (_SUBTRACT, self._difference),
            (_MULTIPLY, self._product),
            (_DIVIDE, self._quotient),
            (_MATRIX, self._matrix_product),
            (_JOIN, self._joined),
            (("gather", torch.gather), self._label_column),
        ):
            if node.target in targets:
                return not node.kwargs.keys() - {"dim"} and make(node)
        return self._function(node)

    # One picture value in, by the vocabulary.

    def _module(self, node: fx.Node) -> Layers | None:
        layers = module_layers(self.modules[str(node.target)], str(node.target))
        if any(layer.mixes for layer in layers or ()) and self._uses(node) > 1:
            return None  # the order in which its running statistics move is autograd's to keep
        if any(layer.draws for layer in layers or ()) and not self.draws:
            return None
        return layers

    def _function(self, node: fx.Node) -> bool:
        first = node.args[0] if node.args else None
        if not isinstance(first, fx.Node) or first not in self.values:
            return False
        if not self.record.traced:
            one = column(node)
            return one is not None and self._append(node, self._place(node), [one], [first])
        if is_reshape(node):
            channels = self._channels(node) or 1
            shape = (*((channels,) if channels > 1 else ()), *shape_of(node)[1:])
            reshape = Reshape(lambda x: x.reshape(len(x), *shape))
            return self._append(node, self._place(node), [reshape], [first], folded=False)
        if any(n is not first and n not in self.fixed for n in node.all_input_nodes):
            return False
        args, kwargs = self._arguments(node.args), self._arguments(node.kwargs)
        layers = function_layers(node, args, kwargs)
        if layers is None or (any(layer.draws for layer in layers) and not self.draws):
            return False
        return self._append(node, self._place(node), layers, [first])

    def _arguments(self, arguments: Any) -> Any:
        """With what is fixed in place of its nodes."""
        fixed: Any = self.fixed
        return fx.map_arg(arguments, lambda n: fixed.get(n, n))

    # Two operands.

    def _operands(self, node: fx.Node) -> tuple[Any, Any]:
        """Each a node with a value, a number, what is fixed, or None for anything else."""

        def known(x: Any) -> Any:
            if isinstance(x, fx.Node):
                return x if x in self.values else self._stretching(x, node)
            return x if isinstance(x, int | float) and not isinstance(x, bool) else None

        a, b = (*node.args, None)[:2] if len(node.args) == 2 else (None, None)
        return known(a), known(b)

    def _stretching(self, x: fx.Node, node: fx.Node) -> Fixed | None:
        """What is fixed at ``x``, where the batch is no axis of it."""
        fixed = self.fixed.get(x)
        if fixed is None:
            return None
        axes = len(node.meta["example_value"].shape)
        alone = len(fixed.shape) < axes or (len(fixed.shape) == axes and fixed.shape[0] == 1)
        return fixed if alone else None

    def _sum(self, node: fx.Node) -> bool:
        match self._operands(node):
            case fx.Node() as a, fx.Node() as b:
                return self._both(node, a, b)
            case (fx.Node() as a, Fixed() as w) | (Fixed() as w, fx.Node() as a):
                return self._append(node, self._place(node), [Add(w.name)], [a])
            case (fx.Node() as a, int() | float() as n) | (int() | float() as n, fx.Node() as a):
                return self._append(node, self._place(node), [Shift(n)], [a])
        return False

    def _difference(self, node: fx.Node) -> bool:
        minus = Scale(-1.0)
        match self._operands(node):
            case fx.Node() as a, fx.Node() as b:
                negative = self.result.count
                if self._channels(a) != self._channels(b):
                    return False
                step = Step(f"{self._place(node)} (-)", minus, (self.values[b],), negative)
                self.result.steps.append(step)
                return self._both(node, a, negative)
            case fx.Node() as a, Fixed() as w:
                return self._append(node, self._place(node), [minus, Add(w.name), minus], [a])
            case Fixed() as w, fx.Node() as a:
                return self._append(node, self._place(node), [minus, Add(w.name)], [a])
            case fx.Node() as a, int() | float() as n:
                return self._append(node, self._place(node), [Shift(-n)], [a])
            case int() | float() as n, fx.Node() as a:
                return self._append(node, self._place(node), [minus, Shift(n)], [a])
        return False

    def _both(self, node: fx.Node, a: fx.Node, b: fx.Node | Value) -> bool:
        if isinstance(b, fx.Node):
            if self._channels(a) != self._channels(b):
                return False
            b = self.values[b]
        self.values[node] = self.result.count
        step = Step(self._place(node), Sum(), (self.values[a], b), self.values[node])
        self.result.steps.append(step)
        return True

    def _product(self, node: fx.Node) -> bool:
        match self._operands(node):
            case (fx.Node() as a, Fixed() as w) | (Fixed() as w, fx.Node() as a):
                return self._append(node, self._place(node), [Multiply(w.name)], [a])
            case (fx.Node() as a, int() | float() as n) | (int() | float() as n, fx.Node() as a):
                return self._append(node, self._place(node), [Scale(float(n))], [a])
        operands: Any = node.args, node.args[::-1]
        for x, rows in operands:
            if x in self.values and (table := self._label_rows(rows, x)) is not None:
                index = self._label_function(rows.args[0])
                return self._append(node, self._place(node), [LabelRows(table)], [x], index)
        return False

    def _label_rows(self, rows: Any, x: fx.Node) -> str | None:
        """The table that an embedding of labels takes its rows from, if they are as long as x's."""
        if not isinstance(rows, fx.Node) or rows.target is not F.embedding:
            return None
        args: Any = rows.args
        labels, table, *options = args
        plain = not rows.kwargs and {*options[:2]} <= {None} and not any(options[3:])
        if labels not in self.labels or table not in self.fixed or not plain:
            return None
        same = len(shape_of(x)) == 2 and shape_of(x)[1:] == shape_of(rows)[1:]
        return self.fixed[table].name if same else None

    def _quotient(self, node: fx.Node) -> bool:
        match self._operands(node):
            case fx.Node() as a, int() | float() as n:
                return self._append(node, self._place(node), [Scale(1 / n)], [a])
            case fx.Node() as a, Fixed() as w:
                inverse = self._made(torch.reciprocal, w, node)
                return self._append(node, self._place(node), [Multiply(inverse.name)], [a])
        return False

    def _matrix_product(self, node: fx.Node) -> bool:
        """x W, or b + x W, for a fixed matrix W."""
        args: Any = node.args
        *bias, x, matrix = args
        w, b = self.fixed.get(matrix), self._stretching(bias[0], node) if bias else None
        if x not in self.values or w is None or len(w.shape) != 2 or (bias and b is None):
            return False
        layers: Layers = [Linear(self._made(torch.t, w, node).name, None)]
        return self._append(node, self._place(node), layers + ([Add(b.name)] if b else []), [x])

    def _made(self, function: Callable[..., Any], w: Fixed, before: fx.Node, *more: float) -> Fixed:
        """Another fixed tensor, a function of ``w``."""
        graph, value = self.record.graph, w.node.meta["example_value"]
        with graph.inserting_before(before):
            made = graph.call_function(function, (w.node, *more))
        made.meta["example_value"] = function(value, *more)
        self._is_no_picture(made)
        return self.fixed[made]

    def _joined(self, node: fx.Node) -> bool:
        args: Any = node.args
        parts, axis = args[0], (*args, node.kwargs.get("dim", 0))[1]
        if not isinstance(parts, tuple | list) or not isinstance(axis, int):
            return False
        values = [self.values.get(n) for n in parts if isinstance(n, fx.Node)]
        channels = {self._channels(n) for n in parts if n in self.values}
        axis = axis % len(shape_of(node)) if self.record.traced else axis
        known = len(values) == len(parts) and None not in values
        if not known or len(channels) != 1 or axis < 1:
            return False
        folded = self._channels(node) or 1
        self.values[node] = self.result.count
        inputs = tuple(v for v in values if v is not None)
        layer = Joined(axis + (folded > 1))
        self.result.steps.append(Step(self._place(node), layer, inputs, self.values[node]))
        return True

    def _label_column(self, node: fx.Node) -> bool:
        x, *index = node.args
        if len(index) != 2 or index[0] != 1 or index[1] not in self.labels:
            return False
        label_index = self._label_function(index[1])
        return self._append(node, self._place(node), [LabelColumn()], [x], label_index)  # type: ignore[list-item]

    # What is known of nodes.

    def _channels(self, node: fx.Node) -> int | None:
        """1 where the batch is the node's first axis, k where each picture has k entries of it;
        None where it is not, and where another axis varies with the batch."""
        if not self.record.traced:
            return 1
        shape = getattr(node.meta.get("example_value"), "shape", None)
        if not shape or any(isinstance(s, torch.SymInt) for s in shape[1:]):
            return None
        if not isinstance(shape[0], torch.SymInt):
            return None
        count = self.record.pictures.meta["example_value"].shape[0]
        times = shape[0].node.expr / count.node.expr
        return int(times) if times.is_Integer else None

    def _uses(self, node: fx.Node) -> int:
        return sum(
            other.op == "call_module" and other.target == node.target
            for other in self.record.graph.nodes
        )

    def _overwrites(self, node: fx.Node) -> bool:
        """Whether a module changes its input in place, which matters to other readers of it."""
        return bool(getattr(self.modules[str(node.target)], "inplace", False))

    def _append(
        self,
        node: fx.Node,
        name: str,
        layers: Layers,
        inputs: Sequence[fx.Node],
        label_index: Callable[[Tensor], Tensor] | None = None,
        folded: bool = True,
    ) -> bool:
        """Steps from the first of ``inputs`` to the node. ``folded``: the layers see channels as
        the forward does, be they samples there."""
        channels = self._channels(inputs[0])
        if folded and channels != self._channels(node):
            return False
        value = self.values[inputs[0]]
        for layer in layers:
            if self.record.traced:
                kept = {self.fixed[n].name for n in self.trainable}
                layer.weights = tuple(name for name in layer.weights if name in kept)
            if folded and channels is not None and channels > 1:
                layer = Folded(layer, channels)
            step = Step(name, layer, (value,), self.result.count, label_index, node)
            self.result.steps.append(step)
            value = step.output
        self.values[node] = value
        return True

    # Parts of the graph as modules.

    def _label_function(self, index: Any) -> Callable[[Tensor], Tensor]:
        """The part of the graph that makes node ``index`` of the labels alone."""
        graph = fx.Graph()
        copied: dict[fx.Node, fx.Node] = {}
        needed = ancestors([index])
        for node in self.record.graph.nodes:
            if node in self.labels and node in needed:
                copied[node] = graph.node_copy(node, lambda n: copied[n])
        graph.output(copied[index])
        return fx.GraphModule(self.record.root, graph)

    def _tail(self, unknown: Sequence[fx.Node]) -> Tail:
        """A module of all nodes that are not walked. It takes the walked values that they read."""
        rest, reads = list(unknown), set[fx.Node]()
        for node in (*rest, *self.record.answers):
            reads |= {node} if node in self.values else set(node.all_input_nodes)
        nodes = self.record.graph.nodes
        taken = [
            [n for n in nodes if n in known and n in reads] for known in (self.values, self.fixed)
        ]
        values, fixed = taken
        labels = [n for n in nodes if n in self.labels]
        sizes = [n for n in nodes if n in self.batch]
        graph = fx.Graph()
        copied = {n: graph.placeholder(f"value_{i}") for i, n in enumerate(values)}
        folded = [n for n in values if (self._channels(n) or 1) > 1]
        copied |= {n: graph.node_copy(n) for n in labels if n.op == "placeholder"}
        counts = [n for n in sizes if n.op == "placeholder"]
        copied |= {n: graph.placeholder(f"count_{i}") for i, n in enumerate(counts)}
        copied |= {n: graph.placeholder(f"weight_{i}") for i, n in enumerate(fixed)}
        numbers = [n for n in fixed if not isinstance(n.meta["example_value"], Tensor)]
        copied |= {n: graph.call_method("item", (copied[n],)) for n in numbers}
        copied |= {n: graph.call_method("flatten", (copied[n], 0, 1)) for n in folded}
        for node in nodes:
            if node not in copied and (
                node in rest or node in labels or node in sizes or sets_gradients(node)
            ):
                copied[node] = graph.node_copy(node, lambda n: copied[n])
        graph.output(tuple([copied[a] for a in self.record.answers]))
        module = fx.GraphModule(self.record.root, graph)
        learnt = [self.fixed[n].name for n in fixed if n in self.trainable]
        held = [name for name, _ in module.named_parameters()]
        return Tail(
            module,
            tuple(self.values[n] for n in values),
            self.record.takes_labels,
            tuple(learnt or held),
            tuple(self.fixed[n].name for n in fixed),
            len(counts),
        )

    def _making(self) -> Making | None:
        """A module of what the forward makes of its weights, as far as steps or the tail read
        it."""
        read = set(self.result.tail.given if self.result.tail else ())
        for step in self.result.steps:
            layer = unfolded(step.layer)
            read |= {name for name in vars(layer).values() if isinstance(name, str)}
        made = [n for n, f in self.fixed.items() if f.name in read and n.op != "placeholder"]
        if not made:
            return None
        needed = ancestors(made)
        nodes = [n for n in self.record.graph.nodes if n in needed or sets_gradients(n)]
        graph = fx.Graph()
        sources = [n for n in nodes if n.op == "placeholder"]
        copied = {n: graph.placeholder(f"weight_{i}") for i, n in enumerate(sources)}
        for node in nodes:
            if node not in copied:
                copied[node] = graph.node_copy(node, lambda n: copied[n])
        graph.output(tuple(copied[n] for n in made))
        names = [tuple(self.fixed[n].name for n in some) for some in (sources, made)]
        return Making(fx.GraphModule(self.record.root, graph), *names)

    def _place(self, node: fx.Node) -> str:
        return module_of(node)[0] or node.name

    def _described(self, node: fx.Node) -> str:
        if node.op == "call_module":
            return f"{node.target} ({type(self.modules[str(node.target)]).__name__})"
        path, kind = module_of(node)
        return f"{path} ({kind})" if path else f"{node.name} ({kind_of(node)})"
