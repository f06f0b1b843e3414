"""The explicit engine on the critics of r3 and resnet: walked whole, exact, nothing in vain."""

import copy
from functools import cache
from itertools import product

import pytest
import torch

from ganfast.engine import make_critic_step
from ganfast.engine.check import relative_error
from ganfast.flops import FlopCount
from ganfast.models import NetSpec, build_critic, judge
from ganfast.models.r3 import Resample

N, SIZE, CLASSES = 4, 16, 3
FAMILIES = ("r3", "resnet")
CONDITIONS = ("no", "projection", "auxiliary")
PENALTIES = {
    "none": "hinge",
    "r1": "non-saturating",
    "r1+r2": "relativistic",
    "wgan-gp": "wasserstein",
}
# Forward passes of N pictures; with a class head, which needs a delta pass of its own where rows
# are shared, in the second column.
FORWARDS = {"none": (6, 6), "r1": (7, 9), "r1+r2": (8, 12), "wgan-gp": (10, 10)}
IN_TEST = {
    ("r3", "projection", "r1+r2"),
    ("r3", "no", "none"),
    ("r3", "auxiliary", "r1"),
    ("resnet", "projection", "wgan-gp"),
    ("resnet", "no", "r1"),
    ("resnet", "auxiliary", "r1+r2"),
}
every_case = pytest.mark.parametrize(
    ("model", "conditional", "penalty"),
    [
        pytest.param(*case, marks=() if case in IN_TEST else pytest.mark.accept)
        for case in product(FAMILIES, CONDITIONS, PENALTIES)
    ],
)


@cache
def critic_of(model, conditional, width=8):
    torch.manual_seed(0)
    classes = CLASSES if conditional != "no" else 0
    of = NetSpec(SIZE, 3, classes, conditional, width, 8, model=model, blocks=1)
    critic = build_critic(of)
    with torch.no_grad():
        for p in critic.parameters():  # zeros would leave nothing to differentiate
            if not p.any():
                p.normal_(0, 0.1)
    return critic


def given(dtype, labels):
    g = torch.Generator().manual_seed(1)
    real, fake = (torch.rand(2, N, 3, SIZE, SIZE, generator=g) * 2 - 1).to(dtype)
    eps = torch.rand(N, generator=g).to(dtype)
    return {
        "real": real,
        "fake": fake,
        "eps": eps,
        "real_labels": torch.arange(N) % CLASSES if labels else None,
    }


def step_of(critic, penalty, engine):
    return make_critic_step(
        critic, PENALTIES[penalty], penalty, engine=engine, compile=False, check=False
    )


def two_steps(critic, penalty, engine, inputs, with_penalty=True):
    """Gradients of a step, and of another after the weights have moved along the first."""
    step, found = step_of(critic, penalty, engine), []
    for _ in range(2):
        step(**inputs, with_penalty=with_penalty)
        found.append([p.grad.clone() for p in critic.parameters()])
        with torch.no_grad():
            for p in critic.parameters():
                p.sub_(1e-3 * torch.sign(p))  # the same for all engines
    return step, found


@every_case
def test_two_steps_are_walked_whole_and_exact(model, conditional, penalty):
    inputs = given(torch.float64, conditional != "no")
    for with_penalty in (True, False):
        critics = [copy.deepcopy(critic_of(model, conditional)).double() for _ in range(2)]
        step, found = two_steps(critics[0], penalty, "auto", inputs, with_penalty)
        _, exact = two_steps(critics[1], penalty, "reference", inputs, with_penalty)
        assert step.choice.engine == "explicit"
        assert step.walked.tail is None
        for mine, right in zip(found, exact, strict=True):
            assert all(g.any() for g in right if g.dim() > 1)  # no score needs the last bias
            assert relative_error(mine, right) <= 1e-10


@pytest.mark.parametrize(
    ("model", "conditional", "penalty"),
    [("r3", "projection", "r1+r2"), ("r3", "no", "r1"), ("resnet", "projection", "wgan-gp")],
)
def test_in_float32_the_error_is_that_of_rounding(model, conditional, penalty):
    single = copy.deepcopy(critic_of(model, conditional))
    double = copy.deepcopy(single).double()
    labels = conditional != "no"
    _, found = two_steps(single, penalty, "auto", given(torch.float32, labels))
    wide = {
        k: v.double() if k != "real_labels" and v is not None else v
        for k, v in given(torch.float32, labels).items()
    }
    _, exact = two_steps(double, penalty, "reference", wide)
    for mine, right in zip(found, exact, strict=True):
        assert relative_error(mine, right) <= 1e-5


def flops(call):
    with FlopCount() as count:
        call()
    return count.total


@every_case
def test_a_step_costs_no_more_forwards_than_it_has_to(model, conditional, penalty):
    critic = critic_of(model, conditional, 32)
    inputs = given(torch.float32, conditional != "no")
    step = step_of(critic, penalty, "auto")
    with torch.no_grad():
        once = flops(lambda: judge(critic, inputs["real"], inputs["real_labels"]))
    limit = FORWARDS[penalty][conditional == "auxiliary"]
    # Far fewer would be passes that were not counted.
    assert limit - 0.5 < flops(lambda: step(**inputs)) / once <= limit


def test_the_filter_gets_no_weight_gradient():
    step = step_of(critic_of("r3", "no"), "r1+r2", "explicit")
    filters = [m for m in step.critic.modules() if isinstance(m, Resample)]
    names = {name for s in step.walked.steps for name in s.layer.weights}
    assert len(filters) == 2
    assert names == {name for name, _ in step.critic.named_parameters()}
