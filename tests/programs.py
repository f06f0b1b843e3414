"""Command lines: in this process, or Python in one of its own."""

import shlex
import subprocess
import sys

from ganfast.cli import main


def ganfast(line: str, *more: str) -> int:
    """The exit code of `ganfast LINE MORE`."""
    return main([*shlex.split(line), *more])


def python(*arguments: str, **options) -> subprocess.CompletedProcess:
    """A finished process of this Python, with what it printed."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, **options)
