"""From a trained generator to pictures in production.

Nothing here imports torch at the top: a sampler needs none.
"""

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ganfast.export.drawing.sampler import Sampler, load_sampler
    from ganfast.export.exporter import export_bundle
    from ganfast.export.refit import refit_bundle

__all__ = ["Sampler", "export_bundle", "load_sampler", "refit_bundle"]

_HOME = {
    "Sampler": "ganfast.export.drawing.sampler",
    "export_bundle": "ganfast.export.exporter",
    "load_sampler": "ganfast.export.drawing.sampler",
    "refit_bundle": "ganfast.export.refit",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ganfast.export' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


# Modules lay beside this file in 0.1. Their old names work for one version more, with a warning.
_ROOMS = ("graph", "bundle", "engines", "drawing")
_RENAMED = {"latents": "ganfast.latents", "backend": f"{__name__}.drawing.lanes"}


def _new_name(old: str) -> str:
    """Where a module of 0.1 is now; "" for any other name."""
    package, _, module = old.rpartition(".")
    if package != __name__:
        return ""
    rooms = [r for r in _ROOMS if (Path(__file__).parent / r / f"{module}.py").is_file()]
    return f"{package}.{rooms[0]}.{module}" if rooms else _RENAMED.get(module, "")


class _OldNames:
    """Python asks this finder last; an old name leads to the module itself, not to a second one."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(name, _OldNames) if _new_name(name) else None  # type: ignore[arg-type]

    @staticmethod
    def create_module(spec: ModuleSpec) -> ModuleType:
        _warn(spec.name, _new_name(spec.name))
        module = import_module(_new_name(spec.name))
        spec.loader_state = module.__spec__  # which Python replaces by the old name's
        return module

    @staticmethod
    def exec_module(module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state


def _warn(old: str, new: str, level: int = 3) -> None:
    warnings.warn(
        f"{old} is now {new}; the old name goes with the next version",
        DeprecationWarning,
        stacklevel=level,
    )


def of_old_module(room: str, name: str) -> Any:
    """``name`` of the module that shares its name with a room.

    `ganfast.export.bundle` was a module in 0.1; it is `ganfast.export.bundle.bundle` now.
    """
    short = room.rpartition(".")[2]
    if name.startswith("__") or find_spec(f"{room}.{name}"):  # Python imports a module by itself
        raise AttributeError(f"module {room!r} has no attribute {name!r}")
    value = getattr(import_module(f"{room}.{short}"), name)
    _warn(room, f"{room}.{short}", 4)
    return value


if _OldNames not in sys.meta_path:
    sys.meta_path.append(_OldNames)
