"""Gradient penalties by property: other implementations' mistakes are shown to be caught.

A property check takes a penalty, ``penalty(critic, real, fake, eps) -> values (N,)``, and asserts
one thing about it on a critic of known gradient: w . x has w everywhere, a |x|^2 / 2 has a x.
"""

import math
from typing import get_args

import pytest
import torch
from torch import nn

from ganfast.config import LossConfig, PenaltyConfig, PenaltyKind
from ganfast.engine import make_critic_step
from ganfast.errors import InputError
from ganfast.models.parts import Critic
from ganfast.penalties import (
    PENALTIES,
    Penalty,
    input_gradient,
    interpolate,
    norm,
    norm_penalty,
    penalty_at,
    perturb,
    squared_norm,
    zero_centred_penalty,
)

SHAPE = (3, 5, 4)  # no two alike: a norm over the wrong axes has the wrong shape or value
WGAN_GP = PenaltyConfig("wgan-gp", weight=10.0)
ROUNDING = 1e-6  # of float32, in which the penalty may compute


class LinearCritic(nn.Module):
    """w . x + b: the gradient is w for every picture."""

    def __init__(self, w):
        super().__init__()
        self.w = nn.Parameter(w)
        self.bias = nn.Parameter(torch.tensor(0.5, dtype=w.dtype))

    def forward(self, x):
        return (x * self.w).flatten(1).sum(1) + self.bias


class QuadraticCritic(nn.Module):
    """a |x|^2 / 2: the gradient is a x."""

    def __init__(self, a):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a, dtype=torch.float64))

    def forward(self, x):
        return self.a / 2 * x.square().flatten(1).sum(1)


def pictures(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, *SHAPE, dtype=torch.float64, generator=generator)


def lengths(x):
    """|x_n| in float64, one picture at a time."""
    return torch.tensor(
        [math.sqrt(sum(v * v for v in picture.flatten().tolist())) for picture in x.detach()],
        dtype=torch.float64,
    )


def right(critic, real, fake, eps):
    values, _ = penalty_at(WGAN_GP, critic, interpolate(real, fake, eps), None)
    return values


# Properties.


def one_norm_per_picture_over_all_its_pixels(penalty):
    w = pictures(1)[0]
    values = penalty(
        LinearCritic(w), pictures(4, 1), pictures(4, 2), torch.rand(4, dtype=torch.float64)
    )
    expected = 10 * (lengths(w[None]) - 1) ** 2
    assert values.shape == (4,)
    assert torch.allclose(values.double(), expected.expand(4), rtol=ROUNDING)


def pictures_do_not_mix(penalty):
    real = pictures(3, 1) * torch.tensor([0.1, 1.0, 3.0], dtype=torch.float64).view(3, 1, 1, 1)
    a = 0.7
    values = penalty(QuadraticCritic(a), real, pictures(3, 2), torch.ones(3, dtype=torch.float64))
    assert values.shape == (3,)
    assert torch.allclose(values.double(), 10 * (a * lengths(real) - 1) ** 2, rtol=1e-5)


def every_picture_has_its_own_place_between(penalty):
    real, fake, a = pictures(3, 1), pictures(3, 2), 2.0
    eps = torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)
    between = torch.stack([e * r + (1 - e) * f for e, r, f in zip(eps, real, fake, strict=True)])
    values = penalty(QuadraticCritic(a), real, fake, eps)
    assert torch.allclose(values.double(), 10 * (a * lengths(between) - 1) ** 2, rtol=1e-5)


def nothing_reaches_the_pictures(penalty):
    real, fake = pictures(2, 1).requires_grad_(), pictures(2, 2).requires_grad_()
    values = penalty(
        QuadraticCritic(2.0), real * 1, fake * 1, torch.tensor([0.3, 0.6], dtype=torch.float64)
    )
    if values.requires_grad:
        values.sum().backward()
    assert real.grad is None
    assert fake.grad is None


def it_trains_the_critic(penalty):
    w = pictures(1)[0]
    critic = LinearCritic(w)
    values = penalty(critic, pictures(4, 1), pictures(4, 2), torch.rand(4, dtype=torch.float64))
    assert values.requires_grad
    gradient, by_bias = torch.autograd.grad(
        values.mean(), (critic.w, critic.bias), allow_unused=True
    )
    length = lengths(w[None])
    assert torch.allclose(gradient, 20 * (length - 1) * w / length, rtol=1e-5)
    assert by_bias is None or by_bias == 0


