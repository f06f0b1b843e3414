"""Engines train alike: loss curves differ by rounding, as do two runs from weights an ulp apart."""

from dataclasses import replace

import pytest
import torch

from ganfast.engine import make_critic_step, make_generator_step
from ganfast.presets import preset_config
from ganfast.training.loop import train_loop
from ganfast.training.plan import make_plan

STEPS = 200  # generator steps


def curve(real_data, engine: str, moved: bool = False) -> torch.Tensor:
    """Critic losses (STEPS,) of wgan-gp on MNIST; ``moved``: critic weights start an ulp away."""
    config = replace(preset_config("wgan-gp", "mnist"), data_root=str(real_data))
    config = replace(config, kimg=STEPS * config.batch * config.optim.critic_steps / 1000)
    plan = make_plan(config)
    if moved:
        with torch.no_grad():
            for p in plan.state.critic.parameters():
                p.copy_(torch.nextafter(p, torch.full_like(p, torch.inf)))
    c, state = plan.config, plan.state
    critic_step = make_critic_step(state.critic, c.loss, c.penalty, engine=engine, compile=False)
    losses = []
    train_loop(
        state,
        plan.data,
        c,
        critic_step,
        make_generator_step(state.generator, state.critic, c.loss),
        lambda: False,
        lambda state, critic, generator: losses.append(critic["loss"]),
    )
    assert critic_step.choice.engine == engine
    return torch.stack(losses)


@pytest.mark.accept
def test_loss_curves_of_engines_part_no_further_than_rounding_makes_them(real_data):
    reference = curve(real_data, "reference")
    assert len(reference) == STEPS
    rounding = (curve(real_data, "reference", moved=True) - reference).abs().max()
    for engine in ("explicit", "autograd"):
        gap = (curve(real_data, engine) - reference).abs().max()
        print(
            f"{engine}: largest difference {gap:.3g}, of the moved reference {rounding:.3g}, "
            f"losses {reference.abs().mean():.3g}"
        )
        assert 0 < gap <= 3 * rounding
