"""The critic of a run: scores, ranks and gradients against float64 and numbers done by hand."""

import copy
import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from ganfast.errors import InputError
from ganfast.models import judge
from ganfast.runs.critic import map_sheet, ranked
from ganfast.runs.run import Run
from ganfast.runs.train import train
from tests.small_runs import tiny

# Scores of one class only, logits or not, with kept batch statistics, and with a class head.
KINDS = {"r1": 3, "rpgan": 0, "dcgan": 9, "acgan": None}


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory) -> dict[str, Run]:
    folder = tmp_path_factory.mktemp("runs")
    return {kind: train(tiny(kind, data, folder / kind), quiet=True) for kind in KINDS}


@pytest.fixture(scope="module")
def pictures(data) -> dict[str, np.ndarray]:
    """Reals with their labels; the file has the run's size."""
    with np.load(data) as file:
        images = np.asarray(file["images"])
        return {"images": images[..., None], "labels": np.asarray(file["labels"])}


def exact(critic, x, label):
    """Scores of float64 pictures by the critic's network in float64."""
    labels = None if label is None else torch.full((len(x),), label)
    return judge(copy.deepcopy(critic.net).double(), x, labels).score


def scaled(images):
    return torch.from_numpy(images).permute(0, 3, 1, 2).double() / 127.5 - 1


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_the_network_and_of_each_picture_alone(runs, pictures, kind):
    critic, images, label = runs[kind].critic(device="cpu"), pictures["images"][:40], KINDS[kind]
    scores = critic.score(images, label)
    assert scores.dtype == np.float64
    expected = exact(critic, scaled(images), label).detach().numpy()
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)
    assert np.std(scores) > 1e-3
    assert np.array_equal(critic.score(images[7:9], label), scores[7:9])


def test_each_picture_may_have_a_class_of_its_own(runs, pictures):
    critic, images = runs["r1"].critic(device="cpu"), pictures["images"][:3]
    together = critic.score(images, [3, 0, 9])
    alone = [critic.score(images[i : i + 1], c)[0] for i, c in enumerate((3, 0, 9))]
    assert together.tolist() == alone
    assert len({*alone, *critic.score(images, 0)}) > 3  # the class makes a difference


@pytest.mark.parametrize("kind", KINDS)
def test_a_gradient_is_the_slope_of_the_score(runs, pictures, kind):
    critic, images, label = runs[kind].critic(device="cpu"), pictures["images"][:8], KINDS[kind]
    gradient = critic.gradient(images, label)
    assert (gradient.dtype, gradient.shape) == (np.float32, images.shape)
    torch.manual_seed(0)
    x, h = scaled(images), 1e-6
    along = torch.randn_like(x)
    with torch.no_grad():
        up, down = (exact(critic, x + s * h * along, label) for s in (1, -1))
    expected = ((up - down) / (2 * h)).numpy()
    actual = (gradient.transpose(0, 3, 1, 2) * along.numpy()).sum((1, 2, 3))
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_a_rank_is_the_share_that_scores_lower_and_ties_count_half():
    others = np.array([3.0, 1.0, 0.0, 1.0])
    scores = np.array([-1.0, 0.0, 1.0, 2.0, 3.0, 4.0])
    assert ranked(scores, others).tolist() == [0, 0.125, 0.5, 0.75, 0.875, 1]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_judged_is_ranked_among_reals_and_fakes_of_its_class(runs, pictures, kind):
    run, label = runs[kind], KINDS[kind]
    critic = run.critic(device="cpu")
    chosen = slice(None) if label is None else pictures["labels"] == label
    images = pictures["images"][chosen]
    judged = critic.judge(images, label)
    scores = critic.score(images, label)
    np.testing.assert_array_equal(judged.score, scores)
    # All reals of the class are judged: among themselves their ranks are evenly spread.
    below = (scores[None] < scores[:, None]).mean(1) + (scores[None] == scores[:, None]).mean(1) / 2
    np.testing.assert_allclose(judged.among_reals, below, rtol=0, atol=1e-12)
    assert judged.among_reals.mean() == pytest.approx(0.5, abs=1e-12)
    drawn = run.sample(1000, labels=None if label is None else [label], device="cpu")
    fakes = critic.score(drawn, label)
    by_hand = [float(np.mean(fakes < s) + np.mean(fakes == s) / 2) for s in scores]
    assert judged.among_fakes.tolist() == pytest.approx(by_hand, abs=1e-12)


