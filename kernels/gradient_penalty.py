"""From the input gradients of N samples to what a gradient penalty needs: values, norms, and the
direction u = d penalty / d g.

    norm penalty  weight (|g| - target)^2   WGAN-GP, arXiv:1704.00028, eq. 3; DRAGAN, 1705.07215
    zero-centred  weight / 2 |g|^2          R1 and R2, arXiv:1801.04406, eq. 9 and 10

A one-sided norm penalty is 0 below the target.

A sample that fits one program is read once and written once, in one launch; a larger one is split:
partial sums, then direction.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ganfast.kernels._triton import blocks, dense, jit, launch, power_of_two, tl, use_triton

_ONE_PROGRAM = 16384  # elements that one program keeps: 64 floats a thread of 256
_SPLIT = 4096  # elements of a part of a larger sample


class Penalised(NamedTuple):
    """What `gradient_penalty` returns."""

    value: Tensor  # (N,), float32 or more
    norm: Tensor  # |g_n|, (N,), float32 or more
    direction: Tensor  # like g: scale * d value_n / d g_n


def gradient_penalty_reference(
    g: Tensor, weight: float, target: float, one_sided: bool, zero_centred: bool, scale: float
) -> Penalised:
    """The definition; arguments as `gradient_penalty`."""
    exact = g.float() if g.dtype in (torch.bfloat16, torch.float16) else g
    norm = torch.linalg.vector_norm(exact.flatten(1), dim=1)
    if zero_centred:
        value, coefficient = weight / 2 * norm.square(), torch.full_like(norm, weight * scale)
    else:
        excess = norm - target
        excess = excess.relu() if one_sided else excess
        value = weight * excess.square()
        coefficient = torch.where(norm > 0, 2 * weight * scale * excess / norm, 0.0)
    return Penalised(value, norm, (coefficient.view(-1, *[1] * (g.dim() - 1)) * exact).to(g.dtype))


@jit
def _finish(square, weight, target, scale, ONE_SIDED: tl.constexpr, ZERO_CENTRED: tl.constexpr):
    """Value, norm and coefficient of one sample from |g|^2."""
    norm = tl.sqrt_rn(square)  # correctly rounded: norm - target cancels
    if ZERO_CENTRED:
        value = weight * 0.5 * square
        coefficient = weight * scale
    else:
        excess = norm - target
        if ONE_SIDED:
            excess = tl.maximum(excess, 0.0)
        value = weight * excess * excess
        ratio = tl.div_rn(2.0 * weight * scale * excess, tl.where(norm > 0, norm, 1.0))
        coefficient = tl.where(norm > 0, ratio, 0.0)
    return value, norm, coefficient


@jit
def _whole_kernel(
    g_ptr,
    u_ptr,
    value_ptr,
    norm_ptr,
    M,
    weight,
    target,
    scale,
    ONE_SIDED: tl.constexpr,
    ZERO_CENTRED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program a sample, which stays in registers between norm and direction."""
    n = tl.program_id(0)
    i = tl.arange(0, BLOCK)
    inside = i < M
    first = n.to(tl.int64) * M
    g = tl.load(g_ptr + first + i, mask=inside, other=0.0).to(tl.float32)
    square = tl.sum(g * g, 0)
    value, norm, coefficient = _finish(square, weight, target, scale, ONE_SIDED, ZERO_CENTRED)
    tl.store(u_ptr + first + i, (coefficient * g).to(u_ptr.dtype.element_ty), mask=inside)
    tl.store(value_ptr + n, value)
    tl.store(norm_ptr + n, norm)


@jit
def _squares_kernel(g_ptr, part_ptr, M, PARTS, BLOCK: tl.constexpr):
    """Sum of squares of one part of one sample: part_ptr is (N, PARTS)."""
    n, part = tl.program_id(0), tl.program_id(1)
    i = part * BLOCK + tl.arange(0, BLOCK)
    g = tl.load(g_ptr + n.to(tl.int64) * M + i, mask=i < M, other=0.0).to(tl.float32)
    tl.store(part_ptr + n * PARTS + part, tl.sum(g * g, 0))