def a_gradient_of_zero_is_no_nan(penalty):
    critic = LinearCritic(torch.zeros(SHAPE, dtype=torch.float64))
    values = penalty(critic, pictures(2, 1), pictures(2, 2), torch.rand(2, dtype=torch.float64))
    assert values.tolist() == [10.0, 10.0]
    if values.requires_grad:
        (gradient,) = torch.autograd.grad(values.mean(), critic.w)
        assert (gradient == 0).all()  # the norm's smallest subgradient


PROPERTIES = [
    one_norm_per_picture_over_all_its_pixels,
    pictures_do_not_mix,
    every_picture_has_its_own_place_between,
    nothing_reaches_the_pictures,
    it_trains_the_critic,
    a_gradient_of_zero_is_no_nan,
]


# Penalties as found elsewhere, each wrong in one way.


def textbook(
    critic, x, norms=lambda g: torch.linalg.vector_norm(g.flatten(1), dim=1), create_graph=True
):
    (gradient,) = torch.autograd.grad(critic(x).sum(), x, create_graph=create_graph)
    return 10 * (norms(gradient) - 1) ** 2


def between(real, fake, eps):
    eps = eps.view(-1, 1, 1, 1)
    return (eps * real + (1 - eps) * fake).detach().requires_grad_()


def over_channels(critic, real, fake, eps):
    return textbook(critic, between(real, fake, eps), lambda g: g.norm(dim=1)).flatten(1).mean(1)


def over_the_batch(critic, real, fake, eps):
    return textbook(critic, between(real, fake, eps), lambda g: g.norm().expand(len(g)))


def mean_over_pixels(critic, real, fake, eps):
    return textbook(
        critic, between(real, fake, eps), lambda g: g.flatten(1).square().mean(1).sqrt()
    )


def one_eps_for_the_batch(critic, real, fake, eps):
    return textbook(critic, between(real, fake, eps[:1].expand(len(real))))


def eps_the_other_way_round(critic, real, fake, eps):
    return textbook(critic, between(fake, real, eps))


def fakes_not_detached(critic, real, fake, eps):
    eps = eps.view(-1, 1, 1, 1)
    x = eps * real.detach() + (1 - eps) * fake
    return textbook(critic, x if x.requires_grad else x.requires_grad_())


def reals_not_detached(critic, real, fake, eps):
    eps = eps.view(-1, 1, 1, 1)
    x = eps * real + (1 - eps) * fake.detach()
    return textbook(critic, x if x.requires_grad else x.requires_grad_())


def bare_square_root(critic, real, fake, eps):
    return textbook(critic, between(real, fake, eps), lambda g: g.flatten(1).square().sum(1).sqrt())


def root_with_a_large_safety_term(critic, real, fake, eps):
    return textbook(
        critic, between(real, fake, eps), lambda g: (g.flatten(1).square().sum(1) + 1e-3).sqrt()
    )


def forgotten_create_graph(critic, real, fake, eps):
    return textbook(critic, between(real, fake, eps), create_graph=False)


def squared_norm_instead(critic, real, fake, eps):
    return textbook(critic, between(real, fake, eps), lambda g: g.flatten(1).square().sum(1))


WRONG = [
    (over_channels, one_norm_per_picture_over_all_its_pixels),
    (over_the_batch, pictures_do_not_mix),
    (over_the_batch, one_norm_per_picture_over_all_its_pixels),
    (mean_over_pixels, one_norm_per_picture_over_all_its_pixels),
    (squared_norm_instead, one_norm_per_picture_over_all_its_pixels),
    (one_eps_for_the_batch, every_picture_has_its_own_place_between),
    (eps_the_other_way_round, every_picture_has_its_own_place_between),
    (fakes_not_detached, nothing_reaches_the_pictures),
    (reals_not_detached, nothing_reaches_the_pictures),
    (bare_square_root, a_gradient_of_zero_is_no_nan),
    (root_with_a_large_safety_term, a_gradient_of_zero_is_no_nan),
    (forgotten_create_graph, it_trains_the_critic),
]


def name_of(value):
    return value.__name__


