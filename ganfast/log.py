"""What ganfast says to the person at the terminal."""

import logging
import sys

logger = logging.getLogger("ganfast")


def say(message: str) -> None:
    """A line to the person at the terminal: standard error, so that standard output stays data."""
    print(message, file=sys.stderr, flush=True)
