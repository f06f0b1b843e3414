"""A run that cannot be lost: it goes on to the bit after a signal, a kill, and any file fault.

A sample of each runs in `make test`, more in `make accept`, all of it in `make accept-full`.
"""

import errno
import json
import os
from dataclasses import fields, replace
from pathlib import Path

import pytest

from ganfast import configfile, disk
from ganfast.cli import main
from ganfast.config import LogConfig
from ganfast.errors import InputError, RunError
from ganfast.presets import FROM_LATENTS
from ganfast.runs import checkpoint as checkpoints
from ganfast.runs import saving
from ganfast.runs import train as training
from ganfast.runs.logfile import read_log
from ganfast.runs.train import train
from tests.programs import python
from tests.small_runs import assert_same_run, few_digits, newest, tiny

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> str:
    return few_digits(tmp_path_factory.mktemp("data") / "few.npz")


def sampled(cases, test: set, accept: set = frozenset()):
    """All of the cases, those not named marked as `accept` or `full`."""
    marks = {True: (), False: (pytest.mark.full,)}
    return [
        pytest.param(
            *case,
            marks=(pytest.mark.accept,) if case in accept else marks[case in test],
            id="-".join(map(str, case)),
        )
        for case in cases
    ]


# 40 + 40 = 80

MATRIX = sampled(
    [(preset, precision) for preset in FROM_LATENTS for precision in ("fp32", "bf16")],
    test={("acgan", "fp32")},
    accept={
        ("hinge", "bf16"),
        ("gan", "fp32"),
        ("wgan-gp", "bf16"),
        ("dcgan", "bf16"),
        ("rpgan", "fp32"),
    },
)


@pytest.mark.parametrize(("preset", "precision"), MATRIX)
def test_40_steps_and_40_more_equal_80_from_the_command_line(
    preset, precision, pictures, tmp_path, stop_at
):
    """With classes and the average, ended by SIGTERM after 40 generator steps."""
    config = tiny(preset, pictures, precision=precision)
    step = config.batch * config.optim.critic_steps
    log = LogConfig(every=1, sample_kimg=99, save_kimg=99, tensorboard=False)
    configfile.write(replace(config, kimg=80 * step / 1000, log=log), tmp_path / "config.yaml")
    command = ["train", "--config", str(tmp_path / "config.yaml"), "--quiet", "--out"]
    assert main([*command, str(tmp_path / "whole")]) == 0
    stop_at(40 * step)
    assert main([*command, str(tmp_path / "parts")]) == 143
    assert newest(tmp_path / "parts").name == f"{40 * step:09d}"
    assert main([*command, str(tmp_path / "parts")]) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    trained = configfile.read(tmp_path / "parts" / "config.yaml")
    expected = (precision, True, True)
    assert (trained.precision, trained.conditional != "no", trained.ema_kimg > 0) == expected


# Killed

KILLS = [
    pytest.param("SIGKILL", 6, ("dcgan-fp32",), marks=pytest.mark.accept),
    pytest.param(
        "SIGKILL", 200, ("dcgan-fp32", "wgan-gp-fp32", "acgan-bf16"), marks=pytest.mark.full
    ),
    pytest.param("SIGTERM", 40, ("dcgan-fp32", "rpgan-bf16"), marks=pytest.mark.full),
]


@pytest.mark.parametrize(("name", "kills", "kinds"), KILLS)
def test_a_run_killed_at_random_moments_ends_as_one_that_was_not(
    name, kills, kinds, pictures, tmp_path
):
    """See kill_often.py; a fixed seed gives the moments, not the steps."""
    configs = []
    for kind in kinds:
        preset, _, precision = kind.rpartition("-")
        config = tiny(preset, pictures, precision=precision)
        step = config.batch * config.optim.critic_steps / 1000
        log = LogConfig(every=1, sample_kimg=99, save_kimg=4 * step, keep=2, tensorboard=False)
        configs.append(tmp_path / f"{kind}.yaml")
        configfile.write(replace(config, kimg=60 * step, log=log), configs[-1])
    flags = f"-m tests.runs.kill_often --kills {kills} --seed 0 --signal {name}".split()
    done = python(*flags, str(tmp_path), *map(str, configs), cwd=ROOT)
    print(done.stdout)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["kills"] >= kills
    if name == "SIGKILL":
        assert found["in_a_save"] > (kills - 20) / 5  # of few, chance may have none


