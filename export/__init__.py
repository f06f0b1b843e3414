"""From a trained generator to pictures in production. Nothing here imports torch at the top: a sampler needs none."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ganfast.export.exporter import export_bundle
    from ganfast.export.refit import refit_bundle
    from ganfast.export.sampler import Sampler, load_sampler

__all__ = ["Sampler", "export_bundle", "load_sampler", "refit_bundle"]

_HOME = {
    "Sampler": "ganfast.export.sampler",
    "export_bundle": "ganfast.export.exporter",
    "load_sampler": "ganfast.export.sampler",
    "refit_bundle": "ganfast.export.refit",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ganfast.export' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOME[name]), name)
