"""`ganfast bench kernels`: every kernel against eager torch and torch.compile, with a cold and a hot cache, and a measured copy.

Where there is neither a GPU nor triton's interpreter, the definitions alone are measured: what a CPU runs.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ganfast.bench import calibrate, records
from ganfast.bench.activity import device_activity
from ganfast.bench.timing import HostClock, device_times, sample
from ganfast.errors import RunError
from ganfast.kernels import adam_ema, bias_act, gradient_penalty, latents, to_uint8
from ganfast.kernels._triton import use_triton

_LEAK = 0.2
_LAYERS = [
    (192, 64, 14, 14),
    (384, 64, 32, 32),
    (384, 256, 8, 8),
    (1536, 128, 32, 32),
]  # outputs of convolutions
_PICTURES = [(64, 1, 28, 28), (128, 3, 64, 64), (4096, 3, 64, 64), (512, 3, 256, 256)]
_SMALL_LAYERS, _SMALL_PICTURES = [(96, 32, 14, 14)], [(64, 1, 28, 28), (32, 3, 64, 64)]
_LOOPS = 5  # calibration loops a sample
_AGREE = 2e-2  # of the largest value: roundings to bf16


class Case(NamedTuple):
    """One kernel on one tensor."""

    kernel: str
    shape: tuple[int, ...]
    bytes: int  # the least that must move
    variants: Mapping[str, Callable[[], Any]]  # triton, eager, compile
    results: Callable[[Any], list[Tensor]]  # what of a variant's answer must agree

    @property
    def name(self) -> str:
        return f"{self.kernel} {'x'.join(map(str, self.shape))}"


def cases(device: torch.device, small: bool) -> Iterator[Case]:
    """Of every kernel; ``small``: sizes for a CPU."""
    for shape in _SMALL_LAYERS if small else _LAYERS:
        x = torch.randn(
            shape, device=device, dtype=torch.float32 if small else torch.bfloat16
        ).contiguous(memory_format=torch.channels_last)
        b = torch.randn(shape[1], device=device)
        ones = torch.ones(shape[0], device=device)
        y, bits = bias_act.bias_act_reference(x, b, _LEAK)
        dy, size = torch.randn_like(x), x.nbytes

        def forward(x: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
            y = F.leaky_relu(x + b.to(x.dtype)[:, None, None], _LEAK)
            return y, y > 0

        def delta(dy: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            dz = torch.where(y > 0, dy, dy * _LEAK)
            return dz, dz.sum((0, 2, 3), dtype=torch.float32)

        def tangent(dy: Tensor, y: Tensor) -> Tensor:
            return torch.where(y > 0, dy, dy * _LEAK)

        yield Case(
            "bias_act",
            shape,
            2 * size + x.numel() // 8,
            {"triton": partial(bias_act.bias_act_triton, x, b, _LEAK), **_both(forward, x, b)},
            lambda a: [a[0]],
        )
        yield Case(
            "bias_act_delta",
            shape,
            2 * size + x.numel() // 8,
            {
                "triton": partial(bias_act.bias_act_delta_triton, dy, bits, _LEAK, ones),
                **_both(delta, dy, y),
            },
            list,
        )
        yield Case(
            "bias_act_tangent",
            shape,
            2 * size + x.numel() // 8,
            {
                "triton": partial(bias_act.bias_act_tangent_triton, dy, bits, _LEAK),
                **_both(tangent, dy, y),
            },
            lambda a: [a],
        )
    for shape in _SMALL_PICTURES if small else _PICTURES:
        g = torch.randn(shape, device=device, dtype=torch.float32)
        given = (10.0, 1.0, False, False, 1 / shape[0])
        whole = g[0].numel() <= gradient_penalty._ONE_PROGRAM
        penalty = partial(_penalty, given)
        yield Case(
            "gradient_penalty",
            shape,
            (2 if whole else 3) * g.numel() * 4,
            {
                "triton": partial(gradient_penalty.gradient_penalty_triton, g, *given),
                **_both(penalty, g),
            },
            list,
        )
        x = torch.rand(shape, device=device) * 2 - 1
        yield Case(
            "to_uint8",
            shape,
            x.numel() * 5,
            {
                "triton": partial(to_uint8.to_uint8_triton, x),
                **_both(to_uint8.to_uint8_reference, x),
            },
            lambda a: [a.float()],
        )
    index = torch.arange(1024 if small else 8192, device=device)
    yield Case(
        "latents",
        (len(index), 128),
        len(index) * 128 * 4,
        {
            "triton": lambda: latents.draw_triton(0, 1, index, 128, True),
            **_both(lambda index: latents.latents_reference(0, 1, index, 128), index),
        },
        lambda a: [a],
    )
    yield from _adam(device, 500_000 if small else 20_000_000)


def _adam(device: torch.device, count: int) -> Iterator[Case]:
    """A step moves its own buffers on, so each variant has its own, equal ones; p and average begin at 0, so that all of them shows
    what a step did.
    """
    g, m = (torch.randn(count, device=device) for _ in range(2))
    v = torch.rand(count, device=device) + 0.01

    step, rate, decay = (torch.tensor(v, device=device) for v in (3.0, 1e-3, 0.999))
    rates = adam_ema.adam_rates(step, rate, decay, 0.5, 0.99)

    def moving(function: Callable[..., Any]) -> Callable[[], Any]:
        p, average = (torch.zeros(count, device=device) for _ in range(2))
        low = torch.empty(count, dtype=torch.bfloat16, device=device)
        given = (p, g.clone(), m.clone(), v.clone(), rates, 0.5, 0.99, 1e-8, average, low)

        def run() -> tuple[Tensor, ...]:
            function(*given)
            return p, average, low

        return run

    variants = {
        "triton": moving(adam_ema.adam_ema_triton),
        "eager": moving(adam_ema.adam_ema_reference),
        "compile": moving(_Compiled(adam_ema.adam_ema_reference)),
    }
    yield Case("adam_ema", (count,), 38 * count, variants, lambda a: [t.clone() for t in a])


def _penalty(given: tuple[Any, ...], g: Tensor) -> tuple[Tensor, ...]:
    return tuple(gradient_penalty.gradient_penalty_reference(g, *given))


def _both(function: Callable[..., Any], *given: Tensor) -> dict[str, Callable[[], Any]]:
    return {"eager": partial(function, *given), "compile": partial(_Compiled(function), *given)}


class _Compiled:
    """Compiled when it is first called: importing the compiler alone takes seconds."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._compiled: Callable[..., Any] | None = None

    def __call__(self, *given: Any) -> Any:
        self._compiled = self._compiled or torch.compile(self._function, dynamic=False)
        return self._compiled(*given)


