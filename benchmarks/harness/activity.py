"""What a GPU did in one call, by the profiler: launches, and the share of time it was idle."""

from collections.abc import Callable, Iterable
from typing import Any


def device_activity(
    run: Callable[[], object], wait: Callable[[], None], seconds: float
) -> dict[str, float]:
    """Launches (kernels, copies, fills) and busy seconds of one call.

    The idle share is that of ``seconds``, which a call takes without the profiler.
    """
    from torch._C._autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    wait()
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        run()
        wait()
    events: Any = trace.events()
    on_device = [e.time_range for e in events if e.device_type == DeviceType.CUDA]
    busy = covered((span.start, span.end) for span in on_device) / 1e6
    return {"launches": len(on_device), "busy_s": busy, "idle_share": max(0.0, 1 - busy / seconds)}


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Length of the union: kernels of several streams overlap."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total
