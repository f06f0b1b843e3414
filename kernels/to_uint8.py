"""The image tail: float pictures in [-1, 1], channels first, to the uint8 pictures that files and screens want."""

import torch
from torch import Tensor


def to_uint8_reference(pictures: Tensor) -> Tensor:
    """round((x + 1) * 127.5), clipped to 0 .. 255.

    Args:
        pictures: (N, C, H, W), any float dtype; computed in float32, ties to even.

    Returns:
        uint8 (N, H, W, C), contiguous.
    """
    scaled = ((pictures.float() + 1) * 127.5).round().clamp(0, 255)
    return scaled.permute(0, 2, 3, 1).to(torch.uint8).contiguous()
