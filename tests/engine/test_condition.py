"""A condition behind the picture: every engine against the step by its definition, in float64."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ganfast.engine import make_critic_step
from ganfast.errors import InputError
from ganfast.flops import FlopCount
from ganfast.models.parts import Residual

N, C, K, SIDE = 3, 3, 4, 8


def critic(curved=False, first="conv"):
    """``first``: what reads the picture; a mean over pixels is no convolution."""
    torch.manual_seed(0)
    norm = [nn.GroupNorm(1, 8)] if curved else []
    body = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), *norm, nn.LeakyReLU(0.2))
    stem = [nn.Conv2d(C + K, 8, 4, 2, 1), nn.LeakyReLU(0.2)]
    if first == "mean":
        stem = [nn.AvgPool2d(2), nn.Conv2d(C + K, 8, 3, 1, 1), nn.LeakyReLU(0.2)]
    if first == "block":
        down = nn.Conv2d(C + K, 8, 3, 2, 1)
        stem = [
            Residual(nn.Sequential(nn.Conv2d(C + K, 8, 4, 2, 1), nn.ReLU()), nn.Sequential(down))
        ]
    return nn.Sequential(*stem, Residual(body), nn.Flatten(), nn.Linear(8 * 16, 1)).double()


def batch():
    torch.manual_seed(1)
    real, fake, noise = torch.rand(3, N, C, SIDE, SIDE, dtype=torch.float64)
    condition, eps = torch.randn(N, K, SIDE, SIDE).double(), torch.rand(N).double()
    return {"real": real, "fake": fake, "eps": eps, "noise": noise, "condition": condition}


def by_hand(net, loss, penalty, real, fake, eps, noise, condition):
    """The gradient of a conditional critic's loss, whose penalties differentiate by the picture."""
    real, fake = (x.clone().requires_grad_() for x in (real, fake))

    def score(x):
        return net(torch.cat([x, condition], 1))[:, 0]

    def gradient(x):
        (g,) = torch.autograd.grad(score(x).sum(), x, create_graph=True)
        return g.flatten(1)

    on_real, on_fake = score(real), score(fake)
    total = {
        "wasserstein": on_fake - on_real,
        "non-saturating": F.softplus(on_fake) + F.softplus(-on_real),
        "relativistic": F.softplus(on_fake - on_real),
    }[loss].mean()
    share = eps.view(-1, 1, 1, 1)
    points = {
        "wgan-gp": share * real + (1 - share) * fake,
        "dragan": real + 0.5 * real.std() * noise,
    }
    if penalty in points:
        norms = gradient(points[penalty].detach().requires_grad_()).norm(dim=1)
        total = total + 10 * (norms - 1).square().mean()
    for name, x in (("r1", real), ("r2", fake)):
        if name in penalty:
            total = total + 5 * gradient(x).square().sum(1).mean()
    return torch.cat([g.flatten() for g in torch.autograd.grad(total, list(net.parameters()))])


LOSSES, PENALTIES = ("wasserstein", "non-saturating", "relativistic"), ("wgan-gp", "r1", "r2")
WHERE = [(False, "conv"), (True, "mean"), (False, "block")]


@pytest.mark.parametrize(("curved", "first"), WHERE)
def test_every_engine_differentiates_a_penalty_by_the_picture_alone(curved, first):
    for loss, penalty in product(LOSSES, (*PENALTIES, "r1+r2", "dragan")):
        net = critic(curved, first)
        expected = by_hand(net, loss, penalty, **batch())
        for engine in ("reference", "autograd", "explicit"):
            step = make_critic_step(net, loss, penalty, engine=engine, compile=False, check=False)
            step(**batch())
            off = float((step.gradients.flat - expected).norm() / expected.norm())
            assert off < 1e-13, (loss, penalty, engine, off)


def test_passes_by_the_picture_take_its_channels_of_the_first_layer():
    """One delta and one tangent of N rows; the rest costs as of a critic of C + K channels."""

    def flops(**given):
        step = make_critic_step(critic().float(), "wasserstein", "wgan-gp", compile=False)
        given = {name: x.float() for name, x in given.items()}
        step(**given)
        assert step.choice.engine == "explicit"
        with FlopCount() as count:
            step(**given)
        return count.total

    conditional = batch()
    condition = conditional.pop("condition")
    whole = {
        name: x if name == "eps" else torch.cat([x, condition], 1)
        for name, x in conditional.items()
    }
    one_pass = 2 * N * (SIDE // 2) ** 2 * 8 * K * 4 * 4  # of the condition's channels
    assert flops(**whole) - flops(**conditional, condition=condition) == 2 * one_pass


def test_the_first_step_checks_a_conditional_critic_as_any_other(caplog):
    net = critic().float()
    step = make_critic_step(net, "non-saturating", "r1", compile=False)
    stats = step(**{name: x.float() for name, x in batch().items()})
    assert step.choice.engine == "explicit"
    assert not caplog.records
    assert stats["gradient_norm"] > 0


def test_a_condition_of_another_size_is_refused():
    step = make_critic_step(critic(), "wasserstein", "wgan-gp", compile=False)
    with pytest.raises(InputError, match="the condition is .* expected as many"):
        step(**batch() | {"condition": torch.zeros(N, K, 4, 4)})
