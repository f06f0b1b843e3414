"""A bundle on disk: a directory that appears whole or not at all. NumPy only.

    digits.bundle/
        manifest.json         what it is; hashes of all that follows
        model.onnx            the generator, weights inside
        engines/<key>         TensorRT engines, where some were built
        golden.safetensors    inputs of the graph and the trained generator's own pictures, images
        latency.json          measured where it runs: not in the manifest, ignored where damaged

Every byte is checked before it is used, and nothing is unpickled. An engine is code: its hash is
checked before anything reads it.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ganfast import disk
from ganfast.errors import ONE_FILE, InputError, RunError
from ganfast.export.bundle.graph import refuse_unbounded
from ganfast.export.bundle.manifest import GOLDEN, MANIFEST, MODEL, FileFacts, Manifest
from ganfast.export.bundle.tensors import read_tensors, write_tensors
from ganfast.locks import Held, holder, locked
from ganfast.outside import LONGEST, plain_file, read_json

LATENCY = "latency.json"
_ATTEMPTS = 20  # to read one bundle whole while others replace it


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files all have the hashes that its manifest names."""

    folder: Path
    manifest: Manifest
    # The ONNX file and the golden rows as they were checked. A sampler needs them later, when the
    # folder may already hold another bundle.
    contents: Mapping[str, bytes] = field(default_factory=dict, repr=False, compare=False)

    def model_bytes(self) -> bytes:
        """The ONNX file."""
        return self._kept_or_read(MODEL)

    def engine(self, key: str) -> bytes:
        """An engine by its key in ``manifest.engines``; InputError where there is none."""
        if key not in self.manifest.engines:
            engines = ", ".join(self.manifest.engines) or "none"
            raise InputError(f"{self.folder} has no engine {key}; there: {engines}")
        return self.read(f"engines/{key}")

    def golden(self) -> dict[str, np.ndarray]:
        """Rows whose pictures are known.

        A row of each of ``manifest.inputs`` a picture, and images uint8 (G, H, W, C).
        """
        m = self.manifest
        try:
            arrays = read_tensors(self._kept_or_read(GOLDEN))
        except ValueError as error:
            raise InputError(f"{self.folder / GOLDEN} is damaged: {error}") from error
        count = m.golden["count"]
        expected = {
            each.name: (np.dtype(each.dtype).str, (count, *each.shape))
            for each in (*m.inputs, *m.outputs)
        }
        if {name: (array.dtype.str, array.shape) for name, array in arrays.items()} != expected:
            raise InputError(
                f"{self.folder / GOLDEN} does not hold the rows that its manifest tells of; "
                "export again"
            )
        return arrays

    def _kept_or_read(self, path: str) -> bytes:
        return self.contents[path] if path in self.contents else self.read(path)

    def read(self, path: str) -> bytes:
        """A file that the manifest names; InputError where its bytes have another hash."""
        facts = self.manifest.files[path]
        try:
            data = plain_file(_inside(self.folder, path), facts.bytes)
        except FileNotFoundError as error:
            raise InputError(
                f"{self.folder} has no {path}, which its manifest names; copy the bundle again"
            ) from error
        except _UNREADABLE as error:
            raise _unreadable(self.folder / path, error) from error
        if FileFacts.of(data) != facts:
            raise InputError(
                f"{self.folder / path} has {FileFacts.of(data)}; expected {facts} as exported; "
                "copy the bundle again"
            )
        return data

    def latency(self) -> dict[str, Any]:
        """What `write_latency` stored; {} where there is nothing, or where it is damaged.

        It only decides how many pictures go into which batch, so it is no part of the manifest.
        """
        try:
            stored = read_json(self.folder / LATENCY)
            table = stored["table"]
            return dict(table) if stored["sha256"] == _json_hash(table) else {}
        except (ValueError, KeyError, TypeError):  # an InputError among them
            return {}

    def write_latency(self, table: Mapping[str, Any]) -> None:
        """Store a table of measurements beside the manifest."""
        content = {"sha256": _json_hash(table), "table": table}
        write_file(
            self.folder / LATENCY, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode()
        )


def open_bundle(path: Path | str, digest: str | None = None) -> Bundle:
    """Check a bundle, every file of it, before anything is deserialised.

    Args:
        path: the bundle's directory.
        digest: "sha256:..." as `ganfast export` printed it; another bundle is refused.

    Raises:
        InputError: no bundle, another one, a changed byte, a missing file, a later schema, a path
            that leaves it.
    """
    folder = Path(path)
    for attempt in range(_ATTEMPTS):  # one that is replaced meanwhile is read again
        before = _identity(folder)
        try:
            return _checked(folder, digest)
        except InputError:
            if attempt == _ATTEMPTS - 1 or _identity(folder) == before:
                raise
    raise AssertionError("unreachable")


def _checked(folder: Path, digest: str | None) -> Bundle:
    manifest = _read_manifest(folder)
    if digest is not None and manifest.digest != digest:
        raise InputError(
            f"{folder} is {manifest.digest}; expected {digest}: another bundle, or a changed one"
        )
    bundle, checked = Bundle(folder, manifest), {}
    for file in manifest.files:
        data = bundle.read(file)
        if file == MODEL:
            refuse_unbounded(data, str(folder / MODEL))
        if file in (MODEL, GOLDEN):
            checked[file] = data
    return replace(bundle, contents=checked)


def _identity(folder: Path) -> tuple[int, int] | None:
    """Another directory has another identity; None = there is no directory."""
    try:
        stats = folder.stat()
    except OSError:
        return None
    return stats.st_ino, stats.st_ctime_ns  # a file system reuses the number of a removed directory


