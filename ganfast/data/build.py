"""Writing a pack, so that whoever looks sees all of it or nothing: beside its place, then renamed into it."""

import errno
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np

from ganfast import __version__, disk
from ganfast.data.manifest import IMAGES, LABELS, MANIFEST, SCHEMA, PackInfo, load_pack, sha256_of
from ganfast.data.source import Selection
from ganfast.errors import InputError, cannot_write

BATCH = 64  # pictures per task of the thread pool: enough to drown its overhead, little memory
Progress = Callable[[str, int, int], None]  # (what, done, total)


def build(final: Path, info: PackInfo, selection: Selection, progress: Progress) -> None:
    """Read the selection into a pack at `final`, or leave the valid one that another process put there meanwhile.

    Raises:
        InputError: a picture cannot be read. Nothing is left behind.
        InputError: the folder may not be written, or the disk is full. RunError: it fails otherwise.
    """
    partial = None
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        _sweep(final.parent)
        partial = Path(tempfile.mkdtemp(prefix=".", suffix=".partial", dir=final.parent))
        partial.chmod(0o755)  # the cache may be shared; mkdtemp keeps others out
        _write_images(partial / IMAGES, info, selection, progress)
        if selection.labels is not None:
            np.save(partial / LABELS, selection.labels)
        files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in sorted(partial.iterdir())}
        manifest = {"schema": SCHEMA, "created_by": f"ganfast {__version__}", "info": asdict(info), "files": files}
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        for path in (*partial.iterdir(), partial):
            disk.sync(path)
        _publish(partial, final)
    except OSError as error:
        raise cannot_write(f"the pack {final}", error, "free some space, or choose another folder with $GANFAST_CACHE") from error
    finally:
        if partial:
            shutil.rmtree(partial, ignore_errors=True)


def _write_images(path: Path, info: PackInfo, selection: Selection, progress: Progress) -> None:
    shape = (info.count, info.channels, info.size, info.size)
    images = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    _reserve(path)

    def fill(start: int) -> int:
        stop = min(start + BATCH, info.count)
        images[start:stop] = selection.read(start, stop)
        return stop

    what = f"packing {info.name}"
    progress(what, 0, info.count)
    # Threads are enough: Pillow, zlib and file reads release the interpreter lock.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for done in pool.map(fill, range(0, info.count, BATCH)):
            progress(what, done, info.count)
    images.flush()


def _reserve(path: Path) -> None:
    """Claim the disk space of a file: a full disk is an error here, and would be a fatal signal in a memory map."""
    if hasattr(os, "posix_fallocate"):
        with open(path, "r+b") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # file systems that cannot say
                    raise


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
