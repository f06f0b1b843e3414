"""Launches of compiled phases on the pretended GPU: what inductor writes, and what stays around it.

Nothing runs, and no number here was measured on a GPU. A limit is what torch 2.11 or 2.13 needs,
whichever needs more; a change that needs more has to raise it.
"""

import json
import os
import shutil

import pytest

from tests.programs import python

pytestmark = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None,
    reason="no C++ compiler, which the pretended GPU is made with",
)
MNIST = {"preset": "wgan-gp", "data": "mnist", "batch": 64}
# At most, by setting: a critic without and with its penalty, and a generator.
LIMITS = [
    (MNIST, (54, 69, 62)),
    (MNIST | {"precision": "fp32"}, (67, 82, 73)),
    (MNIST | {"data": "celeba", "batch": 128}, (74, 94, 83)),
    ({"preset": "r1", "data": "mnist"}, (66, 85, 73)),
    ({"preset": "rpgan", "data": "celeba"}, (71, 92, 93)),
    ({"preset": "acgan", "data": "mnist"}, (68, 105, 74)),
    ({"preset": "gan", "data": "mnist"}, (63, None, 57)),
    ({"preset": "wgan", "data": "mnist"}, (89, None, 84)),
]


def counted(*settings: dict) -> list[dict]:
    """Of each setting its phases, as `tests.gpu.pretended` prints them."""
    process = python("-m", "tests.gpu.pretended", json.dumps(settings))
    assert process.returncode == 0, process.stderr[-3000:]
    assert "not compiled" not in process.stderr
    return json.loads(process.stdout)


@pytest.mark.accept
@pytest.mark.parametrize(("setting", "limits"), LIMITS, ids=str)
def test_compiled_phases_launch_no_more_than_they_did(setting, limits):
    (phases,) = counted(setting | {"compile": True})
    names = "critic", "penalised critic", "generator"
    for name, limit in zip(names, limits, strict=True):
        if limit is None:
            assert name not in phases
            continue
        phase = phases[name]
        assert phase["launches"] <= limit, (name, phase["operations"])
        assert phase["operations"]["triton_poi"] > 0, "inductor wrote kernels of its own"
        assert phase["waits"] == phase["strangers"] == []