@jit
def _direction_kernel(
    g_ptr,
    part_ptr,
    u_ptr,
    value_ptr,
    norm_ptr,
    M,
    PARTS,
    weight,
    target,
    scale,
    ONE_SIDED: tl.constexpr,
    ZERO_CENTRED: tl.constexpr,
    BLOCK: tl.constexpr,
    ALL_PARTS: tl.constexpr,
):
    """One part of a sample. Every program adds up the sample's parts itself, in the same order."""
    n, part = tl.program_id(0), tl.program_id(1)
    p = tl.arange(0, ALL_PARTS)
    square = tl.sum(tl.load(part_ptr + n * PARTS + p, mask=p < PARTS, other=0.0), 0)
    value, norm, coefficient = _finish(square, weight, target, scale, ONE_SIDED, ZERO_CENTRED)
    i = part * BLOCK + tl.arange(0, BLOCK)
    at = n.to(tl.int64) * M + i
    g = tl.load(g_ptr + at, mask=i < M, other=0.0).to(tl.float32)
    tl.store(u_ptr + at, (coefficient * g).to(u_ptr.dtype.element_ty), mask=i < M)
    if part == 0:
        tl.store(value_ptr + n, value)
        tl.store(norm_ptr + n, norm)


def gradient_penalty_triton(
    g: Tensor, weight: float, target: float, one_sided: bool, zero_centred: bool, scale: float
) -> Penalised:
    """The launcher; arguments as `gradient_penalty`."""
    g = dense(g)
    n, m = len(g), g[0].numel() if len(g) else 0
    direction = torch.empty_like(g)
    value, norm = (torch.empty(n, dtype=torch.float32, device=g.device) for _ in range(2))
    flags: dict[str, int] = {"ONE_SIDED": one_sided, "ZERO_CENTRED": zero_centred}
    if m <= _ONE_PROGRAM:
        block = power_of_two(m)
        flags |= {"BLOCK": block, "num_warps": min(8, max(1, block // 512))}
        tensors = (g, direction, value, norm)
        launch(_whole_kernel, (n,), g.device, *tensors, m, weight, target, scale, **flags)
        return Penalised(value, norm, direction)
    parts = blocks(m, _SPLIT)
    squares = torch.empty(n, parts, dtype=torch.float32, device=g.device)
    launch(_squares_kernel, (n, parts), g.device, g, squares, m, parts, BLOCK=_SPLIT, num_warps=8)
    flags |= {"BLOCK": _SPLIT, "ALL_PARTS": power_of_two(parts), "num_warps": 8}
    arguments = (g, squares, direction, value, norm, m, parts, weight, target, scale)
    launch(_direction_kernel, (n, parts), g.device, *arguments, **flags)
    return Penalised(value, norm, direction)


@torch.library.custom_op("ganfast::gradient_penalty", mutates_args=())
def _op(
    g: Tensor, weight: float, target: float, one_sided: bool, zero_centred: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(gradient_penalty_triton(g, weight, target, one_sided, zero_centred, scale))  # type: ignore[return-value]


@_op.register_fake
def _(
    g: Tensor, weight: float, target: float, one_sided: bool, zero_centred: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    per_sample = g.new_empty(len(g), dtype=torch.float32)
    return per_sample, torch.empty_like(per_sample), torch.empty_like(dense(g))


def gradient_penalty(
    g: Tensor, weight: float, target: float, one_sided: bool, zero_centred: bool, scale: float
) -> Penalised:
    """Per-sample norm over everything but the batch, penalty, direction; where g is 0 the direction
    is 0. Not differentiable.

    Args:
        g: input gradients (N, ...), any float type; sums are float32 (float64 for float64).
        weight: of the penalty.
        target, one_sided: of the norm penalty.
        zero_centred: which of the two.
        scale: what the direction is multiplied by: 1 / N for the gradient of a mean.
    """
    if use_triton(g) and g.dtype != torch.float64:
        return Penalised(*_op(g, weight, target, one_sided, zero_centred, scale))
    return gradient_penalty_reference(g, weight, target, one_sided, zero_centred, scale)
