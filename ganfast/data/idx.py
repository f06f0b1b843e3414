"""IDX sets: MNIST and those that keep its format (Fashion-MNIST, KMNIST, EMNIST under these names).

A file is 0 0 type ndim, then ndim big-endian uint32 dimensions, then the values:
http://yann.lecun.com/exdb/mnist/. Pictures are uint8 (N, H, W), labels uint8 (N,). Both may be
gzipped.
"""

import gzip
import hashlib
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from ganfast.data.files import file_identity, what_is
from ganfast.data.pictures import preparation, prepare_array
from ganfast.data.source import Selection, Source, Wanted, class_names, counted
from ganfast.errors import InputError

PREFIX = {"train": "train", "test": "t10k"}
STEM = {"images": "{}-images{}idx3-ubyte", "labels": "{}-labels{}idx1-ubyte"}
TYPES = {0x09: "int8", 0x0B: "int16", 0x0C: "int32", 0x0D: "float32", 0x0E: "float64"}
DEFLATE_LIMIT = 1032  # deflate cannot shrink anything further than 1032:1


def find_file(folder: Path, split: str, what: str) -> Path | None:
    """The file of pictures ("images") or "labels" of a split, under any of its usual spellings."""
    names = [STEM[what].format(PREFIX[split], dot) + gz for dot in "-." for gz in ("", ".gz")]
    return next((folder / name for name in names if (folder / name).is_file()), None)


def find_folder(path: Path) -> Path | None:
    """`path`, or its sub-folder raw (torchvision's habit), if it holds a file of an IDX set."""
    for folder in (path, path / "raw"):
        if any(find_file(folder, split, what) for split in PREFIX for what in STEM):
            return folder
    return None


