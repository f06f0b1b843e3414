"""From a recorded forward to the steps of the explicit engine.

A forward is recorded by torch.fx, or by `trace.FrontEnd`; each of its operations becomes a `Layer`,
if `translate` or `functions` knows it.
"""

import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from ganfast.engine.walking.record import Record, is_context, kind_of, sets_gradients
from ganfast.engine.walking.steps import CannotWalk, Walk
from ganfast.engine.walking.trace import CannotTrace, FrontEnd, Trace, memory_of
from ganfast.engine.walking.translate import module_layers
from ganfast.engine.walking.walker import ARITHMETIC, Walker
from ganfast.models import Judgement, as_judgement, averages_scores
from ganfast.models.members import is_known


def walk(critic: nn.Module, *given: Tensor) -> Walk:
    """The steps of a critic in the order of its forward pass.

    A critic with classes that are neither torch's nor ours is walked as it is called with
    ``given``: pictures (N, ...), and labels (N,) if it takes them.

    Raises:
        CannotWalk: Python control flow on values, or nothing before the first unknown layer; names
            the layers.
    """
    if not is_known(critic):
        try:
            return walk_trace(FrontEnd(critic)(*given)[0], averages_scores(critic))
        except CannotTrace as error:
            raise CannotWalk(str(error)) from error
    try:
        graph = _Tracer().trace(critic, concrete_args=_unused_arguments(critic))
    except Exception as error:  # whatever a user's forward does when it is given symbols
        reason = " ".join(str(error).split())[:200]
        name = type(critic).__name__
        raise CannotWalk(f"the forward of {name} cannot be recorded: {reason}") from error
    fx.GraphModule(critic, graph)  # the graph asks its module which nodes have side effects
    graph.eliminate_dead_code()
    placeholders = [n for n in graph.nodes if n.op == "placeholder"]
    answer: Any = next(n for n in graph.nodes if n.op == "output").args[0]
    if isinstance(answer, fx.Node) and isinstance(answer.target, type):
        answer = answer.args  # a named tuple is a tuple
    answers = answer if isinstance(answer, tuple | list) else (answer,)
    parts = tuple(a for a in answers if a is not None)
    takes_labels = bool(getattr(critic, "takes_labels", False))
    labels = set(placeholders[1:])
    return _walked(Record(critic, graph, placeholders[0], labels, parts, takes_labels))


def walk_trace(trace: Trace, averaged: bool = False) -> Walk:
    """The same by the trace of the critic's call; ``averaged`` as of `as_judgement`."""
    return _judging(_walked(_record(trace)), trace, averaged)


def walk_nothing(trace: Trace, averaged: bool = False) -> Walk:
    """All of a critic as a tail: autograd computes what the trace holds. Raises CannotWalk."""
    return _judging(Walker(_record(trace)).tail_only(), trace, averaged)


def _judging(walk: Walk, trace: Trace, averaged: bool) -> Walk:
    def judge(answers: Sequence[Tensor], count: int) -> Judgement:
        return as_judgement(trace.returned(answers), count, averaged)

    return replace(walk, judge=judge)


def _record(trace: Trace) -> Record:
    graph = trace.module.graph
    if any(n.op == "get_attr" for n in graph.nodes):
        raise CannotWalk("its forward hands functions on, as checkpointing does")
    if context := [n for n in graph.nodes if is_context(n) and not sets_gradients(n)]:
        raise CannotWalk(f"its forward calls {kind_of(context[0])}")
    for node in trace.writes:
        if not _is_read_by_nobody_else(node):
            raise CannotWalk(f"{node.name} ({kind_of(node)}) overwrites what others read")
    for node in graph.nodes:
        # A number that keeps changing is a tensor without axes, from which the graph takes it.
        if node.target == "item" and isinstance(node.meta["example_value"], torch.SymFloat):
            number: Any = node.args[0]
            node.replace_all_uses_with(number, lambda user: user.target in ARITHMETIC)
    constants = {n for n, name in trace.tensors.items() if name in trace.constants.values()}
    more = trace.batch, trace.tensors, constants, trace.draws
    takes_labels = bool(trace.labels)
    return Record(
        trace.module, graph, trace.pictures, trace.labels, trace.answers, takes_labels, *more
    )


def _is_read_by_nobody_else(node: fx.Node) -> bool:
    """Whether all that lies in the memory that the node writes to leads to the node alone."""
    memory = memory_of(node.all_input_nodes[0].meta["example_value"])
    before = list(node.graph.nodes)
    for other in before[: before.index(node)]:
        value = other.meta.get("example_value")
        if isinstance(value, Tensor) and memory_of(value) == memory and len(other.users) > 1:
            return False
    return True


def _walked(record: Record) -> Walk:
    result = Walker(record).walk()
    if result.draws and result.tail is not None:
        # The tail may draw as well, between the layers' draws: then no layer that draws is walked.
        result = Walker(record, draws=False).walk()
    return result


def _unused_arguments(critic: nn.Module) -> dict[str, Any]:
    """Arguments that a critic without labels is not called with, by their defaults.

    The defaults decide branches of its forward, which symbols could not.
    """
    if getattr(critic, "takes_labels", False):
        return {}
    parameters = list(inspect.signature(critic.forward).parameters.values())[1:]
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


class _Tracer(fx.Tracer):
    """Records known layers whole and looks into other modules."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) is not nn.Sequential and (
            module_layers(m, "") is not None or super().is_leaf_module(m, module_qualified_name)
        )
