"""From any `nn.Module` to the steps of the explicit engine: torch.fx records its forward, and
each operation becomes a `Layer`."""

import inspect
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ganfast.engine import layers as L
from ganfast.engine.convolution import Convolution
from ganfast.models.dropout import Dropout

Value = int  # an entry of the list of values that a walk fills; 0 is the picture


@dataclass
class Step:
    """value[output] = layer(values[inputs]). A LabelColumn also reads what ``label_index``
    makes."""

    name: str  # where it stands in the module
    layer: L.Layer
    inputs: tuple[Value, ...]
    output: Value
    label_index: Callable[[Tensor], Tensor] | None = None


@dataclass
class Tail:
    """The end of a critic that cannot be walked: a module from some values, and labels, to the
    answer."""

    module: fx.GraphModule
    inputs: tuple[Value, ...]
    takes_labels: bool
    weights: tuple[str, ...]  # names of the critic's tensors that it reads


@dataclass
class Walk:
    """A critic as steps, then either its outputs or a tail."""

    steps: list[Step] = field(default_factory=list)
    # score, and class logits where there are some; empty with a tail
    outputs: tuple[Value, ...] = ()
    tail: Tail | None = None
    # "name (what it is)" of what the tail had to take
    refused: list[str] = field(default_factory=list)

    @property
    def curved(self) -> bool:
        """Whether a layer's linearisation depends on its input. Then the penalty reaches weights
        through the forward pass too."""
        return self.tail is not None or any(step.layer.curved for step in self.steps)

    @property
    def separable(self) -> bool:
        """Whether samples are known not to meet, so that some can be computed without the
        others."""
        return (
            self.tail is None
            and not self.draws
            and not any(step.layer.mixes for step in self.steps)
        )

    @property
    def draws(self) -> bool:
        """Whether a layer draws random numbers. A sample's numbers then depend on its batch."""
        return any(step.layer.draws for step in self.steps)

    @property
    def normed(self) -> list[L.BatchNorm]:
        """The batch norms, whose running statistics a step moves."""
        return [step.layer for step in self.steps if isinstance(step.layer, L.BatchNorm)]

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
        raise CannotWalk(
            f"the forward of {type(critic).__name__} cannot be recorded: {reason}"
        ) from error
    _refuse_unread_statistics(critic, graph)
    fx.GraphModule(critic, graph)  # the graph asks its module which nodes have side effects
    graph.eliminate_dead_code()
    takes_labels = bool(getattr(critic, "takes_labels", False))
    found = _Walker(critic, graph, takes_labels).walk()
    # which may draw as well, between what the layers draw
    if found.draws and found.tail is not None:
        found = _Walker(critic, graph, takes_labels, draws=False).walk()
    return found


def _refuse_unread_statistics(critic: nn.Module, graph: fx.Graph) -> None:
    """Refuse a batch norm whose result nobody reads: its statistics move, and a walk would drop
    it."""
    for node in graph.nodes:
        if node.op == "call_module" and not node.users:
            norm = critic.get_submodule(str(node.target))
            if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.training:
                raise CannotWalk(f"nobody reads what {node.target} ({type(norm).__name__}) gives")


def _unused_arguments(critic: nn.Module) -> dict[str, Any]:
    """Default values for the arguments that a critic without labels is not called with. They
    decide branches of its forward."""
    if getattr(critic, "takes_labels", False):
        return {}
    parameters = list(inspect.signature(critic.forward).parameters.values())[1:]
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


class _Tracer(fx.Tracer):
    """Records known layers whole and looks into other modules. A module that fails when looked
    into is recorded whole too."""

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


