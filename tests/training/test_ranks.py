"""Several ranks compute what one does: the same rows, weights up to rounding, and one decision."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from ganfast import cli
from ganfast.config import Config, LogConfig, parts_of
from ganfast.errors import InputError
from ganfast.models.dropout import Dropout, draws_by_part, part_of_batch
from ganfast.presets import PRESETS
from ganfast.runs import checkpoint as checkpoints
from ganfast.runs.together import Together
from ganfast.runs.train import make_steps
from ganfast.training.feed import Feed, part_of
from ganfast.training.loop import Iteration
from ganfast.training.phases import Graphs
from ganfast.training.plan import make_plan
from ganfast.training.ranks import Ranks
from tests.programs import python
from tests.small_runs import files, newest, tiny

GATE = 1e-10  # of weights, average and moments in float64, relative, L2


def many(*jobs):
    done = python("-m", "tests.training.many", json.dumps(jobs))
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def assert_equal_to_one_rank(*cases):
    jobs = []
    for number, case in enumerate(cases):
        ranks = case.pop("ranks", (2, 4))
        jobs += [{"name": number, "size": size, **case} for size in (1, *ranks)]
        accumulate = [{"size": 1, "accumulate": 4}, {"size": 2, "accumulate": 2}]
        jobs += [{"name": number, **case, **parts} for parts in accumulate]
    for found in many(*jobs):
        assert found["same"], f"ranks have different bits: {found}"
        assert found["gap"] <= GATE, found


def test_two_ranks_are_one():
    """DRAGAN's points need the standard deviation of the whole batch."""
    found = many(*({"name": 0, "size": n, "preset": "dragan", "steps": 3} for n in (1, 2)))
    assert [found[n]["same"] for n in (0, 1)] == [True, True]
    assert found[0]["hash"] != found[1]["hash"], "the second job trained by one rank, too"
    assert found[1]["gap"] <= GATE


CASES = [
    *({"preset": preset} for preset in PRESETS),
    {"preset": "acgan", "balanced": True},
    {"preset": "rpgan", "conditional": "no", "flip": "on", "penalty": {"interval": 3}},
    {"preset": "dragan", "augment": "adaptive", "augment_kimg": 1.0},
]


@pytest.mark.accept
def test_ranks_and_parts_are_one_for_every_preset():
    few = [{**case, "steps": 4, "ranks": (4,)} for case in CASES]
    assert_equal_to_one_rank(*few)


@pytest.mark.accept
def test_a_step_in_float32_is_that_of_one_rank_up_to_rounding():
    step = {"name": 0, "preset": "wgan-gp", "steps": 1, "wide": False}
    one, two = many({**step, "size": 1}, {**step, "size": 2})
    assert one["hash"] != two["hash"]
    assert two["gap"] <= 1e-6


@pytest.mark.full
def test_ranks_and_parts_are_one_for_every_preset_over_50_steps():
    assert_equal_to_one_rank(*({**case, "steps": 50} for case in CASES))


@pytest.mark.accept
def test_a_run_goes_on_with_another_number_of_ranks():
    """4 steps on one rank are 2 on two, and 2 more on one or four; and the other way round."""
    whole = {"name": 0, "preset": "rpgan", "steps": 4}
    begun = [{"until": 2, "save": f"{size}.pt", "size": size} for size in (1, 2)]
    goes_on = [{"begin": f"{a}.pt", "size": b} for a, b in ((2, 1), (1, 2), (2, 4), (2, 2))]
    straight = {**whole, "size": 2}
    found = many({**whole, "size": 1}, *({**whole, **job} for job in begun + goes_on), straight)
    assert all(job["gap"] <= GATE for job in found[3:]), found
    assert found[-1]["hash"] == found[-2]["hash"], "on the same number of ranks, to the bit"


def feeds(folder, size, accumulate, **changes):
    plan = make_plan(tiny("dragan", out=folder, batch=16, flip="on", **changes))
    config = replace(plan.config, accumulate=accumulate)
    made = [Feed(config, plan.data, Ranks(rank, size).rows(config)) for rank in range(size)]
    for feed in made:
        feed.set(0)
        feed.draw()
    return made


def test_the_rows_of_all_ranks_are_those_of_the_batch(tmp_path):
    """Pictures, classes, latents, DRAGAN's noise and transforms, of critic and generator."""
    (whole,) = feeds(tmp_path, 1, 1, augment="on")
    ranks = feeds(tmp_path, 2, 2, augment="on")
    for serve in ("critic", "generator"):
        for _ in range(2):
            expected = getattr(whole, serve)()
            served = [getattr(feed, serve)() for feed in ranks]
            parts = [part_of(step, rows) for step in served for rows in (slice(0, 4), slice(4, 8))]
            for name, value in vars(expected).items():
                pieces = [getattr(part, name) for part in parts]
                if value is None or not value.dim():
                    assert all(x is None or torch.equal(x, value) for x in pieces), name
                else:
                    joined = torch.cat(pieces, dim=1 if name == "uniforms" else 0)
                    assert torch.equal(joined, value), name