def _open(path: Path) -> tuple[BinaryIO, int]:
    """The file, unpacked if its first bytes say gzip, and the most bytes that it can hold."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    if packed:
        return cast(BinaryIO, gzip.open(path)), size * DEFLATE_LIMIT
    return open(path, "rb"), size


def _read_header(file: BinaryIO, most: int, path: Path, ndim: int) -> tuple[int, ...]:
    """The dimensions, if a file of at most `most` bytes can have them.

    Without this check a header of a few bytes could make the reader allocate terabytes.
    """
    kind = "pictures" if ndim == 3 else "labels"
    expected = f"expected an IDX file of {kind} (00 00 08 {ndim:02x}), gzipped or not"
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0":
        raise InputError(f"{path} is {what_is(magic + file.read(60))}: {expected}")
    if magic[2] != 0x08:
        dtype = TYPES.get(magic[2], f"unknown type 0x{magic[2]:02x}")
        raise InputError(f"{path} holds {dtype} values: only unsigned bytes are read; {expected}")
    if magic[3] != ndim:
        meaning = {1: ", which are labels", 3: ", which are pictures"}.get(magic[3], "")
        raise InputError(
            f"{path} holds values in {counted(magic[3], 'dimension')}{meaning}: {expected}"
        )
    dims = file.read(4 * ndim)
    if len(dims) < 4 * ndim:
        raise InputError(f"{path} is cut off within its header: {expected}")
    shape = struct.unpack(f">{ndim}I", dims)
    if math.prod(shape) > most:
        raise InputError(
            f"{path} announces {_shown(shape)} values and can hold {most:,} at most: "
            "download it again"
        )
    return shape


def _shown(shape: tuple[int, ...]) -> str:
    return f"{'x'.join(map(str, shape))} = {math.prod(shape):,}"


def read_idx(path: Path, ndim: int) -> np.ndarray:
    """The values of one IDX file: uint8, `ndim` dimensions, read-only. Else raises InputError."""
    try:
        file, most = _open(path)
        with file:
            shape = _read_header(file, most, path, ndim)
            size = math.prod(shape)
            data = file.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(
            f"{path} cannot be unpacked ({error}): it is damaged or cut off, download it again"
        ) from error
    if len(data) != size:
        count = "more" if len(data) > size else f"{len(data):,}"
        raise InputError(
            f"{path} announces {_shown(shape)} values and holds {count}: download it again"
        )
    return np.frombuffer(data, np.uint8).reshape(shape)


@dataclass(frozen=True)
class Idx(Source):
    path: Path
    kind = "idx"
    flip = False

    @property
    def name(self) -> str:
        folder = self.path.parent if self.path.name == "raw" else self.path
        return folder.name.lower() or "idx"

    @property
    def splits(self) -> tuple[str, ...]:
        return ("train", "test", "all")

    def _file(self, split: str, what: str) -> Path:
        folder = find_folder(self.path) or self.path
        if path := find_file(folder, split, what):
            return path
        name = STEM[what].format(PREFIX[split], "-")
        fetch = "; `ganfast data fetch mnist` downloads MNIST" if self.name == "mnist" else ""
        raise InputError(f"{folder} has no {name} or {name}.gz, which split {split!r} needs{fetch}")

    def _shape(self, split: str) -> tuple[int, int, int]:
        """(N, H, W) of one of the two splits, from its header."""
        path = self._file(split, "images")
        try:
            file, most = _open(path)
            with file:
                count, height, width = _read_header(file, most, path, 3)
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"{path} cannot be unpacked ({error}): download it again") from error
        if not count or not height or height != width:
            raise InputError(
                f"{path} announces {count} pictures of {height}x{width}: "
                "expected some, and square ones"
            )
        return count, height, width

    def _shapes(self, split: str) -> list[tuple[int, int, int]]:
        shapes = [self._shape(part) for part in _parts(split)]
        if len({shape[1:] for shape in shapes}) > 1:
            raise InputError(
                f"the splits of {self.path} differ in picture size, {shapes}: choose train or test"
            )
        return shapes

    def natural(self, split: str) -> tuple[int, int]:
        return 1, self._shapes(split)[0][1]

    def _describe(self, split: str) -> str:
        shapes = self._shapes(split)
        size = shapes[0][1]
        count = sum(shape[0] for shape in shapes)
        pictures = counted(count, f"{' and '.join(_parts(split))} picture")
        classes = counted(len(class_names(self._labels(split), str(self.path))), "class")
        return f"MNIST-format IDX set in {self.path} ({pictures} {size}x{size} grey, {classes})"

    def identity(self, wanted: Wanted) -> str:
        files = [self._file(part, what) for part in _parts(wanted.split) for what in STEM]
        return hashlib.sha256(" ".join(map(file_identity, files)).encode()).hexdigest()

    def _labels(self, split: str) -> np.ndarray:
        labels = []
        for part in _parts(split):
            path, count = self._file(part, "labels"), self._shape(part)[0]
            labels.append(read_idx(path, ndim=1))
            if len(labels[-1]) != count:
                pictures = self._file(part, "images")
                raise InputError(
                    f"{path} has {len(labels[-1])} labels and {pictures} {count} pictures: "
                    "not one set"
                )
        return np.concatenate(labels).astype(np.int64)

    def select(self, wanted: Wanted) -> Selection:
        size = self._shapes(wanted.split)[0][1]
        unchanged = (wanted.size, wanted.channels) == (size, 1)
        labels = self._labels(wanted.split)
        files = [self._file(part, "images") for part in _parts(wanted.split)]
        pictures = np.concatenate([read_idx(file, ndim=3) for file in files])[..., None]
        return Selection(
            count=len(pictures),
            channels=wanted.channels,
            labels=labels,
            classes=class_names(labels, str(self.path)),
            preparation=preparation(f"{size}x{size} grey", wanted.size, wanted.channels, unchanged),
            read=lambda start, stop: prepare_array(
                pictures[start:stop], wanted.size, wanted.channels
            ),
        )


def _parts(split: str) -> tuple[str, ...]:
    return ("train", "test") if split == "all" else (split,)
