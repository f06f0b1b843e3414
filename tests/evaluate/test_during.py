"""Scores while training: those of `ganfast eval`, no trace in weights; the best is kept."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ganfast.cli import main
from ganfast.config import LogConfig, ScoreConfig
from ganfast.data import manifest, open_data
from ganfast.errors import InputError
from ganfast.evaluate.during import Scorer
from ganfast.runs import checkpoint as checkpoints
from ganfast.runs.logfile import read_log
from ganfast.runs.run import Run
from ganfast.runs.train import Interrupted, train
from tests.small_runs import assert_same_run, tensors, tiny

SCORED = ScoreConfig(every_kimg=0.16, count=150)  # of 320 images: two scorings


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    """400 labelled digits; half are the reference, more than the 64 features of a picture."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pictures = np.rint(digits.images[:400] * (255 / 16)).astype(np.uint8).repeat(2, 1).repeat(2, 2)
    path = tmp_path_factory.mktemp("data") / "some.npz"
    np.savez(path, images=pictures, labels=digits.target[:400])
    return str(path)


def scores_of(folder: Path) -> list[dict]:
    return [
        line
        for line in read_log(folder / "log.jsonl")
        if any(key.startswith("score/") for key in line)
    ]


class First(torch.nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :7]


def test_logged_scores_are_those_of_ganfast_eval_on_the_same_checkpoints(data, tmp_path, capsys):
    out = tmp_path / "run"
    # Its batch norm must have the statistics the checkpoint has.
    train(tiny("dcgan", data, out, score=SCORED), quiet=True)
    logged = scores_of(out)
    assert [line["images"] for line in logged] == [160, 320]
    assert main(["eval", str(out), "--checkpoint", "all", "-n", "150", "--json", "-"]) == 0
    evaluated = {
        r["protocol"]["drawn"]["images"]: r["scores"] for r in json.loads(capsys.readouterr().out)
    }
    for line in logged:
        found = {
            key.removeprefix("score/"): value
            for key, value in line.items()
            if key.startswith("score/")
        }
        assert found == pytest.approx(evaluated[line["images"]], rel=1e-5)
    best = min(logged, key=lambda line: line["score/frechet"])
    assert checkpoints.best(out / "checkpoints").name == f"{best['images']:09d}"
    assert "frechet: v1 " in (out / "checkpoints/best.json").read_text()


def test_a_scored_run_stopped_and_resumed_equals_an_uninterrupted_and_an_unscored_one(
    data, tmp_path, stop_at
):
    whole, parts, plain = tmp_path / "whole", tmp_path / "parts", tmp_path / "plain"
    train(tiny("acgan", data, plain), quiet=True)
    train(tiny("acgan", data, whole, score=SCORED), quiet=True)
    stop_at(176)  # between two scorings
    with pytest.raises(Interrupted):
        train(tiny("acgan", data, parts, score=SCORED), quiet=True)
    train(tiny("acgan", data, parts, score=SCORED), quiet=True)
    assert_same_run(whole, parts)  # log lines of scores, too
    assert (
        checkpoints.best(whole / "checkpoints").name == checkpoints.best(parts / "checkpoints").name
    )
    for part in ("generator", "critic", "ema", "optimizer_generator", "optimizer_critic"):
        first, second = (
            tensors(folder / "checkpoints/000000320", part) for folder in (whole, plain)
        )
        assert all(torch.equal(first[name], second[name]) for name in second), part


def test_a_run_stopped_right_at_a_scoring_keeps_its_line_once(data, tmp_path, stop_at):
    out = tmp_path / "run"
    stop_at(160)
    for _ in range(2):
        try:
            train(tiny("dcgan", data, out, score=SCORED), quiet=True)
        except Interrupted:
            continue
    assert [line["images"] for line in scores_of(out)] == [160, 320]


