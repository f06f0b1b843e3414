"""Weight gradients of convolutions whose results are small maps, on a CPU, as one matrix product.

oneDNN vectorises them along the rows of a map; where these are three numbers long, copying every patch and multiplying takes 0.3 to
0.9 of its time, and with many channels also where they are four (float32, two cores, batches of 16 to 64, 32 to 512 channels).
"""

import torch
from torch import Tensor

_POSITIONS = 9  # of a map that is small with any number of channels
_MORE, _WEIGHTS = 16, 1 << 19  # of one that is with so many weights


def is_small(dy: Tensor, weight: Tensor, groups: int) -> bool:
    """Whether `patch_product` is the faster way to the gradient of ``weight`` (out, in, *kernel) from ``dy`` (N, out, h, w)."""
    plain = dy.dtype in (torch.float32, torch.float64) and dy.device.type == "cpu" and groups == 1 and dy.dim() == 4
    if not plain or not len(dy):
        return False
    positions = dy.shape[2] * dy.shape[3]
    return positions <= _POSITIONS or (positions <= _MORE and weight.numel() >= _WEIGHTS)


def patch_product(
    dy: Tensor, x: Tensor, weight: Tensor, stride: tuple[int, ...], padding: tuple[int, ...], dilation: tuple[int, ...]
) -> Tensor:  # fmt: skip
    """The gradient of ``weight``, which gives the shape only, for results ``dy`` of pictures ``x``; laid out channels last."""
    (n, _, h, w), (out, channels, *kernel) = x.shape, weight.shape
    padded = x.new_zeros(n, h + 2 * padding[0], w + 2 * padding[1], channels)
    padded[:, padding[0] : padding[0] + h, padding[1] : padding[1] + w] = x.permute(0, 2, 3, 1)
    picture, row, column, channel = padded.stride()
    patches = padded.as_strided(
        (n, *dy.shape[2:], *kernel, channels),
        (picture, stride[0] * row, stride[1] * column, dilation[0] * row, dilation[1] * column, channel),
    ).reshape(n * dy.shape[2] * dy.shape[3], -1)
    product = dy.permute(0, 2, 3, 1).reshape(-1, out).t() @ patches
    return product.view(out, *kernel, channels).permute(0, 3, 1, 2)
