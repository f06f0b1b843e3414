"""A progress bar for `open_data` and `fetch`, for commands that a person watches."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ganfast.log import Lasting


@contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int], None]]:
    """Yields a function to pass as `progress`. It draws on stderr if that is a terminal."""
    try:
        from rich.console import Console
        from rich.progress import Progress, TaskID
    except ImportError:  # an un-installed checkout on a machine that has little more than torch
        yield lambda what, done, total: None
        return

    tasks: dict[str, TaskID] = {}
    person: Any = Lasting(sys.stderr)
    console = Console(file=person)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what)
            bar.update(tasks[what], completed=done, total=total or None)

        yield show
