"""Types and layouts of tensors, as networks, engines and kernels agree on them."""

from collections.abc import Mapping

import torch
from torch import Tensor


def full_precision(x: Tensor) -> Tensor:
    """float32 for half types; float32 and float64 as they are."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def laid_out_like(x: Tensor, like: Tensor) -> Tensor:
    """x with channels last in memory where ``like`` has them last.

    An operation on tensors of mixed layouts is slow.
    """
    if (
        x.dim() == 4
        and like.is_contiguous(memory_format=torch.channels_last)
        and not like.is_contiguous()
    ):
        return x.contiguous(memory_format=torch.channels_last)
    return x


def behind(x: Tensor, condition: Tensor | None) -> Tensor:
    """What a critic is shown: pictures (N, C, ...), and behind their channels those (N, K, ...) of
    the condition that they were made from."""
    if condition is None:
        return x
    return laid_out_like(torch.cat([x, laid_out_like(condition.to(x.dtype), x)], dim=1), x)


Contents = Mapping[str, Mapping[str, Tensor]]  # part -> name -> tensor
AUGMENTATION = "augmentation"  # a part of states whose probability of transforms moves