@pytest.mark.parametrize(("by", "kept"), [("frechet", 160), ("precision", 80)], ids=str)
def test_the_best_checkpoint_is_spared_and_survives_a_resume(by, kept, data, tmp_path, monkeypatch):
    """Told 3, 1, 2 at 80, 160 and 240 images: low distances are good, high precisions are."""
    told = {80: 3.0, 160: 1.0, 240: 2.0, 320: 2.5}
    monkeypatch.setattr(
        Scorer, "__call__", lambda self, net, images: ({by: told[images]}, "protocol")
    )
    config = tiny(
        "dcgan",
        data,
        tmp_path / "run",
        score=replace(SCORED, every_kimg=0.08, by=by),
        log=LogConfig(keep=1, tensorboard=False),
    )
    folder = tmp_path / "run/checkpoints"
    train(replace(config, kimg=0.24), quiet=True)
    assert [p.name for p in checkpoints.listed(folder)] == [f"{kept:09d}", "000000240"]
    train(config, quiet=True)
    assert [p.name for p in checkpoints.listed(folder)] == [f"{kept:09d}", "000000320"]
    assert Run.open(tmp_path / "run").find("best").name == f"{kept:09d}"


def test_another_protocol_begins_a_best_of_its_own(data, tmp_path, monkeypatch):
    monkeypatch.setattr(
        Scorer,
        "__call__",
        lambda self, net, images: ({"frechet": images}, f"{self.config.score.count} fakes"),
    )
    config = tiny("dcgan", data, tmp_path / "run", score=SCORED)
    train(replace(config, kimg=0.16), quiet=True)
    train(replace(config, score=replace(SCORED, count=140)), quiet=True)
    assert checkpoints.best(tmp_path / "run/checkpoints").name == "000000320"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"extractor": "vgg"}, "unknown extractor 'vgg'"),
        ({"extractor": "mnist"}, "scores 28x28 pictures"),
        ({"count": 50}, "count is 50; expected 100 or more"),
        ({"by": "fid"}, "by is 'fid'; expected one of frechet"),
        ({"by": "label_accuracy"}, "draws no class on request"),
    ],
)
def test_scoring_that_cannot_be_is_refused_before_anything_is_trained(
    changes, message, data, tmp_path
):
    def attempt():
        train(
            tiny(
                "dcgan", data, tmp_path / "run", conditional="no", score=replace(SCORED, **changes)
            ),
            quiet=True,
        )

    with pytest.raises(InputError, match=message):
        attempt()
    assert not (tmp_path / "run/config.yaml").exists()


def test_a_run_that_skips_damaged_pictures_is_scored_without_them(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(210):
        Image.fromarray(rng.integers(0, 256, (16, 16), dtype=np.uint8)).save(
            tmp_path / f"{number}.png"
        )
    (tmp_path / "damaged.png").write_bytes(b"\x89PNG\r\n")
    torch.jit.script(First()).save(str(tmp_path / "first.pt"))
    score = replace(
        SCORED, extractor=str(tmp_path / "first.pt"), preprocessing="channels=1", count=100
    )
    config = tiny("dcgan", str(tmp_path), score=score, conditional="no", skip_corrupt=True)
    pack = open_data(str(tmp_path), size=16, skip_corrupt=True)
    assert (
        Scorer(config, pack.info, torch.device("cpu")).evaluation.pack.info.skipped
        == pack.info.skipped
        != ()
    )


def test_a_scored_training_hashes_its_pack_once(data, tmp_path, monkeypatch):
    hashed, verify = [], manifest._verify

    def counted(folder, mapped):
        hashed.append(folder)
        return verify(folder, mapped)

    monkeypatch.setattr(manifest, "_verify", counted)
    train(tiny("dcgan", data, tmp_path / "run", score=SCORED, kimg=0.16), quiet=True)
    assert len(hashed) == 1


def test_class_scores_need_an_extractor_that_names_classes(data, tmp_path):
    torch.jit.script(First()).save(str(tmp_path / "first.pt"))
    score = replace(
        SCORED, extractor=str(tmp_path / "first.pt"), preprocessing="channels=1", by="modes"
    )
    with pytest.raises(
        InputError, match="score.by is modes, but first names no classes of some: give frechet"
    ):
        train(tiny("dcgan", data, tmp_path / "run", score=score), quiet=True)
