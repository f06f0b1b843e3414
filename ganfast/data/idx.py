"""IDX sets: MNIST, and those in its format: Fashion-MNIST, KMNIST, EMNIST, QMNIST.

A file is 0 0 type ndim, then ndim big-endian uint32 dimensions, then the values:
http://yann.lecun.com/exdb/mnist/. Pictures are uint8 (N, H, W), labels uint8 (N,); those of QMNIST
are int32 (N, 8), the class first. All may be gzipped. A set may have its name before those of its
files, as emnist-letters-train-images-idx3-ubyte.gz.
"""

import gzip
import hashlib
import math
import os
import re
import struct
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from ganfast.data.files import file_identity, what_is
from ganfast.data.pictures import prepared_array
from ganfast.data.source import Prepared, Reading, Recognised, Wanted, counted
from ganfast.errors import InputError

STEM = {"images": "{}-images-idx3-ubyte", "labels": "{}-labels-idx1-ubyte"}
SPLIT = {"train": "train", "t10k": "test", "test": "test"}  # as files call it
_NAME = re.compile(
    r"((?P<set>.+?)-)?(?P<split>train|t10k|test)-"
    r"(?P<what>images|labels)[-.]idx(1-ubyte|2-int|3-ubyte)(\.gz)?"
)
TYPE_OF = {1: (0x08, "u1"), 2: (0x0C, ">i4"), 3: (0x08, "u1")}  # by the number of dimensions
TYPES = {0x08: "unsigned byte", 0x09: "int8", 0x0B: "int16", 0x0C: "int32", 0x0D: "float32"}
DEFLATE_LIMIT = 1032  # deflate cannot shrink anything further than 1032:1


Files = dict[tuple[str, str], Path]  # (split, "images" or "labels") -> file


def find_sets(path: Path) -> dict[str, Files]:
    """The sets by name in a folder, or in its sub-folder raw (torchvision's) or gzip (EMNIST's).

    The name of MNIST's own files is "". A path that is not there may name one set in its folder.
    """
    place = path if path.exists() else path.parent
    for folder in (place, place / "raw", place / "gzip"):
        sets: dict[str, Files] = {}
        matches = map(_NAME.fullmatch, sorted(os.listdir(folder)) if folder.is_dir() else [])
        names = [match for match in matches if match and (folder / match[0]).is_file()]
        # of several spellings "-idx" and the unpacked file
        for name in sorted(names, key=lambda name: (".idx" in name[0], name[0].endswith(".gz"))):
            files = sets.setdefault(name["set"] or "", {})
            files.setdefault((SPLIT[name["split"]], name["what"]), folder / name[0])
        if sets:
            return {name: sets[name] for name in sets if place == path or name == path.name}
    return {}


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
    kind, (type_, dtype) = "pictures" if ndim == 3 else "labels", TYPE_OF[ndim]
    expected = f"expected an IDX file of {kind} (00 00 {type_:02x} {ndim:02x}), gzipped or not"
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0":
        raise InputError(f"{path} is {what_is(magic + file.read(60))}: {expected}")
    if magic[2] != type_:
        held = TYPES.get(magic[2], f"type 0x{magic[2]:02x}")
        raise InputError(f"{path} holds {held} values, not {TYPES[type_]} ones: {expected}")
    if magic[3] != ndim:
        meaning = {1: ", which are labels", 3: ", which are pictures"}.get(magic[3], "")
        raise InputError(
            f"{path} holds values in {counted(magic[3], 'dimension')}{meaning}: {expected}"
        )
    dims = file.read(4 * ndim)
    if len(dims) < 4 * ndim:
        raise InputError(f"{path} is cut off within its header: {expected}")
    shape = struct.unpack(f">{ndim}I", dims)
    if math.prod(shape) * np.dtype(dtype).itemsize > most:
        raise InputError(
            f"{path} announces {_shown(shape)} values and can hold {most:,} at most: "
            "download it again"
        )
    return shape


def _shown(shape: tuple[int, ...]) -> str:
    return f"{'x'.join(map(str, shape))} = {math.prod(shape):,}"


