"""Pictures on disk: grids and PNG files from uint8 arrays. Needs numpy and Pillow only."""

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ganfast import disk
from ganfast.errors import InputError

Pictures = NDArray[np.uint8]


def refuse_third_value(mask: Pictures, whose: str = "") -> None:
    """Raise InputError for a mask with a value beside 255 and 0; ``whose``: of which picture."""
    odd = mask[(mask != 0) & (mask != 255)]
    if len(odd):
        raise InputError(f"the mask{whose} holds {odd[0]}; expected 255 = known and 0 = hole")


def grid(pictures: Pictures, columns: int = 0, gap: int = 2) -> Pictures:
    """Pictures uint8 (N, H, W, C) side by side, row by row, on black.

    Args:
        columns: 0 = about as many as rows.

    Returns:
        uint8 (rows * H + gaps, columns * W + gaps, C).
    """
    n, h, w, c = pictures.shape
    columns = min(columns or int(np.ceil(np.sqrt(n))), n)
    rows = -(-n // columns)
    sheet = np.zeros((rows * (h + gap) + gap, columns * (w + gap) + gap, c), np.uint8)
    for i, picture in enumerate(pictures):
        y, x = gap + i // columns * (h + gap), gap + i % columns * (w + gap)
        sheet[y : y + h, x : x + w] = picture
    return sheet


def save_png(picture: Pictures, path: Path | str, enlarge: int = 1) -> None:
    """Write the bytes of `png`; makes folders."""
    with disk.replacing(Path(path)) as file:
        file.write(png(picture, enlarge))


def png(picture: Pictures, enlarge: int = 1) -> bytes:
    """One picture (H, W, 1 or 3) as the bytes of a PNG, each pixel ``enlarge`` times as large."""
    from PIL import Image

    pixels, file = picture[:, :, 0] if picture.shape[2] == 1 else picture, io.BytesIO()
    Image.fromarray(pixels.repeat(enlarge, 0).repeat(enlarge, 1)).save(file, format="PNG")
    return file.getvalue()


def comfortable_scale(size: int) -> int:
    """How many times to enlarge small pictures to look at: 16 -> 3, 28 -> 2, 64 -> 1."""
    return max(1, 56 // size)
