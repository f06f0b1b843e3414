"""Benchmarks: timed steps are right, all work is counted, and a difference is one."""

import json
import os
import shlex
import signal
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest
import torch
from torch._C._autograd import DeviceType

from ganfast.bench import activity, compare, kernels, records, report, stats, train, variants
from ganfast.bench.activity import covered, device_activity
from ganfast.bench.kernels import Case, _adam, _agree
from ganfast.bench.ours import Ours
from ganfast.bench.plain import Plain, captured
from ganfast.bench.problem import Problem
from ganfast.bench.report import markdown
from ganfast.bench.setting import Setting
from ganfast.bench.timing import HostClock, interleaved, sample, warm_up
from ganfast.bench.train import speed_over
from ganfast.bench.variants import VARIANTS, exact_gradients, prove
from ganfast.cli import main
from ganfast.config import LossConfig, LossKind
from ganfast.data.resident import ResidentData
from ganfast.device import prepared
from ganfast.engine import make_critic_step, make_generator_step
from ganfast.engine.lean import ThinConvolutions
from ganfast.errors import InputError, RunError
from ganfast.flops import FlopCount
from ganfast.kernels import adam_ema
from ganfast.losses import critic_loss, generator_loss
from ganfast.presets import FROM_LATENTS
from ganfast.training.loop import train_loop
from ganfast.training.state import State

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
CAMPAIGNS = {p.stem: records.read_all(p) for p in RESULTS.glob("2*.jsonl")}


class Device:
    """A fake clock, and a device that is told what to do and does it later."""

    def __init__(self) -> None:
        self.time = self.free_at = 0.0

    def launch(self, seconds: float, launching: float = 1e-5) -> None:
        self.time += launching
        self.free_at = max(self.free_at, self.time) + seconds

    def now(self) -> float:
        return self.time

    def wait(self) -> None:
        self.time = max(self.time, self.free_at)


def test_work_that_the_device_was_only_told_to_do_is_counted():
    device = Device()
    assert sample(lambda: device.launch(0.02), 5, device) == pytest.approx(0.02, rel=1e-2)


def test_work_left_over_from_another_variant_is_not_counted():
    device = Device()
    device.launch(10.0)
    assert sample(lambda: device.launch(0.02), 1, device) == pytest.approx(0.02, rel=1e-2)


def test_compilation_and_first_touch_stay_out_of_the_samples():
    device, left = Device(), {"a": [5.0, 1.0, 0.5], "b": [3.0]}
    runs = {
        name: lambda name=name: device.launch(left[name].pop(0) if left[name] else 0.02)
        for name in left
    }
    warm = {name: warm_up(run, device) for name, run in runs.items()}
    seconds = interleaved(runs, 10, device, warm)
    assert warm["a"].first_s == pytest.approx(5.0, rel=1e-2)
    assert max(seconds["a"] + seconds["b"]) == pytest.approx(0.02, rel=1e-2)


def test_what_compiles_while_it_is_timed_is_refused():
    device, graphs = Device(), iter(range(100))
    runs = {"a": lambda: device.launch(0.02)}
    with pytest.raises(RunError, match="compiled while a were timed"):
        interleaved(runs, 3, device, {"a": warm_up(runs["a"], device)}, lambda: next(graphs))


def test_variants_take_turns_and_none_is_always_first():
    device, order = Device(), []
    runs = {name: lambda name=name: (order.append(name), device.launch(0.02)) for name in "abc"}
    warm = {name: warm_up(run, device) for name, run in runs.items()}
    order.clear()
    interleaved(runs, 3, device, warm)
    assert "".join(order) == "aabbccbbccaaccaabb", (
        "each twice: the first call of a turn is not counted"
    )


def test_what_the_turns_of_others_leave_cold_is_not_measured():
    """Slow behind another variant, whose weights fill the cache, and quick behind itself."""
    device, last = Device(), [""]

    def run(name: str) -> None:
        device.launch(0.02 if last[0] == name else 0.03)
        last[0] = name

    runs = {name: lambda name=name: run(name) for name in "ab"}
    seconds = interleaved(
        runs, 4, device, {name: warm_up(call, device) for name, call in runs.items()}
    )
    assert seconds["a"] + seconds["b"] == pytest.approx([0.02] * 8, rel=1e-2)


class Side:
    """A process of a shared machine.

    It has a speed of its own, drifts with the machine, and every sample has noise with a tail.
    """

    def __init__(self, random: np.random.Generator, cost: float) -> None:
        self.random, self.cost = random, cost * (1 + 0.01 * random.standard_normal())

    def sample(self, phase: str) -> float:
        return self.cost * (
            1 + 0.02 * self.random.standard_normal() + self.random.exponential(0.02)
        )

    def close(self) -> None: ...


def simulated(seed: int, slowdown: float) -> stats.Ratio:
    random = np.random.default_rng(seed)
    ratios = compare.interleave(
        lambda: Side(random, 1.0), lambda: Side(random, slowdown), ("critic",), 5, 30
    )
    return ratios["", "critic", "ganfast"]


