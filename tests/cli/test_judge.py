"""`ganfast judge`: the table, the CSV and the maps say what the critic says; refusals."""

import csv
import shlex
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ganfast.cli import main
from ganfast.data.pictures import prepare
from ganfast.images import save_png
from ganfast.runs.critic import map_sheet
from ganfast.runs.run import Run
from ganfast.runs.train import train
from tests.small_runs import tiny


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("judged")
    for name, preset in (("plain", "wgan-gp"), ("classes", "r1")):
        how = {"conditional": "no"} if name == "plain" else {}
        train(tiny(preset, data, folder / name, **how), quiet=True)
    return {name: folder / name for name in ("plain", "classes")}


@pytest.fixture
def judge(trained, tmp_path, monkeypatch, capsys):
    """Run `ganfast judge` on copies of the runs: (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)
    for name, folder in trained.items():
        shutil.copytree(folder, name)
    random = np.random.default_rng(0)
    for name in ("a/one.png", "a/two.png", "three.jpg"):
        picture = random.integers(0, 255, (20, 30, 3), dtype=np.uint8)
        save_png(picture, Path("pictures", name))

    def judge(line: str) -> tuple[int, str, str]:
        code = main(["judge", *shlex.split(line)])
        return code, *capsys.readouterr()

    return judge


def as_trained(path: str) -> np.ndarray:
    with Image.open(path) as image:
        return prepare(image.convert("RGB"), 16, 1).transpose(1, 2, 0)[None]


def test_table_and_csv_say_what_the_critic_says(judge):
    code, out, err = judge("plain pictures --out rows/scores.csv")
    assert (code, err) == (0, "")
    with open("rows/scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["picture"] for row in rows] == ["a/one.png", "a/two.png", "three.jpg"]
    assert set(rows[0]) == {"picture", "score", "among_reals", "among_fakes"}  # no probability
    critic = Run.open("plain").critic()
    for row in rows:
        judged = critic.judge(as_trained(f"pictures/{row['picture']}"))
        assert float(row["score"]) == pytest.approx(judged.score[0], rel=1e-5)
        assert float(row["among_reals"]) == pytest.approx(judged.among_reals[0], rel=1e-5)
        assert float(row["among_fakes"]) == pytest.approx(judged.among_fakes[0], rel=1e-5)
    first, *lines = out.splitlines()
    assert first.split() == "picture score among reals among fakes".split()
    printed = [float(line.split()[1]) for line in lines]
    assert printed == sorted((float(row["score"]) for row in rows), reverse=True)


def test_a_class_by_name_or_number_a_zip_and_one_picture(judge):
    with zipfile.ZipFile("pictures.zip", "w") as archive:
        archive.write("pictures/three.jpg", "three.jpg")
    outputs = [
        judge(f"classes {what} --class 3") for what in ("pictures.zip", "pictures/three.jpg")
    ]
    assert outputs[0] == outputs[1]
    assert outputs[0][0] == 0
    score, probability = map(float, outputs[0][1].splitlines()[1].split()[1:3])
    assert probability == pytest.approx(1 / (1 + np.exp(-score)), rel=1e-4)
    assert judge("classes pictures/three.jpg --class 4")[1] != outputs[0][1]


def test_maps_lie_beside_their_pictures_by_name(judge):
    code, _, err = judge("classes pictures --class 1 --maps maps")
    assert (code, err) == (0, "")
    names = sorted(str(path.relative_to("maps")) for path in Path("maps").rglob("*.png"))
    assert names == ["a/one.png.png", "a/two.png.png", "three.jpg.png"]
    picture = as_trained("pictures/a/two.png")
    expected = map_sheet(picture[0], Run.open("classes").critic().gradient(picture, 1)[0])
    with Image.open("maps/a/two.png.png") as image:
        enlarged = np.asarray(image)
    assert enlarged.shape == (48, 96)
    assert np.array_equal(enlarged[::3, ::3], expected[..., 0])


def test_many_pictures_are_shown_at_both_ends_and_written_whole(judge):
    random = np.random.default_rng(1)
    for i in range(45):
        save_png(random.integers(0, 255, (16, 16, 1), dtype=np.uint8), Path("many", f"{i}.png"))
    _, out, _ = judge("plain many --out many.csv")
    lines = out.splitlines()
    assert len(lines) == 42
    assert lines[21] == "... 5 more"
    assert len(Path("many.csv").read_text().splitlines()) == 46


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nowhere pictures", "nowhere is not a run directory"),
        ("plain nowhere", "nowhere does not exist: give a folder or zip of pictures, or a picture"),
        ("plain empty", "no pictures found in empty"),
        ("plain broken", "bad.png in broken cannot be read as a picture"),
        ("plain text.txt", "text.txt is not a readable zip"),
        ("classes pictures", "judges a picture as one of its class; give its class (--class): 0"),
        ("classes pictures --class eleven", "classes has no class 'eleven'; there: 0 = 0"),
        ("classes pictures --class 11", "classes has no class '11'; there: 0 = 0"),
        ("plain pictures --class 1", "judges a picture without a class; leave --class out"),
        ("plain pictures --class cat", "plain has no class 'cat'; it was trained without"),
        ("plain pictures --out scores.txt", "out is scores.txt; the rows are written as FILE.csv"),
        ("plain pictures --data nothing", "no data named 'nothing'"),
        ("gone pictures", "has no critic.safetensors, so there is no critic to ask"),
    ],
)
def test_refusals_are_one_sentence(judge, line, message):
    Path("empty").mkdir()
    Path("broken").mkdir()
    Path("broken/bad.png").write_bytes(b"no picture")
    Path("text.txt").write_text("words")
    if line.startswith("gone"):
        shutil.copytree("plain", "gone")
        for path in Path("gone").rglob("critic.safetensors"):
            path.unlink()
    code, out, err = judge(line)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1
