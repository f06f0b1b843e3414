"""What a device did in one call, by the profiler: launches, busy time, the longest kernels."""

import os
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch

from ganfast.bench import records
from ganfast.errors import RunError

_LONGEST = 10  # kernels by name
_NAME = 100  # characters: templates of libraries have names of a thousand


def device_activity(
    run: Callable[[], object], wait: Callable[[], None], seconds: float, device: torch.device
) -> dict[str, Any]:
    """Launches (kernels, copies, fills) and busy seconds of one call, and the longest of them.

    The idle share is that of ``seconds``, which a call takes without the profiler. "longest" are
    name, launches and seconds of the ten names that took most. On a CPU torch's operations stand
    for the launches.

    Raises:
        RunError: the profiler saw nothing on the GPU, as where CUPTI is not permitted.
    """
    from torch._C._autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    on_gpu = device.type == "cuda"
    # Else CUPTI may be torn down behind a trace, which is known to crash on later CUDA graphs.
    os.environ.setdefault("TEARDOWN_CUPTI", "0")
    wait()
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as trace:
        run()
        wait()
    kind = DeviceType.CUDA if on_gpu else DeviceType.CPU
    events: Any = [e for e in trace.events() if e.device_type == kind and e.cpu_parent is None]
    if on_gpu:  # a span of torch.optim's, say, is no launch
        events = [e for e in events if not e.is_user_annotation]
        if not events:
            raise RunError("the profiler saw nothing on the GPU")
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


def activity_of(
    run: Callable[[], object], wait: Callable[[], None], one: dict[str, Any], device: torch.device
) -> dict[str, Any]:
    """Of what the measurement ``one`` is about; where the profiler cannot look, its reason."""
    try:
        return device_activity(run, wait, one["summary"]["median"], device)
    except Exception as error:
        return {"profiler": records.reason(error)}


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Length of the union: kernels of several streams overlap."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total
