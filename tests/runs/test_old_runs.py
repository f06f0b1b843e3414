"""Runs of earlier versions draw and go on, for ever. tests/fixtures/make_run.py made them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ganfast.cli import main
from ganfast.presets import suited_kimg
from ganfast.runs import checkpoint as checkpoints
from ganfast.runs.logfile import read_log
from ganfast.runs.run import Run
from ganfast.runs.train import train
from tests.small_runs import newest, tiny

FOLDER = Path(__file__).parents[1] / "fixtures" / "runs"
NAMES = [f"schema-{number}" for number in range(1, checkpoints.SCHEMA + 1)]


def test_there_is_one_of_every_schema():
    assert {path.name for path in FOLDER.iterdir()} == set(NAMES)
    for number, name in enumerate(NAMES, start=1):
        path, record, read = checkpoints.newest_whole(FOLDER / name / "checkpoints")
        assert (path.name, record.schema, record.images) == ("000000160", number, 160)
        assert set(read) == set(checkpoints.PARTS)
        assert all(read.values())


@pytest.mark.parametrize("name", NAMES)
def test_an_old_run_draws_the_pictures_it_drew_when_it_was_made(name):
    expected = np.load(FOLDER / name / "expected.npy")
    drawn = Run.open(FOLDER / name).sample(10, seed=1, labels=range(10))
    np.testing.assert_allclose(drawn.astype(int), expected.astype(int), atol=1)
    assert expected.std() > 5, "pictures, not a grey field"


@pytest.mark.parametrize("name", NAMES)
def test_an_old_run_goes_on_where_it_ended(name, tmp_path):
    out = Path(shutil.copytree(FOLDER / name, tmp_path / "run"))
    (out / "samples").mkdir()
    before = (out / "log.jsonl").read_text()
    train(replace(Run.open(out).config, out=str(out), kimg=0.224), quiet=True)
    assert (out / "log.jsonl").read_text().startswith(before), "no line is lost, none written anew"
    assert [line["images"] for line in read_log(out / "log.jsonl")][-2:] == [192, 224]
    expected = checkpoints.SCHEMA
    assert checkpoints.read_record(checkpoints.listed(out / "checkpoints")[-1]).schema == expected


@pytest.mark.parametrize("name", NAMES)
def test_an_old_run_keeps_its_length_from_python_and_from_the_shell(name, tmp_path, capsys):
    """Its pictures would get another one now: a run whose config says 0 is not trained on."""
    out = Path(shutil.copytree(FOLDER / name, tmp_path / "run"))
    config, before = Run.open(out).config, checkpoints.listed(out / "checkpoints")
    assert config.kimg == 0.16
    assert suited_kimg(config.preset, "digits", 16, 1, 1797) >= 100
    train(replace(config, out=str(out), kimg=0.0))
    assert "0.16 kimg: already complete" in capsys.readouterr().err
    assert (
        main(["train", config.preset, "--data", config.data, "--out", str(out), "--kimg", "0"]) == 0
    )
    assert "0.16 kimg: already complete" in capsys.readouterr().err
    assert Run.open(out).config.kimg == 0.16
    assert checkpoints.listed(out / "checkpoints") == before


@pytest.mark.parametrize("cached", [True, False])
def test_a_run_keeps_the_classes_that_an_earlier_version_found(tmp_path, monkeypatch, cached):
    """Labels 1 to 3 made four classes. A new run of the same data has three."""
    labels, data, cache = np.arange(40) % 3 + 1, tmp_path / "set.npz", tmp_path / "cache"
    np.savez(
        data,
        images=np.random.default_rng(0).integers(0, 256, (40, 16, 16), np.uint8),
        labels=labels,
    )
    monkeypatch.setenv("GANFAST_CACHE", str(cache))
    whole, out = (tiny(data=str(data), out=tmp_path / name) for name in ("whole", "run"))
    with monkeypatch.context() as earlier:
        earlier.setattr("ganfast.training.plan.RULES", 1)
        for config in (replace(whole, kimg=0.16), replace(out, kimg=0.16), whole):
            train(config, quiet=True)
    record = json.loads((tmp_path / "run" / "data.json").read_text())
    assert record["classes"] == ["0", "1", "2", "3"]
    del record["rules"]  # which those versions did not write
    (tmp_path / "run" / "data.json").write_text(json.dumps(record))
    new = train(tiny(data=str(data), out=tmp_path / "new"), quiet=True)
    assert new.classes == ("1", "2", "3")
    if not cached:
        shutil.rmtree(cache)
    run = train(out, quiet=True)
    assert run.classes == ("0", "1", "2", "3")
    checkpoint = f"checkpoints/{newest(tmp_path / 'run').name}"
    for part in checkpoints.PARTS:
        name = f"{checkpoint}/{part}.safetensors"
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    judged = run.critic().judge(run.sample(2, labels=[3]), labels=3)
    assert np.isfinite(judged.among_reals).all()
    fork = train(replace(out, out=str(tmp_path / "fork"), kimg=0.4), True, fork_of=tmp_path / "run")
    assert fork.classes == ("0", "1", "2", "3")
