"""The one place that imports triton. Without triton the kernels' references run.

`GANFAST_KERNELS=reference` turns the kernels off; `TRITON_INTERPRET=1`, set before the first
import, runs them on a CPU.
"""

import os
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from ganfast.errors import InputError

try:
    import triton
    import triton.language as tl
except ImportError:

    class _Absent:
        """Stands for `tl` in annotations; nothing that needs it ever runs."""

        def __getattr__(self, name: str) -> Any:
            return self

    triton, tl = None, _Absent()

__all__ = [
    "blocks",
    "dense",
    "interpreted",
    "jit",
    "launch",
    "launches",
    "power_of_two",
    "same_layout",
    "tl",
    "use_triton",
]

# Kernel launches by name since the start: exact, unlike their times.
launches: Counter[str] = Counter()


def jit(kernel: Callable[..., None]) -> Any:
    """`triton.jit`, or nothing where triton is not installed."""
    return kernel if triton is None else triton.jit(kernel)


def use_triton(x: Tensor) -> bool:
    """Whether an operation on x runs as a Triton kernel: on CUDA, and under triton's interpreter.

    Raises:
        InputError: $GANFAST_KERNELS is neither "triton" nor "reference".
    """
    kernels = os.environ.get("GANFAST_KERNELS", "triton")
    if kernels not in ("triton", "reference"):
        raise InputError(f"GANFAST_KERNELS is {kernels!r}; expected triton or reference")
    return triton is not None and kernels == "triton" and (x.is_cuda or interpreted())


def interpreted() -> bool:
    return triton is not None and bool(triton.knobs.runtime.interpret)


def launch(
    kernel: Any, grid: tuple[int, ...], device: torch.device, *args: Any, **constants: Any
) -> None:
    """Run a kernel over a grid on the tensors' own device; an empty grid is nothing to do."""
    if 0 in grid:
        return
    launches[kernel.__name__] += 1
    on_device: AbstractContextManager[Any] = nullcontext()
    if device.type == "cuda":
        on_device = torch.cuda.device(device)
    with on_device:
        kernel[grid](*args, **constants)


def blocks(count: int, block: int) -> int:
    """How many blocks cover count elements."""
    return -(-count // block)


def power_of_two(count: int) -> int:
    """The smallest that is not below count."""
    return 1 << max(0, count - 1).bit_length()


def dense(x: Tensor) -> Tensor:
    """x with its elements side by side in memory, channels last if they are, else contiguous."""
    if x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)):
        return x
    return x.contiguous()


def same_layout(x: Tensor, like: Tensor) -> Tensor:
    """x laid out in memory as ``like`` is, copied where it was not; both dense, of one shape."""
    return x if x.stride() == like.stride() else torch.empty_like(like, dtype=x.dtype).copy_(x)
