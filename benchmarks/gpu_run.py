"""`make gpu`: what needs an NVIDIA GPU, most important first, in an un-installed checkout.

make gpu PART=first OUT=folder            # smoke, tests, bench: 7.5 minutes
make gpu PART=second OUT=folder           # kernels, train, large, ranks, rest: 4.5 minutes
make gpu PART=rest LIMIT=3600 OUT=folder  # one part, with more time

Needs torch, triton, numpy, PyYAML, pytest, safetensors, Pillow and rich, no network; torchmetrics
for the time to a quality. LIMIT is the seconds of all parts together; a part that ends early leaves
its time to the next ones. The folder (without OUT, benchmarks/results) gets gpu.jsonl, a line for
each record; summary.txt; gpu.log. The first two are replaced whole, whenever something was measured
and after every part, so a kill loses nothing before it.

Exit code 1 is for what ran and failed: a crash, a test, a proof. A target that is missed is
reported, and is no error. `make gpu-rehearsal` tries all this on a CPU.
"""

import argparse
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NamedTuple, NoReturn

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
CALLS = {
    "first": ("smoke", "tests", "bench"),
    "second": ("kernels", "train", "large", "ranks", "rest"),
}
CALLS["all"] = CALLS["first"] + CALLS["second"]
_GPU, _CHOICE = "tests/gpu/test_gpu.py", "tests/engine/test_engine_choice.py"
# Of the GPU tests: random numbers and pictures, capture of unlike phases, bf16 and fp16, inductor.
_CAPTURED = "test_captured_phases_train_as_uncaptured_ones"
_DRAWN = "test_a_captured_draw_and_what_it_feeds_are_those_of_the_cpu"
_TRAINS = "test_every_preset_trains_on_the_gpu"
FIRST_TESTS = [
    f"{_GPU}::{_TRAINS}[wgan-gp-bf16]",  # compiled: it takes longest, so it begins first
    f"{_GPU}::test_random_words_equal_those_of_the_cpu",
    f"{_GPU}::test_latents_differ_from_the_cpu_by_one_ulp_at_most_and_rarely",
    *(f"{_GPU}::{_CAPTURED}[{name}]" for name in ("wgan-gp", "rpgan", "r1", "acgan")),
    *(f"{_GPU}::{_DRAWN}[{name}]" for name in ("wgan-gp", "acgan")),
    f"{_GPU}::test_garbage_of_a_capture_is_collected_behind_it",
    f"{_GPU}::test_what_cannot_be_captured_is_said_once_and_trained_all_the_same",
    f"{_GPU}::test_bf16_gradients_are_near_those_of_fp32",
    f"{_GPU}::test_convolutions_of_few_channels_are_timed_and_right_either_way[1-kind0]",
    f"{_GPU}::{_TRAINS}[wgan-gp-fp16]",
    f"{_GPU}::test_pictures_agree_between_gpu_and_cpu",
    f"{_GPU}::test_a_set_larger_than_device_memory_is_streamed_with_the_same_batches",
]
_TESTED = (
    "gradient_penalty bias_act latents shuffle pictures to_uint8 adam_ema engine_kernels optim"
)
KERNEL_TESTS = [
    str(path.relative_to(ROOT))
    for name in _TESTED.split()
    for path in ROOT.glob(f"tests/**/test_{name}.py")
]


class Outcome(NamedTuple):
    word: str  # passed, skipped, stopped or failed
    why: str = ""


PASSED = Outcome("passed")
UNDER_WAY = Outcome("stopped", "under way when this was written")


def worst(*outcomes: Outcome) -> Outcome:
    order = ("passed", "skipped", "stopped", "failed")
    return max(outcomes, key=lambda outcome: order.index(outcome.word))


