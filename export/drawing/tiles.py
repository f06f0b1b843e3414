"""Larger pictures in tiles of the size that a generator was trained on. NumPy only."""

from collections.abc import Callable

import numpy as np

from ganfast.errors import InputError
from ganfast.export.drawing.lanes import Pictures


def in_tiles(
    draw: Callable[[Pictures], Pictures],
    picture: Pictures,
    tile: tuple[int, ...],
    overlap: int | None,
) -> Pictures:
    """One picture drawn from overlapping tiles of ``picture`` (h, w, k).

    Across an overlap the weight of a tile falls to its edge in even steps, so that no seam shows.

    Args:
        draw: tiles uint8 (N, *tile) -> pictures uint8 (N, H, W, C), larger by one factor or equal.
        tile: (th, tw, k), th <= h and tw <= w.
        overlap: pixels that neighbours have in common, or more, 0 to half a tile; None = 4, or
            half a tile where that is less.

    Returns:
        uint8 (h * H / th, w * W / tw, C).

    Raises:
        InputError: a picture smaller than a tile, or an overlap out of range.
    """
    shape: tuple[int, ...] = getattr(picture, "shape", ())
    if (
        len(tile) != 3
        or len(shape) != 3
        or shape[2] != tile[2]
        or min(np.subtract(shape, tile)) < 0
    ):
        raise InputError(
            f"the picture is {shape}; expected (h, w, k) of at least a tile, {tuple(tile)}"
        )
    if overlap is None:
        overlap = min(4, min(tile[:2]) // 2)
    if not isinstance(overlap, int) or not 0 <= overlap <= min(tile[:2]) // 2:
        raise InputError(f"overlap is {overlap}; expected 0 to {min(tile[:2]) // 2}, half a tile")
    rows, columns = (
        np.linspace(0, n - t, 1 + -(-(n - t) // (t - overlap))).round().astype(int)
        for n, t in zip(shape[:2], tile[:2], strict=True)
    )
    places = [(y, x) for y in rows for x in columns]
    drawn = draw(np.stack([picture[y : y + tile[0], x : x + tile[1]] for y, x in places]))
    scale = drawn.shape[1] // tile[0]
    ramp = [np.minimum(np.arange(1, n + 1), np.arange(n, 0, -1)) for n in drawn.shape[1:3]]
    weight = np.multiply.outer(*(np.minimum(r, max(1, overlap * scale)) for r in ramp))[..., None]
    total = np.zeros((shape[0] * scale, shape[1] * scale, drawn.shape[3]))
    weights = np.zeros((*total.shape[:2], 1))
    for (y, x), made in zip(places, drawn, strict=True):
        at = np.s_[y * scale : y * scale + len(made), x * scale : x * scale + made.shape[1]]
        total[at] += weight * made
        weights[at] += weight
    return np.rint(total / weights).astype(np.uint8)
