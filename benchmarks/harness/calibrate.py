"""What this machine can do, measured in the same run: matrix peak, copy rate, a fixed loop."""

from collections.abc import Callable
from functools import partial

import torch

from ganfast.bench.timing import Clock, sample


def calibration_loop(device: torch.device) -> Callable[[], object]:
    """Fixed work that no change of ganfast touches: products, a stream through memory, launches.

    A call takes a few milliseconds.
    """
    a = torch.full((384, 384), 1e-3, device=device)
    x = torch.ones(1 << 20, device=device)
    small = torch.ones(64, device=device)
    out = torch.empty_like(a)

    def run() -> None:
        for _ in range(4):
            torch.mm(a, a, out=out)
            x.mul_(1.0)
            for _ in range(50):
                small.add_(0.0)

    return run


def peaks(device: torch.device, dtype: torch.dtype, clock: Clock) -> dict[str, float]:
    """The best rates a second: FLOPs of a product, bytes of a large copy (read and write)."""
    on_gpu = device.type == "cuda"
    n = 8192 if on_gpu else 768
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    source = torch.ones(1 << (30 if on_gpu else 26), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    works: dict[str, tuple[Callable[[], object], float]] = {
        "matrix_flops": (partial(torch.mm, a, b), 2.0 * n**3),
        "copy_bytes_per_s": (lambda: target.copy_(source), 2.0 * source.numel()),
    }
    return {
        name: amount / min(sample(run, 2, clock) for _ in range(8))
        for name, (run, amount) in works.items()
    }


def describe(rates: dict[str, float]) -> str:
    flops, copied = (rates[name] / 1e9 for name in ("matrix_flops", "copy_bytes_per_s"))
    return f"matrix peak {flops:,.0f} GFLOP/s, copy {copied:,.1f} GB/s"
