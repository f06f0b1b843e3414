"""Diagnosis: which numbers are told, once, and what trainings that are well never hear."""

import json
import logging
from dataclasses import replace

import pytest

from ganfast.config import Config, LogConfig, NetConfig, OptimConfig, PenaltyConfig
from ganfast.runs.diagnosis import Diagnosis, still
from ganfast.runs.logfile import read_log
from ganfast.runs.train import train
from tests.small_runs import tiny

CONFIG = Config(batch=10, optim=OptimConfig(critic_steps=1), log=LogConfig(every=20))


def line(step, real=0.8, fake=0.8, gap=1.0, spread=0.9):
    numbers = {"real_accuracy": real, "fake_accuracy": fake, "wasserstein": gap}
    record = {f"critic/{name}": value for name, value in numbers.items()}
    return record | {"images": 10 * step, "generator/spread": spread, "seconds": 1.0}


def told(config=CONFIG, steps=3000, every=20, **numbers):
    """[(step, sentence)] of a log whose numbers are functions of the step, or constant."""
    diagnosis, found = Diagnosis(config), []
    for step in range(every, steps + 1, every):
        now = {name: f(step) if callable(f) else f for name, f in numbers.items()}
        if sentence := diagnosis(line(step, **now)):
            found.append((step, sentence))
    return found


WINS = {"real": 0.995, "fake": 0.985, "gap": lambda step: 2 + step / 1000}


def test_a_critic_that_knows_all_while_the_gap_grows_wins_once():
    ((step, sentence),) = told(**WINS)
    assert step == 1000
    assert sentence == (
        "the critic wins from the start: it knows 98.5% of reals and fakes, and the gap between "
        "their scores, 2.81, is as wide as ever; what usually helps is "
        "--penalty.kind r1 --penalty.weight 1, or lower --optim.lr-critic (now 0.0001)"
    )


@pytest.mark.parametrize(
    "numbers",
    [
        WINS | {"fake": 0.975},
        WINS | {"real": 0.975},
        WINS | {"gap": lambda step: 8 - step / 500},  # the generator catches up
        WINS | {"gap": lambda step: 1 if step < 600 or step > 3000 else 0.9},
    ],
    ids=["fakes pass", "reals fail", "the gap falls", "the gap is back too late"],
)
def test_a_critic_that_does_not_win_is_not_said_to(numbers):
    assert told(**numbers) == []


def test_a_generator_that_repeats_itself_is_told_whenever_it_begins():
    ((step, sentence),) = told(spread=0.25)
    assert step == 1000
    assert sentence == (
        "the generator repeats itself: its pictures differ 0.25 times as much as reals do; what "
        "usually helps is --penalty.kind r1 --penalty.weight 1, or lower --optim.lr-generator "
        "(now 0.0001)"
    )
    ((step, _),) = told(steps=6000, spread=lambda step: 0.9 if step <= 4000 else 0.1)
    assert 4300 <= step <= 4400, "about a window later"


@pytest.mark.parametrize(
    "spread",
    [0.32, lambda step: step / 4000, lambda step: 0.9 if step % 200 == 0 else 0.28],
    ids=["enough", "rising", "one line of ten"],
)
def test_a_generator_that_varies_or_recovers_is_not_told(spread):
    assert told(spread=spread, steps=1200) == []


def test_what_helps_follows_from_the_config():
    penalised = replace(CONFIG, penalty=PenaltyConfig("r1"))
    assert "helps is lower --optim.lr-critic" in told(penalised, **WINS)[0][1]
    assert "--loss.kind relativistic, or lower" in told(penalised, spread=0.1)[0][1]
    batch_norm = replace(CONFIG, net=NetConfig(critic_norm="batch"))
    assert "--net.critic-norm none --penalty.kind r1" in told(batch_norm, spread=0.1)[0][1]


def test_rare_lines_make_longer_windows_and_critic_steps_count():
    rare = replace(CONFIG, log=LogConfig(every=100))
    ((step, _),) = told(rare, steps=4000, every=100, spread=0.1)
    assert step == 2500, "of 10 lines each"
    several = replace(CONFIG, optim=OptimConfig(critic_steps=5))  # 50 images a generator step
    ((step, _),) = told(several, steps=6000, every=100, spread=0.1)
    assert step == 5000
    assert told(steps=980, spread=0.1) == []


def test_a_resumed_run_decides_by_the_lines_before_and_tells_nothing_twice():
    lines = [line(step, spread=0.2) for step in range(20, 1401, 20)]
    stored = [json.loads(json.dumps(record)) for record in lines]
    assert Diagnosis(CONFIG, stored[:49])(lines[49])  # step 1000
    assert not any(map(Diagnosis(CONFIG, stored[:50]), lines[50:]))
    assert not any(map(Diagnosis(CONFIG), [{"images": 9e9, "score/frechet": 1.0}, *lines[:5]]))


def test_networks_that_stand_still_are_named_with_their_rates():
    config = replace(CONFIG, optim=OptimConfig(lr_generator=1e-9, lr_critic=1e-8))
    assert still(["generator", "critic"], config, 25600) == (
        "nothing has moved in the generator and the critic: after 25.6 kimg the norm of all "
        "weights is that of the start; what usually helps is to raise "
        "--optim.lr-generator (now 1e-09) and --optim.lr-critic (now 1e-08)"
    )
    assert "in the critic: after" in still(["critic"], config, 1)


@pytest.mark.parametrize(
    ("rates", "nets"),
    [
        ({"lr_generator": 1e-9, "lr_critic": 1e-9}, "the generator and the critic"),
        pytest.param({"lr_generator": 1e-9}, "the generator", marks=pytest.mark.accept),
        pytest.param({}, None, marks=pytest.mark.accept),
    ],
)
def test_a_training_with_rates_of_nothing_is_told_so_once(data, tmp_path, caplog, rates, nets):
    def config(kimg):
        short = tiny("gan", data, tmp_path / "run", kimg=kimg, batch=2)
        log = replace(short.log, every=10, sample_kimg=9, save_kimg=9)
        return replace(short, log=log, optim=replace(short.optim, decay_from=1.0, **rates))

    caplog.set_level(logging.WARNING, logger="ganfast")
    for kimg in (2.2, 2.4):  # 1100 steps, and a resume that is too short to tell
        train(config(kimg), quiet=True)
    records = read_log(tmp_path / "run" / "log.jsonl")
    sentences = [record["diagnosis"] for record in records if "diagnosis" in record]
    about_weights = [s for s in sentences if "nothing has moved" in s]
    assert len(about_weights) == (nets is not None)
    for sentence in about_weights:
        assert sentence.startswith(f"nothing has moved in {nets}: after 2 kimg")
        assert sentence in caplog.text
