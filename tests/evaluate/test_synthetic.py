"""Labelled sets that are drawn, and what classifiers learn from them: augment, eval --augment."""

import csv
import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ganfast.cli import main
from ganfast.data import open_data
from ganfast.data.labelled import write_set
from ganfast.data.resident import ResidentData
from ganfast.errors import InputError
from ganfast.evaluate import synthetic
from ganfast.evaluate.synthetic import Comparison, learned, rarest_third, unseen
from ganfast.runs.run import Run
from ganfast.runs.teaching import comparison_of
from ganfast.runs.train import train
from ganfast.training.plan import make_plan
from tests.small_bundle import small_bundle
from tests.small_runs import files, tiny

LONG_TAIL = {"imbalance": 50.0, "balanced": True}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """A run with classes, one without, and a bundle with classes."""
    folder = tmp_path_factory.mktemp("drawn")
    train(tiny("acgan", out=folder / "run", **LONG_TAIL), quiet=True)
    shutil.copytree(folder / "run", folder / "plain")
    config = (folder / "plain/config.yaml").read_text()
    assert "conditional: auxiliary" in config
    text = config.replace("conditional: auxiliary", "conditional: no")
    (folder / "plain/config.yaml").write_text(text)
    small_bundle(folder / "bundle", classes=3)
    return folder


@pytest.fixture
def call(workplace, monkeypatch, capsys):
    """Run a command line: (exit code, standard output, standard error)."""
    monkeypatch.chdir(workplace)
    monkeypatch.setattr(synthetic, "STEPS", 2)

    def call(line: str) -> tuple[int, str, str]:
        code = main(line.split())
        return code, *capsys.readouterr()

    return call


def read_back(folder: Path) -> dict[str, list[np.ndarray]]:
    """As an ordinary image-folder loader does: sorted folders are classes."""
    found = {}
    for place in sorted(path for path in folder.iterdir() if path.is_dir()):
        found[place.name] = [np.asarray(Image.open(path)) for path in sorted(place.iterdir())]
    return found


@pytest.mark.parametrize("source", ["run", "bundle"])
def test_a_set_is_what_sample_draws_and_the_same_command_gives_the_same_bytes(source, call):
    line = f"augment {source} --per-class 4 --seed 5 --first 7 --psi 0.8 --out {source}-{{}}"
    assert call(line.format(1)) == (0, f"{source}-1\n", "")
    assert call(line.format(2))[0] == 0
    first, second = Path(f"{source}-1"), Path(f"{source}-2")
    assert files(first) == files(second)

    facts = json.loads((first / "set.json").read_text())
    stated = {name: facts[name] for name in ("source", "seed", "first", "psi")}
    assert stated == {"source": source, "seed": 5, "first": 7, "psi": 0.8}
    n = 4 * len(facts["counts"])
    call(f"sample {source} -n {n} --seed 5 --first 7 --psi 0.8 --balanced --out {source}.npz")
    with np.load(f"{source}.npz") as arrays:
        images, labels = arrays["images"], arrays["labels"]
    with open(first / "labels.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["label"]) for row in rows] == labels.tolist()
    hashes = b""
    for row, picture in zip(rows, images, strict=True):
        path = first / row["file"]
        assert path.parent.name == row["class"]
        assert np.array_equal(np.asarray(Image.open(path)), picture[:, :, 0])
        hashes += hashlib.sha256(path.read_bytes()).digest()
    whole = hashlib.sha256((first / "labels.csv").read_bytes() + hashes).hexdigest()
    assert facts["digest"] == f"sha256:{whole}"

    loaded = read_back(first)
    assert {name: len(pictures) for name, pictures in loaded.items()} == facts["counts"]
    pack = open_data(str(first), size=images.shape[1])
    assert pack.info.classes == tuple(facts["counts"])
    for label, name in enumerate(pack.info.classes):
        stored = pack.images[pack.labels == label][:, 0]
        assert sorted(p.tobytes() for p in stored) == sorted(p.tobytes() for p in loaded[name])


def test_what_a_set_was_drawn_from_is_told_by_a_hash(call):
    call("augment run --per-class 1 --out traced")
    facts = json.loads(Path("traced/set.json").read_text())
    weights = Path("run/checkpoints", facts["checkpoint"], "ema.safetensors").read_bytes()
    assert facts["weights"] == hashlib.sha256(weights).hexdigest()
    manifest = json.loads(Path("bundle/manifest.json").read_text())
    call("augment bundle --per-class 1 --out from-bundle")
    assert json.loads(Path("from-bundle/set.json").read_text())["bundle"] == manifest["digest"]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("augment plain", "plain was trained without classes, and a labelled set needs some"),
        ("augment run --out plain", "plain exists, and a set is never mixed with other files"),
        ("augment run --per-class 0", "per-class is 0; expected 1 to 1,000,000 pictures"),
        ("augment run --per-class 9999999 --out x", "per-class is 9999999; expected 1 to"),
        ("augment run --first -1 --out x", "first is -1; expected the index of a picture"),
        ("augment run --psi 3 --out x", "psi is 3.0; expected"),
        ("augment nowhere", "nowhere"),
        ("augment bundle --checkpoint 1 --out x", "which holds one checkpoint"),
        ("eval plain --augment", "was trained without classes, so what it draws has no labels"),
        ("eval run run --augment", "--augment compares one run at one psi"),
        ("eval run --augment --sheet a.png --size 8", "sheet, size cannot be given with --augment"),
        ("eval run --augment --data run-other", "run-other"),
    ],
)
def test_what_cannot_be_drawn_or_compared_is_one_sentence(line, sentence, call):
    before = sorted(Path().iterdir())
    code, out, err = call(line)
    assert (code, out) == (2, "")
    assert sentence in err
    assert err.count("\n") == 1
    assert sorted(Path().iterdir()) == before


