"""Files and directories that are there whole or not at all, also after a crash or a power cut.

What a run does to its directory goes through `calls`, but for its lock and TensorBoard's events: a test that makes each of these
fail in turn has tried them all.
"""

import ctypes
import os
import shutil
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_CHUNK = 1 << 20  # bytes a write


@dataclass
class Calls:
    """What the operating system is asked to do."""

    open: Callable[..., int] = os.open
    write: Callable[..., int] = os.write
    fsync: Callable[[int], None] = os.fsync
    close: Callable[[int], None] = os.close
    rename: Callable[..., None] = os.replace
    mkdir: Callable[..., None] = os.mkdir
    remove_tree: Callable[..., None] = shutil.rmtree


calls = Calls()


def write_file(path: Path, data: bytes) -> None:
    """A new file that has reached the disk; its name has not until `sync` of its directory."""
    handle = calls.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        _write_all(handle, data)
        calls.fsync(handle)
    finally:
        calls.close(handle)


def _write_all(handle: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[calls.write(handle, left[:_CHUNK]) :]


def replace_file(path: Path, data: bytes) -> None:
    """Old contents or new, never half of them."""
    beside = path.with_name(path.name + ".part")
    write_file(beside, data)
    calls.rename(beside, path)
    sync(path.parent)


class Appended:
    """A file that grows. What has not surely reached the disk stays in memory, and a write that failed is made again from there.

    Its methods may be called from several threads.
    """

    def __init__(self, path: Path) -> None:
        self._handle = calls.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
        self._end = os.lseek(
            self._handle, 0, os.SEEK_END
        )  # of what has reached the disk, or was there before
        self._held, self._written = (
            bytearray(),
            0,
        )  # what comes after it, and how much of that the system has taken
        self._lock = threading.Lock()

    def add(self, data: bytes) -> None:
        """Hand data to the system. After an OSError it is held: the next call hands it over again."""
        with self._lock:
            self._held += data
            self._hand_over()

    def sync(self) -> None:
        """Wait until all of it has reached the disk; after an OSError call it again. `add` does not wait for it."""
        with self._lock:
            self._hand_over()
            length = len(self._held)
        try:
            calls.fsync(self._handle)
        except OSError:
            with self._lock:
                self._written = (
                    0  # some systems forget, with this answer, what they failed to write
                )
            raise
        with self._lock:
            del self._held[:length]
            self._end, self._written = self._end + length, max(0, self._written - length)

    def _hand_over(self) -> None:
        if self._written < len(self._held):
            os.lseek(
                self._handle, self._end + self._written, os.SEEK_SET
            )  # a failed write may have written a part
            _write_all(self._handle, bytes(self._held[self._written :]))
            self._written = len(self._held)

    def close(self) -> None:
        """Let the file go, once more handing over what is held; a second call does nothing."""
        with self._lock:
            if self._handle < 0:
                return
            try:
                self._hand_over()
            finally:
                handle, self._handle = self._handle, -1
                calls.close(handle)


def ensure_directory(path: Path) -> None:
    """A directory, with those above it; one that is there stays."""
    if path.is_dir():
        return
    ensure_directory(path.parent)
    try:
        calls.mkdir(path)
    except FileExistsError:
        if not path.is_dir():
            raise


def make_directory(path: Path) -> None:
    """An empty directory: what was left there by a crash is removed."""
    remove(path)
    calls.mkdir(path)


def publish(beside: Path, target: Path) -> None:
    """Give a finished directory its name."""
    sync(beside)
    calls.rename(beside, target)
    sync(target.parent)


def exchange(a: Path, b: Path) -> bool:
    """Give two files or directories each other's name, in one step that readers and crashes see whole.

    False, and nothing was done, where that cannot be: Linux has the call (renameat2), but not for every file system.
    """
    if sys.platform != "linux":
        return False
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError):  # an older C library
        return False
    return bool(renameat2(_HERE, os.fsencode(a), _HERE, os.fsencode(b), _EXCHANGE) == 0)


_HERE, _EXCHANGE = (
    -100,
    ctypes.c_uint(2),
)  # AT_FDCWD: relative to the working directory; RENAME_EXCHANGE


def remove(path: Path) -> None:
    """Remove a directory tree, if there is one."""
    if path.exists():
        calls.remove_tree(path)


def sync(path: Path) -> None:
    """Make what a directory lists survive a power cut."""
    handle = calls.open(path, os.O_RDONLY)
    try:
        calls.fsync(handle)
    finally:
        calls.close(handle)
