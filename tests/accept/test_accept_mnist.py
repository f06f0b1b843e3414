"""Real trainings on MNIST, scored by the committed classifier; kimg is fixed, time is not."""

from pathlib import Path

import pytest
import torch

from ganfast.evaluate.evaluation import Evaluation, open_reference
from ganfast.evaluate.extractors import committed
from ganfast.runs.run import Run
from ganfast.runs.source import of_run
from tests.programs import python

SAMPLES = 2000
GATES = {  # preset -> most Frechet distance, least precision, recall and label accuracy
    "wgan-gp": (0.8, 0.84, 0.80, 0.94),
    "acgan": (0.8, 0.84, 0.70, 0.97),
    "gan": (1.6, 0.80, 0.60, 0.90),
    "dcgan": (0.5, 0.88, 0.60, 0.97),
    "wgan": (1.8, 0.70, 0.70, 0.75),
}


@pytest.fixture(scope="module")
def evaluation(real_data):
    pack, held_out = open_reference("mnist", root=str(real_data))
    return Evaluation(pack, held_out, committed(torch.device("cpu")), SAMPLES)


def train(real_data: Path, out: Path, *flags: str) -> Run:
    """As its user would: from the command line, with the preset's own values."""
    where = ["--data", "mnist", "--data-root", str(real_data), "--out", str(out)]
    done = python("-m", "ganfast", "train", *flags, *where)
    print(done.stderr)
    assert done.returncode == 0, done.stderr
    return Run.open(out)


def scores(evaluation: Evaluation, run: Run, psi: float = 1.0) -> dict[str, float]:
    found = evaluation.score(of_run(run, "", 1, psi, "cpu")).scores
    print(run.folder.name, "psi", psi, found)
    return found


@pytest.mark.parametrize(
    "preset",
    [
        pytest.param("wgan-gp", marks=pytest.mark.accept),
        pytest.param("acgan", marks=pytest.mark.accept),
        pytest.param("gan", marks=pytest.mark.full),
        pytest.param("dcgan", marks=pytest.mark.full),
        pytest.param("wgan", marks=pytest.mark.full),
    ],
)
def test_digits_are_good_varied_and_those_asked_for(evaluation, real_data, tmp_path, preset):
    run = train(real_data, tmp_path / preset, preset)
    found = scores(evaluation, run)
    distance, precision, recall, accuracy = GATES[preset]
    assert found["frechet"] <= distance
    assert found["precision"] >= precision
    assert found["recall"] >= recall
    assert found["label_accuracy"] >= accuracy
    assert found["kl_data"] <= 0.05  # every digit about as often as in the data
    if preset == "wgan-gp":
        typical = scores(evaluation, run, psi=0.5)
        assert typical["precision"] > found["precision"] + 0.03
        assert typical["recall"] < found["recall"] - 0.2


@pytest.mark.full
def test_acgan_draws_the_rarest_digit_of_a_long_tailed_set(evaluation, real_data, tmp_path):
    run = train(real_data, tmp_path / "tail", "acgan", "--imbalance", "100", "--balanced")
    pictures = run.sample(500, seed=1, labels=[9])  # 54 pictures of nines against 5,421 of zeros
    share = float((evaluation.extractor(pictures).logits.argmax(1) == 9).float().mean())
    print("nines", share)
    assert share >= 0.90