class Deadline:
    """Runs the commands of one part, which share its seconds.

    Args:
        seconds: of all commands together.
        records: the folder that they write records to.
        log: gets what they print, as standard output does; None = that alone.
        look: called about every second while a command runs.
    """

    def __init__(
        self,
        seconds: float,
        records: Path = RESULTS,
        log: IO[bytes] | None = None,
        look: Callable[[], object] = lambda: None,
    ) -> None:
        self._seconds, self._until = seconds, time.monotonic() + seconds
        self.records, self._log, self._look = records, log, look
        self._last = ""  # line that was printed

    def __call__(self, *arguments: str) -> Outcome:
        """A Python of its own, in the checkout."""
        command = " ".join(arguments)
        if time.monotonic() >= self._until:
            return self._stopped(f"{command}: not begun")
        path = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, path)),
            "PYTHONUNBUFFERED": "1",
            "GANFAST_RECORDS": str(self.records),
        }
        self._last = "no output"
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        tee = threading.Thread(target=self._tee, args=(process.stdout,), daemon=True)
        tee.start()
        try:
            while (code := process.poll()) is None:
                if time.monotonic() >= self._until:
                    return self._stopped(f"{command}: stopped")
                with suppress(subprocess.TimeoutExpired):
                    process.wait(min(1.0, max(0.0, self._until - time.monotonic())))
                self._look()
        finally:
            if process.poll() is None:  # the compilers and workers that it started end too
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            tee.join(2)
        return PASSED if code == 0 else Outcome("failed", f"{command}: {self._last} (exit {code})")

    def _tee(self, output: IO[bytes]) -> None:
        for line in output:
            self._last = line.decode(errors="replace").strip() or self._last
            for file in filter(None, (self._log, sys.stdout.buffer)):
                with suppress(OSError):  # a pipe that nobody reads must not block the command
                    file.write(line)
                    file.flush()

    def _stopped(self, why: str) -> Outcome:
        why = f"{why}, the {self._seconds:.3g} s of the part are over"
        print(why, flush=True)
        return Outcome("stopped", why)


# Parts. ``tiny``: what a CPU can do of it, in seconds.


def phases(*commands: str) -> Callable[[Deadline, bool], Outcome]:
    """A part that is commands of gpu_parts.py, in one process."""
    return lambda run, tiny: run("benchmarks/gpu_parts.py", *commands, *["--tiny"] * tiny)


def _pytest(run: Deadline, *arguments: str) -> Outcome:
    """Tests that did not end did not pass."""
    xdist = importlib.util.find_spec("xdist")
    spread = ["-n", "3", "--dist", "worksteal"] if xdist else []  # a long test keeps none waiting
    outcome = run("-m", "pytest", "-q", *spread, *arguments)
    return Outcome("failed", outcome.why) if outcome.word == "stopped" else outcome


def tests(run: Deadline, tiny: bool) -> Outcome:
    """On a CPU they are skipped, and starting three processes for that would take longer."""
    return run("-m", "pytest", "-q", *FIRST_TESTS) if tiny else _pytest(run, *FIRST_TESTS)


def kernels(run: Deadline, tiny: bool) -> Outcome:
    size = ["to_uint8", "--device", "cpu", "--no-compile", "--rounds", "5"] if tiny else []
    out = ("--out", str(run.records))
    return run("-m", "ganfast", "bench", "kernels", "--rounds", "15", *out, *size)


def train(run: Deadline, tiny: bool) -> Outcome:
    """A short training with the seconds to a quality, resumed."""
    size = "--device cpu --kimg 2 --width 4" if tiny else "--kimg 30"
    return run("benchmarks/gpu_train.py", *size.split())


def ranks(run: Deadline, tiny: bool) -> Outcome:
    """A sum of one rank in a graph, and of two where two GPUs are there."""
    return run("benchmarks/gpu_ranks.py", *["--tiny"] * tiny)


def rest(run: Deadline, tiny: bool) -> Outcome:
    """The other tests, the sampler, all variants, time to a quality on real pictures."""
    if tiny:
        return _sampler(run, tiny)
    others = [f"--deselect={name}" for name in FIRST_TESTS]
    return worst(
        _pytest(run, *KERNEL_TESTS),
        _pytest(run, "-m", "gpu", _GPU, _CHOICE, *others),
        _sampler(run, tiny),
        phases("penalties", "variants")(run, tiny),
        _speed(run),
    )


