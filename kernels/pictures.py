"""Training pictures from the set that lies on the device: gathered, scaled, mirrored, channels
last."""

import torch
from torch import Tensor

from ganfast.kernels._triton import blocks, jit, launch, tl

_BLOCK = 1024


def as_pictures(gathered: Tensor, mirrored: Tensor | None) -> Tensor:
    """uint8 (N, C, H, W) to float32 in [-1, 1], x / 127.5 - 1, channels last; ``mirrored`` as of
    `gather_pictures`."""
    pictures = gathered.float().div_(127.5).sub_(1).to(memory_format=torch.channels_last)
    if mirrored is None:
        return pictures
    return torch.where(mirrored[:, None, None, None], pictures.flip(3), pictures)


def gather_pictures_reference(
    images: Tensor, planes: Tensor | None, position: Tensor, mirrored: Tensor | None
) -> Tensor:
    """The definition; arguments as `gather_pictures`."""
    gathered = images[position] if planes is None else images[planes[position]][:, :, 0]
    return as_pictures(gathered, mirrored)


@jit
def _pictures_kernel(
    images_ptr,
    planes_ptr,
    position_ptr,
    mirrored_ptr,
    out_ptr,
    SIZE,
    WIDTH,
    C: tl.constexpr,
    PLANES: tl.constexpr,
    MIRRORED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One part of one picture, SIZE pixels a plane, in the order of ``out``: channels innermost."""
    n = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = i < SIZE * C
    channel, pixel = i % C, i // C
    position = tl.load(position_ptr + n)
    if MIRRORED:
        column = pixel % WIDTH
        back = pixel + (WIDTH - 1) - 2 * column
        pixel = tl.where(tl.load(mirrored_ptr + n) != 0, back, pixel)
    if PLANES:
        plane = tl.load(planes_ptr + position * C + channel, mask=inside, other=0)
    else:
        plane = position * C + channel
    grey = tl.load(images_ptr + plane * SIZE + pixel, mask=inside, other=0).to(tl.float32)
    # Divided as torch divides on a CPU: a factor of 1 / 127.5 would round otherwise.
    scaled = tl.div_rn(grey, tl.full((BLOCK,), 127.5, tl.float32)) - 1.0
    tl.store(out_ptr + n * SIZE * C + i, scaled, mask=inside)


def gather_pictures_triton(
    images: Tensor, planes: Tensor | None, position: Tensor, mirrored: Tensor | None
) -> Tensor:
    """The launcher; arguments as `gather_pictures`."""
    images, position = images.contiguous(), position.contiguous()
    out = _empty(images, planes, position)
    n, c, height, width = out.shape
    flags = {"C": c, "PLANES": planes is not None, "MIRRORED": mirrored is not None}
    planes = images if planes is None else planes.contiguous()
    mirrored = images if mirrored is None else mirrored.contiguous()
    arguments = (images, planes, position, mirrored, out, height * width, width)
    grid = (n, blocks(c * height * width, _BLOCK))
    launch(_pictures_kernel, grid, out.device, *arguments, **flags, BLOCK=_BLOCK, num_warps=4)
    return out


def _empty(images: Tensor, planes: Tensor | None, position: Tensor) -> Tensor:
    channels = images.shape[1] if planes is None else planes.shape[1]
    shape = len(position), channels, *images.shape[2:]
    kind = {"dtype": torch.float32, "device": images.device}
    return torch.empty(shape, memory_format=torch.channels_last, **kind)  # type: ignore[call-overload]


_op = torch.library.custom_op("ganfast::gather_pictures", gather_pictures_triton, mutates_args=())


@_op.register_fake
def _(images: Tensor, planes: Tensor | None, position: Tensor, mirrored: Tensor | None) -> Tensor:
    return _empty(images, planes, position)


def gather_pictures(
    images: Tensor, planes: Tensor | None, position: Tensor, mirrored: Tensor | None
) -> Tensor:
    """Float32 (N, C, H, W) in [-1, 1], channels last, on CUDA or in triton's interpreter.

    Args:
        images: the set, uint8 (count, C, H, W).
        planes: int64 (pictures, C), which images of one channel make each picture; None = a picture
            is an image.
        position: int64 (N,), which pictures.
        mirrored: bool (N,), which of them are mirrored; None = none.
    """
    return _op(images, planes, position, mirrored)
