"""Names, digits and IDX files: what is read is what was written; what cannot be read says why."""

import contextlib
import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ganfast.configfile import read_mapping
from ganfast.data import open_data, recognise
from ganfast.data.idx import read_idx
from ganfast.data.lookup import absolute, recognise_path
from ganfast.errors import InputError
from tests.programs import python

RNG = np.random.default_rng(0)
# Odd counts and sizes, so that no two axes can be confused.
TRAIN = RNG.integers(0, 256, (7, 11, 11), dtype=np.uint8)
TEST = RNG.integers(0, 256, (3, 11, 11), dtype=np.uint8)
TRAIN_LABELS, TEST_LABELS = np.array([3, 0, 1, 1, 2, 0, 3], np.uint8), np.array([1, 0, 2], np.uint8)


def idx_bytes(array):
    """An IDX file: two zeros, 8 for unsigned bytes, number of dimensions, dimensions, values."""
    return (
        bytes([0, 0, 8, array.ndim])
        + struct.pack(f">{array.ndim}I", *array.shape)
        + array.tobytes()
    )


def write_idx(folder, gz=True, dot="-"):
    folder.mkdir(parents=True)
    for prefix, images, labels in (("train", TRAIN, TRAIN_LABELS), ("t10k", TEST, TEST_LABELS)):
        for name, array in ((f"images{dot}idx3", images), (f"labels{dot}idx1", labels)):
            data = idx_bytes(array)
            (folder / f"{prefix}-{name}-ubyte{'.gz' if gz else ''}").write_bytes(
                gzip.compress(data) if gz else data
            )
    return folder


def refusal(call, *args, **kwargs):
    with pytest.raises(InputError) as caught:
        call(*args, **kwargs)
    return str(caught.value)


# ---- names ----


def test_importing_the_package_loads_no_heavy_library():
    code = (
        "import ganfast.data, sys; "
        "print(sorted({'torch', 'PIL', 'sklearn', 'rich'} & set(sys.modules)))"
    )
    result = python("-c", code, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("inside", ["mnist", "MNIST", "MNIST/raw"])
def test_mnist_is_found_under_its_usual_names(tmp_path, inside):
    write_idx(tmp_path / inside)
    source = recognise("mnist", tmp_path)
    assert (source.kind, source.name) == ("idx", "mnist")


def test_names_resolve_in_root_then_environment_then_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GANFAST_DATA", str(tmp_path / "env"))
    monkeypatch.setenv("GANFAST_CACHE", str(tmp_path / "cache"))
    for place in ("cache/data", "env", "root"):  # each one found takes precedence over those before
        write_idx(tmp_path / place / "mnist")
        assert str(tmp_path / place) in recognise("mnist", tmp_path / "root").describe()


def test_a_folder_called_mnist_without_idx_files_is_passed_over(tmp_path, monkeypatch):
    (tmp_path / "root" / "mnist").mkdir(parents=True)
    write_idx(tmp_path / "env" / "mnist")
    monkeypatch.setenv("GANFAST_DATA", str(tmp_path / "env"))
    assert str(tmp_path / "env") in recognise("mnist", tmp_path / "root").describe()


def test_a_path_becomes_absolute_and_a_name_stays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("here", "root/named", "root/here"):
        Path(folder).mkdir(parents=True)
    monkeypatch.setenv("GANFAST_DATA", str(tmp_path / "root"))
    assert absolute("./here") == str(tmp_path / "here")
    assert absolute("root/named/..") == str(tmp_path / "root")
    # Names in the data root come before folders that lie here; unknown ones are refused elsewhere.
    for name in ("here", "named", "digits", "nowhere", "no/where", "a\0b"):
        assert absolute(name) == name
    monkeypatch.delenv("GANFAST_DATA")
    assert absolute("here") == str(tmp_path / "here")


def test_an_unknown_name_says_where_it_looked_and_what_comes_close(tmp_path):
    (tmp_path / "flowers").mkdir()
    message = refusal(recognise, "flower", tmp_path)
    assert "'flower'" in message
    assert "did you mean flowers" in message
    assert str(tmp_path / "flower") in message
    assert "ganfast data fetch mnist" in refusal(recognise, "mnist", tmp_path)


@pytest.mark.parametrize("path", ["/nowhere/at/all", "", "nul\0byte", "~nobody-of-that-name/x"])
def test_a_path_that_leads_nowhere_is_refused(path):
    assert path in refusal(recognise, path)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("notes.txt", b"hello world", "hello world"),
        ("faces.zip.part", b"PK\3\4....", "a zip archive"),
        ("cat.jpg", b"\xff\xd8\xff", "single picture"),
        ("train-images-idx3-ubyte.gz", b"\x1f\x8b", "one file of an IDX set"),
    ],
)
def test_a_file_that_is_no_data_set_is_named_for_what_it_is(tmp_path, name, content, expected):
    (tmp_path / name).write_bytes(content)
    message = refusal(recognise, tmp_path / name)
    assert expected in message
    assert name in message


