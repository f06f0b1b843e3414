"""The random numbers of a walked critic's layers, drawn before its step from torch's generator,
in the order in which the reference draws them."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor, nn

from ganfast.config import PenaltyConfig
from ganfast.engine.check import nothing_changed
from ganfast.engine.explicit import Rows
from ganfast.engine.objective import Inputs
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
        known = inputs.real.shape, inputs.real.dtype
        if known not in self._likes:
            self._likes[known] = self._given(inputs)
        device = inputs.real.device
        likes = [
            torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=device)
            for x in self._likes[known]
        ]
        starts = Rows.starts(len(inputs.real), 2 + len(inputs.points), self.penalties)
        blocks = {
            at: [step.layer.draw(like) for step, like in zip(self._steps, likes, strict=True)]
            for at in starts
        }
        in_rows = [blocks[at] for at in sorted(blocks)]
        return {
            step.output: torch.cat([block[k] for block in in_rows])
            for k, step in enumerate(self._steps)
        }

    @torch.no_grad()
    def _given(self, inputs: Inputs) -> list[Tensor]:
        """The shapes and layouts that reach the drawing modules for the reals, found by one
        forward pass."""
        seen: dict[str, list[Tensor]] = {step.name: [] for step in self._steps}

        def note(name: str, module: nn.Module, given: tuple[Tensor, ...]) -> None:
            seen[name].append(torch.empty_like(given[0], device="meta"))

        real, kind = inputs.real, inputs.real.device.type
        with ExitStack() as held, nothing_changed(self.critic), held_power_iteration(self.critic):
            for name in seen:
                hook = self.critic.get_submodule(name).register_forward_pre_hook(
                    partial(note, name)
                )
                held.callback(hook.remove)
            with torch.autocast(kind, self.autocast, enabled=self.autocast is not None):
                judge(self.critic, real, inputs.real_labels)
        return [seen[step.name].pop(0) for step in self._steps]
