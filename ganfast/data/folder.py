"""A folder or zip of pictures of any size. Its sub-folders are the classes when every picture lies in one."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from ganfast.data.files import PictureFiles
from ganfast.data.pictures import decode, is_grey, open_picture, preparation, prepare
from ganfast.data.source import Selection, Source, Wanted, counted
from ganfast.errors import InputError


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

    def _describe(self, split: str) -> str:
        names = self._files.names
        classes = sorted(set(class_folders(names)))
        shown = ", ".join(classes[:5]) + (", ..." if len(classes) > 5 else "")
        labelled = (
            f", {counted(len(classes), 'class')} by sub-folder: {shown}"
            if classes
            else ", no classes"
        )
        what = "folder" if self.path.is_dir() else "zip"
        return f"{what} of pictures {self.path} ({counted(len(names), 'picture')}{labelled})"

    def identity(self, wanted: Wanted) -> str:
        return self._files.identity

    def select(self, wanted: Wanted) -> Selection:
        names = self._files.names
        channels = wanted.channels or (1 if all(map(self._is_grey, names)) else 3)

        def read(start: int, stop: int) -> np.ndarray:
            images = (
                decode(self._files.read(name), f"{name} in {self.path}")
                for name in names[start:stop]
            )
            return np.stack([prepare(image, wanted.size, channels) for image in images])

        folders = class_folders(names)
        classes, labels = np.unique(folders, return_inverse=True)
        return Selection(
            count=len(names),
            channels=channels,
            labels=labels.astype(np.int64) if folders else None,
            classes=tuple(map(str, classes)),
            preparation=preparation(
                "upright by EXIF, transparency on white", wanted.size, channels
            ),
            read=read,
        )

    def _is_grey(self, name: str) -> bool:
        try:
            return is_grey(open_picture(self._files.read(name), f"{name} in {self.path}"))
        except InputError:  # reading it will say so, if it is not to be skipped
            return True


def class_folders(names: list[str]) -> list[str]:
    """The class of every picture: its first folder. [] when a picture lies in none.

    A folder that encloses everything, as zips of a folder have it, is not a class: the level below it counts.
    """
    paths = [name.split("/") for name in names]
    while all(len(path) > 1 for path in paths):
        if len({path[0] for path in paths}) > 1:
            return [path[0] for path in paths]
        paths = [path[1:] for path in paths]
    return []
