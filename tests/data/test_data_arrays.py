"""NumPy files: every layout and range gives the same pictures; other contents are refused."""

import contextlib
import os
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ganfast.data import open_data, recognise
from ganfast.errors import InputError

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (5, 9, 9, 3), dtype=np.uint8)
GREY = COLOUR[..., :1]


def refusal(call, *args, **kwargs):
    with pytest.raises(InputError) as caught:
        call(*args, **kwargs)
    return str(caught.value)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (GREY[..., 0], GREY),
        (GREY, GREY),
        (COLOUR, COLOUR),
        (COLOUR.transpose(0, 3, 1, 2), COLOUR),
        (GREY.transpose(0, 3, 1, 2), GREY),
        ((COLOUR / 255).astype(np.float32), COLOUR),
        ((COLOUR / 127.5 - 1).astype(np.float32), COLOUR),
    ],
    ids=["NHW", "NHW1", "NHWC", "NCHW", "N1HW", "[0, 1]", "[-1, 1]"],
)
def test_every_layout_of_an_array_gives_the_same_pictures(tmp_path, array, expected):
    np.save(tmp_path / "a.npy", array)
    pack = open_data(str(tmp_path / "a.npy"), cache=tmp_path)
    np.testing.assert_array_equal(pack.images, expected.transpose(0, 3, 1, 2))
    assert pack.labels is None
    assert pack.info.name == "a"
    assert ("floats in" in pack.info.recognised) == (array.dtype.kind == "f")


def test_an_oblong_array_is_cut_to_its_centre(tmp_path):
    rows = np.tile(np.arange(12, dtype=np.uint8)[None, :, None], (2, 1, 8))
    np.save(tmp_path / "a.npy", rows)
    np.testing.assert_array_equal(
        open_data(str(tmp_path / "a.npy"), cache=tmp_path).images[:, 0], rows[:, 2:10]
    )


def test_npz_names_give_pictures_labels_and_splits(tmp_path):
    np.savez(tmp_path / "a.npz", images=COLOUR, labels=np.arange(5)[:, None], other=COLOUR)
    pack = open_data(str(tmp_path / "a.npz"), cache=tmp_path)
    assert pack.labels.tolist() == [0, 1, 2, 3, 4]
    assert len(pack.info.classes) == 5
    assert pack.info.split == "all"
    np.savez(
        tmp_path / "b.npz", x_train=COLOUR[:3], y_train=[0, 1, 0], x_test=COLOUR[3:], y_test=[1, 1]
    )
    test, both = (
        open_data(str(tmp_path / "b.npz"), split=split, cache=tmp_path) for split in ("test", "all")
    )
    np.testing.assert_array_equal(test.images, COLOUR[3:].transpose(0, 3, 1, 2))
    assert both.labels.tolist() == [0, 1, 0, 1, 1]
    assert both.info.split == "all"


@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        ({"images": COLOUR.astype(object)}, "Object arrays"),
        ({"images": COLOUR.astype(np.float32)}, "floats from 0 to 255"),
        ({"images": np.where(COLOUR > 9, np.nan, 0.5)}, "floats from nan"),
        ({"images": COLOUR.astype(np.int64)}, "int64"),
        ({"images": COLOUR[..., :2]}, "(5, 9, 9, 2)"),
        ({"images": COLOUR[:0]}, "(0, 9, 9, 3)"),
        ({"images": COLOUR, "labels": np.arange(4)}, "labels of shape (4,)"),
        ({"images": COLOUR, "labels": np.linspace(0, 1, 5)}, "float64 labels"),
        ({"images": COLOUR, "labels": np.arange(5) - 1}, "-1 to 3"),
        ({"images": COLOUR, "labels": np.arange(5) * 10**6}, "0 to 4000000"),
        ({"a": COLOUR, "b": COLOUR}, "a (5, 9, 9, 3), b (5, 9, 9, 3)"),
        ({}, "no pictures found"),
    ],
)
def test_an_array_that_is_no_pictures_says_what_it_is(tmp_path, arrays, expected):
    np.savez(tmp_path / "a.npz", **arrays)
    message = refusal(open_data, str(tmp_path / "a.npz"), cache=tmp_path)
    assert expected in message
    assert "a.npz" in message


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_a_damaged_numpy_file_is_refused(tmp_path, name):
    np.savez(tmp_path / "a.npz", COLOUR)
    np.save(tmp_path / "a.npy", COLOUR)
    os.truncate(tmp_path / name, 200)
    assert name in refusal(open_data, str(tmp_path / name), cache=tmp_path)
    (tmp_path / name).write_bytes(b"\x80\x04K\x01.")  # a pickle
    assert name in refusal(open_data, str(tmp_path / name), cache=tmp_path)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("readme.txt", "no array")
    assert "a.npz" in refusal(open_data, str(tmp_path / "a.npz"), cache=tmp_path)


@settings(max_examples=150, deadline=None)
@given(
    position=st.integers(0, 400),
    value=st.integers(0, 255),
    end=st.integers(0, 3000),
    name=st.sampled_from("yz"),
)
def test_any_damage_to_a_numpy_file_is_harmless_or_refused(
    tmp_path_factory, position, value, end, name
):
    folder = tmp_path_factory.getbasetemp() / "fuzzed-arrays"
    folder.mkdir(exist_ok=True)
    path = folder / f"a.np{name}"
    np.save(path, COLOUR) if name == "y" else np.savez(path, COLOUR)
    data = path.read_bytes()
    path.write_bytes((data[:position] + bytes([value]) + data[position + 1 :])[:end])
    with contextlib.suppress(InputError):  # and nothing else
        assert recognise(path).natural("all")[0] in (1, 3)
