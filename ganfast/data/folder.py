"""A folder or zip of pictures of any size, its splits and classes by the names of its folders.

StyleGAN's dataset.json names the classes where it is; its sub-folders only divide the files.
"""

import hashlib
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ganfast.data.files import LABELS, PictureFiles, is_picture, slashed
from ganfast.data.pictures import decode, is_grey, open_picture, preparation, prepare, reader
from ganfast.data.source import SPLITS, Prepared, Reading, Recognised, Wanted, counted
from ganfast.errors import InputError
from ganfast.outside import parse_json

# Folders that are splits where nothing else lies beside them.
SPLIT_FOLDERS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
SPLIT_FOLDERS |= dict.fromkeys(("val", "valid", "validation"), "val")
_BY_LABELS = f"by {LABELS}"
_LOOK = 100  # pictures whose headers tell the size of all

Paths = dict[str, list[str]]  # name of a picture -> its folders and its file name


class Part(NamedTuple):
    """One split."""

    names: list[str]
    values: list[Any] | None  # class of each
    by: str = ""


@dataclass(frozen=True)
class Folder(Recognised):
    path: Path
    kind = "folder"
    flip = True

    @cached_property
    def _files(self) -> PictureFiles:
        return PictureFiles(self.path)

    @property
    def name(self) -> str:
        return (self.path.name if self.path.is_dir() else self.path.stem) or "pictures"

    @property
    def splits(self) -> tuple[str, ...]:
        parts = self._once(self._parts)
        return (*(split for split in SPLITS if split in parts and split != "all"), "all")

    def natural(self, split: str) -> tuple[int, int]:
        return 0, 64

    def looked_at(self) -> tuple[int, int]:
        """The median of the shorter sides, by the headers of `_LOOK` pictures."""
        spread = _spread(self._files.names)
        sides = [min(side) for side in self._sides(spread)]
        return 1 if all(map(self._is_grey, spread)) else 3, int(np.median(sides or [64]))

    def identity(self, wanted: Wanted) -> str:
        labels = self._files.labels
        if self.rules == 1 or not labels or self._labels() is None:
            return self._files.identity
        both = self._files.identity.encode() + self._files.read(labels)
        return hashlib.sha256(both).hexdigest()

    def _parts(self) -> dict[str, Part]:
        """The splits; "all" where the pictures are not divided."""
        names = self._files.names
        if self.rules == 1:
            return {"all": _by_folder({name: name.split("/") for name in names}, 1)}
        paths = {name: slashed(name).split("/") for name in names}
        if (labels := self._once(self._labels)) is not None:
            return {"all": _by_labels(paths, labels, self._files.labels or "")}
        inside, depth = _divided(paths)
        tops = {name: path[depth].lower() for name, path in inside.items()}
        if not _nearly_all(inside, paths) or not SPLIT_FOLDERS.keys() >= set(tops.values()):
            return {"all": _by_folder(paths, self.rules)}
        parts: dict[str, Paths] = {}
        for name, path in inside.items():
            parts.setdefault(SPLIT_FOLDERS[tops[name]], {})[name] = path[depth + 1 :]
        train = _by_folder(parts.get("train", {}), self.rules)
        known = frozenset(train.values or ())
        return {split: _by_folder(part, self.rules, known) for split, part in parts.items()}

    def _labels(self) -> dict[str, Any] | None:
        """What dataset.json says of each file; None where there is none of StyleGAN's."""
        if not (name := self._files.labels):
            return None
        try:
            loaded = parse_json(self._files.read(name))
            if not isinstance(loaded, dict) or "labels" not in loaded:
                return None
            return dict(loaded["labels"] or {})
        except (ValueError, TypeError) as error:
            raise InputError(
                f"{name} in {self.path} is no {LABELS} as StyleGAN reads it ({error}): "
                'expected {"labels": [["picture.png", 0], ...]}; mend it, or move it elsewhere'
            ) from error

    def _read(self, wanted: Wanted) -> Reading:
        parts = self._once(self._parts)
        chosen = list(parts.values()) if wanted.split == "all" else [parts[wanted.split]]
        names = [name for part in chosen for name in part.names]
        values = [value for part in chosen for value in part.values or ()]
        rest = len(self._files.names) - sum(len(part.names) for part in parts.values())
        why = (
            f"without a label in {LABELS}"
            if chosen[0].by == _BY_LABELS
            else "outside of the sub-folders"
        )
        left_out = [f"{counted(rest, 'picture')} {why}"] if rest else []
        return Reading(
            what=f"{'folder' if self.path.is_dir() else 'zip'} of pictures {self.path}",
            rows=names,
            count=len(names),
            facts=(self._sizes(names),),
            values=np.array(values) if len(values) == len(names) else None,
            by=next((part.by for part in chosen if part.values is None), chosen[0].by),
            parts={split: len(part.names) for split, part in parts.items()},
            left_out=(*left_out, *self._files.others),
        )

    def _sizes(self, names: list[str]) -> str:
        """ "20x20", or "10x400 to 400x30": by area, of some pictures that lie evenly."""
        ordered = sorted(
            set(self._sides(_spread(names))), key=lambda side: (side[0] * side[1], side)
        )
        ends = ordered[:1] + ordered[-1:]
        return " to ".join(f"{width}x{height}" for width, height in dict.fromkeys(ends))

    def _sides(self, names: list[str]) -> list[tuple[int, int]]:
        """(width, height) of each picture that can be opened."""
        sides = []
        for name in names:
            with suppress(InputError):  # raised again when it is read, unless such are skipped
                sides.append(open_picture(self._files.read(name), name).size)
        return sides

    def _prepared(self, wanted: Wanted, reading: Reading) -> Prepared:
        names, size = reading.rows, wanted.size
        channels = wanted.channels or (1 if all(map(self._is_grey, names)) else 3)
        own = "upright by EXIF, transparency on white"
        read = reader(self._files, names, size, channels)
        return channels, preparation(own, size, channels), read

    def _is_grey(self, name: str) -> bool:
        try:
            return is_grey(open_picture(self._files.read(name), f"{name} in {self.path}"))
        except InputError:  # raised again when the picture is read, unless such are skipped
            return True


