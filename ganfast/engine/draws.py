"""The random numbers of a walked critic's layers, drawn before its step from torch's generator,
in the order in which the reference draws them."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from ganfast.config import PenaltyConfig
from ganfast.engine.check import nothing_changed
from ganfast.engine.objective import Inputs
from ganfast.engine.rows import Rows
from ganfast.engine.walking.steps import Value, Walk
from ganfast.engine.walking.trace import Trace
from ganfast.models import judge
from ganfast.models.parts import held_power_iteration
from ganfast.tensors import behind


class Draws:
    """``draws(inputs)`` returns one step's random numbers, by the output of the layer that takes
    them; {} where no layer draws.

    All of the reals' come first, then all of the fakes', then those of each batch of points: the
    order of the reference. A tensor is filled in the order of memory, so each is laid out as what
    the critic's own module is given there.
    """

    def __init__(
        self,
        critic: nn.Module,
        walk: Walk,
        penalties: Sequence[PenaltyConfig],
        autocast: torch.dtype | None,
        trace: Trace | None = None,
    ) -> None:
        """``trace``: what ``walk`` was made of, if it was."""
        self.critic, self.penalties, self.autocast, self.trace = critic, penalties, autocast, trace
        self._steps = [step for step in walk.steps if step.layer.draws]
        self._likes: dict[tuple[torch.Size, torch.dtype], list[Tensor]] = {}

    def __call__(self, inputs: Inputs, weights: Mapping[str, Tensor]) -> Mapping[Value, Tensor]:
        """``weights``: the critic's, as a step of the engine takes them."""
        if not self._steps:
            return {}
        kind = inputs.real.shape, inputs.real.dtype
        if kind not in self._likes:
            computed = torch.autocast(
                inputs.real.device.type, self.autocast, enabled=self.autocast is not None
            )
            with computed, torch.no_grad():
                self._likes[kind] = (
                    self._inputs_of_layers(inputs)
                    if self.trace is None
                    else self._inputs_of_nodes(inputs, weights, self.trace)
                )
        likes = [torch.empty_like(x, device=inputs.real.device) for x in self._likes[kind]]
        steps = list(zip(self._steps, likes, strict=True))
        starts = Rows.starts(len(inputs.real), 2 + len(inputs.points), self.penalties)
        blocks = {start: [step.layer.draw(like) for step, like in steps] for start in starts}
        in_rows = [blocks[start] for start in sorted(blocks)]
        columns = zip(*in_rows, strict=True)
        return {step.output: torch.cat(c) for step, c in zip(self._steps, columns, strict=True)}

    def _inputs_of_layers(self, inputs: Inputs) -> list[Tensor]:
        """What reaches the drawing modules for the reals, as shapes and layouts, by one forward
        pass."""
        seen: dict[str, list[Tensor]] = {step.name: [] for step in self._steps}

        def note(name: str, module: nn.Module, args: tuple[Tensor, ...]) -> None:
            seen[name].append(torch.empty_like(args[0], device="meta"))

        with ExitStack() as held, nothing_changed(self.critic), held_power_iteration(self.critic):
            for name in seen:
                module = self.critic.get_submodule(name)
                held.callback(module.register_forward_pre_hook(partial(note, name)).remove)
            judge(self.critic, behind(inputs.real, inputs.condition), inputs.real_labels)
        return [seen[step.name].pop(0) for step in self._steps]

    def _inputs_of_nodes(
        self, inputs: Inputs, weights: Mapping[str, Tensor], trace: Trace
    ) -> list[Tensor]:
        """The same of a trace's nodes."""
        nodes = [step.node for step in self._steps]
        seen: dict[Any, Tensor] = {}

        class Noting(fx.Interpreter):
            def run_node(self, n: fx.Node) -> Any:
                if n in nodes:
                    seen[n] = torch.empty_like(self.env[n.all_input_nodes[0]], device="meta")
                return super().run_node(n)

        with nothing_changed(self.critic):
            shown = behind(inputs.real, inputs.condition)
            Noting(trace.module).run(*trace.arguments(weights, shown, inputs.real_labels))
        return [seen[node] for node in nodes]
