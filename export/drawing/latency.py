"""Latencies stored beside a bundle, and the costs of batches that follow from them. NumPy only.

    {"machine": "...", "threads": 2, "rows": [{"back_end", "batch", "concurrency", "p50", ...}]}

Seconds. A table holds rows of one machine and one number of threads. A measurement with others
replaces the whole table.
"""

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ganfast.export.bundle.bundle import Bundle
from ganfast.export.drawing.rows import prior_cost

_LEVELS = {"p50": 50, "p90": 90, "p99": 99, "p99.9": 99.9}


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """p50 to p99.9 of the durations of requests."""
    return {name: float(np.percentile(seconds, level)) for name, level in _LEVELS.items()}


def machine(gpu: str = "") -> str:
    """Processor and GPU, on which latencies depend, in words."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration, IndexError):
        processor = platform.processor() or platform.machine()
    return ", ".join(part for part in (processor, gpu) if part)


def store(bundle: Bundle, table: Mapping[str, Any]) -> None:
    """Keep a table beside the bundle, with the rows of before if machine and threads are the same.

    A row replaces the one of the same back end, batch and concurrency.
    """
    before = bundle.latency()
    same = all(before.get(name) == table[name] for name in ("machine", "threads"))
    try:
        rows = {_setting(row): row for row in before["rows"]} if same else {}
    except (KeyError, TypeError):
        rows = {}
    rows |= {_setting(row): row for row in table["rows"]}
    bundle.write_latency({**table, "rows": [rows[setting] for setting in sorted(rows)]})


def _setting(row: Mapping[str, Any]) -> tuple[str, int, int]:
    return str(row["back_end"]), int(row["batch"]), int(row["concurrency"])


def bucket_costs(bundle: Bundle, back_end: str) -> dict[int, float]:
    """Seconds of a batch by bucket: medians of lone requests, or a guess where a bucket has none.

    A table of any machine serves, because a plan needs only the proportions.
    """
    buckets = bundle.manifest.buckets
    try:
        seconds = {
            int(row["batch"]): float(row["p50"])
            for row in bundle.latency()["rows"]
            if row["back_end"] == back_end and row["concurrency"] == 1
        }
    except (KeyError, TypeError, ValueError, OverflowError):
        return prior_cost(buckets)
    if not set(buckets) <= set(seconds) or not all(0 < s < 3600 for s in seconds.values()):
        return prior_cost(buckets)
    return {bucket: seconds[bucket] for bucket in buckets}
