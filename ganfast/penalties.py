"""Gradient penalties by their definitions: eager autograd, the oracle of every faster engine.

Pitfalls that other toolkits fell into, kept as tests: the norm is per sample over all of C, H and W; epsilon is per sample; the
norm is safe at zero; norm and penalty are float32 under bf16; interpolates are detached from both sides.
"""

import torch
from torch import Tensor, nn

from ganfast.config import PenaltyConfig
from ganfast.models import judge
from ganfast.models.parts import full_precision


def input_gradient(score: Tensor, x: Tensor) -> Tensor:
    """d score_n / d x_n for every sample, float32 or more, (N, C, H, W), itself differentiable.

    The sum separates into samples because no sample's score depends on another's picture.
    """
    (gradient,) = torch.autograd.grad(score.sum(), x, create_graph=True)
    return full_precision(gradient)


def squared_norm(gradient: Tensor) -> Tensor:
    """|g_n|^2 over everything but the batch, (N,)."""
    return gradient.flatten(1).square().sum(1)


def norm(gradient: Tensor) -> Tensor:
    """|g_n|, (N,). Its derivative at 0 is 0, where that of a bare square root is infinite."""
    return torch.linalg.vector_norm(gradient.flatten(1), dim=1)


def norm_penalty(config: PenaltyConfig, norms: Tensor) -> Tensor:
    """weight (|g| - target)^2 per sample, (N,); one-sided: 0 below the target. WGAN-GP, arXiv:1704.00028, eq. 3 and section 4."""
    excess = norms - config.target
    return config.weight * (excess.relu() if config.one_sided else excess).square()


def zero_centred_penalty(config: PenaltyConfig, gradient: Tensor) -> Tensor:
    """weight / 2 |g|^2 per sample, (N,). R1 and R2, arXiv:1801.04406, eq. 9 and 10."""
    return config.weight / 2 * squared_norm(gradient)


def interpolate(real: Tensor, fake: Tensor, eps: Tensor) -> Tensor:
    """eps real + (1 - eps) fake, one eps (N,) a sample: the points that WGAN-GP penalises, detached, requiring a gradient."""
    eps = eps.view(-1, *[1] * (real.dim() - 1))
    return (eps * real.detach() + (1 - eps) * fake.detach()).requires_grad_()


def perturb(real: Tensor, noise: Tensor) -> Tensor:
    """Reals moved by 0.5 std(batch) * noise, noise uniform in [0, 1): the points that DRAGAN penalises. arXiv:1705.07215.

    The paper's code draws uniform noise scaled by the standard deviation of the batch, which is what everyone reproduces.
    """
    real = real.detach()
    return (real + 0.5 * real.std() * noise).requires_grad_()


def penalty_at(config: PenaltyConfig, critic: nn.Module, points: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
    """Penalty (N,) and gradient norms (N,) at points of their own (WGAN-GP, DRAGAN)."""
    norms = norm(input_gradient(judge(critic, points, labels).score, points))
    return norm_penalty(config, norms), norms
