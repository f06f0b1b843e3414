"""What a set is recognised as: splits, classes, what is left out; in whatever form it comes."""

import bz2
import gzip
import json
import struct
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ganfast.data import open_data, recognise
from ganfast.data.source import RULES
from ganfast.errors import InputError

RNG = np.random.default_rng(0)


def ppm(number):
    """A picture 8x8 of one colour, which is its number."""
    return b"P6 8 8 255\n" + bytes([number // 256, number % 256, 7]) * 64


def numbers(pack):
    return [int(image[0, 0, 0]) * 256 + int(image[1, 0, 0]) for image in pack.images]


def in_folder(path, files):
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return str(path)


def in_zip(path, files, rename=lambda name: name):
    with zipfile.ZipFile(path.with_suffix(".zip"), "w") as archive:
        for name, data in files.items():
            archive.writestr(rename(name), data)
    return str(path.with_suffix(".zip"))


def in_enclosed_zip(path, files):
    junk = {"../__MACOSX/a/._0.ppm": b"junk", ".DS_Store": b"junk"}
    return in_zip(path, files | junk, lambda name: f"set/{name}".replace("set/../", ""))


def in_zip_of_windows(path, files):
    junk = {"__MACOSX/a/._0.ppm": b"junk", "a/._0.ppm": b"junk"}
    return in_zip(path, files | junk, lambda name: name.replace("/", "\\"))


FORMS = [in_folder, in_zip, in_enclosed_zip, in_zip_of_windows]
forms = pytest.mark.parametrize("form", FORMS)


def tree(*names):
    return {name: ppm(number) for number, name in enumerate(names)}


def named(pack):
    """Number of each picture -> the name of its class."""
    return dict(zip(numbers(pack), (pack.info.classes[k] for k in pack.labels), strict=True))


def refusal(call, *args, **kwargs):
    with pytest.raises(InputError) as caught:
        call(*args, **kwargs)
    return str(caught.value)


# ---- folders and zips ----


@forms
def test_folders_train_val_and_test_are_splits_of_the_same_classes(tmp_path, form):
    names = ["Train/dog/0.ppm", "Train/cat/1.ppm", "Train/cat/2.ppm", "valid/dog/3.ppm"]
    names += ["test/ant/4.ppm", "test/dog/5.ppm", "logo.ppm"]
    path = form(tmp_path / "set", tree(*names))
    packs = {s: open_data(path, size=8, split=s, cache=tmp_path) for s in ("train", "val", "test")}
    assert named(packs["train"]) == {0: "dog", 1: "cat", 2: "cat"}
    assert named(packs["val"]) == {3: "dog"}
    assert named(packs["test"]) == {4: "ant", 5: "dog"}
    assert packs["train"].info.classes == packs["val"].info.classes == ("cat", "dog")
    assert packs["test"].info.classes == ("cat", "dog", "ant"), "one number in every split"
    said = packs["train"].info.recognised
    assert "(3 train pictures 8x8, 2 classes by sub-folder: cat, dog)" in said
    assert said.endswith(
        "; also 2 test pictures, 1 val picture; left out: 1 picture outside of the sub-folders"
    )
    assert len(open_data(path, size=8, split="all", cache=tmp_path).images) == 6
    assert recognise(path).splits == ("train", "test", "val", "all")


@forms
@pytest.mark.parametrize("names", [("train", "bus"), ("train", "tram", "test")])
def test_a_class_called_train_among_others_is_a_class(tmp_path, form, names):
    path = form(tmp_path / "set", tree(*(f"{name}/{i}.ppm" for name in names for i in range(2))))
    pack = open_data(path, size=8, cache=tmp_path)
    assert pack.info.classes == tuple(sorted(names))
    assert pack.info.split == "all"


@forms
@pytest.mark.parametrize("many", [1, 45])
@pytest.mark.parametrize("outside", [0, 1, 2, 3, 5])
def test_a_few_pictures_beside_the_classes_are_left_out_and_counted(tmp_path, form, many, outside):
    """One, or one in twenty. Where there are more the folders are no classes, and that is said."""
    names = [f"{folder}/{i}.ppm" for folder in "ab" for i in range(many)]
    path = form(tmp_path / "set", tree(*names, *(f"x{i}.ppm" for i in range(outside))))
    pack = open_data(path, size=8, cache=tmp_path)
    if outside <= max(1, (2 * many + outside) // 20):
        assert pack.info.classes == ("a", "b")
        assert sorted(numbers(pack)) == list(range(2 * many))
        s = "" if outside == 1 else "s"
        assert (f"left out: {outside} picture{s} outside" in pack.info.recognised) == (outside > 0)
    else:
        assert pack.labels is None
        assert len(pack.images) == 2 * many + outside
        assert f"as {outside} pictures of them lie outside of sub-folders" in pack.info.recognised


@forms
@pytest.mark.parametrize("labels", [[2, 0, 0, 2, 5], None])
def test_the_labels_of_stylegan_count_and_its_folders_do_not(tmp_path, form, labels):
    names = [f"0000{i // 2}/img{i:08d}.ppm" for i in range(5)]
    pairs = labels and [[name, label] for name, label in zip(names, labels, strict=True)]
    files = tree(*names) | {"dataset.json": json.dumps({"labels": pairs}).encode()}
    pack = open_data(form(tmp_path / "set", files), size=8, cache=tmp_path)
    assert sorted(numbers(pack)) == list(range(5))
    if labels:
        assert named(pack) == dict(enumerate(map(str, labels)))
        assert "3 classes by dataset.json: 0, 2, 5" in pack.info.recognised
    else:
        assert pack.labels is None
        assert "no classes, as dataset.json gives none" in pack.info.recognised


def test_other_labels_make_another_pack_and_pictures_without_one_are_counted(tmp_path):
    files = tree("a/0.ppm", "a/1.ppm", "b/2.ppm")
    for labels in ([0, 1], [1, 0]):
        pairs = [["a/0.ppm", labels[0]], ["b/2.ppm", labels[1]]]
        files["dataset.json"] = json.dumps({"labels": pairs}).encode()
        pack = open_data(in_folder(tmp_path / "set", files), size=8, cache=tmp_path)
        assert named(pack) == {0: str(labels[0]), 2: str(labels[1])}
        assert pack.info.recognised.endswith("left out: 1 picture without a label in dataset.json")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"other": 1}, "2 classes by sub-folder: a, b"),
        ([1, 2], "2 classes by sub-folder: a, b"),
        ({"labels": [["a/0.ppm", [0.1, 0.2]]]}, "as dataset.json gives no class numbers of them"),
        ({"labels": [["elsewhere.png", 1]]}, "as dataset.json gives no class numbers of them"),
    ],
)
def test_a_dataset_json_that_names_no_classes_is_no_harm(tmp_path, content, expected):
    files = tree("a/0.ppm", "b/1.ppm") | {"dataset.json": json.dumps(content).encode()}
    assert expected in recognise(in_folder(tmp_path / "set", files)).describe()


