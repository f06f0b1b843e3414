"""Adversarial losses: functions of scores, per pair of samples (N,).

A loss is low when the network that minimises it does well. The critic wants reals to score high and
fakes low; the generator wants its fakes to score high. Scores are logits where the loss speaks of
probabilities: p = sigmoid(score), 1 = real.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ganfast.config import LossConfig
from ganfast.fields import row_of


def bce_critic(real: Tensor, fake: Tensor, smoothing: float = 0.0) -> Tensor:
    """-(1 - s) log p(real) - s log(1 - p(real)) - log(1 - p(fake)).

    GAN, arXiv:1406.2661, eq. 1; s: arXiv:1606.03498.
    """
    return F.softplus(-real) + smoothing * real + F.softplus(fake)  # softplus(r) = softplus(-r) + r


def minimax_generator(fake: Tensor) -> Tensor:
    """log(1 - p(fake)): the generator's side of eq. 1. Saturates where the critic is sure."""
    return -F.softplus(fake)


def non_saturating_generator(fake: Tensor) -> Tensor:
    """-log p(fake). GAN, arXiv:1406.2661, section 3."""
    return F.softplus(-fake)


def least_squares_critic(real: Tensor, fake: Tensor) -> Tensor:
    """LSGAN, arXiv:1611.04076, eq. 9: a = 0, b = c = 1."""
    return 0.5 * (real - 1).square() + 0.5 * fake.square()


def least_squares_generator(fake: Tensor) -> Tensor:
    """LSGAN, eq. 9."""
    return 0.5 * (fake - 1).square()


def hinge_critic(real: Tensor, fake: Tensor) -> Tensor:
    """arXiv:1802.05957, eq. 16."""
    return F.relu(1 - real) + F.relu(1 + fake)


def wasserstein_critic(real: Tensor, fake: Tensor) -> Tensor:
    """arXiv:1701.07875, eq. 2: minus the estimate of the distance."""
    return fake - real


def wasserstein_generator(fake: Tensor) -> Tensor:
    """arXiv:1701.07875, algorithm 1; of the hinge loss too, arXiv:1802.05957, eq. 17."""
    return -fake


def relativistic_critic(real: Tensor, fake: Tensor) -> Tensor:
    """RpGAN, arXiv:1807.00734: each real against the fake it is paired with."""
    return F.softplus(fake - real)


def relativistic_generator(fake: Tensor, real: Tensor) -> Tensor:
    """RpGAN: low when fakes outscore the reals they are paired with."""
    return F.softplus(real - fake)


@dataclass(frozen=True)
class Loss:
    """An adversarial loss. A new one: a row of `LOSSES`, a word of `ganfast.config.LossKind`."""

    critic: Callable[[Tensor, Tensor], Tensor]  # scores of reals and fakes, (N,) -> (N,)
    # scores of fakes -> (N,); where it pairs, those of reals as well
    generator: Callable[..., Tensor]
    pairs: bool = False  # the generator's fakes are compared with the scores of reals
    # scores are logits of "this is real": label smoothing has a meaning
    probabilities: bool = False
    # the score halfway between what the critic wants of reals and of fakes; None = a number added
    # to all scores changes no loss, so that one score alone says nothing
    middle: float | None = None


LOSSES = {
    "minimax": Loss(bce_critic, minimax_generator, probabilities=True, middle=0.0),
    "non-saturating": Loss(bce_critic, non_saturating_generator, probabilities=True, middle=0.0),
    "least-squares": Loss(least_squares_critic, least_squares_generator, middle=0.5),
    "hinge": Loss(hinge_critic, wasserstein_generator, middle=0.0),
    "wasserstein": Loss(wasserstein_critic, wasserstein_generator),
    "relativistic": Loss(relativistic_critic, relativistic_generator, pairs=True),
}


def loss_of(config: LossConfig) -> Loss:
    """The row of a config's kind. Raises InputError where the table lacks it."""
    return row_of(LOSSES, config.kind, "loss", "ganfast.losses.LOSSES")


def critic_loss(config: LossConfig, real: Tensor, fake: Tensor) -> Tensor:
    """The configured critic loss per pair, (N,), of scores (N,)."""
    if config.label_smoothing:
        return bce_critic(real, fake, config.label_smoothing)
    return loss_of(config).critic(real, fake)


def generator_loss(config: LossConfig, fake: Tensor, real: Tensor | None = None) -> Tensor:
    """The configured generator loss per sample, (N,). A loss that pairs needs ``real`` scores."""
    loss = loss_of(config)
    if not loss.pairs:
        return loss.generator(fake)
    if real is None:
        raise ValueError(
            f"the {config.kind} generator loss pairs fakes with reals: give scores of both"
        )
    return loss.generator(fake, real)


def class_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """-log P(class = label), (N,), of class logits (N, K). ACGAN, arXiv:1610.09585, eq. 3."""
    return F.cross_entropy(logits, labels, reduction="none")


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Share of samples whose largest class logit is their label, 0-d."""
    return (logits.argmax(1) == labels).float().mean()


def critic_accuracy(config: LossConfig, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    """Share of reals that score above the loss's middle, and of fakes that score below it, 0-d.

    The middle is 0 for logits and the hinge loss, and 1/2 for least squares, whose targets are 0
    and 1. Wasserstein and relativistic scores (N,) have no middle. There, both shares are that of
    the pairs whose real scores above its fake: 1/2 for a critic that knows nothing, as a class may
    have an offset of its own and the two of a pair have one class.
    """
    middle = loss_of(config).middle
    if middle is None:
        share = (real > fake).float().mean()
        return share, share
    return (real > middle).float().mean(), (fake < middle).float().mean()


def wasserstein_estimate(real: Tensor, fake: Tensor) -> Tensor:
    """mean score of reals - mean score of fakes, 0-d.

    For a 1-Lipschitz critic it is a lower bound of the Wasserstein-1 distance.
    """
    return torch.mean(real) - torch.mean(fake)
