"""One process at a time on a run directory or a pack; a second process learns who holds it.

The lock is the kernel's (flock) on a file that names its holder. The kernel releases it when the
holder dies in any way, so a file that was left behind stops nobody.
"""

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from ganfast import disk
from ganfast.errors import InputError
from ganfast.log import logger
from ganfast.outside import parse_json, plain_file

try:
    import fcntl
except ImportError:  # no such call on this system
    fcntl = None  # type: ignore[assignment]

NAME = ".lock"
_POLL = 0.2  # seconds between two attempts of a waiting process


class Held(InputError):
    """Another process holds the lock; the message says which."""


@contextmanager
def locked(path: Path, what: str, wait: bool = False) -> Iterator[None]:
    """Hold the lock file ``path``, which is removed afterwards.

    Args:
        what: what is locked, for messages.
        wait: wait for whoever holds it, and say so once; else raise.

    Raises:
        Held: another process, or another thread of this one, holds it.
        InputError: a link, or no regular file, has its name.
        OSError: the file cannot be made.
    """
    handle = _take(path)
    if handle is None and not wait:
        raise Held(f"{what} is in use by {holder(path)}; wait for it to end, or stop it")
    if handle is None:
        logger.warning("%s is in use by %s: waiting for it", what, holder(path))
    while handle is None:
        time.sleep(_POLL)
        handle = _take(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # before letting go: `_take` refuses a file that lost its name
        os.close(handle)


def _take(path: Path) -> int | None:
    """The open lock file, or None while someone else has it."""
    while True:
        handle = disk.own_file(path, os.O_RDWR | os.O_CREAT)
        try:
            if not _flock(handle, path):
                os.close(handle)
                return None
            if os.path.exists(path) and os.fstat(handle).st_ino == os.stat(path).st_ino:
                os.ftruncate(handle, 0)
                now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
                owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": now}
                os.write(handle, json.dumps(owner).encode())
                return handle
        except FileNotFoundError:  # removed between two questions about it
            pass
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _flock(handle: int, path: Path) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # file systems without locks
        message = "%s cannot be locked (%s): let no second process work there"
        logger.warning(message, path.parent, error.strerror or error)
    return True


def held_by(path: Path) -> str | None:
    """Who holds the lock file ``path`` now. None = nobody, even where the file is still there.

    Writes nothing.
    """
    try:
        handle = disk.own_file(path, os.O_RDONLY)
    except (OSError, InputError):
        return None
    try:
        if fcntl:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        return holder(path)
    except OSError:  # file systems without locks
        return None
    finally:
        os.close(handle)


def holder(path: Path) -> str:
    """ "process 123 on host h since 2026-01-31 12:00:00 UTC"."""
    try:
        owner = parse_json(plain_file(path, 1 << 12))
        return f"process {owner['pid']} on {owner['host']} since {owner['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # the owner is writing or removing the file
        return "another process"
