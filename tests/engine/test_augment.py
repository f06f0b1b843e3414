"""Transforms of what the critic sees: affine, with an exact transpose, and every engine's own."""

import copy
from itertools import product

import numpy as np
import pytest
import torch
from torch import nn

from ganfast.augment import DRAWN, Transforms, augmented, linear, transposed
from ganfast.config import LossConfig, PenaltyConfig
from ganfast.engine import make_critic_step, make_generator_step
from ganfast.engine.check import relative_error
from ganfast.errors import InputError
from ganfast.flops import FlopCount
from ganfast.models import NetSpec, build_critic
from ganfast.penalties import penalty_of

N, SHAPE = 6, (3, 9, 7)  # neither square nor even
HOST = torch.device("cpu")
ALWAYS = torch.ones((), dtype=torch.float64)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def drawn(n=N, shape=SHAPE, p=0.7, batches=()):
    """Transforms of pictures, of which some change nothing."""
    uniforms = torch.rand(*batches, n, DRAWN)
    return Transforms(*shape[1:], HOST)(uniforms, torch.tensor(p))


def of(name, *numbers, shape=SHAPE):
    """One transform that changes nothing but the numbers of ``name``."""
    transform = Transforms(*shape[1:], HOST)(torch.ones(1, DRAWN), 0 * ALWAYS)
    first = {"brightness": 0, "saturation": 1, "contrast": 2, "moved": 3, "cut": 5}[name]
    transform[0, first : first + len(numbers)] = torch.tensor(numbers)
    return transform


def matrix(apply, transform, shape):
    """The columns are what units become."""
    units = torch.eye(int(np.prod(shape)), dtype=torch.float64).view(-1, *shape)
    return apply(units, transform.expand(len(units), 7)).flatten(1).T


