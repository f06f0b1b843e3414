"""Transforms in a training: what they are drawn from, and the probability that ADA's rule moves."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ganfast import configfile
from ganfast.config import Config, LossConfig
from ganfast.errors import InputError
from ganfast.losses import LOSSES
from ganfast.runs.logfile import read_log
from ganfast.runs.run import Run
from ganfast.runs.train import train
from ganfast.training.augmentation import Augmentation
from ganfast.training.feed import Feed
from ganfast.training.plan import make_plan
from tests.small_runs import STEADY, assert_same_run, few_digits, newest, tensors, tiny

HOST = torch.device("cpu")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> str:
    return few_digits(tmp_path_factory.mktemp("data") / "few.npz")


def uniforms_of(pictures, batch, images):
    """What is drawn for each picture shown, by batch of a step: 2 or 3 of the critic, 2 of the
    generator. A generator step for every critic step."""
    optim = replace(tiny("wgan-gp").optim, critic_steps=1)
    plan = make_plan(tiny("wgan-gp", pictures, batch=batch, optim=optim))
    feed, critic, generator = Feed(plan.config, plan.data), [], []
    for n in range(0, images, batch):
        if feed.due(n):
            feed.set(n)
            feed.draw()
        critic.append(feed.critic().uniforms)
        generator.append(feed.generator().uniforms)
    return torch.cat(critic, 1), torch.cat(generator, 1)


def test_each_picture_has_draws_of_its_own_whatever_the_batch(pictures):
    critic, generator = uniforms_of(pictures, 16, 2400)
    for ours, other in zip((critic, generator), uniforms_of(pictures, 48, 2400), strict=True):
        assert torch.equal(ours, other)
    # The generator's phase shows reals as the critic saw them last, and fakes of its own.
    assert torch.equal(generator[1], critic[0])
    batches = torch.stack([*critic, generator[0]]).flatten(2)
    assert batches.shape == (4, 2400, 10)
    assert ((batches >= 0) & (batches < 1)).all()
    numbers = batches.permute(1, 0, 2).flatten(1)  # all 40 of a picture
    correlation = torch.corrcoef(numbers.T.double()) - torch.eye(40)
    assert correlation.abs().max() < 5 / 2400**0.5
    behind = torch.corrcoef(torch.cat([numbers[1:], numbers[:-1]], 1).T.double())[:40, 40:]
    assert behind.abs().max() < 5 / 2400**0.5
    assert (numbers.mean(0) - 0.5).abs().max() < 5 / (12 * 2400) ** 0.5


def test_few_pictures_are_augmented_and_what_was_decided_stays(pictures, tmp_path):
    assert make_plan(tiny("r1", pictures)).config.augment == "on"
    assert make_plan(tiny("r1", "digits")).config.augment == "off"
    run = tmp_path / "run"
    train(tiny("r1", pictures, run, augment="off", kimg=0.16), quiet=True)
    train(tiny("r1", pictures, run), quiet=True)
    assert Run.open(run).config.augment == "off"
    # A run of a version without augmentation.
    text = (run / "config.yaml").read_text().splitlines(keepends=True)
    older = [line for line in text if not line.startswith("augment")]
    assert len(older) == len(text) - 3
    (run / "config.yaml").write_text("".join(older))
    assert configfile.read(run / "config.yaml").augment == "off"


@pytest.mark.parametrize("augment", ["on", "adaptive"])
def test_a_run_that_was_stopped_goes_on_to_the_bit(augment, pictures, tmp_path):
    config = tiny("r1", pictures, augment=augment, augment_kimg=0.4, optim=STEADY)
    train(replace(config, out=str(tmp_path / "whole")), quiet=True)
    for kimg in (0.16, 0.32):
        train(replace(config, out=str(tmp_path / "parts"), kimg=kimg), quiet=True)
    if augment == "on":
        assert_same_run(tmp_path / "whole", tmp_path / "parts")
        return
    for part in ("augmentation", "generator", "critic", "ema", "optimizer_critic"):
        whole, parts = (tensors(newest(tmp_path / name), part) for name in ("whole", "parts"))
        assert whole.keys() == parts.keys()
        assert all(torch.equal(whole[name], parts[name]) for name in whole)
    log = [read_log(tmp_path / name / "log.jsonl") for name in ("whole", "parts")]
    ps = [[line["critic/augment_p"] for line in lines] for lines in log]
    assert ps[0] == ps[1]
    assert len(set(ps[0])) > 3
    moving = tensors(newest(tmp_path / "whole"), "augmentation")
    assert moving["p"].item() == pytest.approx(ps[0][-1])


def test_what_the_critic_sees_changes_the_training(pictures, tmp_path):
    for augment in ("on", "off"):
        out = tmp_path / augment
        train(tiny("r1", pictures, out, augment=augment, kimg=0.16), quiet=True)
    on, off = (tensors(newest(tmp_path / name), "critic") for name in ("on", "off"))
    assert any(not torch.equal(on[name], off[name]) for name in on)


def test_p_follows_the_share_of_reals_above_the_middle():
    """A share of 0.8 is a mean sign of 0.6: ADA's target."""
    config = Config(augment="adaptive", augment_kimg=1.0, batch=10, size=16)
    augmentation = Augmentation(config, HOST)
    assert augmentation.p.item() == 0

    def after(share, steps):
        for _ in range(steps):
            p = augmentation.adapt(torch.tensor(share))
        return p.item()

    assert after(0.9, 30) == pytest.approx(0.3)  # 300 pictures of 1,000
    assert after(1.0, 200) == 1.0
    # The moving mean falls below the target by the second batch of 0.5, and p falls from there.
    assert after(0.5, 1) == 1.0
    assert after(0.5, 41) == pytest.approx(0.6, abs=0.011)
    assert after(0.7, 300) == 0.0


def test_p_approaches_a_critic_whose_overfitting_it_lowers():
    """Of a critic that knows 1 - p / 2 of its reals, 80% are above the middle at p = 0.4."""
    augmentation = Augmentation(
        Config(augment="adaptive", augment_kimg=5.0, batch=10, size=16), HOST
    )
    seen = [augmentation.adapt(1 - augmentation.p / 2).item() for _ in range(600)]
    assert np.mean(seen[-100:]) == pytest.approx(0.4, abs=0.02)


@pytest.mark.parametrize("kind", LOSSES)
def test_scores_that_say_nothing_alone_cannot_move_p(kind, pictures):
    config = tiny("r1", pictures, augment="adaptive", loss=LossConfig(kind))
    if kind not in ("wasserstein", "relativistic"):
        assert make_plan(config).config.augment == "adaptive"
        return
    with pytest.raises(InputError, match=f"a score of the {kind} loss says nothing alone"):
        make_plan(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"augment_p": 1.5}, "augment_p is 1.5; expected a probability from 0 to 1"),
        ({"augment_kimg": 0.0}, "augment_kimg is 0.0; expected thousand real images, above 0"),
        ({"augment": "some"}, "augment is 'some'; expected one of auto, off, on, adaptive"),
    ],
)
def test_refusals(changes, message):
    with pytest.raises(InputError, match=message):
        Config(**changes)
