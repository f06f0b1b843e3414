"""Folders, zips and CelebA: which pixels a picture keeps, its class, and what is refused."""

import io
import os
import zipfile

import numpy as np
import pytest
from PIL import Image

from ganfast.data import open_data
from ganfast.data.manifest import verify_pack
from ganfast.data.pictures import centre_square, decode, prepare
from ganfast.errors import InputError

RNG = np.random.default_rng(0)


def png(array_or_image, **options):
    image = (
        array_or_image
        if isinstance(array_or_image, Image.Image)
        else Image.fromarray(array_or_image)
    )
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


def fill(folder, files):
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return str(folder)


def fill_zip(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return str(path)


def refusal(call, *args, **kwargs):
    with pytest.raises(InputError) as caught:
        call(*args, **kwargs)
    return str(caught.value)


COLOUR = RNG.integers(0, 256, (9, 9, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (9, 9), dtype=np.uint8)

# ---- pixels ----


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [
        (6, 10, (0, 2, 6, 8)),
        (10, 6, (2, 0, 8, 6)),
        (6, 9, (0, 1, 6, 7)),
        (178, 218, (0, 20, 178, 198)),
    ],
)
def test_the_centre_square_is_the_hand_computed_one(width, height, expected):
    assert centre_square(width, height) == expected


def test_a_picture_of_its_own_size_keeps_the_pixels_of_its_centre():
    rows = np.repeat(np.arange(10, dtype=np.uint8)[:, None], 6, axis=1)  # every row has its number
    np.testing.assert_array_equal(prepare(Image.fromarray(rows), 6, 1)[0, :, 0], [2, 3, 4, 5, 6, 7])


def test_shrinking_averages_and_nothing_outside_the_square_bleeds_in():
    stripes = np.zeros((64, 96), np.uint8)
    stripes[::2, 16:80] = (
        200  # without antialiasing every row of the result would be all 200 or all 0
    )
    stripes[:, :16] = stripes[:, 80:] = 255
    result = prepare(Image.fromarray(stripes), 8, 1)[0].astype(int)
    assert abs(result[1:-1] - 100).max() <= 2
    assert result[:, 0].tolist() == result[:, 4].tolist()


@pytest.mark.parametrize("size", [8, 32])
def test_an_even_picture_stays_even_at_any_size(size):
    assert set(
        prepare(Image.new("RGB", (17, 23), (10, 20, 30)), size, 3).reshape(3, -1).T.tobytes()
    ) == {10, 20, 30}


def test_16_bit_grey_is_scaled_and_not_clipped():
    deep = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)  # 257 * v is v in 16 bits
    np.testing.assert_array_equal(
        np.asarray(decode(png(deep), "deep")), np.arange(256).reshape(16, 16)
    )


