"""What a training launches on a GPU, counted on a pretended one: no number waits for the host, no
tensor of the CPU is mixed in, and launches are those of a committed table.

    python -m tests.gpu.test_pretended    # writes the table anew, to be read before it is committed
"""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from ganfast.presets import FROM_LATENTS, PRESETS
from tests.programs import python

TABLE = Path(__file__).with_name("launches.txt")
PHASES = "draw", "critic", "penalised critic", "generator"
COMPILER = os.environ.get("CXX", "g++")
needs_compiler = pytest.mark.skipif(
    shutil.which(COMPILER) is None, reason=f"{COMPILER} compiles the pretended GPU"
)

CASES = [(p, d, k) for p in FROM_LATENTS for d in ("mnist", "celeba") for k in ("fp32", "bf16")]
FEW = [("wgan-gp", "mnist", "bf16"), ("rpgan", "celeba", "fp32")]


def counted(cases):
    """Case -> what `pretended.counted` found."""
    settings = [
        {"preset": preset, "data": data, "precision": precision, "flip": data == "celeba"}
        for preset, data, precision in cases
    ]
    done = python("-m", "tests.gpu.pretended", json.dumps(settings))
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(zip(cases, json.loads(done.stdout), strict=True))


def row(case, found):
    """A line of the table: launches by phase; "-" where there is no such phase."""
    counts = [found[phase]["launches"] if phase in found else "-" for phase in PHASES]
    return "".join(f"{word:<18}" for word in (*case, *counts)).rstrip()


def assert_nothing_waits(case, found):
    for phase in found.keys() & set(PHASES):
        assert found[phase]["waits"] == [], f"{case}, {phase}: the host reads a number"
        assert found[phase]["strangers"] == [], f"{case}, {phase}: a tensor is on the CPU"
    assert found["draw"]["launches"] <= 12


def assert_as_committed(cases):
    rows = TABLE.read_text().splitlines()
    for case, found in counted(cases).items():
        assert_nothing_waits(case, found)
        assert row(case, found) in rows, f"{row(case, found)}\n{found}"
        assert found["ahead"] >= 8


@needs_compiler
@pytest.mark.accept
def test_tasks_make_their_conditions_on_the_device():
    tasks = [preset for preset in PRESETS if preset not in FROM_LATENTS]
    for case, found in counted([(preset, "celeba", "bf16") for preset in tasks]).items():
        assert_nothing_waits(case, found)


@needs_compiler
def test_launches_are_those_of_the_table():
    assert_as_committed(FEW)


@needs_compiler
@pytest.mark.accept
@pytest.mark.parametrize("compile", [False, True])
def test_transforms_wait_for_nothing_either(compile):
    """p of an adaptive training moves on the device."""
    common = {"precision": "bf16", "compile": compile}
    settings = [
        {"preset": "r1", "data": "celeba", "augment": "adaptive"} | common,
        {"preset": "wgan-gp", "data": "mnist", "augment": "on"} | common,
    ]
    done = python("-m", "tests.gpu.pretended", json.dumps(settings))
    assert done.returncode == 0, done.stderr[-3000:]
    for found in json.loads(done.stdout):
        for phase in found.keys() & set(PHASES):
            assert (found[phase]["waits"], found[phase]["strangers"]) == ([], []), phase


@needs_compiler
@pytest.mark.accept
def test_launches_of_every_preset_are_those_of_the_table():
    assert_as_committed(CASES)
    assert len(TABLE.read_text().splitlines()) == 1 + len(CASES)


@needs_compiler
def test_a_pretended_gpu_sees_waits_and_strangers():
    program = """
from tests.gpu import pretended
answers = pretended.load_answers()
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
answers.register_guard()
pretended.pretend()
with FakeTensorMode(allow_non_fake_inputs=True), pretended.Launches() as seen:
    x = torch.zeros(3, device="cuda")
    torch.add(x, x, out=x).view(3, 1)
    try:
        x.sum().item()
    except Exception:
        pass
    x.copy_(torch.zeros(3))
print(seen.operations.total(), seen.waits, seen.strangers)
"""
    done = python("-c", program)
    expected = "5 ['aten._local_scalar_dense.default'] ['aten.zeros.default', 'aten.copy_.default']"
    assert done.stdout.strip() == expected, done.stderr[-500:]


if __name__ == "__main__":
    names = ("preset", "data", "precision", *PHASES)
    lines = ["".join(f"{name:<18}" for name in names).rstrip()]
    lines += [row(case, found) for case, found in counted(CASES).items()]
    TABLE.write_text("\n".join(lines) + "\n")
    sys.stdout.write(TABLE.read_text())
