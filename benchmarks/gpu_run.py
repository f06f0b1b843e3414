"""`make gpu PART=...`: what needs a GPU, in an un-installed checkout with any torch.

Needs torch, triton, numpy, PyYAML, pytest and safetensors, no network. A part is stopped after
450 s. Records are written into benchmarks/results as they are measured, so a stop loses nothing.

It ends with a table of the targets that hold and that do not, and exits 1 where something ran and
failed: a crash, a test, a proof. A target that is missed is reported, and is no error.
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
_TESTED = "gradient_penalty bias_act latents to_uint8 adam_ema engine_kernels optim"
KERNEL_TESTS = [str(next(ROOT.glob(f"tests/**/test_{name}.py"))) for name in _TESTED.split()]
OURS = "ganfast,ganfast-graph,ganfast-compiled-graph"
VARIANTS = f"naive,tuned,tuned-graph,compiled,compiled-graph,{OURS},ganfast-compiled"


class Outcome(NamedTuple):
    word: str  # passed, skipped, stopped or failed
    why: str = ""


PASSED = Outcome("passed")
Run = Callable[..., Outcome]


def worst(*outcomes: Outcome) -> Outcome:
    order = ("passed", "skipped", "stopped", "failed")
    return max(outcomes, key=lambda outcome: order.index(outcome.word))


class Deadline:
    """Runs the commands of one part, which share its seconds."""

    def __init__(self, seconds: float = LIMIT) -> None:
        self._seconds, self._until = seconds, time.monotonic() + seconds

    def __call__(self, *arguments: str) -> Outcome:
        """A Python of its own, in the checkout."""
        command, left = " ".join(arguments), self._until - time.monotonic()
        if left <= 0:
            return self._stopped(f"{command}: not begun")
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=ROOT, env=environment, start_new_session=True
        )
        try:
            code = process.wait(left)
        except subprocess.TimeoutExpired:
            return self._stopped(f"{command}: stopped")
        finally:
            if process.poll() is None:  # the compilers and workers that it started end too
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        return PASSED if code == 0 else Outcome("failed", f"{command}: exit code {code}")

    def _stopped(self, why: str) -> Outcome:
        why = f"{why}, the {self._seconds:g} s of the part are over"
        print(why, flush=True)
        return Outcome("stopped", why)


def _pytest(run: Run, *arguments: str) -> Outcome:
    return run("-m", "pytest", "-q", *arguments)


def tests(run: Run) -> Outcome:
    """The tests marked gpu, and the kernels' own, which take the GPU where there is one.

    Tests that did not end did not pass.
    """
    files = "tests/gpu/test_gpu.py", "tests/engine/test_engine_choice.py"
    outcome = worst(_pytest(run, "-m", "gpu", *files), _pytest(run, *KERNEL_TESTS))
    return Outcome("failed", outcome.why) if outcome.word == "stopped" else outcome


def kernels(run: Run) -> Outcome:
    return run("-m", "ganfast", "bench", "kernels", "--out", str(RESULTS))


def phases(run: Run) -> Outcome:
    """At CelebA-64 size: a batch and width that fill the GPU; penalties on both, and on reals."""
    common = "--data celeba --rounds 20"
    large = f"--preset wgan-gp --batch 512 --width 128 --variants {OURS}"
    usual = f"--batch 128 --width 64 --variants {VARIANTS} --preset"
    options = (large, f"{usual} rpgan", f"{usual} r1")
    return worst(*(_train(run, f"{common} {option}") for option in options))


def bench(run: Run) -> Outcome:
    """Whole iterations by every variant, JAX too where it is installed, at two sizes."""
    variants = VARIANTS + (",jax" if importlib.util.find_spec("jax") else "")
    common = f"--preset wgan-gp --width 64 --rounds 40 --variants {variants}"
    sizes = ("--data mnist --batch 64", "--data celeba --batch 128")
    return worst(*(_train(run, f"{common} {size}") for size in sizes))


def _train(run: Run, options: str) -> Outcome:
    out = ("--again", "--out", str(RESULTS))
    return run("-m", "ganfast", "bench", "train", *options.split(), *out)


def sampler(run: Run) -> Outcome:
    """Back ends of the sampler on this GPU, then its times.

    A test is skipped with the reason where its package is missing.
    """
    needed = ("onnx", "onnxscript", "onnxruntime")
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        return Outcome("skipped", f"{', '.join(missing)} not installed here (the extra `export`)")
    tested = _pytest(run, "-rs", "-m", "gpu", "tests/gpu/test_gpu_sampler.py")
    return worst(tested, run("benchmarks/bench_sampler.py", "--gpu"))


def train(run: Run) -> Outcome:
    """A short training, resumed."""
    return run("benchmarks/gpu_train.py")


def speed(run: Run) -> Outcome:
    """Seconds to a fixed quality on MNIST and StackedMNIST, recorded though it is not reached.

    The recipe of stacked-mnist is for minutes of a CPU thread: its length and batch here are a
    guess that no GPU has tried.
    """
    if not (Path(os.environ.get("GANFAST_DATA", "")) / "mnist").is_dir():
        return Outcome("skipped", "GANFAST_DATA names no folder with mnist/")
    outcomes = []
    longer = "--limit 270 --kimg 2500 --batch 256 --width 64"
    for data, options in (("mnist", "--limit 150"), ("stacked-mnist", longer)):
        began = time.time()
        outcome = run("benchmarks/speed.py", data, "--device", "cuda", *options.split())
        recorded = any(path.name[11:].startswith(f"speed-{data}-") for path in written_since(began))
        # With a record it ran, and did not reach its goal.
        outcomes.append(PASSED if outcome.word == "failed" and recorded else outcome)
    return worst(*outcomes)


PARTS = {part.__name__: part for part in (tests, kernels, phases, bench, sampler, train, speed)}


def written_since(began: float) -> list[Path]:
    """Records, by the time of writing; a second for file systems that keep whole ones."""
    return sorted(path for path in RESULTS.glob("*.json") if path.stat().st_mtime >= began - 1)


def summary(ended: Mapping[str, tuple[Outcome, float]], began: float) -> int:
    """Print the tables of parts and targets; the exit code."""
    from ganfast.bench.records import read
    from ganfast.bench.targets import failures, judged

    records = [read(path) for path in written_since(began)]
    why = {name: f"part {name}: not asked for" for name in PARTS}
    print("\nparts")
    for name, (outcome, seconds) in ended.items():
        why[name] = f"part {name}: {outcome.word} {outcome.why}".strip()
        print(f"{outcome.word:10}{name:10}{seconds:6.0f} s  {outcome.why}")
    print("\ntargets, of an H200")
    for row in judged(records, why):
        print(row)
    failed = any(outcome.word == "failed" for outcome, _ in ended.values())
    return 1 if failed or any(failures(record) for record in records) else 0


def _obstacle(part: str) -> str:
    """Why nothing can run; empty where it can."""
    if part not in (*PARTS, "all"):
        return f"make gpu: PART is {part!r}; expected one of {', '.join(PARTS)} or all"
    try:
        import torch
    except ImportError:
        how = f"{sys.executable} has none; give another, make gpu PYTHON=..."
        return f"make gpu needs torch: {how}"
    if not torch.cuda.is_available():
        return "make gpu needs an NVIDIA GPU: torch sees none"
    name, versions = torch.cuda.get_device_name(), (torch.__version__, torch.version.cuda)
    print(f"{name}, torch {versions[0]}, CUDA {versions[1]}", flush=True)
    return ""


def main() -> int:
    part = sys.argv[1] if len(sys.argv) > 1 else "all"
    if obstacle := _obstacle(part):
        print(obstacle, file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends what runs, too
    started, ended = time.time(), {}
    for name in PARTS if part == "all" else [part]:
        began = time.monotonic()
        outcome = PARTS[name](Deadline())
        ended[name] = outcome, time.monotonic() - began
        print(f"{name}: {outcome.word} {outcome.why}", flush=True)
    return summary(ended, started)


if __name__ == "__main__":
    sys.exit(main())
