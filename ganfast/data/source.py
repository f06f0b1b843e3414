"""What a source of pictures is, and which source a name or a path means.

A source knows its files and how to read them, and nothing of packs, batches or devices. `pack.py` reads it once.
"""

import difflib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from ganfast.errors import InputError

SPLITS = ("train", "test", "val", "all")


@dataclass(frozen=True)
class Wanted:
    """What is wanted of a source. With the identity of the source's files, it decides every byte of a pack."""

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
    read: Callable[[int, int], np.ndarray]  # (start, stop) -> uint8 (stop - start, channels, size, size); thread-safe


class Source(ABC):
    """One set of pictures on disk (or, for the digits, in scikit-learn). Cheap to make: only files' names are read."""

    kind: ClassVar[str]
    flip: ClassVar[bool]  # may a picture be mirrored without becoming another thing?

    @property
    @abstractmethod
    def name(self) -> str:
        """Short, for file names and titles."""

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits there are. ("all",) is a set that is not divided: there, "train" means all of it."""
        return ("all",)

    def check_split(self, split: str) -> str:
        """The split as the source calls it. Raises InputError when there is no such split."""
        if split not in SPLITS:
            raise InputError(f"unknown split {split!r}{did_you_mean(split, SPLITS)}: choose from {', '.join(SPLITS)}")
        if split in self.splits:
            return split
        if self.splits == ("all",) and split == "train":
            return "all"
        offered = "train or all, both mean every picture" if self.splits == ("all",) else ", ".join(self.splits)
        raise InputError(f"{self.name} has no split {split!r}: choose from {offered}")

    @abstractmethod
    def natural(self, split: str) -> tuple[int, int]:
        """(channels, size) of a pack when the user names none; 0 channels when only the pictures can tell."""

    def describe(self, split: str = "train") -> str:
        """One sentence for the user: what was recognised, where, how much of it. Raises InputError as it finds out."""
        return self._describe(self.check_split(split))

    @abstractmethod
    def _describe(self, split: str) -> str: ...

    @abstractmethod
    def identity(self, wanted: Wanted) -> str:
        """sha256 (hex) of what the source is, wherever it lies. Changes when a file that `wanted` needs changes."""

    @abstractmethod
    def select(self, wanted: Wanted) -> Selection:
        """Open what `wanted` asks for. Raises InputError for files that do not hold it."""


def did_you_mean(word: str, known: tuple[str, ...] | list[str]) -> str:
    """' (did you mean X?)' for the words of `known` that come close to `word`, else ''."""
    by_lower = {k.lower(): k for k in known}
    close = [by_lower[k] for k in difflib.get_close_matches(word.lower(), by_lower, n=3)]
    return f" (did you mean {' or '.join(close)}?)" if close else ""


def class_names(labels: np.ndarray, where: str) -> tuple[str, ...]:
    """Names '0' to the highest label. Raises InputError for labels that cannot be class numbers."""
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= 10_000:  # an id, a regression target: nothing one would want a class each for
        raise InputError(f"the labels of {where} run from {low} to {high}: class numbers are 0 to 9999")
    return tuple(map(str, range(high + 1)))


def counted(count: int, thing: str) -> str:
    """'1 picture', '2 pictures', '3 classes'."""
    plural = thing + ("es" if thing.endswith("s") else "s")
    return f"{count:,} {thing if count == 1 else plural}"


def cache_dir(cache: str | Path | None = None) -> Path:
    """Where packs/ and data/ lie: the argument, $GANFAST_CACHE, $XDG_CACHE_HOME/ganfast or ~/.cache/ganfast."""
    if chosen := cache or os.environ.get("GANFAST_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ganfast"


def places(root: str | Path | None = None, cache: str | Path | None = None) -> list[Path]:
    """The folders in which a bare name such as "mnist" is looked up, first one first."""
    chosen = [Path(p).expanduser() for p in (root, os.environ.get("GANFAST_DATA")) if p]
    return [*chosen, cache_dir(cache) / "data"]


def recognise(name_or_path: str | Path, root: str | Path | None = None, cache: str | Path | None = None) -> Source:
    """The source that a name ("digits", "mnist", "celeba", a folder in one of the `places`) or a path means.

    Raises:
        InputError: nothing of that name, or nothing in it that is recognised.
    """
    text = str(name_or_path)
    if not text:
        raise InputError("the data was given as an empty text: give a path, or a name like digits")
    if text == "digits":
        from ganfast.data.digits import Digits

        return Digits()
    try:
        if len(Path(text).parts) == 1 and text not in (".", "..") and not text.startswith("~"):
            return _recognise_name(text, places(root, cache))
        path = Path(text).expanduser()
        if not path.exists():
            raise InputError(f"{path} does not exist: give a folder, a .zip, .npz or .npy file, or a name like digits")
        return recognise_path(path)
    except (OSError, ValueError, RuntimeError) as error:  # unreadable, a null byte in the path, no such ~user
        if isinstance(error, InputError):
            raise
        raise InputError(f"{text!r} cannot be opened as data: {error}") from error


def _recognise_name(name: str, folders: list[Path]) -> Source:
    spellings = {"mnist": ("mnist", "MNIST"), "celeba": ("celeba", "CelebA")}.get(name, (name,))
    kind = {"mnist": "idx", "celeba": "celeba"}.get(name)  # a folder "mnist" with something else in it is passed over
    for path in [folder / spelling for folder in folders for spelling in spellings] + [Path(name)]:
        if path.exists():
            source = recognise_path(path)
            if kind in (None, source.kind):
                return source
    present = {p.name for folder in folders if folder.is_dir() for p in folder.iterdir() if not p.name.startswith(".")}
    looked = ", ".join(str(folder / name) for folder in folders)
    fetch = "`ganfast data fetch mnist` downloads MNIST" if name == "mnist" else "`digits` needs no files"
    near = did_you_mean(name, sorted({*present, "digits", "mnist", "celeba"} - {name}))
    raise InputError(
        f"no data named {name!r}{near}: looked for {looked} and ./{name}; "
        f"give a path with --data PATH, or the folder that holds it with --data-root; {fetch}"
    )


def recognise_path(path: Path) -> Source:
    """The source that lies at an existing path."""
    from ganfast.data import arrays, celeba, files, folder, idx

    path = Path(os.path.abspath(path))  # "." and ".." have no name
    if not path.is_dir() and not path.is_file():
        raise InputError(
            f"{path} is neither a folder nor a regular file: give a folder, a .zip, .npz or .npy file, or a name like digits"
        )
    if path.is_dir():
        if idx.find_folder(path):
            return idx.Idx(path)
        faces = celeba.find_pictures(path)
        return celeba.CelebA(faces) if faces else folder.Folder(path)
    if path.suffix.lower() == ".zip":
        return celeba.CelebA(path) if path.name == celeba.ZIP_NAME else folder.Folder(path)
    if path.suffix.lower() in (".npy", ".npz"):
        return arrays.Arrays(path)
    if "ubyte" in path.name:
        raise InputError(f"{path} is one file of an IDX set: give the folder it lies in, {path.parent}")
    if path.suffix.lower() in files.SUFFIXES:
        raise InputError(f"{path} is a single picture: give a folder or a .zip of pictures")
    found = files.first_bytes(path)
    raise InputError(f"{path} is {found}: expected a folder of pictures, CelebA or IDX files, or a .zip, .npz or .npy")
