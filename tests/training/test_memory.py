"""Out of memory is one sentence that names a batch, and that batch fits."""

import os
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from ganfast import configfile
from ganfast.cli import main
from ganfast.config import NetConfig
from ganfast.errors import InputError, is_out_of_memory
from ganfast.runs import train as training
from ganfast.runs.train import train
from ganfast.training import memory
from ganfast.training.plan import count_cost, make_plan
from tests.small_runs import STEADY, files, tiny

ERRORS = {
    "cuda": torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 14.58 GiB"
    ),
    "cpu": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: can't allocate memory: "
        "you tried to allocate 8 bytes"
    ),
    "host": MemoryError(),
    "onednn": RuntimeError("could not create a memory object"),
    "cublas": RuntimeError(
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
    ),
}


@pytest.fixture
def room(monkeypatch):
    """Let memory run out where a critic step has more pictures than ``room``; the batches."""

    def limit(most: int, error: Exception) -> list[int]:
        real, asked = training.make_critic_step, []

        def made(*args, **kwargs):
            step = real(*args, **kwargs)

            def limited(pictures, *rest, **named):
                asked.append(len(pictures))
                if len(pictures) > most:
                    raise error
                return step(pictures, *rest, **named)

            limited.choice, limited.prepare = step.choice, step.prepare
            return limited

        monkeypatch.setattr(training, "make_critic_step", made)
        return asked

    return limit


@pytest.fixture
def free(monkeypatch):
    """Say that there is memory for so many pictures of a plan."""

    def pictures(count: int, config) -> None:
        one = count_cost(make_plan(config)).activation_bytes / config.batch
        monkeypatch.setattr(memory, "_free_bytes", lambda: count * one / memory._ROOM)

    return pictures


def test_errors_of_every_allocator_are_taken_for_it():
    assert all(map(is_out_of_memory, ERRORS.values()))


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.accept] * (kind != "cpu")) for kind in ERRORS]
)
def test_out_of_memory_names_a_batch(kind, data, tmp_path, room, free, capsys):
    config = tiny("dcgan", data, tmp_path / "run", optim=STEADY, batch=100)
    room(99, ERRORS[kind])
    free(30, config)
    configfile.write(config, tmp_path / "config.yaml")
    assert main(["train", "--config", str(tmp_path / "config.yaml"), "--quiet"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    fits = "25 would fit by the bytes counted for a picture: give --batch 25"
    parts = "or --accumulate 4, which changes no more than rounding and batch norm"
    assert said == f"ganfast: cpu has no memory left at batch 100; {fits}; {parts}"
    assert main(["train", "--out", str(tmp_path / "run"), "--batch", "25", "--quiet"]) == 0, (
        "a run without checkpoints takes it"
    )


@pytest.mark.accept
def test_where_no_batch_fits_the_networks_are_to_blame(data, tmp_path, room, free):
    config = tiny("dcgan", data, tmp_path / "run", optim=STEADY, batch=10)
    room(0, ERRORS["cuda"])
    free(1, config)
    with pytest.raises(
        InputError,
        match="no memory left at batch 10, nor would it have at 2: lower --net.width or --size",
    ):
        train(config, quiet=True)


def test_a_gpu_tries_halves_until_one_runs(data, tmp_path, room, monkeypatch):
    """The trial itself, which needs no GPU: real steps, until they fit."""
    plan = make_plan(tiny("dcgan", data, tmp_path / "run", optim=STEADY, batch=100, compile="off"))
    asked = room(20, ERRORS["cuda"])
    plan.device = torch.device("cuda")  # all that is asked of it is its name
    assert memory.batch_that_fits(plan, training.make_steps) == 12
    assert asked == [50, 25] + [12] * memory._STEPS
    room(1, ERRORS["cuda"])
    assert memory.batch_that_fits(plan, training.make_steps) == 0


def test_with_parts_it_names_equal_parts_or_more_of_them(data, tmp_path, monkeypatch):
    plan = make_plan(tiny("dcgan", data, tmp_path / "run", optim=STEADY, batch=128, accumulate=16))
    monkeypatch.setattr(memory, "_most_by_count", lambda plan: 63)
    assert "give --batch 32; or --accumulate 64, which" in training._smaller_batch(plan)
    monkeypatch.setattr(memory, "_most_by_count", lambda plan: 31)
    assert "nor would it have at 2 in each part: lower" in training._smaller_batch(plan)
    plan.config, asked = replace(plan.config, batch=48), []
    plan.device = torch.device("cuda")
    monkeypatch.setattr(memory, "_runs", lambda plan, steps, batch: asked.append(batch))
    assert memory.batch_that_fits(plan, training.make_steps) == 0
    assert asked == [32]


@pytest.mark.accept
def test_on_a_run_that_has_checkpoints_the_way_out_says_that_a_batch_is_mathematics(
    data, tmp_path, room, free
):
    config = tiny("dcgan", data, tmp_path / "run", optim=STEADY)
    train(config, quiet=True)
    before = files(tmp_path / "run" / "checkpoints")
    room(10, ERRORS["cuda"])
    free(10, config)
    with pytest.raises(InputError, match="give --batch 8 with --force or --fork NEWDIR"):
        train(replace(config, kimg=0.4), quiet=True)
    assert files(tmp_path / "run" / "checkpoints") == before


def test_networks_that_do_not_fit_are_one_sentence(run_tiny, tmp_path, monkeypatch):
    def full(*_):
        raise ERRORS["cpu"]

    monkeypatch.setattr("ganfast.training.plan.build_critic", full)
    with pytest.raises(
        InputError,
        match="networks and pictures do not fit into memory: lower --net.width or --size",
    ):
        run_tiny()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("shapes differ"),
        ValueError("CUDA out of memory"),
        RuntimeError("could not create a primitive descriptor for"),
    ],
)
def test_other_errors_are_not_taken_for_it(error):
    assert not is_out_of_memory(error)