def module_layers(m: nn.Module, name: str) -> list[L.Layer] | None:
    """The layers that compute what module ``m`` does; None for an unknown one. ``name`` is its
    path."""
    if m._forward_hooks or m._forward_pre_hooks:
        return None  # somebody changes what goes in or comes out
    origins = (
        getattr(type(m), name, m.forward).__module__ for name in ("forward", "_conv_forward")
    )
    if type(m) is not Dropout and not all(name.startswith("torch.nn.") for name in origins):
        return None  # a class of somebody's own that only began as the one of torch
    here = f"{name}." if name else ""
    weight, bias = f"{here}weight", f"{here}bias" if getattr(m, "bias", None) is not None else None
    match m:
        case nn.ConvTranspose1d() | nn.ConvTranspose2d() | nn.ConvTranspose3d():
            return None
        case nn.Conv1d() | nn.Conv2d() | nn.Conv3d() if m.padding_mode == "zeros":
            padding = m.padding
            if isinstance(padding, str):
                reach = [d * (k - 1) for d, k in zip(m.dilation, m.kernel_size, strict=True)]
                if padding == "same" and any(r % 2 for r in reach):
                    return None  # one side gets more
                padding = tuple(r // 2 for r in reach) if padding == "same" else (0,) * len(reach)
            return [L.Conv(weight, bias, Convolution(m.stride, padding, m.dilation, m.groups))]
        case nn.Linear():
            return [L.Linear(weight, bias)]
        case nn.LeakyReLU() if m.negative_slope >= 0:
            return [L.LeakyReLU(m.negative_slope)]
        case nn.ReLU():
            return [L.LeakyReLU(0.0)]
        case nn.SiLU():
            return [L.silu()]
        case nn.Tanh():
            return [L.tanh()]
        case nn.Softplus() if m.beta == 1 and m.threshold == 20:
            return [L.softplus()]
        case nn.GroupNorm():
            return [L.Standardise(m.num_groups, m.eps), *_affine(m, weight, bias, True)]
        case nn.LayerNorm():
            return [
                L.Standardise(-len(m.normalized_shape), m.eps),
                *_affine(m, weight, bias, False),
            ]
        case nn.BatchNorm1d() | nn.BatchNorm2d() | nn.BatchNorm3d() if (
            m.training and m.momentum is not None
        ):
            mean, variance, counter = (
                f"{here}{name}" if getattr(m, name) is not None else None
                for name in ("running_mean", "running_var", "num_batches_tracked")
            )
            if m.track_running_stats and (mean is None or variance is None):
                return None
            running = (mean, variance) if m.track_running_stats and mean and variance else ()
            own = weight if m.weight is not None else None
            return [
                L.BatchNorm(own, bias, running, counter if running else None, m.momentum, m.eps)
            ]
        case nn.InstanceNorm2d() if not m.track_running_stats:
            return [L.Standardise(0, m.eps), *_affine(m, weight, bias, True)]
        case nn.AvgPool2d():
            pair = [_pair(a) for a in (m.kernel_size, m.stride, m.padding)]
            return [L.AvgPool((*pair, m.ceil_mode, m.count_include_pad, m.divisor_override))]
        case nn.AdaptiveAvgPool2d() if m.output_size in (1, (1, 1)):
            return [L.GlobalAverage()]
        case nn.Upsample():
            resize = _resize(
                m.size, m.scale_factor, m.mode, m.align_corners, m.recompute_scale_factor, False
            )
            return None if resize is None else [resize]
        case nn.Flatten() if m.start_dim == 1:
            return [L.Reshape(lambda x: x.flatten(1, m.end_dim))]
        case nn.Unflatten() if m.dim == 1:
            return [L.Reshape(lambda x: x.unflatten(1, m.unflattened_size))]
        case nn.Identity() | nn.Dropout() | nn.Dropout2d() if (
            isinstance(m, nn.Identity) or m.p == 0 or not m.training
        ):
            return []
        case Dropout():
            return [L.Dropout(m.numbers, m.mask)]
        case nn.Dropout():
            return [L.Dropout(lambda x: F.dropout(torch.ones_like(x), m.p), _as_drawn)]
        case nn.Dropout2d():
            return [L.Dropout(lambda x: F.dropout2d(torch.ones_like(x), m.p), _as_drawn)]
    return None


def _as_drawn(numbers: Tensor, like: Tensor) -> Tensor:
    return numbers


def _affine(m: nn.Module, weight: str, bias: str | None, per_channel: bool) -> list[L.Layer]:
    return [] if getattr(m, "weight", None) is None else [L.Affine(weight, bias, per_channel)]


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _resize(
    size: Any, factor: Any, mode: str, corners: bool | None, recompute: bool | None, antialias: bool
) -> L.Resize | None:
    if mode not in ("nearest", "bilinear") or recompute:
        return None
    factors = (
        None
        if factor is None
        else tuple(
            float(f) for f in (factor if isinstance(factor, tuple | list) else (factor, factor))
        )
    )
    align = (bool(corners),) if mode == "bilinear" else ()
    return L.Resize(mode, None if size is None else _pair(size), factors, align, antialias)  # type: ignore[arg-type]


def _arguments(
    function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]
) -> dict[str, Any]:
    bound = inspect.signature(function).bind(*args, **kwargs)
    bound.apply_defaults()
    return bound.arguments


