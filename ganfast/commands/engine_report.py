"""What `ganfast engines` prints: which layers the explicit engine walks, and costs and errors."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from ganfast.config import EngineName
from ganfast.engine import draw
from ganfast.engine.check import full_float32, relative_error
from ganfast.engine.critic import CriticStep, make_critic_step
from ganfast.engine.walking.steps import Walk
from ganfast.errors import InputError
from ganfast.flops import FlopCount, PeakBytes
from ganfast.models.parts import held_power_iteration
from ganfast.tensors import behind
from ganfast.training.plan import Plan

ENGINES: tuple[EngineName, ...] = ("reference", "autograd", "explicit")


@dataclass(frozen=True)
class EngineCost:
    """The cost of one un-compiled critic step at the config's batch."""

    flops: int
    peak_bytes: int  # tensors alive at once, beside weights, gradients and pictures
    error: float  # relative, of the whole gradient, against the reference in float64


def engine_costs(plan: Plan) -> tuple[dict[str, EngineCost | str], int]:
    """Every engine on the first batch and pictures of the initial generator.

    Returns:
        costs by engine, or a sentence where an engine cannot take the critic; and the FLOPs of one
        forward pass of the critic over the batch.
    """
    c, state = plan.config, plan.state
    real, labels = plan.batch(c.batch)
    generator = torch.Generator(real.device).manual_seed(c.seed)
    with torch.no_grad():
        z = torch.randn(c.batch, c.net.latent, device=real.device, generator=generator)
        given, shown = plan.conditions(real)
        fake = draw(state.generator, z, labels, given)
    eps = torch.rand(c.batch, device=real.device, generator=generator)
    noise = torch.rand(real.shape, device=real.device, generator=generator)
    with FlopCount() as forward, torch.no_grad():
        takes_labels = getattr(state.critic, "takes_labels", False)
        seen = behind(real, shown)
        state.critic(*((seen, labels) if takes_labels else (seen,)))

    def gradients(
        engine: EngineName, dtype: torch.dtype
    ) -> tuple[list[Tensor], FlopCount, PeakBytes]:
        critic = copy.deepcopy(state.critic).to(dtype)
        autocast = plan.autocast if dtype is torch.float32 else None
        step = make_critic_step(
            critic, c.loss, c.penalty, autocast, engine, compile=False, check=False
        )
        torch.manual_seed(c.seed)  # dropout
        with FlopCount() as flops, PeakBytes() as peak:
            pictures, drawn = (real.to(dtype), fake.to(dtype)), (eps.to(dtype), noise.to(dtype))
            step(*pictures, labels, None, *drawn, condition=shown)
        return step.gradients.views, flops, peak

    costs: dict[str, EngineCost | str] = {}
    with full_float32():
        exact, _, _ = gradients("reference", torch.float64)
    for engine in ENGINES:
        try:
            views, flops, peak = gradients(engine, torch.float32)
        except InputError as error:
            costs[engine] = str(error)
            continue
        costs[engine] = EngineCost(flops.total, peak.total, relative_error(views, exact))
    return costs, forward.total


def engines_report(plan: Plan) -> str:
    """For a person."""
    c = plan.config
    options = plan.state.critic, c.loss, c.penalty, plan.autocast
    pictures, labels = plan.batch(2)
    shown = pictures, labels, plan.conditions(pictures)[1]
    choice = make_critic_step(*options, c.engine, plan.compile).prepare(*shown)
    step = make_critic_step(*options, compile=False)
    step.prepare(*shown)
    costs, forward = engine_costs(plan)
    lines = [f"{plan.describe()}", f"critic step: {choice}", ""]
    if step.walked is not None:
        lines += _layers(plan, step, step.walked)
    else:
        lines.append(f"no layer is walked: {step.choice.reason}")
    penalty = f"penalty {c.penalty.kind}" if c.penalty.active else "no penalty"
    title = f"one step, {penalty}, batch {c.batch}"
    lines += ["", f"{title:36}{'GFLOP':>10}{'in F':>8}{'peak MB':>10}{'error':>10}"]
    for engine, cost in costs.items():
        if isinstance(cost, str):
            lines.append(f"{engine:14}{cost}")
        else:
            work = f"{cost.flops / 1e9:10.3f}{cost.flops / forward:8.2f}"
            lines.append(f"{engine:36}{work}{cost.peak_bytes / 1e6:10.1f}{cost.error:10.1e}")
    lines.append(
        "F: the critic's forward pass over the batch; "
        "error: of the whole gradient, relative to the reference in float64"
    )
    return "\n".join(lines)


def _layers(plan: Plan, critic_step: CriticStep, walked: Walk) -> list[str]:
    """One line a layer: its place, its type, whether the explicit engine walks it, and its FLOPs.

    The FLOPs are those of the forward pass for one picture.
    """
    pictures, labels = plan.batch(2)
    pictures = behind(pictures, plan.conditions(pictures)[1])
    with torch.no_grad(), held_power_iteration(plan.state.critic):
        weights = critic_step.weights()
        values = {0: pictures}
        lines = [f"{'layer':24}{'what':14}{'walked':12}{'MFLOP a picture':>16}"]
        for step in walked.steps:
            x = [values[i] for i in step.inputs]
            if step.label_index is not None and labels is not None:
                x.append(step.label_index(labels))
            if step.layer.draws:
                x.append(step.layer.draw(x[0]))
            with FlopCount() as count:
                values[step.output], _ = step.layer.forward(weights, *x)
            kind, flops = type(step.layer).__name__, count.total / 2 / 1e6  # of two pictures
            lines.append(f"{step.name:24}{kind:14}{'yes':12}{flops:16.3f}")
    return lines + [f"{name:38}no, nor what follows from it" for name in walked.refused]
