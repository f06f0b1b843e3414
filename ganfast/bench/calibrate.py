"""What this machine can do, measured in the same run: matrix peak, copy bandwidth, a launch, and a loop that never changes."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from ganfast.bench.timing import Clock, sample


def calibration_loop(device: torch.device) -> Callable[[], object]:
    """Fixed work that no change of ganfast touches: products, a stream through memory, launches. A few milliseconds."""
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
    """matrix_flops (best square product in ``dtype``), copy_bytes_per_s (read and write), launch_s (of a tiny operation)."""
    big = device.type == "cuda"
    best = 0.0
    for n in (4096, 8192) if big else (512, 1024):
        a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
        times = [sample(partial(torch.mm, a, b), 3, clock) for _ in range(6)]
        best = max(best, 2 * n**3 / min(times))
    source = torch.ones(1 << (30 if big else 26), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = min(sample(lambda: target.copy_(source), 2, clock) for _ in range(6))
    small = torch.ones(16, device=device)
    launch = min(sample(lambda: small.add_(1.0), 200, clock) for _ in range(6))
    return {"matrix_flops": best, "copy_bytes_per_s": 2 * source.numel() / copy, "launch_s": launch}


def describe(found: dict[str, Any]) -> str:
    return (
        f"matrix peak {found['matrix_flops'] / 1e9:,.0f} GFLOP/s, copy {found['copy_bytes_per_s'] / 1e9:,.1f} GB/s, "
        f"launch {found['launch_s'] * 1e6:.1f} us"
    )