def _read_manifest(folder: Path) -> Manifest:
    try:
        return Manifest.from_bytes(plain_file(folder / MANIFEST, LONGEST), str(folder / MANIFEST))
    except (FileNotFoundError, NotADirectoryError) as error:
        if folder.is_file():
            raise InputError(f"{folder} is not a bundle but one file: {ONE_FILE}") from error
        message = f"{folder} is not a bundle (it has no {MANIFEST})"
        if is_bundle(old := _beside(folder, "old")):
            raise InputError(
                f"{message}; {old} is the one from before, left by an export that was stopped: "
                "rename it back"
            ) from error
        raise InputError(f"{message}; make one with `ganfast export RUN --out {folder}`") from error
    except _UNREADABLE as error:
        raise _unreadable(folder / MANIFEST, error) from error


_UNREADABLE = (OSError, MemoryError)


def _unreadable(path: Path, error: BaseException) -> InputError:
    reason = getattr(error, "strerror", None) or str(error) or "it does not fit into memory"
    return InputError(f"{path} cannot be read: {reason}; copy the bundle again")


def is_bundle(path: Path | str) -> bool:
    """Whether a directory looks like a bundle, even a damaged one."""
    return (Path(path) / MANIFEST).is_file()


def write_bundle(
    out: Path | str, manifest: Manifest, files: Mapping[str, bytes], overwrite: bool = False
) -> Bundle:
    """Write a bundle beside its place and rename it there.

    Args:
        out: the directory; its parents are made.
        manifest: without ``files``, which are entered here.
        files: content by relative path; `MODEL` and `GOLDEN` are among them, see `golden_file`.
        overwrite: replace a bundle that is there; never anything else.

    Raises:
        InputError: something is there already, or the place cannot be written.
        RunError: another process is writing it.
    """
    out = Path(out)
    manifest = replace(
        manifest, files={path: FileFacts.of(data) for path, data in sorted(files.items())}
    )
    refuse_unbounded(files[MODEL], MODEL)
    content = manifest.to_bytes()
    Manifest.from_bytes(content)  # raises for a manifest that nobody could read back
    try:
        with exclusive(out):
            refuse_occupied(out, overwrite)
            beside = _beside(out, "part")
            disk.make_directory(beside)
            try:
                for path, data in {**files, MANIFEST: content}.items():
                    write_file(beside / path, data)
                _swap(beside, out)
            finally:
                _clear(beside)
    except OSError as error:
        raise InputError(
            f"{out} cannot be written: {error.strerror or error}; choose another --out"
        ) from error
    return Bundle(out, manifest, {path: files[path] for path in (MODEL, GOLDEN)})


def refuse_occupied(out: Path, overwrite: bool) -> None:
    """Raises InputError where `write_bundle` may not replace what is there, or cannot rename it."""
    if out.name in ("", ".."):
        raise InputError(
            f"{out} is no name of its own; give the directory of the bundle by its name, "
            f"such as {out / 'my.bundle'}"
        )
    if out.is_symlink():
        raise InputError(
            f"{out} is a link, to {out.readlink()}; choose --out {os.path.realpath(out)}, "
            "or remove the link"
        )
    if out.is_dir() and not any(out.iterdir()):
        return
    if is_bundle(out) and not overwrite:
        raise InputError(
            f"{out} is a bundle already; replace it with --overwrite, or choose another --out"
        )
    if not is_bundle(out) and out.exists():
        raise InputError(f"{out} exists and is not a bundle; choose another --out")


def golden_file(inputs: Mapping[str, np.ndarray], images: np.ndarray) -> bytes:
    """The content of golden.safetensors; arrays as `Bundle.golden` gives them."""
    return write_tensors({**inputs, "images": images})


@contextmanager
def exclusive(path: Path, wait: bool = False) -> Iterator[None]:
    """Hold the lock of a place, ``.<name>.lock`` beside it; it ends with the process.

    Raises:
        RunError: another process holds it, unless ``wait``.
    """
    lock = _beside(path, "lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        try:
            held.enter_context(locked(lock, str(path), wait))
        except Held as error:
            raise RunError(
                f"another process is writing {path} ({holder(lock)}); "
                "wait for it, or choose another place"
            ) from error
        yield


def write_file(path: Path, data: bytes) -> None:
    """Write beside, sync, rename: a file is never half there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = _beside(path, f"{os.getpid()}.part")
    disk.write_file(beside, data)
    beside.replace(path)


def _beside(place: Path, ending: str) -> Path:
    return place.parent / f".{place.name}.{ending}"


def _swap(new: Path, place: Path) -> None:
    """A reader finds the old bundle or the new one.

    Where the system cannot exchange two directories in one call, it finds neither for a moment.
    """
    old = _beside(place, "old")
    if not is_bundle(place):  # nothing, or an empty directory
        new.rename(place)
    elif not disk.exchange(new, place):
        disk.remove(old)
        place.rename(old)
        try:
            new.rename(place)
        except BaseException:
            old.rename(place)
            raise
    disk.sync(place.parent)
    _clear(old)


def _clear(leftover: Path) -> None:
    """What cannot be removed stays: the bundle is there, or another error says that it is not."""
    with suppress(OSError):
        disk.remove(leftover)


def _inside(folder: Path, path: str) -> Path:
    """A file of the bundle; InputError where a link leads out of it, or nowhere."""
    target = folder / path
    try:
        if not target.resolve().is_relative_to(folder.resolve()):
            raise InputError(
                f"{target} leads out of the bundle, to {target.resolve()}; do not use it"
            )
    except RuntimeError as error:  # up to Python 3.12, `resolve` raises it for a loop of links
        raise InputError(
            f"{target} is a link that leads to itself; copy the bundle again"
        ) from error
    return target


def _json_hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
