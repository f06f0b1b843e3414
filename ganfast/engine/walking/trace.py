"""What a network computes in a call, as a graph, for networks that nobody here wrote.

The front end of torch.compile records the forward and guards all that it read from Python:
attributes, lists, globals, closures, branches. A change gives another graph. Tensors, NumPy arrays
and numbers that keep changing are inputs of the graph, so that a call always has their values.

Nothing is computed and nothing is left behind: a call ends where the graph would run.
"""

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_unflatten

from ganfast.engine.weights import EffectiveWeights, is_torchs, parametrised
from ganfast.models.members import modules, named_parameters
from ganfast.models.parts import held_power_iteration

Tensors = dict[str, Tensor]


class CannotTrace(Exception):
    """Why a forward cannot be recorded. Its network is computed as it is, in every step.

    ``new``: whether this call found it out, and the next would not try again.
    """

    def __init__(self, reason: str, new: bool = True) -> None:
        super().__init__(reason)
        self.new = new


@dataclass(eq=False)
class Trace:
    """One graph of a network. It is the same object for as long as the graph is right."""

    module: fx.GraphModule
    pictures: fx.Node
    answers: tuple[fx.Node, ...]  # the tensors that the forward returns
    returned: Callable[[Sequence[Tensor]], Any]  # what it returns, made of them
    labels: set[fx.Node] = field(default_factory=set)
    batch: set[fx.Node] = field(default_factory=set)  # how many pictures there are, as numbers
    # other inputs: parameters by their names, the rest by the graph's
    tensors: dict[fx.Node, str] = field(default_factory=dict)
    draws: set[fx.Node] = field(default_factory=set)  # nodes that draw random numbers
    writes: set[fx.Node] = field(default_factory=set)  # nodes that change another node's result
    # which inputs of a call are no parameters, and their names
    constants: dict[int, str] = field(default_factory=dict)

    def arguments(
        self, weights: Mapping[str, Tensor], pictures: Tensor, labels: Tensor | None
    ) -> list[Any]:
        """What ``module`` takes."""
        given: list[Any] = []
        for node in self.module.graph.nodes:
            if node.op == "placeholder":
                if node in self.tensors:
                    given.append(weights[self.tensors[node]])
                elif node is self.pictures:
                    given.append(pictures)
                else:
                    given.append(labels if node in self.labels else len(pictures))
        return given


