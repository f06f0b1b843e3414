"""What a source of pictures is.

It knows its files and how to read them, and nothing of packs, batches or devices. `pack.py` reads a
source once.
"""

import copy
import difflib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

import numpy as np

from ganfast.errors import InputError

if TYPE_CHECKING:
    from ganfast.data.manifest import Pack

T = TypeVar("T")

SPLITS = ("train", "test", "val", "all")
# Version of the rules that find classes and splits. A run keeps the rules that it began with, as
# other classes would be other networks.
RULES = 2


@dataclass(frozen=True)
class Wanted:
    """Which pictures a pack holds. With the identity of the files it fixes every byte of a pack."""

    size: int  # pictures come out as size x size
    channels: int  # 1 or 3; 0: as the pictures are, which takes a look at them
    attributes: tuple[str, ...] = ()  # CelebA attributes that make the classes
    split: str = "train"
    transpose: bool = False  # rows become columns


@dataclass(frozen=True)
class Reading:
    """What one split of a source was recognised as, before any picture is decoded."""

    what: str  # the kind of set and its place
    rows: Any  # what `prepared` finds the pictures by; equal rows are equal pictures
    count: int
    facts: tuple[str, ...] = ()  # about the pictures, in words; the first follows their count
    values: np.ndarray | None = None  # class of each picture as the files have it, (count,)
    names: tuple[str, ...] = ()  # of the values 0, 1, ...; () = each value is its own name
    by: str = ""  # what makes the classes, or why there are none
    parts: dict[str, int] = field(default_factory=dict)  # splits and their pictures
    left_out: tuple[str, ...] = ()  # what is not read, in words


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


Prepared = tuple[int, str, Callable[[int, int], np.ndarray]]  # the like fields of a Selection


class Source(ABC):
    """One set of pictures on disk, or in scikit-learn. Cheap to make: it only reads file names."""

    kind: ClassVar[str]
    flip: ClassVar[bool]  # may a picture be mirrored without becoming another thing?
    rules = 1

    @property
    @abstractmethod
    def name(self) -> str:
        """Short, for file names and titles."""

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits of the set. ("all",) is an undivided set, of which "train" means all."""
        return ("all",)

    def by_rules(self, rules: int) -> "Source":
        """The source with classes and splits found by the rules of a version, see `RULES`."""
        return self

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

    def sentence(self, wanted: Wanted) -> str:
        """`describe` for what is wanted of the source."""
        return self._describe(wanted.split)

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


class Recognised(Source):
    """A source of which classes and splits are found by rules, in the form of a `Reading`."""

    rules = RULES

    @cached_property
    def _known(self) -> dict[Hashable, Any]:
        return {}

    def _once(self, make: Callable[..., T], *key: Any) -> T:
        """``make(*key)``, once for each of the rules: tables and folders are long."""
        place = (self.rules, make.__name__, *key)
        if place not in self._known:
            self._known[place] = make(*key)
        known: T = self._known[place]
        return known

    def by_rules(self, rules: int) -> Self:
        if rules not in range(1, RULES + 1):
            raise InputError(
                f"the data was read by rules {rules!r}, and this version of ganfast knows 1 to "
                f"{RULES}: take the version that made the run"
            )
        self._known  # noqa: B018 - what was read of the files is shared
        other = copy.copy(self)
        object.__setattr__(other, "rules", rules)
        return other

    @abstractmethod
    def _read(self, wanted: Wanted) -> Reading: ...

    @abstractmethod
    def _prepared(self, wanted: Wanted, reading: Reading) -> Prepared: ...

    def reading(self, wanted: Wanted) -> Reading:
        """Raises InputError: the files are not what they seemed."""
        return self._once(self._read, replace(wanted, size=0, channels=0, transpose=False))

    def classes(self, wanted: Wanted) -> tuple[tuple[str, ...], np.ndarray | None]:
        """Names of the classes, and the label of each picture, int64 (N,).

        A class without pictures has no number. The classes of the training split come first, so
        that a class has the same number in every split.
        """
        reading = self.reading(wanted)
        values = first = reading.values
        if values is None:
            return (), None
        if values.dtype.kind != "U":
            check_numbers(values, reading.what)
        if "train" in self.splits:
            with suppress(InputError):  # a test split alone
                first = self.reading(replace(wanted, split="train")).values
        numbers = values.dtype.kind != "U"
        if first is None or (first.dtype.kind != "U") != numbers:
            first = values
        if self.rules == 1 and numbers:
            first = np.arange(len(reading.names) or values.max() + 1)
        known = np.concatenate([np.unique(first), np.setdiff1d(values, first)])
        order = np.argsort(known)
        labels = order[np.searchsorted(known[order], values)].astype(np.int64)
        return tuple(reading.names[v] if reading.names else str(v) for v in known), labels

    def as_before(self, wanted: Wanted) -> Self:
        """The source by the first rules where they find the same: older packs are right then."""
        before = self.by_rules(1)
        with suppress(InputError):
            if before.splits == self.splits and before._outcome(wanted) == self._outcome(wanted):
                return before
        return self

    def _outcome(self, wanted: Wanted) -> tuple[Any, ...]:
        classes, labels = self.classes(wanted)
        return self.reading(wanted).rows, classes, None if labels is None else labels.tobytes()

    def _describe(self, split: str) -> str:
        return self.sentence(Wanted(0, 0, split=split))

    def sentence(self, wanted: Wanted) -> str:
        reading, (names, _) = self.reading(wanted), self.classes(wanted)
        part = "" if wanted.split == "all" else f"{wanted.split} "
        facts = [" ".join((counted(reading.count, f"{part}picture"), *reading.facts[:1]))]
        classes = counted(len(names), "class") if names else "no classes"
        if reading.by:
            classes += f" {reading.by}" if names else f", as {reading.by}"
        if names and names != tuple(map(str, range(len(names)))):
            classes += f": {', '.join(names[:5])}" + (", ..." if len(names) > 5 else "")
        sentence = f"{reading.what} ({', '.join((*facts, *reading.facts[1:], classes))})"
        rest = {} if wanted.split == "all" else reading.parts
        others = [counted(rest[s], f"{s} picture") for s in rest if s != wanted.split]
        for lead, what in (("also", others), ("left out:", reading.left_out)):
            sentence += f"; {lead} {', '.join(what)}" if what else ""
        return sentence

    def select(self, wanted: Wanted) -> Selection:
        reading, (classes, labels) = self.reading(wanted), self.classes(wanted)
        channels, preparation, read = self._prepared(wanted, reading)
        return Selection(reading.count, channels, labels, classes, preparation, read)


def did_you_mean(word: str, known: tuple[str, ...] | list[str]) -> str:
    """' (did you mean X?)' for the words of `known` that come close to `word`, else ''."""
    by_lower = {k.lower(): k for k in known}
    close = [by_lower[k] for k in difflib.get_close_matches(word.lower(), by_lower, n=3)]
    return f" (did you mean {' or '.join(close)}?)" if close else ""


def check_numbers(labels: np.ndarray, where: str) -> None:
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= 10_000:  # ids or regression targets, no classes
        raise InputError(
            f"the labels of {where} run from {low} to {high}: class numbers are 0 to 9999"
        )


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