def _sampler(run: Deadline, tiny: bool) -> Outcome:
    """Back ends of the sampler on this GPU, then its times."""
    needed = ("onnx", "onnxscript", "onnxruntime")
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        return Outcome("skipped", f"{', '.join(missing)} not installed here (the extra `export`)")
    if tiny:
        return run("benchmarks/bench_sampler.py", "--gpu", "--smoke")
    tested = _pytest(run, "-rs", "-m", "gpu", "tests/gpu/test_gpu_sampler.py")
    return worst(tested, run("benchmarks/bench_sampler.py", "--gpu"))


def _speed(run: Deadline) -> Outcome:
    """Seconds to a fixed quality on MNIST and StackedMNIST.

    The recipe of stacked-mnist is for minutes of a CPU thread: its length and batch here are a
    guess that no GPU has tried.
    """
    if not (Path(os.environ.get("GANFAST_DATA", "")) / "mnist").is_dir():
        return Outcome("skipped", "GANFAST_DATA names no folder with mnist/")
    longer = "--limit 270 --kimg 2500 --batch 256 --width 64"
    options = {"mnist": "--limit 150", "stacked-mnist": longer}
    speed = "benchmarks/speed.py"
    return worst(*(run(speed, d, "--device", "cuda", *o.split()) for d, o in options.items()))


class Part(NamedTuple):
    seconds: float  # of another LIMIT than the sum, its share
    run: Callable[[Deadline, bool], Outcome]


PARTS = {
    "smoke": Part(30, phases("smoke")),
    "tests": Part(120, tests),
    "bench": Part(300, phases("bench")),
    "kernels": Part(80, kernels),
    "train": Part(50, train),
    "large": Part(50, phases("large")),
    "ranks": Part(30, ranks),
    "rest": Part(60, rest),
}


class Session:
    """One call: the parts asked for, what became of them, and the files that tell of it."""

    def __init__(
        self, out: Path, parts: Mapping[str, Part], limit: float, title: str, tiny: bool = False
    ) -> None:
        self.out, self.parts, self.title, self.tiny = out, parts, title, tiny
        self.until = time.monotonic() + limit
        self.ended: dict[str, tuple[Outcome, float]] = {}
        self.records = Path(tempfile.mkdtemp(prefix="ganfast-gpu-"))
        self._archive = out / "gpu.jsonl"
        self._before = self._archive.read_text() if self._archive.exists() else ""
        self._seen: dict[Path, int] = {}
        self._failed = False

    def run(self) -> int:
        """All parts, then the summary on standard output; the exit code."""
        try:
            with open(self.out / "gpu.log", "ab") as log:
                ahead = sum(part.seconds for part in self.parts.values())
                for name, part in self.parts.items():
                    began = time.monotonic()
                    self.ended[name] = UNDER_WAY, 0.0
                    self.write()
                    share = part.seconds / ahead * (self.until - began)
                    ahead -= part.seconds
                    outcome = part.run(Deadline(share, self.records, log, self.look), self.tiny)
                    self.ended[name] = outcome, time.monotonic() - began
                    print(f"{name}: {outcome.word} {outcome.why}".strip(), flush=True)
        finally:  # also when a signal ends it
            print(self.write(), flush=True)
            shutil.rmtree(self.records, ignore_errors=True)
        failed = any(outcome.word == "failed" for outcome, _ in self.ended.values())
        return 1 if failed or self._failed else 0

    def look(self) -> None:
        """Write what was measured since the last look."""
        seen = self._seen
        with suppress(FileNotFoundError):  # one was just replaced; the next look is in a second
            seen = {path: path.stat().st_mtime_ns for path in self.records.glob("*.json")}
        if seen != self._seen:
            self._seen = seen
            self.write()

    def write(self) -> str:
        """gpu.jsonl and summary.txt as they stand; the summary's text."""
        records = self.measured()
        text = self._before + "".join(json.dumps(record) + "\n" for record in records)
        replace(self._archive, text)
        try:
            summary = self.summary(records)
        except Exception:  # what was measured matters more than how it looks
            summary = f"{self.title}\n\n{traceback.format_exc()}"
            self._failed = True
        replace(self.out / "summary.txt", summary)
        return summary

    def measured(self) -> list[dict[str, Any]]:
        """All records. A whole one may take a partial one's place meanwhile: they are read anew."""
        from ganfast.bench.records import condensed, read
        from ganfast.errors import InputError

        for _ in range(9):
            with suppress(InputError):
                return [condensed(read(path)) for path in sorted(self.records.glob("*.json"))]
        raise RuntimeError(f"records in {self.records} cannot be read")

    def summary(self, records: Sequence[dict[str, Any]]) -> str:
        from ganfast.bench import report
        from ganfast.bench.targets import failures, judged

        self._failed = any(failures(record) for record in records)
        why = {name: f"part {name}: not asked for" for name in PARTS}
        lines = [self.title, "", "parts"]
        for name in self.parts:
            outcome, seconds = self.ended.get(name, (Outcome("not begun"), 0.0))
            why[name] = f"part {name}: {outcome.word} {outcome.why}".strip()
            lines.append(f"{outcome.word:10}{name:10}{seconds:6.0f} s  {outcome.why}".rstrip())
        fullest = sorted(records, key=lambda record: len(record["measurements"]))
        for record in {record["name"]: record for record in fullest}.values():
            lines += ["", *report.phases(record)]
        lines += ["", "targets, of an H200", *map(str, judged(records, why))]
        return "\n".join(lines) + "\n"


