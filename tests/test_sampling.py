"""Sampling: picture (seed, index) is one picture for good; what can be asked for, and refusals."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ganfast import preset_config, train
from ganfast.cli import main
from ganfast.config import LogConfig, NetConfig
from ganfast.errors import InputError
from ganfast.images import grid
from ganfast.latents import latents
from ganfast.runs.run import Run
from ganfast.sampling import Request, between, class_number, parse_labels, sample_to_files

NAMES = ("circle", "7", "Square", "0")  # "7" is class 1 and "0" class 3: names win over numbers


def trained(folder: Path, **changes) -> Run:
    """A few steps on noise in four named classes: random pictures are as easy to tell apart."""
    random = np.random.default_rng(0)
    for name in NAMES:
        for i in range(8):
            path = folder / "data" / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(path)
    config = replace(
        preset_config("wgan-gp"),
        data=str(folder / "data"),
        out=str(folder / "run"),
        kimg=0.32,
        batch=16,
        size=16,
        ema_kimg=0.0,
        net=NetConfig(width=4, latent=8),
        log=LogConfig(every=1, sample_kimg=1, save_kimg=0.08, tensorboard=False),
        **changes,
    )
    return train(config, quiet=True)


@pytest.fixture(scope="module")
def conditional(tmp_path_factory) -> Run:
    run = trained(tmp_path_factory.mktemp("conditional"), conditional="projection")
    assert sorted(run.classes) == sorted(NAMES)
    return run


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Run:
    return trained(tmp_path_factory.mktemp("plain"), conditional="no")


def ask(run: Run, **options) -> list[Path]:
    return sample_to_files(Request(run=str(run.folder), **options))


# One picture for good


@pytest.mark.parametrize("kind", ["plain", "conditional"])
def test_a_picture_is_the_same_alone_in_a_batch_and_at_any_offset(kind, request):
    run = request.getfixturevalue(kind)
    together = run.sample(100, seed=7)
    assert (together.dtype, together.shape) == (np.uint8, (100, 16, 16, 3))
    assert len(np.unique(together.reshape(100, -1), axis=0)) == 100, (
        "equal pictures would show nothing"
    )
    for index in (0, 1, 5, 31, 32, 63, 64, 99):  # both sides of the chunks of 32
        np.testing.assert_array_equal(run.sample(1, seed=7, first=index)[0], together[index])
    for first, n in ((3, 33), (31, 2), (50, 50)):
        np.testing.assert_array_equal(
            run.sample(n, seed=7, first=first), together[first : first + n]
        )


def test_a_picture_is_the_same_from_a_run_opened_anew_and_moved(conditional, tmp_path):
    moved = shutil.copytree(conditional.folder, tmp_path / "elsewhere")
    np.testing.assert_array_equal(Run.open(moved).sample(5, seed=3), conditional.sample(5, seed=3))


def test_other_seeds_give_other_pictures(plain):
    assert all(
        (plain.sample(4, seed=seed) != plain.sample(4, seed=0)).any((1, 2, 3)).all()
        for seed in (1, 2**64 - 1)
    )


def test_seeds_and_indices_do_not_run_into_each_other(plain):
    """A generator seeded with seed + index would repeat itself along this diagonal."""
    assert (plain.sample(1, seed=5, first=1) != plain.sample(1, seed=6, first=0)).any()


def test_the_class_of_a_picture_goes_with_its_index(conditional):
    pictures, classes = conditional.sample_labelled(100, seed=7)
    assert set(classes) == {0, 1, 2, 3}
    alone = [conditional.sample_labelled(1, seed=7, first=index)[1][0] for index in range(20)]
    assert alone == classes[:20].tolist()
    for index in (0, 40):  # asking for the class that came at random gives the same picture
        asked = conditional.sample(1, seed=7, first=index, labels=[int(classes[index])])
        np.testing.assert_array_equal(asked[0], pictures[index])


# psi


def test_psi_zero_is_one_picture_and_one_is_the_default(plain):
    still = plain.sample(40, psi=0)
    assert (still == still[0]).all()
    np.testing.assert_array_equal(plain.sample(3, psi=1), plain.sample(3))


def test_psi_turns_variety_up(plain):
    spread = [plain.sample(64, psi=psi).astype(float).std(0).mean() for psi in (0, 0.3, 0.7, 1, 2)]
    assert spread[0] == 0
    assert spread == sorted(spread)
    assert len(set(spread)) == 5


@pytest.mark.parametrize("psi", [-0.01, 2.01, float("nan"), float("inf")])
def test_psi_out_of_range_is_refused_with_the_range(plain, psi):
    with pytest.raises(InputError, match=f"psi is {psi}; expected 0 .* to 2"):
        plain.sample(1, psi=psi)


# Classes


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        ("circle", ["circle"]),
        ("CIRCLE, square", ["circle", "Square"]),
        ("7", ["7"]),
        ("2", None),
        ("0,circle,1", ["0", "circle", None]),
    ],
)
def test_classes_are_asked_for_by_number_or_name(conditional, asked, names):
    words = [word.strip() for word in asked.split(",")]
    names = names or [None] * len(words)
    wanted = [
        int(word) if name is None else conditional.classes.index(name)
        for word, name in zip(words, names, strict=True)
    ]
    assert parse_labels(conditional, Request(run="", labels=asked)) == wanted


def test_classes_asked_for_come_in_turn_by_index(conditional):
    _, classes = conditional.sample_labelled(7, labels=[2, 0, 1])
    assert classes.tolist() == [2, 0, 1, 2, 0, 1, 2]
    _, later = conditional.sample_labelled(3, labels=[2, 0, 1], first=4)
    assert later.tolist() == [0, 1, 2], "picture 4 is of the same class whoever comes before it"


def test_balanced_draws_every_class_equally_often(conditional, tmp_path):
    ask(conditional, n=40, balanced=True, out=str(tmp_path / "balanced.npz"))
    with np.load(tmp_path / "balanced.npz") as file:
        assert np.bincount(file["labels"]).tolist() == [10] * 4
    _, at_random = conditional.sample_labelled(40)
    assert np.bincount(at_random, minlength=4).tolist() != [10] * 4, (
        "chance would have done as well"
    )


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ("4", "there is no class 4; .* has 4: 0 = .*3 = "),
        ("triangle", "there is no class 'triangle'; .* has 0 = .*3 = "),
        ("1,,2", "there is no class ''"),
        ("-1", "there is no class '-1'"),
        ("1.5", "there is no class '1.5'"),
        ("²", "there is no class '²'"),
    ],
)
def test_a_class_that_is_not_there_is_answered_with_those_that_are(conditional, labels, said):
    with pytest.raises(InputError, match=said):
        ask(conditional, labels=labels)


@pytest.mark.parametrize(
    "options", [{"labels": "3"}, {"labels": "circle"}, {"balanced": True}], ids=str
)
def test_a_run_without_classes_refuses_to_draw_one(plain, options, tmp_path):
    with pytest.raises(InputError, match="was trained without classes.*leave --"):
        ask(plain, **options, out=str(tmp_path / "no.png"))
    assert list(tmp_path.iterdir()) == []


def test_labels_and_balanced_contradict_each_other(conditional):
    with pytest.raises(InputError, match="--labels or --balanced, not both"):
        ask(conditional, labels="1", balanced=True)


def test_a_requested_class_changes_the_picture_and_nothing_else_does(conditional):
    by_class = [conditional.sample(1, seed=1, labels=[k]) for k in range(4)]
    assert all((one != by_class[0]).any() for one in by_class[1:])


# Files


def test_npz_holds_pictures_classes_and_where_they_came_from(conditional, tmp_path):
    written = ask(
        conditional, n=9, seed=5, first=20, psi=0.5, out=str(tmp_path / "new" / "some.npz")
    )
    assert written == [tmp_path / "new" / "some.npz"]
    pictures, classes = conditional.sample_labelled(9, seed=5, first=20, psi=0.5)
    with np.load(written[0], allow_pickle=False) as file:
        np.testing.assert_array_equal(file["images"], pictures)
        np.testing.assert_array_equal(file["labels"], classes)
        assert (file["seed"], file["first"], file["psi"]) == (5, 20, 0.5)


def test_npz_of_a_run_without_classes_has_no_labels(plain, tmp_path):
    ask(plain, n=2, out=str(tmp_path / "some.npz"))
    with np.load(tmp_path / "some.npz") as file:
        assert set(file) == {"images", "seed", "first", "psi"}


def test_a_sampled_npz_can_be_trained_on(conditional, tmp_path):
    from ganfast.data import open_data

    ask(conditional, n=40, balanced=True, out=str(tmp_path / "more.npz"))
    pack = open_data(str(tmp_path / "more.npz"))
    assert (len(pack.images), len(pack.info.classes)) == (40, 4)


def test_a_folder_gets_one_png_a_picture_named_by_seed_index_and_class(conditional, tmp_path):
    assert ask(
        conditional, n=3, seed=5, first=20, labels="1,3", out=str(tmp_path / "pictures")
    ) == [tmp_path / "pictures"]
    names = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    expected = "seed5_000020_class1.png seed5_000021_class3.png seed5_000022_class1.png".split()
    assert names == expected
    for i, name in enumerate(names):
        alone = conditional.sample(1, seed=5, first=20 + i, labels=[1, 3])
        np.testing.assert_array_equal(
            np.asarray(Image.open(tmp_path / "pictures" / name)), alone[0]
        )


def test_a_folder_of_a_run_without_classes_names_none(plain, tmp_path):
    ask(plain, n=1, out=str(tmp_path / "pictures"))
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["seed0_000000.png"]


@pytest.mark.parametrize(
    "options",
    [{"out": "sheet.png"}, {"grid": "sheet.png"}, {"out": "some.npz", "grid": "sheet.png"}],
    ids=str,
)
def test_a_sheet_holds_the_pictures_row_by_row(options, plain, tmp_path):
    written = ask(
        plain, n=10, columns=4, **{name: str(tmp_path / value) for name, value in options.items()}
    )
    assert {path.name for path in written} == set(options.values())
    expected = grid(plain.sample(10), 4).repeat(3, 0).repeat(3, 1)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "sheet.png")), expected)
    assert expected.shape == (3 * (3 * 18 + 2), 3 * (4 * 18 + 2), 3)


def test_without_a_place_a_sheet_goes_into_the_run(plain):
    assert ask(plain, n=4, seed=9) == [plain.folder / "samples" / "seed9.png"]
    assert Image.open(plain.folder / "samples" / "seed9.png").size == (3 * (2 * 18 + 2),) * 2


@pytest.mark.parametrize(
    ("options", "columns"),
    [({"balanced": True}, 4), ({"labels": "1,2,0"}, 3), ({"labels": "1"}, 4), ({}, 4)],
    ids=str,
)
def test_a_sheet_of_classes_has_a_column_each(conditional, options, columns, tmp_path):
    ask(conditional, n=12, out=str(tmp_path / "sheet.png"), **options)
    assert Image.open(tmp_path / "sheet.png").width == 3 * (columns * 18 + 2)


# Interpolation


def test_interpolation_begins_and_ends_with_the_pictures_of_its_latents(plain, tmp_path):
    ask(plain, n=3, interpolate=5, seed=2, out=str(tmp_path / "walk.npz"))
    with np.load(tmp_path / "walk.npz") as file:
        walk = file["images"].reshape(3, 5, 16, 16, 3)
    ends = plain.sample(4, seed=2)
    np.testing.assert_array_equal(walk[:, 0], ends[:3])
    # cos(pi / 2) is 6e-17, which may move a value over a rounding edge
    np.testing.assert_allclose(walk[:, -1].astype(int), ends[1:].astype(int), atol=1)
    for row in walk:
        assert len(np.unique(row.reshape(5, -1), axis=0)) == 5, "no step stands still"


def test_a_row_of_an_interpolation_is_of_one_class(conditional, tmp_path):
    ask(conditional, n=2, interpolate=3, labels="1,3", out=str(tmp_path / "walk.npz"))
    with np.load(tmp_path / "walk.npz") as file:
        walk = file["images"].reshape(2, 3, 16, 16, 3)
    z = latents(0, np.arange(3), 8)
    for row, label in enumerate((1, 3)):
        middle = conditional.draw(between(z[row], z[row + 1], 3), [label] * 3)
        np.testing.assert_array_equal(walk[row], middle)


def test_the_way_between_keeps_the_length_of_its_ends():
    ends = np.eye(2, 16, dtype=np.float32) * 4
    way = between(ends[0], ends[1], 9)
    np.testing.assert_allclose(np.linalg.norm(way, axis=1), 4, rtol=1e-6)
    assert (way.dtype, way.shape) == (np.float32, (9, 16))
    np.testing.assert_array_equal(way[0], ends[0])
    np.testing.assert_allclose(way[-1], ends[1], atol=1e-6)
    np.testing.assert_allclose(way[4], (ends[0] + ends[1]) / 2**0.5, rtol=1e-6)


def test_an_interpolation_is_a_sheet_with_a_row_each(plain, tmp_path):
    ask(plain, n=3, interpolate=5, out=str(tmp_path / "walk.png"))
    assert Image.open(tmp_path / "walk.png").size == (3 * (5 * 18 + 2), 3 * (3 * 18 + 2))


# Which weights


def test_a_checkpoint_is_chosen_by_number_name_or_path(plain):
    kept = sorted(path.name for path in plain.checkpoint_folder.iterdir())
    assert kept == ["000000160", "000000240", "000000320"]
    newest = plain.sample(2)
    np.testing.assert_array_equal(newest, plain.sample(2, checkpoint="320"))
    older = plain.sample(2, checkpoint="160")
    assert (older != newest).any()
    for name in ("000000160", str(plain.checkpoint_folder / "000000160")):
        np.testing.assert_array_equal(plain.sample(2, checkpoint=name), older)
    np.testing.assert_array_equal(plain.sample(2), newest, "the choice stuck")


@pytest.mark.parametrize("which", ["77", "latest", "²"])
def test_an_unknown_checkpoint_is_answered_with_those_that_are_there(plain, which):
    with pytest.raises(
        InputError, match=f"no checkpoint {which} in .*; there: 000000160, 000000240, 000000320"
    ):
        plain.sample(1, checkpoint=which)


def test_a_folder_that_is_no_checkpoint_says_so(plain, tmp_path):
    with pytest.raises(InputError, match="is not a checkpoint of ganfast"):
        plain.sample(1, checkpoint=str(tmp_path))


def test_a_checkpoint_of_another_run_is_refused(plain, conditional):
    with pytest.raises(InputError, match="is of another run than .*conditional was"):
        plain.sample(1, checkpoint=str(conditional.latest()))


def test_a_run_without_a_checkpoint_says_how_to_get_one(plain, tmp_path):
    bare = shutil.copytree(
        plain.folder, tmp_path / "bare", ignore=shutil.ignore_patterns("checkpoints")
    )
    with pytest.raises(
        InputError, match="no checkpoint yet; train it further with `ganfast train --out "
    ):
        Run.open(bare).sample(1)


def test_a_folder_that_is_no_run_is_answered_with_the_runs_there_are(plain, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        InputError, match="nowhere is not a run directory.*train one with `ganfast train`"
    ):
        Run.open("nowhere")
    shutil.copytree(plain.folder, tmp_path / "runs" / "noise")
    with pytest.raises(InputError, match="nowhere is not a run directory.*runs here: runs/noise"):
        Run.open("nowhere")


# What cannot be asked for


@pytest.mark.parametrize("mode", [{}, {"interpolate": 3}], ids=["pictures", "interpolation"])
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"n": 0}, "n is 0; expected"),
        ({"n": -3}, "n is -3; expected"),
        ({"seed": -1}, "seed is -1; expected 0 or more"),
        ({"seed": 2**64}, f"seed is {2**64}; expected .* below"),
        ({"first": -1}, "first is -1; expected"),
        ({"first": 2**63 - 5}, f"first is {2**63 - 5}; expected"),
        ({"psi": 3.0}, "psi is 3.0; expected"),
        ({"columns": -2}, "columns is -2; expected"),
        ({"device": "cuda:99"}, "device is 'cuda:99'"),
        ({"out": "sheet.jpg"}, "sheet.jpg: .*png.*npz"),
    ],
    ids=str,
)
def test_what_names_no_picture_is_refused_in_both_modes(plain, mode, options, said):
    with pytest.raises(InputError, match=said):
        ask(plain, **{"n": 6, **mode, **options})


@pytest.mark.parametrize("steps", [1, -2])
def test_an_interpolation_has_two_ends(plain, steps):
    with pytest.raises(InputError, match=f"interpolate is {steps}; expected 2 or more"):
        ask(plain, interpolate=steps)


def test_more_pictures_than_memory_says_how_to_get_them(plain):
    with pytest.raises(InputError, match="n is 100000000000000: .*--first"):
        ask(plain, n=10**14)


@pytest.mark.parametrize("out", ["file/sheet.png", "file/some.npz", "file/folder", "file"])
def test_a_place_that_cannot_be_written_is_bad_input(plain, out, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="cannot be written"):
        ask(plain, n=1, out=str(tmp_path / out))
    assert (tmp_path / "file").read_text() == "mine"


# The command


def test_the_command_prints_what_it_wrote_and_nothing_else(conditional, tmp_path, capsys):
    flags = f"-n 4 --seed 7 --psi 0.7 --labels circle --out {tmp_path / 'a.npz'} --grid".split()
    assert main(["sample", str(conditional.folder), *flags, str(tmp_path / "b.png")]) == 0
    assert capsys.readouterr() == (f"{tmp_path / 'a.npz'}\n{tmp_path / 'b.png'}\n", "")
    with np.load(tmp_path / "a.npz") as file:
        expected = conditional.sample(
            4, seed=7, psi=0.7, labels=[conditional.classes.index("circle")]
        )
        np.testing.assert_array_equal(file["images"], expected)


def test_every_flag_of_the_command_reaches_the_request(monkeypatch):
    asked = []
    monkeypatch.setattr(
        "ganfast.sampling.sample_to_files", lambda request: asked.append(request) or []
    )
    wanted = Request(
        run="r",
        n=3,
        seed=4,
        first=5,
        labels="6",
        balanced=True,
        psi=0.5,
        interpolate=7,
        out="o.png",
        grid="g.png",
        columns=8,
        checkpoint="9",
        device="cpu",
    )
    flags = (
        "-n 3 --seed 4 --first 5 --labels 6 --balanced --psi 0.5 --interpolate 7 "
        "--out o.png --grid g.png --columns 8"
    )
    assert main(["sample", "r", *flags.split(), "--checkpoint", "9", "--device", "cpu"]) == 0
    assert main(["sample", "r"]) == 0
    assert asked == [wanted, Request(run="r")]


# Directions


def test_a_row_walks_along_a_direction_through_its_own_picture(conditional, tmp_path):
    out = tmp_path / "walk.npz"
    ask(conditional, n=3, seed=5, labels="Square", direction=2, strength=2.0, out=str(out))
    with np.load(out) as file:
        images, labels = file["images"], file["labels"]
    assert labels.tolist() == [conditional.classes.index("Square")] * 27
    z, along = latents(5, np.arange(3), 8), conditional.directions()[1]
    moved = np.stack([row + t * along for row in z for t in np.linspace(-2, 2, 9)])
    assert np.array_equal(images, conditional.draw(moved.astype(np.float32), labels))
    own = conditional.sample(3, seed=5, labels=[int(labels[0])])
    assert np.array_equal(images[4::9], own)
    still = tmp_path / "still.npz"
    ask(conditional, n=1, direction=2, strength=0.0, out=str(still))
    with np.load(still) as file:
        assert (file["images"] == file["images"][0]).all()


def test_pictures_of_a_direction_are_named_by_row_and_step(plain, tmp_path):
    ask(plain, n=2, first=4, direction=1, out=str(tmp_path / "steps"))
    names = sorted(path.name for path in (tmp_path / "steps").iterdir())
    assert len(names) == 18
    assert names[0] == "seed0_000004_step000.png"
    assert names[-1] == "seed0_000005_step008.png"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"direction": 9}, r"direction is 9; .* has directions 1 \(the strongest\) to 8"),
        ({"direction": -1}, "direction is -1; "),
        ({"direction": 1, "interpolate": 4}, "give --direction or --interpolate, not both"),
        ({"direction": 1, "strength": float("nan")}, "strength is nan; expected a finite number"),
    ],
)
def test_directions_that_are_not_there_are_refused(plain, options, message):
    with pytest.raises(InputError, match=message):
        ask(plain, n=1, **options)


@pytest.mark.parametrize("first", [0, 1, 990])
@pytest.mark.parametrize("width", [1, 3])
def test_a_number_is_the_name_of_a_class_where_all_names_are_numbers(first, width):
    """Letters are numbered from 1: without this, 0 would draw the first one without a word."""
    names = [f"{first + place:0{width}d}" for place in range(0, 12, 3)]
    for number in range(first - 5, first + 15):
        place = next((k for k, name in enumerate(names) if int(name) == number), None)
        assert class_number(str(number), names) == place
