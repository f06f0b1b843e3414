"""What a GPU did in one call, by the profiler: launches, and the share of the time in which it did nothing."""

from collections.abc import Callable, Iterable
from typing import Any


def device_activity(
    run: Callable[[], object], wait: Callable[[], None], seconds: float
) -> dict[str, float]:
    """{"launches": kernels, copies and fills of one call, "busy_s": ..., "idle_share": of its ``seconds``, measured unprofiled}."""
    from torch._C._autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    wait()
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        run()
        wait()
    events: Any = trace.events()
    spans = [
        (e.time_range.start, e.time_range.end) for e in events if e.device_type == DeviceType.CUDA
    ]
    busy = covered(spans) / 1e6
    return {"launches": len(spans), "busy_s": busy, "idle_share": max(0.0, 1 - busy / seconds)}


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Length of the union: kernels of several streams overlap."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total
