"""What lies between two convolutions of a critic: bias and leaky ReLU, and what their derivative
does to deltas and tangents.

    y  = leaky(x + b)                                   forward
    dz = dy phi',  db = sum over samples of w_n dz_n    delta pass, in one read of dy
    t  = c phi'                                         tangent pass

phi' is 1 where x + b > 0 and `slope` elsewhere; w weighs samples, as a penalty's have no bias.
The derivatives need only the side of the kink: forward keeps one bit an element, torch the whole
element. Tensors are (N, C, *spatial), dense in memory, contiguous or channels last; bits follow
memory order, eight a byte, lowest first.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ganfast.kernels._triton import (
    blocks,
    dense,
    jit,
    launch,
    power_of_two,
    same_layout,
    tl,
    use_triton,
)

_BLOCK = 2048  # elements of a program of the elementwise kernels
_COLUMNS = 64  # of a program that sums over rows
_TILE = 2048  # elements that such a program takes at a time
_PROGRAMS = 1024  # that sum over rows at once: seven on each of an H200's 132 multiprocessors
_ROW_PART = 512  # of a row that one program sums: at 1024 ptxas spills for sm_80


def bias_act_reference(x: Tensor, bias: Tensor, slope: float) -> tuple[Tensor, Tensor]:
    """y like x, and its bits, uint8 (ceil(numel / 8),)."""
    x = dense(x)
    exact = _exact(x) + _exact(bias).view(-1, *[1] * (x.dim() - 2))
    return torch.where(exact > 0, exact, exact * slope).to(x.dtype), _packed(exact > 0)


def bias_act_delta_reference(
    dy: Tensor, bits: Tensor, slope: float, sample_weight: Tensor
) -> tuple[Tensor, Tensor]:
    """dz like dy, and db (C,) in float32 or more."""
    dy = dense(dy)
    exact = _exact(dy)
    dz = torch.where(_unpacked(bits, dy), exact, exact * slope)
    weighted = dz * _exact(sample_weight).view(-1, *[1] * (dy.dim() - 1))
    return dz.to(dy.dtype), weighted.sum([0, *range(2, dy.dim())])


def bias_act_tangent_reference(c: Tensor, bits: Tensor, slope: float) -> Tensor:
    """t like c."""
    c = dense(c)
    exact = _exact(c)
    return torch.where(_unpacked(bits, c), exact, exact * slope).to(c.dtype)


def _exact(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _in_memory(x: Tensor) -> Tensor:
    """The elements of a dense tensor in the order they lie in."""
    return x.as_strided((x.numel(),), (1,))


def _packed(mask: Tensor) -> Tensor:
    flat = _in_memory(dense(mask))
    padded = torch.cat([flat, flat.new_zeros(-len(flat) % 8)]).view(-1, 8)
    return (padded.int() << torch.arange(8, device=mask.device)).sum(1).to(torch.uint8)


def _unpacked(bits: Tensor, like: Tensor) -> Tensor:
    """The mask in the shape and layout of ``like``."""
    flat = ((bits[:, None].int() >> torch.arange(8, device=bits.device)) & 1).flatten()
    return flat.bool().as_strided(like.shape, like.stride())


@jit
def _forward_kernel(
    x_ptr,
    bias_ptr,
    y_ptr,
    bits_ptr,
    numel,
    C,
    INNER,
    slope,
    EIGHTS: tl.constexpr,
    LARGE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Elements in memory order; an element's channel is (i // INNER) % C. EIGHTS: the eight of a
    byte have one channel, where INNER is a multiple of 8."""
    block = tl.program_id(0)
    if LARGE:
        block = block.to(tl.int64)
    j, k = block * (BLOCK // 8) + tl.arange(0, BLOCK // 8), tl.arange(0, 8)
    i = j[:, None] * 8 + k[None, :]
    inside = i < numel
    first = j * 8
    if LARGE:  # counted from a sample's start: one division of 64 bits, not one an element
        sample = tl.cast(C, tl.int64) * INNER
        first = (block * BLOCK % sample).to(tl.int32) + tl.arange(0, BLOCK // 8) * 8
    # The bias comes first, because with x in registers ptxas spills for sm_100.
    if EIGHTS:
        bias = tl.load(bias_ptr + first // INNER % C, mask=j * 8 < numel, other=0.0)[:, None]
    else:
        channel = (first[:, None] + k[None, :]) // INNER % C
        bias = tl.load(bias_ptr + channel, mask=inside, other=0.0)
    z = tl.load(x_ptr + i, mask=inside, other=0.0).to(tl.float32) + bias.to(tl.float32)
    tl.store(y_ptr + i, tl.where(z > 0, z, z * slope).to(y_ptr.dtype.element_ty), mask=inside)
    byte = tl.sum(((z > 0) & inside).to(tl.int32) << k[None, :], 1)
    tl.store(bits_ptr + j, byte.to(tl.uint8), mask=j * 8 < numel)


@jit
def _through(v, shifted, slope):
    """v times phi', as the lowest bit of ``shifted`` says."""
    return tl.where((shifted & 1) != 0, v, v * slope)


@jit
def _bit_of_each(bits_ptr, i, inside):
    """The bits of elements, lowest, by a load an element: their bytes begin anywhere."""
    byte = tl.load(bits_ptr + (i >> 3), mask=inside, other=0).to(tl.int32)
    return byte >> (i & 7).to(tl.int32)


@jit
def _tangent_kernel(c_ptr, bits_ptr, t_ptr, numel, slope, BLOCK: tl.constexpr):
    j = tl.program_id(0).to(tl.int64) * (BLOCK // 8) + tl.arange(0, BLOCK // 8)
    k = tl.arange(0, 8)
    i = j[:, None] * 8 + k[None, :]
    inside = i < numel
    c = tl.load(c_ptr + i, mask=inside, other=0.0).to(tl.float32)
    byte = tl.load(bits_ptr + j, mask=j * 8 < numel, other=0).to(tl.int32)
    t = _through(c, byte[:, None] >> k[None, :], slope)
    tl.store(t_ptr + i, t.to(t_ptr.dtype.element_ty), mask=inside)


@jit
def _delta_columns_kernel(
    dy_ptr,
    bits_ptr,
    weight_ptr,
    dz_ptr,
    part_ptr,
    R,
    C,
    PER_SAMPLE,
    STEPS,
    slope,
    EIGHTS: tl.constexpr,
    LARGE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Channels last: memory is (R = N * spatial, C). A program takes STEPS blocks of rows and adds
    them up in registers: part_ptr (programs, C) gets their weighted column sums. EIGHTS: a row
    fills whole bytes, where C is a multiple of 8."""
    program = tl.program_id(0)
    if LARGE:
        program = program.to(tl.int64)
    c = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for step in range(0, STEPS):
        r = (program * STEPS + step) * ROWS + tl.arange(0, ROWS)
        i = r[:, None] * C + c[None, :]
        inside = (r < R)[:, None] & (c < C)[None, :]
        dy = tl.load(dy_ptr + i, mask=inside, other=0.0).to(tl.float32)
        if EIGHTS:
            j = tl.program_id(1) * (COLUMNS // 8) + tl.arange(0, COLUMNS // 8)
            some = (r < R)[:, None] & (j * 8 < C)[None, :]
            byte = tl.load(bits_ptr + r[:, None] * (C // 8) + j[None, :], mask=some, other=0)
            eight = byte.to(tl.int32)[:, :, None] >> tl.arange(0, 8)[None, None, :]
            shifted = tl.reshape(eight, (ROWS, COLUMNS))
        else:
            shifted = _bit_of_each(bits_ptr, i, inside)
        dz = _through(dy, shifted, slope)
        tl.store(dz_ptr + i, dz.to(dz_ptr.dtype.element_ty), mask=inside)
        w = tl.load(weight_ptr + r // PER_SAMPLE, mask=r < R, other=0.0).to(tl.float32)
        total += dz * w[:, None]
    tl.store(part_ptr + program * C + c, tl.sum(total, 0), mask=c < C)


@jit
def _delta_rows_kernel(
    dy_ptr,
    bits_ptr,
    weight_ptr,
    dz_ptr,
    part_ptr,
    C,
    INNER,
    slope,
    EIGHTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Contiguous: one program a (sample, channel), a row of INNER elements. part_ptr is (N, C).
    EIGHTS: a row fills whole bytes, where INNER is a multiple of 8."""
    w = tl.load(weight_ptr + tl.program_id(0) // C).to(tl.float32)
    row = tl.program_id(0).to(tl.int64)
    j, k = tl.arange(0, BLOCK // 8), tl.arange(0, 8)
    total = tl.zeros((BLOCK // 8, 8), tl.float32)
    for start in range(0, INNER, BLOCK):
        at = start + j[:, None] * 8 + k[None, :]
        inside = at < INNER
        i = row * INNER + at
        dy = tl.load(dy_ptr + i, mask=inside, other=0.0).to(tl.float32)
        if EIGHTS:
            first = bits_ptr + row * (INNER // 8) + start // 8
            byte = tl.load(first + j, mask=start + j * 8 < INNER, other=0).to(tl.int32)
            shifted = byte[:, None] >> k[None, :]
        else:
            shifted = _bit_of_each(bits_ptr, i, inside)
        dz = _through(dy, shifted, slope)
        tl.store(dz_ptr + i, dz.to(dz_ptr.dtype.element_ty), mask=inside)
        total += dz
    tl.store(part_ptr + row, tl.sum(tl.sum(total, 1), 0) * w)


def _inner(x: Tensor) -> int:
    """How many elements lie between two channels of a sample."""
    return x[0, 0].numel() if x.is_contiguous() else 1


def _large(x: Tensor) -> bool:
    """Whether an index of a program's elements may need 64 bits."""
    return x.numel() > 2**31 - _BLOCK


def bias_act_triton(x: Tensor, bias: Tensor, slope: float) -> tuple[Tensor, Tensor]:
    """The launcher; arguments as `bias_act`."""
    x = dense(x)
    y = torch.empty_like(x)
    bits = torch.empty(blocks(x.numel(), 8), dtype=torch.uint8, device=x.device)
    tensors, inner = (x, bias.contiguous(), y, bits), _inner(x) if x.numel() else 1
    numbers, grid = (x.numel(), x.shape[1], inner, slope), (blocks(x.numel(), _BLOCK),)
    flags = {"EIGHTS": inner % 8 == 0, "LARGE": _large(x), "BLOCK": _BLOCK, "num_warps": 8}
    launch(_forward_kernel, grid, x.device, *tensors, *numbers, **flags)
    return y, bits


def bias_act_delta_triton(
    dy: Tensor, bits: Tensor, slope: float, sample_weight: Tensor
) -> tuple[Tensor, Tensor]:
    """The launcher; arguments as `bias_act_delta`."""
    dy = dense(dy)
    n, c = dy.shape[:2]
    if not dy.numel():
        return torch.empty_like(dy), torch.zeros(c, dtype=torch.float32, device=dy.device)
    dz = torch.empty_like(dy)
    tensors = (dy, bits, sample_weight.contiguous(), dz)
    inner = _inner(dy)
    if inner == 1:  # channels last, or nothing behind the channels
        columns = min(_COLUMNS, power_of_two(c))
        rows, side_by_side = _TILE // columns, blocks(c, columns)
        count = blocks(dy.numel() // c, rows)
        # By shape alone, so that the sum is the same on every GPU.
        steps = max(1, count * side_by_side // _PROGRAMS)
        parts = torch.empty(blocks(count, steps), c, dtype=torch.float32, device=dy.device)
        numbers = (dy.numel() // c, c, dy.numel() // (n * c), steps, slope)
        flags = {"EIGHTS": c % 8 == 0, "LARGE": _large(dy), "ROWS": rows, "COLUMNS": columns}
        arguments, grid = (*tensors, parts, *numbers), (len(parts), side_by_side)
        launch(_delta_columns_kernel, grid, dy.device, *arguments, **flags, num_warps=4)
    else:
        parts = torch.empty(n, c, dtype=torch.float32, device=dy.device)
        block = max(8, min(_ROW_PART, power_of_two(inner)))
        flags = {"EIGHTS": inner % 8 == 0, "BLOCK": block, "num_warps": 4}
        launch(_delta_rows_kernel, (n * c,), dy.device, *tensors, parts, c, inner, slope, **flags)
    return dz, parts.sum(0)  # the second stage: no atomics, so that the sum is the same every time


def bias_act_tangent_triton(
    c: Tensor, bits: Tensor, slope: float, out: Tensor | None = None
) -> Tensor:
    """The launcher; arguments as `bias_act_tangent`."""
    c = dense(c)
    t = torch.empty_like(c) if out is None else out
    arguments, grid = (c, bits, t, c.numel(), slope), (blocks(c.numel(), _BLOCK),)
    launch(_tangent_kernel, grid, c.device, *arguments, BLOCK=_BLOCK, num_warps=8)
    return t


_bias_act = torch.library.custom_op("ganfast::bias_act", bias_act_triton, mutates_args=())
_bias_act_delta = torch.library.custom_op(
    "ganfast::bias_act_delta", bias_act_delta_triton, mutates_args=()
)


@torch.library.custom_op("ganfast::bias_act_tangent", mutates_args=("out",))
def _bias_act_tangent(c: Tensor, bits: Tensor, slope: float, out: Tensor) -> None:
    bias_act_tangent_triton(c, bits, slope, out)


@_bias_act.register_fake
def _(x: Tensor, bias: Tensor, slope: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(dense(x)), x.new_empty(blocks(x.numel(), 8), dtype=torch.uint8)


@_bias_act_delta.register_fake
def _(dy: Tensor, bits: Tensor, slope: float, sample_weight: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(dense(dy)), dy.new_empty(dy.shape[1], dtype=torch.float32)


def bias_act(x: Tensor, bias: Tensor, slope: float) -> tuple[Tensor, Tensor]:
    """Bias and leaky ReLU. Not differentiable by autograd (`biased_leaky_relu` is): its derivatives
    are the two below.

    Args:
        x: (N, C, *spatial), any float type; computed in float32, rounded once.
        bias: (C,), any float type.
        slope: of the negative side, 0 or more.

    Returns:
        y like x, laid out as x is, and bits, uint8 (ceil(numel / 8),): on which side each element
        lies, in memory order.
    """
    return _bias_act(x, bias, slope) if _kernel(x) else bias_act_reference(x, bias, slope)


def bias_act_delta(
    dy: Tensor, bits: Tensor, slope: float, sample_weight: Tensor
) -> tuple[Tensor, Tensor]:
    """From the delta at y to that at x, with the gradient of the bias.

    Args:
        dy: (N, C, *spatial), laid out as the x that made the bits: `same_layout` brings it there.
        bits: of `bias_act`.
        slope: as there.
        sample_weight: (N,), how much of each sample reaches the bias.

    Returns:
        dz like dy, db float32 (C,).
    """
    compute = _bias_act_delta if _kernel(dy) else bias_act_delta_reference
    return compute(dy, bits, slope, sample_weight)


def bias_act_tangent(c: Tensor, bits: Tensor, slope: float, out: Tensor | None = None) -> Tensor:
    """A direction through the activation.

    Args:
        c: (N, C, *spatial), the direction at x, laid out as the x that made the bits.
        bits, slope: as `bias_act_delta`.
        out: gets t; like c in shape, type and layout; None = a new tensor.

    Returns:
        t like c: ``out`` if there is one.

    Raises:
        ValueError: ``out`` has another type or layout.
    """
    c = dense(c)
    if out is not None and (out.stride(), out.dtype) != (c.stride(), c.dtype):
        raise ValueError(
            f"out has strides {out.stride()} and {out.dtype}; expected {c.stride()} and {c.dtype}, "
            "as c has: same_layout brings c there"
        )
    if not _kernel(c):
        t = bias_act_tangent_reference(c, bits, slope)
        return t if out is None else out.copy_(t)
    t = torch.empty_like(c) if out is None else out
    _bias_act_tangent(c, bits, slope, t)
    return t


class _Differentiable(torch.autograd.Function):
    """y of x and bias; its derivative is `_Delta`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor, slope: float) -> Tensor:
        y, bits = bias_act(x, bias, slope)
        ctx.save_for_backward(bits)
        ctx.slope, ctx.strides, ctx.kind = slope, y.stride(), bias.dtype
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None]:
        (bits,) = ctx.saved_tensors
        dz, db = _Delta.apply(dy, bits, ctx.slope, ctx.strides)
        return dz, db.to(ctx.kind), None


class _Delta(torch.autograd.Function):
    """dz and db, linear in dy: the derivative is the tangent of a direction in z and bias."""

    @staticmethod
    def forward(
        ctx: Any, dy: Tensor, bits: Tensor, slope: float, strides: tuple[int, ...]
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(bits)
        ctx.slope, ctx.strides = slope, strides
        ones = dy.new_ones(len(dy), dtype=_exact(dy).dtype)
        return bias_act_delta(_laid_out(dy, strides), bits, slope, ones)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, ddz: Tensor, ddb: Tensor) -> tuple[Tensor, None, None, None]:
        (bits,) = ctx.saved_tensors
        whole = (_exact(ddz) + ddb.view(-1, *[1] * (ddz.dim() - 2))).to(ddz.dtype)
        return bias_act_tangent(_laid_out(whole, ctx.strides), bits, ctx.slope), None, None, None


def _laid_out(x: Tensor, strides: tuple[int, ...]) -> Tensor:
    if x.stride() == strides:
        return x
    return torch.empty_strided(x.shape, strides, dtype=x.dtype, device=x.device).copy_(x)


def biased_leaky_relu(x: Tensor, bias: Tensor, slope: float) -> Tensor:
    """y of `bias_act` for critics trained by `torch.autograd.grad`: differentiable twice in x and
    bias, as penalties need.

    Eager only: under torch.compile or `torch.func` an autograd function of one's own loses its
    second derivative.
    """
    y: Tensor = _Differentiable.apply(x, bias, slope)
    return y


def _kernel(x: Tensor) -> bool:
    return use_triton(x) and x.dtype != torch.float64


__all__ = ["bias_act", "bias_act_delta", "bias_act_tangent", "biased_leaky_relu", "same_layout"]
