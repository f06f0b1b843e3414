"""Real trainings on MNIST, judged by a classifier trained on the spot. Fixed kimg: a slow machine changes the time only."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ganfast.run import Run
from tests.mnist_judge import probabilities, train_judge, verdict

SAMPLES = 2000
SURE = 0.75  # share of pictures on which the judge must be 0.9 sure
LEAST_SHARE = 0.04  # of every digit


@pytest.fixture(scope="module")
def judge(real_data):
    net, accuracy = train_judge(str(real_data))
    assert accuracy >= 0.99
    return net


def train(real_data: Path, out: Path, *flags: str) -> Run:
    """As its user would: from the command line, with the preset's own values."""
    command = [
        sys.executable,
        "-m",
        "ganfast",
        "train",
        *flags,
        "--data",
        "mnist",
        "--data-root",
        str(real_data),
        "--out",
        str(out),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    print(done.stderr)
    assert done.returncode == 0, done.stderr
    return Run.open(out)


def assert_good_digits(judge, run: Run) -> None:
    found = verdict(judge, run.sample(SAMPLES, seed=1))
    print(run.folder.name, found)
    assert found.sure >= SURE
    assert min(found.shares) >= LEAST_SHARE


@pytest.mark.parametrize(
    "preset",
    [
        pytest.param("wgan-gp", marks=pytest.mark.accept),
        pytest.param("gan", marks=pytest.mark.full),
        pytest.param("dcgan", marks=pytest.mark.full),
        pytest.param("wgan", marks=pytest.mark.full),
    ],
)
def test_digits_are_legible_and_all_ten_appear(judge, real_data, tmp_path, preset):
    assert_good_digits(judge, train(real_data, tmp_path / preset, preset))


@pytest.mark.accept
def test_acgan_draws_the_digit_that_was_asked_for(judge, real_data, tmp_path):
    run = train(real_data, tmp_path / "acgan", "acgan")
    pictures, asked = run.sample_labelled(SAMPLES, seed=1, labels=range(10))
    seen = probabilities(judge, pictures).argmax(1).numpy()
    print("asked for and got", np.mean(seen == asked))
    assert np.mean(seen == asked) >= 0.95
    assert_good_digits(judge, run)


@pytest.mark.full
def test_acgan_draws_the_rarest_digit_of_a_long_tailed_set(judge, real_data, tmp_path):
    run = train(real_data, tmp_path / "tail", "acgan", "--imbalance", "100", "--balanced")
    pictures = run.sample(500, seed=1, labels=[9])  # 54 pictures of nines against 5,421 of zeros
    share = np.mean(probabilities(judge, pictures).argmax(1).numpy() == 9)
    print("nines", share)
    assert share >= 0.90