@pytest.mark.parametrize("holds", PROPERTIES, ids=name_of)
def test_property(holds):
    holds(right)


@pytest.mark.parametrize(("wrong", "property_"), WRONG, ids=name_of)
def test_a_wrong_penalty_is_rejected(wrong, property_):
    with pytest.raises(AssertionError):
        property_(wrong)


@pytest.mark.parametrize(
    "wrong",
    [bare_square_root, fakes_not_detached, one_eps_for_the_batch, forgotten_create_graph],
    ids=name_of,
)
def test_each_property_is_needed(wrong):
    """Penalties wrong in one way only: no other property would have caught them."""
    rejecting = {property_ for mutant, property_ in WRONG if mutant is wrong}
    for holds in PROPERTIES:
        if holds not in rejecting:
            holds(wrong)


# The definitions.


def test_norms_are_of_each_picture_and_match_their_squares():
    g = pictures(5)
    torch.testing.assert_close(norm(g), lengths(g), rtol=1e-14, atol=0)
    torch.testing.assert_close(squared_norm(g), lengths(g) ** 2, rtol=1e-14, atol=0)


def test_the_norm_and_its_gradient_are_exact_zeros_at_zero():
    g = torch.cat([torch.zeros(1, *SHAPE), torch.ones(1, *SHAPE)]).double().requires_grad_()
    (gradient,) = torch.autograd.grad(norm(g).sum(), g)
    assert norm(g)[0] == 0
    assert (gradient[0] == 0).all()
    torch.testing.assert_close(
        gradient[1], torch.full(SHAPE, 60**-0.5, dtype=torch.float64), rtol=1e-12, atol=0
    )


def test_the_input_gradient_is_each_scores_own_and_differentiable():
    critic, x = QuadraticCritic(1.5), pictures(3).requires_grad_()
    gradient = input_gradient(critic(x), x)
    torch.testing.assert_close(gradient.double(), 1.5 * x, rtol=ROUNDING, atol=0)
    (by_a,) = torch.autograd.grad(squared_norm(gradient).sum(), critic.a)  # sum of a^2 |x|^2
    torch.testing.assert_close(by_a, 2 * 1.5 * (lengths(x) ** 2).sum(), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("one_sided", "target", "expected"),
    [
        (False, 1.0, [10.0, 2.5, 0.0, 40.0]),
        (True, 1.0, [0.0, 0.0, 0.0, 40.0]),
        (False, 0.0, [0.0, 2.5, 10.0, 90.0]),
        (True, 0.5, [0.0, 0.0, 2.5, 62.5]),
    ],
)
def test_norm_penalties_by_hand(one_sided, target, expected):
    norms = torch.tensor([0.0, 0.5, 1.0, 3.0], dtype=torch.float64)
    config = PenaltyConfig("wgan-gp", weight=10.0, target=target, one_sided=one_sided)
    assert norm_penalty(config, norms).tolist() == expected


def test_one_sided_penalties_push_only_from_above():
    norms = torch.tensor([0.2, 3.0], dtype=torch.float64, requires_grad=True)
    for one_sided, slopes in ((False, [-16.0, 40.0]), (True, [0.0, 40.0])):  # 2 weight (norm - 1)
        config = PenaltyConfig("wgan-gp", weight=10.0, one_sided=one_sided)
        (gradient,) = torch.autograd.grad(norm_penalty(config, norms).sum(), norms)
        assert gradient.tolist() == pytest.approx(slopes, rel=1e-14)


def test_zero_centred_penalties_weigh_half_gamma():
    g = torch.zeros(2, *SHAPE, dtype=torch.float64)
    g[0, 0, 0, 0], g[0, 2, 4, 3], g[1, 1, 1, 1] = 3, 4, -2  # |g|^2 = 25 and 4
    assert zero_centred_penalty(PenaltyConfig("r1", weight=3.0), g).tolist() == [37.5, 6.0]


def test_interpolates_lie_between_and_start_a_graph_of_their_own():
    real, fake = pictures(3, 1).requires_grad_(), pictures(3, 2).requires_grad_()
    points = interpolate(real, fake, torch.tensor([1.0, 0.0, 0.25], dtype=torch.float64))
    assert torch.equal(points[0], real[0])
    assert torch.equal(points[1], fake[1])
    torch.testing.assert_close(points[2], 0.25 * real[2] + 0.75 * fake[2], rtol=1e-15, atol=1e-15)
    assert points.is_leaf
    assert points.requires_grad