def test_equal_code_is_not_called_different_in_20_repetitions():
    assert [simulated(seed, 1.0).verdict for seed in range(20)] == ["same"] * 20


def test_a_planted_slowdown_of_10_percent_is_found():
    ratios = [simulated(seed, 1.1) for seed in range(20)]
    assert sum(r.verdict == "slower" for r in ratios) >= 18
    assert all(r.low < 1.1 * 1.03 and r.high > 1.1 / 1.03 for r in ratios)
    assert simulated(0, 1 / 1.15).verdict == "faster"


@pytest.mark.parametrize(
    ("name", "noisy"),
    [
        ("r1-28", False),
        ("rpgan-28", False),
        ("wgan-gp-16", False),
        ("hinge-28", False),
        ("acgan-28", True),
        ("dragan-28", True),
    ],
)
def test_noise_flag_on_recorded_timings(name, noisy):
    (record,) = [r for r in CAMPAIGNS["2026-11-23-engines"] if r["name"] == f"engines-{name}"]
    assert record["noise"]["noisy"] is noisy


def record_of(loop: float = 1.0, scale: float = 1.0, **conditions: object) -> records.Record:
    random = np.random.default_rng(0)
    samples = scale * (1 + 0.01 * random.standard_normal(40))
    measured = [records.measurement("critic", "ganfast", samples.tolist())]
    return records.make(
        "train", "train-x", {"batch": 8, **conditions}, measured, {"loop_s": [loop] * 9}
    )


def test_two_records_are_compared_only_when_their_calibration_loops_agree():
    (ratio,) = compare.of_records(record_of(), record_of(loop=1.02, scale=1.1)).values()
    assert ratio.verdict == "slower"
    assert ratio.low <= 1.1 <= ratio.high
    assert [r.verdict for r in compare.of_records(record_of(), record_of()).values()] == ["same"]
    for loop in (1.04, 0.96):
        with pytest.raises(InputError, match="not comparable: the calibration loop"):
            compare.of_records(record_of(), record_of(loop=loop))
    with pytest.raises(InputError, match="differ in batch"):
        compare.of_records(record_of(), record_of(batch=16))


def test_every_committed_record_can_be_read():
    all_records = [record for campaign in CAMPAIGNS.values() for record in campaign]
    assert len(all_records) >= 40
    for record in all_records:
        assert record["utc"][:10] >= "2026-11-23"
        assert record["environment"]["commit"]
        assert record["derived"] if not record["measurements"] else True
        assert all(m["summary"]["median"] > 0 for m in record["measurements"])


def test_a_campaign_keeps_what_is_shown(tmp_path):
    """Six digits of a sample, summaries in full; of a thousand samples the count."""
    few, many = record_of(), record_of()
    many["measurements"][0]["samples"] = np.linspace(0.9, 1.1, 1000).tolist()
    (tmp_path / "all.jsonl").write_text(
        "".join(json.dumps(records.condensed(r)) + "\n" for r in (few, many))
    )
    short, long = records.read_all(tmp_path / "all.jsonl")
    assert short["measurements"][0]["samples"] == pytest.approx(
        few["measurements"][0]["samples"], rel=1e-5
    )
    assert (long["measurements"][0]["samples"], long["measurements"][0]["count"]) == ([], 1000)
    for before, after in ((few, short), (many, long)):
        shown = [
            r | {"measurements": [m["summary"] for m in r["measurements"]]} for r in (before, after)
        ]
        assert shown[0] == shown[1]
    with pytest.raises(InputError, match="holds 2 records; expected one"):
        records.read(tmp_path / "all.jsonl")
    with pytest.raises(InputError, match="no samples of the same measurement"):
        compare.of_records(long, long)


def test_records_come_back_as_they_were_and_others_are_refused(tmp_path):
    record = record_of()
    assert records.read(records.write(record, tmp_path)) == record
    whole, (first, *_) = "is no whole benchmark record", record["measurements"]
    for content, sentence in (
        ("{", "cannot be read"),
        ({"schema": 1}, "schema 1; expected 2"),
        ({"schema": 2}, whole),
        (record | {"measurements": 5}, whole),
        (record | {"measurements": [first | {"samples": []}]}, whole),
        (record | {"measurements": [first | {"summary": {}}]}, whole),
        (record | {"conditions": None}, whole),
    ):
        (tmp_path / "bad.json").write_text(
            content if isinstance(content, str) else json.dumps(content)
        )
        with pytest.raises(InputError, match=sentence):
            records.read(tmp_path / "bad.json")


def test_a_record_that_is_there_is_never_replaced(tmp_path):
    keep = records.keeper(tmp_path)
    first, second = record_of(), record_of() | {"calibration": {"again": 1.0}}
    keep(first | {"measurements": []})
    (stopped,) = tmp_path.iterdir()
    one = records.write(first, tmp_path)
    assert not stopped.exists()  # it is whole now
    keep(second)
    assert records.read(one) == first
    two = records.write(second, tmp_path)
    assert (records.read(one), records.read(two)) == (first, second)
    assert sorted(tmp_path.iterdir()) == sorted([one, two])