@pytest.mark.parametrize(
    "content", [b"{", b"[" * 10**6, b'{"labels": 3}', b'{"labels": [[[], 1]]}']
)
def test_a_damaged_dataset_json_is_named(tmp_path, content):
    path = in_folder(tmp_path / "set", tree("a/0.ppm") | {"dataset.json": content})
    assert "dataset.json in" in refusal(recognise(path).describe)


@pytest.mark.parametrize("restart", [True, False])
def test_folders_that_only_number_the_pictures_are_no_classes(tmp_path, restart):
    """FFHQ's 00000 and 01000 hold pictures numbered on; people's numbers each begin again."""
    names = [f"{i // 4 * 1000:05d}/{i % 4 if restart else i:05d}.ppm" for i in range(12)]
    pack = open_data(in_folder(tmp_path / "set", tree(*names)), size=8, cache=tmp_path)
    assert pack.info.classes == (("00000", "01000", "02000") if restart else ())
    assert ("only number them" in pack.info.recognised) != restart


@forms
def test_files_that_are_no_pictures_are_counted_by_their_ending(tmp_path, form):
    other = dict.fromkeys(["a/1.HEIC", "a/2.heic", "b.jfif", "LICENSE"], b"x")
    path = form(tmp_path / "set", tree("a/0.ppm") | other)
    assert "left out: 2 .heic, 1 .jfif, 1 without ending" in recognise(path).describe()
    assert "it holds 1 .jfif" in refusal(
        recognise(form(tmp_path / "none", {"b.jfif": b"x"})).describe
    )


