"""Threads and memory by a container's limits, from control groups laid out as Linux does."""

import math
import os

import pytest

from ganfast import host

MEMORY = "MemTotal: 64000000 kB\nMemFree: 100 kB\nMemAvailable: 32000000 kB\n"
STAT = "anon 5\ninactive_file 2000\n"
# Files, and what /proc/self/cgroup says; the threads of eight, and the bytes that follow.
GROUPS = {
    "no groups": ({}, None, 8, 32_768_000_000),
    "nothing limited": ({"cpu.max": "max 100000", "memory.max": "max"}, "0::/", 8, 32_768_000_000),
    "own group": ({"cpu.max": "250000 100000"}, "0::/", 3, 32_768_000_000),
    "less than one": ({"cpu.max": "50000 100000"}, "0::/", 1, 32_768_000_000),
    "more than there are": ({"cpu.max": "1600000 100000"}, "0::/", 8, 32_768_000_000),
    "group outside": ({"cpu.max": "200000 100000"}, "0::/../../docker/abc", 2, 32_768_000_000),
    "the tightest counts": (
        {"a/b/cpu.max": "400000 100000", "a/cpu.max": "200000 100000", "cpu.max": "max 100000"},
        "0::/a/b",
        2,
        32_768_000_000,
    ),
    "memory": ({"memory.max": "9000", "memory.current": "5000"}, "0::/", 8, 6000),
    "memory all used": ({"memory.max": "9000", "memory.current": "12000"}, "0::/", 8, 0),
    "version 1": (
        {
            "cpu,cpuacct/cpu.cfs_quota_us": "150000",
            "cpu,cpuacct/cpu.cfs_period_us": "100000",
            "memory/memory.limit_in_bytes": "9000",
            "memory/memory.usage_in_bytes": "5000",
            "memory/memory.stat": "cache 1\ninactive_file 1\ntotal_inactive_file 1000",
        },
        "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n0::/",
        2,
        5000,
    ),
    "version 1 without limits": (
        {
            "cpu/cpu.cfs_quota_us": "-1",
            "cpu/cpu.cfs_period_us": "100000",
            "memory/memory.limit_in_bytes": str(2**63 - 4096),
            "memory/memory.usage_in_bytes": "5000",
            "memory/memory.stat": "",
        },
        "2:memory:/\n1:cpu:/",
        8,
        32_768_000_000,
    ),
}


@pytest.mark.parametrize("name", GROUPS)
def test_limits_of_control_groups_count(tmp_path, monkeypatch, name):
    files, own, threads, memory = GROUPS[name]
    if "memory.max" in files:
        files = {"memory.current": "0", "memory.stat": STAT} | files
    for path, text in files.items():
        (tmp_path / "groups" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / path).write_text(text + "\n")
    if own is not None:
        (tmp_path / "own").write_text(own + "\n")
    (tmp_path / "meminfo").write_text(MEMORY)
    monkeypatch.setattr(host, "CGROUPS", tmp_path / "groups")
    monkeypatch.setattr(host, "OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(host, "MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert (host.usable_threads(), host.free_memory()) == (threads, memory)


def test_a_system_that_tells_nothing_limits_nothing(tmp_path, monkeypatch):
    for name in ("CGROUPS", "OWN_GROUPS", "MEMORY"):
        monkeypatch.setattr(host, name, tmp_path / "none")
    assert host.free_memory() == math.inf
    assert host.usable_threads() >= 1
