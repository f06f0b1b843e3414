"""A folder or zip of pictures of any size. Sub-folders are classes when all pictures lie in one."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from ganfast.data.files import PictureFiles, is_picture
from ganfast.data.pictures import decode, is_grey, open_picture, preparation, prepare
from ganfast.data.source import Selection, Source, Wanted, counted
from ganfast.errors import InputError

_LOOK = 100  # pictures that tell the side of all


@dataclass(frozen=True)
class Folder(Source):
    path: Path
    kind = "folder"
    flip = True

    @cached_property
    def _files(self) -> PictureFiles:
        return PictureFiles(self.path)

    @property
    def name(self) -> str:
        return (self.path.name if self.path.is_dir() else self.path.stem) or "pictures"

    def natural(self, split: str) -> tuple[int, int]:
        return 0, 64

    def looked_at(self) -> tuple[int, int]:
        """By the headers of `_LOOK` pictures, evenly spread: the median of their shorter sides."""
        names = self._files.names
        spread = [
            names[i] for i in np.linspace(0, len(names) - 1, min(_LOOK, len(names))).astype(int)
        ]
        sides = [side for name in spread if (side := self._side(name))]
        return 1 if all(map(self._is_grey, spread)) else 3, int(np.median(sides or [64]))

    def _side(self, name: str) -> int:
        try:
            return min(open_picture(self._files.read(name), name).size)
        except InputError:  # raised again when the picture is read, unless such are skipped
            return 0

    def _describe(self, split: str) -> str:
        names = self._files.names
        classes = sorted(set(class_folders(names)))
        shown = ", ".join(classes[:5]) + (", ..." if len(classes) > 5 else "")
        labelled = ", no classes"
        if classes:
            labelled = f", {counted(len(classes), 'class')} by sub-folder: {shown}"
        what = "folder" if self.path.is_dir() else "zip"
        return f"{what} of pictures {self.path} ({counted(len(names), 'picture')}{labelled})"

    def identity(self, wanted: Wanted) -> str:
        return self._files.identity

    def select(self, wanted: Wanted) -> Selection:
        names = self._files.names
        channels = wanted.channels or (1 if all(map(self._is_grey, names)) else 3)

        def read(start: int, stop: int) -> np.ndarray:
            pictures = ((self._files.read(name), name) for name in names[start:stop])
            images = (decode(data, f"{name} in {self.path}") for data, name in pictures)
            return np.stack([prepare(image, wanted.size, channels) for image in images])

        folders = class_folders(names)
        classes, labels = np.unique(folders, return_inverse=True)
        own = "upright by EXIF, transparency on white"
        return Selection(
            count=len(names),
            channels=channels,
            labels=labels.astype(np.int64) if folders else None,
            classes=tuple(map(str, classes)),
            preparation=preparation(own, wanted.size, channels),
            read=read,
        )

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
    source = Folder(path)
    names, read = source._files.names, source.select(Wanted(size, channels)).read
    return names, lambda start, stop: read(start, stop).transpose(0, 2, 3, 1)


def class_folders(names: list[str]) -> list[str]:
    """The class of every picture: its first folder. [] when a picture lies in none.

    A folder that encloses everything is not a class, as in a zip of a folder: its sub-folders are.
    """
    paths = [name.split("/") for name in names]
    while all(len(path) > 1 for path in paths):
        if len({path[0] for path in paths}) > 1:
            return [path[0] for path in paths]
        paths = [path[1:] for path in paths]
    return []
