"""Going back, forking, forcing: later files are set aside, differences listed, all recorded."""

import json
import re
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from ganfast import configfile
from ganfast.cli import main
from ganfast.config import LossConfig, NetConfig, OptimConfig
from ganfast.errors import InputError
from ganfast.fields import Schedule
from ganfast.runs import checkpoint as checkpoints
from ganfast.runs.logfile import read_log
from ganfast.runs.resume import history
from ganfast.runs.run import Run
from ganfast.runs.train import train
from tests.small_runs import STEADY, assert_same_run, files, newest, tiny


@pytest.fixture(scope="module")
def straight(data, tmp_path_factory) -> Path:
    """A run of 320 pictures with checkpoints at 80, 160, 240 and 320, never stopped. Only read."""
    out = tmp_path_factory.mktemp("straight") / "run"
    train(tiny("dcgan", data, out, optim=STEADY, log=replace(tiny().log, keep=0)), quiet=True)
    expected = "000000080 000000160 000000240 000000320".split()
    assert [p.name for p in checkpoints.listed(out / "checkpoints")] == expected
    return out


@pytest.fixture
def run(straight, tmp_path) -> Path:
    """A copy of that run to do things to."""
    return shutil.copytree(straight, tmp_path / "run")


def config_of(run: Path, **changes):
    return replace(Run.open(run).config, **{"out": str(run)} | changes)


# From a named checkpoint


@pytest.mark.parametrize("which", ["160", "000000160", "path"])
def test_from_an_earlier_checkpoint_the_same_run_is_trained_again_and_the_old_end_set_aside(
    which, straight, run, caplog
):
    late, line = newest(run), (run / "log.jsonl").read_text().splitlines()
    old = files(late)
    train(
        config_of(run),
        quiet=True,
        checkpoint=str(run / "checkpoints" / "000000160") if which == "path" else which,
    )
    assert_same_run(straight, run)
    aside = run / "checkpoints" / "set-aside"
    assert files(aside / "000000320") == old
    expected = set("000000240 000000320 000000320.png log-after-000000160.jsonl".split())
    assert {p.name for p in aside.iterdir()} == expected
    assert (aside / "log-after-000000160.jsonl").read_text().splitlines() == line[10:]
    assert (
        "back at 0.16 kimg: later checkpoints (000000240, 000000320), 1 sample grids and 10 lines"
        in caplog.text
    )
    (event,) = history(run)
    expected = ("return", 160, ["000000240", "000000320"])
    assert (event["event"], event["images"], event["set_aside"]) == expected


def test_the_newest_by_its_name_is_what_happens_anyway(run):
    before = files(run)
    train(config_of(run), quiet=True, checkpoint="320")
    assert files(run) == before, "complete: nothing is written"


def test_returning_twice_loses_nothing(run):
    for _ in range(2):
        train(config_of(run), quiet=True, checkpoint="240")
    aside = {p.name for p in (run / "checkpoints" / "set-aside").iterdir()}
    log = {"log-after-000000240.jsonl", "log-after-000000240-2.jsonl"}
    assert aside == {"000000320", "000000320-2", "000000320.png", "000000320-2.png"} | log


def test_the_best_is_a_name_of_a_checkpoint(straight, run):
    checkpoints.keep_best(run / "checkpoints" / "000000240", 1.0, "test")
    train(config_of(run), quiet=True, checkpoint="best")
    assert [line["images"] for line in history(run)] == [240]
    assert_same_run(straight, run)


def test_a_checkpoint_that_is_not_there_damaged_or_foreign_is_refused_and_nothing_is_touched(
    run, straight
):
    before = files(run)
    with pytest.raises(InputError, match="no checkpoint 99 in .*; there: 000000080, 000000160"):
        train(config_of(run), quiet=True, checkpoint="99")
    with pytest.raises(InputError, match="is no checkpoint of .*with --fork NEWDIR"):
        train(config_of(run), quiet=True, checkpoint=str(newest(straight)))
    assert files(run) == before
    path = run / "checkpoints" / "000000160" / "critic.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"000000160/critic.safetensors has .* bytes instead of"):
        train(config_of(run), quiet=True, checkpoint="160")
    assert len(checkpoints.listed(run / "checkpoints")) == 4