# ---- classes ----


@settings(max_examples=40, deadline=None)
@given(
    train=st.lists(st.integers(0, 12), min_size=1, max_size=8),
    test=st.lists(st.integers(0, 12), min_size=1, max_size=8),
    offset=st.sampled_from([0, 1, 900]),
    dtype=st.sampled_from(["int64", "uint16"]),
    rules=st.sampled_from([1, RULES]),
)
def test_only_labels_of_pictures_are_classes_and_keep_their_number_in_every_split(
    tmp_path_factory, train, test, offset, dtype, rules
):
    path = tmp_path_factory.mktemp("labels") / "set.npz"
    given = {"train": np.array(train) + offset, "test": (np.array(test) + offset).astype(dtype)}
    arrays = {f"y_{split}": labels for split, labels in given.items()}
    arrays |= {f"x_{s}": np.zeros((len(ys), 8, 8), np.uint8) for s, ys in given.items()}
    np.savez(path, **arrays)
    packs = {s: open_data(str(path), split=s, cache=path.parent, rules=rules) for s in given}
    for split, labels in given.items():
        names = packs[split].info.classes
        assert [names[k] for k in packs[split].labels] == [*map(str, labels)]
    names = packs["train"].info.classes
    if rules == 1:  # as runs of earlier versions have them
        assert names == tuple(map(str, range(max(train) + offset + 1)))
    else:
        assert names == tuple(map(str, np.unique(given["train"])))
        assert packs["test"].info.classes[: len(names)] == names


def test_rules_that_no_version_has_are_refused(tmp_path):
    np.save(tmp_path / "set.npy", PICTURES)
    for rules in (0, RULES + 1, "2", None):
        message = refusal(open_data, str(tmp_path / "set.npy"), cache=tmp_path, rules=rules)
        assert f"rules {rules!r}" in message


# ---- arrays ----

