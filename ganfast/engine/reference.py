"""The critic step by its definition, in eager autograd: what every faster engine is compared with."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ganfast.config import LossConfig, PenaltyConfig
from ganfast.engine.objective import Inputs, Stats, holds, objective, penalty_stats
from ganfast.models import judge
from ganfast.models.parts import held_power_iteration
from ganfast.penalties import input_gradient, norm, penalty_at, zero_centred_penalty


def whole_loss(
    critic: nn.Module, loss: LossConfig, penalties: Sequence[PenaltyConfig], inputs: Inputs, autocast: torch.dtype | None = None
) -> tuple[Tensor, Stats]:
    """Everything that the critic minimises, 0-d and differentiable with respect to the parameters, and its parts."""
    real = inputs.real.detach().requires_grad_(holds(penalties, "r1"))
    fake = inputs.fake.detach().requires_grad_(holds(penalties, "r2"))  # never a path back into the generator
    points = iter(inputs.points)
    values: list[Tensor] = []
    norms: list[Tensor] = []
    with torch.autocast(real.device.type, autocast, enabled=autocast is not None):
        said = judge(critic, real, inputs.real_labels)  # reals and fakes apart: batch statistics are those of each on its own
        with held_power_iteration(critic):
            said_fake = judge(critic, fake, inputs.fake_labels)
            # R1 and R2 hold the gradient at the very pictures that the loss scores, and share their forward.
            at = {"r1": input_gradient(said.score, real)} if real.requires_grad else {}
            at |= {"r2": input_gradient(said_fake.score, fake)} if fake.requires_grad else {}
            for penalty in penalties:
                if penalty.at_own_points:
                    value, norm_ = penalty_at(penalty, critic, next(points).detach().requires_grad_(), inputs.real_labels)
                    values, norms = [*values, value], [*norms, norm_]
                else:
                    held = [gradient for kind, gradient in at.items() if kind in penalty.kind]
                    values.append(torch.stack([zero_centred_penalty(penalty, g) for g in held]).sum(0))
                    norms += [norm(g) for g in held]
    total, stats = objective(loss, said, said_fake, inputs.real_labels, inputs.fake_labels)
    for penalty, value in zip(penalties, values, strict=True):
        total = total + penalty.interval * value.mean()  # lazy: rarer, as much heavier
    return total, stats | (penalty_stats(values, norms) if penalties else {})