def read_idx(path: Path, ndim: int) -> np.ndarray:
    """The values of one IDX file, `ndim` dimensions, read-only. Else raises InputError.

    They are uint8, in two dimensions int32.
    """
    dtype = np.dtype(TYPE_OF[ndim][1])
    try:
        file, most = _open(path)
        with file:
            shape = _read_header(file, most, path, ndim)
            size = math.prod(shape) * dtype.itemsize
            data = file.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(
            f"{path} cannot be unpacked ({error}): it is damaged or cut off, download it again"
        ) from error
    if len(data) != size:
        count = "more" if len(data) > size else f"{len(data) // dtype.itemsize:,}"
        raise InputError(
            f"{path} announces {_shown(shape)} values and holds {count}: download it again"
        )
    return np.frombuffer(data, dtype).reshape(shape)


@dataclass(frozen=True)
class Idx(Recognised):
    path: Path  # a folder, or the name of one set in a folder of several
    kind = "idx"
    flip = False

    @property
    def name(self) -> str:
        inner = self.path.name in ("raw", "gzip") and self.path.exists()
        folder = self.path.parent if inner else self.path
        return folder.name.lower() or "idx"

    @property
    def splits(self) -> tuple[str, ...]:
        return ("train", "test", "all")

    def _files(self) -> Files:
        sets = find_sets(self.path)
        if len(sets) > 1 and "" not in sets:
            names = ", ".join(sorted(sets))
            raise InputError(
                f"{self.path} holds several sets ({names}): give {self.path}/{min(sets)}, say"
            )
        return sets.get("") or next(iter(sets.values()), {})

    def has(self, split: str) -> bool:
        """Whether there is a file of a split."""
        return any(split == part for part, _ in self._once(self._files))

    def _file(self, split: str, what: str) -> Path:
        if path := self._once(self._files).get((split, what)):
            return path
        name = STEM[what].format({"train": "train", "test": "t10k"}[split])
        fetch = "; `ganfast data fetch mnist` downloads MNIST" if self.name == "mnist" else ""
        raise InputError(
            f"{self.path} has no {name} or {name}.gz, which split {split!r} needs{fetch}"
        )

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

    def identity(self, wanted: Wanted) -> str:
        files = [self._file(part, "images") for part in _parts(wanted.split)]
        labels = [self._once(self._files).get((part, "labels")) for part in _parts(wanted.split)]
        both = [file for pair in zip(files, labels, strict=True) for file in pair if file]
        return hashlib.sha256(" ".join(map(file_identity, both)).encode()).hexdigest()

    def _read(self, wanted: Wanted) -> Reading:
        shapes, parts = self._shapes(wanted.split), _parts(wanted.split)
        labels, by = [self._labels(part) for part in parts], ""
        known = [values for values in labels if values is not None]
        if len(known) < len(parts):
            by = f"there is no {STEM['labels'].format(parts[labels.index(None)])}"
        counts: dict[str, int] = {}
        for split in ("train", "test"):
            with suppress(InputError):  # missing or damaged, which is no matter for this split
                counts[split] = self._shape(split)[0]
        return Reading(
            what=f"MNIST-format IDX set in {self.path}",
            rows=parts,
            count=sum(shape[0] for shape in shapes),
            facts=(f"{shapes[0][1]}x{shapes[0][1]} grey",),
            values=np.concatenate(known) if len(known) == len(parts) else None,
            by=by,
            parts=counts,
        )

    def _labels(self, split: str) -> np.ndarray | None:
        path, count = self._once(self._files).get((split, "labels")), self._shape(split)[0]
        if not path:
            return None
        labels = read_idx(path, 2)[:, 0] if "idx2" in path.name else read_idx(path, 1)
        if len(labels) != count:
            pictures = self._file(split, "images")
            raise InputError(
                f"{path} has {len(labels)} labels and {pictures} {count} pictures: not one set"
            )
        return labels.astype(np.int64)

    def _prepared(self, wanted: Wanted, reading: Reading) -> Prepared:
        files = [self._file(part, "images") for part in reading.rows]
        pictures = np.concatenate([read_idx(file, ndim=3) for file in files])[..., None]
        return prepared_array(pictures, reading.facts[0], wanted)


def _parts(split: str) -> tuple[str, ...]:
    return ("train", "test") if split == "all" else (split,)