def function_layers(node: fx.Node) -> list[L.Layer] | None:
    """The same for a function or tensor method of one value and numbers."""
    args, kwargs = node.args, node.kwargs
    target: Any = node.target
    if node.op == "call_method":
        target = {
            "flatten": torch.flatten,
            "squeeze": torch.squeeze,
            "relu": torch.relu,
            "tanh": torch.tanh,
        }.get(str(target), target)
    numbers = [
        a
        for a in (*args, *kwargs.values())
        if isinstance(a, int | float) and not isinstance(a, bool)
    ]
    if target in (F.leaky_relu,):
        given = _arguments(lambda input, negative_slope=0.01, inplace=False: None, args, kwargs)
        return [L.LeakyReLU(given["negative_slope"])] if given["negative_slope"] >= 0 else None
    if target in (F.relu, torch.relu):
        return [L.LeakyReLU(0.0)]
    if target is F.silu:
        return [L.silu()]
    if target in (torch.tanh, F.tanh):
        return [L.tanh()]
    if target is F.softplus and not numbers:
        return [L.softplus()]
    if target is F.avg_pool2d:
        given = (
            dict(zip(("kernel_size", "stride", "padding", *_POOL), args[1:], strict=False)) | kwargs
        )
        pair = [
            _pair(given.get(name) or default)
            for name, default in (("kernel_size", 0), ("stride", ()), ("padding", 0))
        ]
        return [L.AvgPool((*pair, *(given.get(name, default) for name, default in _POOL.items())))]
    if target is F.interpolate:
        given = _arguments(F.interpolate, args, kwargs)
        resize = _resize(
            given["size"],
            given["scale_factor"],
            given["mode"],
            given["align_corners"],
            given["recompute_scale_factor"],
            given["antialias"],
        )
        return None if resize is None else [resize]
    if target is torch.flatten:
        given = _arguments(lambda input, start_dim=0, end_dim=-1: None, args, kwargs)
        return (
            [L.Reshape(lambda x: x.flatten(1, given["end_dim"]))]
            if given["start_dim"] == 1
            else None
        )
    if target is torch.squeeze and (*args[1:], *kwargs.values()) in ((1,), (-1,)):
        return [L.Reshape(lambda x: x.squeeze(int(numbers[0])))]
    if (
        target in (operator.mul, operator.truediv)
        and len(numbers) == 1
        and isinstance(args[0], fx.Node)
    ):
        return [L.Scale(float(numbers[0]) if target is operator.mul else 1 / numbers[0])]
    if target is operator.mul and len(numbers) == 1:
        return [L.Scale(float(numbers[0]))]
    if target is operator.getitem and isinstance(args[1], tuple) and len(args[1]) == 2:
        rows, column = args[1]
        return [L.Column(column)] if rows == slice(None) and isinstance(column, int) else None
    return None


# avg_pool2d is built in and has no signature
_POOL = {"ceil_mode": False, "count_include_pad": True, "divisor_override": None}