@pytest.mark.parametrize("shape", [SHAPE, (1, 4, 5)], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_transform_is_its_matrix_and_its_transpose_the_matrix_transposed(shape, layout):
    x, g = torch.randn(2, N, *shape, dtype=torch.float64)
    x, g = (v.contiguous(memory_format=layout) for v in (x, g))
    transforms = drawn(shape=shape, p=1.0)
    shift = augmented(torch.zeros_like(x), transforms).flatten(1)
    for k in range(N):
        a = matrix(linear, transforms[k], shape)
        torch.testing.assert_close(matrix(transposed, transforms[k], shape), a.T)
        seen = a @ x[k].flatten() + shift[k]
        torch.testing.assert_close(augmented(x, transforms)[k].flatten(), seen)
    for made in (augmented(x, transforms), linear(x, transforms), transposed(g, transforms)):
        assert made.is_contiguous(memory_format=layout)


def test_the_inner_product_and_autograd_know_the_same_transpose():
    x, y = torch.randn(2, 200, *SHAPE, dtype=torch.float64)
    transforms = drawn(200)
    left = (linear(x, transforms) * y).sum()
    assert left.item() == pytest.approx((x * transposed(y, transforms)).sum().item(), rel=1e-12)
    x.requires_grad_()
    (by_autograd,) = torch.autograd.grad(augmented(x, transforms), x, y)
    torch.testing.assert_close(by_autograd, transposed(y, transforms), rtol=1e-12, atol=1e-12)


def test_each_number_does_what_the_paper_says():
    """By the formulas of arXiv:2006.10738's code, one after the other."""
    x = torch.randn(1, *SHAPE, dtype=torch.float64)
    grey, mean = x.mean(1, keepdim=True), x.mean()
    pairs = [
        (of("brightness", 0.3), x + 0.3),
        (of("saturation", 1.7), (x - grey) * 1.7 + grey),
        (of("contrast", 0.6), (x - mean) * 0.6 + mean),
    ]
    moved, cut = torch.zeros_like(x), x.clone()
    moved[:, :, 1:, :-2] = x[:, :, :-1, 2:]  # down by 1, left by 2
    cut[:, :, 3:8, :2] = 0  # 5 x 4, of which two columns lie outside
    for transform, seen in (*pairs, (of("moved", 1, -2), moved), (of("cut", 3, -2), cut)):
        torch.testing.assert_close(augmented(x, transform), seen, rtol=1e-6, atol=1e-7)
    # in this order: the square is 0 whatever the brightness
    both = of("brightness", 0.3)
    both[:, 5:] = torch.tensor([3.0, -2.0])
    assert augmented(x, both)[:, :, 3:8, :2].abs().max() == 0


@pytest.mark.parametrize("channels", [1, 3])
def test_p_0_is_the_identity_to_the_bit_and_p_1_changes_every_picture(channels):
    x = (torch.randint(0, 256, (N, channels, 8, 8)) / 127.5 - 1).contiguous()
    transforms = [Transforms(8, 8, HOST)(torch.rand(N, DRAWN), p * ALWAYS) for p in (0, 1)]
    assert torch.equal(augmented(x, transforms[0]), x)
    assert torch.equal(transposed(x, transforms[0]), x)
    assert (augmented(x, transforms[1]) != x).flatten(1).any(1).all()


def test_p_is_the_share_of_each_transform_and_numbers_fill_their_ranges():
    side, n = 16, 20_000
    transforms = Transforms(side, side, HOST)
    some = transforms(torch.rand(n, DRAWN), torch.tensor(0.3))
    off = transforms(torch.zeros(1, DRAWN), 0 * ALWAYS)
    changed = some != off
    assert (
        changed[:, [0, 3, 5]].float().mean(0) - torch.tensor([0.3, 0.24, 0.3])
    ).abs().max() < 0.02
    assert (changed[:, 0] & changed[:, 5]).float().mean() == pytest.approx(0.09, abs=0.01)
    every = transforms(torch.rand(n, DRAWN), ALWAYS)
    for column, values in ((3, range(-2, 3)), (4, range(-2, 3)), (5, range(-4, 13))):
        assert every[:, column].unique().tolist() == list(values)
    least, most = every[:, :3].aminmax(dim=0)
    torch.testing.assert_close(least, torch.tensor([-0.5, 0, 0.5]), atol=0.01, rtol=0)
    torch.testing.assert_close(most, torch.tensor([0.5, 2, 1.5]), atol=0.01, rtol=0)


CASES = [
    ("wasserstein", "wgan-gp"),
    ("non-saturating", "r1"),
    ("hinge", "r1+r2"),
    ("relativistic", "r1+r2"),
    ("minimax", "dragan"),
    ("least-squares", "none"),
]


def curved():
    """With a norm, so that a penalty takes two delta passes."""
    head = nn.Linear(4 * 8 * 8, 1)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1), nn.GroupNorm(1, 4), nn.SiLU(), nn.Flatten(), head
    )


def critics():
    torch.manual_seed(0)
    r3 = build_critic(NetSpec(16, 3, 0, "no", 8, 8, model="r3", blocks=1))
    dcgan = build_critic(NetSpec(16, 3, 0, "no", 8, 8))
    with torch.no_grad():
        for p in r3.parameters():  # zeros would leave nothing to differentiate
            if not p.any():
                p.normal_(0, 0.1)
    return {"r3": r3, "dcgan": dcgan, "curved": curved()}


def stepped(critic, loss, penalty, engine, dtype, given, transforms, compile=False):
    step = make_critic_step(
        copy.deepcopy(critic).to(dtype), loss, penalty, engine=engine, compile=compile, check=False
    )
    stats = step(**{name: x.to(dtype) for name, x in given.items()}, transforms=transforms)
    assert step.choice.engine == engine
    return step.gradients.views, stats


def given_to(penalty, n=4):
    shape = 3, 16, 16
    real, fake = torch.rand(2, n, *shape) * 2 - 1
    given = {"real": real, "fake": fake, "eps": torch.rand(n), "noise": torch.rand(n, *shape)}
    points = penalty != "none" and penalty_of(PenaltyConfig(penalty)).points is not None
    return given, drawn(n, shape, 0.8, (2 + points,))


IN_TEST = {
    ("r3", "wgan-gp"),
    ("r3", "r1"),
    ("r3", "relativistic"),
    ("dcgan", "hinge"),
    ("dcgan", "none"),
    ("curved", "dragan"),
    ("curved", "r1"),
}