def test_another_set_is_read_as_it_lies_though_the_runs_own_was_turned(data, pictures, tmp_path):
    run = train(
        tiny("dcgan", data, tmp_path / "run", transpose=True, conditional="no", kimg=0.08),
        quiet=True,
    )
    (tmp_path / "others").mkdir()
    for number, image in enumerate(pictures["images"][:8]):
        Image.fromarray(image[..., 0]).save(tmp_path / "others" / f"{number}.png")
    critic, others = run.critic(device="cpu"), pictures["images"][:8]
    ranks = critic.judge(others, data=str(tmp_path / "others")).among_reals
    # Among themselves, and so evenly spread. Those of the run lie the other way.
    assert sorted(ranks) == pytest.approx([(k + 0.5) / 8 for k in range(8)], abs=1e-12)
    assert not np.allclose(ranks, critic.judge(others).among_reals, atol=1e-3)


def test_a_probability_is_there_where_scores_are_logits(runs, pictures):
    for kind in KINDS:
        judged = runs[kind].critic(device="cpu").judge(pictures["images"][:4], KINDS[kind])
        if kind == "rpgan":
            assert judged.probability is None
        else:
            expected = [1 / (1 + math.exp(-score)) for score in judged.score]
            assert judged.probability is not None
            assert judged.probability.tolist() == pytest.approx(expected, rel=1e-12)


def test_pictures_and_classes_that_cannot_be_judged_are_refused(runs, pictures):
    critic, images = runs["r1"].critic(device="cpu"), pictures["images"][:2]
    with pytest.raises(InputError, match=r"one of its class; give its class .*0 = 0, 1 = 1"):
        critic.score(images)
    with pytest.raises(InputError, match="there is no class 10; .* has 10"):
        critic.score(images, 10)
    with pytest.raises(InputError, match=r"pictures are uint8 \(2, 16, 16\); expected uint8"):
        critic.score(images[..., 0], 1)
    with pytest.raises(InputError, match=r"float32 .*expected uint8 \(N, 16, 16, 1\)"):
        critic.score(images.astype(np.float32), 1)
    with pytest.raises(InputError, match="judges a picture without a class; leave --class out"):
        runs["acgan"].critic(device="cpu").score(images, 1)


def test_a_checkpoint_without_a_critic_is_named(runs, tmp_path):
    shutil.copytree(runs["r1"].folder, tmp_path / "run")
    run = Run.open(tmp_path / "run")
    (run.latest() / "critic.safetensors").unlink()
    with pytest.raises(InputError, match="000000320 has no critic.safetensors, so there is no"):
        run.critic()
    assert run.critic("160").checkpoint.name == "000000160"


def test_a_map_is_grey_where_nothing_counts_and_scaled_by_the_largest_gradient():
    picture = np.array([[[7], [9]]], np.uint8)
    gradient = np.array([[[0.0], [-2.0]]], np.float32)
    assert map_sheet(picture, gradient).tolist() == [[[7], [9], [128], [0]]]
    assert map_sheet(picture, 0 * gradient)[..., 0].tolist() == [[7, 9, 128, 128]]
    assert map_sheet(picture, -gradient)[..., 0].tolist() == [[7, 9, 128, 255]]


def test_directions_stretch_most_first_in_the_layer_that_reads_z(runs):
    run = runs["r1"]
    directions = run.directions(device="cpu").astype(np.float64)
    assert directions.shape == (8, 8)
    weight = run.generator(device="cpu").project.weight.double().numpy()
    # The eigenvectors of W^T W, another way to the same: up to the sign, which is fixed.
    values, vectors = np.linalg.eigh(weight.T @ weight)
    overlap = np.abs(directions @ vectors[:, ::-1])
    np.testing.assert_allclose(overlap, np.eye(8), rtol=0, atol=1e-5)
    stretched = np.linalg.norm(weight @ directions.T, axis=0)
    np.testing.assert_allclose(stretched, np.sqrt(values[::-1]), rtol=1e-6)
    largest = directions[np.arange(8), np.abs(directions).argmax(1)]
    assert (largest > 0).all()