@pytest.mark.parametrize("names", ["../up a", "a/b c", ". a", "A a", "nul\0 a"])
def test_names_that_cannot_be_folders_write_nothing(names, tmp_path):
    with pytest.raises(InputError, match="cannot name a folder: draw it into arrays"):
        write_set(tmp_path / "set", names.split(" "), [], {})
    assert not list(tmp_path.iterdir())


def test_a_set_that_cannot_be_finished_is_not_there(tmp_path):
    def broken():
        yield "one.png", 0, np.zeros((8, 8, 1), np.uint8)
        raise InputError("the second cannot be drawn")

    with pytest.raises(InputError, match="second"):
        write_set(tmp_path / "set", ["a", "b"], broken(), {})
    assert not list(tmp_path.iterdir())


# What classifiers learn


def reals_of(run: Run) -> tuple[ResidentData, Comparison]:
    comparison, _ = comparison_of(run, count=40, device="cpu")
    return comparison.reals, comparison


def test_reals_are_those_of_the_generator_and_tests_are_none_of_them(workplace):
    run = Run.open(workplace / "run")
    reals, comparison = reals_of(run)
    trained_on = make_plan(replace(run.config, out="")).data
    assert torch.equal(reals.subset, trained_on.subset)
    pack = open_data("digits")
    rest = [k for k in range(len(pack.images)) if k not in set(reals.subset.tolist())]
    assert np.array_equal(comparison.tests[0].pictures, pack.images[rest])
    assert comparison.protocol["rarest_third"] == [9, 8, 7]
    with pytest.raises(InputError, match="no test split, and the run was trained on all of it"):
        unseen(pack, None, ResidentData(pack, torch.device("cpu"), 0, balanced=True))
    others = ResidentData(pack, torch.device("cpu"), 0, balanced=True)
    assert unseen(pack, pack, others).origin == "test split"


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_share_of_0_sees_no_drawn_picture_and_a_share_of_1_no_real_one(
    share, workplace, monkeypatch
):
    monkeypatch.setattr(synthetic, "STEPS", 2)
    reals, comparison = reals_of(Run.open(workplace / "run"))
    drawn = comparison.drawn(0)

    def weights() -> torch.Tensor:
        net = learned(reals, drawn, share, seed=0, flip=False)
        return torch.cat([p.flatten() for p in net.parameters()])

    before = weights()
    assert torch.equal(before, weights())
    kept, reals.images = reals.images, torch.zeros_like(reals.images)
    assert torch.equal(before, weights()) == (share == 1)
    reals.images, drawn = kept, np.zeros_like(drawn)
    assert torch.equal(before, weights()) == (share == 0)


