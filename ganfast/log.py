"""What ganfast says to the person at the terminal, who may have left."""

import logging
import os
import sys
from contextlib import suppress
from typing import IO, Any

logger = logging.getLogger("ganfast")


class Lasting:
    """A stream that a reader, a terminal or a disk may leave: from then on it ends in nothing.

    What a command makes does not depend on whether somebody is told of it.
    """

    def __init__(self, stream: IO[str] | None) -> None:
        """``stream``: None where the process was started without it (``2>&-``)."""
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def isatty(self) -> bool:
        with suppress(ValueError):  # a closed file
            return self._stream is not None and self._stream.isatty()
        return False

    def write(self, text: str) -> int:
        if self._stream is not None:
            with suppress(ValueError):  # a closed file
                try:
                    self._write(self._stream, text)
                except OSError:
                    abandon(self._stream)
        return len(text)

    @staticmethod
    def _write(stream: IO[str], text: str) -> None:
        try:
            stream.write(text)
        except UnicodeEncodeError as error:  # a terminal of few letters: the line is still told
            stream.write(text.encode(error.encoding, "backslashreplace").decode(error.encoding))
        stream.flush()

    def flush(self) -> None:
        """Nothing waits: `write` flushes."""


def abandon(stream: IO[str]) -> None:
    """Let all that a stream still holds go nowhere; Python would fail on it when it exits."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def say(message: str) -> None:
    """A line to the person at the terminal: standard error, so that standard output stays data."""
    Lasting(sys.stderr).write(f"{message}\n")


def tell(message: object) -> None:
    """A line on standard output about what is made already: it is made, whoever reads the line."""
    Lasting(sys.stdout).write(f"{message}\n")
