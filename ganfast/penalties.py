"""Gradient penalties by their definitions: eager autograd, the oracle of every faster engine.

Pitfalls that other toolkits fell into, kept as tests: the norm is per sample over all of C, H and
W; epsilon is per sample; the norm is safe at zero; norm and penalty are float32 under bf16;
interpolates are detached from both sides.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ganfast.config import PenaltyConfig
from ganfast.fields import row_of
from ganfast.models import judge
from ganfast.tensors import full_precision


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
    """weight (|g| - target)^2 per sample, (N,); one-sided: 0 below the target.

    WGAN-GP, arXiv:1704.00028, eq. 3 and section 4.
    """
    excess = norms - config.target
    return config.full_weight * (excess.relu() if config.one_sided else excess).square()


def zero_centred_penalty(config: PenaltyConfig, gradient: Tensor) -> Tensor:
    """weight / 2 |g|^2 per sample, (N,). R1 and R2, arXiv:1801.04406, eq. 9 and 10."""
    return config.full_weight / 2 * squared_norm(gradient)


def interpolate(real: Tensor, fake: Tensor, eps: Tensor) -> Tensor:
    """eps real + (1 - eps) fake, one eps (N,) a sample: the points that WGAN-GP penalises.

    They are detached and require a gradient.
    """
    eps, real, fake = eps.view(-1, *[1] * (real.dim() - 1)), real.detach(), fake.detach()
    if real.is_cuda:  # in one launch
        return torch.lerp(fake, real, eps.to(real.dtype)).requires_grad_()
    return (eps * real + (1 - eps) * fake).requires_grad_()


def perturb(real: Tensor, fake: Tensor, noise: Tensor, std: Tensor | None = None) -> Tensor:
    """Reals moved by 0.5 std(batch) * noise, noise uniform in [0, 1): where DRAGAN penalises.

    arXiv:1705.07215. The paper's code draws uniform noise scaled by the standard deviation of the
    batch, which is what everyone reproduces. ``std``: that of the whole batch, 0-d, where ``real``
    is a part of one.
    """
    real = real.detach()
    return (real + 0.5 * (real.std() if std is None else std) * noise).requires_grad_()


@dataclass(frozen=True)
class Penalty:
    """Where a penalty holds the critic's gradient, and by which formula.

    A new one is a row of `PENALTIES`, the function that makes its points, and a word of
    `ganfast.config.PenaltyKind`.
    """

    formula: Literal["norm", "zero-centred"]  # `norm_penalty` or `zero_centred_penalty`
    pictures: tuple[str, ...] = ()  # of the loss itself: "real", "fake"; () = points of its own
    # real, fake, drawn, and with noise the std of the whole batch or None -> (N, C, H, W)
    points: Callable[..., Tensor] | None = None
    drawn: Literal["", "eps", "noise"] = ""  # for the points: (N,), or like the pictures; in [0, 1)

    def __post_init__(self) -> None:
        has_points = self.points is not None
        if bool(self.pictures) == has_points or has_points != bool(self.drawn):
            raise ValueError(
                f"{self}: a penalty has pictures of the loss, "
                "or points and what they are drawn from"
            )


PENALTIES = {
    "wgan-gp": Penalty("norm", points=interpolate, drawn="eps"),
    "dragan": Penalty("norm", points=perturb, drawn="noise"),
    "r1": Penalty("zero-centred", ("real",)),
    "r2": Penalty("zero-centred", ("fake",)),
    "r1+r2": Penalty("zero-centred", ("real", "fake")),
}


def penalty_of(config: PenaltyConfig) -> Penalty:
    """The row of a config's kind. Raises InputError where the table lacks it."""
    return row_of(PENALTIES, config.kind, "penalty", "ganfast.penalties.PENALTIES")


def drawn_numbers(config: PenaltyConfig) -> str:
    """What the penalty of a training draws: "eps", "noise" or ""."""
    return penalty_of(config).drawn if config.active else ""


def holds(penalties: Sequence[PenaltyConfig], picture: str) -> bool:
    """Whether a penalty holds the gradient at the loss's own pictures, "real" or "fake"."""
    return any(picture in penalty_of(p).pictures for p in penalties)


def segments_of(penalties: Sequence[PenaltyConfig]) -> list[tuple[str | int, ...]]:
    """What each penalty holds: "real", "fake", or the number of its batch of points."""
    segments: list[tuple[str | int, ...]] = []
    points = 0
    for penalty in penalties:
        segments.append(penalty_of(penalty).pictures or (points,))
        points += penalty_of(penalty).points is not None
    return segments


def points_of(
    penalties: Sequence[PenaltyConfig],
    real: Tensor,
    fake: Tensor,
    eps: Tensor | None,
    noise: Tensor | None,
    std: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """The points of each penalty that has its own, detached; torch draws numbers that are None.

    ``std``: of `perturb`.
    """
    batches = []
    for penalty in map(penalty_of, penalties):
        if penalty.points is None:
            continue
        if penalty.drawn == "eps":
            drawn = torch.rand(len(real), device=real.device) if eps is None else eps
            points = penalty.points(real, fake, drawn)
        else:
            drawn = torch.rand_like(real) if noise is None else noise
            points = penalty.points(real, fake, drawn, std)
        batches.append(points.detach())
    return tuple(batches)


def penalise(config: PenaltyConfig, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Penalty (N,) and norms (N,) of input gradients (N, C, H, W)."""
    norms = norm(gradient)
    if penalty_of(config).formula == "norm":
        return norm_penalty(config, norms), norms
    return zero_centred_penalty(config, gradient), norms


def penalty_at(
    config: PenaltyConfig, critic: nn.Module, points: Tensor, labels: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Penalty (N,) and gradient norms (N,) at points, which require a gradient."""
    return penalise(config, input_gradient(judge(critic, points, labels).score, points))
