"""How a run is computed is decided before it begins, by nothing that is measured."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from ganfast.data.source import RULES
from ganfast.runs.train import train
from ganfast.training import plan as plans
from ganfast.training.plan import make_plan
from tests.small_runs import newest, tiny


class Own(nn.Module):
    """A critic of a class that is neither torch's nor ours."""

    def __init__(self, spec):
        super().__init__()
        self.head = nn.Linear(spec.channels * spec.size**2, 1)

    def forward(self, x):
        return self.head(x.flatten(1))


@pytest.fixture
def long(monkeypatch):
    """Every training is long enough for a compiler, which is there."""
    monkeypatch.setattr(plans, "_WORTH_COMPILING", 1.0)
    monkeypatch.setattr(plans, "has_compiler", lambda: True)


def test_a_long_run_of_known_networks_is_compiled_on_a_cpu(tmp_path, long, monkeypatch):
    config = tiny(out=tmp_path / "run")
    assert make_plan(config).compile
    assert not make_plan(replace(config, compile="off")).compile
    own = replace(config, model=f"{__name__}:Own", conditional="no")
    monkeypatch.setattr(plans, "try_out", lambda *nets: None)
    assert not make_plan(own).compile
    monkeypatch.setattr(plans, "has_compiler", lambda: False)
    assert not make_plan(config).compile
    assert make_plan(replace(config, compile="on")).compile


def test_a_short_run_is_not_compiled_on_a_cpu(tmp_path, monkeypatch):
    monkeypatch.setattr(plans, "has_compiler", lambda: True)
    assert not make_plan(tiny(out=tmp_path / "run")).compile


def test_the_work_of_a_training_is_what_a_dry_run_says(tmp_path, long, monkeypatch):
    config = tiny("wgan-gp", out=tmp_path / "run")
    work = plans.count_cost(make_plan(config)).flops_per_image * config.kimg * 1000
    for limit, compiles in ((work * 0.999, True), (work * 1.001, False)):
        monkeypatch.setattr(plans, "_WORTH_COMPILING", limit)
        assert make_plan(config).compile is compiles


def test_deciding_moves_no_generator_and_no_buffer(tmp_path, long):
    plan = make_plan(tiny("hinge", out=tmp_path / "run"))  # spectral and batch normalisation
    nets = nn.ModuleList([plan.state.generator, plan.state.critic])
    before, numbers = {n: b.clone() for n, b in nets.named_buffers()}, torch.get_rng_state()
    assert plan.compile
    torch.testing.assert_close(dict(nets.named_buffers()), before, rtol=0, atol=0)
    torch.testing.assert_close(torch.get_rng_state(), numbers, rtol=0, atol=0)


def test_a_run_goes_on_with_the_engine_that_it_began_with(tmp_path):
    config = tiny("wgan-gp", out=tmp_path / "run")
    train(replace(config, engine="autograd", kimg=0.16), quiet=True)
    said = json.loads((newest(tmp_path / "run") / "state.json").read_text())["computed"]
    assert said == {"engine": "autograd", "compile": False}
    for asked, engine in (("auto", "autograd"), ("reference", "reference")):
        longer = replace(config, engine=asked, kimg=0.24 if asked == "auto" else 0.32)
        train(longer, quiet=True)
        record = json.loads((tmp_path / "run" / "engine.json").read_text())
        assert record["engine"] == engine, asked
    assert "so far" not in record["reason"]


@pytest.mark.parametrize(
    ("computed", "engine", "compiled"),
    [
        ({"engine": "reference", "compile": True}, "reference", True),
        ({"engine": "explicit", "compile": False}, "explicit", False),
        ({}, "auto", False),  # of a version that did not say
        ({"engine": "later", "compile": "maybe"}, "auto", False),
        (None, "auto", True),
    ],
)
def test_what_a_checkpoint_says_comes_before_the_rule(tmp_path, long, computed, engine, compiled):
    plan = replace(make_plan(tiny(out=tmp_path / "run")), computed=computed)
    assert (plan.engine, plan.compile) == (engine, compiled)


@pytest.mark.parametrize("rules", [1, 2])
def test_the_rules_of_a_run_are_known_however_much_was_left_out_of_its_pictures(tmp_path, rules):
    """data.json lists what `--skip-corrupt` left out, and so may be longer than any config."""
    assert plans._recorded_rules(tmp_path) == RULES
    known = {} if rules == 1 else {"rules": rules}  # version 1 did not write it
    left_out = [f"{number:09d}.png cannot be read as a picture" for number in range(10_000)]
    (tmp_path / "data.json").write_text(json.dumps(known | {"skipped": left_out}))
    assert plans._recorded_rules(tmp_path) == rules
