"""A checkpoint is drawn only as what it is, and pictures are known by their bytes."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ganfast import configfile
from ganfast.cli import main
from ganfast.data import open_data
from ganfast.data.manifest import IMAGES, LABELS
from ganfast.data.source import cache_dir
from ganfast.errors import InputError
from ganfast.runs import checkpoint as checkpoints
from ganfast.runs.resume import remember
from ganfast.runs.run import Run
from ganfast.runs.source import of_run
from ganfast.runs.train import train
from tests.small_runs import STEADY, tiny


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """40 pictures in two classes, and a run of them with checkpoints at 80 and 160. Only read."""
    place = tmp_path_factory.mktemp("folders")
    for number in range(40):
        path = place / "set" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    train(of_set(place / "set", place / "run"), quiet=True)
    return place


def of_set(data, out, **changes):
    log = replace(tiny().log, keep=0)
    return tiny(data=str(data), out=out, **{"optim": STEADY, "log": log, "kimg": 0.16} | changes)


@pytest.fixture
def copy(folders, tmp_path) -> Path:
    """Copies, touched, as `git clone`, `unzip` and `cp -r` make them."""
    shutil.copytree(folders / "run", tmp_path / "run")
    shutil.copytree(folders / "set", tmp_path / "set", copy_function=shutil.copyfile)
    for path in (tmp_path / "set").rglob("*.png"):
        os.utime(path, (1e9, 1e9))
    return tmp_path


def test_touched_pictures_are_the_same_and_changed_ones_are_not(copy):
    longer = of_set(copy / "set", copy / "run", kimg=0.24)
    train(longer, quiet=True)
    assert not (copy / "run" / "history.jsonl").exists()
    assert main(["run", "check", str(copy / "run")]) == 0

    picture = next((copy / "set").rglob("*.png"))
    Image.fromarray(255 - np.asarray(Image.open(picture))).save(picture)
    with pytest.raises(InputError, match="was trained on other pictures"):
        train(replace(longer, kimg=0.32), quiet=True)


def test_a_run_that_knows_no_hash_of_its_pictures_is_told_by_their_files(copy):
    path = copy / "run" / "data.json"
    data = json.loads(path.read_text())
    assert len(data.pop("pictures_hash")) == 64
    path.write_text(json.dumps(data))
    for old in checkpoints.listed(copy / "run" / "checkpoints"):
        seal(old, lambda facts: facts["trained_as"].pop("pictures_hash"))
    assert Run.open(copy / "run").sample(1).shape == (1, 16, 16, 1)
    with pytest.raises(InputError, match="was trained on other pictures"):
        train(of_set(copy / "set", copy / "run", kimg=0.24), quiet=True)


@pytest.mark.parametrize("file", [IMAGES, LABELS])
def test_no_checkpoint_follows_from_a_damaged_pack(tmp_path, monkeypatch, file):
    monkeypatch.setenv("GANFAST_CACHE", str(tmp_path / "cache"))
    pictures = np.random.default_rng(0).integers(0, 256, (40, 16, 16), dtype=np.uint8)
    np.savez(tmp_path / "set.npz", images=pictures, labels=np.arange(40) % 2)
    open_data(str(tmp_path / "set.npz"), size=16)
    (path,) = (cache_dir() / "packs").glob(f"*/{file}")
    data = bytearray(path.read_bytes())
    data[-8] ^= 1
    path.write_bytes(data)
    config = of_set(tmp_path / "set.npz", tmp_path / "run")
    with pytest.raises(InputError, match=f"the bytes of {file} changed; delete it to pack again"):
        train(config, quiet=True)
    assert not checkpoints.listed(tmp_path / "run" / "checkpoints")
    with pytest.warns(RuntimeWarning, match="packing again"):
        assert main(["data", "pack", config.data, "--size", "16"]) == 0
    train(config, quiet=True)


def seal(checkpoint, change):
    """Change what state.json says, with a new hash."""
    facts = json.loads((checkpoint / "state.json").read_text())
    facts.pop("sha256")
    change(facts)
    (checkpoint / "state.json").write_bytes(checkpoints._sealed(facts))


DRAWING = {
    "sample": lambda run: run.sample(1),
    "critic": lambda run: run.critic(),
    "eval": lambda run: of_run(run, "", 0, 1.0, "cpu"),
    "train": lambda run: train(replace(run.config, out=str(run.folder), kimg=0.32), quiet=True),
}


def test_a_checkpoint_under_another_name_is_not_drawn(copy, caplog):
    run = Run.open(copy / "run")
    expected, store = run.sample(1, checkpoint="160"), run.checkpoint_folder
    (store / "000000080").rename(store / "000000200")
    run = Run.open(run.folder)
    with pytest.raises(InputError, match=r"says that it is of 80 images: name it 000000080 again"):
        run.sample(1, checkpoint="200")
    np.testing.assert_array_equal(run.sample(1), expected)
    assert "000000160, is used instead" in caplog.text
    train(replace(run.config, out=str(run.folder), kimg=0.24), quiet=True)
    names = [path.name for path in checkpoints.listed(store)]
    assert names == ["000000160", "000000240"]


@pytest.mark.parametrize("command", DRAWING)
def test_a_checkpoint_of_another_run_is_not_drawn(copy, command):
    newest = copy / "run" / "checkpoints" / "000000160"
    seal(newest, lambda facts: facts["trained_as"].update(seed=5))
    with pytest.raises(InputError, match="seed was 5, now 0"):
        DRAWING[command](Run.open(copy / "run"))


def test_what_the_history_changed_is_no_other_run(copy):
    folder = copy / "run"
    config = configfile.read(folder / "config.yaml")
    configfile.write(replace(config, seed=5), folder / "config.yaml")
    with pytest.raises(InputError, match="seed was 0, now 5"):
        Run.open(folder).sample(1)
    remember(folder, "force", images=160, changed={"seed": (0, 5)})
    assert Run.open(folder).sample(1, checkpoint="80").shape == (1, 16, 16, 1)


def test_a_checkpoint_that_does_not_say_what_it_was_trained_with_is_drawn(copy):
    for checkpoint in checkpoints.listed(copy / "run" / "checkpoints"):
        seal(checkpoint, lambda facts: facts.pop("trained_as"))
    run = Run.open(copy / "run")
    assert run.sample(1).shape == (1, 16, 16, 1)
    assert run.critic().net is not None
