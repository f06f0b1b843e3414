"""`make gpu PART=tests|kernels|phases|bench|sampler|train|speed|all`: what needs a GPU, in an un-installed checkout with any torch.

Needs torch, triton, numpy, PyYAML, pytest and safetensors, no network. Parts end on their own in minutes; records are written
as they are measured, so that a stop loses nothing. Ends with a table of what holds.
"""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).parents[1]
KERNEL_TESTS = [
    f"tests/test_{name}.py"
    for name in ("gradient_penalty", "bias_act", "latents", "to_uint8", "adam_ema", "engine_kernels", "optim")
]


def tests() -> bool:
    """What is marked gpu, and the kernels' own tests, which take the GPU where there is one."""
    marked = _run("-m", "pytest", "-q", "-m", "gpu", "tests/test_gpu.py", "tests/test_engine_choice.py")
    kernels = _run("-m", "pytest", "-q", *KERNEL_TESTS)
    return marked and kernels


def kernels() -> bool:
    return _run("-m", "ganfast", "bench", "kernels", "--out", "benchmarks/results")


VARIANTS = "naive,tuned,tuned-graph,compiled,compiled-graph,jax,ganfast,ganfast-graph,ganfast-compiled,ganfast-compiled-graph"


def phases() -> bool:
    """The penalties on reals, and on both, at CelebA-64 size."""
    common = ("--data", "celeba", "--batch", "128", "--rounds", "20", "--out", "benchmarks/results")
    variants = ("--variants", VARIANTS.replace("jax,", ""))
    ran = [_run("-m", "ganfast", "bench", "train", "--preset", preset, *common, *variants) for preset in ("r1", "rpgan")]
    return all(ran)


def train() -> bool:
    """A short wgan-gp training, stopped and resumed, against the same one in one piece."""
    import numpy as np

    from ganfast.presets import preset_config
    from ganfast.training import train

    folder = Path(os.environ.get("GANFAST_DATA", ""))
    data = "mnist" if os.environ.get("GANFAST_DATA") and folder.exists() else "digits"
    if data == "digits":
        print("GANFAST_DATA names no folder: training on the embedded digits instead of MNIST (needs scikit-learn)")
    out = Path(tempfile.mkdtemp())
    config = replace(preset_config("wgan-gp", data), kimg=60.0, device="cuda", precision="bf16")
    began = time.monotonic()
    whole = train(replace(config, out=str(out / "whole")))
    print(f"{config.kimg:g} kimg in {time.monotonic() - began:.0f} s")
    # The same run without its last checkpoint, taken up again: saved states and random numbers must meet.
    last = whole.checkpoint_folder / whole.latest().name
    before = whole.sample(256, seed=1).astype(int)
    for file in last.iterdir():
        file.unlink()
    last.rmdir()
    again = train(replace(config, out=str(out / "whole"))).sample(256, seed=1).astype(int)
    gap = float(np.abs(before - again).mean())
    print(f"pictures of the resumed run differ by {gap:.3f} grey levels on average (sums on a GPU have no fixed order)")
    engine = json.loads((out / "whole/engine.json").read_text())
    print(f"critic step: {engine}")
    return gap < 20 and engine["engine"] == "explicit"


def bench() -> bool:
    """Whole iterations by every variant, JAX too where it is installed, at MNIST and CelebA-64 size."""
    common = ("-m", "ganfast", "bench", "train", "--preset", "wgan-gp", "--variants", VARIANTS, "--rounds", "40")
    small = _run(*common, "--data", "mnist", "--batch", "64", "--out", "benchmarks/results")
    large = _run(*common, "--data", "celeba", "--batch", "128", "--out", "benchmarks/results")
    return small and large


def sampler() -> bool:
    """Back ends of the sampler on this GPU, their tests skipped with the reason where a package is missing; then its targets."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        print(f"sampler: skipped, {', '.join(missing)} not installed here (the extra `export`)")
        return True
    tested = _run("-m", "pytest", "-q", "-rs", "-m", "gpu", "tests/test_gpu_sampler.py")
    return _run("benchmarks/bench_sampler.py", "--gpu") and tested


def speed() -> bool:
    """Seconds to a fixed quality on MNIST and StackedMNIST, recorded either way; it holds where both goals are reached.

    The recipe of stacked-mnist is for minutes of a CPU thread: its length and batch here are a guess that no GPU has tried.
    """
    if not (Path(os.environ.get("GANFAST_DATA", "")) / "mnist").is_dir():
        print("speed: skipped, GANFAST_DATA names no folder with mnist/")
        return True
    mnist = _run("benchmarks/speed.py", "mnist", "--device", "cuda", "--limit", "150")
    longer = ("--kimg", "2500", "--batch", "256", "--width", "64")
    stacked = _run("benchmarks/speed.py", "stacked-mnist", "--device", "cuda", "--limit", "270", *longer)
    return mnist and stacked


PARTS = {"tests": tests, "kernels": kernels, "phases": phases, "bench": bench, "sampler": sampler, "train": train, "speed": speed}


def _run(*arguments: str) -> bool:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment).returncode == 0


def main() -> int:
    part = sys.argv[1] if len(sys.argv) > 1 else "all"
    if part not in (*PARTS, "all"):
        print(f"make gpu: PART is {part!r}; expected one of {', '.join(PARTS)} or all", file=sys.stderr)
        return 2
    try:
        import torch
    except ImportError:
        print(f"make gpu needs torch: {sys.executable} has none; give another, make gpu PYTHON=...", file=sys.stderr)
        return 2
    if not torch.cuda.is_available():
        print("make gpu needs an NVIDIA GPU: torch sees none", file=sys.stderr)
        return 2
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}", flush=True)
    held = {}
    for name in PARTS if part == "all" else [part]:
        began = time.monotonic()
        try:
            held[name] = PARTS[name](), time.monotonic() - began
        except Exception as error:  # the other parts still tell something
            print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)
            held[name] = False, time.monotonic() - began
    for name, (holds, seconds) in held.items():
        print(f"{name:10}{'holds' if holds else 'does not hold':16}{seconds:6.0f} s")
    return 0 if all(holds for holds, _ in held.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
