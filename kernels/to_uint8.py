"""The image tail: float pictures in [-1, 1], channels first, to uint8 pictures, channels last."""

import torch
from torch import Tensor

from ganfast.kernels._triton import blocks, jit, launch, tl, use_triton

_BLOCK = 1024


def to_uint8_reference(pictures: Tensor) -> Tensor:
    """round((x + 1) * 127.5), clipped to 0 .. 255; arguments as `to_uint8`."""
    scaled = ((pictures.float() + 1) * 127.5).round().clamp(0, 255)
    return scaled.permute(0, 2, 3, 1).to(torch.uint8).contiguous()


@jit
def _tail_kernel(
    x_ptr, y_ptr, numel, C, H, W, stride_n, stride_c, stride_h, stride_w, BLOCK: tl.constexpr
):
    """Elements of y in memory order, gathered from x by its strides."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < numel
    c, w, h, n = i % C, i // C % W, i // (C * W) % H, i // (C * W) // H
    at = x_ptr + n * stride_n + c * stride_c + h * stride_h + w * stride_w
    x = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    scaled = tl.minimum(tl.maximum((x + 1.0) * 127.5, 0.0), 255.0)
    # Adding 1.5 * 2^23 leaves no room for a fraction: the hardware rounds it away, ties to even.
    tl.store(y_ptr + i, ((scaled + 12582912.0) - 12582912.0).to(tl.uint8), mask=inside)


def to_uint8_triton(pictures: Tensor) -> Tensor:
    """The launcher; arguments as `to_uint8`."""
    n, c, h, w = pictures.shape
    y = torch.empty(n, h, w, c, dtype=torch.uint8, device=pictures.device)
    numbers, grid = (y.numel(), c, h, w, *pictures.stride()), (blocks(y.numel(), _BLOCK),)
    launch(_tail_kernel, grid, y.device, pictures, y, *numbers, BLOCK=_BLOCK, num_warps=4)
    return y


_op = torch.library.custom_op("ganfast::to_uint8", to_uint8_triton, mutates_args=())


@_op.register_fake
def _(pictures: Tensor) -> Tensor:
    n, c, h, w = pictures.shape
    return pictures.new_empty(n, h, w, c, dtype=torch.uint8)


def to_uint8(pictures: Tensor) -> Tensor:
    """round((x + 1) * 127.5), clipped to 0 .. 255.

    Args:
        pictures: (N, C, H, W), any float dtype and strides; computed in float32, ties to even.

    Returns:
        uint8 (N, H, W, C), contiguous.
    """
    return _op(pictures) if use_triton(pictures) else to_uint8_reference(pictures)
