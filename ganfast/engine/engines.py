"""What computes a critic's steps: a callable for each engine, over the critic's own tensors."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from ganfast.config import LossConfig, PenaltyConfig
from ganfast.engine.autograd import AutogradStep
from ganfast.engine.choice import Choice
from ganfast.engine.compiled import compiled
from ganfast.engine.draws import Draws
from ganfast.engine.explicit import ExplicitStep, bias_shares
from ganfast.engine.gradients import trainable
from ganfast.engine.objective import Inputs, Stats
from ganfast.engine.reference import whole_loss
from ganfast.engine.walking.fuse import fused
from ganfast.engine.walking.steps import CannotWalk, Walk
from ganfast.engine.walking.trace import Trace
from ganfast.engine.walking.walk import walk_nothing
from ganfast.engine.weights import EffectiveWeights, MadeWeights
from ganfast.kernels._triton import use_triton
from ganfast.models import averages_scores
from ganfast.models.parts import held_power_iteration

# Computes a step with or without its penalties.
Engine = Callable[[Inputs, bool], tuple[list[Tensor | None], Stats]]


class Engines:
    """Engines of one critic as it stands.

    Args:
        computing: as of `make_critic_step`.
        constants: gives, in a call, the values of the constants of the critic's trace.
    """

    def __init__(
        self,
        critic: nn.Module,
        loss: LossConfig,
        penalties: Sequence[PenaltyConfig],
        autocast: torch.dtype | None,
        computing: nn.Module | None,
        constants: Callable[[], Mapping[str, Tensor]],
    ) -> None:
        self.critic, self.loss, self.penalties, self.autocast = critic, loss, penalties, autocast
        self.computing, self.constants, self.parameters = computing, constants, trainable(critic)

    def made(self, choice: Choice, walked: Walk | None, trace: Trace | None) -> Engine:
        """The engine of a choice; ``walked``, and the trace that it was made of, where it is
        explicit."""
        match choice.engine:
            case "explicit":
                assert walked is not None
                return self._explicit(choice.compiled, walked, trace)
            case "autograd":
                return self._autograd(choice.compiled, trace)
        return self._reference(choice.compiled)

    def _reference(self, compile: bool) -> Engine:
        plain = torch.compile(whole_loss) if compile else whole_loss

        def run(inputs: Inputs, penalised: bool) -> tuple[list[Tensor | None], Stats]:
            function, penalties = (whole_loss, self.penalties) if penalised else (plain, ())
            total, stats = function(self.critic, self.loss, penalties, inputs, self.autocast)
            gradients = torch.autograd.grad(total, self.parameters, allow_unused=True)
            return list(gradients), {name: value.detach() for name, value in stats.items()}

        return run

    def _autograd(self, compile: bool, trace: Trace | None) -> Engine:
        if compile and trace is not None:
            # The trace has the numbers that keep changing as inputs; the forward would bake them.
            with suppress(CannotWalk):
                whole = walk_nothing(trace, averages_scores(self.critic))
                return self._explicit(True, whole, trace)
            compile = False
        plain = self._reference(compile)  # first derivatives need no help
        step: Any = AutogradStep(self.critic, self.loss, self.penalties, self.autocast)
        step = compiled(step) if compile else step

        def run(inputs: Inputs, penalised: bool) -> tuple[list[Tensor | None], Stats]:
            if not penalised:
                return plain(inputs, False)
            EffectiveWeights(self.critic)  # one power iteration
            weights: dict[str, Tensor] = dict(self.critic.named_parameters())
            if compile:  # a graph changes copies; a forward that runs changes its buffers itself
                weights |= dict(self.critic.named_buffers())
            weights = {name: value.detach() for name, value in weights.items()}
            with held_power_iteration(self.critic):
                gradients, stats = step(weights, inputs)
            trainable = [n for n, p in self.critic.named_parameters() if p.requires_grad]
            return [gradients.get(name) for name in trainable], stats

        return run

    def _explicit(self, compile: bool, walked: Walk, trace: Trace | None) -> Engine:
        by_kernels = use_triton(self.parameters[0]) and self.parameters[0].dtype != torch.float64
        if by_kernels:
            with held_power_iteration(self.critic):  # only the shapes are looked at
                values = EffectiveWeights(self.critic).values | dict(self.constants())
                walked = fused(walked, MadeWeights(walked.making, values).weights)
        steps: dict[bool, Any] = {}
        draws = {}
        shares: dict[tuple[bool, int], Tensor] = {}
        for penalised, penalties in ((True, self.penalties), (False, ())):
            step = ExplicitStep(walked, self.loss, penalties, self.autocast)
            steps[penalised] = compiled(step) if compile else step
            draws[penalised] = Draws(self.critic, walked, penalties, self.autocast, trace)

        twin: Iterable[tuple[str, Tensor]] = ()
        if self.computing is not None:
            twin = self.computing.named_parameters(remove_duplicate=False)
        ready = {name: value.detach() for name, value in twin if value.dtype == self.autocast}

        def run(inputs: Inputs, penalised: bool) -> tuple[list[Tensor | None], Stats]:
            key = penalised, len(inputs.real)
            if by_kernels and key not in shares:
                shares[key] = bias_shares(inputs.real, self.penalties if penalised else ())
            effective, buffers = EffectiveWeights(self.critic), {}
            if walked.normed:
                buffers = dict(self.critic.named_buffers(remove_duplicate=False))
            running = {name: buffers[name] for layer in walked.normed for name in layer.running}
            with torch.no_grad(), held_power_iteration(self.critic):
                weights = effective.values | running | dict(self.constants())
                # out here: a compiler would draw other numbers
                drawn = draws[penalised](inputs, weights)
                given = weights, inputs, ready, drawn, shares.get(key)
                gradients, stats = steps[penalised](*given)
                for name, buffer in running.items():
                    buffer.copy_(gradients[name])
                for layer in walked.normed:
                    if layer.counter:
                        buffers[layer.counter] += 2  # reals and fakes
            return effective.parameter_gradients(gradients), stats

        return run
