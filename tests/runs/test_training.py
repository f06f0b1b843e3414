"""Training: the same numbers however often it is stopped, nothing lost, nothing foreign touched."""

import json
import math
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ganfast import configfile, locks
from ganfast.cli import main
from ganfast.config import GuardConfig, LogConfig, LossConfig, NetConfig, OptimConfig, PenaltyConfig
from ganfast.errors import InputError, RunError
from ganfast.fields import Schedule
from ganfast.images import grid
from ganfast.runs import checkpoint as checkpoints
from ganfast.runs import train as training
from ganfast.runs import writer
from ganfast.runs.logfile import read_log
from ganfast.runs.run import Run
from ganfast.runs.train import Interrupted, train
from ganfast.training import feed, loop, schedules
from ganfast.training.state import Copy
from tests.depth import EACH_PRESET
from tests.programs import ganfast, python
from tests.small_runs import STEADY, assert_same_run, files, mathematics, newest, tensors, tiny

# The two ways in which classes are learnt.
CONDITIONAL = {"acgan": {}, "wgan-gp": {"conditional": "projection"}}


@pytest.fixture
def steps(monkeypatch) -> list[tuple[str, dict]]:
    """What the loop asks of the engine: ("critic", {"labels": ..., ...}) or ("generator", ...)."""
    calls: list[tuple[str, dict]] = []

    def recorded(name, make):
        def made(*args, **how):
            step = make(*args, **how)

            def wrapped(*given, **named):
                labels = given[2] if name == "critic" else given[1]
                calls.append((name, {"labels": labels} | named))
                return step(*given, **named)

            if name == "critic":
                wrapped.choice, wrapped.prepare = step.choice, step.prepare
            return wrapped

        return made

    monkeypatch.setattr(training, "make_critic_step", recorded("critic", training.make_critic_step))
    monkeypatch.setattr(
        training, "make_generator_step", recorded("generator", training.make_generator_step)
    )
    return calls


# Exact resume


@pytest.mark.parametrize("preset", EACH_PRESET)
def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one_to_the_bit(
    preset, data, tmp_path, stop_at
):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(tiny(preset, data, whole), quiet=True)
    # In the second epoch; with five critic steps, after the second of four generator steps.
    stop_at(160)
    with pytest.raises(Interrupted) as stopped:
        train(tiny(preset, data, parts), quiet=True)
    assert stopped.value.exit_code == 143
    assert newest(parts).name == "000000160"
    train(tiny(preset, data, parts), quiet=True)
    assert_same_run(whole, parts)


OPTIONS = {
    "balanced": {"conditional": "projection", "balanced": True},
    "long-tailed": {"conditional": "auxiliary", "imbalance": 5.0},
    "flipped": {"flip": "on", "channels": 3},
    "lazy": {"penalty": PenaltyConfig("r1", weight=1.0, interval=3)},
    "schedule": {"optim": OptimConfig(critic_steps=2, warmup_kimg=0.1, decay_from=0.5)},
    "schedules": {
        "optim": OptimConfig(lr_critic=Schedule(1e-3, 1e-4), beta2=Schedule(0.9, 0.99)),
        "penalty": PenaltyConfig("wgan-gp", weight=Schedule(10.0, 1.0, 0.2, "linear")),
        "ema_kimg": Schedule(0.0, 1.0),
    },
    "norms": {"net": NetConfig(width=4, latent=8, generator_norm="instance", critic_norm="layer")},
    "bf16": {"precision": "bf16"},
}
TOGETHER = ["long-tailed flipped", "balanced lazy schedule", "norms bf16", "schedules"]
TOGETHER += [pytest.param(name, marks=pytest.mark.accept) for name in OPTIONS]