def test_transparency_shows_white():
    alpha = np.dstack([np.full((8, 8, 3), 50, np.uint8), np.array([[0, 255] * 4] * 8, np.uint8)])
    np.testing.assert_array_equal(np.asarray(decode(png(alpha), "a"))[0, :2], [[255] * 3, [50] * 3])
    palette = Image.fromarray(np.eye(8, dtype=np.uint8)).convert("P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    shown = np.asarray(decode(png(palette, transparency=0), "p"))
    np.testing.assert_array_equal(shown[0, :2], [[40, 50, 60], [255] * 3])


def test_exif_turns_a_picture_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held so that the picture has to be turned clockwise
    upright = np.asarray(decode(png(COLOUR[:8], exif=exif), "turned"))
    np.testing.assert_array_equal(upright, np.rot90(COLOUR[:8], -1))


# ---- folders and zips ----


@pytest.mark.parametrize("fill", [fill, fill_zip])
def test_pictures_come_sorted_by_path_with_their_folders_as_classes(tmp_path, fill):
    files = {
        "b/2.png": png(COLOUR),
        "a/10.PNG": png(GREY),
        "a/sub/1.png": png(GREY.T),
        "b/1.png": png(COLOUR[::-1]),
    }
    ignored = {
        "a/.hidden.png": b"",
        "__MACOSX/a/._1.png": b"",
        ".cache/x.png": b"",
        "a/notes.txt": b"",
    }
    pack = open_data(fill(tmp_path / "set.zip", files | ignored), size=9, cache=tmp_path / "c")
    expected = np.stack([np.dstack([GREY] * 3), np.dstack([GREY.T] * 3), COLOUR[::-1], COLOUR])
    np.testing.assert_array_equal(pack.images, expected.transpose(0, 3, 1, 2))
    assert pack.labels.tolist() == [0, 0, 1, 1]
    assert pack.info.classes == ("a", "b")
    assert pack.info.flip


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (["a/1.png", "2.png"], ()),
        (["1.png", "2.png"], ()),
        (
            ["all/a/1.png", "all/b/1.png"],
            ("a", "b"),
        ),  # a zip of a folder: what encloses everything is not a class
        (["all/1.png", "all/2.png"], ()),
    ],
)
def test_folders_are_classes_only_when_they_divide_all_pictures(tmp_path, names, classes):
    pack = open_data(fill(tmp_path / "set", dict.fromkeys(names, png(GREY))), cache=tmp_path)
    assert pack.info.classes == classes
    assert (pack.labels is None) == (not classes)


@pytest.mark.parametrize(
    ("kinds", "channels"), [("L1", 1), (["L", "I;16", "LA"], 1), (["L", "RGB"], 3), ("LP", 3)]
)
def test_a_set_is_grey_when_every_picture_is(tmp_path, kinds, channels):
    files = {f"{i}.png": png(Image.fromarray(GREY).convert(kind)) for i, kind in enumerate(kinds)}
    path = fill(tmp_path / "set", files)
    assert open_data(path, cache=tmp_path).images.shape == (len(kinds), channels, 64, 64)
    expected = 4 - channels
    assert open_data(path, channels=4 - channels, size=8, cache=tmp_path).info.channels == expected


def test_a_circle_of_links_ends_and_a_broken_link_is_named(tmp_path):
    path = fill(tmp_path / "set", {"a/1.png": png(GREY), "b/1.png": png(GREY)})
    os.symlink(tmp_path / "set", tmp_path / "set" / "a" / "back")
    assert open_data(path, cache=tmp_path).info.count == 2
    os.symlink(tmp_path / "nothing", tmp_path / "set" / "gone.png")
    assert "gone.png" in refusal(open_data, path, cache=tmp_path)


@pytest.mark.parametrize("make", [fill, fill_zip])
@pytest.mark.parametrize(
    ("data", "expected"),
    [(b"not a picture", "b'not a picture'"), (png(GREY)[:70], "damaged"), (b"", "an empty file")],
    ids=["text", "truncated", "empty"],
)
def test_a_corrupt_picture_is_named_and_leaves_no_pack(tmp_path, make, data, expected):
    path = make(tmp_path / "set.zip", {"a.png": png(COLOUR), "bad.png": data})
    message = refusal(open_data, path, channels=3, cache=tmp_path)
    assert "bad.png" in message
    assert expected in message
    assert list((tmp_path / "packs").iterdir()) == []


BAD = {"text": b"not a picture", "truncated": png(COLOUR)[:70], "empty": b""}