class FrontEnd:
    """``front_end(pictures, *labels)`` is the `Trace` of a call and the values of its constants.

    Args:
        net: any module.
        autocast: the type that it computes in, as of `make_critic_step`.
        may_write: record forwards that write to the network's tensors, too.
    """

    def __init__(
        self, net: nn.Module, autocast: torch.dtype | None = None, may_write: bool = False
    ) -> None:
        self._net, self._autocast, self._may_write = net, autocast, may_write
        self._plain, named = _plain_parameters(net)
        self._names = {id(x): name for name, x in named}
        self._held = [x for _, x in named]  # an identity is theirs for as long as they are held
        # The guards are of types and shapes, not of which tensor is which.
        self._traces: dict[fx.GraphModule, dict[tuple[str | None, ...], Trace]] = {}
        self._recorded: tuple[fx.GraphModule, tuple[Any, ...], list[Tensor]] | None = None
        self._refusal = _displaced(net)
        self._calls: dict[torch.Size, Callable[..., Any]] = {}  # by the shape of one picture

    def __call__(self, pictures: Tensor, *labels: Tensor) -> tuple[Trace, Tensors]:
        """Raises CannotTrace; but for a single picture, for good once it did."""
        if self._refusal:
            raise CannotTrace(self._refusal, new=False)
        if len(pictures) < 2:  # the recorder takes sizes of 1 for constants
            raise CannotTrace("a batch of one picture is not recorded", new=False)
        args = [x.detach() for x in (pictures, *labels)]  # which can be marked and forgotten
        for x in args:
            torch._dynamo.mark_dynamic(x, 0)
        call = self._calls.get(pictures.shape[1:]) or self._new_call(pictures.shape[1:])
        computed = torch.autocast(
            pictures.device.type, self._autocast, enabled=self._autocast is not None
        )
        self._recorded = None
        try:
            with ExitStack() as held:
                if torch._C._len_torch_dispatch_stack():  # the front end records under no mode
                    held.enter_context(_disable_current_modes())
                for context in (torch.enable_grad(), computed, _strict()):
                    held.enter_context(context)
                with _without_parametrisations(self._plain):
                    answer = call(self._net, *args)
                trace, inputs = self._first(args, answer)
        except _Chosen as chosen:
            trace, inputs = self._named(chosen.graph, chosen.inputs), chosen.inputs
        except CannotTrace as error:
            self._refusal = str(error)
            raise
        except Exception as error:  # whatever the front end, or a user's forward, comes up with
            self._refusal = _reason(error)
            raise CannotTrace(self._refusal) from error
        return trace, {name: inputs[i] for i, name in trace.constants.items()}

    def _new_call(self, picture: torch.Size) -> Callable[..., Any]:
        # A code object and a name of its own: torch.compile keeps and counts graphs by the code,
        # and turns sizes that differ between two calls of one name into symbols.
        code = _call.__code__.replace(co_name=f"_call_{next(_numbers)}")
        own = FunctionType(code, _call.__globals__)
        self._calls[picture] = torch.compile(own, backend=self._backend, fullgraph=True)
        return self._calls[picture]

    def _backend(self, graph: fx.GraphModule, _: Any) -> Any:
        def run(*inputs: Any) -> list[Tensor]:
            if graph in self._traces:
                raise _Chosen(graph, inputs)
            # Once for each graph, tensors without numbers go through the rest of the forward, to
            # tell which output is the score.
            (output,) = (n for n in graph.graph.nodes if n.op == "output")
            outputs = [torch.empty(0, device="meta") for _ in output.args[0]]
            self._recorded = graph, inputs, outputs
            return outputs

        return run

    def _first(self, args: list[Tensor], answer: Any) -> tuple[Trace, tuple[Any, ...]]:
        """The trace of a graph that was recorded just now."""
        if self._recorded is None:
            raise CannotTrace("its forward computes nothing with tensors")
        graph, inputs, outputs = self._recorded
        if nested := _nested(graph):
            raise CannotTrace(f"its forward calls {nested}")
        (output,) = (n for n in graph.graph.nodes if n.op == "output")
        placeholders = [n for n in graph.graph.nodes if n.op == "placeholder"]
        found: dict[int, fx.Node] = {id(x): n for x, n in zip(outputs, output.args[0], strict=True)}
        leaves, form = tree_flatten(answer)
        answers = [found[id(leaf)] for leaf in leaves if id(leaf) in found]
        places = [leaf is not None for leaf in leaves]
        if len(answers) != sum(places) or not answers:
            raise CannotTrace("it returns something that is no result of its tensors")

        def returned(tensors: Sequence[Tensor]) -> Any:
            given = iter(tensors)
            return tree_unflatten([next(given) if there else None for there in places], form)

        trace = Trace(graph, placeholders[0], tuple(answers), returned)
        for node, x in zip(placeholders, inputs, strict=True):
            if x is args[0]:
                trace.pictures = node
            elif any(x is y for y in args[1:]):
                trace.labels.add(node)
            elif not isinstance(x, Tensor):
                trace.batch.add(node)
        self._name(trace, inputs)
        # Two sizes that are equal have one symbol, and a guard that they stay equal.
        count = str(trace.pictures.meta["example_value"].shape[0])
        if any(n.users and str(n.meta["example_value"]) != count for n in trace.batch):
            raise CannotTrace("its forward reads a size that changes, and not the batch's")
        trace.draws, trace.writes, state = _audit(trace)
        if state and not self._may_write:
            raise CannotTrace(f"its forward keeps state ({', '.join(sorted(state))})")
        self._traces[graph] = {self._names_of(inputs): trace}
        return trace, inputs

    def _names_of(self, inputs: tuple[Any, ...]) -> tuple[str | None, ...]:
        """The parameters among the inputs of a graph."""
        return tuple([self._names.get(id(x)) for x in inputs])

    def _named(self, graph: fx.GraphModule, inputs: tuple[Any, ...]) -> Trace:
        """The trace of a graph that is given these tensors."""
        traces, names = self._traces[graph], self._names_of(inputs)
        if names not in traces:
            first = next(iter(traces.values()))
            traces[names] = replace(first, tensors={}, constants={})
            self._name(traces[names], inputs)
        return traces[names]

    def _name(self, trace: Trace, inputs: tuple[Any, ...]) -> None:
        buffers = {id(x): name for name, x in self._net.named_buffers()}
        placeholders = [n for n in trace.module.graph.nodes if n.op == "placeholder"]
        others = {trace.pictures, *trace.labels, *trace.batch}
        for i, (node, x) in enumerate(zip(placeholders, inputs, strict=True)):
            if node in others:
                continue
            name = self._names.get(id(x))
            if name is None:
                name = trace.constants[i] = buffers.get(id(x), str(node.target))
            trace.tensors[node] = name


class _Chosen(Exception):
    """Ends a call where its graph would run."""

    def __init__(self, graph: fx.GraphModule, inputs: tuple[Any, ...]) -> None:
        self.graph, self.inputs = graph, inputs


def _displaced(net: nn.Module) -> str:
    """Why globals would not be guarded: the front end looks them up by the name of the module."""
    kinds = {kind for module in modules(net) for kind in type(module).__mro__}
    for function in (f for kind in kinds for f in vars(kind).values()):
        read: dict[str, Any] = getattr(function, "__globals__", {})
        name = read.get("__name__")
        if name is not None and getattr(sys.modules.get(name), "__dict__", None) is not read:
            return f"{name}, which its methods are of, is not what is imported by this name"
    return ""


_numbers = count()


def _call(net: nn.Module, *args: Tensor) -> Any:
    return net(*args)


# While a forward is recorded: it may change nothing but new tensors, and hooks are guarded too.
_STRICT = {
    "side_effect_replay_policy": "error",
    "skip_nnmodule_hook_guards": False,
    "recompile_limit": 64,  # graphs of one shape of pictures
}


