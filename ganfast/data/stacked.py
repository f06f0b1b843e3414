"""StackedMNIST (Metz 2016, arXiv:1611.02163): three digits of MNIST as a picture's channels.

Its 1000 classes are counted as modes. A set is a fixed table of triples of digits: 128,000 from the
training split, 26,000 from the test split. The device that trains puts the pictures together, see
`ganfast.data.resident`.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from ganfast.data.manifest import Pack
from ganfast.data.source import Selection, Source, Wanted
from ganfast.errors import InputError
from ganfast.latents import Purpose

COUNTS = {"train": 128_000, "test": 26_000}


class StackedImages:
    """Reads like the array uint8 (N, 3, S, S) of a pack.

    It holds grey digits (M, 1, S, S) and triples int64 (N, 3) of them.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, digits: np.ndarray, triples: np.ndarray) -> None:
        self.digits, self.triples = digits, triples
        self.shape = (len(triples), 3, *digits.shape[2:])
        self.nbytes = digits.nbytes  # all that lies in memory

    def __len__(self) -> int:
        return len(self.triples)

    def __getitem__(self, rows: Any) -> np.ndarray:
        return np.asarray(self.digits[self.triples[rows], 0])

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[i] for i in range(len(self)))


class StackedMnist(Source):
    """``--data stacked-mnist``: packed digits of an IDX set, put together on the device."""

    kind = "stacked-mnist"
    flip = False
    name = "stacked-mnist"

    def __init__(self, digits: Source) -> None:
        self.digits = digits

    def by_rules(self, rules: int) -> "StackedMnist":
        return StackedMnist(self.digits.by_rules(rules))

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(COUNTS)

    def natural(self, split: str) -> tuple[int, int]:
        return 3, self.digits.natural(split)[1]

    def _describe(self, split: str) -> str:
        return _described(split, self.digits.describe(split))

    def identity(self, wanted: Wanted) -> str:
        return self.digits.identity(wanted)

    def select(self, wanted: Wanted) -> Selection:
        return self.digits.select(wanted)

    def packed_as(self, wanted: Wanted) -> tuple[Source, Wanted]:
        if wanted.channels != 3:
            raise InputError(
                f"stacked-mnist has 3 channels, a digit each; channels is {wanted.channels}: "
                "leave it out"
            )
        return self.digits, replace(wanted, channels=1)

    def composed(self, pack: Pack) -> Pack:
        return stack(pack)


def stack(digits: Pack) -> Pack:
    """The stacked set of a pack of grey digits with ten classes.

    Raises:
        InputError: the pack is not grey, or has other than ten classes.
    """
    from ganfast.latents import philox_words

    info = digits.info
    if digits.labels is None or len(info.classes) != 10 or info.channels != 1:
        raise InputError(
            f"stacked-mnist is made of ten classes of grey digits; {info.recognised} is not that"
        )
    count = COUNTS[info.split]
    words = philox_words(0, Purpose.STACK, np.arange(count), 3)
    triples = (words % np.uint64(info.count)).astype(np.int64)
    labels = digits.labels[triples] @ np.array([100, 10, 1])
    stacked = replace(
        info,
        name="stacked-mnist",
        kind="stacked-mnist",
        count=count,
        channels=3,
        classes=tuple(f"{i:03d}" for i in range(1000)),
        recognised=_described(info.split, info.recognised),
    )
    images: Any = StackedImages(digits.images, triples)
    return Pack(images, labels, stacked, digits.verify)


def _described(split: str, digits: str) -> str:
    return (
        f"{COUNTS[split]:,} triples of digits as red, green and blue, 1000 classes, from {digits}"
    )