@contextmanager
def interrupted(operation, after):
    """The process is interrupted at a file operation, when so many of its kind are done."""
    real, left = getattr(checkpoints.disk.calls, operation), iter(range(after))

    def dies(*given):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return real(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints.disk.calls, operation, dies)
        with pytest.raises(KeyboardInterrupt):
            yield


@pytest.mark.parametrize("dies_at", [1, 4])
def test_a_return_that_is_interrupted_anywhere_leaves_a_run_that_loads(dies_at, straight, run):
    with interrupted("rename", dies_at):
        train(config_of(run), quiet=True, checkpoint="160")
    left = int(newest(run).name)
    assert left in (160, 240, 320)
    train(config_of(run), quiet=True, checkpoint="160")
    assert_same_run(straight, run)


# Forced changes


def test_a_forced_change_is_trained_with_and_written_down(run, caplog):
    changed = config_of(run, kimg=0.4, optim=replace(STEADY, lr_critic=0.5), ema_kimg=2.0)
    with pytest.raises(
        InputError,
        match=r"optim.lr_critic was 0.0001, now 0.5; .*\); give those values; "
        r"--force .*--fork NEWDIR",
    ):
        train(changed, quiet=True)
    assert history(run) == []
    train(changed, quiet=True, force=True)
    assert Run.open(run).config.optim.lr_critic == 0.5
    assert "forced: optim.lr_critic was 0.0001, now 0.5; ema_kimg was 20.0, now 2.0" in caplog.text
    (event,) = history(run)
    assert (event["event"], event["images"]) == ("force", 320)
    assert event["changed"] == {"ema_kimg": [20.0, 2.0], "optim.lr_critic": [0.0001, 0.5]}
    train(replace(changed, kimg=0.48), quiet=True)  # from now on that is the run
    assert len(history(run)) == 1


def test_other_pictures_can_be_forced_and_are_recorded(run, tmp_path):
    config = config_of(run, kimg=0.4)
    Path(config.data).rename(tmp_path / "set.npz")
    moved = replace(config, data=str(tmp_path / "set.npz"))
    try:
        train(moved, quiet=True)  # the same pictures elsewhere
    finally:
        Path(moved.data).rename(config.data)
    assert history(run) == []
    other = replace(config, data="digits", kimg=0.48)
    with pytest.raises(
        InputError, match="other pictures than digits holds now; give those; --force"
    ):
        train(other, quiet=True)
    train(other, quiet=True, force=True)
    assert list(history(run)[0]["changed"]) == ["the pictures"]


@pytest.mark.parametrize(
    "change", [{"net": NetConfig(width=8, latent=8)}, {"conditional": "no"}], ids=str
)
def test_networks_of_another_shape_cannot_be_forced(change, run):
    before = files(run)
    with pytest.raises(InputError, match="holds another generator than this config makes"):
        train(config_of(run, kimg=0.4, **change), quiet=True, force=True)
    assert files(run) == before


# Forks


@pytest.mark.parametrize("which", ["", "160"])
def test_a_fork_with_nothing_changed_is_the_same_run_to_the_bit(
    which, data, straight, run, tmp_path
):
    before = files(run)
    longer = config_of(run, kimg=0.4 if not which else 0.32, out=str(tmp_path / "fork"))
    train(longer, quiet=True, checkpoint=which, fork_of=run)
    if not which:
        train(replace(longer, out=str(tmp_path / "whole")), quiet=True)
    assert_same_run(straight if which else tmp_path / "whole", tmp_path / "fork")
    assert files(run) == before, "the parent is only read"
    (event,) = history(tmp_path / "fork")
    assert (event["event"], event["of"], event["checkpoint"]) == (
        "fork",
        str(run),
        which.zfill(9) if which else "000000320",
    )
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []


def test_a_fork_may_change_what_leaves_the_networks_and_knows_all_of_its_history(run, tmp_path):
    train(config_of(run), quiet=True, checkpoint="240")
    changed = config_of(run, out=str(tmp_path / "fork"), loss=LossConfig("hinge"), kimg=0.48)
    train(changed, quiet=True, fork_of=run)
    first, second = history(tmp_path / "fork")
    assert (first["event"], second["event"]) == ("return", "fork")
    assert second["changed"] == {"kimg": [0.32, 0.48], "loss.kind": ["non-saturating", "hinge"]}
    assert [line["images"] for line in read_log(tmp_path / "fork" / "log.jsonl")] == list(
        range(16, 496, 16)
    )
    train(replace(changed, kimg=0.56), quiet=True)  # a run like any other
    assert newest(tmp_path / "fork").name == "000000560"


def test_what_was_set_aside_can_be_had_back_as_a_fork(straight, run, tmp_path):
    train(
        config_of(run, optim=OptimConfig(lr_critic=0.1, critic_steps=1)),
        quiet=True,
        checkpoint="240",
        force=True,
    )
    aside = run / "checkpoints" / "set-aside" / "000000320"
    train(
        config_of(straight, out=str(tmp_path / "fork"), kimg=0.4),
        quiet=True,
        checkpoint=str(aside),
        fork_of=run,
    )
    assert files(tmp_path / "fork" / "checkpoints" / "000000320") == files(aside)


def test_forks_that_cannot_be_are_refused_before_anything_is_written(run, tmp_path):
    out, before = tmp_path / "fork", files(run)
    for changes, named, said in (
        ({}, {}, r"is at 0.32 kimg, and kimg is 0.32: give a higher --kimg"),
        (
            {"kimg": 1.0, "net": NetConfig(width=8, latent=8)},
            {},
            "holds another generator than this config makes",
        ),
        ({"kimg": 1.0}, {"checkpoint": "99"}, "no checkpoint 99"),
        ({"kimg": 1.0}, {"fork_of": tmp_path / "nowhere"}, "nowhere is not a run directory"),
        (
            {"kimg": 1.0, "out": str(run)},
            {},
            r"exists; a fork begins in a new directory; `ganfast train --out .*run` goes on",
        ),
    ):
        with pytest.raises(InputError, match=said):
            train(
                replace(config_of(run, out=str(out)), **changes),
                quiet=True,
                **{"fork_of": run} | named,
            )
        assert not out.exists()
    assert files(run) == before


@pytest.mark.parametrize("dies_at", [0, 3, 7])
def test_a_fork_that_is_interrupted_anywhere_is_made_by_the_same_command(dies_at, run, tmp_path):
    config = config_of(run, out=str(tmp_path / "fork"), kimg=0.336)
    with interrupted("write", dies_at):
        train(config, quiet=True, fork_of=run)
    assert not (tmp_path / "fork").exists()
    train(config, quiet=True, fork_of=run)
    assert {p.name for p in tmp_path.iterdir()} == {"run", "fork"}


# The command line


def test_the_command_line_returns_forces_and_forks(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "run", "--ema-kimg", "2", "--kimg", "0.4"]) == 2
    said = capsys.readouterr().err
    assert "ema_kimg was 20.0, now 2.0" in said
    assert "--force" in said
    assert main(["train", "run", "--checkpoint", "160", "--quiet"]) == 0
    assert main(["train", "run", "--ema-kimg=2", "--kimg=0.336", "--force", "--quiet"]) == 0
    assert (
        main("train run --fork other --checkpoint=320 --kimg 0.352 --loss.kind hinge".split()) == 0
    )
    assert (
        "other is a fork of run/checkpoints/000000320 (kimg was 0.336, now 0.352; loss.kind was"
        in capsys.readouterr().err
    )
    assert [line["event"] for line in history(Path("other"))] == ["return", "force", "fork"]
    assert main(["train", "run", "--fork", "other"]) == 2
    assert main(["train", "other", "--kimg", "0.368", "--quiet"]) == 0
    assert json.loads((tmp_path / "other" / "data.json").read_text()) == json.loads(
        (tmp_path / "run" / "data.json").read_text()
    )


# Two processes


