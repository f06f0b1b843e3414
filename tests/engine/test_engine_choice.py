"""Which engine `auto` picks for every preset, on a CPU and on a GPU."""

import pytest
import torch

from ganfast.config import PenaltyConfig
from ganfast.device import resolved
from ganfast.engine import choose
from ganfast.models import NetSpec, build_critic
from ganfast.presets import PRESETS, preset_config

CHOSEN = dict.fromkeys(
    "gan dcgan acgan wgan wgan-gp dragan hinge lsgan r1 rpgan r3 superres inpaint deblur".split(),
    "explicit",
)


def preset_critic(name, classes):
    """(critic, penalties) of a preset for grey pictures of 16 x 16, as a run builds them."""
    config = resolved(preset_config(name, "digits"), torch.device("cpu"))
    conditional = (
        config.conditional if config.conditional != "auto" else "projection" if classes else "no"
    )
    critic = build_critic(NetSpec.of(config, 16, 1, classes, conditional)).train()
    return critic, [config.penalty] if config.penalty.active else []


@pytest.mark.parametrize("classes", [0, 10])
@pytest.mark.parametrize("name", PRESETS)
def test_auto_picks_for_every_preset(name, classes):
    if name == "acgan" and not classes:
        pytest.skip("acgan is refused without classes")
    choice = choose(*preset_critic(name, classes))
    assert (choice.engine, choice.compiled) == (CHOSEN[name], False)
    assert choice.reason
    assert str(choice) == f"{CHOSEN[name]} engine ({choice.reason})"
    asked = choose(*preset_critic(name, classes), compile=True)
    assert (asked.engine, asked.compiled) == (CHOSEN[name], True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("classes", [0, 10])
@pytest.mark.parametrize("name", PRESETS)
def test_auto_picks_for_every_preset_on_a_gpu(name, classes):
    if name == "acgan" and not classes:
        pytest.skip("acgan is refused without classes")
    critic, penalties = preset_critic(name, classes)
    choice = choose(critic.cuda(), penalties)
    assert (choice.engine, choice.compiled) == (CHOSEN[name], True)


def test_first_derivatives_are_not_compiled_on_a_cpu():
    unknown = torch.nn.Sequential(torch.nn.MaxPool2d(2), torch.nn.Flatten(), torch.nn.Linear(64, 1))
    choice = choose(unknown, (), compile=True)
    expected = ("reference", True)
    assert (choice.title, "compiled it takes longer on a CPU" in choice.reason) == expected
    assert choose(unknown, [PenaltyConfig("r1")], compile=True).title == "compiled autograd"
    assert choose(unknown, [PenaltyConfig("r1")]).title == "reference"
