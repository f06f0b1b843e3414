"""What a checkpoint costs: processor seconds of saving by part, in training's thread or another.

python benchmarks/bench_saving.py            # dcgan at 128x128, five saves; written to results/

Processor seconds, not wall clock: other work on the machine does not enter. One save a minute costs
`seconds / 60` of one core.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from measure import record

from ganfast.presets import preset_config
from ganfast.runs import checkpoint as checkpoints
from ganfast.runs.run import Run
from ganfast.runs.writer import average_finisher
from ganfast.training.plan import make_plan
from ganfast.training.state import Copy


@contextmanager
def counted(into: list[float]) -> Iterator[None]:
    began = time.process_time()
    yield
    into.append(time.process_time() - began)


def measure(preset: str, size: int, width: int, saves: int) -> dict[str, list[float]]:
    """Of every save: the copy to the host, the average's statistics, and the write."""
    seconds: dict[str, list[float]] = {"copy": [], "statistics": [], "write": []}
    with tempfile.TemporaryDirectory() as folder:
        pictures = np.random.default_rng(0).integers(0, 256, (256, size, size, 3), dtype=np.uint8)
        np.save(f"{folder}/noise.npy", pictures)
        config = preset_config(preset, "celeba")
        config = replace(config, data=f"{folder}/noise.npy", size=size, conditional="no")
        net = replace(config.net, width=width)
        plan = make_plan(replace(config, net=net, device="cpu"))
        run = Run(Path(folder) / "run", plan.config, {"classes": []})
        copy, finish = Copy(on_host=True), average_finisher(plan, run)
        for number in range(saves + 1):
            with counted(seconds["copy"]):
                copy.take(plan.state)
            with counted(seconds["statistics"]):
                if finish:
                    finish(copy.contents["ema"])
            with counted(seconds["write"]):
                checkpoints.write(run.checkpoint_folder, number, copy.contents, 0)
            checkpoints.prune(run.checkpoint_folder, 1)
    return {name: values[1:] for name, values in seconds.items()}  # the first makes buffers


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="dcgan")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--saves", type=int, default=5)
    options = parser.parse_args()
    parts = measure(options.preset, options.size, options.width, options.saves)
    middle = options.saves // 2
    whole = sorted(map(sum, zip(*parts.values(), strict=True)))[middle]
    figures = {
        "median_cpu_seconds_a_save": whole,
        "percent_of_one_core_at_one_a_minute": 100 * whole / 60,
    }
    conditions = vars(options) | {"device": "cpu", "threads": torch.get_num_threads()}
    name = f"saving-{options.preset}-{options.size}-w{options.width}"
    print(record(name, conditions, parts, **figures))
    medians = {part: round(sorted(values)[middle], 3) for part, values in parts.items()}
    print(medians, f"{whole / 0.6:.2f}% of one core")
