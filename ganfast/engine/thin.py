"""Convolutions between many channels and a picture's one to three, on a CPU.

oneDNN vectorises over channels, so that writing one channel costs it as much as writing sixteen. As a matrix product, which gives
every tap of every position, and a sum of the overlapping taps, the step towards pictures takes a quarter of the time for one
channel, and two thirds to all of it for three (one core, float32, batch 32, from 32 and 64 channels of 14x14 to 32x32).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

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
    taps = weight.reshape(len(weight), -1).t() @ values.flatten(2)  # (N, few kernel, h w)
    whole = taps.flatten(0, 1)[None]  # one picture of many channels: threads share channels, not pictures
    pictures = F.fold(whole, size, weight.shape[2:], dilation, padding, stride).view(len(values), weight.shape[1], *size)
    return told_last(pictures) if values.is_contiguous(memory_format=torch.channels_last) else pictures


def told_last(x: Tensor) -> Tensor:
    """``x`` (N, few, H, W) laid out channels last. One channel is so anyway, but its strides then say it too: from them alone a
    convolution knows which layout its result should have, and a result in another one slows down all that follows."""
    n, channels, height, width = x.shape
    if channels > 1 or not x.is_contiguous():
        return x.contiguous(memory_format=torch.channels_last)
    return x.as_strided((n, 1, height, width), (height * width, 1, width, 1))