PICTURES = RNG.integers(0, 256, (9, 8, 8, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    "names", ["X y", "x Y", "images targets", "data labels", "train_images train_labels"]
)
@pytest.mark.parametrize("labels", [np.arange(9) % 3, np.array(list("abc"))[np.arange(9) % 3]])
def test_the_usual_names_of_pictures_and_labels_are_known(tmp_path, names, labels):
    first, second = names.split()
    np.savez(tmp_path / "a.npz", **{first: PICTURES, second: labels})
    pack = open_data(str(tmp_path / "a.npz"), cache=tmp_path)
    np.testing.assert_array_equal(pack.images, PICTURES.transpose(0, 3, 1, 2))
    assert [pack.info.classes[k] for k in pack.labels] == [*map(str, labels)]


def test_the_splits_of_medmnist(tmp_path):
    arrays, counts = {}, {"train": 4, "val": 2, "test": 3}
    for first, (split, count) in zip((0, 4, 6), counts.items(), strict=True):
        arrays[f"{split}_images"] = PICTURES[first : first + count]
        arrays[f"{split}_labels"] = np.arange(count)[:, None].astype(np.uint8)
    np.savez(tmp_path / "pathmnist.npz", **arrays)
    path = str(tmp_path / "pathmnist.npz")
    for split, count in counts.items():
        pack = open_data(path, split=split, cache=tmp_path)
        expected = arrays[f"{split}_images"].transpose(0, 3, 1, 2)
        np.testing.assert_array_equal(pack.images, expected)
        assert pack.labels.tolist() == list(range(count))
    said = recognise(path).describe()
    assert said.endswith("4 classes); also 3 test pictures, 2 val pictures")


@pytest.mark.parametrize(
    "labels", [np.eye(9)[:, :3], np.linspace(0, 1, 9), np.arange(4), np.arange(9) * 10**5]
)
def test_an_array_y_that_names_no_classes_is_said_and_no_harm(tmp_path, labels):
    np.savez(tmp_path / "a.npz", X=PICTURES, y=labels)
    pack = open_data(str(tmp_path / "a.npz"), cache=tmp_path)
    assert pack.labels is None
    assert f"no classes, as y ({labels.dtype} {labels.shape}) names none" in pack.info.recognised


@settings(max_examples=30, deadline=None)
@given(
    low=st.sampled_from([0, -1]),
    errors=st.lists(st.floats(-0.49 / 255, 0.49 / 255), min_size=9, max_size=9),
)
def test_a_rounding_outside_of_the_range_of_floats_changes_no_byte(tmp_path_factory, low, errors):
    folder = tmp_path_factory.mktemp("floats")
    grey = PICTURES[..., 0].copy()
    grey[:, 0, 0], grey[:, 0, 1] = 0, 255
    half = 1 - low  # an error of half a grey is as large as the range
    floats = low + grey / 255 * half
    floats[:, 0, :2] += np.array(errors)[:, None] * half / 2
    np.save(folder / "a.npy", floats)
    pack = open_data(str(folder / "a.npy"), cache=folder)
    assert f"floats in [{low}, 1]" in pack.info.recognised
    np.testing.assert_array_equal(pack.images[:, 0], grey)
    floats[3, 2, 2] = 1.003
    np.save(folder / "a.npy", floats)
    assert "to 1.003: scale them" in refusal(open_data, str(folder / "a.npy"), cache=folder)


# ---- IDX and USPS ----

GREY = RNG.integers(0, 256, (6, 9, 9), dtype=np.uint8)


def idx(array, kind=8):
    shape = struct.pack(f">{array.ndim}I", *array.shape)
    return bytes([0, 0, kind, array.ndim]) + shape + array.tobytes()


def emnist(folder, name="emnist-letters-", test="test"):
    folder.mkdir(exist_ok=True)
    for split, rows in (("train", slice(4)), (test, slice(4, 6))):
        labels = np.arange(1, 7, dtype=np.uint8)[rows]
        stem = folder / f"{name}{split}"
        (stem.with_name(f"{stem.name}-images-idx3-ubyte.gz")).write_bytes(
            gzip.compress(idx(GREY[rows]))
        )
        (stem.with_name(f"{stem.name}-labels-idx1-ubyte")).write_bytes(idx(labels))
    return str(folder)


@pytest.mark.parametrize("inside", ["emnist", "EMNIST/raw", "emnist/gzip"])
def test_emnist_is_read_under_its_own_names_and_turned_upright_when_asked(tmp_path, inside):
    (tmp_path / inside).mkdir(parents=True)
    emnist(tmp_path / inside)
    path = str(tmp_path / inside.split("/")[0])
    pack = open_data(path, cache=tmp_path)
    assert pack.info.classes == ("1", "2", "3", "4"), "letters are numbered from 1"
    assert pack.labels.tolist() == [0, 1, 2, 3]
    np.testing.assert_array_equal(pack.images[:, 0], GREY[:4])
    turned = open_data(path, transpose=True, cache=tmp_path)
    np.testing.assert_array_equal(turned.images[:, 0], GREY[:4].transpose(0, 2, 1))
    assert turned.info.source_hash != pack.info.source_hash, "scores and runs tell them apart"
    test = open_data(path, split="test", cache=tmp_path)
    assert [test.info.classes[k] for k in test.labels] == ["5", "6"]
    assert "; also 2 test pictures" in pack.info.recognised


def test_of_several_sets_in_a_folder_one_is_named(tmp_path):
    emnist(tmp_path / "emnist")
    path = emnist(tmp_path / "emnist", "emnist-digits-")
    message = refusal(open_data, path, cache=tmp_path)
    assert "several sets (emnist-digits, emnist-letters)" in message
    assert f"give {path}/emnist-digits" in message
    assert open_data(f"{path}/emnist-digits", cache=tmp_path).info.name == "emnist-digits"
    assert "does not exist" in refusal(open_data, f"{path}/emnist-mnist", cache=tmp_path)
    emnist(tmp_path / "emnist", "", "t10k")  # MNIST's own names stand for the folder
    assert recognise(path).name == "emnist"


def test_qmnist_has_the_class_first_among_eight_labels(tmp_path):
    labels = RNG.integers(0, 9, (6, 8)).astype(">i4")
    labels[:, 0] = [0, 1, 2, 1, 0, 2]
    (tmp_path / "q").mkdir()
    for name, data in (("images-idx3-ubyte", idx(GREY)), ("labels-idx2-int", idx(labels, 12))):
        (tmp_path / "q" / f"qmnist-train-{name}.gz").write_bytes(gzip.compress(data))
    pack = open_data(str(tmp_path / "q"), cache=tmp_path)
    assert pack.labels.tolist() == [0, 1, 2, 1, 0, 2]
    (tmp_path / "q" / "qmnist-train-labels-idx2-int.gz").write_bytes(idx(labels, 12)[:-4])
    assert "6x8 = 48 values" in refusal(open_data, str(tmp_path / "q"), cache=tmp_path)


def test_idx_pictures_without_labels_are_a_set_without_classes(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train-images-idx3-ubyte").write_bytes(idx(GREY))
    pack = open_data(str(tmp_path / "set"), cache=tmp_path)
    assert pack.labels is None
    assert "no classes, as there is no train-labels-idx1-ubyte" in pack.info.recognised


@pytest.mark.parametrize("given", ["usps", "usps/usps.bz2"])
def test_usps_is_read_as_libsvm_has_it(tmp_path, given):
    (tmp_path / "usps").mkdir()
    pictures = RNG.integers(0, 256, (5, 16, 16))
    for name, rows in (("usps.bz2", range(3)), ("usps.t.bz2", range(3, 5))):
        lines = [
            f"{row + 1} "
            + " ".join(f"{i}:{v / 127.5 - 1:.6f}" for i, v in enumerate(pictures[row].flat, 1))
            for row in rows
        ]
        (tmp_path / "usps" / name).write_bytes(bz2.compress("\n".join(lines).encode()))
    path = str(tmp_path / given)
    train, test = (open_data(path, split=s, cache=tmp_path) for s in ("train", "test"))
    np.testing.assert_array_equal(train.images[:, 0], pictures[:3])
    np.testing.assert_array_equal(test.images[:, 0], pictures[3:])
    assert [train.info.classes[k] for k in train.labels] == ["0", "1", "2"]
    assert [test.info.classes[k] for k in test.labels] == ["3", "4"]
    (tmp_path / "usps" / "usps.bz2").write_bytes(b"BZh91AY")
    assert "usps.bz2 is no readable LIBSVM file" in refusal(open_data, path, cache=tmp_path)


# ---- what earlier versions made ----


def test_a_set_that_is_read_as_before_keeps_its_pack(tmp_path):
    """The names that version 0.1 gave these packs."""
    in_zip(tmp_path / "set", tree("a/0.ppm", "b/1.ppm"))
    (tmp_path / "idx").mkdir()
    pictures = np.arange(162, dtype=np.uint8).reshape(2, 9, 9)
    (tmp_path / "idx" / "train-images-idx3-ubyte").write_bytes(idx(pictures))
    (tmp_path / "idx" / "train-labels-idx1-ubyte").write_bytes(idx(np.arange(2, dtype=np.uint8)))
    for data in (tmp_path / "set.zip", tmp_path / "idx", "digits"):
        assert open_data(str(data), size=9, cache=tmp_path).info.rules == 1
    names = sorted(path.name for path in (tmp_path / "packs").iterdir())
    assert names == [
        "digits-9x9x1-d0cdb1e8b5bd",
        "idx-9x9x1-4adbed0217c1",
        "set-9x9x3-2bfe2179f923",
    ]