# Gradients: a wrong baseline proves nothing

SMALL = {"data": "digits", "width": 8, "batch": 4}


def proven(preset: str, *names: str) -> None:
    problem = Problem(Setting(preset, **SMALL), proof=True)
    for name in names:
        assert max(prove(problem, VARIANTS[name].prepare(problem)).values()) < 1e-4


@pytest.mark.parametrize(
    "name", ["tuned", "ganfast", pytest.param("compiled", marks=pytest.mark.accept)]
)
def test_in_float16_variants_have_the_gradients_of_the_reference_with_a_scale(name):
    setting = Setting("wgan-gp", "digits", width=8, batch=8, device="cpu", precision="fp16")
    problem = Problem(setting, proof=True)
    torch.manual_seed(0)
    # It allows 0.1 in half types, where values round across kinks.
    errors = prove(problem, VARIANTS[name].prepare(problem)).values()
    assert min(errors) > 1e-4  # else float16 was not used


@pytest.mark.parametrize("preset", FROM_LATENTS)
def test_plain_variants_have_the_gradients_of_the_reference(preset):
    proven(preset, "naive", "tuned", "ganfast")


def taped(phase):
    """`captured` where there is no CUDA: what a graph records, by a tape, replayed once."""
    from tests.training.tape import Tape

    phase()  # Adam makes its state
    tape = Tape()
    with tape:
        phase()
    tape.play()
    return tape.play


@pytest.mark.parametrize("preset", ["wgan-gp", "acgan", "rpgan", "dragan"])
def test_captured_baselines_have_the_gradients_of_the_reference_at_what_their_graphs_fill(
    preset, monkeypatch
):
    monkeypatch.setattr("ganfast.bench.plain.captured", taped)
    proven(preset, "tuned-graph")