@pytest.mark.parametrize("options", TOGETHER)
def test_resume_is_exact_for_every_option_that_draws_or_counts(options, data, tmp_path, stop_at):
    changes = {key: value for name in options.split() for key, value in OPTIONS[name].items()}
    config = tiny("wgan-gp", data, **{"optim": OptimConfig(critic_steps=2), **changes})
    train(replace(config, out=str(tmp_path / "whole")), quiet=True)
    stop_at(160)
    parts = replace(config, out=str(tmp_path / "parts"))
    with pytest.raises(Interrupted):
        train(parts, quiet=True)
    train(parts, quiet=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_run_stopped_at_every_step_equals_an_uninterrupted_one(run_tiny, tmp_path, stop_at):
    run_tiny("wgan-gp", "whole")
    for images in range(80, 320, 80):
        stop_at(images)
        with pytest.raises(Interrupted):
            run_tiny("wgan-gp", "parts")
    run_tiny("wgan-gp", "parts")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_another_seed_is_another_run(data, tmp_path):
    for seed in (0, 1):
        train(tiny("dcgan", data, tmp_path / str(seed), seed=seed), quiet=True)
    assert mathematics(tmp_path / "0") != mathematics(tmp_path / "1")
    assert (newest(tmp_path / "0") / "ema.safetensors").read_bytes() != (
        newest(tmp_path / "1") / "ema.safetensors"
    ).read_bytes()


def test_a_signal_before_the_first_step_loses_nothing(run_tiny, tmp_path, monkeypatch):
    run_tiny("dcgan", "whole")
    train_loop = training.train_loop
    with monkeypatch.context() as patch:
        patch.setattr(
            training,
            "train_loop",
            lambda *a: (signal.raise_signal(signal.SIGINT), train_loop(*a))[1],
        )
        with pytest.raises(Interrupted):
            run_tiny("dcgan", "parts")
    assert newest(tmp_path / "parts").name == "000000000"
    run_tiny("dcgan", "parts")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_steps_after_the_last_checkpoint_are_done_again_after_a_crash(
    run_tiny, tmp_path, monkeypatch
):
    run_tiny("dcgan", "whole")
    on_step = writer.Writer.on_step

    def crash(self, state, *stats):
        on_step(self, state, *stats)
        if state.images == 208:  # three steps after the checkpoint at 160
            raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(writer.Writer, "on_step", crash)
        with pytest.raises(ZeroDivisionError):
            run_tiny("dcgan", "parts")
    assert newest(tmp_path / "parts").name == "000000160"
    assert read_log(tmp_path / "parts" / "log.jsonl")[-1]["images"] == 208
    run_tiny("dcgan", "parts")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_complete_run_is_left_as_it_is_and_a_longer_one_goes_on(data, tmp_path):
    config = tiny("dcgan", data, tmp_path / "run", optim=STEADY)
    train(config, quiet=True)
    before = files(tmp_path / "run")
    train(config, quiet=True)
    assert files(tmp_path / "run") == before
    train(replace(config, kimg=0.4), quiet=True)
    train(replace(config, kimg=0.4, out=str(tmp_path / "whole")), quiet=True)
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_a_run_that_was_moved_goes_on(run_tiny, data, tmp_path, stop_at):
    run_tiny("dcgan", "whole")
    stop_at(160)
    with pytest.raises(Interrupted):
        run_tiny("dcgan", "before")
    (tmp_path / "before").rename(tmp_path / "after")
    moved = shutil.copy(data, tmp_path / "elsewhere.npz")
    train(tiny("dcgan", str(moved), tmp_path / "after"), quiet=True)
    assert_same_run(tmp_path / "whole", tmp_path / "after")


# Signals


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    log = LogConfig(every=1, sample_kimg=9, save_kimg=9, tensorboard=False)
    train(tiny("dcgan", data, out, kimg=1.6, log=log), quiet=True)
    return out


ENDED = [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.accept)]


@pytest.mark.parametrize(("number", "code"), ENDED)
def test_a_process_told_to_end_saves_and_the_same_command_finishes(
    number, code, data, uninterrupted, tmp_path
):
    """At a step that nobody chose; the numbers still come out as if it had not happened."""
    out = tmp_path / "run"
    line = f"train --config {uninterrupted / 'config.yaml'} --out {out}"
    command = [sys.executable, "-m", "ganfast", *line.split()]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while (
        len(read_log(out / "log.jsonl")) < 3
        and time.monotonic() < deadline
        and process.poll() is None
    ):
        time.sleep(0.005)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code, said
    assert f"{signal.Signals(number).name}: saved {out}" in said
    assert "Traceback" not in said
    assert 0 < checkpoints.read_record(newest(out)).images < 1600, (
        "the signal came too late to show anything"
    )
    assert ganfast(line) == 0
    assert_same_run(uninterrupted, out)


def test_a_second_signal_ends_the_process_at_once():
    code = (
        "import signal, time; from ganfast.runs.train import signals\n"
        "with signals() as received:\n"
        "    signal.raise_signal(signal.SIGTERM); assert received == [signal.SIGTERM]\n"
        "    print('alive', flush=True)\n"
        "    signal.raise_signal(signal.SIGTERM); print('still alive')"
    )
    done = python("-c", code)
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "alive\n")


@pytest.mark.parametrize("ending", ["done", "interrupted", "failed"])
def test_the_handlers_of_the_program_around_come_back(ending, run_tiny, stop_at, monkeypatch):

    def mine(*_):
        pass

    before = {number: signal.signal(number, mine) for number in (signal.SIGINT, signal.SIGTERM)}
    inside = []
    monkeypatch.setattr(
        training,
        "train_loop",
        lambda *a: (inside.append(signal.getsignal(signal.SIGINT)), loop.train_loop(*a)),
    )
    try:
        if ending == "interrupted":
            stop_at(160)
        if ending == "failed":
            monkeypatch.setattr(writer.Writer, "on_step", lambda *_: 1 / 0)
        with suppress(Interrupted, ZeroDivisionError):
            run_tiny()
        assert inside[0] is not mine, "training did not listen at all"
        assert signal.getsignal(signal.SIGINT) is mine
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_training_works_outside_the_main_thread(data, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            signal, "signal", lambda *_: pytest.fail("only the main thread may install handlers")
        )
        thread = threading.Thread(
            target=train, args=(tiny("dcgan", data, tmp_path / "run"),), kwargs={"quiet": True}
        )
        thread.start()
        thread.join()
    assert newest(tmp_path / "run").name == "000000320"


