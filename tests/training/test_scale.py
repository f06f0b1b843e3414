"""The loss scale: its rule by hand, steps that are left out, its place in checkpoints and guard."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from ganfast.config import LogConfig, OptimConfig
from ganfast.engine.gradients import FlatGradients
from ganfast.errors import RunError
from ganfast.runs.train import Interrupted, train
from ganfast.training import scale as scaling
from ganfast.training.optim import FlatAdam
from ganfast.training.scale import LossScale
from ganfast.training.state import optimizer_tensors, restore_optimizer
from tests.small_runs import assert_same_run, mathematics, newest, tensors, tiny

INF, NAN = math.inf, math.nan
BETAS = OptimConfig(beta1=0.5, beta2=0.9)
HALF = torch.tensor(0.5, dtype=torch.float64)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.Conv2d(5, 4, 1))


def optimizer_of(module, average=None):
    return FlatAdam(module, 0.01, BETAS, average, torch.float16)


def fill(module, optimizer, g, step):
    """Gradients times the scale, as a step of the engine leaves them; ``g`` is one of them."""
    numbers = torch.Generator().manual_seed(step)
    gradients = [torch.randn(p.shape, generator=numbers) for p in module.parameters()]
    gradients[0].view(-1)[3] = g
    FlatGradients(module).fill([x * optimizer.scale.value for x in gradients])
    return gradients


def test_the_scale_follows_its_rule(monkeypatch):
    """Three sound steps double it, counted anew after every change; a bad one halves it."""
    monkeypatch.setattr(scaling, "_FIRST", 2.0**16)
    monkeypatch.setattr(scaling, "_SOUND_STEPS", 3)
    scale = LossScale(torch.device("cpu"))
    #        gradient, power of two afterwards, steps left out in a row
    steps = [(1, 16, 0), (1, 16, 0), (INF, 15, 1), (1, 15, 0), (1, 15, 0), (1, 16, 0)]
    steps += [(1, 16, 0), (NAN, 15, 1), (-INF, 14, 2), (INF, 13, 3), (1, 13, 0), (1, 13, 0)]
    steps += [(1, 14, 0), (1, 14, 0), (1, 14, 0), (1, 15, 0), (1e38, 15, 0)]
    for number, power, skipped in steps:
        before = scale.value.item()
        gradient = torch.tensor([2.0**-30, number, -3.0])
        scale.divide(gradient)
        assert math.log2(scale.value) == power
        assert (scale.skip.item(), scale.skipped()) == (float(skipped > 0), skipped)
        found = [2.0**-30 / before, number / before, -3 / before]
        expected = torch.tensor([0.0, 0.0, 0.0] if skipped else found)
        assert torch.equal(gradient, expected)


def test_the_scale_stays_within_its_bounds(monkeypatch):
    monkeypatch.setattr(scaling, "_SOUND_STEPS", 1)
    scale = LossScale(torch.device("cpu"))
    for number, power in ((1.0, 24), (INF, -24)):
        for _ in range(60):
            scale.divide(torch.tensor([number]))
        assert math.log2(scale.value) == power


@pytest.mark.parametrize("limit", [0.0, 0.05])
def test_a_step_with_a_bad_gradient_moves_nothing_but_the_scale(limit):
    """The other optimizer is never given that gradient; both are bit for bit alike."""
    modules = net(), net()
    averages = [copy.deepcopy(module) for module in modules]
    ours, plain = (optimizer_of(m, a) for m, a in zip(modules, averages, strict=True))
    for step, number in enumerate((0.1, INF, NAN, 0.2)):
        fill(modules[0], ours, number, step)
        ours.step(decay=HALF, limit=limit)
        if math.isfinite(number):
            fill(modules[1], plain, number, step)
            plain.step(decay=HALF, limit=limit)
        for one, other in (modules, averages):
            pairs = zip(one.parameters(), other.parameters(), strict=True)
            assert all(torch.equal(p, q) for p, q in pairs)
        for p, q in zip(ours.parameters, plain.parameters, strict=True):
            assert all(torch.equal(ours.state[p][k], plain.state[q][k]) for k in ours.state[p])
            assert p.grad.isfinite().all()
        twins = zip(ours.computing.parameters(), plain.computing.parameters(), strict=True)
        assert all(torch.equal(p, q) for p, q in twins)
    assert ours.state[ours.parameters[0]]["step"].item() == 2
    assert ours.scale.value == plain.scale.value / 4


@pytest.mark.parametrize("missing", [False, True], ids=["in one buffer", "one is missing"])
def test_gradients_are_divided_where_others_look_at_them(missing):
    module = net()
    optimizer = optimizer_of(module)
    gradients = fill(module, optimizer, 0.5, 0)
    if missing:
        module[1].bias.grad = None
    optimizer.step()
    pairs = list(zip(module.parameters(), gradients, strict=True))
    for p, g in pairs[:3] if missing else pairs:
        assert torch.equal(p.grad, g)
    again = fill(module, optimizer, 0.5, 1)
    optimizer.step()
    assert all(torch.equal(p.grad, g) for p, g in zip(module.parameters(), again, strict=True))


def test_only_float16_has_a_scale_and_it_is_saved_and_restored_in_place():
    for kind in (None, torch.bfloat16):
        plain = FlatAdam(net(), 0.01, BETAS, compute=kind)
        assert plain.scale is None
        assert not [key for key in optimizer_tensors(plain) if "scale" in key]
    module = net()
    optimizer = optimizer_of(module)
    for step, number in enumerate((INF, 1.0, INF)):
        fill(module, optimizer, number, step)
        optimizer.step()
    saved = {key: value.clone() for key, value in optimizer_tensors(optimizer).items()}
    names = ["scale.value", "scale.sound", "scale.skipped"]
    assert [saved[name].item() for name in names] == [scaling._FIRST / 4, 0, 1]
    other = optimizer_of(net())
    places = [t.data_ptr() for t in other.scale.tensors().values()]
    restore_optimizer(other, saved, "a test")
    assert [optimizer_tensors(other)[name].item() for name in names] == [scaling._FIRST / 4, 0, 1]
    assert [t.data_ptr() for t in other.scale.tensors().values()] == places
    restore_optimizer(plain, saved, "a test")  # of another type: it takes the rest
    bare = {key: value for key, value in saved.items() if key not in names}
    restore_optimizer(other, bare, "a test")
    assert [optimizer_tensors(other)[name].item() for name in names] == [scaling._FIRST, 0, 0]


# Whole runs.


def test_a_resumed_run_equals_an_uninterrupted_one_while_the_scale_moves(
    data, tmp_path, monkeypatch, stop_at
):
    """It begins too large, so that steps are left out, and doubles after every third."""
    monkeypatch.setattr(scaling, "_FIRST", 2.0**24)
    monkeypatch.setattr(scaling, "_SOUND_STEPS", 3)
    config = tiny("wgan-gp", data, precision="fp16", optim=OptimConfig(critic_steps=2))
    train(replace(config, out=str(tmp_path / "whole")), quiet=True)
    kept = tensors(newest(tmp_path / "whole"), "optimizer_critic")
    assert kept["0.step"].item() < 20 - 3  # of 20 steps
    assert kept["scale.value"].item() < 2.0**22
    stop_at(160)
    parts = replace(config, out=str(tmp_path / "parts"))
    with pytest.raises(Interrupted):
        train(parts, quiet=True)
    train(parts, quiet=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_run_in_which_no_step_is_sound_ends_with_a_sentence(data, tmp_path, monkeypatch):
    """The overflow is in the engine's hands: weights and statistics stay finite all along."""
    divide = LossScale.divide
    monkeypatch.setattr(LossScale, "divide", lambda self, g: divide(self, g.mul_(INF)))
    config = tiny("dcgan", data, tmp_path / "run", precision="fp16", kimg=2.0)
    quiet = LogConfig(every=1, sample_kimg=9, save_kimg=9, tensorboard=False)
    with pytest.raises(RunError, match=r"2\d steps of the generator in a row.*float16.*fp32"):
        train(replace(config, log=quiet, guard=replace(config.guard, every=1)), quiet=True)


@pytest.mark.accept
def test_float16_gets_as_far_as_float32(data, tmp_path):
    """Wasserstein estimates of the last quarter of 120 critic steps."""
    means = {}
    for precision in ("fp32", "fp16"):
        config = tiny("wgan-gp", data, tmp_path / precision, precision=precision, kimg=1.92)
        train(config, quiet=True)
        lines = mathematics(tmp_path / precision)
        last = lines[-len(lines) // 4 :]
        means[precision] = sum(line["critic/wasserstein"] for line in last) / len(last)
        kept = tensors(newest(tmp_path / precision), "optimizer_critic")
        steps = kept["0.step"].item()
        assert steps == 120 if precision == "fp32" else 110 <= steps <= 120
    assert means["fp32"] > 1
    assert means["fp16"] == pytest.approx(means["fp32"], rel=0.05)
    assert means["fp16"] != means["fp32"]