def test_a_captured_phase_was_replayed_before_another_one_reads_what_it_fills(monkeypatch):
    """A capture records and executes nothing."""
    from contextlib import nullcontext
    from types import SimpleNamespace

    calls = []
    stream = SimpleNamespace(wait_stream=lambda other: None)
    fakes = {
        "Stream": lambda: stream,
        "current_stream": lambda: stream,
        "stream": lambda side: nullcontext(),
        "CUDAGraph": lambda: SimpleNamespace(replay=lambda: calls.append("replay")),
        "graph": lambda graph, *rest, **options: nullcontext(),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    run = captured(lambda: calls.append("phase"))
    assert calls == ["phase"] * 4 + ["replay"]
    run()
    assert calls[-2:] == ["replay", "replay"]


def test_baselines_and_the_oracle_are_plain_torch(monkeypatch):
    """The tricks of ganfast's own steps on a CPU are not lent to the baselines."""

    def refused(self):
        raise AssertionError("ganfast's own convolutions")

    monkeypatch.setattr(ThinConvolutions, "__enter__", refused)
    problem = Problem(Setting("wgan-gp", **SMALL))
    plain = Plain(problem)
    for phase, run in plain.phases.items():
        run()
        assert len(exact_gradients(problem, 0, phase, plain.used(phase))) > 4
    with pytest.raises(AssertionError, match="own convolutions"):
        proven("wgan-gp", "ganfast")


def test_jax_has_the_gradients_of_the_reference():
    pytest.importorskip("jax")
    proven("wgan-gp", "jax")


def test_jax_refuses_networks_that_it_does_not_know():
    pytest.importorskip("jax")
    problem = Problem(Setting("r3", **SMALL))
    with pytest.raises(InputError, match="Block, which the JAX variant does not know"):
        VARIANTS["jax"].prepare(problem)


@pytest.mark.accept
@pytest.mark.parametrize("preset", [p for p in FROM_LATENTS if p != "r3"])
def test_jax_and_compiled_have_the_gradients_of_the_reference(preset):
    pytest.importorskip("jax")
    proven(preset, "jax", "compiled")


@pytest.mark.accept
def test_jax_knows_odd_sides():
    """17 -> 8 leaves a row over."""
    pytest.importorskip("jax")
    problem = Problem(Setting("wgan-gp", "digits", size=17, width=4, batch=3))
    assert max(prove(problem, VARIANTS["jax"].prepare(problem)).values()) < 1e-4


@pytest.mark.parametrize("kind", get_args(LossKind))
def test_losses_in_jax_are_those_of_ganfast(kind):
    jax, xla = (pytest.importorskip(name) for name in ("jax", "ganfast.bench.xla"))
    real, fake = torch.randn(2, 50, generator=torch.Generator().manual_seed(0)) * 3
    config = LossConfig(kind=kind, label_smoothing=0.1 if kind == "non-saturating" else 0.0)
    scores = [jax.numpy.asarray(x.numpy()) for x in (real, fake)]
    theirs = xla.CRITIC_LOSSES[kind](config, *scores), xla.GENERATOR_LOSSES[kind](*scores[::-1])
    ours = critic_loss(config, real, fake), generator_loss(config, fake, real)
    for a, b in zip(theirs, ours, strict=True):
        np.testing.assert_allclose(np.asarray(a), b.numpy(), rtol=1e-5, atol=1e-6)


def test_jax_that_is_not_installed_is_bad_input(monkeypatch):
    """A target counts any other error of a variant as a failure."""
    monkeypatch.setattr("ganfast.bench.variants.find_spec", lambda name: None)
    with pytest.raises(InputError, match="JAX is not installed"):
        VARIANTS["jax"].prepare(Problem(Setting("r1", **SMALL)))


@pytest.mark.parametrize("what", ["loss", "penalty"])
def test_jax_refuses_a_loss_or_penalty_that_it_does_not_know(what, monkeypatch):
    """A new one must not be measured as Wasserstein's, or as a penalty at interpolates."""
    xla = pytest.importorskip("ganfast.bench.xla")
    monkeypatch.setattr(xla, "PENALTIES", tuple(kind for kind in xla.PENALTIES if kind != "r1"))
    if what == "loss":
        monkeypatch.delitem(xla.GENERATOR_LOSSES, "non-saturating")
    with pytest.raises(
        InputError, match=f"does not know the {what} (r1|non-saturating); expected one of"
    ):
        xla.Xla(Problem(Setting("r1", **SMALL)))


def test_a_wrong_gradient_is_found():
    problem = Problem(Setting("wgan-gp", **SMALL))
    wrong = Problem(Setting("wgan-gp", **SMALL))
    wrong.config = replace(wrong.config, penalty=replace(wrong.config.penalty, target=1.01))
    with pytest.raises(RunError, match="gradients of the critic are"):
        prove(problem, VARIANTS["tuned"].prepare(wrong))


def test_the_measured_phases_train_as_the_loop_does():
    problem = Problem(Setting("dragan", **SMALL))
    problem.config = c = replace(
        problem.config,
        optim=replace(problem.config.optim, critic_steps=2, lr_critic=1e-3, lr_generator=1e-3),
    )
    ours, state = (
        Ours(problem),
        State.of(*(prepared(net, problem.device) for net in problem.networks(0)), c),
    )
    critic_step = make_critic_step(state.critic, c.loss, c.penalty)
    generator_step = make_generator_step(state.generator, state.critic, c.loss)
    data = ResidentData(problem.pack, problem.device, c.seed)
    train_loop(
        state,
        data,
        c,
        critic_step,
        generator_step,
        lambda: state.images >= 3 * 2 * c.batch,
        lambda *_: None,
    )
    ours.feed.set(0)
    ours._at = 0
    for _ in range(3):
        for phase in ("critic", "critic", "generator"):
            ours.phases[phase]()
    for mine, theirs in (
        (ours.state.generator, state.generator),
        (ours.state.critic, state.critic),
        (ours.average, state.average),
    ):
        pairs = zip(mine.parameters(), theirs.parameters(), strict=True)
        assert all(bool((a == b).all()) for a, b in pairs)


def test_kernels_that_overlap_count_once():
    assert covered([(0, 2), (1, 3), (5, 6), (5.5, 5.75)]) == 4
    assert covered([]) == 0


def test_launches_and_the_longest_are_those_of_the_profiled_call():
    """Three names, of which one is launched thrice; what comes before the call does not count."""
    x, calls = torch.ones(300, 300), []

    def run():
        calls.append(1)
        for _ in range(3):
            torch.mm(x, x)
        torch.sin(x)
        torch.neg(x)

    torch.cos(x)
    found = device_activity(run, lambda: None, 10.0, torch.device("cpu"))
    assert calls == [1]
    assert found["launches"] == 5
    counts = {name: count for name, count, _ in found["longest"]}
    assert counts == {"aten::mm": 3, "aten::sin": 1, "aten::neg": 1}
    seconds = [s for _, _, s in found["longest"]]
    assert seconds == sorted(seconds, reverse=True)
    assert sum(seconds) == pytest.approx(found["busy_s"])
    assert found["idle_share"] == pytest.approx(1 - found["busy_s"] / 10)


@pytest.mark.parametrize("seen", [True, False])
def test_on_a_gpu_kernels_alone_are_counted_and_none_is_no_measurement(seen, monkeypatch):
    """A span of torch.optim's lies on the device too, over all its kernels."""

    def event(name, begin, end, annotation):
        return SimpleNamespace(
            name=name,
            device_type=DeviceType.CUDA,
            cpu_parent=None,
            time_range=SimpleNamespace(start=begin, end=end),
            is_user_annotation=annotation,
        )

    events = [event("Optimizer.step", 0, 90, True)] + [event("adam", 10, 12, False)] * seen
    trace = nullcontext(SimpleNamespace(events=lambda: events))
    monkeypatch.setattr("torch.profiler.profile", lambda **_: trace)
    one = records.measurement("critic", "tuned", [8e-6])
    found = activity.activity_of(lambda: None, lambda: None, one, torch.device("cuda"))
    if seen:
        assert (found["launches"], found["busy_s"]) == (1, pytest.approx(2e-6))
        assert found["idle_share"] == pytest.approx(0.75)
    else:
        assert found == {"profiler": "RunError: the profiler saw nothing on the GPU"}


def test_no_algorithm_is_chosen_by_time_for_a_proof_or_a_count(monkeypatch):
    """Or cuDNN would time float64's, and zeros of padded channels would be counted as work."""
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    found, exact = [], variants.exact_gradients
    look = lambda: found.append(torch.backends.cudnn.benchmark)  # noqa: E731
    monkeypatch.setattr(variants, "exact_gradients", lambda *a: (look(), exact(*a))[1])
    problem = Problem(Setting("wgan-gp", "digits", width=4, batch=4, device="cpu"))
    prepared = VARIANTS["ganfast"].prepare(problem)
    variants.prove(problem, prepared)
    train._flops(SimpleNamespace(phases={"critic": look}), "ganfast")
    assert len(found) >= 3
    assert not any(found)
    assert torch.backends.cudnn.benchmark


def test_phases_of_a_record_are_told_with_the_longest_of_our_best():
    def measured(variant, median, longest):
        more = {"first_call_s": 2.0, "launches": 7, "busy_s": 5e-6, "idle_share": 0.5}
        return records.measurement("critic", variant, [median], **more, longest=longest)

    rows = [
        measured("tuned-graph", 1e-3, [["theirs", 1, 1e-6]]),
        measured("ganfast", 9e-3, [["slow", 1, 1e-6]]),
        measured("ganfast-graph", 2e-3, [["gemm", 3, 40e-6], ["fill", 1, 1e-6]]),
        records.measurement("generator", "ganfast", [1.0], first_call_s=1.0, profiler="E: refused"),
    ]
    record = records.make("train", "a setting", {}, rows, {}, {"jax": "E: broken"})
    lines = report.phases(record | {"partial": True})
    assert lines[0] == "a setting, stopped before its end"
    assert [" ".join(line.split()) for line in lines[3:]] == [
        "critic ganfast-graph 2,000 us, 7 launches, busy 5 us, idle 50%, first 2.0 s",
        "generator ganfast 1,000,000 us, first 1.0 s, E: refused",
        "longest of critic, ganfast-graph",
        "40.0 us 3x gemm",
        "1.0 us 1x fill",
        "jax: E: broken",
    ]


def test_a_profiler_that_is_not_allowed_costs_no_measurement(monkeypatch):
    def refused(*arguments):
        raise RuntimeError("CUPTI is not permitted")

    monkeypatch.setattr(activity, "device_activity", refused)
    setting = Setting("wgan-gp", "digits", width=4, batch=4, device="cpu")
    record = train.measure(setting, train.Plan(("ganfast",), 5, profile=True))
    critic = records.keyed(record)["", "critic", "ganfast"]
    assert critic["profiler"] == "RuntimeError: CUPTI is not permitted"
    assert len(critic["samples"]) == 5


@pytest.mark.parametrize("chosen", [None, "true"])
def test_jax_takes_memory_of_a_gpu_as_it_needs_it_unless_the_user_says_so(monkeypatch, chosen):
    """By the time it is imported: XLA reads the variable once."""
    from types import ModuleType

    name, seen = "XLA_PYTHON_CLIENT_PREALLOCATE", []
    monkeypatch.setenv(name, "set back afterwards")
    if chosen is None:
        monkeypatch.delenv(name)
    else:
        monkeypatch.setenv(name, chosen)
    fake = ModuleType("ganfast.bench.xla")
    fake.Xla = lambda problem: seen.append(os.environ[name])
    monkeypatch.setitem(sys.modules, "ganfast.bench.xla", fake)
    monkeypatch.setattr("ganfast.bench.variants.find_spec", lambda package: True)
    VARIANTS["jax"].prepare(None)
    assert seen == [chosen or "false"]


# Command line


TINY = "bench train --preset r1 --data digits --width 8 --batch 4 --threads 1 --rounds 5"
KERNEL = "bench kernels to_uint8 --device cpu --threads 1 --rounds 5 --no-compile"


def test_train_writes_a_record_which_report_shows(tmp_path, capsys):
    assert main(shlex.split(f"{TINY} --variants naive,ganfast --out {tmp_path}")) == 0
    assert "| r1-16x1-w8-b4-fp32-cpu-t1 |" in capsys.readouterr().out
    (path,) = tmp_path.glob("*.json")
    record = records.read(path)
    both = {
        (p, name) for p in ("critic", "generator", "iteration") for name in ("naive", "ganfast")
    }
    own = {("draw", "ganfast"), ("critic without penalty", "ganfast")}
    assert {(m["phase"], m["variant"]) for m in record["measurements"]} == both | own
    by = records.keyed(record)
    phases = "draw", "critic", "generator", "iteration"
    draw, critic, generator, whole = (
        np.array(by["", phase, "ganfast"]["samples"]) for phase in phases
    )
    assert np.allclose(whole, critic + generator + np.median(draw) / record["ahead"]["ganfast"])
    assert record["calibration"]["matrix_flops"] > 1e8
    critic, whole = (by["", phase, "naive"] for phase in ("critic", "iteration"))
    assert critic["flops"] > 0
    assert len(critic["samples"]) == 5
    assert critic["first_call_s"] > 0
    assert whole["images_per_s"] == pytest.approx(4 / whole["summary"]["median"])
    capsys.readouterr()
    assert main(["bench", "report", str(path)]) == 0
    assert "| critic | naive |" in capsys.readouterr().out
    assert main(["bench", "compare", str(path), str(path)]) == 0


def test_kernels_are_measured_by_their_definitions_on_a_cpu(tmp_path):
    assert main(shlex.split(f"{KERNEL} --out {tmp_path}")) == 0
    (path,) = tmp_path.glob("*-kernels-cpu-t1-to_uint8.json")
    record = records.read(path)
    assert {(m["phase"], m["variant"]) for m in record["measurements"]} == {
        ("cold", "eager"),
        ("hot", "eager"),
    }
    for m in record["measurements"]:
        assert m["bytes_per_s"] == pytest.approx(m["least_bytes"] / m["summary"]["median"])
    small = next(m for m in record["measurements"] if m["case"] == "to_uint8 64x1x28x28")
    assert small["least_bytes"] == 64 * 28 * 28 * 5  # float32 in, uint8 out
    assert (
        compare.of_records(record, record)["to_uint8 64x1x28x28", "hot", "eager"].verdict == "same"
    )


@pytest.mark.accept
def test_what_was_measured_before_a_stop_is_on_disk_and_is_measured_again(
    tmp_path, monkeypatch, capsys
):
    line = f"{TINY} --variants ganfast --out {tmp_path}"

    def stopped(*arguments):
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return interleaved(*arguments)

    monkeypatch.setattr(train, "interleaved", stopped)
    monkeypatch.setattr(
        train.calibrate, "peaks", lambda *arguments: {"matrix_flops": 1e9}
    )  # takes seconds, and is not asked for here
    for count, phases in enumerate(
        ([], ["draw"], ["draw", "critic"], ["draw", "critic", "generator", "iteration"])
    ):
        left = count
        assert main(shlex.split(line)) == 130
        (path,) = tmp_path.glob("*.json")
        record = records.read(path)
        assert record["partial"] is True
        assert [m["phase"] for m in record["measurements"]] == phases
    left = 4
    capsys.readouterr()
    assert main(shlex.split(line)) == 0
    assert "measured before" not in capsys.readouterr().err
    (path,) = tmp_path.glob("*.json")
    assert "partial" not in records.read(path)


def test_only_a_record_of_the_same_setting_and_plan_is_taken_for_it(tmp_path, monkeypatch):
    made_of = []

    def measure(setting, plan, say, keep):
        made_of.append((setting, plan))
        problem = Problem(setting)
        samples = [1.0] * plan.rounds
        measured = [records.measurement("critic", v, samples) for v in plan.variants]
        return records.make("train", train.name_of(problem), train._conditions(problem), measured)

    monkeypatch.setattr(train, "measure", measure)
    plain, plan = Setting("r1", **SMALL), train.Plan(("ganfast",), 5)
    for setting, how, again in (
        (plain, plan, True),
        (plain, plan, False),
        (replace(plain, classes=0), plan, True),
        (replace(plain, classes=0), plan, False),
        (plain, replace(plan, rounds=6), True),
        (plain, replace(plan, variants=("naive", "ganfast")), True),
        (plain, replace(plan, variants=("naive",)), False),
    ):
        before = len(made_of)
        train.run([setting], how, tmp_path, False, lambda _: None)
        assert (len(made_of) > before) is again, (setting, how)
    lines = []
    (tmp_path / "2026-01-01-train-x.json").write_text("{")
    train.run([plain], plan, tmp_path, False, lines.append)
    assert "2026-01-01-train-x.json cannot be read" in lines[0]
    assert "measured before" in lines[1]


def test_a_report_shows_measurements_and_what_failed_or_was_stopped():
    measured = [records.measurement("critic", "naive", [0.002] * 5, images_per_s=1234.5)]
    failed = {"jax": "InputError: not installed"}
    record = records.make("train", "train-x", {"threads": 2}, measured, failed=failed)
    title, _, conditions, _, _, _, row, failure = markdown([record]).splitlines()
    assert title == "### train-x"
    assert ", 2 threads, torch " in conditions
    assert "noisy" not in conditions
    assert row == "|  | critic | naive | 2.000 ms | 2.000 ms | 2.000 ms | 1,234 |  |  |  |  |"
    assert failure == "- jax: InputError: not installed"
    noise = {"spread": 0.25, "drift": 0.0, "noisy": True}
    conditions = markdown([record | {"partial": True, "noise": noise}]).splitlines()[2]
    assert conditions.startswith("**stopped before its end**; ")
    assert conditions.endswith("; **noisy** (spread 25%, drift 0%)")


@pytest.mark.parametrize(
    ("line", "sentence", "code"),
    [
        ("train --sweep batch=16,,32", "sweep is 'batch=16,,32'", 2),
        ("train --sweep batch=²", "sweep is", 2),
        ("train --sweep batch=0", "sweep is", 2),
        ("train --data nope", "data is 'nope'", 2),
        ("train --classes -7", "classes is -7", 2),
        (
            "train --data digits --width 8 --batch 4 --device cpu --variants tuned-graph",
            "tuned-graph: needs an NVIDIA",
            1,
        ),
    ],
)
def test_what_cannot_be_measured_is_said(line, sentence, code, capsys):
    assert main(["bench", *shlex.split(line)]) == code
    assert sentence in capsys.readouterr().err


def test_a_speed_is_that_of_rounds_in_which_both_took_their_turn():
    """The machine slows down by half in the middle: medians of all samples would say 1.5."""
    rival = records.measurement("iteration", "jax", [2.0, 2.0, 3.0, 3.0, 3.0])
    assert (
        speed_over(rival, records.measurement("iteration", "ganfast", [1.0, 1.0, 1.5, 1.5, 1.5]))
        == 2
    )
    assert speed_over(rival, records.measurement("iteration", "ganfast", [1.0, 2.0, 2.0])) == 1.5


def test_comparing_says_which_record_is_noisy(tmp_path, capsys):
    record = record_of() | {"calibration": {"loop_s": [1.0]}}
    quiet = records.write(record, tmp_path)
    noisy = records.write(
        record | {"noise": {"spread": 0.25, "drift": 0.0, "noisy": True}}, tmp_path
    )
    assert main(["bench", "compare", str(quiet), str(noisy)]) == 0
    assert f"{noisy} is flagged noisy: samples 25% apart" in (shown := capsys.readouterr().err)
    assert str(quiet) + " " not in shown


def test_presets_are_swept_too(monkeypatch):
    runs = []
    monkeypatch.setattr(
        train, "run", lambda settings, *_: runs.extend((s.preset, s.batch) for s in settings) or []
    )
    assert main(shlex.split("bench train --all-presets --data digits --sweep batch=4,8")) == 0
    assert runs == [(preset, batch) for preset in FROM_LATENTS for batch in (4, 8)]


def test_sigterm_leaves_no_worktree_behind(monkeypatch):
    """As a scheduler ends a comparison that takes too long."""
    checkouts = []

    def worker(checkout, setting, threads):
        checkouts.append(checkout)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(compare, "Worker", worker)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        compare.with_base("HEAD", Setting("r1", **SMALL), 3, 5, 1)
    assert ended.value.code == 143
    assert not checkouts[0].exists()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_kernel_that_fails_leaves_the_others_measured(tmp_path, monkeypatch, capsys):
    written = []

    def refuses(case, variants):
        written.append([json.loads(path.read_text())["failed"] for path in tmp_path.glob("*.json")])
        if case.name == "to_uint8 64x1x28x28":
            raise RunError("they differ")

    monkeypatch.setattr(kernels, "_agree", refuses)
    assert main(shlex.split(f"{KERNEL} --out {tmp_path}")) == 1
    assert "1 cases failed: to_uint8 64x1x28x28: RunError: they differ" in capsys.readouterr().err
    assert written == [
        [],
        [{"to_uint8 64x1x28x28": "RunError: they differ"}],
    ]  # written after the first case
    record = records.read(*tmp_path.glob("*.json"))
    assert {m["case"] for m in record["measurements"]} == {"to_uint8 32x3x64x64"}
    assert "partial" not in record


@pytest.mark.parametrize("wrong", ["", "p", "average", "low"])
def test_steps_of_adam_are_compared_by_what_they_leave(wrong, monkeypatch):

    def step(p, *arguments):
        adam_ema.adam_ema_reference(p, *arguments)
        *_, average, low, _skip, _second = arguments
        if wrong:
            {"p": p, "average": average, "low": low}[wrong].mul_(0.95)

    monkeypatch.setattr(adam_ema, "adam_ema_triton", step)
    torch.manual_seed(0)
    (case,) = _adam(torch.device("cpu"), 1000)
    variants = {name: case.variants[name] for name in ("triton", "eager")}
    if not wrong:
        _agree(case, variants)
        return
    with pytest.raises(
        RunError, match=r"triton and eager differ by 0\.0(4[89]|5)"
    ):  # 0.05, and what bfloat16 rounds
        _agree(case, variants)


def test_the_step_without_penalty_is_the_one_that_a_phase_of_its_own_makes():
    """It costs less, and leaves in Adam what the critic's loss alone gives."""

    problem, alone = Problem(Setting("wgan-gp", **SMALL)), Problem(Setting("wgan-gp", **SMALL))
    alone.config = replace(alone.config, penalty=replace(alone.config.penalty, kind="none"))
    ours, other = Ours(problem, unpenalised=True), Ours(alone)
    ours.phases["critic without penalty"]()
    other.phases["critic"]()
    assert all(
        torch.equal(a, b)
        for a, b in zip(ours.critic.parameters(), other.critic.parameters(), strict=True)
    )
    flops = {}
    for name in ("critic", "critic without penalty"):
        with FlopCount() as count:
            ours.phases[name]()
        flops[name] = count.total
    assert flops["critic without penalty"] < 0.7 * flops["critic"]


def test_what_the_targets_of_a_gpu_name_is_measured_there():
    assert {(4096, 3, 64, 64), (512, 3, 256, 256)} <= set(kernels._PICTURES)
    assert sum(2 * np.prod(shape) > 64e6 for shape in kernels._LAYERS) >= 1  # bytes in bfloat16


def test_kernels_that_disagree_are_not_timed():

    case = Case(
        "sum",
        (3,),
        12,
        {"eager": lambda: torch.ones(3), "triton": lambda: torch.ones(3) * 1.1},
        lambda a: [a],
    )
    with pytest.raises(RunError, match="triton and eager differ by 0.1"):
        _agree(case, case.variants)


def test_compare_exits_1_on_a_regression(tmp_path, capsys):
    old, new = (tmp_path / name for name in ("old.json", "new.json"))
    old.write_text(json.dumps(record_of()))
    new.write_text(json.dumps(record_of(scale=1.1)))
    assert main(["bench", "compare", str(old), str(new)]) == 1
    assert "slower beyond noise: critic ganfast" in capsys.readouterr().err
    assert main(["bench", "compare", str(new), str(old)]) == 0


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("bench nothing", "unknown benchmark 'nothing'"),
        ("bench train --preset nope", "unknown preset 'nope'"),
        ("bench train --variants eager", "variant 'eager' is unknown"),
        ("bench train --rounds 2", "rounds is 2; expected 5 or more"),
        ("bench train --sweep depth=1,2", "sweep is over 'depth'"),
        ("bench train --sweep batch", "sweep is 'batch'"),
        ("bench kernels conv", "kernel 'conv' is unknown"),
        ("bench compare one.json", "1 records; expected two"),
        ("bench compare a.json b.json", "a.json cannot be read"),
        ("bench compare --base no-such-revision", "base is 'no-such-revision'"),
    ],
)
def test_bad_input_is_one_sentence(line, sentence, capsys):
    assert main(shlex.split(line)) == 2
    assert sentence in capsys.readouterr().err


