"""ganfast: train generative adversarial networks at the speed of the hardware, and ship the
generator.

>>> import ganfast
>>> run = ganfast.train("wgan-gp", data="digits")
>>> run.sample(64, seed=7)          # uint8 (64, H, W, C)

Importing this costs nothing: torch is loaded by what uses it.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from pathlib import Path

    from ganfast.config import Config
    from ganfast.errors import InputError, RunError
    from ganfast.export import Sampler
    from ganfast.presets import preset_config
    from ganfast.runs.run import Run
    from ganfast.runs.train import train

__all__ = ["Config", "InputError", "Run", "RunError", "__version__", "preset_config", "train"]

_HOME = {
    "Config": "ganfast.config",
    "InputError": "ganfast.errors",
    "RunError": "ganfast.errors",
    "Run": "ganfast.runs.run",
    "preset_config": "ganfast.presets",
    "train": "ganfast.runs.train",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ganfast' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "open"]  # which a * must not put in the place of Python's own


def open(path: "Path | str") -> "Run | Sampler":
    """The run in a directory, or the sampler of the bundle in it; both have ``sample``.

    Raises:
        InputError: the directory holds neither; `Run.open` and `load_sampler` say more.
    """
    from pathlib import Path

    if (Path(path) / "manifest.json").exists():
        from ganfast.export import load_sampler

        return load_sampler(path)
    from ganfast.runs.run import Run

    return Run.open(path)