_UNDER_A_LIMIT = """
import resource, sys
from pathlib import Path
from ganfast import configfile
from ganfast.cli import main
from ganfast.training.plan import count_cost, make_plan

# This also loads what is loaded lazily. Room for a third of the activations and all the rest.
cost = count_cost(make_plan(configfile.read(Path("config.yaml"))))
room = cost.activation_bytes // 3 + 4 * cost.state_bytes + (100 << 20)
size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + room,) * 2)
sys.exit(main(["train", "--config", "config.yaml", "--quiet", *sys.argv[1:]]))
"""


@pytest.mark.accept
@pytest.mark.skipif(
    sys.platform != "linux", reason="limits and counts the address space as Linux does"
)
def test_under_a_real_limit_the_batch_that_is_named_trains(tmp_path):

    def under_limit(*flags: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-c", _UNDER_A_LIMIT, *flags]
        # Each thread reserves address space.
        environment = os.environ | {"MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            command, capture_output=True, text=True, cwd=tmp_path, env=environment
        )

    np.save(
        tmp_path / "many.npy",
        np.random.default_rng(0).integers(0, 256, (8000, 16, 16), dtype=np.uint8),
    )
    net = NetConfig(width=64, latent=8)
    config = tiny(
        "dcgan", "many.npy", "run", optim=STEADY, batch=8000, kimg=8, net=net, conditional="auto"
    )
    configfile.write(config, tmp_path / "config.yaml")
    done = under_limit()
    found = re.search(
        r"ganfast: cpu has no memory left at batch 8000; (\d+) would fit by .*: "
        r"give --batch (\d+)[;\n]",
        done.stderr,
    )
    assert found, done.stderr
    assert done.returncode == 2
    assert 100 <= int(found[1]) < 8000
    done = under_limit("--batch", found[2], "--kimg", str(int(found[2]) / 1000))
    assert done.returncode == 0, done.stderr
