"""Processors and memory that this process may use: of the host, or less by a container's limits."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

CGROUPS, OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
MEMORY = Path("/proc/meminfo")


def usable_threads() -> int:
    """How many threads can run at once: processors of this process's affinity, and no more than a
    control group's quota pays for. More would be stopped together until the next period."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = float(count or 1)
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):  # version 2, version 1
        for texts in _of_groups(*names):
            quota, period = " ".join(texts).split()
            if quota not in ("max", "-1"):
                threads = min(threads, int(quota) / int(period))
    return max(1, math.ceil(threads))


def free_memory() -> float:
    """Bytes that are free without swapping, and within a control group's limit; infinite on systems
    that do not tell."""
    free = math.inf
    try:
        facts = dict(line.split(":", 1) for line in MEMORY.read_text().splitlines())
        free = 1024.0 * int(facts["MemAvailable"].split()[0])
    except (OSError, ValueError, KeyError):  # not on Linux
        pass
    for names in (
        ("memory.max", "memory.current", "memory.stat"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat"),
    ):
        for limit, used, stat in _of_groups(*names):
            if limit != "max":
                # Pages of files that nobody needs count as used, and are given up first.
                kept = dict(line.split(" ", 1) for line in stat.splitlines())
                cached = int(kept.get("total_inactive_file", kept.get("inactive_file", 0)))
                free = min(free, max(0, int(limit) - int(used) + cached))
    return free


def _of_groups(*names: str) -> Iterator[list[str]]:
    """The texts of these files in each control group of this process, the innermost first.

    In a container the path of its own group may lie outside: its files are at the top then.
    """
    try:
        lines = OWN_GROUPS.read_text().splitlines()
    except OSError:
        return
    for _, controllers, path in (line.split(":", 2) for line in lines):
        inner = Path(path.lstrip("/"))
        for group in (inner, *inner.parents):
            try:
                texts = [(CGROUPS / controllers / group / name).read_text() for name in names]
            except OSError:
                continue
            yield [text.strip() for text in texts]
