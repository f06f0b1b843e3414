"""Adam, clipping, the moving average of the weights, and their short copy, in one pass.

    m = beta1 m + (1 - beta1) g,  v = beta2 v + (1 - beta2) g^2
    p = p - lr / (1 - beta1^t) m / (sqrt(v / (1 - beta2^t)) + eps), clipped to [-limit, limit]
    average = average + (1 - decay) (p - average)

Kingma and Ba 2015, arXiv:1412.6980, algorithm 1.

Least traffic, in bytes a parameter: 20 read, 16 written, 2 for the copy. What changes from step to
step (t, lr, decay) is read from the device, so that a captured graph replays with new values. What
needs 1 - beta is computed in float64: in float32 1 - 0.999 is 6e-5 off.

A step is two launches. The first is one warp, which counts the step and makes the rates, with 96
float64 instructions. In the second, each thread would have them to do, and a multiprocessor of a T4
does two a cycle. Nor could a program count the step before all others had read its number.
"""

import math

import torch
from torch import Tensor

from ganfast.kernels._triton import blocks, jit, launch, tl, use_triton

_BLOCK, _WARPS = 1024, 8  # 4 values a thread: 16 bytes of float32, so the copy keeps the layout


def adam_rates(
    step: Tensor, lr: Tensor, decay: Tensor, beta1: float, beta2: float | Tensor
) -> Tensor:
    """lr / (1 - beta1^t), 1 / sqrt(1 - beta2^t), decay, beta2 and 1 - beta2, float64 (5,).

    Args:
        step: t, the number of this step, from 1, 0-d, any type.
        lr, decay: learning rate and the share of the average that stays, 0-d.
    """
    t, second = step.double(), torch.as_tensor(beta2, dtype=torch.float64, device=step.device)
    corrected = lr.double() / (1 - beta1**t), (1 - second**t).rsqrt()
    return torch.stack([*corrected, decay.double(), second, 1 - second])


def adam_ema_reference(
    p: Tensor,
    g: Tensor,
    m: Tensor,
    v: Tensor,
    step: Tensor,
    lr: Tensor,
    decay: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    limit: float = 0.0,
    average: Tensor | None = None,
    low: Tensor | None = None,
    skip: Tensor | None = None,
    second: Tensor | None = None,
) -> None:
    """The definition; arguments as `adam_ema`. No number waits for the host."""
    if skip is not None:
        moved = [x for x in (p, m, v, step, average, low) if x is not None]
        before = [x.clone() for x in moved]
        scalars = step, lr, decay, beta1, beta2, eps, limit
        adam_ema_reference(p, g, m, v, *scalars, average, low, None, second)
        for now, old in zip(moved, before, strict=True):
            now.copy_(torch.where(skip == 0, now, old))
        return
    step.add_(1)
    rates = adam_rates(step, lr, decay, beta1, beta2 if second is None else second)
    step_size, root_scale, kept, beta2_now, rest = rates.to(p.dtype).unbind()
    m.lerp_(g, 1 - beta1)
    v.mul_(beta2_now).add_(rest * g * g)
    p.sub_(step_size * m / (v.sqrt() * root_scale + eps))
    if limit:
        p.clamp_(-limit, limit)
    if average is not None:
        average.add_((p - average) * (1 - kept))
    if low is not None:
        low.copy_(p)


@jit
def _rates_kernel(
    step_ptr,
    lr_ptr,
    decay_ptr,
    skip_ptr,
    second_ptr,
    rates_ptr,
    LOG_BETA1: tl.constexpr,
    BETA2: tl.constexpr,
    LOG_BETA2: tl.constexpr,
    SKIP: tl.constexpr,
    SECOND: tl.constexpr,
):
    step = tl.load(step_ptr) + 1.0
    t = step.to(tl.float64)
    # Float64, because a Python float that is no constant arrives as float32.
    power1 = tl.exp2(t * tl.full((), LOG_BETA1, tl.float64))
    if SECOND:
        beta2 = tl.load(second_ptr).to(tl.float64)
        power2 = tl.exp2(t * tl.log2(beta2))
    else:
        beta2 = tl.full((), BETA2, tl.float64)
        power2 = tl.exp2(t * tl.full((), LOG_BETA2, tl.float64))
    step_size = tl.load(lr_ptr).to(tl.float64) / (1.0 - power1)
    root_scale = 1.0 / tl.sqrt(1.0 - power2)
    tl.store(rates_ptr, step_size.to(tl.float32))
    tl.store(rates_ptr + 1, root_scale.to(tl.float32))
    tl.store(rates_ptr + 2, tl.load(decay_ptr).to(tl.float32))
    tl.store(rates_ptr + 3, beta2.to(tl.float32))
    tl.store(rates_ptr + 4, (1.0 - beta2).to(tl.float32))
    if SKIP:
        step -= tl.load(skip_ptr)
    tl.debug_barrier()  # no thread may still have the old number to read
    tl.store(step_ptr, step)


