"""Timers that cannot be fooled.

The device is waited for before and after, first calls are kept apart, variants take turns.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from ganfast.errors import RunError

Run = Callable[[], object]
_AT_LEAST = 3  # calls before anything counts
_AT_MOST = 20
_STEADY = 1.2  # two calls in a row whose times differ by less than this factor end the warm-up
# Seconds that a sample lasts at least, so that the clock and the last wait do not count.
_SAMPLE = 0.01
# The same for phases, which train for hours: several calls, because the first ones find the caches
# full of another variant's data.
STEADY_SAMPLE = 0.05
# Seconds: behind the turns of other variants a call that takes less is made once, uncounted.
_SHORT = 0.25


class Clock(Protocol):
    def now(self) -> float: ...

    def wait(self) -> None:
        """Until every device has done what it was given."""


class HostClock:
    """The host's monotonic clock, behind the work of torch and of all ``waits``."""

    def __init__(self, *waits: Callable[[], None]) -> None:
        self._waits = waits

    def now(self) -> float:
        return time.perf_counter()

    def wait(self) -> None:
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()
        for wait in self._waits:
            wait()


def synchronised_now() -> float:
    """A timer for pytest-benchmark that counts what a GPU was only told to do."""
    clock = HostClock()
    clock.wait()
    return clock.now()


@dataclass(frozen=True)
class Warm:
    """What came before the first sample."""

    first_s: float  # the first call: compilation, first touch of memory, choice of algorithms
    call_s: float  # the last one
    calls: int  # of one sample


def warm_up(run: Run, clock: Clock, least: float = _SAMPLE) -> Warm:
    """Call until steady: at least three times, and until two calls in a row take about as long."""
    first = sample(run, 1, clock)
    last = sample(run, 1, clock)
    for done in range(2, _AT_MOST):
        before, last = last, sample(run, 1, clock)
        if done + 1 >= _AT_LEAST and max(before, last) <= _STEADY * min(before, last):
            break
    return Warm(first, last, max(1, min(1000, round(least / last))) if last > 0 else 1)


def sample(run: Run, calls: int, clock: Clock) -> float:
    """Seconds a call, from an idle device to an idle device."""
    clock.wait()
    began = clock.now()
    for _ in range(calls):
        run()
    clock.wait()
    return (clock.now() - began) / calls


def interleaved(
    runs: Mapping[str, Run],
    rounds: int,
    clock: Clock,
    warm: Mapping[str, Warm],
    compilations: Callable[[], int] = lambda: 0,
    rest: Callable[[], None] = lambda: None,
) -> dict[str, list[float]]:
    """Samples of every variant, in turns: A B C, B C A, and so on.

    So a slow minute of the machine hits all of them alike. The steady state is measured: short
    calls are made once before they count.

    Args:
        warm: of every variant, from `warm_up`.
        compilations: how many there have been; one more while timing would leak into the figures.
        rest: called between variants, so that threads of one do not spin while the next one runs.

    Raises:
        RunError: something was compiled while it was timed.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    names, before = list(runs), compilations()
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            rest()
            if warm[name].call_s < _SHORT:
                runs[name]()  # brings back its weights, its code and its threads
            seconds[name].append(sample(runs[name], warm[name].calls, clock))
    if compilations() != before:
        raise RunError(
            f"{compilations() - before} graphs were compiled while {', '.join(names)} were timed: "
            "the figures are void"
        )
    return seconds


@contextmanager
def untimed() -> Iterator[None]:
    """Inside, neither cuDNN nor ganfast chooses algorithms by their time."""
    import torch

    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


_CACHE = 256 << 20  # bytes, more than any cache holds


def device_times(
    runs: Mapping[str, Run], rounds: int, cold: bool, device: Any
) -> dict[str, list[float]]:
    """Seconds on the device of every single call, in turns, without launching on a GPU.

    Args:
        cold: the cache is overwritten before each call.
        device: torch's.
    """
    import torch

    on_gpu, clock = device.type == "cuda", HostClock()
    size = (_CACHE if on_gpu else _CACHE // 8) if cold else 0
    flush = torch.empty(size, dtype=torch.uint8, device=device)
    host = {name: [sample(run, 1, clock) for _ in range(3)][-1] for name, run in runs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            if cold:
                flush.zero_()
            if not on_gpu:
                seconds[name].append(sample(run, 1, clock))
                continue
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            # In cycles: the host gets ahead, so launching is not measured.
            torch.cuda._sleep(int(2e9 * min(0.1, 2 * host[name])))
            start.record()
            run()
            end.record()
            end.synchronize()
            seconds[name].append(start.elapsed_time(end) / 1e3)
    return seconds