# What may be resumed, and where


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 3}, "seed was 0, now 3"),
        ({"ema_kimg": 1.5}, "ema_kimg was 5.0, now 1.5"),
        ({"precision": "bf16"}, "precision was 'fp32', now 'bf16'"),
        ({"loss": LossConfig("hinge")}, "loss.kind was 'non-saturating', now 'hinge'"),
        ({"conditional": "no"}, "conditional was 'projection', now 'no'"),
    ],
    ids=str,
)
def test_other_mathematics_in_the_same_directory_is_refused_and_listed(
    changes, said, data, tmp_path
):
    config = tiny("dcgan", data, tmp_path / "run", ema_kimg=5.0)
    train(config, quiet=True)
    before = files(tmp_path / "run")
    with pytest.raises(
        InputError, match=f"{tmp_path / 'run'} holds another run .*{said}"
    ) as refused:
        train(replace(config, kimg=0.4, **changes), quiet=True)
    assert "--out" in str(refused.value), "no way out named"
    assert "kimg was 0.32" not in str(refused.value), "a run may be made longer"
    assert files(tmp_path / "run") == before


def test_every_difference_is_listed(run_tiny):
    run_tiny()
    with pytest.raises(InputError, match="seed was 0, now 1; .*penalty.kind was 'none', now 'r1'"):
        run_tiny("r1", seed=1)


def test_other_pictures_under_the_same_run_are_refused(run_tiny, data, tmp_path):
    run_tiny()
    before = files(tmp_path / "run")
    with np.load(data) as few:
        np.savez(tmp_path / "other.npz", images=few["images"][::-1], labels=few["labels"][::-1])
    with pytest.raises(InputError, match=r"other pictures than .*other\.npz"):
        train(tiny("dcgan", str(tmp_path / "other.npz"), tmp_path / "run", kimg=0.4), quiet=True)
    assert files(tmp_path / "run") == before


def test_what_is_free_may_change_between_two_parts_of_a_run(data, tmp_path):
    config = tiny("dcgan", data, tmp_path / "run", optim=STEADY)
    train(replace(config, kimg=0.16), quiet=True)
    other = LogConfig(every=3, sample_kimg=0.1, save_kimg=0.1, keep=1, tensorboard=True)
    train(replace(config, device="cpu", log=other), quiet=True)
    expected = ["000000320"]
    assert [path.name for path in checkpoints.listed(tmp_path / "run" / "checkpoints")] == expected
    train(replace(config, out=str(tmp_path / "whole")), quiet=True)
    one, whole = files(newest(tmp_path / "run")), files(newest(tmp_path / "whole"))
    assert [name for name in one if one[name] != whole[name]] == ["state.json"], (
        "which says how many lines the log had"
    )
    assert (
        checkpoints.read_record(newest(tmp_path / "run")).files
        == checkpoints.read_record(newest(tmp_path / "whole")).files
    )


@pytest.mark.parametrize("what", ["folder", "file"])
def test_a_foreign_place_is_refused_and_untouched(what, data, tmp_path):
    out = tmp_path / "thesis"
    if what == "folder":
        out.mkdir()
    path = out / "chapter1.txt" if what == "folder" else out
    path.write_text("years of work")
    with pytest.raises(
        InputError, match=f"{out} exists and is not a run directory; choose another --out"
    ):
        train(tiny("dcgan", data, out), quiet=True)
    assert path.read_text() == "years of work"
    assert {p.name for p in tmp_path.rglob("*")} == {"thesis", path.name}


def test_an_empty_directory_and_one_that_is_not_there_are_welcome(data, tmp_path):
    (tmp_path / "empty").mkdir()
    for out in (tmp_path / "empty", tmp_path / "not" / "there" / "yet"):
        train(tiny("dcgan", data, out, kimg=0.016), quiet=True)
        assert newest(out).name == "000000016"


def test_a_run_whose_config_was_damaged_is_refused_and_kept(run_tiny, tmp_path):
    run_tiny()
    (tmp_path / "run" / "config.yaml").write_text("preset: [")
    before = files(tmp_path / "run")
    with pytest.raises(InputError, match=r"config\.yaml is not YAML"):
        run_tiny()
    assert files(tmp_path / "run") == before


