"""Optional packages, imported at their use; a missing one is named with its extra."""

import importlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ganfast.errors import InputError


def need(*names: str) -> list[Any]:
    """Packages of the extra `export`; InputError naming it where one is missing."""
    try:
        return [importlib.import_module(name) for name in names]
    except ImportError as error:
        missing = error.name or names[0]
        raise InputError(f'exporting needs {missing}: pip install "ganfast[export]"') from error


@contextmanager
def quiet(name: str = "") -> Iterator[None]:
    """Inside, the logger ``name`` (the root logger by default) reports errors only."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