@contextmanager
def _strict() -> Iterator[None]:
    """The front end's settings are `_STRICT` inside. Its own `patch` takes longer than a call."""
    config: Any = torch._dynamo.config
    before = {name: getattr(config, name) for name in _STRICT}
    for name, value in _STRICT.items():
        setattr(config, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(config, name, value)


Plain = list[tuple[nn.Module, type, type, dict[str, nn.Parameter]]]


def _plain_parameters(net: nn.Module) -> tuple[Plain, list[tuple[str, Tensor]]]:
    """Parametrised modules with their classes before and stand-ins for the weights they make; and
    every parameter and stand-in by the name that `EffectiveWeights` has for it."""
    with held_power_iteration(net):
        values = EffectiveWeights(net).values
    plain: Plain = []
    named: list[tuple[str, Tensor]] = [*reversed(named_parameters(net))]  # first names win
    for path, module in parametrised(net):
        made: Any = module.parametrizations
        if not all(map(is_torchs, made.values())):
            continue  # somebody's own is recorded with the forward
        held = {name: f"{path}.{name}" if path else name for name in made}
        stand_ins = {name: nn.Parameter(values[full].clone()) for name, full in held.items()}
        named += [(full, stand_ins[name]) for name, full in held.items()]
        plain.append((module, type(module), type(module).__bases__[0], stand_ins))
    return plain, named


@contextmanager
def _without_parametrisations(plain: Plain) -> Iterator[None]:
    """Weights that parametrisations make are plain parameters inside: `EffectiveWeights` makes
    them, once a step, and a recorded power iteration would be a change of state."""
    for module, _, before, stand_ins in plain:
        module.__class__ = before
        module._parameters.update(stand_ins)
    try:
        yield
    finally:
        for module, now, _, stand_ins in plain:
            for name in stand_ins:
                del module._parameters[name]
            module.__class__ = now


def _reason(error: Exception) -> str:
    """The front end's long report as one clause."""
    text = str(error)
    if changed := re.search(r"certain side effects.*?: (\[.*?\])\s", text, re.DOTALL):
        sources = re.findall(r"\"([LG]\[.*?)\"", changed[1])
        names = [re.sub(r"^[LG]\['[^']*'\]\.?", "", source) for source in sources]
        listed = ", ".join(dict.fromkeys(name or "an attribute" for name in names))
        return f"its forward keeps state ({listed})"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    places = re.findall(r'File "(.*?)", line (\d+)', text)
    where = f" at {Path(places[-1][0]).name}:{places[-1][1]}" if places else ""
    return f"its forward cannot be recorded{where}: {(lines or [type(error).__name__])[0][:120]}"


def _nested(module: fx.GraphModule) -> str:
    """A function that takes a graph of its own or changes how others compute: checkpoints, own
    backward passes, hooks on tensors, vmap. "" = none."""
    for node in module.graph.nodes:
        if node.op == "get_attr" and isinstance(getattr(module, node.target), nn.Module):
            return next((n.name for n in node.users), node.name)
        if "functorch" in (getattr(node.target, "__module__", None) or ""):
            return "torch.func"
    return ""


class _Audit(TorchDispatchMode):
    """Which memory the operations inside write to, and whether they draw random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.written: set[int] = set()  # since the last node
        self.drew = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for i, argument in enumerate(func._schema.arguments):
            value = args[i] if i < len(args) else kwargs.get(argument.name)
            written = argument.alias_info is not None and argument.alias_info.is_write
            if written and isinstance(value, Tensor):
                self.written.add(memory_of(value))
        self.drew = self.drew or torch.Tag.nondeterministic_seeded in func.tags
        return func(*args, **kwargs)


def memory_of(x: Tensor) -> int:
    return int(x.untyped_storage()._cdata)


def _audit(trace: Trace) -> tuple[set[fx.Node], set[fx.Node], set[str]]:
    """The nodes that draw, those that write, and what inputs they write to: that is state."""
    placeholders = [n for n in trace.module.graph.nodes if n.op == "placeholder"]
    inputs = [n.meta["example_value"] for n in placeholders]
    pairs = zip(inputs, placeholders, strict=True)
    own = {memory_of(x): n for x, n in pairs if isinstance(x, Tensor)}
    audit = _Audit()
    draws, writes, changed = set[fx.Node](), set[fx.Node](), set[int]()

    class Watching(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            audit.drew, audit.written = False, set()
            before = [x for x in map(self.env.get, n.all_input_nodes) if isinstance(x, Tensor)]
            result = super().run_node(n)
            if audit.drew:
                draws.add(n)
            if audit.written & set(map(memory_of, before)):
                writes.add(n)
            changed.update(audit.written)
            return result

    mode = trace.pictures.meta["example_value"].fake_mode
    with mode, audit, torch.enable_grad():
        Watching(trace.module, garbage_collect_values=False).run(*inputs)
    state = {trace.tensors.get(own[x], "its input") for x in own.keys() & changed}
    return draws, writes, state