@pytest.mark.parametrize("shape", [(12, 5), (12, 3, 7, 5)])
def test_dropout_takes_its_rows_of_the_whole_batchs_numbers(shape):
    x, layer = torch.ones(shape), Dropout(0.3)
    if len(shape) == 4:
        x = x.to(memory_format=torch.channels_last)
    torch.manual_seed(3)
    whole = [layer(x), layer(x)]
    for part in range(3):
        torch.manual_seed(3)
        rows = slice(4 * part, 4 * part + 4)
        with part_of_batch(part, 3):
            assert all(torch.equal(layer(x[rows]), w[rows]) for w in whole)
    assert draws_by_part(nn.Sequential(layer))
    for other in (nn.Dropout(), nn.FractionalMaxPool2d(2, 2), nn.MultiheadAttention(4, 2, 0.1)):
        assert not draws_by_part(nn.Sequential(layer, other))


@pytest.mark.parametrize("others", [False, True])
def test_only_ganfasts_dropout_begins_every_part_with_the_same_numbers(tmp_path, others):
    plan = make_plan(tiny("dcgan", out=tmp_path, accumulate=2))
    if others:
        plan.state.critic.add_module("other", nn.Dropout())
    phases = Iteration(
        *(plan.state, plan.data, plan.config, *make_steps(plan)), Graphs("off", plan.device)
    )
    phases.feed.set(0)
    phases.feed.draw()
    drawn = []

    def step(part):
        drawn.append(torch.rand(8))
        return {}

    phases._in_parts(phases._critic_step, True, phases.feed.critic(), step)
    assert torch.equal(*drawn) != others


def test_parts_must_be_equal_and_hold_two_pictures():
    assert parts_of(24, 3, 4) == 2
    with pytest.raises(InputError, match=r"batch is 24, and accumulate 1 of 5 ranks makes 5 parts"):
        Ranks(0, 5).rows(Config(batch=24))
    with pytest.raises(InputError, match="give a multiple of 16 from 32 on, such as 32"):
        Config(batch=16, accumulate=16)


# Runs

RUN = "train wgan-gp --data digits --kimg 0.64 --batch 16 --size 16 --net.width 4 --net.latent 8"
RUN += " --device cpu --log.no-tensorboard --log.save-kimg 0.16 --log.every 1 --quiet --out"


def run(out, *more, size=2, **job):
    return {"size": size, "arguments": [*RUN.split(), str(out), *more], **job}


@pytest.mark.accept
def test_ranks_that_differ_are_refused_by_what_differs(tmp_path):
    kept = tmp_path / "kept"
    found = many(
        run(tmp_path / "config", more=["--optim.beta1", "0.25"]),
        run(tmp_path / "pack", more=["--channels", "3"]),
        run(tmp_path / "weights", trouble="other weights"),
        run(tmp_path / "rows", "--batch", "15"),
        run(tmp_path / "row", more=["--batch", "15"]),
        run(tmp_path / "norms", "--sync-batchnorm"),
        run(kept),
        run(kept, "--kimg", "0.8", size=1),
    )
    for ranks, sentence in zip(
        found[:6],
        (
            r"rank 1 differs from rank 0: optim.beta1 is 0.25 and not 0.5; every rank must have",
            r"rank 1 differs from rank 0: .*the pack of pictures is '\w+' and not '\w+'",
            r"rank 1 differs from rank 0: weights is '\w+' and not '\w+'",
            r"batch is 15, and accumulate 1 of 2 ranks makes 2 parts of it",
            r"rank 1 differs from rank 0: batch is 15 and not 16; every rank must have",
            r"sync_batchnorm is on, which needs GPUs",
        ),
        strict=True,
    ):
        assert [rank["code"] for rank in ranks] == [2, 2], ranks
        assert re.search(sentence, ranks[0]["said"]), ranks
    assert [path.name for path in tmp_path.iterdir() if (path / "checkpoints").exists()] == ["kept"]
    assert [rank["code"] for ranks in found[6:] for rank in ranks] == [0] * 3
    events = [json.loads(line) for line in (kept / "history.jsonl").read_text().splitlines()]
    changes = [(e["images"], e["ranks"]) for e in events if e["event"] == "ranks"]
    assert changes == [(0, 2), (640, 1)]


def test_a_signal_is_known_to_all_within_seconds(tmp_path, monkeypatch):
    """Also where a line or a grid has ranks agree after fewer steps than their pace."""
    clock, met = [0.0], []

    class Spoken(Ranks):
        def most(self, *numbers, patient=False):
            met.append(clock[0])
            return list(numbers)

        def statistics(self, stats):
            return dict(stats)

    plan = make_plan(tiny("dcgan", out=tmp_path, kimg=1e3, log=LogConfig(every=50)))
    state = plan.state
    monkeypatch.setattr("ganfast.runs.together.time.monotonic", lambda: clock[0])
    together = Together(Spoken(together=True), plan, None, [])
    for _ in range(200):
        state.images += plan.config.batch * plan.config.optim.critic_steps
        clock[0] += 0.7
        together.on_step(state, {}, {})
    assert max(later - before for before, later in pairwise([0.0, *met])) <= 5


