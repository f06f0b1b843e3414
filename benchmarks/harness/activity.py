"""What a device did in one call, by the profiler: launches, busy time, the longest kernels."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch

_LONGEST = 10  # kernels by name
_NAME = 100  # characters: templates of libraries have names of a thousand


def device_activity(
    run: Callable[[], object], wait: Callable[[], None], seconds: float, device: torch.device
) -> dict[str, Any]:
    """Launches (kernels, copies, fills) and busy seconds of one call, and the longest of them.

    The idle share is that of ``seconds``, which a call takes without the profiler. "longest" are
    name, launches and seconds of the ten names that took most. On a CPU torch's operations stand
    for the launches.
    """
    from torch._C._autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    on_gpu = device.type == "cuda"
    wait()
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as trace:
        run()
        wait()
    kind = DeviceType.CUDA if on_gpu else DeviceType.CPU
    events: Any = [e for e in trace.events() if e.device_type == kind and e.cpu_parent is None]
    busy = covered((e.time_range.start, e.time_range.end) for e in events) / 1e6
    by_name: dict[str, list[float]] = defaultdict(list)
    for e in events:
        by_name[e.name[:_NAME]].append((e.time_range.end - e.time_range.start) / 1e6)
    longest = sorted(by_name.items(), key=lambda item: -sum(item[1]))[:_LONGEST]
    return {
        "launches": len(events),
        "busy_s": busy,
        "idle_share": max(0.0, 1 - busy / seconds),
        "longest": [[name, len(spans), sum(spans)] for name, spans in longest],
    }


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Length of the union: kernels of several streams overlap."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total
