"""How near a healthy training comes to the limits of the divergence guard: the largest growth of a network's weights from one look
to the next, the largest gradient of a weight tensor, the largest number in the log.

python benchmarks/guard_margins.py --kimg 20 dcgan wgan-gp     # on MNIST; written to results/, and the margins printed
"""

import argparse
import json
import math
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from measure import record

from ganfast.config import Config, GuardConfig
from ganfast.presets import PRESETS, preset_config
from ganfast.runs import train as training
from ganfast.runs import writer
from ganfast.runs.logfile import read_log
from ganfast.training.guard import Guard, named_tensors
from ganfast.training.state import State


class Watching(Guard):
    """A guard that notes how large everything became."""

    seen: dict[str, float] = {"growth": 0.0, "gradient": 0.0, "statistic": 0.0}

    def statistics_problem(self, record: Mapping[str, object]) -> str | None:
        numbers = [
            abs(value) for name, value in record.items() if "/" in name and isinstance(value, float)
        ]
        self.seen["statistic"] = max(self.seen["statistic"], *numbers)
        return super().statistics_problem(record)

    @torch.no_grad()
    def state_problem(self, state: State) -> str | None:
        before = dict(self._good)
        problem = super().state_problem(state)
        self.seen["growth"] = max(
            [self.seen["growth"], *(self._good[net] / norm for net, norm in before.items())]
        )
        gradients = [
            tensor.norm().item()
            for name, tensor in named_tensors(state).items()
            if name.startswith("the gradient of")
        ]
        self.seen["gradient"] = max([self.seen["gradient"], *gradients])
        return problem


def margins(config: Config) -> dict[str, Any]:
    """Train, and what was seen, with the factor that was left to each limit."""
    Watching.seen.update(growth=0.0, gradient=0.0, statistic=0.0)
    with tempfile.TemporaryDirectory() as folder:
        training.train(replace(config, out=f"{folder}/run"), quiet=True)
        looks = len(read_log(Path(folder) / "run" / "log.jsonl"))
    limits = GuardConfig()
    left = {name: round(getattr(limits, name) / value, 1) for name, value in Watching.seen.items()}
    return {
        "seen": {k: float(f"{v:.4g}") for k, v in Watching.seen.items()},
        "times_to_the_limit": left,
        "log_lines": looks,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("presets", nargs="*", default=list(PRESETS))
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--kimg", type=float, default=20.0)
    parser.add_argument("--faster", type=float, default=1.0, help="multiply the learning rates")
    given = parser.parse_args()
    writer.Guard = Watching  # type: ignore[misc]
    found: dict[str, Any] = {}
    for name in given.presets or PRESETS:
        config = preset_config(name, given.data)
        optim = replace(
            config.optim,
            lr_critic=config.optim.lr_critic * given.faster,
            lr_generator=config.optim.lr_generator * given.faster,
            decay_from=1.0,
        )
        found[name] = margins(replace(config, kimg=given.kimg, optim=optim))
        print(name, json.dumps(found[name]), flush=True)
    assert all(math.isfinite(value) for each in found.values() for value in each["seen"].values())
    suffix = "" if given.faster == 1 else f"-lr-x{given.faster:g}"
    print(
        record(
            f"guard-margins{suffix}",
            {"data": given.data, "kimg": given.kimg, "lr": given.faster},
            {},
            margins=found,
        )
    )