def test_drawn_pictures_are_taken_by_their_class_and_others_for_every_seed(workplace, monkeypatch):
    """Drawn pictures that are flat in the grey of their class say which class they stood in for."""
    monkeypatch.setattr(synthetic, "STEPS", 3)
    seen = []
    monkeypatch.setattr(synthetic, "fitted", lambda *a, **k: seen.extend(a[6]))
    reals, _ = reals_of(Run.open(workplace / "run"))
    greys = np.arange(40, dtype=np.uint8) % 10 * 20
    flat = np.broadcast_to(greys[:, None, None, None], (40, 1, 16, 16)).copy()
    learned(reals, flat, 1.0, seed=1, flip=False)
    for x, labels in seen:
        assert torch.equal(((x[:, 0, 8, 8] + 1) * 127.5 / 20).round().long(), labels)
        assert torch.bincount(labels).max() - torch.bincount(labels).min() <= 2
    run = Run.open(workplace / "run")
    one, two = (reals_of(run)[1].drawn(seed) for seed in (0, 1))
    assert one.shape == (40, 1, 16, 16)
    expected = run.sample(40, 0, [*range(10)], first=40).transpose(0, 3, 1, 2)
    assert np.abs(two.astype(int) - expected.astype(int)).max() <= 1
    assert not np.array_equal(one, two)


def test_noise_is_of_the_stated_size_and_depends_on_the_place_alone():
    grey = np.full((600, 1, 16, 16), 128, np.uint8)
    tests = synthetic.Tests(grey, np.zeros(600, np.int64), "grey")
    noise = tests.noisy().pictures.astype(float) - 128
    assert noise.std() / 127.5 == pytest.approx(synthetic.NOISE, rel=0.01)
    some = replace(tests, pictures=grey[:7]).noisy()
    assert np.array_equal(some.pictures, tests.noisy().pictures[:7])
    assert not np.array_equal(noise[0], noise[1])


def test_accuracies_of_a_classifier_that_knows_one_class(workplace, monkeypatch):
    class Nines(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.head = torch.nn.Linear(1, 10)

        def forward(self, x):
            return None, torch.eye(10)[9].expand(len(x), 10)

    monkeypatch.setattr(synthetic, "learned", lambda *a: Nines())
    _, comparison = reals_of(Run.open(workplace / "run"))
    labels = comparison.tests[0].labels
    share, among_rare = (labels == 9).mean(), (labels == 9).sum() / (labels >= 7).sum()
    for found in comparison.accuracies(0).values():
        assert found == pytest.approx([share, among_rare] * 2)
    assert rarest_third([5, 1, 3, 1]) == [3]
    assert rarest_third([5, 1, 3, 1, 0, 2]) == [4, 3]


def test_eval_augment_prints_a_table_and_writes_every_number(call, monkeypatch):
    monkeypatch.setattr("ganfast.commands.augment._SEEDS", 2)
    code, out, err = call("eval run --augment -n 100 --json found.json --device cpu")
    assert (code, err) == (0, "")
    found = json.loads(Path("found.json").read_text())
    protocol, accuracies = found["protocol"], found["accuracies"]
    assert len(accuracies) == 2
    assert protocol["drawn_per_class"] == 10
    assert protocol["tests"].endswith("left out by --imbalance")
    for name, row in zip(synthetic.SHARES, out.splitlines()[1:], strict=False):
        mean = 100 * np.mean([of_seed[name][1] for of_seed in accuracies])
        assert row.startswith(name)
        assert f" {mean:.2f} (" in row