def test_wrong_requests_name_the_value(tmp_path):
    folder = str(write_idx(tmp_path / "set"))
    assert "'tset' (did you mean test?)" in refusal(open_data, folder, split="tset", cache=tmp_path)
    assert "'val'" in refusal(open_data, folder, split="val", cache=tmp_path)
    assert "'val'" in refusal(recognise(folder).describe, "val")
    assert "'test'" in refusal(open_data, "digits", split="test", cache=tmp_path)
    assert "7" in refusal(open_data, folder, size=7, cache=tmp_path)
    assert "1025" in refusal(open_data, folder, size=1025, cache=tmp_path)
    assert "channels is 2" in refusal(open_data, folder, channels=2, cache=tmp_path)
    assert "Smiling" in refusal(open_data, folder, attributes=["Smiling"], cache=tmp_path)


# ---- digits ----


def test_digits_keep_their_values_scaled_to_bytes(tmp_path):
    from sklearn.datasets import load_digits

    pack = open_data("digits", size=8, cache=tmp_path)
    assert pack.images.shape == (1797, 1, 8, 8)
    assert pack.info.classes == tuple("0123456789")
    assert not pack.info.flip
    np.testing.assert_array_equal(pack.labels, load_digits().target)
    np.testing.assert_array_equal(
        pack.images[:, 0], np.floor(load_digits().images * 255 / 16 + 0.5)
    )
    assert open_data("digits", cache=tmp_path).images.shape == (1797, 1, 16, 16)


# ---- IDX ----


@pytest.mark.parametrize("gz", [True, False])
@pytest.mark.parametrize("dot", ["-", "."])
def test_idx_pictures_come_out_as_they_went_in(tmp_path, gz, dot):
    folder = str(write_idx(tmp_path / "set", gz, dot))
    train, test, both = (
        open_data(folder, split=split, cache=tmp_path) for split in ("train", "test", "all")
    )
    np.testing.assert_array_equal(train.images[:, 0], TRAIN)
    np.testing.assert_array_equal(test.images[:, 0], TEST)
    np.testing.assert_array_equal(both.images[:, 0], np.concatenate([TRAIN, TEST]))
    np.testing.assert_array_equal(both.labels, np.concatenate([TRAIN_LABELS, TEST_LABELS]))
    assert train.info.classes == ("0", "1", "2", "3")
    assert train.labels.dtype == np.int64
    assert not train.info.flip
    assert "(7 train pictures 11x11 grey, 4 classes)" in train.info.recognised


def test_idx_colour_is_grey_thrice(tmp_path):
    pack = open_data(str(write_idx(tmp_path / "set")), channels=3, cache=tmp_path)
    np.testing.assert_array_equal(pack.images, np.repeat(TRAIN[:, None], 3, axis=1))