def replace(path: Path, text: str) -> None:
    """Written beside and renamed: a reader, and a kill, find the old text or the new."""
    beside = path.with_name(path.name + ".part")
    beside.write_text(text)
    beside.replace(path)


def _refuse(message: str) -> NoReturn:
    target = "gpu-quick" if Path(sys.argv[0]).stem == "gpu_quick" else "gpu"
    print(f"make {target}: {message}", file=sys.stderr)
    raise SystemExit(2)


def asked(part: str, limit: str) -> tuple[dict[str, Part], float]:
    """Parts and seconds; SystemExit 2 and a sentence where one makes no sense."""
    names = CALLS.get(part, (part,))
    if not set(names) <= PARTS.keys():
        _refuse(f"PART is {part!r}; expected {', '.join(CALLS)}, or one of {', '.join(PARTS)}")
    parts = {name: PARTS[name] for name in names}
    return parts, seconds_of(limit, parts)


def seconds_of(limit: str, parts: Mapping[str, Part]) -> float:
    """Of all parts together; "" = what they want. SystemExit 2 and a sentence for no number."""
    try:
        seconds = float(limit or sum(part.seconds for part in parts.values()))
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        _refuse(f"LIMIT is {limit!r}; expected the seconds of all parts together, above 0")
    return seconds


def machine(tiny: bool) -> str:
    """The GPU and torch in a line; SystemExit 2 and a sentence where there is none."""
    try:
        import torch
    except ImportError:
        _refuse(f"{sys.executable} has no torch; give another Python: make gpu PYTHON=...")
    if tiny:
        return f"rehearsal on a CPU, torch {torch.__version__}"
    if not torch.cuda.is_available():
        _refuse(f"needs an NVIDIA GPU, and torch {torch.__version__} sees none here")
    name, versions = torch.cuda.get_device_name(), (torch.__version__, torch.version.cuda)
    return f"{name}, torch {versions[0]}, CUDA {versions[1]}"


def writable(out: str) -> Path:
    """The folder for results; SystemExit 2 and a sentence where it cannot be written to."""
    folder = Path(out or RESULTS).absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        _refuse(f"OUT is {str(folder)!r}, which cannot be written to: {error.strerror}")
    return folder


def end_by_sigterm(*_: object) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the summary is written first
    raise SystemExit(143)


def main(arguments: list[str]) -> int:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("part", nargs="?", default="all")
    parser.add_argument("limit", nargs="?", default="", help="seconds of all parts together")
    parser.add_argument("--tiny", action="store_true", help="what a CPU can do of each part")
    options = parser.parse_args(arguments)
    parts, limit = asked(options.part, options.limit)
    title, out = machine(options.tiny), writable(os.environ.get("OUT", ""))
    signal.signal(signal.SIGTERM, end_by_sigterm)
    session = Session(out, parts, limit, title, options.tiny)
    session.write()
    print(title, flush=True)
    return session.run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
