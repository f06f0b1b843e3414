"""What the scripts in this folder share: `ganfast.bench` by short names, records into results/."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ganfast.bench import records, timing

# `make gpu` collects records in a folder of its own.
RESULTS = Path(os.environ.get("GANFAST_RECORDS") or Path(__file__).parent / "results")
wait = timing.HostClock().wait


def interleaved(
    variants: Mapping[str, Callable[[], object]], rounds: int
) -> dict[str, list[float]]:
    """Seconds of single calls, variants taking turns behind their warm-up."""
    clock = timing.HostClock()
    warm = {name: timing.warm_up(run, clock, least=0) for name, run in variants.items()}
    return timing.interleaved(variants, rounds, clock, warm)


def record(
    name: str, conditions: Mapping[str, Any], seconds: Mapping[str, list[float]], **derived: Any
) -> Path:
    """Write <date>-<name>.json into the folder for results."""
    entries = [records.measurement("", variant, samples) for variant, samples in seconds.items()]
    content = records.make(name.split("-")[0], name, conditions, entries)
    return records.write(content | {"derived": derived}, RESULTS)
