"""Files and directories that are there whole or not at all, also after a crash or a power cut.

A run changes its directory through `calls` only, except for its lock and TensorBoard's events. So
a test that makes each of these calls fail in turn has tried every failure of the file system.
"""

import ctypes
import os
import shutil
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ganfast.errors import InputError

_CHUNK = 1 << 20  # bytes a write


@dataclass
class Calls:
    """The calls to the operating system; a test may replace one by a call that fails."""

    open: Callable[..., int] = os.open
    write: Callable[..., int] = os.write
    fsync: Callable[[int], None] = os.fsync
    close: Callable[[int], None] = os.close
    rename: Callable[..., None] = os.replace
    mkdir: Callable[..., None] = os.mkdir
    unlink: Callable[..., None] = os.unlink
    remove_tree: Callable[..., None] = shutil.rmtree


calls = Calls()


def _created(path: Path) -> int:
    """A new file, open for writing. What had its name goes, so a link there is not followed."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    try:
        return calls.open(path, flags, 0o644)
    except FileExistsError:
        calls.unlink(path)
        return calls.open(path, flags, 0o644)


def own_file(path: Path, flags: int) -> int:
    """Open a file that ganfast made, or makes now, to go on with it.

    Raises:
        InputError: a link has its name, or something that is no regular file. Somebody else put it
            there, and what it leads to is not ganfast's.
    """
    with suppress(FileNotFoundError):
        refuse_link(path)
        if not stat.S_ISREG(os.lstat(path).st_mode):
            raise InputError(f"{path} is no regular file, as ganfast makes it; remove it")
    return calls.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o644)


def refuse_link(path: Path) -> None:
    """Raise InputError where a link has the name of a file or directory that ganfast makes."""
    if path.is_symlink():
        raise InputError(
            f"{path} is a link, to {os.readlink(path)}; ganfast writes what it made itself: "
            "remove the link"
        )


def write_file(path: Path, data: bytes) -> None:
    """Write a new file to the disk. Its name reaches the disk with `sync` of its directory."""
    handle = _created(path)
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


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that gets its name when the block ends well; else the old one stays. Makes folders.

    It does not wait for the disk, as `replace_file` does.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".part")
    try:
        with open(_created(beside), "wb") as file:
            yield file
        calls.rename(beside, path)
    except BaseException:
        with suppress(OSError):
            calls.unlink(beside)
        raise


class Appended:
    """A file that grows; its methods may be called from several threads.

    Data stays in memory until it has surely reached the disk, and a failed write is repeated.
    """

    def __init__(self, path: Path) -> None:
        self._handle = own_file(path, os.O_WRONLY | os.O_CREAT)
        # where the data ends that has reached the disk, or was there before
        self._end = os.lseek(self._handle, 0, os.SEEK_END)
        self._held = bytearray()  # data that comes after `_end`
        self._written = 0  # bytes of `_held` that the system has taken
        self._lock = threading.Lock()

    def add(self, data: bytes) -> None:
        """Hand data to the system. After an OSError the next call hands it over again."""
        with self._lock:
            self._held += data
            self._hand_over()

    def sync(self) -> None:
        """Wait until all data has reached the disk; `add` does not wait for a running `sync`.

        After an OSError call it again.
        """
        with self._lock:
            self._hand_over()
            length = len(self._held)
        try:
            calls.fsync(self._handle)
        except OSError:
            with self._lock:
                # Some systems drop, once they report the error, the data they failed to write.
                self._written = 0
            raise
        with self._lock:
            del self._held[:length]
            self._end, self._written = self._end + length, max(0, self._written - length)

    def _hand_over(self) -> None:
        if self._written < len(self._held):
            # to where this part belongs: a failed write may have written some of it
            os.lseek(self._handle, self._end + self._written, os.SEEK_SET)
            _write_all(self._handle, bytes(self._held[self._written :]))
            self._written = len(self._held)

    def close(self) -> None:
        """Hand over what is left and close the file; a second call does nothing."""
        with self._lock:
            if self._handle < 0:
                return
            try:
                self._hand_over()
            finally:
                handle, self._handle = self._handle, -1
                calls.close(handle)


def ensure_directory(path: Path) -> None:
    """Make a directory and its parents; an existing one stays as it is."""
    if path.is_dir():
        return
    ensure_directory(path.parent)
    try:
        calls.mkdir(path)
    except FileExistsError:
        if not path.is_dir():
            raise


def make_directory(path: Path) -> None:
    """Make an empty directory; one that a crash left there is removed."""
    remove(path)
    calls.mkdir(path)


def publish(beside: Path, target: Path) -> None:
    """Give a finished directory its name."""
    sync(beside)
    calls.rename(beside, target)
    sync(target.parent)


def exchange(a: Path, b: Path) -> bool:
    """Give two files or directories each other's name, in one step.

    Readers and crashes see both names exchanged or neither. Linux has the call (renameat2), but
    not for every file system: False means that nothing was done.
    """
    if sys.platform != "linux":
        return False
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError):  # an older C library
        return False
    return bool(renameat2(_HERE, os.fsencode(a), _HERE, os.fsencode(b), _EXCHANGE) == 0)


_HERE = -100  # AT_FDCWD: relative to the working directory
_EXCHANGE = ctypes.c_uint(2)  # RENAME_EXCHANGE


def remove(path: Path) -> None:
    """Remove what has a name, if anything has: a directory tree, or else that name alone."""
    if path.is_dir() and not path.is_symlink():
        calls.remove_tree(path)
    elif os.path.lexists(path):
        calls.unlink(path)


def sync(path: Path) -> None:
    """Make the names in a directory survive a power cut."""
    handle = calls.open(path, os.O_RDONLY)
    try:
        calls.fsync(handle)
    finally:
        calls.close(handle)
