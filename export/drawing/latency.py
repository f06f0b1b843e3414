"""Latencies that were measured and stored beside a bundle, and what follows from them: which back end, which buckets. NumPy only.

    {"machine": "...", "threads": 2, "rows": [{"back_end", "batch", "concurrency", "p50", "p90", "p99", "p99.9", ...}, ...]}

Seconds. Rows of several machines or thread counts never mix: a measurement replaces the table of another.
"""

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ganfast.export.bundle.bundle import Bundle
from ganfast.export.drawing.rows import prior_cost

_MARGIN = 1.05  # so much faster must a back end be than one that comes before it


def machine(gpu: str = "") -> str:
    """What latencies depend on: processor and GPU, in words."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration, IndexError):
        processor = platform.processor() or platform.machine()
    return ", ".join(part for part in (processor, gpu) if part)


def store(bundle: Bundle, table: Mapping[str, Any]) -> None:
    """Keep a table beside the bundle, with what was measured before on the same machine with as many threads; a row replaces the
    one of the same back end, batch and concurrency."""
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
    """Seconds of a batch by bucket, as measured on any machine: proportions are what a plan needs. A guess where nothing was."""
    return _measured(bundle, back_end) or prior_cost(bundle.manifest.buckets)


def in_order_of_speed(
    bundle: Bundle, back_ends: Sequence[str], gpu: str, threads: int
) -> list[str]:
    """The back ends as they come, but the fastest on this machine first, if two or more were measured: geometric mean over the
    buckets."""
    table = bundle.latency()
    if table.get("machine") != machine(gpu) or table.get("threads") != threads:
        return list(back_ends)
    costs = {name: measured for name in back_ends if (measured := _measured(bundle, name))}
    means = {
        name: float(np.exp(np.mean(np.log(list(cost.values()))))) for name, cost in costs.items()
    }
    if len(means) < 2:
        return list(back_ends)
    fastest = min(means.values())
    best = next(name for name in back_ends if name in means and means[name] <= _MARGIN * fastest)
    return sorted(back_ends, key=lambda name: name != best)


def _measured(bundle: Bundle, back_end: str) -> dict[int, float]:
    """Median by bucket, one request at a time; {} for a table that does not tell of every bucket."""
    try:
        rows = [
            row
            for row in bundle.latency()["rows"]
            if row["back_end"] == back_end and row["concurrency"] == 1
        ]
        found = {int(row["batch"]): float(row["p50"]) for row in rows}
    except (KeyError, TypeError, ValueError, OverflowError):
        return {}
    if not all(0 < value < 3600 for value in found.values()) or not set(
        bundle.manifest.buckets
    ) <= set(found):
        return {}
    return {bucket: found[bucket] for bucket in bundle.manifest.buckets}
