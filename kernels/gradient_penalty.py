"""From the input gradients of N samples to what a gradient penalty needs: values, norms, and the direction u = d penalty / d g.

norm penalty  weight (|g| - target)^2, one-sided: 0 below the target    WGAN-GP, arXiv:1704.00028, eq. 3; DRAGAN, arXiv:1705.07215
zero-centred  weight / 2 |g|^2                                          R1 and R2, arXiv:1801.04406, eq. 9 and 10
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Penalised(NamedTuple):
    """Float32 or more throughout."""

    value: Tensor  # (N,)
    norm: Tensor  # |g_n|, (N,)
    direction: Tensor  # like g: scale * d value_n / d g_n


def gradient_penalty_reference(
    g: Tensor, weight: float, target: float, one_sided: bool, zero_centred: bool, scale: float
) -> Penalised:
    """Per-sample norm over everything but the batch, coefficient, direction; where g is 0 the direction is 0.

    Args:
        g: input gradients (N, ...), float32 or float64.
        weight: of the penalty.
        target, one_sided: of the norm penalty.
        zero_centred: which of the two.
        scale: what the direction is multiplied by: 1 / N for the gradient of a mean.
    """
    norm = torch.linalg.vector_norm(g.flatten(1), dim=1)
    if zero_centred:
        value, coefficient = weight / 2 * norm.square(), torch.full_like(norm, weight * scale)
    else:
        excess = norm - target
        excess = excess.relu() if one_sided else excess
        value = weight * excess.square()
        coefficient = torch.where(norm > 0, 2 * weight * scale * excess / norm, 0.0)
    return Penalised(value, norm, coefficient.view(-1, *[1] * (g.dim() - 1)) * g)
