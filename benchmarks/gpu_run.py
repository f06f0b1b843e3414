"""`make gpu PART=tests|kernels|phases|bench|sampler|train|speed|all`: what needs a GPU, in an un-installed checkout with any torch.

Needs torch, triton, numpy, PyYAML, pytest and safetensors, no network. A part is stopped after 450 s; records are written into
benchmarks/results as they are measured, so that a stop loses nothing. Ends with a table of what holds and what does not, and
exits 1 where something ran and failed: a crash, a test, a proof. A target that is missed is reported, and no error.
"""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
LIMIT = 450.0  # seconds of a part
KERNEL_TESTS = [
    str(next(ROOT.glob(f"tests/**/test_{name}.py")))
    for name in (
        "gradient_penalty",
        "bias_act",
        "latents",
        "to_uint8",
        "adam_ema",
        "engine_kernels",
        "optim",
    )
]
VARIANTS = "naive,tuned,tuned-graph,compiled,compiled-graph,ganfast,ganfast-graph,ganfast-compiled,ganfast-compiled-graph"
OURS = "ganfast,ganfast-graph,ganfast-compiled-graph"


class Outcome(NamedTuple):
    word: str  # passed, skipped, stopped or failed
    why: str = ""


PASSED = Outcome("passed")
Run = Callable[..., Outcome]


def worst(*outcomes: Outcome) -> Outcome:
    return max(
        outcomes, key=lambda outcome: ("passed", "skipped", "stopped", "failed").index(outcome.word)
    )


class Deadline:
    """Runs commands of one part, which have so many seconds together."""

    def __init__(self, seconds: float = LIMIT) -> None:
        self._seconds, self._until = seconds, time.monotonic() + seconds

    def __call__(self, *arguments: str) -> Outcome:
        """A Python of its own, in the checkout."""
        what, left = " ".join(arguments), self._until - time.monotonic()
        if left <= 0:
            return self._stopped(f"{what}: not begun, the {self._seconds:g} s of the part are over")
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=ROOT, env=environment, start_new_session=True
        )
        try:
            code = process.wait(left)
        except subprocess.TimeoutExpired:
            return self._stopped(f"{what}: stopped, the {self._seconds:g} s of the part are over")
        finally:
            if process.poll() is None:
                os.killpg(
                    process.pid, signal.SIGKILL
                )  # with what it started: compilers and workers
                process.wait()
        return PASSED if code == 0 else Outcome("failed", f"{what}: exit code {code}")

    def _stopped(self, why: str) -> Outcome:
        print(why, flush=True)
        return Outcome("stopped", why)


def tests(run: Run) -> Outcome:
    """What is marked gpu, and the kernels' own tests, which take the GPU where there is one. What did not end did not pass."""
    marked = run(
        "-m",
        "pytest",
        "-q",
        "-m",
        "gpu",
        "tests/gpu/test_gpu.py",
        "tests/engine/test_engine_choice.py",
    )
    found = worst(marked, run("-m", "pytest", "-q", *KERNEL_TESTS))
    return Outcome("failed", found.why) if found.word == "stopped" else found


def kernels(run: Run) -> Outcome:
    return run("-m", "ganfast", "bench", "kernels", "--out", str(RESULTS))


def phases(run: Run) -> Outcome:
    """At CelebA-64 size: a batch and width that fill the GPU; the penalties on both, and on reals."""
    common = ("--data", "celeba", "--rounds", "20")
    large = _train(
        run, "--preset", "wgan-gp", "--batch", "512", "--width", "128", *common, "--variants", OURS
    )
    usual = ("--batch", "128", "--width", "64", *common, "--variants", VARIANTS)
    return worst(large, *(_train(run, "--preset", preset, *usual) for preset in ("rpgan", "r1")))


def bench(run: Run) -> Outcome:
    """Whole iterations by every variant, JAX too where it is installed, at MNIST and CelebA-64 size."""
    variants = VARIANTS + (",jax" if importlib.util.find_spec("jax") else "")
    common = ("--preset", "wgan-gp", "--width", "64", "--rounds", "40", "--variants", variants)
    return worst(
        *(
            _train(run, "--data", data, "--batch", batch, *common)
            for data, batch in (("mnist", "64"), ("celeba", "128"))
        )
    )