def measure(
    names: Sequence[str],
    device: torch.device,
    rounds: int,
    compile: bool,
    said: Callable[[str], None],
    keep: Callable[[records.Record], object] = lambda _: None,
) -> records.Record:
    """Every case of the kernels in ``names`` (all where it is empty): proven equal, then timed in turns.

    One whose variants disagree, or that breaks, is listed as failed with the reason. ``keep`` is given the record after every case.
    """
    on_gpu, clock = device.type == "cuda", HostClock()
    peaks = calibrate.peaks(device, torch.bfloat16 if on_gpu else torch.float32, clock)
    copy = peaks["copy_bytes_per_s"]
    said(calibrate.describe(peaks))
    has_kernels = use_triton(torch.empty(1, device=device))
    conditions = {
        "device": device.type,
        "gpu": torch.cuda.get_device_name() if on_gpu else None,
        "threads": torch.get_num_threads(),
        "rounds": rounds,
    }
    where = device.type if on_gpu else f"cpu-t{torch.get_num_threads()}"
    loop, loops = calibrate.calibration_loop(device), list[float]()
    record = records.make(
        "kernels", "-".join(("kernels", where, *names)), conditions, [], peaks | {"loop_s": loops}
    )
    measured: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    for case in cases(device, small=not on_gpu):
        if names and case.kernel not in names:
            continue
        variants = {
            k: run
            for k, run in case.variants.items()
            if (k != "triton" or has_kernels) and (k != "compile" or compile)
        }
        loops.append(sample(loop, _LOOPS, clock))
        try:
            _agree(case, variants)
            measured += _timed(case, variants, rounds, device, copy)
            said(line(measured, case))
        except Exception as error:  # the other cases still tell something
            failed[case.name] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            said(f"{case.name:34} failed: {failed[case.name]}")
        keep(records.updated(record, measured, failed))
    return records.updated(record, measured, failed)


def _timed(
    case: Case,
    variants: Mapping[str, Callable[[], Any]],
    rounds: int,
    device: torch.device,
    copy: float,
) -> list[dict[str, Any]]:
    measured, on_gpu = [], device.type == "cuda"
    for cache in ("cold", "hot"):
        times = device_times(variants, rounds, cold=cache == "cold", device=device)
        for name, seconds in times.items():
            one = records.measurement(cache, name, seconds, case=case.name)
            median = one["summary"]["median"]
            one |= {
                "least_bytes": case.bytes,
                "bytes_per_s": case.bytes / median,
                "share_of_copy": case.bytes / median / copy,
            }
            if cache == "hot" and on_gpu:
                activity = device_activity(variants[name], torch.cuda.synchronize, median)
                one["launches"] = int(activity["launches"])
            measured.append(one)
    return measured


def _agree(case: Case, variants: Mapping[str, Callable[[], Any]]) -> None:
    answers = {name: case.results(run()) for name, run in variants.items()}
    for name, answer in answers.items():
        for ours, theirs in zip(answer, answers["eager"], strict=True):
            gap = float((ours.float() - theirs.float()).abs().max() / theirs.float().abs().max())
            if not gap < _AGREE:
                raise RunError(
                    f"{case.kernel} {case.shape}: {name} and eager differ by {gap:.2g} of the largest value"
                )


def line(measured: list[dict[str, Any]], case: Case) -> str:
    """Of a case just measured: cold times, share of the copy, and ratios over eager."""
    cold = {m["variant"]: m for m in measured if m["case"] == case.name and m["phase"] == "cold"}
    eager = cold["eager"]["summary"]["median"]
    cells = [
        f"{k} {m['summary']['median'] * 1e6:,.1f} us ({m['share_of_copy']:.0%} of the copy, {eager / m['summary']['median']:.2f}x)"
        for k, m in cold.items()
    ]
    return f"{case.name:34} cold: {', '.join(cells)}"
