"""`ganfast bench kernels`: every kernel against eager torch, torch.compile and a measured copy.

Each with a cold and a hot cache. Where there is neither a GPU nor triton's interpreter, the
definitions alone are measured: what a CPU runs.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ganfast.bench import calibrate, records
from ganfast.bench.activity import activity_of
from ganfast.bench.timing import HostClock, device_times, sample
from ganfast.errors import RunError
from ganfast.kernels import adam_ema, bias_act, gradient_penalty, latents, to_uint8
from ganfast.kernels._triton import use_triton

Run = Callable[[], Any]
_LEAK = 0.2
# Outputs of convolutions, and pictures; the small ones are for a CPU.
_LAYERS = [(192, 64, 14, 14), (384, 64, 32, 32), (384, 256, 8, 8), (1536, 128, 32, 32)]
_PICTURES = [(64, 1, 28, 28), (128, 3, 64, 64), (4096, 3, 64, 64), (512, 3, 256, 256)]
_SMALL_LAYERS, _SMALL_PICTURES = [(96, 32, 14, 14)], [(64, 1, 28, 28), (32, 3, 64, 64)]
_ROWS, _SMALL_ROWS = 8192, 1024  # of latents
_WEIGHTS, _SMALL_WEIGHTS = 20_000_000, 500_000
_LOOPS = 5  # calibration loops a sample
_AGREE = 2e-2  # of the largest value: roundings to bf16


class Case(NamedTuple):
    """One kernel on one tensor."""

    kernel: str
    shape: tuple[int, ...]
    bytes: int  # the least that must move
    variants: Mapping[str, Run]  # triton, eager, compile
    results: Callable[[Any], list[Tensor]]  # the parts of an answer that must agree

    @property
    def name(self) -> str:
        return f"{self.kernel} {'x'.join(map(str, self.shape))}"


def cases(device: torch.device, small: bool) -> Iterator[Case]:
    """Of every kernel; ``small``: sizes for a CPU."""
    has_bf16 = not small and torch.cuda.is_bf16_supported(including_emulation=False)
    for shape in _SMALL_LAYERS if small else _LAYERS:
        yield from _bias_act(shape, device, torch.bfloat16 if has_bf16 else torch.float32)
    for shape in _SMALL_PICTURES if small else _PICTURES:
        g = torch.randn(shape, device=device, dtype=torch.float32)
        options = (10.0, 1.0, False, False, 1 / shape[0])
        once = g[0].numel() <= gradient_penalty._ONE_PROGRAM
        least = (2 if once else 3) * g.numel() * 4
        triton: Run = partial(gradient_penalty.gradient_penalty_triton, g, *options)
        variants = _variants(triton, partial(_penalty, options), g)
        yield Case("gradient_penalty", shape, least, variants, list)
        x = torch.rand(shape, device=device) * 2 - 1
        triton = partial(to_uint8.to_uint8_triton, x)
        variants = _variants(triton, to_uint8.to_uint8_reference, x)
        yield Case("to_uint8", shape, x.numel() * 5, variants, _one)
    index = torch.arange(_SMALL_ROWS if small else _ROWS, device=device)
    triton = partial(latents.latents, 0, 1, index, 128)
    variants = _variants(triton, lambda i: latents.latents_reference(0, 1, i, 128), index)
    yield Case("latents", (len(index), 128), len(index) * 128 * 4, variants, _one)
    yield from _adam(device, _SMALL_WEIGHTS if small else _WEIGHTS)


def _bias_act(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    x = torch.randn(shape, device=device, dtype=dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    b, ones = torch.randn(shape[1], device=device), torch.ones(shape[0], device=device)
    y, bits = bias_act.bias_act_reference(x, b, _LEAK)
    dy, least = torch.randn_like(x), 2 * x.nbytes + x.numel() // 8

    def forward(x: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        y = F.leaky_relu(x + b.to(x.dtype)[:, None, None], _LEAK)
        return y, y > 0

    def delta(dy: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        dz = torch.where(y > 0, dy, dy * _LEAK)
        return dz, dz.sum((0, 2, 3), dtype=torch.float32)

    def tangent(dy: Tensor, y: Tensor) -> Tensor:
        return torch.where(y > 0, dy, dy * _LEAK)

    triton: Run = partial(bias_act.bias_act_triton, x, b, _LEAK)
    yield Case("bias_act", shape, least, _variants(triton, forward, x, b), lambda a: [a[0]])
    triton = partial(bias_act.bias_act_delta_triton, dy, bits, _LEAK, ones)
    yield Case("bias_act_delta", shape, least, _variants(triton, delta, dy, y), list)
    triton = partial(bias_act.bias_act_tangent_triton, dy, bits, _LEAK)
    yield Case("bias_act_tangent", shape, least, _variants(triton, tangent, dy, y), _one)


def _one(answer: Tensor) -> list[Tensor]:
    return [answer]


def _variants(triton: Run, definition: Callable[..., Any], *arguments: Tensor) -> dict[str, Run]:
    eager, compiled = partial(definition, *arguments), partial(_Compiled(definition), *arguments)
    return {"triton": triton, "eager": eager, "compile": compiled}


def _adam(device: torch.device, count: int) -> Iterator[Case]:
    """A step moves its own buffers on, so each variant has its own, equal ones.

    p and average begin at 0, so that all of them shows what a step did.
    """
    g, m = (torch.randn(count, device=device) for _ in range(2))
    v = torch.rand(count, device=device) + 0.01
    rate, decay = (torch.tensor(v, dtype=torch.float64, device=device) for v in (1e-3, 0.999))

    def moving(function: Callable[..., Any]) -> Run:
        p, average = (torch.zeros(count, device=device) for _ in range(2))
        low = torch.empty(count, dtype=torch.bfloat16, device=device)
        moments = m.clone(), v.clone(), torch.tensor(2.0, device=device), rate, decay
        buffers = (p, g.clone(), *moments, 0.5, 0.99, 1e-8, 0.0, average, low, None, None)

        def run() -> tuple[Tensor, ...]:
            function(*buffers)
            return p, average, low

        return run

    variants = {
        "triton": moving(adam_ema.adam_ema_triton),
        "eager": moving(adam_ema.adam_ema_reference),
        "compile": moving(_Compiled(adam_ema.adam_ema_reference)),
    }
    yield Case("adam_ema", (count,), 38 * count, variants, lambda a: [t.clone() for t in a])


def _penalty(options: tuple[Any, ...], g: Tensor) -> tuple[Tensor, ...]:
    return tuple(gradient_penalty.gradient_penalty_reference(g, *options))


class _Compiled:
    """Compiled when it is first called: importing the compiler alone takes seconds."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._compiled: Callable[..., Any] | None = None

    def __call__(self, *arguments: Any) -> Any:
        self._compiled = self._compiled or torch.compile(self._function, dynamic=False)
        return self._compiled(*arguments)


