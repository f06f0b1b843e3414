"""How far pictures may lie from the trained generator's, per precision, and how far they do.

NumPy only. LSB: one grey level of 255. Two roundings of the same number may differ by one where it
lies between two levels; equality of bytes is never asked for.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Pictures = NDArray[np.uint8]
# Of the histogram: |difference| 0, 1, 2, 3-4, 5-8, 9-16, 17-32, 33 and more.
EDGES = (0, 1, 2, 3, 5, 9, 17, 33)


@dataclass(frozen=True)
class Gate:
    """The limits of a precision; None is no limit."""

    max_lsb: int | None = None
    mean_lsb: float | None = None
    psnr_db: float | None = None

    def __str__(self) -> str:
        limits = [
            (self.max_lsb, "max <= {} LSB"),
            (self.mean_lsb, "mean <= {} LSB"),
            (self.psnr_db, "PSNR >= {} dB"),
        ]
        return ", ".join(text.format(value) for value, text in limits if value is not None)


GATES = {
    "fp32": Gate(max_lsb=1),
    "tf32": Gate(mean_lsb=0.1, psnr_db=45.0),
    "fp16": Gate(mean_lsb=0.1, psnr_db=45.0),
    # Three bits less than fp16: its rounding is 8 times as coarse.
    "bf16": Gate(mean_lsb=0.8, psnr_db=35.0),
    "int8": Gate(psnr_db=32.0),
}


@dataclass(frozen=True)
class Parity:
    """The distance of pictures from the trained generator's own, float32."""

    back_end: str  # that drew the pictures
    batch: int  # pictures a call
    pictures: int  # compared in all
    max_lsb: int
    mean_lsb: float
    psnr_db: float | None  # 10 log10(255^2 / mean squared difference); None where nothing differs
    histogram: tuple[int, ...]  # values by |difference|, see EDGES
    worst: int  # the picture that differs most

    def __str__(self) -> str:
        psnr = "equal" if self.psnr_db is None else f"{self.psnr_db:.1f} dB"
        return f"max {self.max_lsb} LSB, mean {self.mean_lsb:.4f} LSB, PSNR {psnr}"

    def missed(self, gate: Gate) -> str:
        """Why the gate is not kept, with the numbers; "" where it is."""
        passes = (
            (gate.max_lsb is None or self.max_lsb <= gate.max_lsb)
            and (gate.mean_lsb is None or self.mean_lsb <= gate.mean_lsb)
            and (gate.psnr_db is None or self.psnr_db is None or self.psnr_db >= gate.psnr_db)
        )
        return (
            "" if passes else f"{self.back_end} at batch {self.batch}: {self}; the gate is {gate}"
        )


def compare(pictures: Pictures, truth: Pictures, back_end: str = "", batch: int = 0) -> Parity:
    """Distance of ``pictures`` from ``truth``, both uint8 (N, H, W, C).

    Raises:
        ValueError: other shapes or types.
    """
    if (
        pictures.shape != truth.shape
        or pictures.dtype != np.uint8
        or truth.dtype != np.uint8
        or not len(truth)
    ):
        raise ValueError(
            f"{pictures.dtype} {pictures.shape} cannot be compared with {truth.dtype} {truth.shape}"
        )
    distance = np.abs(pictures.astype(np.int16) - truth.astype(np.int16))
    squared = distance.astype(np.int64) ** 2
    mean_squared = float(squared.mean())
    counts = np.diff([*np.searchsorted(np.sort(distance, axis=None), EDGES), distance.size])
    return Parity(
        back_end=back_end,
        batch=batch or len(pictures),
        pictures=len(pictures),
        max_lsb=int(distance.max()),
        mean_lsb=float(distance.mean()),
        psnr_db=float(10 * np.log10(255**2 / mean_squared)) if mean_squared else None,
        histogram=tuple(int(n) for n in counts),
        worst=int(squared.reshape(len(squared), -1).sum(1).argmax()),
    )
