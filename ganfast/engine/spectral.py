"""A weight over the estimate of its largest singular value (Miyato 2018, arXiv:1802.05957), and the way back, without autograd.

What `torch.nn.utils.parametrizations.spectral_norm` computes, on the same buffers, in the order in which weights lie in memory:
torch's copies a weight in channels-last layout in every use, and differentiates the quotient operation by operation.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _SpectralNorm

Back = Callable[[Tensor], Tensor]  # gradient of the normalised weight -> gradient of the weight


def spectral_of(module: nn.Module, tensor: str) -> _SpectralNorm | None:
    """The spectral normalisation of one of the module's tensors, where `normalised` can take its place."""
    chain: Any = module.parametrizations[tensor]  # type: ignore[index]
    if len(chain) != 1 or type(chain[0]) is not _SpectralNorm:
        return None
    weight, norm = chain.original, chain[0]
    dense = weight.is_contiguous() or (weight.dim() == 4 and weight.is_contiguous(memory_format=torch.channels_last))
    return norm if norm.dim == 0 and weight.dim() > 1 and dense else None


@torch.no_grad()
def normalised(weight: Tensor, norm: _SpectralNorm) -> tuple[Tensor, Back]:
    """``weight`` (out, ...) over sigma = u^T W v, improving u and v by the module's power iterations if it is in training mode.

    With u and v held fixed, dW = (g - <g, W / sigma> u v^T) / sigma: equation 12 there.
    """
    last = not weight.is_contiguous()  # a convolution's, channels last
    matrix = (weight.permute(0, 2, 3, 1) if last else weight).flatten(1)
    v = norm._v.view(weight.shape[1:]).permute(1, 2, 0).flatten() if last else norm._v
    u = norm._u
    if norm.training:
        for _ in range(norm.n_power_iterations):
            u = F.normalize(torch.mv(matrix, v), dim=0, eps=norm.eps)
            v = F.normalize(torch.mv(matrix.t(), u), dim=0, eps=norm.eps)
        norm._u.copy_(u)
        norm._v.view(weight.shape[1:]).copy_(v.view(*weight.shape[2:], -1).permute(2, 0, 1) if last else v.view(weight.shape[1:]))
    u, v = u.clone(), v.clone()  # the buffers move on
    sigma = u.dot(torch.mv(matrix, v))
    quotient = weight / sigma

    @torch.no_grad()
    def back(gradient: Tensor) -> Tensor:
        along = (gradient * quotient).sum()
        outer = torch.outer(u * along, v)
        shaped = outer.view(len(u), *weight.shape[2:], -1).permute(0, 3, 1, 2) if last else outer.view(weight.shape)
        return (gradient - shaped) / sigma

    return quotient, back
