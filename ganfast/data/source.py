"""What a source of pictures is.

It knows its files and how to read them, and nothing of packs, batches or devices. `pack.py` reads a
source once.
"""

import difflib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ganfast.errors import InputError

if TYPE_CHECKING:
    from ganfast.data.manifest import Pack

SPLITS = ("train", "test", "val", "all")


@dataclass(frozen=True)
class Wanted:
    """Which pictures a pack holds. With the identity of the files it fixes every byte of a pack."""

    size: int  # pictures come out as size x size
    channels: int  # 1 or 3; 0: as the pictures are, which takes a look at them
    attributes: tuple[str, ...] = ()  # CelebA attributes that make the classes
    split: str = "train"


@dataclass(frozen=True)
class Selection:
    """The pictures of one split, checked as far as that goes without decoding them."""

    count: int
    channels: int
    labels: np.ndarray | None  # int64 (count,)
    classes: tuple[str, ...]
    preparation: str  # what is done to a picture, in words
    # (start, stop) -> uint8 (stop - start, channels, size, size); thread-safe
    read: Callable[[int, int], np.ndarray]


class Source(ABC):
    """One set of pictures on disk, or in scikit-learn. Cheap to make: it only reads file names."""

    kind: ClassVar[str]
    flip: ClassVar[bool]  # may a picture be mirrored without becoming another thing?

    @property
    @abstractmethod
    def name(self) -> str:
        """Short, for file names and titles."""

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits of the set. ("all",) is an undivided set, of which "train" means all."""
        return ("all",)

    def check_split(self, split: str) -> str:
        """The split as the source calls it. Raises InputError when there is no such split."""
        if split not in SPLITS:
            raise InputError(
                f"unknown split {split!r}{did_you_mean(split, SPLITS)}: "
                f"choose from {', '.join(SPLITS)}"
            )
        if split in self.splits:
            return split
        if self.splits == ("all",) and split == "train":
            return "all"
        offered = ", ".join(self.splits)
        if self.splits == ("all",):
            offered = "train or all, both mean every picture"
        raise InputError(f"{self.name} has no split {split!r}: choose from {offered}")

    @abstractmethod
    def natural(self, split: str) -> tuple[int, int]:
        """(channels, size) when the user names none; 0 channels when only the pictures can tell."""

    def looked_at(self) -> tuple[int, int]:
        """(channels, side) of the pictures as they lie there, after a look at some of them.

        The default is for sources whose `natural` says it.
        """
        return self.natural(self.check_split("train"))

    def describe(self, split: str = "train") -> str:
        """One sentence for the user: the kind of set, its place and its size.

        Raises:
            InputError: the files are not what they seemed.
        """
        return self._describe(self.check_split(split))

    @abstractmethod
    def _describe(self, split: str) -> str: ...

    @abstractmethod
    def identity(self, wanted: Wanted) -> str:
        """sha256 (hex) of the files that `wanted` needs, wherever they lie."""

    @abstractmethod
    def select(self, wanted: Wanted) -> Selection:
        """Open the pictures of `wanted`. Raises InputError for files that do not hold them."""

    def packed_as(self, wanted: Wanted) -> "tuple[Source, Wanted]":
        """The source that is packed: this one, or the one that `composed` makes its pictures of."""
        return self, wanted

    def composed(self, pack: "Pack") -> "Pack":
        """The set that is trained on, of the pack of `packed_as`."""
        return pack


def did_you_mean(word: str, known: tuple[str, ...] | list[str]) -> str:
    """' (did you mean X?)' for the words of `known` that come close to `word`, else ''."""
    by_lower = {k.lower(): k for k in known}
    close = [by_lower[k] for k in difflib.get_close_matches(word.lower(), by_lower, n=3)]
    return f" (did you mean {' or '.join(close)}?)" if close else ""


def class_names(labels: np.ndarray, where: str) -> tuple[str, ...]:
    """Names '0' to the highest label. Raises InputError for labels that cannot be class numbers."""
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= 10_000:  # ids or regression targets, no classes
        raise InputError(
            f"the labels of {where} run from {low} to {high}: class numbers are 0 to 9999"
        )
    return tuple(map(str, range(high + 1)))


def counted(count: int, thing: str) -> str:
    """'1 picture', '2 pictures', '3 classes'."""
    plural = thing + ("es" if thing.endswith("s") else "s")
    return f"{count:,} {thing if count == 1 else plural}"


def cache_dir(cache: str | Path | None = None) -> Path:
    """The folder of packs/ and data/: ``cache``, or one of environment variables, or ~/.cache.

    The variables are $GANFAST_CACHE and $XDG_CACHE_HOME, the second with ganfast/ behind it.
    """
    if chosen := cache or os.environ.get("GANFAST_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ganfast"
