"""Files from outside: read within limits, and whatever is wrong with one becomes one sentence.

A reader first asks what it opened and how long that is: a pipe would be waited for without end, and
a file of holes would fill the memory. JSON has limits of its own, as what is nested deeper than a
stack, or longer than a float, breaks whatever is done with it later.
"""

import errno
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ganfast.errors import InputError, is_out_of_memory

LONGEST = 16 << 20  # bytes of a JSON file; real ones have a thousandth
DEEPEST = 64  # values within values
DIGITS = 40  # of a whole number: 2**128 has 39


@contextmanager
def reading(
    path: Path | str, kind: type[InputError] = InputError, problem: str = "is damaged"
) -> Iterator[None]:
    """Turn any error of a block that reads a file into one sentence of the type ``kind``.

    Parsers of damaged files raise errors of no end of types. An InputError stays as it is, and so
    does a lack of memory, which says nothing of the file.
    """
    try:
        yield
    except InputError:
        raise
    except OSError as error:
        raise kind(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:
        if is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise kind(f"{path} {problem}: {reason}") from error


def plain_file(path: Path | str, most: int) -> bytes:
    """The content of a regular file of at most ``most`` bytes.

    Raises:
        OSError: it is a pipe, a device or a folder, is longer, or cannot be read.
    """

    def without_waiting(name: str, flags: int) -> int:
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))

    with open(path, "rb", opener=without_waiting) as file:
        stats = os.fstat(file.fileno())
        if not stat.S_ISREG(stats.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
        if stats.st_size > most:
            size = f"it has {stats.st_size:,} bytes; expected {most:,} at most"
            raise OSError(errno.EFBIG, size, str(path))
        return file.read()


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is not JSON, or beyond `DEEPEST` or `DIGITS`.
    """
    try:
        value = json.loads(text, parse_int=_whole)
    except RecursionError as error:
        raise ValueError("values are nested too deeply") from error
    level = [value]
    for _ in range(DEEPEST):
        level = [x for x in level if isinstance(x, dict | list)]
        if not level:
            return value
        level = [x for held in level for x in (held.values() if isinstance(held, dict) else held)]
    raise ValueError(f"values are nested more than {DEEPEST} deep")


def _whole(digits: str) -> int:
    if len(digits) > DIGITS:
        raise ValueError(f"a number has {len(digits):,} digits; expected {DIGITS} at most")
    return int(digits)


def read_json(path: Path) -> Any:
    """The value in a JSON file; InputError where there is none."""
    with reading(path):
        return parse_json(plain_file(path, LONGEST))