def test_dragan_points_are_reals_moved_by_half_a_standard_deviation_of_the_batch():
    real, noise = pictures(6, 1).requires_grad_(), torch.rand(6, *SHAPE, dtype=torch.float64)
    flat = real.detach().flatten().tolist()
    mean = sum(flat) / len(flat)
    deviation = math.sqrt(sum((v - mean) ** 2 for v in flat) / (len(flat) - 1))
    points = perturb(real, real, noise)
    torch.testing.assert_close(
        points.detach(), real.detach() + 0.5 * deviation * noise, rtol=1e-13, atol=1e-13
    )
    assert points.is_leaf
    assert points.requires_grad
    assert torch.equal(perturb(real, real, noise * 0), real)


# The table.


def norm_by_hand(points):
    return 10 * (0.3 * lengths(points) - 1) ** 2


def square_by_hand(points):
    return 10 / 2 * (0.3 * lengths(points)) ** 2


def of_shape(numbers):
    return numbers.view(-1, 1, 1, 1)


# Each kind's penalty at weight 10 for the critic 0.3 |x|^2 / 2 with gradient 0.3 x, per pair.
BY_HAND = {
    "wgan-gp": lambda r, f, eps, noise: norm_by_hand(of_shape(eps) * r + of_shape(1 - eps) * f),
    "dragan": lambda r, f, eps, noise: norm_by_hand(r + noise * r.flatten().std() / 2),
    "r1": lambda r, f, eps, noise: square_by_hand(r),
    "r2": lambda r, f, eps, noise: square_by_hand(f),
    "r1+r2": lambda r, f, eps, noise: square_by_hand(r) + square_by_hand(f),
}


def test_a_penalty_is_a_row_a_word_of_the_config_and_a_second_formula_here():
    words = set(get_args(PenaltyKind)) - {"none"}
    assert set(PENALTIES) == words, (
        "ganfast.penalties.PENALTIES and ganfast.config.PenaltyKind name the same kinds"
    )
    assert set(BY_HAND) == words, "write the formula of every penalty a second time above"


