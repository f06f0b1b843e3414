"""Grids and PNG files of pictures small enough to write down; the last step, floats to bytes."""

import numpy as np
import pytest
import torch
from PIL import Image

from ganfast.images import comfortable_scale, grid, save_png
from ganfast.kernels.to_uint8 import to_uint8_reference


def plain(*values, size=(1, 1), channels=1):
    """One picture of each value."""
    return np.stack([np.full((*size, channels), v, np.uint8) for v in values])


def test_a_grid_by_hand():
    sheet = grid(plain(1, 2, 3, 4, 5), columns=3, gap=1)
    assert sheet.dtype == np.uint8
    assert sheet[..., 0].tolist() == [
        [0, 0, 0, 0, 0, 0, 0],
        [0, 1, 0, 2, 0, 3, 0],
        [0, 0, 0, 0, 0, 0, 0],
        [0, 4, 0, 5, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0],
    ]


def test_a_grid_of_oblong_pictures_keeps_height_and_width_apart():
    picture = np.arange(1, 7, dtype=np.uint8).reshape(1, 2, 3, 1)
    expected = [[0] * 5, [0, 1, 2, 3, 0], [0, 4, 5, 6, 0], [0] * 5]
    assert grid(picture, gap=1)[..., 0].tolist() == expected
    two = grid(np.concatenate([picture, picture + 10]), columns=1, gap=0)[..., 0]
    assert two.tolist() == [[1, 2, 3], [4, 5, 6], [11, 12, 13], [14, 15, 16]]


def test_a_colour_grid_keeps_its_channels():
    picture = np.array([[[[10, 20, 30]]], [[[40, 50, 60]]]], np.uint8)
    assert grid(picture, columns=2, gap=0).tolist() == [[[10, 20, 30], [40, 50, 60]]]


@pytest.mark.parametrize(
    ("count", "columns", "rows_and_columns"),
    [(1, 0, (1, 1)), (4, 0, (2, 2)), (5, 0, (2, 3)), (3, 8, (1, 3)), (9, 4, (3, 4))],
)
def test_the_number_of_columns(count, columns, rows_and_columns):
    sheet = grid(plain(*[9] * count, size=(4, 5)), columns, gap=2)
    rows, columns = rows_and_columns
    assert sheet.shape == (rows * 6 + 2, columns * 7 + 2, 1)
    assert (sheet == 9).sum() == count * 20


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_reads_back_as_it_was_written(tmp_path, channels):
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, channels), dtype=np.uint8)
    path = tmp_path / "made" / "on the way" / "a.png"
    save_png(picture, path)
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.mode == {1: "L", 3: "RGB"}[channels]
        np.testing.assert_array_equal(np.asarray(image).reshape(picture.shape), picture)
    save_png(255 - picture, str(path))  # over the old one
    with Image.open(path) as image:
        np.testing.assert_array_equal(np.asarray(image).reshape(picture.shape), 255 - picture)
    assert [p.name for p in path.parent.iterdir()] == ["a.png"]


@pytest.mark.parametrize("channels", [1, 3])
def test_enlarging_repeats_pixels(tmp_path, channels):
    picture = np.random.default_rng(0).integers(0, 256, (2, 3, channels), dtype=np.uint8)
    save_png(picture, tmp_path / "a.png", enlarge=4)
    with Image.open(tmp_path / "a.png") as image:
        pixels = np.asarray(image).reshape(8, 12, channels)
    for y in range(8):
        for x in range(12):
            assert (pixels[y, x] == picture[y // 4, x // 4]).all()


def test_small_pictures_are_enlarged_to_a_comfortable_size():
    scales = {8: 7, 16: 3, 28: 2, 56: 1, 64: 1, 128: 1, 1024: 1}
    assert {size: comfortable_scale(size) for size in scales} == scales


# Floats to bytes.


def to_bytes(*values, dtype=torch.float32):
    return (
        to_uint8_reference(torch.tensor(values, dtype=dtype).view(1, 1, 1, -1)).flatten().tolist()
    )


def test_bytes_by_hand():
    assert to_bytes(-1.0, 0.0, 1.0) == [0, 128, 255]  # 0 is 127.5: ties go to the even number
    assert to_bytes(-1 + 1 / 127.5, -1 + 2 / 127.5, 1 - 1 / 127.5) == [1, 2, 254]
    assert to_bytes(-1 + 0.49 / 127.5, -1 + 0.51 / 127.5, 1 - 0.49 / 127.5, 1 - 0.51 / 127.5) == [
        0,
        1,
        255,
        254,
    ]


def test_values_outside_are_clipped_not_wrapped():
    assert to_bytes(-1.01, 1.01, -3.0, 3.0, -1e9, 1e9, float("-inf"), float("inf")) == [0, 255] * 4


def test_every_byte_survives_the_way_to_a_float_and_back():
    bytes_ = torch.arange(256)
    assert torch.equal(
        to_uint8_reference((bytes_.float() / 127.5 - 1).view(1, 1, 16, 16)).flatten().long(), bytes_
    )


def test_bytes_are_channels_last_and_contiguous():
    pictures = torch.arange(2 * 3 * 4 * 5).view(2, 3, 4, 5) / 127.5 - 1
    for layout in (pictures, pictures.to(memory_format=torch.channels_last)):
        bytes_ = to_uint8_reference(layout)
        assert bytes_.dtype == torch.uint8
        assert bytes_.shape == (2, 4, 5, 3)
        assert bytes_.is_contiguous()
        for n in range(2):
            for c in range(3):
                assert bytes_[n, :, :, c].tolist() == [
                    [((n * 3 + c) * 4 + y) * 5 + x for x in range(5)] for y in range(4)
                ]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_other_floats_are_computed_in_float32(dtype):
    x = torch.linspace(-1.2, 1.2, 999).to(dtype)
    exact = ((x.double() + 1) * 127.5).clamp(0, 255)
    actual = torch.tensor(to_bytes(*x.tolist(), dtype=dtype)).double()
    assert (actual - exact).abs().max() <= 0.5 + 1e-4  # one rounding, the last