def pictures_at(
    path: Path, size: int, channels: int
) -> tuple[list[str], Callable[[int, int], np.ndarray]]:
    """Names of the pictures in a folder or zip, or of one picture, and what reads some of them.

    They are prepared as for training: uint8 (stop - start, size, size, channels) of (start, stop).

    Raises:
        InputError: there is nothing, or no picture; later, one cannot be read.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist: give a folder or zip of pictures, or a picture")
    if path.is_file() and is_picture(path.name):
        picture = prepare(decode(path.read_bytes(), str(path)), size, channels)
        return [path.name], lambda start, stop: picture.transpose(1, 2, 0)[None][start:stop]
    files = PictureFiles(path)
    names = files.names
    read = reader(files, names, size, channels)
    return names, lambda start, stop: read(start, stop).transpose(0, 2, 3, 1)


def _spread(names: list[str]) -> list[str]:
    """At most `_LOOK` of the names, evenly spread, with the last."""
    return names[:: -max(1, -(-len(names) // _LOOK))]


def _divided(paths: Paths, known: frozenset[str] = frozenset()) -> tuple[Paths, int]:
    """The pictures that lie in two or more folders side by side, and how deep these folders are.

    A folder that encloses all others does not divide, as in a zip of a folder, unless it is known.
    """
    inside, depth = paths, 0
    while True:
        inside = {name: path for name, path in inside.items() if len(path) > depth + 1}
        folders = {path[depth] for path in inside.values()}
        if len(folders) != 1 or folders <= known:
            return inside, depth
        depth += 1


def _nearly_all(inside: Paths, paths: Paths) -> bool:
    """Whether folders divide all pictures but one, or one in twenty: a preview, a logo."""
    return bool(inside) and len(paths) - len(inside) <= max(1, len(paths) // 20)


def _by_folder(paths: Paths, rules: int, known: frozenset[str] = frozenset()) -> Part:
    """Sub-folders are classes, unless they only number the pictures."""
    inside, depth = _divided(paths, known)
    folders = [path[depth] for path in inside.values()]
    outside = len(paths) - len(inside)
    if not _nearly_all(inside, paths) or (rules == 1 and outside):
        by = f"{counted(outside, 'picture')} of them lie outside of sub-folders" if inside else ""
        return Part([*paths], None, by)
    if rules > 1 and _numbered(inside, depth):
        return Part([*paths], None, f"the sub-folders {folders[0]}, ... only number them")
    return Part([*inside], folders, "by sub-folder")


def _numbered(inside: Paths, depth: int) -> bool:
    """Whether folders such as 00000 and 01000 hold files that are numbered on, as FFHQ has them."""
    spans: dict[str, list[int]] = {}
    for path in inside.values():
        number = re.fullmatch(r"\D*(\d{1,18})\.\w+", path[-1])
        if not number or not re.fullmatch(r"\d{5,18}", path[depth]):
            return False
        spans.setdefault(path[depth], []).append(int(number[1]))
    return all(max(before) < min(after) for before, after in pairwise(spans.values()))


def _by_labels(paths: Paths, labels: dict[str, Any], where: str) -> Part:
    """The classes of dataset.json, which names pictures from its own folder on."""
    above = slashed(where)[: -len(LABELS)]
    values = {name: labels.get(slashed(name).removeprefix(above)) for name in paths}
    if not labels:
        return Part([*paths], None, f"{LABELS} gives none")
    labelled = {name: value for name, value in values.items() if value is not None}
    if not labelled or any(type(value) is not int for value in labelled.values()):
        return Part([*paths], None, f"{LABELS} gives no class numbers of them")
    return Part([*labelled], [*labelled.values()], _BY_LABELS)
