"""`--minutes`: what is planned, from what was measured, and that the run is like any other."""

from dataclasses import replace
from itertools import count

import numpy as np
import pytest
from PIL import Image

from ganfast import configfile
from ganfast.cli import main
from ganfast.config import LogConfig, ScoreConfig
from ganfast.data.folder import Folder
from ganfast.errors import InputError
from ganfast.presets import PRESETS, budget_config
from ganfast.runs import budget
from ganfast.runs.budget import Speed, budgeted, sizes
from ganfast.runs.train import train
from ganfast.training.plan import make_plan
from tests.small_runs import assert_same_run, files, tiny

COMMAND = (
    "train --data digits --net.width 4 --batch 16 --log.no-tensorboard --minutes 2 --out run"
).split()


@pytest.fixture(autouse=True)
def somewhere_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def pretend(monkeypatch, **speeds: float):
    """Steps take ``image`` seconds a picture at 32 pixels and width 32, by their work."""

    def measured(config, *_, **__):
        work = (config.size / 32) ** 2 * (config.net.width / 32 if config.net.width else 1) ** 2
        speed = Speed(**{"start": 0.0} | speeds)
        return speed._replace(image=speed.image * work)

    monkeypatch.setattr(budget, "_measured", measured)


def still() -> float:
    return 0.0


def test_a_length_by_hand_from_a_pretended_clock():
    """Every look at the clock takes a second."""
    clock = count(1)
    config, said = budgeted(tiny(kimg=0.0, log=LogConfig()), 294.1 / 60, 0, now=lambda: next(clock))
    # Looks: one at the start, after 1, 2 and 4 steps of 16, two each for sheet and checkpoint, and
    # one after that: 9 s. Steps 2 to 4 took 2 s. A second each for the start, 23 sheets and 11
    # checkpoints. Left: 250.1 s, of 41.67 s a kimg.
    assert config.kimg == 6.0
    assert config == replace(config, kimg=6.0, size=16, net=replace(config.net, width=4))
    assert "24 img/s, 1.0 s to start, 1.00 s a sheet, 1.00 s a checkpoint" in said


@pytest.mark.parametrize(
    ("changes", "seconds"),
    [
        ({}, 10 + 100 * 2 + 23 * 0.5 + 11 * 3),
        ({"log": LogConfig(sample_kimg=50, save_kimg=2)}, 10 + 200 + 5 * 0.5 + 51 * 3),
        ({"score": ScoreConfig(every_kimg=20)}, 10 + 200 + 23 * 0.5 + 11 * 3 + 6 * 7),
    ],
    ids=["defaults", "own intervals", "scored"],
)
def test_sheets_checkpoints_and_scores_are_counted_in(changes, seconds):
    config = tiny(**{"log": LogConfig()} | changes)
    speed = Speed(start=10, image=0.002, sheet=0.5, save=3, score=7)
    assert speed.seconds(config, 100) == pytest.approx(seconds)
    assert speed.kimg(config, seconds) == pytest.approx(100)


def test_networks_are_wider_where_the_time_is_four_times_what_suits(monkeypatch):
    pretend(monkeypatch, image=4e-3)  # a second a kimg at 16 pixels
    config = replace(tiny("dcgan"), kimg=0.0)
    free = replace(config, net=replace(config.net, width=0))
    suited = PRESETS["dcgan"].kimg.digits
    for seconds, asked, width, kimg in (
        (4 * suited - 1, free, 32, 4 * suited - 1),
        (4 * suited, free, 64, suited),
        (4 * suited, replace(free, net=replace(free.net, width=32)), 32, 4 * suited),
    ):
        planned, _ = budgeted(asked, seconds / 60, 0, now=still)
        assert (planned.net.width, planned.kimg) == (width, kimg)


def test_too_short_a_time_names_one_that_suffices(monkeypatch):
    pretend(monkeypatch, start=5.0, image=0.04)  # 10 s a kimg at 16 pixels
    config = tiny(kimg=0.0, net=replace(tiny().net, width=32))
    with pytest.raises(InputError, match="--minutes 0.2 is too short for one kimg .*minutes 0.3 "):
        budgeted(config, 0.2, 0, now=still)
    assert budgeted(config, 0.3, 0, now=still)[0].kimg == 1.3


@pytest.mark.parametrize(
    ("model", "side", "expected"),
    [
        ("dcgan", 8, [16]),
        ("dcgan", 17, [16]),
        ("dcgan", 28, [28]),
        ("dcgan", 89, [32, 64]),
        ("mlp", 4000, [32, 64, 128]),
        ("r3", 4000, [32, 64, 128, 256]),
        ("r3", 112, [32, 64, 112]),
        ("mine:Critic", 200, [64]),
    ],
)
def test_sizes_are_those_that_the_pictures_have(model, side, expected):
    assert sizes(model, side) == expected


def pictures(side: int, mode: str = "RGB", number: int = 70) -> str:
    folder = Folder(budget.Path(f"of-{side}"))
    folder.path.mkdir()
    for i in range(number):
        Image.new(mode, (side, side + 10 + i)).save(folder.path / f"{i}.png")
    return str(folder.path)


