"""A folder that a reader may write into, and no other.

Python tells every open, rename, removal and new directory before it happens; one outside is
refused.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = {
    "os.mkdir": 1,
    "os.remove": 1,
    "os.rmdir": 1,
    "os.rename": 2,
    "os.link": 2,
    "os.symlink": 2,
    "os.truncate": 1,
    "os.chmod": 1,
    "os.chown": 1,
    "shutil.rmtree": 1,
}  # fmt: skip  event -> how many of its arguments are paths
_inside: Path | None = None  # where writing is allowed; None = nobody watches
_installed = False


class Outside(AssertionError):
    """Something was about to be written outside of where it belongs, or a program to be started."""


@contextmanager
def only_inside(folder: Path) -> Iterator[None]:
    """Raise `Outside` at the first attempt to change a file outside of ``folder``, which exists."""
    global _inside, _installed
    if not _installed:
        sys.addaudithook(_hook)  # for good: Python knows no way to take one back
        _installed = True
    _inside = folder.resolve()
    try:
        yield
    finally:
        _inside = None


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _inside is None:
        return
    if (
        event == "open"
        and isinstance(arguments[0], str | bytes | os.PathLike)
        and isinstance(arguments[2], int)
        and arguments[2] & _WRITES
    ):
        _check(event, arguments[0])
    changed = _CHANGES.get(event, 0)
    at_folder = any(
        isinstance(handle, int) and handle >= 0 for handle in arguments[changed:]
    ) and event in ("os.remove", "os.rmdir")
    for path in arguments[:changed]:
        if (
            isinstance(path, str | bytes | os.PathLike) and not at_folder
        ):  # named within an open folder: by shutil.rmtree, itself seen
            _check(event, path)
    if event in ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "socket.connect"):
        raise Outside(f"{event}{arguments}")


def _check(event: str, path: Any) -> None:
    where = Path(os.path.realpath(os.fsdecode(path)))
    if _inside is not None and not where.is_relative_to(_inside) and where != Path(os.devnull):
        raise Outside(f"{event} of {where}, outside of {_inside}")