class _Walker:
    """Turns the recorded graph into steps. A node that cannot be walked, and all that needs its
    value, becomes the tail."""

    def __init__(
        self, critic: nn.Module, graph: fx.Graph, takes_labels: bool, draws: bool = True
    ) -> None:
        self.critic, self.graph, self.takes_labels, self.draws = critic, graph, takes_labels, draws
        self.modules = dict(critic.named_modules())
        self.values: dict[fx.Node, Value] = {}
        self.label_nodes: set[fx.Node] = set()
        self.found = Walk()

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
            if (
                node.op != "call_module"
                and node.all_input_nodes
                and all(n in self.label_nodes for n in node.all_input_nodes)
            ):
                self.label_nodes.add(node)
            elif not self._step(node):
                unknown.append(node)
        if unknown:
            self.found.refused = [
                self._described(n)
                for n in unknown
                if any(i in self.values for i in n.all_input_nodes)
            ]
            if not self.found.steps:
                first = ", ".join(self.found.refused[:3])
                raise CannotWalk(f"it begins with {first}, which the explicit engine does not know")
            self.found.tail = self._tail(output)
        else:
            answers = answer if isinstance(answer, tuple | list) else (answer,)
            self.found.outputs = tuple(self.values[a] for a in answers if a is not None)
        return self.found

    def _step(self, node: fx.Node) -> bool:
        """Append the node's steps; False when it cannot be walked."""
        inputs = node.all_input_nodes
        if self._overwrites(node) and len(inputs[0].users) > 1:
            return False
        if node.op == "call_module":
            if len(inputs) != 1 or inputs[0] not in self.values:
                return False
            found, name = (
                module_layers(self.modules[str(node.target)], str(node.target)),
                str(node.target),
            )
            if any(layer.mixes for layer in found or ()) and self._uses(node) > 1:
                return False  # the order in which its running statistics move is autograd's to keep
            if any(layer.draws for layer in found or ()) and not self.draws:
                return False
        elif inputs and inputs[0] in self.values:
            if (
                node.target in (operator.add, torch.add, operator.iadd)
                and len(node.args) == 2
                and not node.kwargs
            ):
                both = [self.values.get(n) for n in node.args if isinstance(n, fx.Node)]
                if len(both) != 2 or None in both:
                    return False
                self._append(node, node.name, L.Sum(), tuple(v for v in both if v is not None))
                return True
            if (
                node.target in ("gather", torch.gather)
                and node.args[1] == 1
                and len(node.args) == 3
                and node.args[2] in self.label_nodes
            ):
                self._append(
                    node,
                    node.name,
                    L.LabelColumn(),
                    (self.values[inputs[0]],),
                    self._label_function(node.args[2]),
                )
                return True
            if len(inputs) != 1:
                return False
            found, name = function_layers(node), node.name
        else:
            return False
        if found is None:
            return False
        self.values[node] = self.values[inputs[0]]
        for layer in found:
            self._append(node, name, layer, (self.values[node],))
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
        layer: L.Layer,
        inputs: tuple[Value, ...],
        label_index: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.values[node] = self.found.count
        self.found.steps.append(Step(name, layer, inputs, self.values[node], label_index))

    def _label_function(self, wanted: Any) -> Callable[[Tensor], Tensor]:
        """The part of the graph that makes ``wanted`` of the labels alone."""
        graph = fx.Graph()
        copied: dict[fx.Node, fx.Node] = {}
        for node in self.graph.nodes:
            if node in self.label_nodes:
                copied[node] = graph.node_copy(node, lambda n: copied[n])
        graph.output(copied[wanted])
        return fx.GraphModule(self.critic, graph)

    def _tail(self, output: fx.Node) -> Tail:
        """A module of all nodes that are not walked, called with the walked values that they
        read."""
        taken = [n for n in self.graph.nodes if n not in self.values and n not in self.label_nodes]
        read = [n for n in self.values if any(user in taken for user in n.users)]
        graph = fx.Graph()
        copied = {n: graph.placeholder(f"value_{i}") for i, n in enumerate(read)}
        labels = [n for n in self.graph.nodes if n in self.label_nodes]
        for node in [*labels, *(n for n in taken if n is not output)]:
            copied[node] = graph.node_copy(node, lambda n: copied[n])
        graph.output(fx.map_arg(output.args[0], lambda n: copied[n]))
        module = fx.GraphModule(self.critic, graph)
        weights = tuple(name for name, _ in module.named_parameters())
        return Tail(module, tuple(self.values[n] for n in read), self.takes_labels, weights)

    def _described(self, node: fx.Node) -> str:
        if node.op == "call_module":
            return f"{node.target} ({type(self.modules[str(node.target)]).__name__})"
        return f"{node.name} ({getattr(node.target, '__name__', node.target)})"
