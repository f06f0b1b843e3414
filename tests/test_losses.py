"""Losses against their papers' formulas, in probabilities and float64, by plain Python."""

import math
from typing import get_args

import pytest
import torch

from ganfast.config import PROBABILITY_LOSSES, LossConfig, LossKind
from ganfast.errors import InputError
from ganfast.losses import (
    LOSSES,
    accuracy,
    class_loss,
    critic_accuracy,
    critic_loss,
    generator_loss,
    wasserstein_estimate,
)

KINDS = list(LOSSES)
# Both sides of 0 and of the margins, pairs in either order.
REAL, FAKE = ([2.0, -1.5, 0.25, 1.0], [-0.5, 1.75, 0.0, -3.0])


def p(score):
    return 1 / (1 + math.exp(-score))


def scores(*values, dtype=torch.float64):
    return torch.tensor(values, dtype=dtype, requires_grad=True)


CRITIC = {
    "minimax": lambda r, f: -math.log(p(r)) - math.log(1 - p(f)),
    "non-saturating": lambda r, f: -math.log(p(r)) - math.log(1 - p(f)),
    "least-squares": lambda r, f: 0.5 * (r - 1) ** 2 + 0.5 * f**2,
    "hinge": lambda r, f: max(0.0, 1 - r) + max(0.0, 1 + f),
    "wasserstein": lambda r, f: f - r,
    "relativistic": lambda r, f: -math.log(p(r - f)),
}
GENERATOR = {
    "minimax": lambda r, f: math.log(1 - p(f)),
    "non-saturating": lambda r, f: -math.log(p(f)),
    "least-squares": lambda r, f: 0.5 * (f - 1) ** 2,
    "hinge": lambda r, f: -f,
    "wasserstein": lambda r, f: -f,
    "relativistic": lambda r, f: -math.log(p(f - r)),
}


def test_a_loss_is_a_row_a_word_of_the_config_and_a_second_formula_here():
    words = set(get_args(LossKind))
    assert set(LOSSES) == words, (
        "ganfast.losses.LOSSES and ganfast.config.LossKind name the same losses"
    )
    assert set(CRITIC) == set(GENERATOR) == words, (
        "write the formula of every loss a second time above"
    )
    assert {kind for kind, loss in LOSSES.items() if loss.probabilities} == set(PROBABILITY_LOSSES)


def test_a_loss_without_a_row_is_one_sentence(monkeypatch):
    monkeypatch.delitem(LOSSES, "hinge")
    with pytest.raises(
        InputError, match=r"loss 'hinge' has no row in ganfast.losses.LOSSES; there: minimax"
    ):
        critic_loss(LossConfig("hinge"), scores(1.0), scores(0.0))


@pytest.mark.parametrize("kind", KINDS)
def test_every_loss_is_its_formula_for_each_pair(kind):
    real, fake = scores(*REAL), scores(*FAKE)
    expected = torch.tensor(
        [CRITIC[kind](r, f) for r, f in zip(REAL, FAKE, strict=True)], dtype=torch.float64
    )
    torch.testing.assert_close(
        critic_loss(LossConfig(kind), real, fake).detach(), expected, rtol=1e-14, atol=1e-14
    )
    expected = torch.tensor(
        [GENERATOR[kind](r, f) for r, f in zip(REAL, FAKE, strict=True)], dtype=torch.float64
    )
    torch.testing.assert_close(
        generator_loss(LossConfig(kind), fake, real).detach(), expected, rtol=1e-14, atol=1e-14
    )


@pytest.mark.parametrize(
    ("kind", "critic", "generator"),
    [
        ("minimax", 2 * math.log(2), -math.log(2)),
        ("non-saturating", 2 * math.log(2), math.log(2)),
        ("least-squares", 0.5, 0.5),
        ("hinge", 2.0, 0.0),
        ("wasserstein", 0.0, 0.0),
        ("relativistic", math.log(2), math.log(2)),
    ],
)
def test_losses_of_a_critic_that_knows_nothing(kind, critic, generator):
    zero = scores(0.0)
    assert critic_loss(LossConfig(kind), zero, zero).item() == pytest.approx(critic, abs=1e-15)
    expected = pytest.approx(generator, abs=1e-15)
    assert generator_loss(LossConfig(kind), zero, zero).item() == expected


