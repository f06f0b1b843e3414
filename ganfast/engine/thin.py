"""Convolutions between many channels and a picture's one to three, on a CPU.

oneDNN vectorises over channels, so that writing one channel costs it as much as writing sixteen. As a matrix product, which gives
every tap of every position, and a sum of the overlapping taps, the step towards pictures takes a quarter of the time for one
channel, and half of it for three (one and two cores, float32, batches of 32 and 64, from 32 and 64 channels of 14x14 to 32x32).
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

MOST = 3  # channels of a picture


def is_thin(values: Tensor, weight: Tensor, groups: int) -> bool:
    """Whether `overlapped` is the faster way from ``values`` (N, C, h, w) with weights (C, few, *kernel)."""
    plain = values.dtype in (torch.float32, torch.float64) and values.device.type == "cpu"
    return plain and groups == 1 and values.dim() == 4 and len(values) > 0 and weight.shape[1] <= MOST


def overlapped(
    values: Tensor,
    weight: Tensor,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
) -> Tensor:
    """``values`` (N, C, h, w) convolved, transposed, with ``weight`` (C, few, *kernel): (N, few, *size), laid out as they are."""
    (n, _, h, w), (_, few, *_) = values.shape, weight.shape
    kernel = tuple(weight.shape[2:])
    whole = [(length - 1) * s + k for length, s, k in zip((h, w), stride, kernel, strict=True)]
    inside = all(p + wanted <= there for p, wanted, there in zip(padding, size, whole, strict=True))
    if inside and set(dilation) == {1} and not any(k % s for k, s in zip(kernel, stride, strict=True)):
        traced = isinstance(values, FakeTensor)
        pictures = (_opaque if traced else _by_phases)(values, weight, list(size), list(stride), list(padding))
    else:
        taps = weight.reshape(len(weight), -1).t() @ values.flatten(2)  # (N, few kernel, h w)
        one = taps.flatten(0, 1)[None]  # one picture of many channels: threads share channels, not pictures
        pictures = F.fold(one, size, kernel, dilation, padding, stride).view(n, few, *size)
    return told_last(pictures) if values.is_contiguous(memory_format=torch.channels_last) else pictures.contiguous()


def _by_phases(values: Tensor, weight: Tensor, size: list[int], stride: list[int], padding: list[int]) -> Tensor:
    """A kernel of whole strides reaches q of them: a phase of the stride is the sum of q x q shifted maps. Channels last."""
    (n, c, h, w), few, (sy, sx) = values.shape, weight.shape[1], stride
    qy, qx = weight.shape[2] // sy, weight.shape[3] // sx
    by_tap = weight.reshape(c, few, qy, sy, qx, sx).permute(2, 4, 1, 3, 5, 0).reshape(-1, c)
    taps = (by_tap @ values.permute(0, 2, 3, 1).reshape(-1, c).t()).view(qy, qx, few, sy, sx, n, h, w)
    phases = values.new_zeros(few, sy, sx, n, h + qy - 1, w + qx - 1)
    for y in range(qy):
        for x in range(qx):
            phases[..., y : y + h, x : x + w] += taps[y, x]
    whole = phases.permute(3, 0, 4, 1, 5, 2).reshape(n, few, (h + qy - 1) * sy, (w + qx - 1) * sx)
    inside = whole[:, :, padding[0] : padding[0] + size[0], padding[1] : padding[1] + size[1]]
    return inside.clone(memory_format=torch.channels_last)


_opaque = torch.library.custom_op("ganfast::by_phases", _by_phases, mutates_args=())  # a compiler takes minutes to make it slower


@_opaque.register_fake
def _(values: Tensor, weight: Tensor, size: list[int], stride: list[int], padding: list[int]) -> Tensor:
    return values.new_empty(len(values), *size, weight.shape[1]).permute(0, 3, 1, 2)


def told_last(x: Tensor) -> Tensor:
    """``x`` (N, few, H, W) laid out channels last. One channel is so anyway, but its strides then say it too: from them alone a
    convolution knows which layout its result should have, and a result in another one slows down all that follows."""
    n, channels, height, width = x.shape
    if channels > 1 or not x.is_contiguous():
        return x.contiguous(memory_format=torch.channels_last)
    return x.as_strided((n, 1, height, width), (height * width, 1, width, 1))
