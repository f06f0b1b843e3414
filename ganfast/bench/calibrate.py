"""What this machine can do, measured in the same run: matrix peak, copy bandwidth, a launch, and a loop that never changes."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ganfast.bench.operations import OperationCount
from ganfast.bench.timing import Clock, sample
from ganfast.flops import FlopCount


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


def works(device: torch.device, dtype: torch.dtype) -> dict[str, tuple[Callable[[], object], float]]:
    """What a rate is measured on, and how much of it one call does: {"matrix_flops": (run, FLOPs), ...}."""
    on_gpu = device.type == "cuda"
    n = 8192 if on_gpu else 768
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    source = torch.ones(1 << (30 if on_gpu else 26), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    pieces = source.view(torch.float32).chunk(1 if on_gpu else 32)  # the size of activations, none of them in the cache

    def passes() -> None:
        for piece in pieces:
            F.leaky_relu(piece, 0.2)

    return {
        "matrix_flops": (partial(torch.mm, a, b), 2.0 * n**3), "convolution_flops": _convolution(device, dtype),
        "copy_bytes_per_s": (lambda: target.copy_(source), 2.0 * source.numel()),
        "pass_bytes_per_s": (passes, 2.0 * source.numel()),  # into memory as it comes
        "launches_per_s": _launches(device), "plain_launches_per_s": _plain(device, 64)[::2],
        "plain_bytes_per_s": _plain(device, _DRAWN)[:2], "numpy_launches_per_s": _numpy(64)[::2],
        "numpy_bytes_per_s": _numpy(1 << 13)[:2],
    }  # fmt: skip


def peaks(device: torch.device, dtype: torch.dtype, clock: Clock) -> dict[str, float]:
    """The best rates a second: products, convolutions, a large copy and an activation (read and write), tiny operations."""
    return {name: amount / min(sample(run, 2, clock) for _ in range(8)) for name, (run, amount) in works(device, dtype).items()}


def _convolution(device: torch.device, dtype: torch.dtype) -> tuple[Callable[[], object], float]:
    """Forward and both gradients of 4x4 convolutions with stride 2, a DCGAN's shapes (arXiv:1511.06434), nothing in the cache."""
    n, c, side = (128, 128, 32) if device.type == "cuda" else (32, 64, 14)
    how: dict[str, Any] = {"device": device, "dtype": dtype}
    how_far = ((2, 2), (1, 1), (1, 1), False, (0, 0), 1)  # stride, padding, dilation, transposed, output padding, groups
    given = []
    for _ in range(1 if device.type == "cuda" else 12):
        x = torch.randn(n, c, side, side, **how).to(memory_format=torch.channels_last)
        w = torch.randn(2 * c, c, 4, 4, **how).to(memory_format=torch.channels_last)
        given.append((torch.ops.aten.convolution(x, w, None, *how_far), x, w))

    def run() -> None:
        for _, x, w in given:
            torch.ops.aten.convolution(x, w, None, *how_far)
        for y, x, w in given:
            torch.ops.aten.convolution_backward(y, x, w, None, *how_far, (True, True, False))

    with FlopCount() as count:
        run()
    return run, float(count.total)


def _launches(device: torch.device) -> tuple[Callable[[], object], float]:
    """A step of a network too small to compute anything: what is left is Python, autograd and the launches themselves."""
    layers = [m for _ in range(4) for m in (nn.Conv2d(16, 16, 3, padding=1), nn.LeakyReLU(0.2))]
    net, x = nn.Sequential(*layers).to(device), torch.ones(1, 16, 2, 2, device=device)
    weights = list(net.parameters())

    def run() -> None:
        torch.autograd.grad(net(x).sum(), weights)

    with OperationCount() as count:
        run()
    return run, float(len(count.operations))


_DRAWN = 2**17  # numbers: about as many latents are drawn at once


def _plain(device: torch.device, numbers: int) -> tuple[Callable[[], object], float, float]:
    """Operations without autograd, as random numbers are made of; their bytes, and how many there are."""
    x = torch.ones(numbers, dtype=torch.int64, device=device)
    rounds = 20

    def run() -> None:
        for _ in range(rounds):
            (((x + 3) * x) >> 2) ^ x

    return run, 10.0 * rounds * x.nbytes, 4.0 * rounds


def _numpy(words: int) -> tuple[Callable[[], object], float, float]:
    """Passes of NumPy's in the caches, as random words are made of on a CPU; their bytes (twice read, once written), how many."""
    x, rounds = np.ones(words, np.uint64), 20
    shift, factor = np.uint64(32), np.uint64(0xD2E7470E)

    def run() -> None:
        for _ in range(rounds):
            high = x >> shift
            high *= factor
            high += x & factor
            high ^= x

    return run, 5.0 * rounds * 3 * x.nbytes, 5.0 * rounds


def describe(found: dict[str, Any]) -> str:
    return (
        f"matrix peak {found['matrix_flops'] / 1e9:,.0f} GFLOP/s, copy {found['copy_bytes_per_s'] / 1e9:,.1f} GB/s, "
        f"launch {1e6 / found['launches_per_s']:.1f} us"
    )
