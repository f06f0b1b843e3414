"""`make gpu-rehearsal`: the script of `make gpu` on a CPU, once whole and killed three times.

python benchmarks/gpu_rehearsal.py [--seed N]

Networks are tiny, and a host's clock stands for the GPU's. The moments of the kills are random;
the seed is printed. After each run its summary and records are read, and compared with what the
run had said by then. Exit code 1 where something is missing. Linux only.
"""

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

from gpu_run import CALLS, ROOT

from ganfast.bench import records
from ganfast.errors import InputError

_DELAY = 3.0  # seconds: what was said so long before a kill is in the archive
_KILLS = (signal.SIGTERM, signal.SIGKILL, signal.SIGTERM)


class Rehearsal:
    """One run in a folder: what it says and when, and how it ends."""

    def __init__(self, out: Path) -> None:
        self.out, self.began = out, time.monotonic()
        self.lines: list[tuple[float, str]] = []
        self._process = subprocess.Popen(
            [sys.executable, "benchmarks/gpu_run.py", "all", "--tiny"],
            cwd=ROOT,
            env=os.environ | {"OUT": str(out), "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append((time.monotonic(), line.rstrip()))

    def wait(self, seconds: float | None = None) -> None:
        """Until it ends, or for some seconds."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)

    def kill(self, number: signal.Signals) -> None:
        """The run; the command of its part, which knows of no SIGKILL, is ended after it."""
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        self._process.send_signal(number)
        self._process.wait(30)
        if number == signal.SIGKILL:
            for child in map(int, children):
                with suppress(ProcessLookupError):
                    os.killpg(child, signal.SIGKILL)

    def end(self) -> tuple[int, float]:
        """Its exit code, and how long it ran."""
        code, seconds = self._process.wait(), time.monotonic() - self.began
        self._reader.join(5)
        return code, seconds

    def missing(self, until: float) -> list[str]:
        """What was said before a moment, and is not in the files."""
        text = self.out.joinpath("summary.txt").read_text()
        parts = re.findall(r"^(passed|skipped|stopped|failed|not begun) *(\w+)", text, re.MULTILINE)
        outcomes = {name: word for word, name in parts}
        problems = [
            f"no line of {name} in the summary" for name in set(CALLS["all"]) - set(outcomes)
        ]
        try:
            names = [record["name"] for record in records.read_all(self.out / "gpu.jsonl")]
        except InputError as error:
            return [*problems, str(error)]
        for moment, line in self.lines:
            if moment > until - _DELAY:
                break
            ended = re.fullmatch(r"(\w+): (passed|skipped|failed)\b.*", line)
            if ended and ended[1] in outcomes and outcomes[ended[1]] != ended[2]:
                problems.append(f"{line}; the summary says {outcomes[ended[1]]}")
            wrote = re.match(r"(?:wrote )?\S*/\d{4}-\d\d-\d\d-(.*?)(?:-\d)?\.json\b", line)
            if wrote and wrote[1] not in names:
                problems.append(f"the record {wrote[1]} is not in the archive")
        if len(files := list(self.out.iterdir())) > 8:
            problems.append(f"{len(files)} files; expected 8 at most")
        return problems

    def said(self, text: str) -> bool:
        return any(text in line for _, line in self.lines)


def whole(folder: Path) -> tuple[list[str], float]:
    run = Rehearsal(folder)
    code, seconds = run.end()
    problems = run.missing(time.monotonic() + _DELAY)
    if code != 0:
        problems.append(f"exit code {code}; expected 0")
    kinds = {record["kind"] for record in records.read_all(folder / "gpu.jsonl")}
    problems += [f"no record of {kind}" for kind in {"smoke", "train", "kernels", "resume"} - kinds]
    text = (folder / "summary.txt").read_text()
    for expected in ("longest of critic, ganfast", "targets, of an H200"):
        if expected not in text or not run.said(expected):
            problems.append(f"{expected!r} is not in the summary")
    if problems:
        print(*(line for _, line in run.lines[-40:]), sep="\n")
    return problems, seconds


def killed(folder: Path, number: signal.Signals, seconds: float) -> list[str]:
    run = Rehearsal(folder)
    while not run.said("rehearsal on a CPU"):  # before it there is nothing to lose
        run.wait(0.05)
    run.wait(seconds)
    until = time.monotonic()
    run.kill(number)
    code, _ = run.end()
    problems = run.missing(until)
    if number == signal.SIGTERM:
        if code != 143:
            problems.append(f"exit code {code} after SIGTERM; expected 143")
        if not re.search(r"^stopped +\w+ .*under way", (folder / "summary.txt").read_text(), re.M):
            problems.append("the summary does not say which part was under way")
    return problems


def main(arguments: list[str]) -> int:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10**6, help="of the moments")
    options = parser.parse_args(arguments)
    print(f"seed {options.seed}", flush=True)
    moments, problems = random.Random(options.seed), list[str]()
    with tempfile.TemporaryDirectory() as temporary:
        problems, seconds = whole(Path(temporary) / "whole")
        print(f"whole: {seconds:.0f} s, {'; '.join(problems) or 'nothing is missing'}", flush=True)
        for i, number in enumerate(_KILLS):
            moment = seconds * moments.uniform(0, 0.4)
            wrong = killed(Path(temporary) / str(i), number, moment)
            said = "; ".join(wrong) or "nothing is missing"
            print(f"{number.name} after {moment:.1f} s: {said}", flush=True)
            problems += wrong
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
