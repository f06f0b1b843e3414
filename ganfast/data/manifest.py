"""The pack format: what a pack is, and reading one back.

<name>-<size>x<size>x<channels>-<key>/
    images.npy      uint8 (N, C, H, W)
    labels.npy      int64 (N,), when the pictures have classes
    manifest.json   schema; PackInfo; size and sha256 of the arrays
"""

import hashlib
import json
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ganfast.errors import InputError
from ganfast.outside import parse_json, plain_file

SCHEMA = 1
_LONGEST = 256 << 20  # bytes of a manifest, which names every picture that was left out
IMAGES, LABELS, MANIFEST = "images.npy", "labels.npy", "manifest.json"
_CHUNK = 1 << 24  # bytes hashed at a go: a thread can be ended between two


@dataclass(frozen=True)
class PackInfo:
    """What a pack holds and where it comes from; plain enough for JSON."""

    name: str  # short, for file names and titles
    kind: str  # "digits" | "idx" | "celeba" | "folder" | "arrays"
    recognised: str  # one sentence for the user
    count: int
    channels: int  # 1 grey, 3 colour
    size: int  # pictures are size x size
    classes: tuple[str, ...]  # a label indexes it; () when there are no labels
    flip: bool  # may pictures be mirrored?
    split: str  # "train" | "test" | "val" | "all"
    attributes: tuple[str, ...]  # CelebA attributes behind the classes
    preparation: str  # what was done to the pictures, in words
    source_hash: str  # sha256 of what identifies the source
    skipped: tuple[str, ...] = ()  # pictures that could not be read and were left out, and why
    rules: int = 1  # by which classes and splits were found, see `ganfast.data.source.RULES`
    # sha256 of the arrays' hashes: the same for the same pictures and labels from other files
    pictures_hash: str = ""


@dataclass(frozen=True)
class Pack:
    images: np.ndarray  # uint8 (N, C, H, W), read-only memory map
    labels: np.ndarray | None  # int64 (N,)
    info: PackInfo
    # Compares every byte of these arrays with the hashes in the manifest; raises InputError.
    verify: Callable[[], None] = lambda: None


def load_pack(folder: Path, verify: bool = False) -> Pack:
    """Map a pack.

    Raises:
        InputError: sizes, shapes or labels show damage; with ``verify``, any byte does.
    """
    try:
        manifest = parse_json(plain_file(folder / MANIFEST, _LONGEST))
        if manifest["schema"] != SCHEMA:
            raise ValueError(f"its schema is {manifest['schema']}, this version reads {SCHEMA}")
        for file, facts in manifest["files"].items():
            if (size := (folder / file).stat().st_size) != facts["bytes"]:
                raise ValueError(f"{file} has {size:,} bytes instead of {facts['bytes']:,}")
        fields: dict[str, Any] = manifest["info"]
        lists = {key: tuple(value) for key, value in fields.items() if isinstance(value, list)}
        hashes = {file: facts["sha256"] for file, facts in manifest["files"].items()}
        of_all = hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()
        info = PackInfo(**(fields | lists | {"pictures_hash": of_all}))
        images = np.load(folder / IMAGES, mmap_mode="r", allow_pickle=False)
        shape = (info.count, info.channels, info.size, info.size)
        if images.shape != shape or images.dtype != np.uint8:
            raise ValueError(f"{IMAGES} is {images.dtype} {images.shape} instead of uint8 {shape}")
        if not images.flags.c_contiguous:
            raise ValueError(f"{IMAGES} is in Fortran order")
        labels = np.load(folder / LABELS, allow_pickle=False) if info.classes else None
        if labels is not None:
            if labels.shape != (info.count,) or labels.dtype != np.int64:
                raise ValueError(
                    f"{LABELS} is {labels.dtype} {labels.shape} instead of int64 {(info.count,)}"
                )
            if labels.min() < 0 or labels.max() >= len(info.classes):
                raise ValueError(f"{LABELS} names classes outside of 0 to {len(info.classes) - 1}")
            labels.setflags(write=False)
        arrays = {IMAGES: images} | ({} if labels is None else {LABELS: labels})
        mapped = [(file, _header(folder / file, a), a, hashes[file]) for file, a in arrays.items()]
        pack = Pack(images, labels, info, partial(_verify, folder, mapped))
    # Exception: missing keys, wrong types, NumPy's header parser: damage has no end of kinds
    except Exception as error:
        raise InputError(f"the pack {folder} is damaged: {error!r}") from error
    if verify:
        pack.verify()
    return pack


def verify_pack(folder: str | Path) -> PackInfo:
    """Compare every byte of a pack with the hashes in its manifest.

    Raises:
        InputError: a file differs; the message names it.
    """
    return load_pack(Path(folder), verify=True).info


def verified_beside(pack: Pack) -> Future[None]:
    """`Pack.verify` on a thread of its own, for which the end of the process does not wait."""
    verdict: Future[None] = Future()

    def verify() -> None:
        try:
            pack.verify()
        except BaseException as error:
            verdict.set_exception(error)
        else:
            verdict.set_result(None)

    threading.Thread(target=verify, name="ganfast-verify", daemon=True).start()
    return verdict


def _header(path: Path, array: np.ndarray) -> bytes:
    with open(path, "rb") as file:
        return file.read(path.stat().st_size - array.nbytes)


def _verify(folder: Path, mapped: list[tuple[str, bytes, np.ndarray, str]]) -> None:
    """Hash what is mapped, not what the path leads to: the pack may be replaced meanwhile."""
    for file, header, array, expected in mapped:
        digest, content = hashlib.sha256(header), array.reshape(-1).view(np.uint8)
        for start in range(0, len(content), _CHUNK):
            digest.update(content[start : start + _CHUNK].data)
        if digest.hexdigest() != expected:
            raise InputError(
                f"the pack {folder} is damaged: the bytes of {file} changed; "
                "delete it to pack again"
            )


def sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
