"""The image tail: float pictures in [-1, 1], channels first, to uint8 pictures, channels last."""

import torch
from torch import Tensor

from ganfast.kernels._triton import blocks, dense, jit, launch, tl, use_triton

_BLOCK = 1024  # pixels of a program


def to_uint8_reference(pictures: Tensor) -> Tensor:
    """round((x + 1) * 127.5), clipped to 0 .. 255; arguments as `to_uint8`."""
    scaled = ((pictures.float() + 1) * 127.5).round().clamp(0, 255)
    return scaled.permute(0, 2, 3, 1).to(torch.uint8).contiguous()


@jit
def _tail_kernel(x_ptr, y_ptr, P, PARTS, C: tl.constexpr, WORDS: tl.constexpr, BLOCK: tl.constexpr):
    """BLOCK pixels of one picture, which is C planes of P pixels, as P pixels of C bytes.

    Indices are 32 bits wide within a picture. WORDS: four bytes a store, where P is a multiple of
    4. The C bytes of four pixels fill C words.
    """
    picture = (tl.program_id(0) // PARTS).to(tl.int64) * P * C
    first, k = tl.program_id(0) % PARTS * BLOCK, tl.arange(0, 4)
    four = first // 4 + tl.arange(0, BLOCK // 4)
    if WORDS:
        p = 4 * four[:, None] + k[None, :]
    else:
        p = first + tl.arange(0, BLOCK)
    planes = ()
    for c in tl.static_range(C):
        x = tl.load(x_ptr + picture + c * P + p, mask=p < P, other=0.0).to(tl.float32)
        scaled = tl.minimum(tl.maximum((x + 1.0) * 127.5, 0.0), 255.0)
        # Adding 1.5 * 2^23 leaves no room for a fraction: the hardware rounds it away, ties to
        # even.
        level = ((scaled + 12582912.0) - 12582912.0).to(tl.uint8)
        if WORDS:
            planes += (level.to(tl.int32),)  # type: ignore[assignment]
        else:
            tl.store(y_ptr + picture + p * C + c, level, mask=p < P)
    if WORDS:
        words = (y_ptr + picture).to(tl.pointer_type(tl.int32))
        for w in tl.static_range(C):
            word = tl.zeros((BLOCK // 4,), tl.int32)
            for c in tl.static_range(C):
                at = k * C + c - 4 * w  # the byte's place in this word, if it lies in it
                here = ((at >= 0) & (at < 4))[None, :]
                word += tl.sum(tl.where(here, planes[c] << (8 * (at & 3))[None, :], 0), 1)
            tl.store(words + four * C + w, word, mask=4 * four < P)


def to_uint8_triton(pictures: Tensor) -> Tensor:
    """The launcher; arguments as `to_uint8`."""
    n, c, h, w = pictures.shape
    y = torch.empty(n, h, w, c, dtype=torch.uint8, device=pictures.device)
    if not y.numel():
        return y
    pictures = dense(pictures)
    # Channels last, the elements lie as the bytes will: one plane.
    planes = c if pictures.is_contiguous() else 1
    pixels = c * h * w // planes
    parts = blocks(pixels, _BLOCK)
    flags = {"C": planes, "WORDS": planes > 1 and pixels % 4 == 0, "BLOCK": _BLOCK}
    launch(_tail_kernel, (n * parts,), y.device, pictures, y, pixels, parts, **flags, num_warps=4)
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