IMAGES, LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"
GOOD = idx_bytes(TRAIN)


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        (
            IMAGES,
            b"<!DOCTYPE html><title>404</title>",
            "a saved web page (HTML) that begins with b'<!DOCTYPE html",
        ),
        (IMAGES, b"Moved Permanently", "of unknown kind that begins with b'Moved Permanent"),
        (IMAGES, b"", "an empty file"),
        (IMAGES, gzip.compress(GOOD, mtime=0)[:-300], "damaged or cut off"),
        (IMAGES, gzip.compress(GOOD, mtime=0) + b"trailing", "damaged"),
        (IMAGES, GOOD[:-1], "7x11x11 = 847 values and holds 846"),
        (IMAGES, GOOD + b"x", "847 values and holds more"),
        (IMAGES, GOOD[:9], "within its header"),
        (IMAGES, b"\0\0\x0d\3" + GOOD[4:], "float32"),
        (
            IMAGES,
            b"\0\0\x08\3" + struct.pack(">3I", 2**32 - 1, 2**16, 2**16),
            "4294967295x65536x65536",
        ),
        (
            IMAGES,
            gzip.compress(b"\0\0\x08\3" + struct.pack(">3I", 2**31, 99, 99), mtime=0),
            "2147483648x99x99",
        ),
        (IMAGES, idx_bytes(TRAIN_LABELS), "1 dimension, which are labels"),
        (IMAGES, idx_bytes(TRAIN[:, :9]), "7 pictures of 9x11"),
        (IMAGES, idx_bytes(TRAIN[:0]), "0 pictures"),
        (LABELS, GOOD, "3 dimensions, which are pictures"),
        (LABELS, idx_bytes(TRAIN_LABELS[:5]), "5 labels"),
    ],
)
def test_a_broken_idx_file_says_what_was_found(tmp_path, file, content, expected):
    folder = write_idx(tmp_path / "set")
    (folder / file).write_bytes(content)
    message = refusal(open_data, str(folder), cache=tmp_path)
    assert expected in message
    assert file in message


def test_a_missing_idx_file_is_named(tmp_path):
    folder = write_idx(tmp_path / "mnist")
    (folder / IMAGES).unlink()
    message = refusal(open_data, str(folder), cache=tmp_path)
    assert "train-images-idx3-ubyte" in message
    assert "ganfast data fetch mnist" in message


headers = st.builds(
    lambda magic, dims: bytes(magic) + struct.pack(f">{len(dims)}I", *dims),
    st.tuples(*[st.sampled_from([0, 0, 1, 3, 8])] * 4),
    st.lists(st.one_of(st.integers(0, 4), st.integers(0, 2**32 - 1)), max_size=4),
)


@settings(max_examples=300, deadline=None)
@given(
    data=st.one_of(
        st.binary(max_size=64), st.builds(bytes.__add__, headers, st.binary(max_size=70))
    ),
    gz=st.booleans(),
)
def test_any_bytes_are_an_idx_array_or_refused(tmp_path_factory, data, gz):
    path = tmp_path_factory.getbasetemp() / "fuzz.idx"
    path.write_bytes(gzip.compress(data, 1) if gz else data)
    for ndim in (1, 3):
        with contextlib.suppress(InputError):  # and nothing else
            assert idx_bytes(read_idx(path, ndim)) == data


@pytest.mark.data
def test_real_mnist_has_its_published_counts_and_mean(real_data, tmp_path):
    train, test = (
        open_data("mnist", root=real_data, split=split, cache=tmp_path)
        for split in ("train", "test")
    )
    assert train.images.shape == (60_000, 1, 28, 28)
    assert test.images.shape == (10_000, 1, 28, 28)
    assert train.labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert len(train.info.classes) == 10
    # A second way to the same mean.
    raw = gzip.decompress((real_data / "mnist" / IMAGES).read_bytes())[16:]
    assert (
        train.images.mean()
        == pytest.approx(33.318, abs=1e-3)
        == np.frombuffer(raw, np.uint8).mean()
    )


def test_a_pipe_is_refused_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.npy")
    with pytest.raises(InputError, match="neither a folder nor a regular file"):
        recognise_path(tmp_path / "pipe.npy")
    with pytest.raises(InputError, match="cannot be read: it is no regular file"):
        read_mapping(tmp_path / "pipe.npy")
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(InputError, match=r"pipe.png is no regular file"):
        open_data(str(tmp_path))
