"""Interleaved timing, and records that say where they come from."""

import datetime
import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ganfast.environment import environment

RESULTS = Path(__file__).parent / "results"


def interleaved(variants: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every call, variants taking turns (A B A B), so that a slow minute of the machine hits all of them alike."""
    for run in variants.values():
        run()  # warm caches and allocators
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, run in variants.items():
            wait()
            began = time.perf_counter()
            run()
            wait()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def device_times(variants: Mapping[str, Callable[[], object]], rounds: int, cold: bool) -> dict[str, list[float]]:
    """Seconds on the device of every call, variants taking turns; ``cold``: the cache is overwritten before each call."""
    on_gpu = torch.cuda.is_available()
    flush = torch.empty(256 << 20, dtype=torch.uint8, device="cuda") if on_gpu and cold else None
    host: dict[str, float] = {}  # seconds that launching takes
    for name, run in variants.items():
        for _ in range(3):
            wait()
            began = time.perf_counter()
            run()
            host[name] = time.perf_counter() - began
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, run in variants.items():
            if flush is not None:
                flush.zero_()
            if not on_gpu:
                began = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - began)
                continue
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda._sleep(int(2e9 * min(0.1, 2 * host[name])))  # in cycles: the host gets ahead, so launching is not measured
            start.record()
            run()
            end.record()
            end.synchronize()
            seconds[name].append(start.elapsed_time(end) / 1e3)
    return seconds


def wait() -> None:
    """Until the GPU, if any, has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def summary(seconds: list[float]) -> dict[str, float]:
    """Median, 20th and 80th percentile."""
    ordered = statistics.quantiles(seconds, n=10, method="inclusive")
    return {"p20": ordered[1], "median": statistics.median(seconds), "p80": ordered[7]}


def record(name: str, conditions: Mapping[str, Any], seconds: Mapping[str, list[float]], **derived: Any) -> Path:
    """Write benchmarks/results/<date>-<name>.json with raw samples, conditions and environment."""
    now = datetime.datetime.now(datetime.UTC)
    content = {
        "schema": 1, "benchmark": name, "utc": now.isoformat(timespec="seconds"), "environment": environment(),
        "conditions": dict(conditions), "seconds": dict(seconds), "summary": {k: summary(v) for k, v in seconds.items()}, **derived,
    }  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{now:%Y-%m-%d}-{name}.json"
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path
