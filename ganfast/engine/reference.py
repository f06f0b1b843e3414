"""The critic step by its definition, in eager autograd. Every faster engine is compared with it."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ganfast.config import LossConfig, PenaltyConfig
from ganfast.engine.objective import Inputs, Stats, objective, penalty_stats
from ganfast.models import judge
from ganfast.models.parts import held_power_iteration
from ganfast.penalties import holds, input_gradient, penalise, segments_of


def whole_loss(
    critic: nn.Module,
    loss: LossConfig,
    penalties: Sequence[PenaltyConfig],
    inputs: Inputs,
    autocast: torch.dtype | None = None,
) -> tuple[Tensor, Stats]:
    """The critic's whole loss, 0-d and differentiable by the parameters, and its parts. Where the
    inputs have a scale, the loss is that many times as large, and its parts are not."""
    real = inputs.real.detach().requires_grad_(holds(penalties, "real"))
    # Detached too: there is never a path back into the generator.
    fake = inputs.fake.detach().requires_grad_(holds(penalties, "fake"))
    values: list[Tensor] = []
    norms: list[Tensor] = []
    with torch.autocast(real.device.type, autocast, enabled=autocast is not None):
        # Two calls, because batch statistics are those of the reals, and those of the fakes.
        on_real = judge(critic, inputs.seen(0, real), inputs.real_labels)
        with held_power_iteration(critic):
            on_fake = judge(critic, inputs.seen(1, fake), inputs.fake_labels)
            # R1 and R2 hold the gradient at the very pictures that the loss scores, and share their
            # forward.
            at = {"real": input_gradient(on_real.score, real)} if real.requires_grad else {}
            at |= {"fake": input_gradient(on_fake.score, fake)} if fake.requires_grad else {}
            for penalty, segments in zip(penalties, segments_of(penalties), strict=True):
                parts = []
                for segment in segments:
                    if isinstance(segment, str):
                        value, norm = penalise(penalty, at[segment])
                    else:
                        points = inputs.points[segment].detach().requires_grad_()
                        seen = inputs.seen(2 + segment, points)
                        score = judge(critic, seen, inputs.real_labels).score
                        value, norm = penalise(penalty, input_gradient(score, points))
                    parts.append(value)
                    norms.append(norm)
                value = torch.stack(parts).sum(0)
                values.append(
                    value if inputs.penalty_share is None else value * inputs.penalty_share
                )
    total, stats = objective(loss, on_real, on_fake, inputs.real_labels, inputs.fake_labels)
    for penalty, value in zip(penalties, values, strict=True):
        total = total + penalty.interval * value.mean()  # lazy: rarer, as much heavier
    if inputs.scale is not None:
        total = total * inputs.scale
    return total, stats | (penalty_stats(values, norms) if penalties else {})