@pytest.mark.parametrize("kind", KINDS)
def test_descent_raises_reals_and_lowers_fakes_in_the_critic_and_raises_fakes_in_the_generator(
    kind,
):
    # Inside the hinge's margins, between the targets of least squares.
    real, fake = (scores(0.2, -0.4), scores(0.3, 0.1))
    by_real, by_fake = torch.autograd.grad(
        critic_loss(LossConfig(kind), real, fake).sum(), (real, fake)
    )
    assert (by_real < -0.1).all()
    assert (by_fake > 0.09).all()
    (by_fake,) = torch.autograd.grad(
        generator_loss(LossConfig(kind), fake, real.detach()).sum(), fake
    )
    assert (by_fake < -0.1).all()


def test_minimax_saturates_where_the_critic_is_sure_and_non_saturating_does_not():
    fake = scores(-20.0)  # p = 2e-9: surely a fake
    (minimax,) = torch.autograd.grad(generator_loss(LossConfig("minimax"), fake), fake)
    (heuristic,) = torch.autograd.grad(generator_loss(LossConfig("non-saturating"), fake), fake)
    assert minimax.item() == pytest.approx(-p(-20), rel=1e-12)  # d/df log(1 - p) = -p
    assert heuristic.item() == pytest.approx(-(1 - p(-20)), rel=1e-12)


def test_the_minimax_game_is_zero_sum_in_the_fakes():
    real, fake = scores(*REAL), scores(*FAKE)
    (critic,) = torch.autograd.grad(critic_loss(LossConfig("minimax"), real, fake).sum(), fake)
    (generator,) = torch.autograd.grad(generator_loss(LossConfig("minimax"), fake).sum(), fake)
    torch.testing.assert_close(critic, -generator, rtol=1e-15, atol=0)


def test_hinge_leaves_scores_beyond_the_margin_alone():
    real, fake = scores(1.5, 0.5), scores(-0.5, -1.5)
    by_real, by_fake = torch.autograd.grad(
        critic_loss(LossConfig("hinge"), real, fake).sum(), (real, fake)
    )
    assert by_real.tolist() == [0, -1]
    assert by_fake.tolist() == [1, 0]


@pytest.mark.parametrize("kind", ["minimax", "non-saturating", "relativistic"])
def test_sure_critics_overflow_nothing(kind):
    real, fake = scores(-1e4, 1e4, dtype=torch.float32), scores(1e4, -1e4, dtype=torch.float32)
    wrong, right = critic_loss(LossConfig(kind), real, fake).tolist()
    assert wrong == 2e4  # the logarithm of a probability too small for any float
    assert right == 0
    losses = critic_loss(LossConfig(kind), real, fake) + generator_loss(
        LossConfig(kind), fake, real
    )
    for gradient in torch.autograd.grad(losses.sum(), (real, fake)):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("kind", ["minimax", "non-saturating"])
def test_label_smoothing_moves_the_target_of_reals_only(kind):
    s, config = 0.1, LossConfig(kind, label_smoothing=0.1)
    real, fake = scores(*REAL), scores(*FAKE)
    actual = critic_loss(config, real, fake)
    for i, (r, f) in enumerate(zip(REAL, FAKE, strict=True)):
        assert actual[i].item() == pytest.approx(
            -(1 - s) * math.log(p(r)) - s * math.log(1 - p(r)) - math.log(1 - p(f)), rel=1e-13
        )
    best = scores(math.log((1 - s) / s))  # p(real) = 0.9 is the best answer
    (slope,) = torch.autograd.grad(critic_loss(config, best, scores(0.0)), best)
    assert abs(slope.item()) < 1e-15
    # One-sided: fakes, and the generator, see no difference.
    plain = LossConfig(kind)
    smooth, sharp = (
        torch.autograd.grad(critic_loss(c, real, fake).sum(), fake)[0] for c in (config, plain)
    )
    torch.testing.assert_close(smooth, sharp, rtol=0, atol=0)
    torch.testing.assert_close(
        generator_loss(config, fake), generator_loss(plain, fake), rtol=0, atol=0
    )


