"""Tasks and the generators of conditional runs: conditions, known pixels, latents."""

import numpy as np
import pytest
import torch
from torch import nn

from ganfast.config import Config, LossConfig, NetConfig, ScoreConfig, TaskConfig
from ganfast.data.resident import held_out
from ganfast.errors import InputError
from ganfast.kernels.to_uint8 import to_uint8
from ganfast.models import NetSpec, build_critic, build_generator
from ganfast.tasks import levels, scaled, task_of

NET, BOXES = NetConfig(width=8, latent=4), TaskConfig("inpaint", hole="boxes")
TASKS = [
    TaskConfig("superres", scale=2),
    TaskConfig("superres", scale=4),
    TaskConfig("inpaint"),
    TaskConfig("inpaint", hole="boxes", hole_share=0.4),
    TaskConfig("deblur"),
]


def pictures(n=6, channels=3, side=16):
    torch.manual_seed(0)
    return levels(2 * torch.rand(n, channels, side, side) - 1)


@pytest.mark.parametrize("task", TASKS, ids=lambda t: f"{t.kind} {t.scale} {t.hole}")
def test_a_condition_follows_from_seed_and_number_alone_and_fits_the_networks(task):
    real, index = pictures(), torch.arange(100, 106)
    made = task_of(Config(task=task), 16, 3)
    given = made.derive(real, index, 7)
    one = torch.cat([made.derive(real[i : i + 1], index[i : i + 1], 7) for i in range(6)])
    assert torch.equal(given, one)
    h, w, k = made.given
    assert given.shape == (6, k, h, w)
    assert made.show(given).shape == (6, made.shown, 16, 16)
    # What a user hands in as uint8 is what training makes.
    stored = torch.cat([(given[:, :3] + 1) * 127.5, given[:, 3:] * 255], 1).round()
    assert torch.equal(scaled(stored, 3), given)
    drawn_anew = task.kind == "deblur" or task.hole == "boxes"
    assert torch.equal(made.derive(real, index + 1, 7), given) != drawn_anew
    config = Config(task=task, conditional="projection", size=16, net=NET)
    spec = NetSpec.of(config, 16, 3, 4, "projection")
    generator, critic = build_generator(spec), build_critic(spec)
    labels, z = index % 4, torch.randn(6, spec.latent)
    baseline = made.baseline(given, real.mean(0))
    assert generator(z, labels, given).shape == baseline.shape == real.shape
    assert critic(torch.cat([real, made.show(given)], 1), labels).score.shape == (6,)


def test_boxes_leave_pixels_known_and_cover_at_most_their_share():
    made = task_of(Config(task=TaskConfig("inpaint", hole="boxes", hole_share=0.5)), 32, 1)
    known = made.derive(pictures(200, 1, 32), torch.arange(200), 0)[:, 1]
    assert set(known.unique().tolist()) == {0.0, 1.0}
    hole = 1 - known.flatten(1).mean(1)
    assert hole.min() >= 1 / 16  # one rectangle of half the sides
    assert hole.max() <= 3 / 4
    assert len(hole.unique()) > 50


@pytest.mark.parametrize("side", [16, 28])
def test_known_pixels_are_the_given_ones_to_the_bit_whatever_the_hole_holds(side):
    torch.manual_seed(0)
    spec = NetSpec.of(Config(task=BOXES, net=NET), side, 3, 0, "no")
    made = task_of(Config(task=BOXES), side, 3)
    net = build_generator(spec).eval()
    nn.init.normal_(net.tail.weight)  # which begins at 0
    real = pictures(side=side)
    given, z = made.derive(real, torch.arange(6), 0), torch.randn(2, 6, spec.latent)
    known = (given[:, 3:] > 0).expand_as(real).permute(0, 2, 3, 1)
    drawn = to_uint8(net(z[0], given))
    assert torch.equal(drawn[known], to_uint8(real)[known])
    assert not torch.equal(drawn[~known], to_uint8(net(z[1], given))[~known])
    other = torch.cat([torch.where(given[:, 3:] > 0, given[:, :3], 0.3), given[:, 3:]], 1)
    assert torch.equal(net(z[0], other), net(z[0], given))


def test_a_generator_begins_at_its_skip():
    spec = NetSpec.of(Config(task=TaskConfig("superres"), net=NET), 16, 1, 0, "no")
    made, real = task_of(Config(task=TaskConfig("superres")), 16, 1), pictures(channels=1)
    given = made.derive(real, torch.arange(6), 0)
    assert torch.equal(build_generator(spec)(torch.randn(6, spec.latent), given), made.show(given))


def test_the_share_held_out_follows_from_the_seed():
    held = held_out(1000, 0.02, 3)
    assert len(held) == 20
    assert np.array_equal(held, np.unique(held))
    assert not torch.equal(held, held_out(1000, 0.02, 4))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"loss": LossConfig(pixel=1.0)},
            "loss.pixel is 1.0, which a run with task none does not have",
        ),
        ({"task": TASKS[0], "augment": "on"}, "augment is on, which a run with task superres"),
        ({"task": TASKS[0], "score": ScoreConfig(every_kimg=1.0)}, "score.every_kimg is 1.0"),
    ],
)
def test_fields_that_a_task_excludes_are_refused(change, said):
    with pytest.raises(InputError, match=said):
        Config(**change)


def test_a_scale_that_does_not_divide_the_side_is_refused():
    with pytest.raises(InputError, match="scale is 8, but pictures have 28 pixels a side"):
        task_of(Config(task=TaskConfig("superres", scale=8)), 28, 1)
