"""The random numbers of a walked critic's layers, drawn before its step from torch's generator,
in the order in which the reference draws them."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor, nn

from ganfast.config import PenaltyConfig
from ganfast.engine.check import nothing_changed
from ganfast.engine.objective import Inputs
from ganfast.engine.rows import Rows
from ganfast.engine.walk import Value, Walk
from ganfast.models import judge
from ganfast.models.parts import held_power_iteration


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
    ) -> None:
        self.critic, self.penalties, self.autocast = critic, penalties, autocast
        self._steps = [step for step in walk.steps if step.layer.draws]
        self._likes: dict[tuple[torch.Size, torch.dtype], list[Tensor]] = {}

    def __call__(self, inputs: Inputs) -> Mapping[Value, Tensor]:
        if not self._steps:
            return {}
        kind = inputs.real.shape, inputs.real.dtype
        if kind not in self._likes:
            self._likes[kind] = self._inputs_of_layers(inputs)
        likes = [torch.empty_like(x, device=inputs.real.device) for x in self._likes[kind]]
        steps = list(zip(self._steps, likes, strict=True))
        starts = Rows.starts(len(inputs.real), 2 + len(inputs.points), self.penalties)
        blocks = {start: [step.layer.draw(like) for step, like in steps] for start in starts}
        in_rows = [blocks[start] for start in sorted(blocks)]
        columns = zip(*in_rows, strict=True)
        return {step.output: torch.cat(c) for step, c in zip(self._steps, columns, strict=True)}

    @torch.no_grad()
    def _inputs_of_layers(self, inputs: Inputs) -> list[Tensor]:
        """What reaches the drawing modules for the reals, as shapes and layouts, by one forward
        pass."""
        seen: dict[str, list[Tensor]] = {step.name: [] for step in self._steps}

        def note(name: str, module: nn.Module, args: tuple[Tensor, ...]) -> None:
            seen[name].append(torch.empty_like(args[0], device="meta"))

        real, kind = inputs.real, inputs.real.device.type
        with ExitStack() as held, nothing_changed(self.critic), held_power_iteration(self.critic):
            for name in seen:
                module = self.critic.get_submodule(name)
                held.callback(module.register_forward_pre_hook(partial(note, name)).remove)
            with torch.autocast(kind, self.autocast, enabled=self.autocast is not None):
                judge(self.critic, real, inputs.real_labels)
        return [seen[step.name].pop(0) for step in self._steps]
