"""Where a run happens: versions, processor, GPU, commit."""

import os
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = (
    *("torch", "triton", "numpy", "Pillow", "safetensors", "tyro", "PyYAML", "rich"),
    *("tensorboard", "scikit-learn", "jax", "jaxlib"),
    *("onnx", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx"),
)


def has_compiler() -> bool:
    """Whether a C++ compiler is found that torch's compiler can call on a CPU."""
    names = os.environ.get("CXX"), "g++", "clang++", "c++", "cl"
    return any(name and shutil.which(name) for name in names)


def environment() -> dict[str, Any]:
    """{"ganfast": version, "commit": ..., package: version or None, ...}, plain enough for JSON."""
    import torch

    import ganfast

    facts: dict[str, Any] = {
        "ganfast": ganfast.__version__,
        "commit": _commit(),
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "driver": _driver(),
        "clocks": _clocks(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
        "XLA_FLAGS": os.environ.get("XLA_FLAGS"),
        "compiler": shutil.which(os.environ.get("CXX", "g++")),
    }
    return facts | {name: _version(name) for name in _PACKAGES}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _ask(*command: str, cwd: Path | None = None) -> str | None:
    try:
        done = subprocess.run(
            command, cwd=cwd, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def _commit() -> str | None:
    """Commit of this checkout, -dirty when files differ from it; None for an installed package."""
    home = Path(__file__).resolve().parents[1]
    if not (home / ".git").exists():
        return None
    return _ask("git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*", cwd=home)


def _driver() -> str | None:
    return _ask("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")


def _clocks() -> str | None:
    """SM and memory clock, power and the reasons why the GPU slows down, as nvidia-smi has them."""
    query = "--query-gpu=clocks.sm,clocks.mem,power.draw,clocks_event_reasons.active"
    return _ask("nvidia-smi", query, "--format=csv,noheader")


def _cpu() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or None
    models = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(models, None)