@jit
def _adam_kernel(
    p_ptr,
    g_ptr,
    m_ptr,
    v_ptr,
    average_ptr,
    low_ptr,
    skip_ptr,
    rates_ptr,
    numel,
    beta1,
    one_minus_beta1,
    eps,
    limit,
    CLIP: tl.constexpr,
    AVERAGE: tl.constexpr,
    LOW: tl.constexpr,
    SKIP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    if SKIP:
        numel = tl.where(tl.load(skip_ptr) == 0.0, numel, 0)
    inside = i < numel
    step_size, root_scale = tl.load(rates_ptr), tl.load(rates_ptr + 1)
    decay = tl.load(rates_ptr + 2)
    beta2, one_minus_beta2 = tl.load(rates_ptr + 3), tl.load(rates_ptr + 4)
    g = tl.load(g_ptr + i, mask=inside, other=0.0)
    m = tl.load(m_ptr + i, mask=inside, other=0.0)
    v = tl.load(v_ptr + i, mask=inside, other=0.0)
    p = tl.load(p_ptr + i, mask=inside, other=0.0)
    m = m * beta1 + one_minus_beta1 * g
    v = v * beta2 + one_minus_beta2 * g * g
    p = p - step_size * m / (tl.sqrt(v) * root_scale + eps)
    if CLIP:  # NaN stays, so that the guard sees it
        p = tl.clamp(p, -limit, limit, propagate_nan=tl.PropagateNan.ALL)
    tl.store(m_ptr + i, m, mask=inside)
    tl.store(v_ptr + i, v, mask=inside)
    tl.store(p_ptr + i, p, mask=inside)
    if AVERAGE:
        average = tl.load(average_ptr + i, mask=inside, other=0.0)
        tl.store(average_ptr + i, average + (p - average) * (1.0 - decay), mask=inside)
    if LOW:
        tl.store(low_ptr + i, p.to(low_ptr.dtype.element_ty), mask=inside)


def adam_ema_triton(
    p: Tensor,
    g: Tensor,
    m: Tensor,
    v: Tensor,
    step: Tensor,
    lr: Tensor,
    decay: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    limit: float,
    average: Tensor | None,
    low: Tensor | None,
    skip: Tensor | None,
    second: Tensor | None,
) -> None:
    """The launcher; arguments as `adam_ema`, none left out: torch 2.11 loses count of defaults."""
    rates = torch.empty(5, dtype=torch.float32, device=p.device)
    logs = {f"LOG_BETA{k}": math.log2(b) if b else -math.inf for k, b in ((1, beta1), (2, beta2))}
    may_skip, skip = {"SKIP": skip is not None}, rates if skip is None else skip
    constants = logs | may_skip | {"BETA2": beta2, "SECOND": second is not None}
    scalars = step, lr, decay, skip, rates if second is None else second, rates
    launch(_rates_kernel, (1,), p.device, *scalars, **constants, num_warps=1)
    flags = {"CLIP": limit > 0, "AVERAGE": average is not None, "LOW": low is not None}
    average, low = p if average is None else average, p if low is None else low
    tensors = p, g, m, v, average, low, skip, rates
    arguments = *tensors, p.numel(), beta1, 1 - beta1, eps, limit
    grid = (blocks(p.numel(), _BLOCK),)
    flags |= may_skip
    launch(_adam_kernel, grid, p.device, *arguments, **flags, BLOCK=_BLOCK, num_warps=_WARPS)


_op = torch.library.custom_op(
    "ganfast::adam_ema", adam_ema_triton, mutates_args=("p", "m", "v", "step", "average", "low")
)


def adam_ema(
    p: Tensor,
    g: Tensor,
    m: Tensor,
    v: Tensor,
    step: Tensor,
    lr: Tensor,
    decay: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    limit: float = 0.0,
    average: Tensor | None = None,
    low: Tensor | None = None,
    skip: Tensor | None = None,
    second: Tensor | None = None,
) -> None:
    """One optimizer step, in place.

    Args:
        p, g, m, v: parameters, gradients, first and second moments, float32 (numel,), contiguous.
        step: how many steps were made, float32 0-d; this one is counted.
        lr, decay: learning rate, and what stays of the average, floating point 0-d on the device.
        beta1, beta2, eps: of Adam.
        limit: parameters are clipped to [-limit, limit]; 0 = no clipping.
        average: moving average of p, float32 (numel,); None = none is kept.
        low: gets p in its own type, bfloat16 or float16 (numel,); None = no copy.
        skip: float32 0-d on the device; where it is 1, nothing changes; None = 0.
        second: beta2 of this step, float64 0-d on the device; None = ``beta2``.
    """
    run = _op if use_triton(p) and p.dtype == torch.float32 else adam_ema_reference
    run(p, g, m, v, step, lr, decay, beta1, beta2, eps, limit, average, low, skip, second)