def test_a_directory_that_cannot_be_written_is_bad_input(data, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written: .*choose another --out"):
        train(tiny("dcgan", data, tmp_path / "file" / "run"), quiet=True)


# What a run leaves


@pytest.fixture(scope="module")
def left(data, tmp_path_factory) -> Path:
    """A wgan-gp run of 6 generator steps, 80 pictures each."""
    out = tmp_path_factory.mktemp("runs") / "left"
    log = LogConfig(every=2, sample_kimg=0.1, save_kimg=0.08)
    train(tiny("wgan-gp", data, out, kimg=0.45, log=log), quiet=True)
    return out


def test_a_run_directory_holds_what_is_documented(left, data):
    assert {path.name for path in left.iterdir()} == set(
        "config.yaml data.json engine.json log.jsonl samples tensorboard checkpoints".split()
    )
    assert json.loads((left / "engine.json").read_text())["engine"] == "explicit"
    described = json.loads((left / "data.json").read_text())
    facts = [described[name] for name in ("count", "size", "channels", "name")]
    assert facts == [150, 16, 1, "few"]
    assert len(list((left / "tensorboard").glob("events.*"))) == 1


def test_a_fractional_length_ends_with_the_step_that_reaches_it(left):
    assert newest(left).name == "000000480", "6 steps of 80 are the first to show 450"


def test_the_last_three_checkpoints_are_kept(left):
    expected = "000000320 000000400 000000480".split()
    assert [path.name for path in checkpoints.listed(left / "checkpoints")] == expected


def test_sample_grids_come_at_the_first_step_past_every_multiple_and_at_both_ends(left):
    names = {path.name for path in (left / "samples").iterdir()}
    counts = (0, 160, 240, 320, 400, 480)  # past 0, 100, 200, 300, 400 in steps of 80
    assert names == {"reals.png", *(f"{count:09d}.png" for count in counts)}


def test_sample_grids_show_the_pictures_that_sampling_would_draw_and_they_change(left):
    first, last = (
        np.asarray(Image.open(left / "samples" / f"{count:09d}.png")) for count in (0, 480)
    )
    drawn = (
        grid(Run.open(left).sample(60, seed=0, labels=range(10)), 10)[:, :, 0]
        .repeat(3, 0)
        .repeat(3, 1)
    )
    assert first.shape == last.shape == drawn.shape
    # Another batch size rounds otherwise.
    np.testing.assert_allclose(last.astype(int), drawn.astype(int), atol=1)
    assert np.abs(first.astype(int) - drawn).max() > 3, "the run stood still"


@pytest.mark.parametrize("classes", [2, 10])
def test_a_conditional_grid_has_a_column_a_class(classes, tmp_path):
    random = np.random.default_rng(0)
    labels = np.arange(200) % classes
    np.savez(
        tmp_path / "flat.npz",
        images=random.integers(0, 255, (200, 16, 16), dtype=np.uint8),
        labels=labels,
    )
    train(tiny("acgan", str(tmp_path / "flat.npz"), tmp_path / "run", kimg=0.016), quiet=True)
    sheet = np.asarray(Image.open(tmp_path / "run" / "samples" / "000000016.png"))
    columns = {2: 8, 10: 10}[classes]  # two classes side by side would be a tower: they alternate
    assert sheet.shape == (3 * (64 // columns * 18 + 2), 3 * (columns * 18 + 2))


def test_every_log_line_is_json_with_finite_named_numbers(left):
    lines = [
        json.loads(line, parse_constant=pytest.fail)
        for line in (left / "log.jsonl").read_text().splitlines()
    ]
    assert [line["images"] for line in lines] == [160, 320, 480], "every second of 6 steps"
    named = {
        *"images seconds images_per_second critic/loss generator/loss critic/wasserstein".split(),
        *"critic/real_score critic/fake_score critic/penalty".split(),
        *"critic/real_accuracy critic/fake_accuracy generator/spread".split(),
        *"critic/gradient_norm critic/gradient_norm_max".split(),
    }
    for line in lines:
        assert line.keys() >= named
        assert all(
            isinstance(value, int | float) and math.isfinite(value) for value in line.values()
        )
        expected = pytest.approx(line["critic/real_score"] - line["critic/fake_score"], abs=1e-4)
        assert line["critic/wasserstein"] == expected
        assert line["critic/gradient_norm_max"] >= line["critic/gradient_norm"] > 0
        # Jensen: lambda is 10, target 1.
        assert line["critic/penalty"] >= 10 * (line["critic/gradient_norm"] - 1) ** 2 - 1e-4
    assert lines[0]["seconds"] < lines[1]["seconds"] < lines[2]["seconds"]


def test_tensorboard_gets_the_numbers_of_the_log_and_the_grids(left):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(left / "tensorboard"))
    events.Reload()
    logged = {line["images"]: line["critic/wasserstein"] for line in read_log(left / "log.jsonl")}
    scalars = {event.step: event.value for event in events.Scalars("critic/wasserstein")}
    assert scalars == pytest.approx(logged, rel=1e-4)
    assert [event.step for event in events.Images("samples")][-1] == 480


def test_keep_zero_keeps_every_checkpoint(run_tiny, tmp_path):
    log = LogConfig(save_kimg=0.064, keep=0, tensorboard=False)
    run_tiny(log=log)
    kept = [int(path.name) for path in checkpoints.listed(tmp_path / "run" / "checkpoints")]
    assert kept == [64, 128, 192, 256, 320]
    assert not (tmp_path / "run" / "tensorboard").exists(), "asked for none"


def test_a_config_file_of_a_run_repeats_it_to_the_bit(left, tmp_path):
    assert (
        main(f"train --config {left / 'config.yaml'} --out {tmp_path / 'again'} --quiet".split())
        == 0
    )
    assert_same_run(left, tmp_path / "again")


def test_quiet_prints_nothing(data, tmp_path, capfd):
    for name, quiet in (("loud", False), ("quiet", True)):
        train(tiny("dcgan", data, tmp_path / name, kimg=0.016), quiet=quiet)
        said = capfd.readouterr()
        assert said.out == "", "standard output is for data"
        assert bool(said.err) is not quiet, said.err


# The mathematics of the loop


@pytest.mark.parametrize(("critic_steps", "generator_steps"), [(1, 20), (2, 10), (3, 7), (5, 4)])
def test_critic_steps_per_generator_step(critic_steps, generator_steps, run_tiny, tmp_path, steps):
    optim = OptimConfig(critic_steps=critic_steps)
    run_tiny(optim=optim)
    turn = ["critic"] * critic_steps + ["generator"]
    assert [name for name, _ in steps] == turn * generator_steps
    assert newest(tmp_path / "run").name == f"{generator_steps * critic_steps * 16:09d}"


def test_a_lazy_penalty_comes_every_so_many_critic_steps(data, tmp_path, steps):
    config = tiny("r1", data, tmp_path / "run", penalty=PenaltyConfig("r1", weight=1.0, interval=4))
    train(config, quiet=True)
    expected = [True, False, False, False] * 5
    assert [call["with_penalty"] for name, call in steps if name == "critic"] == expected
    assert all(
        math.isfinite(line["critic/loss"]) for line in read_log(tmp_path / "run" / "log.jsonl")
    )


@pytest.mark.parametrize("every", [1, 3, 4])
def test_a_lazily_penalised_run_still_logs_its_gradient_norm(every, data, tmp_path):
    """Whatever the rhythms: a penalty and a log line, both every 4, never meet by themselves."""
    log = LogConfig(every=every, save_kimg=1, sample_kimg=1, tensorboard=False)
    config = tiny(
        "r1", data, tmp_path / "run", penalty=PenaltyConfig("r1", weight=1.0, interval=4), log=log
    )
    train(config, quiet=True)
    assert any("critic/gradient_norm" in line for line in read_log(tmp_path / "run" / "log.jsonl"))


@pytest.mark.parametrize("preset", EACH_PRESET)
def test_every_update_is_adams_by_the_gradient_of_each_weight(preset, data, tmp_path, monkeypatch):
    """Fused Adam takes weight, gradient and moments to lie in memory alike; plain Adam indexes."""
    shadows = []

    def shadowed(name, state, config, net, optimizer, clip):
        beta1, beta2 = optimizer.param_groups[0]["betas"]
        copies = [
            parameter.detach().clone(memory_format=torch.contiguous_format)
            for parameter in net.parameters()
        ]
        plain = torch.optim.Adam(copies, betas=(beta1, beta2), fused=False, foreach=False)
        (group,) = plain.param_groups
        shadows.append((name, list(net.named_parameters()), copies))

        def follow():
            whole = config.batch * config.optim.critic_steps
            # The counter stands at the end of a generator step's turns.
            began = (state.images - (name == "generator")) // whole * whole
            values = schedules.scheduled_values(config, torch.tensor([began]))
            group["lr"] = values[name].item()
            group["betas"] = (beta1, values["beta2"].item() if "beta2" in values else beta2)
            for copy, parameter in zip(copies, net.parameters(), strict=True):
                copy.grad = parameter.grad.clone(memory_format=torch.contiguous_format)
            plain.step()
            for copy in copies if clip else []:
                copy.clamp_(-clip, clip)

        return follow

    def followed(state, pictures, config, critic_step, generator_step, *rest):
        clip = config.loss.clip
        adam = state.optimizer_critic, state.optimizer_generator
        follow_critic = shadowed("critic", state, config, state.critic, adam[0], clip)
        follow_generator = shadowed("generator", state, config, state.generator, adam[1], 0)

        def then(step, follow):
            return lambda *a, **k: (step(*a, **k), follow())[0]

        critic, generator = then(critic_step, follow_critic), then(generator_step, follow_generator)
        loop.train_loop(state, pictures, config, critic, generator, *rest)

    monkeypatch.setattr(training, "train_loop", followed)
    config = tiny(preset, data, tmp_path / "run")
    train(config, quiet=True)
    assert len(shadows) == 2
    wrong = []
    for net, parameters, copies in shadows:
        for (name, parameter), copy in zip(parameters, copies, strict=True):
            error = (parameter - copy).abs().max().item()
            if error > 1e-6:  # one wrong step moves a weight by up to 2 x rate, 1e-4 and more
                wrong.append(f"{name} of the {net} by {error:.1g}")
    assert wrong == []


def test_clipping_bounds_every_weight_and_is_what_does(data, tmp_path):
    for clip in (0.01, 0.0):
        config = tiny("wgan", data, tmp_path / f"{clip}", loss=LossConfig("wasserstein", clip=clip))
        train(config, quiet=True)
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    largest = {
        clip: max(
            value.abs().max().item()
            for name, value in tensors(newest(tmp_path / f"{clip}"), "critic").items()
            if not name.endswith(statistics)
        )
        for clip in (0.01, 0.0)
    }
    assert largest[0.01] == np.float32(0.01)
    assert largest[0.0] > 0.5, "a batch norm starts at 1"


def test_the_average_lags_behind_the_generator_unless_its_half_life_is_zero(data, tmp_path):
    for ema_kimg in (5.0, 0.0):
        train(tiny("r1", data, tmp_path / f"{ema_kimg}", ema_kimg=ema_kimg), quiet=True)
    statistics = ("running_mean", "running_var", "num_batches_tracked")

    def distances(folder):
        generator, average = tensors(newest(folder), "generator"), tensors(newest(folder), "ema")
        return {
            name: (generator[name] - average[name]).abs().max().item()
            for name in average
            if not name.endswith(statistics)
        }

    lagging, equal = distances(tmp_path / "5.0"), distances(tmp_path / "0.0")
    assert min(lagging.values()) > 0
    assert max(equal.values()) == 0
    for folder in ("5.0", "0.0"):  # the same training under both averages
        assert (
            tensors(newest(tmp_path / folder), "generator").keys()
            == tensors(newest(tmp_path / "5.0"), "generator").keys()
        )
    same = (newest(tmp_path / folder) / "generator.safetensors" for folder in ("5.0", "0.0"))
    assert len({path.read_bytes() for path in same}) == 1


@pytest.mark.parametrize("preset", CONDITIONAL)
def test_a_conditional_run_draws_its_classes_differently(preset, run_tiny, tmp_path, steps):
    run = run_tiny(preset, **CONDITIONAL[preset])
    assert run.classes == tuple("0123456789")
    assert all(call["labels"] is not None and len(call["labels"]) == 16 for _, call in steps)
    one, other = (run.sample(1, labels=[label]) for label in (0, 1))
    assert (one != other).any()
    lines = read_log(tmp_path / "run" / "log.jsonl")
    assert all(("critic/class_accuracy" in line) == (preset == "acgan") for line in lines)
    assert all(("generator/class_loss" in line) == (preset == "acgan") for line in lines)


def test_a_run_without_classes_sees_no_labels(run_tiny, steps):
    run = run_tiny("wgan-gp", conditional="no")
    assert run.classes == ()
    assert all(call["labels"] is None for _, call in steps)


def shown(steps) -> list[int]:
    """How often the critic was shown each class."""
    counts = Counter(
        int(label) for name, call in steps if name == "critic" for label in call["labels"]
    )
    return [counts[k] for k in range(10)]


def test_an_imbalanced_run_is_shown_a_long_tail_and_a_balanced_one_every_class_equally(
    run_tiny, steps
):
    run_tiny("acgan", "long-tailed", imbalance=7.0)
    tail = shown(steps)
    assert tail[0] > 4 * tail[9] > 0, "the first class has 7 times the pictures of the last"
    steps.clear()
    run_tiny("acgan", "balanced", imbalance=7.0, balanced=True)
    assert shown(steps) == [32] * 10


@pytest.mark.parametrize("option", ["balanced", "imbalance"])
def test_balance_makes_a_run_conditional_where_nothing_else_was_asked(option, run_tiny):
    run = run_tiny("wgan-gp", kimg=0.016, **{option: {"balanced": True, "imbalance": 5.0}[option]})
    assert run.config.conditional == "projection"
    assert len(run.classes) == 10


@pytest.mark.parametrize(
    "option", [{"balanced": True}, {"imbalance": 5.0}, {"conditional": "projection"}], ids=str
)
def test_classes_asked_of_data_without_any_are_refused(option, tmp_path):
    np.save(
        tmp_path / "plain.npy",
        np.random.default_rng(0).integers(0, 255, (40, 16, 16), dtype=np.uint8),
    )
    with pytest.raises(InputError, match="plain has no classes"):
        train(tiny("wgan-gp", str(tmp_path / "plain.npy"), tmp_path / "run", **option), quiet=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("size", "channels"), [(16, 1), (21, 3)])
def test_size_and_channels_of_the_pictures_are_those_of_the_generator(size, channels, run_tiny):
    run = run_tiny("wgan-gp", kimg=0.016, size=size, channels=channels)
    assert run.sample(3).shape == (3, size, size, channels)
    assert (run.config.size, run.config.channels) == (size, channels)


def test_automatic_values_are_recorded_as_what_they_became(run_tiny, tmp_path):
    run_tiny("wgan-gp", kimg=0.016, size=0, net=NetConfig(latent=8))
    recorded = configfile.read(tmp_path / "run" / "config.yaml")
    expected = (16, 1, "projection", "fp32")
    assert (recorded.size, recorded.channels, recorded.conditional, recorded.precision) == expected
    assert recorded.net.width > 0


def test_bf16_runs_on_a_cpu_with_weights_kept_in_float32(run_tiny, tmp_path):
    for precision in ("bf16", "fp32"):
        run_tiny("wgan-gp", precision, precision=precision)
    low, full = (mathematics(tmp_path / precision) for precision in ("bf16", "fp32"))
    assert low != full
    for one, other in zip(low, full, strict=True):
        assert one["critic/loss"] == pytest.approx(
            other["critic/loss"], abs=0.1 * abs(other["critic/penalty"]) + 0.05
        )
    assert {
        value.dtype
        for value in tensors(newest(tmp_path / "bf16"), "generator").values()
        if value.is_floating_point()
    } == {torch.float32}


# When it goes wrong


@pytest.mark.parametrize("every", [1, 1000], ids=["seen in the log", "seen when saving"])
def test_losses_that_stop_being_numbers_end_the_run_with_its_checkpoints_intact(
    every, run_tiny, tmp_path, monkeypatch
):
    factor = schedules.run_factor
    monkeypatch.setattr(
        *(schedules, "run_factor"),
        lambda config, images: factor(config, images).where(images < 208, 1e34),
    )
    log = LogConfig(every=every, save_kimg=0.08, sample_kimg=1, tensorboard=False)
    # A look at every line, or only at the saves at 240 and 320, the end.
    times = 3 if every == 1 else 1
    said = (
        f"not a finite number.* at .*after going back {times} times.*{tmp_path / 'run'}"
        ".*lower --optim.lr-critic.*another --out"
    )
    with pytest.raises(RunError, match=said):
        run_tiny(log=log)
    kept = checkpoints.listed(tmp_path / "run" / "checkpoints")
    assert [path.name for path in kept] == ["000000080", "000000160"]
    for path in kept:
        for part in ("generator", "critic", "ema", "optimizer_generator", "optimizer_critic"):
            assert all(value.isfinite().all() for value in tensors(path, part).values()), (
                f"{path} {part}"
            )
    for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines():
        # JSON has no NaN: other programs would stumble over it.
        json.loads(line, parse_constant=pytest.fail)


def test_a_rate_beyond_reason_is_one_sentence_and_exit_code_1(data, tmp_path, capsys):
    line = (
        f"train dcgan --data {data} --out {tmp_path / 'run'} --batch 16 --net.width 4 --kimg 0.32"
    )
    rates = "--log.every 1 --optim.lr-critic 1e30 --optim.lr-generator 1e30"
    assert ganfast(f"{line} {rates}") == 1
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if line.startswith("ganfast: ")] == said[-1:]
    assert "not a finite number" in said[-1]


def test_a_damaged_newest_checkpoint_is_named_set_aside_and_the_one_before_used(
    data, tmp_path, caplog
):
    config = tiny("dcgan", data, tmp_path / "run", optim=STEADY)
    train(config, quiet=True)
    path = newest(tmp_path / "run") / "critic.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    before = files(newest(tmp_path / "run"))
    train(replace(config, kimg=0.4), quiet=True)
    assert str(path) in caplog.text
    assert "000000240, is used instead" in caplog.text
    assert files(tmp_path / "run" / "checkpoints" / "set-aside" / "000000320") == before, (
        "nothing is thrown away"
    )
    train(replace(config, kimg=0.4, out=str(tmp_path / "whole")), quiet=True)
    assert_same_run(tmp_path / "whole", tmp_path / "run")


# One process at a time, and steps that diverge


def test_a_second_process_on_a_run_is_told_who_holds_it(data, tmp_path):
    out = tmp_path / "run"
    code = (
        "import sys; from pathlib import Path; from ganfast.locks import NAME, locked\n"
        "with locked(Path(sys.argv[1]) / NAME, sys.argv[1]):\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    out.mkdir()
    command = [sys.executable, "-c", code, str(out)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(
            InputError, match=f"{out} is in use by process {other.pid} on .* since "
        ):
            train(tiny("dcgan", data, out, kimg=0.016), quiet=True)
        other.kill()
    assert (out / locks.NAME).exists(), "killed, it left its file, which holds nobody up"
    train(tiny("dcgan", data, out, kimg=0.016), quiet=True)
    assert not (out / locks.NAME).exists()


@pytest.fixture
def planted(monkeypatch):
    """A NaN in one tensor of the training at chosen counters."""

    def plant(where: str, images: set[int]) -> None:
        if where == "data":
            draw = feed.Feed.critic

            def spoiled(self):
                given = draw(self)
                if int(self._first + self._turn * self.config.batch) in images:
                    given.real[3, 0, 5, 5] = math.nan
                return given

            monkeypatch.setattr(feed.Feed, "critic", spoiled)
            return
        on_step = writer.Writer.on_step

        def hooked(self, state, *stats):
            if state.images in images:
                weight = next(state.critic.parameters())
                with torch.no_grad():
                    (weight if where == "weight" else weight.grad).view(-1)[0] = math.nan
            on_step(self, state, *stats)

        monkeypatch.setattr(writer.Writer, "on_step", hooked)

    return plant


GUARDED = GuardConfig(every=1, tries=2)


@pytest.mark.parametrize("where", ["weight", "gradient", "data"])
def test_a_planted_nan_is_rolled_back_to_the_last_look_and_the_run_ends_well(
    where, run_tiny, tmp_path, planted, caplog
):
    planted(where, {208})
    # The next step overwrites a gradient; looks at 144, 192 and 240, checkpoints at 160.
    every = 1 if where == "gradient" else 3
    run_tiny(guard=replace(GUARDED, every=every))
    assert newest(tmp_path / "run").name == "000000320"
    said = (
        r"of the (critic|generator) is not a finite number.* at 0.2\d+ kimg: "
        r"back to the state of 0.192 kimg.*1 of 2 times"
    )
    assert re.search(said, caplog.text)
    assert all(
        value.isfinite().all() for value in tensors(newest(tmp_path / "run"), "critic").values()
    )
    assert [line["images"] for line in read_log(tmp_path / "run" / "log.jsonl")] == list(
        range(16, 336, 16)
    ), "no replay"


def test_what_is_restored_is_every_tensor_of_the_state_that_was_passed(
    run_tiny, planted, monkeypatch
):
    planted("weight", {208})
    on_step, seen = writer.Writer.on_step, {}

    def watched(self, state, *stats):
        on_step(self, state, *stats)
        copy = Copy(on_host=True)
        copy.take(state)
        seen[state.images] = copy.contents

    monkeypatch.setattr(writer.Writer, "on_step", watched)
    run_tiny(guard=GUARDED)
    assert seen[208].keys() == seen[192].keys()
    for part, before in seen[192].items():
        assert all(torch.equal(seen[208][part][name], value) for name, value in before.items()), (
            part
        )
    assert any(
        not torch.equal(seen[224]["critic"][name], value)
        for name, value in seen[192]["critic"].items()
    )


@pytest.mark.parametrize("again", [224, 240])
def test_the_second_time_it_is_the_last_checkpoint_be_it_that_a_look_passed_between(
    again, run_tiny, tmp_path, planted, caplog
):
    """A state that survives a look may be ill already."""
    planted("weight", {208, again})
    run_tiny(guard=GUARDED)
    assert re.findall(r"at (0.2\d+) kimg: back to the state of (0.1\d+) kimg", caplog.text) == [
        ("0.208", "0.192"),
        (f"{again / 1000:g}", "0.16"),
    ]
    assert newest(tmp_path / "run").name == "000000320"


def test_a_sample_folder_that_was_deleted_comes_back(run_tiny, tmp_path, monkeypatch):
    samples = writer.Writer.samples

    def spoiled(self):
        shutil.rmtree(self.run.folder / "samples", ignore_errors=True)
        samples(self)

    monkeypatch.setattr(writer.Writer, "samples", spoiled)
    run_tiny(kimg=0.032)
    assert (tmp_path / "run" / "samples" / "000000032.png").exists()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no /proc")
def test_a_training_that_fails_early_leaves_no_file_open(run_tiny, monkeypatch):
    def broken(*given):
        raise ValueError("broken")

    monkeypatch.setattr(training, "make_steps", broken)
    for name in ("a", "b"):
        with pytest.raises(ValueError, match="broken"):
            run_tiny("dcgan", name)
    assert not [
        path
        for path in Path("/proc/self/fd").iterdir()
        if path.exists() and path.resolve().name == "log.jsonl"
    ]


def test_a_run_that_went_back_resumes_to_the_bit(data, tmp_path, planted, stop_at):
    planted("weight", {208, 272})
    config = tiny(
        "dcgan", data, tmp_path / "whole", guard=replace(GUARDED, growth=1.5), optim=STEADY
    )
    train(config, quiet=True)
    again = replace(config, out=str(tmp_path / "parts"))
    for images in (176, 256):
        stop_at(images)
        with pytest.raises(Interrupted):
            train(again, quiet=True)
    train(again, quiet=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("where", ["weight", "gradient", "data"])
def test_a_nan_that_comes_back_ends_the_run_and_names_the_tensor(
    where, run_tiny, tmp_path, planted
):
    planted(where, set(range(208, 336)))
    with pytest.raises(
        RunError,
        match=r"of the \w+ is not a finite number.* at 0.24 kimg, after going back 2 times",
    ):
        run_tiny(guard=GUARDED)
    assert newest(tmp_path / "run").name == "000000160"


# torch.compile


@pytest.mark.accept
def test_compiled_steps_give_the_losses_of_eager_ones(run_tiny, tmp_path):
    from ganfast.engine.compiled import graphs as made

    graphs = []
    for compiled in (False, True):
        made.clear()
        compile = "on" if compiled else "off"
        run_tiny("dcgan", compile, compile=compile, kimg=0.064)
        graphs.append(made.total())
    assert graphs[0] == 0
    assert graphs[1] == 3, "the critic's step, the generator's, and what draws for the critic"
    eager, compiled = (mathematics(tmp_path / name) for name in ("off", "on"))
    assert len(eager) == 4
    for one, other in zip(eager, compiled, strict=True):
        assert one == pytest.approx(other, abs=1e-3)


@pytest.mark.accept
def test_compiled_steps_pass_their_check_and_say_so(run_tiny, tmp_path, caplog):
    run_tiny("wgan-gp", compile="on", kimg=0.16)
    record = json.loads((tmp_path / "run" / "engine.json").read_text())
    assert (record["engine"], record["compiled"]) == ("explicit", True)
    assert not [r for r in caplog.records if r.name == "ganfast"]  # a failed check would be one
    assert len(read_log(tmp_path / "run" / "log.jsonl")) == 2


@pytest.mark.parametrize("save_kimg", [0.032, 1.0])
def test_the_last_grid_is_there_before_the_last_checkpoint(save_kimg, data, tmp_path, monkeypatch):
    """Or a run killed in between would be complete, and without it."""
    there, real = [], writer.Saver.save

    def save(self, state, *rest):
        there.append(
            (state.images, (tmp_path / "run" / "samples" / f"{state.images:09d}.png").exists())
        )
        real(self, state, *rest)

    monkeypatch.setattr(writer.Saver, "save", save)
    config = tiny("r1", data, tmp_path / "run")
    run = train(replace(config, log=replace(config.log, save_kimg=save_kimg)), quiet=True)
    assert there[-1] == (int(run.latest().name), True)
    assert all(found for images, found in there if images == there[-1][0])