@pytest.mark.parametrize("kind", ["least-squares", "hinge", "wasserstein", "relativistic"])
def test_label_smoothing_is_refused_where_the_loss_has_no_probabilities(kind):
    with pytest.raises(InputError, match=f"label_smoothing.*{kind}"):
        LossConfig(kind, label_smoothing=0.1)


def test_relativistic_losses_see_only_differences_within_pairs():
    config = LossConfig("relativistic")
    real = scores(*REAL)
    fake = scores(*FAKE)
    shift = torch.tensor([7.0, -3.0, 0.5, 100.0], dtype=torch.float64)
    torch.testing.assert_close(
        critic_loss(config, real + shift, fake + shift), critic_loss(config, real, fake)
    )
    torch.testing.assert_close(
        generator_loss(config, fake + shift, real + shift), generator_loss(config, fake, real)
    )
    # The pairing counts: other partners, another loss.
    others = sum(CRITIC["relativistic"](r, f) for r, f in zip(REAL, reversed(FAKE), strict=True))
    assert abs(others - critic_loss(config, real, fake).sum().item()) > 0.3
    assert critic_loss(config, real, fake.flip(0)).sum().item() == pytest.approx(others, rel=1e-13)


def test_the_relativistic_generator_needs_reals_and_the_others_ignore_them():
    fake = scores(*FAKE)
    with pytest.raises(ValueError, match="relativistic.*scores"):
        generator_loss(LossConfig("relativistic"), fake)
    for kind in KINDS[:-1]:
        with_reals = generator_loss(LossConfig(kind), fake, scores(*REAL))
        torch.testing.assert_close(
            generator_loss(LossConfig(kind), fake), with_reals, rtol=0, atol=0
        )


def test_class_loss_is_minus_the_log_probability_of_the_label():
    logits = torch.tensor([[0.0, 0.0, 0.0], [1.0, 2.0, -1.0]], dtype=torch.float64)
    total = math.exp(1) + math.exp(2) + math.exp(-1)
    expected = torch.tensor([math.log(3), -math.log(math.exp(-1) / total)], dtype=torch.float64)
    torch.testing.assert_close(
        class_loss(logits, torch.tensor([1, 2])), expected, rtol=1e-14, atol=0
    )


# Of a real and of a fake that the critic scores alike: whether it is told right.
TOLD = {
    "minimax": lambda r, f: (p(r) > 0.5, p(f) < 0.5),
    "non-saturating": lambda r, f: (p(r) > 0.5, p(f) < 0.5),
    # nearer to the target of its kind than to the other one
    "least-squares": lambda r, f: (abs(r - 1) < abs(r), abs(f) < abs(f - 1)),
    "hinge": lambda r, f: (r > 0, f < 0),
    "wasserstein": lambda r, f: (r > f, r > f),
    "relativistic": lambda r, f: (r > f, r > f),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_accuracy_of_a_critic_is_the_share_of_pictures_told_right(kind):
    real = [2.0, -1.5, 0.25, 1.0, 0.75]
    fake = [-0.5, 1.75, 0.3, 0.9, -3.0]
    right = [TOLD[kind](r, f) for r, f in zip(real, fake, strict=True)]
    expected = [sum(column) / 5 for column in zip(*right, strict=True)]
    shares = critic_accuracy(LossConfig(kind), scores(*real), scores(*fake))
    assert [share.item() for share in shares] == pytest.approx(expected, rel=1e-6)
    assert all(share.shape == () and not share.requires_grad for share in shares)
    assert 0 < min(expected) < 1
    # Scores that a loss cannot tell apart have one accuracy: a number added to all of them.
    moved = critic_accuracy(LossConfig(kind), scores(*real) + 7, scores(*fake) + 7)
    assert (moved == shares) == (LOSSES[kind].middle is None)


def test_accuracy_and_the_wasserstein_estimate():
    logits = torch.tensor([[3.0, 1, 2], [0, 5, 1], [9, 1, 2], [0, 1, 2]])
    assert accuracy(logits, torch.tensor([0, 1, 2, 2])).item() == 0.75
    estimate = wasserstein_estimate(scores(4.0, 2.0), scores(-1.0, 2.0))
    assert estimate.shape == ()
    assert estimate.item() == 2.5