@pytest.mark.parametrize("kind", PENALTIES)
def test_every_penalty_is_its_formula(kind):
    real, fake, noise = pictures(5, 1), pictures(5, 2), pictures(5, 3)
    eps = torch.rand(5, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    step = make_critic_step(
        QuadraticCritic(0.3), "wasserstein", PenaltyConfig(kind, weight=10.0), engine="reference"
    )
    found = step(real, fake, eps=eps, noise=noise)["penalty"]
    torch.testing.assert_close(
        found, BY_HAND[kind](real, fake, eps, noise).mean(), rtol=1e-12, atol=0
    )


def test_a_penalty_without_a_row_is_one_sentence(monkeypatch):
    monkeypatch.delitem(PENALTIES, "r2")
    step = make_critic_step(QuadraticCritic(0.3), "wasserstein", "r2", engine="reference")
    with pytest.raises(
        InputError, match=r"penalty 'r2' has no row in ganfast.penalties.PENALTIES; there: wgan-gp"
    ):
        step(pictures(2, 1), pictures(2, 2))


@pytest.mark.parametrize(
    "half",
    [{}, {"pictures": ("real",), "drawn": "eps"}, {"points": perturb}],
    ids=["nothing", "numbers for nothing", "points of nothing"],
)
def test_a_row_that_says_half_is_refused(half):
    with pytest.raises(
        ValueError,
        match="a penalty has pictures of the loss, or points and what they are drawn from",
    ):
        Penalty("norm", **half)


# bfloat16.


class DenseCritic(nn.Module):
    """The same as a layer that autocast computes in bfloat16."""

    def __init__(self, numel):
        super().__init__()
        self.layer = nn.Linear(numel, 1)

    def forward(self, x):
        return self.layer(x.flatten(1))[:, 0]


def test_under_bf16_autocast_norm_and_penalty_are_float32():
    torch.manual_seed(0)
    critic = DenseCritic(60)
    with torch.no_grad():
        critic.layer.weight.mul_(20)  # norm about 9: bfloat16 would round it to 1/16
    points = interpolate(pictures(4, 1).float(), pictures(4, 2).float(), torch.rand(4))
    with torch.autocast("cpu", torch.bfloat16):
        assert critic(points).dtype == torch.bfloat16
        values, norms = penalty_at(WGAN_GP, critic, points, None)
    assert values.dtype == norms.dtype == torch.float32
    length = lengths(critic.layer.weight.bfloat16().double())  # the weights as the layer sees them
    torch.testing.assert_close(norms.double(), length.expand(4), rtol=ROUNDING, atol=0)
    torch.testing.assert_close(
        values.double(), (10 * (length - 1) ** 2).expand(4), rtol=1e-5, atol=0
    )
    (gradient,) = torch.autograd.grad(values.mean(), critic.layer.weight)
    assert gradient.dtype == torch.float32
    expected = 20 * (length - 1) / length * critic.layer.weight.double()
    torch.testing.assert_close(gradient.double(), expected, rtol=1.5e-2, atol=0)


def test_bf16_gradients_far_above_the_target_overflow_nothing():
    g = torch.full((1, *SHAPE), 1e4).bfloat16()
    assert norm(g.float()).dtype == torch.float32
    torch.testing.assert_close(norm(g.float()).double(), lengths(g.double()), rtol=ROUNDING, atol=0)


# In the critic step.

KINDS = ["wgan-gp", "dragan", "r1", "r2", "r1+r2"]


def smooth_critic(dtype=torch.float64, seed=0):
    """No kinks, so that finite differences hold; few enough weights to move each."""
    torch.manual_seed(seed)
    trunk = nn.Sequential(
        nn.Conv2d(3, 2, 3, 2, 1), nn.Tanh(), nn.Conv2d(2, 2, 2), nn.Softplus(), nn.Flatten()
    )
    return Critic(trunk, 2 * 2 * 1).to(dtype)


def arguments(n=3, dtype=torch.float64):
    generator = torch.Generator().manual_seed(5)
    eps, noise = torch.rand(n, generator=generator), torch.rand(n, *SHAPE, generator=generator)
    return {
        "real": pictures(n, 1).to(dtype),
        "fake": pictures(n, 2).to(dtype),
        "eps": eps.to(dtype),
        "noise": noise.to(dtype),
    }


@pytest.mark.parametrize(
    ("kind", "one_sided"), [*((kind, False) for kind in KINDS), ("wgan-gp", True), ("dragan", True)]
)
def test_the_parameter_gradient_of_the_penalised_loss_matches_finite_differences(kind, one_sided):
    critic = smooth_critic()
    penalty = PenaltyConfig(kind, weight=3.0, target=0.2, one_sided=one_sided, interval=2)
    step = make_critic_step(critic, LossConfig("non-saturating"), penalty)

    def whole_loss():
        stats = step(**arguments())
        return stats["loss"].double().item() + 2 * stats["penalty"].double().item()

    whole_loss()
    gradients = {name: p.grad.clone() for name, p in critic.named_parameters()}
    scale = max(g.abs().max().item() for g in gradients.values())
    h = 0.02
    for name, parameter in critic.named_parameters():
        flat = parameter.data.view(-1)
        for i in range(len(flat)):
            value, around = flat[i].item(), {}
            for k in (-2, -1, 1, 2):
                flat[i] = value + k * h
                around[k] = whole_loss()
            flat[i] = value
            # Error O(h^4).
            difference = (8 * (around[1] - around[-1]) - (around[2] - around[-2])) / (12 * h)
            assert gradients[name].reshape(-1)[i].item() == pytest.approx(
                difference, abs=1e-4 * scale
            ), (name, i)


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_bias_gets_no_gradient_from_the_penalty(kind):
    gradients = []
    for penalty in (PenaltyConfig(kind, weight=7.0), PenaltyConfig("none")):
        critic = smooth_critic()
        make_critic_step(critic, LossConfig("non-saturating"), penalty)(**arguments())
        gradients.append({name: p.grad for name, p in critic.named_parameters()})
    with_penalty, without = gradients
    assert with_penalty["head.bias"] != 0  # from the loss
    torch.testing.assert_close(with_penalty["head.bias"], without["head.bias"], rtol=1e-14, atol=0)
    for name in with_penalty.keys() - {"head.bias"}:
        assert not torch.equal(with_penalty[name], without[name]), name


@pytest.mark.parametrize("kind", KINDS)
def test_a_flat_critic_has_finite_gradients(kind):
    critic = smooth_critic()
    with torch.no_grad():
        critic.head.weight.zero_()  # every input gradient is exactly 0
    stats = make_critic_step(critic, LossConfig("wasserstein"), PenaltyConfig(kind, weight=10.0))(
        **arguments()
    )
    assert stats["gradient_norm"] == stats["gradient_norm_max"] == 0
    assert stats["penalty"] == (10.0 if kind in ("wgan-gp", "dragan") else 0.0)
    for name, parameter in critic.named_parameters():
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("kind", KINDS)
def test_a_lazy_penalty_weighs_its_interval(kind):
    """Rarer, as much heavier: its part of the gradient is multiplied, its reported value is not."""
    gradients, stats = {}, {}
    for interval in (0, 1, 4):
        critic = smooth_critic()
        penalty = (
            PenaltyConfig(kind, weight=2.0, interval=interval)
            if interval
            else PenaltyConfig("none")
        )
        stats[interval] = make_critic_step(critic, LossConfig("wasserstein"), penalty)(
            **arguments()
        )
        gradients[interval] = torch.cat([p.grad.flatten() for p in critic.parameters()])
    torch.testing.assert_close(
        gradients[4] - gradients[0], 4 * (gradients[1] - gradients[0]), rtol=1e-5, atol=1e-8
    )
    assert stats[4]["penalty"] == stats[1]["penalty"]
    assert (gradients[1] - gradients[0]).abs().max() > 1e-3


def test_r1_holds_reals_r2_fakes_and_both_add_up():
    stats = {}
    critic = QuadraticCritic(0.5)
    given = arguments()
    for kind in ("r1", "r2", "r1+r2"):
        stats[kind] = make_critic_step(
            critic, LossConfig("wasserstein"), PenaltyConfig(kind, weight=3.0)
        )(**given)
    real, fake = 0.5 * lengths(given["real"]), 0.5 * lengths(given["fake"])
    assert stats["r1"]["penalty"].item() == pytest.approx((1.5 * real**2).mean().item(), rel=1e-5)
    assert stats["r2"]["penalty"].item() == pytest.approx((1.5 * fake**2).mean().item(), rel=1e-5)
    assert stats["r1+r2"]["penalty"].item() == pytest.approx(
        (1.5 * (real**2 + fake**2)).mean().item(), rel=1e-5
    )
    assert stats["r1"]["gradient_norm"].item() == pytest.approx(real.mean().item(), rel=1e-5)
    assert stats["r2"]["gradient_norm_max"].item() == pytest.approx(fake.max().item(), rel=1e-5)
    assert stats["r1+r2"]["gradient_norm"].item() == pytest.approx(
        torch.cat([real, fake]).mean().item(), rel=1e-5
    )


def test_points_of_the_critic_step_are_those_of_the_given_eps_and_noise():
    critic, given = QuadraticCritic(0.5), arguments()
    between_ = interpolate(given["real"], given["fake"], given["eps"])
    around = perturb(given["real"], given["fake"], given["noise"])
    for kind, points in (("wgan-gp", between_), ("dragan", around)):
        step = make_critic_step(
            critic, LossConfig("wasserstein"), PenaltyConfig(kind, weight=3.0, target=0.4)
        )
        stats, norms = step(**given), 0.5 * lengths(points)
        assert stats["penalty"].item() == pytest.approx(
            (3 * (norms - 0.4) ** 2).mean().item(), rel=1e-5
        )
        assert stats["gradient_norm"].item() == pytest.approx(norms.mean().item(), rel=1e-5)
        assert stats["gradient_norm_max"].item() == pytest.approx(norms.max().item(), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_fakes_are_detached_in_the_critic_step(kind):
    generator = nn.Linear(4, 60).double()
    given = arguments()
    given["fake"] = generator(torch.randn(3, 4, dtype=torch.float64)).view(3, *SHAPE)
    given["real"].requires_grad_()
    make_critic_step(smooth_critic(), LossConfig("hinge"), PenaltyConfig(kind, weight=10.0))(
        **given
    )
    assert generator.weight.grad is None
    assert generator.bias.grad is None
    assert given["real"].grad is None
