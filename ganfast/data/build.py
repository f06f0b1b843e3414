"""Writing a pack, so that whoever looks sees all of it or nothing: beside its place, then renamed into it."""

import errno
import json
import logging
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
from ganfast.data.manifest import IMAGES, LABELS, MANIFEST, SCHEMA, PackInfo, load_pack, sha256_of
from ganfast.data.source import Selection, counted
from ganfast.errors import InputError, cannot_write

logger = logging.getLogger("ganfast")
BATCH = 64  # pictures per task of the thread pool: enough to drown its overhead, little memory
Progress = Callable[[str, int, int], None]  # (what, done, total)


def build(
    final: Path,
    info: PackInfo,
    selection: Selection,
    progress: Progress,
    skip_corrupt: bool = False,
) -> None:
    """Read the selection into a pack at `final`, or leave the valid one that another process put there meanwhile.

    One process at a time works on a pack; the next one says who does, waits, and finds the pack done.

    Args:
        skip_corrupt: leave out pictures that cannot be read, and say so in the pack; else the first one ends it.

    Raises:
        InputError: a picture cannot be read, the folder may not be written, or the disk is full. Nothing is left behind.
        RunError: the folder cannot be written for another reason.
    """
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        with locks.locked(final.parent / f".{final.name}.lock", f"the pack {final}", wait=True):
            if not _is_whole(final):
                _sweep(final.parent)
                _build(final, info, selection, progress, skip_corrupt)
    except OSError as error:
        raise cannot_write(
            f"the pack {final}",
            error,
            "free some space, or choose another folder with $GANFAST_CACHE",
        ) from error


def _is_whole(pack: Path) -> bool:
    try:
        load_pack(pack)
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
        kept = np.setdiff1d(np.arange(info.count), list(skipped))
        if skipped:
            info = _left_out(partial / IMAGES, info, kept, skipped)
        if selection.labels is not None:
            np.save(partial / LABELS, selection.labels[kept])
        files = {
            path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
            for path in sorted(partial.iterdir())
        }
        manifest = {
            "schema": SCHEMA,
            "created_by": f"ganfast {__version__}",
            "info": asdict(info),
            "files": files,
        }
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        for path in (*partial.iterdir(), partial):
            disk.sync(path)
        _publish(partial, final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _left_out(path: Path, info: PackInfo, kept: np.ndarray, skipped: dict[int, str]) -> PackInfo:
    """Close the gaps that corrupt pictures left in the array, and say which they were."""
    said = [skipped[position] for position in sorted(skipped)]
    if not len(kept):
        raise InputError(
            f"none of the {info.count:,} pictures can be read, the first because {said[0]}"
        )
    logger.warning(
        "%s left out, as they cannot be read: %s",
        counted(len(said), "picture"),
        "; ".join(said[:3]),
    )
    images, gapless = np.load(path, mmap_mode="r"), path.with_suffix(".gapless")
    target = _reserved(gapless, (len(kept), *images.shape[1:]))
    for start in range(0, len(kept), BATCH):
        target[start : start + BATCH] = images[kept[start : start + BATCH]]
    target.flush()
    gapless.replace(path)
    return replace(info, count=len(kept), skipped=tuple(said))


def _write_images(
    path: Path, info: PackInfo, selection: Selection, progress: Progress, skip_corrupt: bool
) -> dict[int, str]:
    """Fill the array; returns positions that could not be, and why: none unless they may be skipped."""
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
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for done in pool.map(fill, range(0, info.count, BATCH)):
            progress(what, done, info.count)
    images.flush()
    return skipped


def _reserved(path: Path, shape: tuple[int, ...]) -> np.memmap:
    """A new array of bytes in a file whose space is claimed: a full disk is an error here, and would be a fatal signal later."""
    images = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    if hasattr(os, "posix_fallocate"):
        with open(path, "r+b") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
            except OSError as error:
                if error.errno not in (
                    errno.EINVAL,
                    errno.EOPNOTSUPP,
                ):  # file systems that cannot say
                    raise
    return images


def _publish(partial: Path, final: Path) -> None:
    for last in (False, False, True):
        try:
            os.rename(partial, final)
            disk.sync(final.parent)
            return
        except OSError:  # the place is taken: by a process that was quicker, or by a damaged pack
            if last or not final.exists():
                raise
        try:
            load_pack(final)
            return
        except InputError:
            aside = Path(tempfile.mkdtemp(prefix=".", suffix=".partial", dir=final.parent))
            os.rename(final, aside / "damaged")
            shutil.rmtree(aside, ignore_errors=True)


def _sweep(packs: Path) -> None:
    """Remove what processes that were killed while packing left behind: anything partial that is a day old."""
    for path in packs.glob(".*.partial"):
        try:
            if time.time() - path.stat().st_mtime > 24 * 3600:
                shutil.rmtree(path, ignore_errors=True)
        except FileNotFoundError:  # somebody else swept
            continue
