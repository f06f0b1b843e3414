"""CelebA: the official files, whole or in part, packed or not; attributes; bad tables."""

import gzip
import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from ganfast.data import open_data, recognise
from ganfast.errors import InputError

NAMES = ["000001.jpg", "000002.jpg", "000003.jpg", "000004.jpg", "000005.jpg"]
# Upright like the real ones.
FACES = np.random.default_rng(0).integers(0, 256, (5, 11, 9, 3), dtype=np.uint8)
# Like the original: CRLF, a space after names, one or two before values, two rows without pictures.
VALUES = [" 1 -1  1", "-1  1  1", "-1 -1 -1", " 1  1 -1", "-1 -1  1", "-1 -1 -1", "-1  1 -1"]
ROWS = "".join(f"00000{i}.jpg {values}\r\n" for i, values in enumerate(VALUES, start=1))
ATTRIBUTES = f"7\r\nBald Male Smiling \r\n{ROWS}"
PARTITION = "".join(
    f"00000{i}.jpg {part}\r\n" for i, part in enumerate([0, 0, 1, 0, 2, 2, 2], start=1)
)


def jpg(face):
    file = io.BytesIO()
    # Lossless, so that pixels can be compared; the name does not matter.
    Image.fromarray(face).save(file, "PNG")
    return file.getvalue()


def celeba(folder, *, zipped=False, attributes=ATTRIBUTES, partition=PARTITION, names=NAMES):
    folder.mkdir(exist_ok=True)
    if zipped:
        with zipfile.ZipFile(folder / "img_align_celeba.zip", "w") as archive:
            for name, face in zip(names, FACES, strict=False):
                archive.writestr(f"img_align_celeba/{name}", jpg(face))
    else:
        (folder / "img_align_celeba").mkdir()
        for name, face in zip(names, FACES, strict=False):
            (folder / "img_align_celeba" / name).write_bytes(jpg(face))
    for name, text in (
        ("list_attr_celeba.txt", attributes),
        ("list_eval_partition.txt", partition),
    ):
        if text is not None:
            (folder / name).write_bytes(text.encode())
    return str(folder)


def refusal(call, *args, **kwargs):
    with pytest.raises(InputError) as caught:
        call(*args, **kwargs)
    return str(caught.value)


@pytest.mark.parametrize("zipped", [True, False])
def test_faces_are_cut_to_the_full_width_in_file_name_order(tmp_path, zipped):
    path = celeba(tmp_path / "celeba", zipped=zipped)
    pack = open_data(path, size=9, split="all", cache=tmp_path)
    # (11 - 9) // 2 = 1.
    np.testing.assert_array_equal(pack.images, FACES[:, 1:10].transpose(0, 3, 1, 2))
    expected = ("celeba", "celeba", True, None)
    assert (pack.info.kind, pack.info.name, pack.info.flip, pack.labels) == expected
    assert open_data("celeba", root=tmp_path, cache=tmp_path).images.shape == (3, 3, 64, 64)


@pytest.mark.parametrize("inner", ["img_align_celeba.zip", "img_align_celeba"])
def test_the_pictures_may_be_named_themselves(tmp_path, inner):
    folder = celeba(tmp_path / "x", zipped=inner.endswith("zip"))
    pack = open_data(f"{folder}/{inner}", size=8, attributes=["Male"], cache=tmp_path)
    assert pack.labels.tolist() == [0, 1, 1]
    assert pack.info.name == "celeba"


@pytest.mark.parametrize(
    ("split", "kept"), [("train", [0, 1, 3]), ("val", [2]), ("test", [4]), ("all", range(5))]
)
def test_a_split_keeps_the_pictures_of_its_part(tmp_path, split, kept):
    pack = open_data(celeba(tmp_path / "celeba"), size=9, split=split, cache=tmp_path)
    np.testing.assert_array_equal(pack.images, FACES[kept, 1:10].transpose(0, 3, 1, 2))
    assert pack.info.split == split


@pytest.mark.parametrize(
    ("attributes", "classes", "labels"),
    [
        ("Male", "not Male|Male", "01010"),
        ("Male Bald", "not Male, not Bald|not Male, Bald|Male, not Bald|Male, Bald", "12030"),
        ("Bald Male", "not Bald, not Male|not Bald, Male|Bald, not Male|Bald, Male", "21030"),
    ],
)
def test_attributes_count_in_binary_the_first_one_most(tmp_path, attributes, classes, labels):
    attributes = tuple(attributes.split())
    pack = open_data(
        celeba(tmp_path / "celeba"), attributes=attributes, split="all", size=8, cache=tmp_path
    )
    names = classes.split("|")
    assert sorted(pack.info.classes) == sorted(names)
    assert pack.info.attributes == attributes
    assert [pack.info.classes[label] for label in pack.labels] == [names[int(k)] for k in labels]


