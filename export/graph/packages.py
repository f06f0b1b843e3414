"""Optional packages, imported when they are used; a missing one is named with the extra that brings it."""

import importlib
from typing import Any

from ganfast.errors import InputError


def need(*names: str) -> list[Any]:
    """Packages of the extra `export`; InputError naming it where one is missing."""
    try:
        return [importlib.import_module(name) for name in names]
    except ImportError as error:
        raise InputError(
            f'exporting needs {error.name or names[0]}: pip install "ganfast[export]"'
        ) from error