def _train(run: Run, *arguments: str) -> Outcome:
    return run("-m", "ganfast", "bench", "train", *arguments, "--again", "--out", str(RESULTS))


def sampler(run: Run) -> Outcome:
    """Back ends of the sampler on this GPU, their tests skipped with the reason where a package is missing; then its times."""
    missing = [
        name
        for name in ("onnx", "onnxscript", "onnxruntime")
        if importlib.util.find_spec(name) is None
    ]
    if missing:
        return Outcome("skipped", f"{', '.join(missing)} not installed here (the extra `export`)")
    tested = run("-m", "pytest", "-q", "-rs", "-m", "gpu", "tests/gpu/test_gpu_sampler.py")
    return worst(tested, run("benchmarks/bench_sampler.py", "--gpu"))


def train(run: Run) -> Outcome:
    """A short training, resumed."""
    return run("benchmarks/gpu_train.py")


def speed(run: Run) -> Outcome:
    """Seconds to a fixed quality on MNIST and StackedMNIST, recorded whether it was reached or not.

    The recipe of stacked-mnist is for minutes of a CPU thread: its length and batch here are a guess that no GPU has tried.
    """
    if not (Path(os.environ.get("GANFAST_DATA", "")) / "mnist").is_dir():
        return Outcome("skipped", "GANFAST_DATA names no folder with mnist/")
    longer = ("--kimg", "2500", "--batch", "256", "--width", "64")
    outcomes = []
    for data, limit, more in (("mnist", "150", ()), ("stacked-mnist", "270", longer)):
        began = time.time()
        outcome = run("benchmarks/speed.py", data, "--device", "cuda", "--limit", limit, *more)
        recorded = any(path.name[11:].startswith(f"speed-{data}-") for path in written_since(began))
        outcomes.append(
            PASSED if outcome.word == "failed" and recorded else outcome
        )  # it ran, and did not reach its goal
    return worst(*outcomes)


PARTS = {
    "tests": tests,
    "kernels": kernels,
    "phases": phases,
    "bench": bench,
    "sampler": sampler,
    "train": train,
    "speed": speed,
}


def written_since(began: float) -> list[Path]:
    """Records, by the time of writing; a second for file systems that keep whole ones."""
    return sorted(path for path in RESULTS.glob("*.json") if path.stat().st_mtime >= began - 1)


def summary(ended: Mapping[str, tuple[Outcome, float]], began: float) -> int:
    """Print the tables of parts and targets; the exit code."""
    from ganfast.bench.records import read
    from ganfast.bench.targets import failures, judged

    found = [read(path) for path in written_since(began)]
    why = {
        name: f"part {name}: "
        + (
            f"{ended[name][0].word} {ended[name][0].why}".strip()
            if name in ended
            else "not asked for"
        )
        for name in PARTS
    }
    print("\nparts")
    for name, (outcome, seconds) in ended.items():
        print(f"{outcome.word:10}{name:10}{seconds:6.0f} s  {outcome.why}")
    print("\ntargets, of an H200")
    for row in judged(found, why):
        print(row)
    failed = any(outcome.word == "failed" for outcome, _ in ended.values())
    return 1 if failed or any(failures(record) for record in found) else 0


def main() -> int:
    part = sys.argv[1] if len(sys.argv) > 1 else "all"
    if part not in (*PARTS, "all"):
        print(
            f"make gpu: PART is {part!r}; expected one of {', '.join(PARTS)} or all",
            file=sys.stderr,
        )
        return 2
    try:
        import torch
    except ImportError:
        print(
            f"make gpu needs torch: {sys.executable} has none; give another, make gpu PYTHON=...",
            file=sys.stderr,
        )
        return 2
    if not torch.cuda.is_available():
        print("make gpu needs an NVIDIA GPU: torch sees none", file=sys.stderr)
        return 2
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}",
        flush=True,
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what runs is ended too
    started, ended = time.time(), {}
    for name in PARTS if part == "all" else [part]:
        began = time.monotonic()
        outcome = PARTS[name](Deadline())
        ended[name] = outcome, time.monotonic() - began
        print(f"{name}: {outcome.word} {outcome.why}", flush=True)
    return summary(ended, started)


if __name__ == "__main__":
    sys.exit(main())
