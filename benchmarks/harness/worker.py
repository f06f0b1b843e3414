"""One side of `ganfast bench compare --base`: a process with one revision, timed on request.

It has that revision first on its path, and the measuring code of the checkout that compares.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from ganfast.errors import RunError

_START = """
import importlib.util as u, sys, ganfast
here = sys.argv[1]
init, name = here + "/__init__.py", "ganfast.bench"
spec = u.spec_from_file_location(name, init, submodule_search_locations=[here])
sys.modules["ganfast.bench"] = ganfast.bench = u.module_from_spec(spec)
spec.loader.exec_module(ganfast.bench)
from ganfast.bench.worker import serve
serve(sys.argv[2], int(sys.argv[3]))
"""


class Worker:
    """A side that waits between its turns."""

    def __init__(self, checkout: Path, setting: dict[str, Any], threads: int) -> None:
        self.checkout = checkout
        arguments = str(Path(__file__).parent), json.dumps(setting), str(threads)
        environment = os.environ | {"PYTHONPATH": str(checkout)}
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=checkout,
        )
        self.ready = self._answer()

    def sample(self, phase: str) -> float:
        """Seconds a call."""
        assert self._process.stdin is not None
        self._process.stdin.write(phase + "\n")
        self._process.stdin.flush()
        return float(self._answer()["seconds"])

    def close(self) -> None:
        self._process.communicate(timeout=60)

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        line = self._process.stdout.readline()
        if not line:
            lines = self._process.stderr.read().strip().splitlines() or ["it said nothing"]
            raise RunError(f"the benchmark of {self.checkout} ended: {lines[-1]}")
        return json.loads(line)


def serve(setting: str, threads: int) -> None:
    """Prepare, prove and warm up; then answer each line, a phase, with the seconds of a sample."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else is printed must not look like an answer
    import torch

    from ganfast.bench.problem import Problem
    from ganfast.bench.setting import Setting
    from ganfast.bench.timing import STEADY_SAMPLE, HostClock, sample, warm_up
    from ganfast.bench.variants import VARIANTS, first_calls, prove

    if threads:
        torch.set_num_threads(threads)
    clock = HostClock()

    def prepared(proof: bool) -> tuple[Any, Any]:
        problem = Problem(Setting(**json.loads(setting)), proof)
        variant = VARIANTS["ganfast"].prepare(problem)
        first_calls(variant, clock.now)
        return problem, variant

    errors = prove(*prepared(proof=True))
    _, variant = prepared(proof=False)  # with dropout, where the preset has it
    warm = {phase: warm_up(run, clock, STEADY_SAMPLE) for phase, run in variant.phases.items()}

    def answer(**values: Any) -> None:
        print(json.dumps(values), file=out, flush=True)

    answer(errors=errors)
    for line in sys.stdin:
        phase = line.strip()
        variant.phases[phase]()  # the other side had the processor's caches
        answer(seconds=sample(variant.phases[phase], warm[phase].calls, clock))
