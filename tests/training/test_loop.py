"""The loop's schedule, optimizers and lazy penalty, against numbers worked out by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from ganfast.config import Config, LossConfig, OptimConfig, PenaltyConfig
from ganfast.data.resident import ResidentData
from ganfast.fields import Schedule
from ganfast.training.loop import train_loop
from ganfast.training.optim import FlatAdam
from ganfast.training.plan import make_plan
from ganfast.training.schedules import run_factor, scheduled_values, value_at


def config_of(**optim) -> Config:
    return Config(
        kimg=100,
        batch=50,
        optim=OptimConfig(lr_generator=1e-3, lr_critic=3e-3, critic_steps=2, **optim),
    )


def factor_of(config: Config, images: int) -> float:
    return run_factor(config, torch.tensor([images])).item()


@pytest.mark.parametrize(
    ("images", "factor"), [(0, 1.0), (50_000, 1.0), (99_999, 1.0), (100_000, 1.0)]
)
def test_rates_are_constant_unless_asked(images, factor):
    assert factor_of(config_of(), images) == factor


@pytest.mark.parametrize(
    ("images", "factor"), [(0, 1.0), (60_000, 1.0), (70_000, 0.75), (90_000, 0.25), (100_000, 0.0)]
)
def test_decay_falls_linearly_to_zero_at_the_end(images, factor):
    assert factor_of(config_of(decay_from=0.6), images) == pytest.approx(factor, abs=1e-12)


@pytest.mark.parametrize(
    ("images", "factor"), [(0, 0.01), (4_900, 0.5), (9_900, 1.0), (40_000, 1.0)]
)
def test_warm_up_rises_linearly_and_the_first_step_moves(images, factor):
    # A step shows 100 images.
    assert factor_of(config_of(warmup_kimg=10), images) == pytest.approx(factor)


def test_warm_up_and_decay_multiply():
    expected = pytest.approx(0.5 * (1 - 0.399))
    assert factor_of(config_of(warmup_kimg=80, decay_from=0.0), 39_900) == expected


@pytest.mark.parametrize(
    ("schedule", "kimg", "value"),
    [
        (Schedule(1.0, 0.2, 40.0, "linear"), 0, 1.0),
        (Schedule(1.0, 0.2, 40.0, "linear"), 10, 0.8),
        (Schedule(1.0, 0.2, 40.0, "linear"), 40, 0.2),
        (Schedule(1.0, 0.2, 40.0, "linear"), 90, 0.2),
        (Schedule(1.0, 0.2, 40.0), 10, 0.6 + 0.4 * math.cos(math.pi / 4)),
        (Schedule(1.0, 0.2, 40.0), 20, 0.6),
        (Schedule(0.2, 1.0), 25, 0.6 - 0.4 * math.cos(math.pi / 4)),  # over the run of 100 kimg
        (Schedule(0.2, 1.0), 100, 1.0),
        (0.3, 50, 0.3),
    ],
    ids=str,
)
def test_a_schedule_goes_from_first_to_last_and_stays(schedule, kimg, value):
    found = value_at(schedule, torch.tensor([kimg * 1000]), 100.0)
    assert found.dtype == torch.float64
    assert found.item() == pytest.approx(value, rel=1e-12)


def test_what_has_a_schedule_follows_the_counter_and_the_rest_is_absent():
    line = {"over_kimg": 40.0, "shape": "linear"}
    config = config_of(beta2=Schedule(0.9, 0.99, **line), decay_from=0.5)
    assert set(scheduled_values(config_of(), torch.tensor([0]))) == {"critic", "generator", "decay"}
    config = replace(
        config,
        optim=replace(config.optim, lr_critic=Schedule(3e-3, 1e-3, **line)),
        penalty=PenaltyConfig("r1", weight=Schedule(2.0, 8.0, **line)),
        ema_kimg=Schedule(0.0, 2.0, **line),
    )
    values = scheduled_values(config, torch.tensor([0, 20_000, 75_000]))
    wanted = {
        "critic": [3e-3, 2e-3, 0.5e-3],  # halved at 75 kimg by the fall over the last half
        "generator": [1e-3, 1e-3, 0.5e-3],
        "beta2": [0.9, 0.945, 0.99],
        "penalty_share": [0.25, 0.625, 1.0],  # of 8
        # A step shows 100 images; the half-life is at most a tenth of those that were shown.
        "decay": [0.5 ** (100 / 5), 0.5 ** (100 / 1005), 0.5 ** (100 / 2000)],
    }
    assert {name: x.tolist() for name, x in values.items()} == {
        name: pytest.approx(x, rel=1e-9) for name, x in wanted.items()
    }


def test_adam_takes_two_steps_as_worked_out_by_hand():
    """p = 1; gradients 0.5, -0.25; rate 0.1, betas 0.5 and 0.75: swapped they show in step two."""
    net = nn.Linear(1, 1, bias=False).double()
    nn.init.ones_(net.weight)
    optimizer = FlatAdam(net, 0.1, OptimConfig(beta1=0.5, beta2=0.75))
    first, second = 0.0, 0.0
    expected = 1.0
    for step, gradient in enumerate((0.5, -0.25), start=1):
        net.weight.grad = torch.full_like(net.weight, gradient)
        optimizer.step()
        first = 0.5 * first + 0.5 * gradient
        second = 0.75 * second + 0.25 * gradient**2
        expected -= 0.1 * (first / (1 - 0.5**step)) / ((second / (1 - 0.75**step)) ** 0.5 + 1e-8)
    assert net.weight.item() == pytest.approx(expected, rel=1e-12)


def run_steps(tmp_path, config: Config, steps: int) -> list[tuple]:
    """What every critic and generator step was given."""
    np.savez(
        tmp_path / "set.npz",
        images=np.random.default_rng(0).integers(0, 256, (40, 16, 16), np.uint8),
        labels=np.arange(40) % 4,
    )
    plan = make_plan(replace(config, data=str(tmp_path / "set.npz"), kimg=1e3, device="cpu"))
    calls = []

    def critic_step(real, fake, labels, eps, noise, with_penalty, **others):
        calls.append(("critic", labels, with_penalty))
        return {"loss": torch.zeros(())} | ({"penalty": torch.ones(())} if with_penalty else {})

    def generator_step(z, labels, real, **others):
        calls.append(("generator", labels, real))
        return {}

    for net in (plan.state.generator, plan.state.critic):
        for parameter in net.parameters():
            parameter.grad = torch.zeros_like(parameter)
    seen = []
    train_loop(
        plan.state,
        plan.data,
        plan.config,
        critic_step,
        generator_step,
        lambda: len(seen) >= steps,
        lambda state, critic, generator: seen.append(dict(critic)),
    )
    return [calls, seen, plan]


def test_a_lazy_penalty_is_due_every_so_many_critic_steps_and_its_value_reaches_the_log(tmp_path):
    config = Config(
        batch=8,
        penalty=PenaltyConfig("r1", interval=3),
        optim=OptimConfig(critic_steps=2),
        net=replace(Config().net, width=4),
    )
    calls, seen, _ = run_steps(tmp_path, config, 6)
    due = [with_penalty for kind, _, with_penalty in calls if kind == "critic"]
    assert due == [step % 3 == 0 for step in range(12)]
    # Critic steps 0-1, 2-3, 4-5, ...
    assert ["penalty" in stats for stats in seen] == [True, True, False, True, True, False]


def test_the_generator_draws_the_classes_last_shown_to_the_critic_beside_the_reals_of_those_classes(
    tmp_path,
):
    config = Config(
        batch=8,
        conditional="projection",
        loss=LossConfig("relativistic"),
        optim=OptimConfig(critic_steps=2),
        net=replace(Config().net, width=4),
    )
    calls, _, plan = run_steps(tmp_path, config, 2)
    assert isinstance(plan.data, ResidentData)
    for step in range(2):
        critic, generator = calls[3 * step + 1], calls[3 * step + 2]
        real, labels = plan.data.batch((2 * step + 1) * 8, 8)
        assert torch.equal(critic[1], labels)
        assert torch.equal(generator[1], labels)
        assert torch.equal(generator[2], real)