# Two revisions, in real processes

COMPARED = Setting("r1", "digits", width=16, batch=16)
_PLANT = """

_some, _plain_step = torch.full((96, 96), 1e-3), FlatAdam.move


def _slower_step(self, *args, **kwargs):
    for _ in range({products}):
        torch.mm(_some, _some)
    return _plain_step(self, *args, **kwargs)


FlatAdam.move = _slower_step
"""


def planted(folder: Path, share: float) -> Path:
    """A clone whose last commit makes the critic phase longer by a share of its time here."""

    runs = {"phase": Ours(Problem(COMPARED)).phases["critic"]}
    some = torch.full((96, 96), 1e-3)
    runs["product"] = lambda: torch.mm(some, some)
    clock = HostClock()
    seconds = interleaved(
        runs, 15, clock, {name: warm_up(run, clock) for name, run in runs.items()}
    )
    phase, product = (float(np.median(seconds[name])) for name in runs)
    clone = folder / "clone"
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@example.org"]
    subprocess.run(
        [*git, "clone", "-q", "--shared", str(RESULTS.parents[1]), str(clone)], check=True
    )
    with (clone / "ganfast" / "training" / "optim.py").open("a") as file:
        file.write(_PLANT.format(products=max(1, round(share * phase / product))))
    subprocess.run([*git, "commit", "-qam", "slower"], cwd=clone, check=True)
    return clone


@pytest.mark.accept
def test_a_planted_slowdown_is_found_between_two_commits(tmp_path):
    """Small: four starts, and three times the work, which no neighbour on the machine hides."""
    ratios = compare.with_base("HEAD~1", COMPARED, 4, 15, 1, planted(tmp_path, 2.0))
    assert ratios["", "critic", "ganfast"].verdict == "slower"
    assert not list((tmp_path / "clone" / ".git" / "worktrees").glob("*"))  # nothing is left behind


@pytest.mark.full
def test_a_planted_slowdown_of_10_percent_is_found_between_two_commits(tmp_path):
    ratios = compare.with_base("HEAD~1", COMPARED, 5, 30, 1, planted(tmp_path, 0.1))
    ratio = ratios["", "critic", "ganfast"]
    assert ratio.verdict == "slower"
    assert ratio.low < 1.13
    assert ratio.high > 1.07


@pytest.mark.full
def test_the_same_commit_is_not_called_different_in_20_repetitions():
    ratios = [compare.with_base("HEAD", COMPARED, 5, 30, 1) for _ in range(20)]
    assert {r.verdict for run in ratios for r in run.values()} == {"same"}