@pytest.mark.accept
def test_of_two_trainings_in_one_directory_the_second_says_who_holds_it(
    data, tmp_path, monkeypatch, capsys
):
    configfile.write(tiny("dcgan", data, "run", kimg=1000.0), tmp_path / "config.yaml")
    monkeypatch.chdir(tmp_path)
    command = ["train", "--config", "config.yaml", "--quiet"]
    first = subprocess.Popen(
        [sys.executable, "-m", "ganfast", *command], stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "run" / "log.jsonl").exists():
            assert first.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert main(command) == 2
        said = (
            rf"ganfast: run is in use by process {first.pid} on .* since .*; "
            "wait for it to end, or stop it\n"
        )
        assert re.fullmatch(said, capsys.readouterr().err)
        first.terminate()
        _, said = first.communicate(timeout=120)
    finally:
        first.kill()
    assert first.returncode == 143
    assert re.search(r"SIGTERM: saved run at .* kimg; `ganfast train --out run` goes on", said)
    assert not (tmp_path / "run" / ".lock").exists()
    assert main(["run", "check", str(tmp_path / "run")]) == 0


# What nobody may lose or change unseen


def test_a_checkpoint_without_its_record_is_damage_not_absence(run, straight, caplog, capsys):
    (newest(run) / "state.json").unlink()
    train(config_of(run), quiet=True)
    assert "000000320 is not a checkpoint of ganfast: state.json is missing" in caplog.text
    assert_same_run(straight, run)
    for path in checkpoints.listed(run / "checkpoints"):
        (path / "state.json").unlink()
    log = (run / "log.jsonl").read_bytes()
    assert main(["train", "--out", str(run)]) == 2
    assert "every checkpoint in" in capsys.readouterr().err
    assert (run / "log.jsonl").read_bytes() == log


def test_a_config_edited_by_hand_is_refused_as_a_flag_is(run, capsys):
    path = run / "config.yaml"
    path.write_text(re.sub(r"beta1: .*", "beta1: 0.1", path.read_text()))
    assert main(["train", "--out", str(run), "--kimg", "0.4"]) == 2
    assert re.search(r"optim.beta1 was 0\.\d+, now 0\.1", capsys.readouterr().err)
    assert main(["run", "check", str(run)]) == 1
    assert (
        "config.yaml is not what the newest checkpoint was trained with (optim.beta1"
        in capsys.readouterr().out
    )
    assert main(["train", "--out", str(run), "--kimg", "0.4", "--force", "--quiet"]) == 0
    assert [event["changed"].keys() for event in history(run)] == [{"optim.beta1"}]
    assert main(["run", "check", str(run)]) == 0
    assert main(["train", "--out", str(run), "--kimg", "0.48", "--quiet"]) == 0


def test_a_score_does_not_pass_to_other_weights_of_the_same_name(run):
    checkpoints.keep_best(run / "checkpoints" / "000000320", 1.0, "test")
    train(config_of(run), quiet=True, checkpoint="160")
    assert checkpoints.best(run / "checkpoints") is None
    assert (run / "checkpoints" / "set-aside" / "best.json").exists()


@pytest.mark.parametrize(
    "optim", [{"decay_from": 0.5}, {"lr_critic": Schedule(1e-3, 1e-4)}], ids=lambda x: next(iter(x))
)
def test_another_length_is_written_down_where_rates_depend_on_it(straight, tmp_path, optim):
    decaying = tiny(
        "dcgan",
        Run.open(straight).config.data,
        tmp_path / "run",
        optim=replace(STEADY, **optim),
        kimg=0.08,
    )
    train(decaying, quiet=True)
    train(replace(decaying, kimg=0.16), quiet=True)
    (event,) = history(tmp_path / "run")
    expected = ("length", 80, {"kimg": [0.08, 0.16]})
    assert (event["event"], event["images"], event["changed"]) == expected


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["--fork", ""], "--fork is empty"),
        (["--fork="], "--fork is empty"),
        (["--checkpoint", ""], "--checkpoint is empty"),
        (["--fork", "."], "--fork is '.'; expected the path of a new directory"),
        (["--checkpoint", "9" * 5000], "no checkpoint 999"),
        (["--optim.critic-steps", "1" + "0" * 20], "expected less than 2**63"),
    ],
)
def test_arguments_that_name_nothing_are_refused(
    args, sentence, run, tmp_path, monkeypatch, capsys
):
    before = files(run)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert main(["train", "--out", str(run), "--kimg", "0.4", *args]) == 2
    assert sentence in capsys.readouterr().err
    assert files(run) == before
