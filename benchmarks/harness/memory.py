"""Peak memory of a variant on a CPU: the high-water mark of a process that runs nothing else."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from ganfast.bench.setting import Setting
from ganfast.errors import RunError

_ITERATIONS = 3


def peak_bytes(setting: Setting, variant: str) -> int:
    """Resident bytes at most while iterations run, less those before the variant was prepared.

    Preparing is not counted: a compiler takes more than what it makes. What it leaves behind is.

    Raises:
        RunError: the process failed.
    """
    command = [sys.executable, "-m", "ganfast.bench.memory", json.dumps(setting.asdict()), variant]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RunError(
            f"memory of {variant}: {(done.stderr.strip().splitlines() or ['it said nothing'])[-1]}"
        )
    return int(done.stdout.strip().splitlines()[-1])


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return 1024 * int(line.split()[1])
    raise RunError(f"/proc/self/status has no {field}: memory is measured on Linux only")


def _main(setting: str, name: str) -> None:
    from ganfast.bench.problem import Problem
    from ganfast.bench.variants import VARIANTS

    problem = Problem(Setting(**json.loads(setting)))
    problem.networks(0)
    len(problem.pack.images)
    before = _status("VmRSS")
    variant = VARIANTS[name].prepare(problem)
    for run in variant.phases.values():
        run()
    variant.wait()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    for _ in range(_ITERATIONS):
        for run in variant.phases.values():
            run()
        variant.wait()
    print(_status("VmHWM") - before)


if __name__ == "__main__":
    _main(*sys.argv[1:])