def measure(
    names: Sequence[str],
    device: torch.device,
    rounds: int,
    compile: bool,
    say: Callable[[str], None],
    keep: Callable[[records.Record], object] = lambda _: None,
) -> records.Record:
    """Every case of the kernels in ``names``, or all: proven equal, then timed in turns.

    A case whose variants disagree, or that breaks, is listed as failed with the reason. ``keep``
    is given the record after every case.
    """
    on_gpu, clock = device.type == "cuda", HostClock()
    peaks = calibrate.peaks(device, torch.bfloat16 if on_gpu else torch.float32, clock)
    say(calibrate.describe(peaks))
    absent = set() if use_triton(torch.empty(1, device=device)) else {"triton"}
    absent |= set() if compile else {"compile"}
    conditions = {
        "device": device.type,
        "gpu": torch.cuda.get_device_name() if on_gpu else None,
        "threads": torch.get_num_threads(),
        "rounds": rounds,
    }
    where = device.type if on_gpu else f"cpu-t{torch.get_num_threads()}"
    loop, loops = calibrate.calibration_loop(device), list[float]()
    name = "-".join(("kernels", where, *names))
    record = records.make("kernels", name, conditions, [], peaks | {"loop_s": loops})
    measured: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    for case in cases(device, small=not on_gpu):
        if names and case.kernel not in names:
            continue
        variants = {k: run for k, run in case.variants.items() if k not in absent}
        loops.append(sample(loop, _LOOPS, clock))
        try:
            _agree(case, variants)
            measured += _timed(case, variants, rounds, device, peaks["copy_bytes_per_s"])
            say(line(measured, case))
        except Exception as error:  # the other cases still tell something
            failed[case.name] = records.reason(error)
            say(f"{case.name:34} failed: {failed[case.name]}")
        keep(records.updated(record, measured, failed))
    return records.updated(record, measured, failed)


def _timed(
    case: Case, variants: Mapping[str, Run], rounds: int, device: torch.device, copy: float
) -> list[dict[str, Any]]:
    measured = []
    for cache in ("cold", "hot"):
        times = device_times(variants, rounds, cold=cache == "cold", device=device)
        for name, seconds in times.items():
            one = records.measurement(cache, name, seconds, case=case.name)
            median = one["summary"]["median"]
            rate = case.bytes / median
            one |= {"least_bytes": case.bytes, "bytes_per_s": rate, "share_of_copy": rate / copy}
            if cache == "hot" and device.type == "cuda":
                wait = torch.cuda.synchronize
                activity = activity_of(variants[name], wait, one, device)
                one |= {k: activity[k] for k in ("launches", "profiler") if k in activity}
            measured.append(one)
    return measured


def _agree(case: Case, variants: Mapping[str, Run]) -> None:
    answers = {name: case.results(run()) for name, run in variants.items()}
    for name, answer in answers.items():
        for ours, theirs in zip(answer, answers["eager"], strict=True):
            gap = float((ours.float() - theirs.float()).abs().max() / theirs.float().abs().max())
            if not gap < _AGREE:
                raise RunError(
                    f"{case.kernel} {case.shape}: {name} and eager differ by {gap:.2g} of the "
                    "largest value"
                )


def line(measured: list[dict[str, Any]], case: Case) -> str:
    """Of a case just measured: cold times, share of the copy, and ratios over eager."""
    cold = {m["variant"]: m for m in measured if m["case"] == case.name and m["phase"] == "cold"}
    eager, cells = cold["eager"]["summary"]["median"], []
    for name, m in cold.items():
        median, share = m["summary"]["median"], f"{m['share_of_copy']:.0%} of the copy"
        cells.append(f"{name} {median * 1e6:,.1f} us ({share}, {eager / median:.2f}x)")
    return f"{case.name:34} cold: {', '.join(cells)}"
