"""What the scripts in this folder share: `ganfast.bench` under short names, records into results/."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ganfast.bench import records, timing
from ganfast.bench.stats import summary

__all__ = ["device_times", "interleaved", "record", "summary", "wait"]

RESULTS = Path(__file__).parent / "results"
wait = timing.HostClock().wait


def interleaved(
    variants: Mapping[str, Callable[[], object]], rounds: int
) -> dict[str, list[float]]:
    """Seconds of single calls, variants taking turns behind their warm-up."""
    clock = timing.HostClock()
    warm = {name: timing.warm_up(run, clock, least=0) for name, run in variants.items()}
    return timing.interleaved(variants, rounds, clock, warm)


def device_times(
    variants: Mapping[str, Callable[[], object]], rounds: int, cold: bool
) -> dict[str, list[float]]:
    """`timing.device_times` on the GPU where there is one."""
    return timing.device_times(
        variants, rounds, cold, torch.device("cuda" if torch.cuda.is_available() else "cpu")
    )


def record(
    name: str, conditions: Mapping[str, Any], seconds: Mapping[str, list[float]], **derived: Any
) -> Path:
    """Write results/<date>-<name>.json."""
    measured = [records.measurement("", variant, samples) for variant, samples in seconds.items()]
    made = records.make(name.split("-")[0], name, conditions, measured)
    return records.write(made | {"derived": derived}, RESULTS)
