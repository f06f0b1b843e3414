"""Every kernel against eager torch and torch.compile, with a cold and a hot cache, and as a share of a measured copy.

python benchmarks/bench_kernels.py           # on CUDA; one record a kernel in results/, written as it is measured
python benchmarks/bench_kernels.py --smoke   # the same code on a CPU under TRITON_INTERPRET=1, small tensors, nothing recorded
"""

import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from measure import device_times, record, summary
from torch import Tensor

from ganfast.kernels import adam_ema, bias_act, gradient_penalty, latents, to_uint8

SMOKE = "--smoke" in sys.argv
DEVICE = "cpu" if SMOKE else "cuda"
LEAK = 0.2
LAYERS = [(1, 8, 6, 6)] if SMOKE else [(192, 64, 14, 14), (384, 64, 32, 32), (384, 256, 8, 8), (1536, 128, 32, 32)]  # conv outputs
PICTURES = [(2, 1, 6, 6)] if SMOKE else [(64, 1, 28, 28), (128, 3, 64, 64), (4096, 3, 64, 64), (512, 3, 256, 256)]


class Case(NamedTuple):
    """One kernel on one tensor."""

    kernel: str
    shape: tuple[int, ...]
    bytes: int  # the least that must move
    variants: dict[str, Callable[[], Any]]  # triton, eager, compile
    results: Callable[[Any], list[Tensor]]  # what of a variant's answer must agree


def cases() -> Iterator[Case]:
    for shape in LAYERS:
        x = torch.randn(shape, device=DEVICE, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
        b = torch.randn(shape[1], device=DEVICE)
        ones = torch.ones(shape[0], device=DEVICE)
        y, bits = bias_act.bias_act_reference(x, b, LEAK)
        dy, size = torch.randn_like(x), x.numel() * 2

        def forward(x: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
            y = F.leaky_relu(x + b.to(x.dtype)[:, None, None], LEAK)
            return y, y > 0

        def delta(dy: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            dz = torch.where(y > 0, dy, dy * LEAK)
            return dz, dz.sum((0, 2, 3), dtype=torch.float32)

        def tangent(dy: Tensor, y: Tensor) -> Tensor:
            return torch.where(y > 0, dy, dy * LEAK)

        yield Case("bias_act", shape, 2 * size + x.numel() // 8, {
            "triton": lambda x=x, b=b: bias_act.bias_act_triton(x, b, LEAK),
            **_both(forward, x, b),
        }, lambda a: [a[0]])  # fmt: skip
        yield Case("bias_act_delta", shape, 2 * size + x.numel() // 8, {
            "triton": lambda dy=dy, bits=bits, ones=ones: bias_act.bias_act_delta_triton(dy, bits, LEAK, ones),
            **_both(delta, dy, y),
        }, list)  # fmt: skip
        yield Case("bias_act_tangent", shape, 2 * size + x.numel() // 8, {
            "triton": lambda dy=dy, bits=bits: bias_act.bias_act_tangent_triton(dy, bits, LEAK),
            **_both(tangent, dy, y),
        }, lambda a: [a])  # fmt: skip
    for shape in PICTURES:
        g = torch.randn(shape, device=DEVICE, dtype=torch.float32)
        given = (10.0, 1.0, False, False, 1 / shape[0])
        whole = g[0].numel() <= gradient_penalty._ONE_PROGRAM
        yield Case("gradient_penalty", shape, (2 if whole else 3) * g.numel() * 4, {
            "triton": lambda g=g, given=given: gradient_penalty.gradient_penalty_triton(g, *given),
            **_both(lambda g, given=given: tuple(gradient_penalty.gradient_penalty_reference(g, *given)), g),
        }, list)  # fmt: skip
        x = torch.rand(shape, device=DEVICE) * 2 - 1
        yield Case("to_uint8", shape, x.numel() * 5, {
            "triton": lambda x=x: to_uint8.to_uint8_triton(x),
            **_both(to_uint8.to_uint8_reference, x),
        }, lambda a: [a.float()])  # fmt: skip
    index = torch.arange(64 if SMOKE else 8192, device=DEVICE)
    yield Case("latents", (len(index), 128), len(index) * 128 * 4, {
        "triton": lambda: latents.draw_triton(0, 1, index, 128, True),
        **_both(lambda index: latents.latents_reference(0, 1, index, 128), index),
    }, lambda a: [a])  # fmt: skip
    yield from _adam(2000 if SMOKE else 20_000_000)


