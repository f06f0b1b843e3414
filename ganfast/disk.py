"""Files and directories that are there whole or not at all, also after a crash or a power cut.

Every operation on a checkpoint goes through `calls`: a test that makes each of them fail in turn has tried them all.
"""

import os
import shutil
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
        left = memoryview(data)
        while left:
            left = left[calls.write(handle, left[:_CHUNK]) :]
        calls.fsync(handle)
    finally:
        calls.close(handle)


def replace_file(path: Path, data: bytes) -> None:
    """Old contents or new, never half of them."""
    beside = path.with_name(path.name + ".part")
    write_file(beside, data)
    calls.rename(beside, path)
    sync(path.parent)


def make_directory(path: Path) -> None:
    """An empty directory: what was left there by a crash is removed."""
    remove(path)
    calls.mkdir(path)


def publish(beside: Path, target: Path) -> None:
    """Give a finished directory its name."""
    sync(beside)
    calls.rename(beside, target)
    sync(target.parent)


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