@pytest.mark.parametrize(
    ("name", "loss", "penalty"),
    [
        pytest.param(name, *case, marks=() if kept else pytest.mark.accept)
        for name, case in product(("r3", "dcgan", "curved"), CASES)
        for kept in [any((name, word) in IN_TEST for word in case)]
    ],
)
def test_engines_agree_with_the_reference_in_float64(name, loss, penalty):
    critic, (given, transforms) = critics()[name], given_to(penalty)
    exact, wanted = stepped(critic, loss, penalty, "reference", torch.float64, given, transforms)
    plain, _ = stepped(critic, loss, penalty, "reference", torch.float64, given, None)
    assert relative_error(plain, exact) > 0.01
    for engine in ("reference", "autograd", "explicit"):
        found, stats = stepped(critic, loss, penalty, engine, torch.float32, given, transforms)
        assert relative_error(found, exact) <= 1e-5, engine
        for statistic, value in wanted.items():
            assert stats[statistic].item() == pytest.approx(value.item(), rel=1e-4, abs=1e-5)


def test_the_norm_is_that_of_the_gradient_by_the_picture_before_the_transform():
    """By a dense A: a linear critic's gradient at y = A x + b is its weight w, by x it is A^T w."""
    critic = nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(SHAPE)), 1)).double()
    real, fake = torch.randn(2, N, *SHAPE, dtype=torch.float64)
    transforms = drawn(batches=(2,))
    w = critic[1].weight.detach()[0]
    norms = torch.stack([(matrix(linear, t, SHAPE).T @ w).norm() for t in transforms[0]])
    for engine in ("reference", "explicit"):
        step = make_critic_step(critic, "hinge", "r1", engine=engine, compile=False, check=False)
        stats = step(real, fake, transforms=transforms)
        assert stats["gradient_norm"].item() == pytest.approx(norms.mean().item(), rel=1e-10)
        assert stats["gradient_norm_max"].item() == pytest.approx(norms.max().item(), rel=1e-10)


def test_transforms_cost_no_flops_and_a_wrong_number_of_them_is_refused():
    critic, (given, transforms) = critics()["dcgan"], given_to("wgan-gp")
    counts = []
    for some in (None, transforms):
        with FlopCount() as count:
            stepped(critic, "wasserstein", "wgan-gp", "explicit", torch.float32, given, some)
        counts.append(count.total)
    assert counts[0] == counts[1]
    with pytest.raises(InputError, match=r"transforms are \(2, 4, 7\); expected \(3, 4, 7\)"):
        stepped(critic, "wasserstein", "wgan-gp", "explicit", torch.float32, given, transforms[:2])


@pytest.mark.parametrize("loss", ["hinge", "relativistic"])
def test_the_generators_gradient_goes_through_the_transforms_of_its_fakes(loss):
    """Of a generator whose pictures are its weights: A^T times the critic's gradient."""

    class Pictures(nn.Module):
        def __init__(self):
            super().__init__()
            self.pictures = nn.Parameter(torch.randn(N, *SHAPE, dtype=torch.float64))

        def forward(self, z):
            return self.pictures * 1.0

    critic = nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(SHAPE)), 1)).double()
    generator, real = Pictures(), torch.randn(N, *SHAPE, dtype=torch.float64)
    transforms, w = drawn(batches=(2,)), critic[1].weight.detach().view(1, *SHAPE)
    step = make_generator_step(generator, critic, LossConfig(loss))
    step(torch.zeros(N, 2), None, real, transforms)
    fakes, reals = (
        critic(augmented(x, t)).flatten().detach()
        for x, t in zip((generator.pictures, real), transforms, strict=True)
    )
    slope = -torch.sigmoid(reals - fakes) if loss == "relativistic" else -torch.ones_like(reals)
    exact = transposed(w.expand(N, -1, -1, -1) * (slope / N).view(-1, 1, 1, 1), transforms[0])
    torch.testing.assert_close(generator.pictures.grad, exact, rtol=1e-10, atol=1e-12)


def test_the_start_up_check_takes_each_picture_with_its_transform():
    """It computes the reference for 8 pictures at a time."""
    critic, (given, transforms) = critics()["dcgan"], given_to("wgan-gp", n=18)
    step = make_critic_step(critic, "wasserstein", "wgan-gp", compile=False)
    step(**given, transforms=transforms)
    assert step.choice.engine == "explicit"
