"""What a checkpoint costs: processor seconds of everything that saving does, in training's thread and in the writer's, by part.

python benchmarks/bench_saving.py            # dcgan at 128x128, five saves; written to results/

Processor seconds, not wall clock: other work on the machine does not enter. One save a minute costs `seconds / 60` of one core.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

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
    """Processor seconds of the copy to the host, the average's statistics and the write, of every save."""
    seconds: dict[str, list[float]] = {"copy": [], "statistics": [], "write": []}
    with tempfile.TemporaryDirectory() as folder:
        pictures = np.random.default_rng(0).integers(0, 256, (256, size, size, 3), dtype=np.uint8)
        np.save(f"{folder}/noise.npy", pictures)
        config = preset_config(preset, "celeba")
        net = replace(config.net, width=width)
        plan = make_plan(
            replace(
                config,
                data=f"{folder}/noise.npy",
                size=size,
                net=net,
                conditional="no",
                device="cpu",
            )
        )
        run = Run(Path(folder) / "run", plan.config, {"classes": []})
        copy, finish = Copy(on_host=True), average_finisher(plan, run)
        for number in range(saves + 1):
            parts: dict[str, Callable[[], Any]] = {
                "copy": lambda: copy.take(plan.state),
                "statistics": lambda: finish(copy.contents["ema"]) if finish else None,
                "write": lambda n=number: checkpoints.write(
                    run.checkpoint_folder, n, copy.contents, 0
                ),  # type: ignore[misc]
            }
            for name, part in parts.items():
                with counted(seconds[name]):
                    part()
            checkpoints.prune(run.checkpoint_folder, 1)
    return {name: values[1:] for name, values in seconds.items()}  # the first makes buffers


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="dcgan")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--saves", type=int, default=5)
    given = parser.parse_args()
    found = measure(given.preset, given.size, given.width, given.saves)
    whole = sorted(map(sum, zip(*found.values(), strict=True)))[given.saves // 2]
    conditions = vars(given) | {"device": "cpu", "threads": torch.get_num_threads()}
    name = f"saving-{given.preset}-{given.size}-w{given.width}"
    print(
        record(
            name,
            conditions,
            found,
            median_cpu_seconds_a_save=whole,
            percent_of_one_core_at_one_a_minute=100 * whole / 60,
        )
    )
    print(
        {part: round(sorted(values)[given.saves // 2], 3) for part, values in found.items()},
        f"{whole / 0.6:.2f}% of one core",
    )