def test_combinations_of_attributes_that_no_picture_has_are_no_classes(tmp_path):
    """Of Bald and Male the training pictures have 10, 01 and 11; a test picture has 00."""
    folder = celeba(tmp_path / "celeba")
    how = {"attributes": ("Bald", "Male"), "size": 8, "cache": tmp_path}
    train, test = (open_data(folder, split=split, **how) for split in ("train", "test"))
    assert train.info.classes == ("not Bald, Male", "Bald, not Male", "Bald, Male")
    assert train.labels.tolist() == [1, 0, 2]
    assert test.info.classes == (*train.info.classes, "not Bald, not Male")
    assert test.labels.tolist() == [3]


@pytest.mark.parametrize("kind", ["gz", "zip"])
def test_the_tables_may_be_compressed(tmp_path, kind):
    folder = celeba(tmp_path / "celeba", attributes=None, partition=None)
    for name, text in (
        ("list_attr_celeba.txt", ATTRIBUTES),
        ("list_eval_partition.txt", PARTITION),
    ):
        if kind == "gz":
            (tmp_path / "celeba" / f"{name}.gz").write_bytes(gzip.compress(text.encode()))
        else:
            with zipfile.ZipFile(tmp_path / "celeba" / f"{name}.zip", "w") as archive:
                archive.writestr(name, text)
    assert open_data(folder, attributes=["Smiling"], size=8, cache=tmp_path).labels.tolist() == [
        1,
        1,
        0,
    ]


@pytest.mark.parametrize("zipped", [True, False])
def test_without_tables_all_faces_are_trained_on_and_only_splits_and_classes_need_one(
    tmp_path, zipped
):
    folder = celeba(tmp_path / "celeba", zipped=zipped, attributes=None, partition=None)
    for split in ("train", "all"):
        pack = open_data(folder, split=split, size=8, cache=tmp_path)
        assert (pack.info.count, pack.info.split, pack.labels) == (5, "all", None)
        assert "(5 pictures from img_align_celeba" in pack.info.recognised
        assert "undivided, as there is no list_eval_partition.txt" in pack.info.recognised
        assert "no classes, as there is no list_attr_celeba.txt)" in pack.info.recognised
    message = refusal(open_data, folder, split="test", cache=tmp_path)
    assert "has no list_eval_partition.txt (nor list_eval_partition.csv" in message
    assert "'test'" in message
    assert "'all'" in message
    message = refusal(open_data, folder, attributes=["Male"], cache=tmp_path)
    assert "list_attr_celeba.txt" in message


def test_the_tables_of_kaggle_say_the_same_as_the_authors(tmp_path):
    """Its pictures lie one folder deeper, its tables have commas and a line of titles."""
    authors = celeba(tmp_path / "authors")
    kaggle = tmp_path / "celeba"
    inner = kaggle / "img_align_celeba" / "img_align_celeba"
    inner.mkdir(parents=True)
    for name, face in zip(NAMES, FACES, strict=True):
        (inner / name).write_bytes(jpg(face))
    for name, titles, rows in (
        ("list_attr_celeba", "image_id,Bald,Male,Smiling", ROWS),
        ("list_eval_partition", "image_id,partition", PARTITION),
    ):
        lines = [",".join(row.split()) for row in rows.splitlines()]
        (kaggle / f"{name}.csv").write_text("\n".join([titles, *lines]) + "\n")
    for split in ("train", "val", "test", "all"):
        how = {"attributes": ["Smiling"], "size": 8, "split": split, "cache": tmp_path}
        expected, pack = open_data(authors, **how), open_data(str(kaggle), **how)
        np.testing.assert_array_equal(pack.images, expected.images)
        assert pack.labels.tolist() == expected.labels.tolist()
        assert pack.info.classes == expected.info.classes
    for name, line in (("list_attr_celeba", "3"), ("list_eval_partition", "4")):
        table = kaggle / f"{name}.csv"
        lines = table.read_text().split("\n")
        lines[int(line) - 1] = "000002.jpg,5"
        table.write_text("\n".join(lines))
        assert f"{name}.csv, line {line} is" in refusal(
            open_data, str(kaggle), **how | {"split": "val"}
        )
        how |= {"attributes": []}


