"""How fast a bundle draws here: every back end that opens, every bucket, in turns."""

import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np

from ganfast.errors import InputError
from ganfast.export.bundle.bundle import Bundle
from ganfast.export.drawing.choice import BACKENDS
from ganfast.export.drawing.lanes import HostLane
from ganfast.export.drawing.latency import machine, percentiles
from ganfast.export.drawing.rows import ask
from ganfast.export.drawing.sampler import Sampler, load_sampler
from ganfast.host import usable_threads

_LEAST = 5  # calls of a sampler, however long they take


def measure(
    bundle: Bundle,
    back_ends: Sequence[str] = (),
    device: str = "auto",
    threads: int = 0,
    seconds: float = 1.0,
    concurrency: Sequence[int] = (1, 4),
    batches: Sequence[int] = (),
) -> tuple[dict[str, Any], list[str]]:
    """Latencies from the request to pictures on the host.

    Args:
        back_ends: of `load_sampler`; () = all but auto.
        seconds: for each back end, batch and concurrency.
        concurrency: requests at once.
        batches: pictures a request; () = the buckets.

    Returns:
        The table that `ganfast.export.drawing.latency` reads, and why back ends could not be
        measured. A row has seconds throughout: percentiles of requests, and images a second. A row
        of one request at a time also has the medians of its parts: enqueue (checks, latents,
        launching), compute (until the pictures are there), copy (to the caller's memory).

    Raises:
        InputError: no back end could be measured; arguments out of range.
    """
    if not 0 < seconds < math.inf or min(concurrency, default=1) < 1 or min(batches, default=1) < 1:
        options = f"seconds {seconds:g}, concurrency {list(concurrency)}, batches {list(batches)}"
        raise InputError(f"{options} must be above 0, and no endless time")
    samplers, refused = _opened(bundle, back_ends, device, threads)
    try:
        rows = [
            row
            for batch in batches or bundle.manifest.buckets
            for at_once in concurrency
            for row in _turns(samplers, batch, at_once, seconds)
        ]
    finally:
        for sampler in samplers:
            sampler.close()
    gpu = _gpu(device)
    return {"machine": machine(gpu), "threads": threads or usable_threads(), "rows": rows}, refused


def _opened(
    bundle: Bundle, back_ends: Sequence[str], device: str, threads: int
) -> tuple[list[Sampler], list[str]]:
    samplers: dict[str, Sampler] = {}
    refused = []
    usable = {str(facts.get("flavour")) for facts in bundle.manifest.engines.values()}
    usable |= {"onnxruntime", "torch"}
    on_both = device == "auto" and _gpu(device)
    places = ("cuda", "cpu") if on_both else (device.replace("auto", "cpu"),)
    for name in back_ends or [name for name in BACKENDS if name in usable]:
        for place in places:
            try:
                sampler = load_sampler(bundle.folder, place, name, threads=threads, strict=True)
                if samplers.setdefault(sampler.backend_name, sampler) is not sampler:
                    sampler.close()
            except InputError as error:
                refused.append(f"{name} on {place}: {error}")
    if not samplers:
        raise InputError(f"nothing draws {bundle.folder} here: {'; '.join(refused)}")
    return list(samplers.values()), refused


def _gpu(device: str) -> str:
    if device == "cpu":
        return ""
    from ganfast.export.engines.cuda import Cuda

    try:
        return Cuda.open(int(device.partition(":")[2] or 0)).gpu.name
    except InputError:
        return ""


def _turns(
    samplers: Sequence[Sampler], batch: int, at_once: int, seconds: float
) -> list[dict[str, Any]]:
    """Rows of all back ends, which take turns of a tenth of their time.

    A slow moment of the machine then hits all of them alike.
    """
    times: dict[str, list[float]] = {sampler.backend_name: [] for sampler in samplers}
    spent = dict.fromkeys(times, 0.0)
    for sampler in samplers:
        _repeat(sampler, batch, 0, 2, 0)
    for turn in range(10):
        for sampler in samplers:
            began = time.perf_counter()
            with ThreadPoolExecutor(at_once) as pool:
                least = _LEAST if turn == 0 else 1
                repeat = partial(_repeat, sampler, batch, seconds / 10, least)
                for durations in pool.map(repeat, range(at_once)):
                    times[sampler.backend_name] += durations
            spent[sampler.backend_name] += time.perf_counter() - began
    rows: list[dict[str, Any]] = []
    for sampler in samplers:
        name = sampler.backend_name
        requests = len(times[name])
        row: dict[str, Any] = {
            "back_end": name,
            "batch": batch,
            "concurrency": at_once,
            "requests": requests,
        }
        rates = {"images_per_second": batch * requests / spent[name]}
        parts = _parts(sampler, batch) if at_once == 1 else {}
        rows.append(row | percentiles(times[name]) | rates | parts)
    return rows


def _repeat(sampler: Sampler, batch: int, seconds: float, least: int, seed: int) -> list[float]:
    """Durations of requests for ``seconds``, and of ``least`` requests at the least."""
    times: list[float] = []
    given = _given(sampler, batch)
    draw = partial(sampler.sample, batch) if given is None else partial(sampler.apply, given)
    until = time.perf_counter() + seconds
    while len(times) < least or time.perf_counter() < until:
        began = time.perf_counter()
        draw(seed=seed, first=len(times) * batch)
        times.append(time.perf_counter() - began)
    return times


def _given(sampler: Sampler, batch: int) -> np.ndarray | None:
    """Conditions of the golden pictures in turn; None for a bundle that takes none."""
    given = sampler.bundle.golden().get("condition")
    return None if given is None else np.resize(given, (batch, *given.shape[1:]))


def _parts(sampler: Sampler, batch: int) -> dict[str, float]:
    """Median seconds of the parts of one batch; {} for a request of several batches."""
    backend, plan = sampler._backend, sampler._plan(batch)
    if len(plan) > 1:
        return {}
    out = np.empty((batch, *sampler.manifest.shape), np.uint8)
    source = np.zeros_like(out)
    given, lane, stamps = _given(sampler, batch), backend.lane(), []
    for i in range(_LEAST * 2):
        marks = [time.perf_counter()]
        rows = ask(sampler.manifest, batch, None, i, 0, None, 1.0, given)
        if isinstance(lane, HostLane):
            inputs = rows.feed(batch if backend.exact else plan[0])
            marks.append(time.perf_counter())
            lane.run(inputs)
        else:
            lane.launch(rows, plan[0])
            marks.append(time.perf_counter())
            lane.collect(out)
        marks.append(time.perf_counter())
        out[...] = source
        marks.append(time.perf_counter())
        stamps.append(np.diff(marks))
    medians = np.median(stamps, axis=0).tolist()
    return dict(zip(("enqueue", "compute", "copy"), medians, strict=True))