# Faults

SAVES = 3
INTERVAL = 32


def short_run(pictures: str, out: Path):
    """Three saves, two steps from one to the next."""
    log = LogConfig(every=1, sample_kimg=99, save_kimg=INTERVAL / 1000, keep=1, tensorboard=False)
    return tiny("dcgan", pictures, out, kimg=SAVES * INTERVAL / 1000, log=log)


class Faulty:
    """File operations that fail from the n-th on: once, for ever (a full disk), or half written."""

    def __init__(self, patch: pytest.MonkeyPatch, at: int, kind: str) -> None:
        self.at, self.kind, self.count = at, kind, 0
        for field in fields(disk.Calls):
            patch.setattr(
                disk.calls, field.name, self.wrapped(field.name, getattr(disk.calls, field.name))
            )

    def wrapped(self, name, real):
        def call(*given):
            self.count += 1
            if self.at and self.count == self.at:
                if name == "close":
                    real(*given)
                if name == "write" and self.kind == "short":
                    # As the system may: no error, fewer bytes.
                    return real(given[0], given[1][: len(given[1]) // 2])
                if name == "write" and self.kind == "full":
                    real(given[0], given[1][: len(given[1]) // 2])
                if self.kind != "short":
                    raise OSError(
                        errno.EIO if self.kind == "once" else errno.ENOSPC, "made to fail"
                    )
            making = name in ("write", "mkdir") or (name == "open" and given[1] & os.O_CREAT)
            if self.at and self.count > self.at and self.kind == "full" and making:
                raise OSError(errno.ENOSPC, "made to fail")
            return real(*given)

        return call


@pytest.fixture(scope="module")
def unharmed(pictures, tmp_path_factory) -> tuple[Path, range, int]:
    """A run without faults, the numbers of its file operations, and those before it trains."""
    out, began = tmp_path_factory.mktemp("runs") / "whole", 0
    with pytest.MonkeyPatch.context() as patch:
        counted, loop = Faulty(patch, 0, ""), training.train_loop

        def begin(*given):
            nonlocal began
            began = counted.count
            loop(*given)

        patch.setattr(training, "train_loop", begin)
        train(short_run(pictures, out), quiet=True)
    return out, range(1, counted.count + 1), began


FAULTS = [
    pytest.param("full", 33),
    pytest.param("once", 9, marks=pytest.mark.accept),
    pytest.param("full", 7, marks=pytest.mark.accept),
    pytest.param("short", 20, marks=pytest.mark.accept),
    pytest.param("once", 1, marks=pytest.mark.full),
    pytest.param("full", 1, marks=pytest.mark.full),
    pytest.param("short", 1, marks=pytest.mark.full),
]


@pytest.mark.parametrize(("kind", "every"), FAULTS)
def test_a_fault_at_any_file_operation_of_a_run_loses_at_most_an_interval(
    kind, every, unharmed, pictures, tmp_path, monkeypatch
):
    """The run that survived a fault, or was started again after it, equals the run without."""
    whole, operations, first = unharmed
    assert len(operations) - first > 4 * 6 * SAVES + 2 * SAVES, (
        "open, write, fsync and close of every file; the log"
    )
    monkeypatch.setattr(saving, "RETRY_AFTER", (0.0, 0.0))
    ended: list[int] = []
    for at in operations[every - 1 :: every]:
        out = tmp_path / str(at)
        with monkeypatch.context() as patch:
            Faulty(patch, at, kind)
            try:
                train(short_run(pictures, out), quiet=True)
            except (InputError, RunError) as error:
                ended.append(at)
                assert "cannot be written" in str(error)
                found = checkpoints.newest_whole(out / "checkpoints")
                reached = max([line["images"] for line in read_log(out / "log.jsonl")], default=0)
                assert reached - (found[1].images if found else 0) <= 2 * INTERVAL, (
                    f"operation {at}"
                )
        train(short_run(pictures, out), quiet=True)
        assert_same_run(whole, out)
        assert {path.name for path in (out / "checkpoints").iterdir()} == {newest(whole).name}, (
            f"operation {at}"
        )
    # The first files of a run are not tried again.
    while_training = [at for at in ended if at > first]
    assert bool(while_training) == (kind == "full"), (
        "a single fault and a short write are got over, a full disk is not"
    )