def test_pictures_that_only_the_tables_have_and_a_zip_cut_off_are_said(tmp_path):
    folder = celeba(tmp_path / "celeba", zipped=True)
    said = recognise(folder).describe()
    assert "no classes, as --attributes names none of its 3)" in said
    assert "; also 1 val picture, 1 test picture; left out: 2 pictures of the tables" in said
    archive = tmp_path / "celeba" / "img_align_celeba.zip"
    archive.write_bytes(archive.read_bytes()[:-200])
    assert "was cut off, download" in refusal(open_data, folder, cache=tmp_path)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"attributes": ATTRIBUTES.replace("000004.jpg", "999999.jpg")}, "1 picture without a row"),
        ({"partition": PARTITION.replace("000004.jpg", "999999.jpg")}, "000004.jpg"),
        ({"partition": PARTITION.replace("000002.jpg 0", "000002.jpg 3")}, "'000002.jpg 3'"),
        ({"partition": "<!DOCTYPE html>"}, "a saved web page (HTML)"),
        ({"partition": PARTITION.replace("jpg 0", "jpg 2")}, "no pictures found for split 'train'"),
        ({"attributes": ATTRIBUTES.replace("7", "8", 1)}, "announces 8 rows and has 7"),
        ({"attributes": ATTRIBUTES.replace("-1  1  1", "-1  1")}, "line 4"),
        ({"attributes": ATTRIBUTES.replace("-1  1  1", "-1  7  1")}, "line 4"),
        ({"attributes": "one line"}, "'one line'"),
        ({"attributes": "\0\xff" * 9}, "list_attr_celeba.txt"),
    ],
)
def test_tables_that_do_not_fit_the_pictures_say_where(tmp_path, changes, expected):
    folder = celeba(tmp_path / "celeba", **changes)
    message = refusal(open_data, folder, attributes=["Male"], cache=tmp_path)
    assert expected in message


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        (["Smilng"], "'Smilng' (did you mean Smiling?)"),
        (["Zebra"], "Bald, Male, Smiling"),
        (["Male", "Male"], "Male, Male"),
        ([f"a{i}" for i in range(9)], "at most 8"),
    ],
)
def test_unknown_attributes_are_named_with_what_there_is(tmp_path, attributes, expected):
    assert expected in refusal(
        open_data, celeba(tmp_path / "celeba"), attributes=attributes, cache=tmp_path
    )


def test_two_pictures_of_one_name_are_refused(tmp_path):
    folder = celeba(tmp_path / "celeba")
    (tmp_path / "celeba" / "img_align_celeba" / "sub").mkdir()
    (tmp_path / "celeba" / "img_align_celeba" / "sub" / NAMES[2]).write_bytes(jpg(FACES[2]))
    assert NAMES[2] in refusal(open_data, folder, cache=tmp_path)


@pytest.mark.data
def test_real_faces_and_their_attribute_rows(real_data, tmp_path):
    pack = open_data("celeba", root=real_data, attributes=["Male", "Smiling"], cache=tmp_path)
    face = Image.open(real_data / "celeba" / "img_align_celeba" / "000001.jpg").crop(
        (0, 20, 178, 198)
    )
    expected = np.asarray(face.resize((64, 64), Image.Resampling.LANCZOS)).transpose(2, 0, 1)
    np.testing.assert_array_equal(pack.images[0], expected)
    header, row = (real_data / "celeba" / "list_attr_celeba.txt").read_text().split("\n")[1:3]
    values = dict(zip(header.split(), row.split()[1:], strict=True))
    assert (values["Male"], values["Smiling"]) == ("-1", "1")
    assert pack.info.classes[pack.labels[0]] == "not Male, Smiling"
    assert pack.images.shape == (32, 3, 64, 64)
    assert open_data("celeba", root=real_data, size=128, cache=tmp_path).images.shape == (
        32,
        3,
        128,
        128,
    )


@pytest.mark.data
def test_the_large_real_zip_is_recognised(real_data):
    description = recognise("celeba-half", real_data).describe()
    assert description.startswith("CelebA")
    assert "10,000 train pictures from img_align_celeba.zip, no classes, as" in description