@pytest.mark.parametrize("make", [fill, fill_zip])
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("channels", [0, 3])
def test_corrupt_pictures_are_left_out_and_counted_where_that_is_asked_for(
    tmp_path, make, bad, channels, caplog
):
    """In the middle of a class and at both ends, so that pictures and labels both close the gap."""
    names = ["a/0.png", "b/0.png", "b/1.png", "b/2.png", "c/0.png"]
    held = {
        name: BAD[bad]
        if name in ("a/0.png", "b/1.png", "c/0.png")
        else png(COLOUR if "2" in name else GREY)
        for name in names
    }
    path = make(tmp_path / "set.zip", held)
    with pytest.raises(InputError, match="a/0.png in .*; --skip-corrupt leaves such pictures out"):
        open_data(path, channels=channels, cache=tmp_path)
    pack = open_data(path, channels=channels, cache=tmp_path, skip_corrupt=True)
    assert (pack.info.count, pack.info.channels, len(pack.info.skipped)) == (2, 3, 3)
    expected = "a/0.png b/1.png c/0.png".split()
    assert [name.split(" in ")[0] for name in pack.info.skipped] == expected
    assert pack.labels.tolist() == [0, 0]
    assert pack.info.classes == ("b",)
    clean = make(tmp_path / "clean.zip", {name: held[name] for name in ("b/0.png", "b/2.png")})
    np.testing.assert_array_equal(pack.images, open_data(clean, channels=3, cache=tmp_path).images)
    assert pack.info.recognised.endswith(", 3 corrupt pictures left out")
    assert "3 pictures left out, as they cannot be read: a/0.png in" in caplog.text
    verify_pack(next((tmp_path / "packs").glob("set*-skip")))
    again = open_data(path, channels=channels, cache=tmp_path, skip_corrupt=True)
    assert again.info == pack.info
    with pytest.raises(
        InputError, match="a/0.png"
    ):  # one that skips is never taken for one that does not
        open_data(path, channels=channels, cache=tmp_path)


def test_skipping_nothing_is_the_pack_of_all_pictures(tmp_path):
    path = fill(tmp_path / "set", {"a.png": png(GREY), "b.png": png(GREY)})
    open_data(path, cache=tmp_path)
    assert open_data(path, cache=tmp_path, skip_corrupt=True).info.skipped == ()
    assert len(list((tmp_path / "packs").iterdir())) == 1


def test_a_set_of_nothing_but_corrupt_pictures_is_refused(tmp_path):
    path = fill(tmp_path / "set", {"a.png": b"", "b.png": b"no"})
    assert "none of the 2 pictures can be read, the first because a.png in" in refusal(
        open_data, path, cache=tmp_path, skip_corrupt=True
    )
    assert list((tmp_path / "packs").iterdir()) == []


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    "limit", [80, 30]
)  # of 81 pixels: Pillow warns above its limit and refuses above twice that
def test_a_decompression_bomb_is_refused_by_name(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    message = refusal(open_data, fill(tmp_path / "set", {"bomb.png": png(GREY)}), cache=tmp_path)
    assert "bomb.png" in message
    assert "81" in message


@pytest.mark.parametrize(
    "name", ["../x.png", "a/../../x.png", "/x.png", "C:\\x.png", "a\\..\\..\\x.png"]
)
def test_a_zip_entry_that_points_outside_is_refused(tmp_path, name):
    path = fill_zip(tmp_path / "set.zip", {"good.png": png(GREY), name: png(GREY)})
    message = refusal(open_data, path, cache=tmp_path)
    assert repr(name) in message
    assert "refused" in message


def test_a_damaged_zip_is_refused(tmp_path):
    path = fill_zip(tmp_path / "set.zip", {"a.png": png(GREY)})
    data = (tmp_path / "set.zip").read_bytes()
    # A changed pixel: the CRC tells.
    (tmp_path / "set.zip").write_bytes(data[:60] + bytes([data[60] ^ 1]) + data[61:])
    assert "a.png" in refusal(open_data, path, cache=tmp_path)
    (tmp_path / "set.zip").write_bytes(b"<html>Quota exceeded</html>")
    assert "a saved web page (HTML)" in refusal(open_data, path, cache=tmp_path)


@pytest.mark.parametrize("make", [fill, fill_zip])
def test_a_place_without_pictures_is_named(tmp_path, make):
    assert str(tmp_path / "set.zip") in refusal(
        open_data, make(tmp_path / "set.zip", {"a/b.txt": b""}), cache=tmp_path
    )


def test_what_pillow_would_hand_to_another_program_is_refused():
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\n%%EOF\n"
    with pytest.raises(InputError, match="page.png cannot be read as a picture"):
        decode(eps, "page.png")