@pytest.mark.parametrize(
    ("side", "seconds", "size"),
    [
        (9, 1e5, 16),
        (300, 399, 32),
        (300, 401, 64),
        (300, 1599, 64),
        (300, 1601, 128),
        (40, 1e5, 40),
    ],
)
def test_a_size_is_one_that_the_time_fills(side, seconds, size, monkeypatch):
    pretend(monkeypatch, image=64e-3)  # a second a kimg at 32 pixels and width 4
    config = budget_config("r1", pictures(side), 3, seconds / 60)
    config = replace(config, net=replace(config.net, width=4))
    packed = []
    planned, _ = budgeted(config, seconds / 60, 0, lambda *now: packed.append(now), still)
    assert planned.size == size
    assert packed
    again = make_plan(planned, lambda *now: pytest.fail("packed again"))
    assert (again.config.size, again.config.channels) == (size, 3)


def test_a_folder_is_looked_at_and_its_broken_pictures_passed_over():
    path = budget.Path(pictures(24, "L"))
    (path / "0.png").write_bytes(b"no picture")
    assert Folder(path).looked_at() == (1, 24)


def test_rough_steps_need_no_pack_and_touch_no_numbers(monkeypatch):
    """The real steps, at the smallest of several sizes, of pictures with a class head."""
    monkeypatch.setattr(budget, "_ROUGH", 0.0)  # one step is measured
    data, clock = pictures(70), count()
    config = budget_config("acgan", data, 3, 5.0)
    config = replace(config, batch=4, net=replace(config.net, width=4))
    size, why = budget._size(config, 300.0, lambda: next(clock) / 1000)
    assert (size, why) == (64, "the largest up to the pictures' 70 that gets 100 kimg")
    assert not list(budget.Path().glob("**/images.npy"))


@pytest.fixture
def one_kimg(monkeypatch):
    """What is planned is short, whatever was measured."""
    monkeypatch.setattr(Speed, "kimg", lambda *_: 1.004)


def test_the_same_command_resumes_and_the_run_has_the_bits_of_its_config(one_kimg):
    assert main(COMMAND) == 0
    config = configfile.read(budget.Path("run/config.yaml"))
    assert (config.preset, config.kimg, config.size, config.batch) == ("dcgan", 1.0, 16, 16)
    train(replace(config, out="without"), quiet=True)
    assert_same_run(budget.Path("run"), budget.Path("without"))


def test_a_run_that_is_there_is_not_planned_again(one_kimg, monkeypatch, capsys):
    pretend(monkeypatch, image=1.0)
    assert main([*COMMAND, "--dry-run"]) == 0
    assert not budget.Path("run").exists()
    assert "kimg: 1.0\n" in capsys.readouterr().out
    train(tiny(out="run", kimg=0.16), quiet=True)
    path = budget.Path("run/config.yaml")
    configfile.write(replace(configfile.read(path), kimg=0.32), path)

    def refuse(*_):
        raise AssertionError("planned again")

    monkeypatch.setattr(budget, "budgeted", refuse)
    for _ in range(2):
        assert main("train --out run --minutes 9".split()) == 0
        said = capsys.readouterr().err
        assert said.startswith("run goes on to the 0.32 kimg of its config: --minutes is ignored\n")
    before = files(budget.Path("run"))
    assert main("train --out run --minutes 1 --quiet".split()) == 0
    assert files(budget.Path("run")) == before


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--minutes 0", "--minutes is '0'; expected a finite number above 0"),
        ("--minutes -3", "--minutes is '-3'; expected"),
        ("--minutes inf", "--minutes is 'inf'; expected"),
        ("--minutes nan", "--minutes is 'nan'; expected"),
        ("--minutes ten", "--minutes is 'ten'; expected"),
        ("--minutes=", "--minutes is ''; expected"),
        ("--minutes 5 --kimg 3", "--minutes and --kimg both set the length of a run: give one"),
        ("--minutes 5 --kimg=3", "--minutes and --kimg both set the length of a run: give one"),
        ("--minutes 5 --config a.yaml", "--minutes and kimg in a.yaml both set the length"),
        ("--minutes 5 --fork there", "--minutes plans a new run, and --fork goes on with one"),
        ("bogus --minutes 5", "unknown preset 'bogus'"),
        ("--minutes 5 --data nowhere", "no data named 'nowhere'"),
    ],
)
def test_what_is_refused(line, said, capsys):
    budget.Path("a.yaml").write_text("kimg: 3\n")
    assert main(f"train {line}".split()) == 2
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert said in err
    assert not budget.Path("runs").exists()


def test_values_are_those_of_the_winner_and_flags_come_before_them(one_kimg, monkeypatch, capsys):
    pretend(monkeypatch, image=1.0)
    faces = budget_config("", "photos", 3, 30)
    assert (faces.preset, faces.batch, faces.optim.decay_from) == ("dcgan", 32, 0.5)
    other = budget_config("r1", "photos", 3, 30)
    assert other == replace(PRESETS["r1"].make("other"), preset="r1", data="photos", kimg=0.0)
    assert budget_config("", "my-digits", 3, 30).net.latent == 128
    grey = budget_config("", "photos", 1, 5)
    assert grey == replace(PRESETS["dcgan"].make("mnist"), preset="dcgan", data="photos", kimg=0.0)
    np.savez("few.npz", images=np.zeros((70, 32, 32, 3), np.uint8))
    assert main("train --data few.npz --minutes 5 --batch 8 --net.width 4 --dry-run".split()) == 0
    out = capsys.readouterr().out
    assert "batch: 8\n" in out
    assert "decay_from: 0.5\n" in out