@pytest.mark.accept
def test_ranks_wait_for_one_that_draws_or_compiles_for_longer_than_their_limit(tmp_path):
    dragan = [word.replace("wgan-gp", "dragan") for word in RUN.split()]
    job = {"arguments": [*dragan, str(tmp_path / "run"), "--compile", "off"]}
    (found,) = many({"size": 2, **job, "trouble": "late", "whose": 0, "limit": 4})
    assert [rank["code"] for rank in found] == [0, 0], found


@pytest.mark.accept
def test_a_rank_that_dies_ends_all_and_leaves_whole_checkpoints(tmp_path):
    long = "--kimg", "64"
    jobs = {
        "killed": run(tmp_path / "killed", *long, trouble="killed"),
        "in a save": run(tmp_path / "in a save", *long, trouble="killed in a save", whose=0),
        "full disk": run(tmp_path / "full disk", *long, trouble="full disk", whose=0),
    }
    found = dict(zip(jobs, many(*jobs.values()), strict=True))
    assert found["killed"][1]["code"] == found["in a save"][0]["code"] == -signal.SIGKILL
    assert found["full disk"][0]["code"] == 2
    assert "cannot be written: No space left on device" in found["full disk"][0]["said"]
    for ranks, dead in zip(found.values(), (1, 0, 0), strict=True):
        other = ranks[1 - dead]
        assert other["code"] == 1, ranks
        assert other["ended"] - ranks[dead]["ended"] < 60
        assert f"rank {1 - dead} of 2 cannot reach the others" in other["said"]
    whole = checkpoints.listed(tmp_path / "in a save" / "checkpoints")
    assert len(whole) == 1
    checkpoints.read(whole[0])


@pytest.mark.accept
def test_torchrun_names_the_rank_that_died_and_saves_at_sigterm(tmp_path):
    def started(out, saved):
        """torchrun, once the run has a checkpoint after that many images."""
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        arguments = [*RUN.split(), str(out), "--kimg", "6400"]
        command = [*torchrun, "--nproc-per-node", "2", "-m", "ganfast", *arguments]
        agent = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        until = time.monotonic() + 120
        while not any(int(p.name) > saved for p in checkpoints.listed(out / "checkpoints")):
            assert time.monotonic() < until, "nothing is saved"
            time.sleep(0.2)
        return agent

    out = tmp_path / "run"
    agent = started(out, 0)
    children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
    ranks = {environment(child)["RANK"]: int(child) for child in children}
    os.kill(ranks["1"], signal.SIGKILL)
    _, said = agent.communicate(timeout=60)
    assert agent.returncode == 1
    assert re.search(r"Root Cause.*\n.*\n.*\n.*\n *rank +: 1 ", said), said
    before = newest(out)
    checkpoints.read(before)
    agent = started(out, int(before.name))
    agent.send_signal(signal.SIGTERM)
    _, said = agent.communicate(timeout=30)
    assert "SIGTERM: saved" in said, said
    assert agent.returncode == 1, "torchrun's own, as the guide says"
    assert int(newest(out).name) > int(before.name)
    assert files(newest(out))


def environment(process: str) -> dict[str, str]:
    words = Path(f"/proc/{process}/environ").read_text().split("\0")
    return dict(word.split("=", 1) for word in words if "=" in word)


def test_gpus_becomes_torchrun_with_the_same_arguments(monkeypatch, capsys):
    became = []
    monkeypatch.setattr(os, "execv", lambda path, words: became.append(words) or sys.exit(0))
    line, name = (
        "train r1 --gpus 2 --device cpu --batch 32 --quiet".split(),
        "PET_SIGNALS_TO_HANDLE",
    )
    monkeypatch.setenv(name, "")  # which is put back
    monkeypatch.delenv(name)
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        assert cli.main(line) == 0
        assert name not in os.environ
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        assert cli.main(line) == 0
        assert os.environ[name] == "SIGTERM,SIGINT,SIGQUIT", "a lost terminal stops nothing"
    finally:
        signal.signal(signal.SIGHUP, before)
    _, words = became
    start = words.index("torch.distributed.run")
    assert words[start + 1 :] == [
        *("--standalone", "--nproc-per-node", "2", "-m", "ganfast"),
        *("train", "r1", "--device", "cpu", "--batch", "32", "--quiet"),
    ]
    for line, sentence in (
        ("--gpus 0", "--gpus is '0'; expected a whole number above 0"),
        ("--gpus 2 --device cuda", "--gpus is 2, but torch"),
        ("--gpus 2 --minutes 5", "--minutes plans on one process: give --kimg to several"),
        ("--gpus 3 --device cpu", "accumulate 1 of 3 ranks makes 3 parts of it"),
    ):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
        assert cli.main(["train", "r1", *line.split()]) == 2
        assert sentence in capsys.readouterr().err
