"""Steps in float16, and the scale that they need: by every engine, against float64."""

import copy

import pytest
import torch

from ganfast.config import LossConfig, PenaltyConfig
from ganfast.engine import make_critic_step, make_generator_step
from tests.depth import in_turn
from tests.engine.test_engine_reference import latents, small_critic, small_generator
from tests.engine.test_engines import (
    CURVED,
    ENGINES,
    FAST,
    KINDS,
    ROUNDED,
    error,
    gradient,
    norm_critic,
    pictures,
    plain_critic,
    run,
    warnings_of,
)

CRITICS = {kind: lambda seed, kind=kind: norm_critic(kind, seed) for kind in CURVED} | ROUNDED
PENALISED = ["none", *KINDS]


@pytest.mark.parametrize(("critic", "penalty"), in_turn(CRITICS, PENALISED))
def test_a_scale_multiplies_the_critics_gradient_and_nothing_else(critic, penalty):
    """To the bit, as it is a power of two: in float64 nothing overflows or vanishes."""
    critic, scale = CRITICS[critic](0), torch.tensor(2.0**20)
    for engine in ENGINES:
        plain, stats, _ = run(critic, engine, penalty=penalty)
        scaled, same, _ = run(critic, engine, penalty=penalty, scale=scale)
        assert plain.norm() > 1e-6
        assert torch.equal(scaled, plain * scale), engine
        assert {name: value.item() for name, value in stats.items()} == {
            name: value.item() for name, value in same.items()
        }


@pytest.mark.accept
@pytest.mark.parametrize("penalty", ["wgan-gp", "none", "r1"])
def test_a_compiled_step_follows_a_scale_that_changes(penalty):
    critic, scale = plain_critic(), torch.tensor(4.0)
    how = {"penalty": penalty, "engine": "explicit", "check": False}
    step = make_critic_step(critic, "hinge", compile=True, scale=scale, **how)
    found = []
    for value in (4.0, 32.0):
        scale.fill_(value)
        step(**pictures())
        found.append(step.gradients.flat / value)
    assert torch.equal(*found)
    plain = make_critic_step(critic, "hinge", compile=False, **how)
    plain(**pictures())
    assert error(found[0], plain.gradients.flat) < 1e-12


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.accept)])
def test_a_scale_multiplies_the_generators_gradient_and_nothing_else(compile, caplog):
    generator, critic, scale = small_generator(), small_critic(), torch.tensor(2.0**20)
    found, stats = [], []
    for given in (None, scale):
        step = make_generator_step(
            generator, critic, LossConfig("non-saturating"), compile=compile, scale=given
        )
        stats.append(step(latents())["loss"].item())
        found.append(step.gradients.flat)
    assert torch.equal(found[1], found[0] * scale)
    assert stats[0] == stats[1]
    assert not warnings_of(caplog)


@pytest.mark.parametrize(("critic", "penalty"), in_turn(ROUNDED, PENALISED))
def test_under_fp16_engines_are_as_accurate_as_fp16_allows(critic, penalty):
    how = {"penalty": PenaltyConfig(penalty, weight=3.0)}
    critic, scale = ROUNDED[critic](0), torch.tensor(2.0**10)
    exact = gradient(critic, inputs=pictures(n=16), **how)
    how |= {"inputs": pictures(n=16, dtype=torch.float32), "scale": scale}
    critic, errors = critic.float(), {}
    for engine in ENGINES:
        found, stats, _ = run(critic, engine, autocast=torch.float16, **how)
        assert found.dtype == torch.float32
        assert {value.dtype for value in stats.values()} == {torch.float32}
        errors[engine] = error(found / scale, exact)
    assert 1e-4 < errors["reference"] < 2e-3  # else float16 was not used
    for engine in FAST:
        assert 1e-4 < errors[engine] <= 1.5 * errors["reference"] + 1e-4, errors


def with_small_scores(factor):
    """A critic whose last weights are small, and so all that flows back from its scores."""
    critic = plain_critic()
    last = [p for p in critic.parameters() if p.dim() > 1][-1]
    last.data.mul_(factor)
    return critic, next(critic.parameters()).numel()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("penalty", ["none", "wgan-gp", "r1"])
def test_gradients_that_vanish_in_float16_are_there_with_a_scale(penalty, engine):
    critic, count = with_small_scores(2.0**-15)
    penalty = PenaltyConfig(penalty, weight=1e-3)
    exact = gradient(critic, penalty=penalty, inputs=pictures(n=16))[:count]
    critic.float()
    errors = []
    for scale in (torch.tensor(1.0), torch.tensor(2.0**14)):
        found, _, _ = run(
            *(critic, engine),
            **{"penalty": penalty, "autocast": torch.float16, "scale": scale},
            inputs=pictures(n=16, dtype=torch.float32),
        )
        errors.append(error(found[:count] / scale, exact))
    assert errors[0] > 0.1
    assert errors[1] < 0.02


def test_the_generators_gradients_that_vanish_are_there_with_a_scale():
    critic, generator = small_critic(dtype=torch.float32), small_generator(dtype=torch.float32)
    for p in critic.parameters():
        p.data.mul_(0.02)
    loss, found = LossConfig("wasserstein"), []
    exact = copy.deepcopy((generator, critic))
    for net in exact:
        net.double()
    step = make_generator_step(*exact, loss)
    step(latents())
    for scale in (1.0, 2.0**14):
        scaled = make_generator_step(
            generator, critic, loss, torch.float16, scale=torch.tensor(scale)
        )
        scaled(latents(torch.float32))
        found.append(error(scaled.gradients.flat / scale, step.gradients.flat))
    assert found[0] > 0.1
    assert found[1] < 0.01


@pytest.mark.parametrize("engine", FAST)
@pytest.mark.parametrize("penalty", ["none", "wgan-gp", "r1"])
def test_the_check_passes_at_a_scale_that_overflows(penalty, engine, caplog):
    """A training begins with one, and its first steps are then left out."""
    critic, scale = plain_critic().float(), torch.tensor(2.0**24)
    how = {"engine": engine, "compile": False, "autocast": torch.float16}
    step = make_critic_step(critic, "hinge", penalty, scale=scale, **how)
    step(**pictures(dtype=torch.float32))
    assert not step.gradients.flat.isfinite().all()
    assert step.choice.engine == engine
    assert scale == 2.0**24
    assert not warnings_of(caplog)


def test_a_wrong_engine_is_found_in_float16_too(monkeypatch, caplog):
    monkeypatch.setattr("ganfast.engine.layers.LeakyReLU.tangent", lambda self, w, kept, t: t)
    how = {"engine": "explicit", "compile": False, "autocast": torch.float16}
    step = make_critic_step(
        plain_critic().float(), "hinge", "wgan-gp", scale=torch.tensor(2.0**16), **how
    )
    step(**pictures(dtype=torch.float32))
    assert step.choice.engine == "reference"
    assert "off the reference's" in caplog.text