def _adam(count: int) -> Iterator[Case]:
    """A step moves its own buffers on, so each variant has its own."""

    def buffers() -> tuple[list[Tensor], Tensor, Tensor]:
        flat = [torch.full((count,), 0.1, device=DEVICE) for _ in range(4)]
        return flat, torch.full((count,), 0.1, device=DEVICE), torch.empty(count, dtype=torch.bfloat16, device=DEVICE)

    rates = adam_ema.adam_rates(*(torch.tensor(v, device=DEVICE) for v in (3.0, 1e-3, 0.999)), 0.5, 0.99)
    made = {name: buffers() for name in ("triton", "eager", "compile")}
    compiled = torch.compile(adam_ema.adam_ema_reference)
    variants: dict[str, Callable[[], Any]] = {}
    for name, function in (("triton", adam_ema.adam_ema_triton), ("eager", adam_ema.adam_ema_reference), ("compile", compiled)):
        flat, average, low = made[name]
        variants[name] = lambda function=function, flat=flat, average=average, low=low: (
            function(*flat, rates, 0.5, 0.99, 1e-8, average, low), flat[0]
        )[1]  # fmt: skip
    yield Case("adam_ema", (count,), 38 * count, variants, lambda a: [])


def _both(function: Callable[..., Any], *given: Tensor) -> dict[str, Callable[[], Any]]:
    compiled = torch.compile(function, dynamic=False)
    return {"eager": lambda: function(*given), "compile": lambda: compiled(*given)}


def copy_bandwidth() -> float:
    """Bytes a second of the best of large copies, read and write counted."""
    source = torch.empty(1 << (12 if SMOKE else 30), dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    seconds = device_times({"copy": lambda: target.copy_(source)}, 3 if SMOKE else 30, cold=False)["copy"]
    return 2 * source.numel() / min(seconds)


def main() -> None:
    copy = copy_bandwidth()
    print(f"copy {copy / 1e9:,.0f} GB/s")
    ratios: dict[str, list[float]] = {}
    for case in cases():
        answers = {name: case.results(run()) for name, run in case.variants.items()}
        for name in ("eager", "compile"):
            for ours, theirs in zip(answers["triton"], answers[name], strict=True):
                gap = (ours.float() - theirs.float()).abs().max() / theirs.float().abs().max()
                assert gap < 2e-2, (case.kernel, case.shape, name, gap)
        times = {}
        for cache in ("cold", "hot"):
            measured = device_times(case.variants, 2 if SMOKE else 50, cold=cache == "cold")
            times |= {f"{name}-{cache}": seconds for name, seconds in measured.items()}
        medians = {name: summary(seconds)["median"] for name, seconds in times.items()}
        cold = medians["compile-cold"] / medians["triton-cold"]
        share = case.bytes / medians["triton-cold"] / copy
        ratios.setdefault(case.kernel, []).append(cold)
        shape = "x".join(map(str, case.shape))
        eager, hot = medians["eager-cold"] / medians["triton-cold"], medians["compile-hot"] / medians["triton-hot"]
        print(
            f"{case.kernel:17} {shape:16} {medians['triton-cold'] * 1e6:9.1f} us, {share:4.0%} of copy, {cold:.2f}x compile, "
            f"{eager:.2f}x eager; hot {hot:.2f}x compile",
            flush=True,
        )
        if not SMOKE:
            conditions = {"kernel": case.kernel, "shape": case.shape, "least_bytes": case.bytes, "copy_bytes_per_s": copy}
            record(f"kernel-{case.kernel}-{shape}", conditions, times, speed_over_compile_cold=cold, share_of_copy=share)
    for kernel, values in ratios.items():
        mean = float(torch.tensor(values).log().mean().exp())
        print(f"{kernel:17} geometric mean {mean:.2f}x torch.compile, cold cache: {'keep' if mean >= 1 else 'delete'}")


if __name__ == "__main__":
    if not SMOKE and not torch.cuda.is_available():
        sys.exit("bench_kernels needs an NVIDIA GPU: torch sees none (--smoke runs the code on a CPU)")
    main()
