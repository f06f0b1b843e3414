"""Adam, the moving average of the weights, and their bfloat16 copy, in one pass over flat buffers.

    m = beta1 m + (1 - beta1) g,  v = beta2 v + (1 - beta2) g^2
    p = p - lr / (1 - beta1^t) m / (sqrt(v / (1 - beta2^t)) + eps)
    average = average + (1 - decay) (p - average)

Kingma and Ba 2015, arXiv:1412.6980, algorithm 1.

Least traffic, in bytes a parameter: 20 read, 16 written, 2 for the copy. What changes from step to
step (t, lr, decay) is read from the device, so that a captured graph replays with new values. What
needs 1 - beta is computed in float64: in float32 1 - 0.999 is 6e-5 off.
"""

import torch
from torch import Tensor

from ganfast.kernels._triton import blocks, jit, launch, tl, use_triton

_BLOCK = 1024


def adam_rates(step: Tensor, lr: Tensor, decay: Tensor, beta1: float, beta2: float) -> Tensor:
    """What `adam_ema` reads from the device: lr / (1 - beta1^t), 1 / sqrt(1 - beta2^t) and decay,
    float32 (3,).

    Args:
        step: t, the number of this step, from 1, 0-d on the device, any type.
        lr, decay: learning rate and the share of the average that stays, 0-d on the device.
    """
    t = step.double()
    rates = (lr.double() / (1 - beta1**t), (1 - beta2**t).rsqrt(), decay.double())
    return torch.stack(rates).float()


def adam_ema_reference(
    p: Tensor,
    g: Tensor,
    m: Tensor,
    v: Tensor,
    rates: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    average: Tensor | None = None,
    low: Tensor | None = None,
) -> None:
    """The definition; arguments as `adam_ema`."""
    step_size, root_scale, decay = rates.unbind()
    m.lerp_(g, 1 - beta1)
    v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
    p.sub_(step_size * m / (v.sqrt() * root_scale + eps))
    if average is not None:
        average.add_((p - average) * (1 - decay))
    if low is not None:
        low.copy_(p)


@jit
def _adam_kernel(
    p_ptr,
    g_ptr,
    m_ptr,
    v_ptr,
    average_ptr,
    low_ptr,
    rates_ptr,
    numel,
    beta1,
    one_minus_beta1,
    beta2,
    one_minus_beta2,
    eps,
    AVERAGE: tl.constexpr,
    LOW: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < numel
    step_size, root_scale = tl.load(rates_ptr), tl.load(rates_ptr + 1)
    decay = tl.load(rates_ptr + 2)
    g = tl.load(g_ptr + i, mask=inside, other=0.0)
    m = tl.load(m_ptr + i, mask=inside, other=0.0)
    v = tl.load(v_ptr + i, mask=inside, other=0.0)
    p = tl.load(p_ptr + i, mask=inside, other=0.0)
    m = m * beta1 + one_minus_beta1 * g
    v = v * beta2 + one_minus_beta2 * g * g
    p = p - step_size * m / (tl.sqrt(v) * root_scale + eps)
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
    rates: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    average: Tensor | None,
    low: Tensor | None,
) -> None:
    """The launcher; arguments as `adam_ema`, none left out: torch 2.11 loses count of defaults."""
    flags = {"AVERAGE": average is not None, "LOW": low is not None}
    average, low = p if average is None else average, p if low is None else low
    tensors, betas = (p, g, m, v, average, low, rates), (beta1, 1 - beta1, beta2, 1 - beta2)
    arguments, grid = (*tensors, p.numel(), *betas, eps), (blocks(p.numel(), _BLOCK),)
    launch(_adam_kernel, grid, p.device, *arguments, **flags, BLOCK=_BLOCK, num_warps=4)


_op = torch.library.custom_op(
    "ganfast::adam_ema", adam_ema_triton, mutates_args=("p", "m", "v", "average", "low")
)


def adam_ema(
    p: Tensor,
    g: Tensor,
    m: Tensor,
    v: Tensor,
    rates: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    average: Tensor | None = None,
    low: Tensor | None = None,
) -> None:
    """One optimizer step, in place.

    Args:
        p, g, m, v: parameters, gradients, first and second moments, float32 (numel,), contiguous.
        rates: of `adam_rates`, float32 (3,) on the device.
        beta1, beta2, eps: of Adam, fixed for the run.
        average: moving average of p, float32 (numel,); None = none is kept.
        low: gets p in its own type, bfloat16 (numel,); None = no copy.
    """
    step = _op if use_triton(p) and p.dtype == torch.float32 else adam_ema_reference
    step(p, g, m, v, rates, beta1, beta2, eps, average, low)
