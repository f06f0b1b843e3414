"""Writing a pack beside its place, then renaming it: another process sees all of it or nothing."""

import errno
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from ganfast import __version__, disk, locks
from ganfast.data.manifest import IMAGES, LABELS, MANIFEST, SCHEMA, PackInfo, sha256_of, verify_pack
from ganfast.data.source import Selection, counted
from ganfast.errors import InputError, cannot_write
from ganfast.host import usable_threads
from ganfast.log import logger

BATCH = 64  # pictures per task of the thread pool: enough to drown its overhead, little memory
Progress = Callable[[str, int, int], None]  # (what, done, total)


def build(
    final: Path,
    info: PackInfo,
    selection: Selection,
    progress: Progress,
    skip_corrupt: bool = False,
) -> None:
    """Read the selection into a pack at `final`, or leave a valid one that another process made.

    One process at a time writes a pack. The next one says who holds it, waits, and uses that pack.

    Args:
        skip_corrupt: leave out pictures that cannot be read, and say so in the pack; else such a
            picture is an error.

    Raises:
        InputError: a picture cannot be read, the folder may not be written, or the disk is full.
            Nothing is left behind.
        RunError: the folder cannot be written for another reason.
    """
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        with locks.locked(final.parent / f".{final.name}.lock", f"the pack {final}", wait=True):
            if not _is_whole(final):
                _sweep(final.parent)
                _build(final, info, selection, progress, skip_corrupt)
    except OSError as error:
        way_out = "free some space, or choose another folder with $GANFAST_CACHE"
        raise cannot_write(f"the pack {final}", error, way_out) from error


def _is_whole(pack: Path) -> bool:
    try:
        verify_pack(pack)
    except InputError:
        return False
    return True


def _build(
    final: Path, info: PackInfo, selection: Selection, progress: Progress, skip_corrupt: bool
) -> None:
    partial = Path(tempfile.mkdtemp(prefix=".", suffix=".partial", dir=final.parent))
    try:
        partial.chmod(0o755)  # the cache may be shared; mkdtemp keeps others out
        skipped = _write_images(partial / IMAGES, info, selection, progress, skip_corrupt)
        positions = np.setdiff1d(np.arange(info.count), list(skipped))
        if skipped:
            info = _left_out(partial / IMAGES, info, positions, skipped)
        if selection.labels is not None:
            labels = selection.labels[positions]
            if info.rules > 1 and skipped:  # classes whose pictures are all left out go
                present, labels = np.unique(labels, return_inverse=True)
                info = replace(info, classes=tuple(info.classes[k] for k in present))
            np.save(partial / LABELS, labels)
        files = {
            path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
            for path in sorted(partial.iterdir())
        }
        manifest = {
            "schema": SCHEMA,
            "created_by": f"ganfast {__version__}",
            # without what follows from the hashes of the files
            "info": {k: v for k, v in asdict(info).items() if k != "pictures_hash"},
            "files": files,
        }
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        for path in (*partial.iterdir(), partial):
            disk.sync(path)
        _publish(partial, final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _left_out(
    path: Path, info: PackInfo, positions: np.ndarray, skipped: dict[int, str]
) -> PackInfo:
    """Close the gaps that corrupt pictures left in the array, and log the reasons."""
    reasons = [skipped[position] for position in sorted(skipped)]
    if not len(positions):
        raise InputError(
            f"none of the {info.count:,} pictures can be read, the first because {reasons[0]}"
        )
    pictures = counted(len(reasons), "picture")
    logger.warning("%s left out, as they cannot be read: %s", pictures, "; ".join(reasons[:3]))
    images, gapless = np.load(path, mmap_mode="r"), path.with_suffix(".gapless")
    target = _reserved(gapless, (len(positions), *images.shape[1:]))
    for start in range(0, len(positions), BATCH):
        target[start : start + BATCH] = images[positions[start : start + BATCH]]
    target.flush()
    gapless.replace(path)
    return replace(info, count=len(positions), skipped=tuple(reasons))


def _write_images(
    path: Path, info: PackInfo, selection: Selection, progress: Progress, skip_corrupt: bool
) -> dict[int, str]:
    """Fill the array; returns position -> reason of the pictures that are skipped."""
    skipped: dict[int, str] = {}
    shape = (info.count, info.channels, info.size, info.size)
    images = _reserved(path, shape)

    def fill(start: int) -> int:
        stop = min(start + BATCH, info.count)
        try:
            images[start:stop] = selection.read(start, stop)
        except InputError as error:
            if not skip_corrupt:
                raise InputError(f"{error}; --skip-corrupt leaves such pictures out") from error
            fill_singly(start, stop)
        return stop

    def fill_singly(start: int, stop: int) -> None:
        for position in range(start, stop):
            try:
                images[position] = selection.read(position, position + 1)[0]
            except InputError as error:
                skipped[position] = str(error)

    what = f"packing {info.name}"
    progress(what, 0, info.count)
    # Threads are enough: Pillow, zlib and file reads release the interpreter lock.
    with ThreadPoolExecutor(min(8, usable_threads())) as pool:
        for done in pool.map(fill, range(0, info.count, BATCH)):
            progress(what, done, info.count)
    images.flush()
    return skipped


def _reserved(path: Path, shape: tuple[int, ...]) -> np.memmap:
    """A new array of bytes in a file whose space is claimed.

    Without the claim a full disk would be a fatal signal on a later write, and no error.
    """
    images = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    if hasattr(os, "posix_fallocate"):
        with open(path, "r+b") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
            except OSError as error:
                # a file system that cannot claim space
                if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                    raise
    return images


def _publish(partial: Path, final: Path) -> None:
    for last in (False, False, True):
        try:
            os.rename(partial, final)
            disk.sync(final.parent)
            return
        except OSError:  # a pack is there: of a process that was quicker, or a damaged one
            if last or not final.exists():
                raise
        if _is_whole(final):
            return
        aside = Path(tempfile.mkdtemp(prefix=".", suffix=".partial", dir=final.parent))
        os.rename(final, aside / "damaged")
        shutil.rmtree(aside, ignore_errors=True)


def _sweep(packs: Path) -> None:
    """Remove partial packs of killed processes: those that are a day old."""
    for path in packs.glob(".*.partial"):
        try:
            if time.time() - path.stat().st_mtime > 24 * 3600:
                shutil.rmtree(path, ignore_errors=True)
        except FileNotFoundError:  # somebody else swept
            continue
