"""`ganfast engines`: what it prints is what the engines do."""

import re
import shlex

import pytest
from torch import nn

import ganfast.engine.walking.walker as walk_module
from ganfast.cli import main


@pytest.fixture
def engines(capsys, tmp_path, monkeypatch):
    """Lines of `ganfast engines ...`, run in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(line: str) -> str:
        assert main(["engines", *shlex.split(line)]) == 0
        assert not list(tmp_path.iterdir())  # nothing is trained or written
        return capsys.readouterr().out

    return run


def costs(out: str) -> dict[str, list[float]]:
    """GFLOP, F, MB and error by engine."""
    rows = re.findall(
        r"^(reference|autograd|explicit) +([\d.]+) +([\d.]+) +([\d.]+) +(\S+)$", out, re.M
    )
    return {name: [float(v) for v in values] for name, *values in rows}


def test_it_names_every_layer_and_what_each_engine_costs(engines):
    out = engines("wgan-gp --batch 8")
    assert "critic step: explicit engine (all 10 layers walked)" in out
    for layer in ("trunk.0", "trunk.1", "trunk.2", "head", "projection"):
        assert re.search(rf"^{re.escape(layer)} +\w+ +yes", out, re.M), layer
    found = costs(out)
    assert found.keys() == {"reference", "autograd", "explicit"}
    assert found["explicit"][1] < 10 < 11 < found["reference"][1] < 12
    assert all(0 < error < 2e-5 for _, _, _, error in found.values())


def test_the_flops_of_a_layer_are_counted_by_hand(engines):
    out = engines("r1 --batch 4 --net.width 8")
    # 8 channels of 8 x 8 from 4 x 4 x 1.
    assert re.search(rf"^trunk.0 +Conv +yes +{2 * 8 * 8 * 8 * 16 / 1e6:.3f}$", out, re.M)
    assert 6 < costs(out)["explicit"][1] < 7


def without(unknown):
    known = walk_module.module_layers
    return lambda m, name: None if isinstance(m, unknown) else known(m, name)


def test_a_layer_that_is_not_walked_is_named(engines, monkeypatch):
    monkeypatch.setattr(walk_module, "module_layers", without(nn.LeakyReLU))
    out = engines("gan --batch 4")
    assert "critic step: reference engine" in out
    assert re.search(r"^trunk.2 \(LeakyReLU\) +no", out, re.M), out


def test_a_layer_that_draws_is_walked(engines):
    out = engines("gan --batch 4")
    assert "critic step: explicit engine (all 12 layers walked)" in out
    assert re.search(r"^trunk.3 +Dropout +yes", out, re.M), out


def test_an_engine_can_be_asked_for(engines):
    assert "critic step: autograd engine (asked for)" in engines(
        "wgan-gp --batch 4 --engine autograd"
    )


def test_what_the_critic_is_shown_of_a_condition_is_counted(engines):
    """R1 takes 7 forward passes; the picture's channels alone a little less."""
    found = costs(engines("inpaint --batch 4 --net.width 8 --size 16"))
    assert found["explicit"][1] < 7 < found["autograd"][1]
    assert max(values[3] for values in found.values()) < 1e-4
