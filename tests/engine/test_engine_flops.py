"""What the engines compute: operations of a step in forward passes of N pictures; convolutions."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ganfast.engine import make_critic_step
from ganfast.flops import FlopCount, convolution_backward_flops
from ganfast.models.parts import Critic

N, SIDE, WIDTH = 6, 8, 16
SHAPE = (2, SIDE, SIDE)
FAST = ["autograd", "explicit"]
aten = torch.ops.aten


def deep_critic(between=lambda: nn.LeakyReLU(0.2), bias=False, groups=1, conditional="no"):
    """Deep enough that the first layer, whose input needs no gradient, hardly counts."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, WIDTH, 3, 1, 1, bias=bias), between()]
    for _ in range(6):
        layers += [nn.Conv2d(WIDTH, WIDTH, 3, 1, 1, groups=groups, bias=bias), between()]
    return Critic(nn.Sequential(*layers, nn.Flatten()), WIDTH * SIDE**2, 3, conditional)


def arguments(labels=False):
    g = torch.Generator().manual_seed(0)
    real, fake = torch.randn(2, N, *SHAPE, generator=g).unbind(0)
    given = {
        "real": real,
        "fake": fake,
        "eps": torch.rand(N, generator=g),
        "noise": torch.rand(N, *SHAPE, generator=g),
    }
    return given | ({"real_labels": torch.arange(N) % 3} if labels else {})


def flops(call):
    with FlopCount() as count:
        call()
    return count.total


def forwards(critic, penalty, engine):
    """Work of a step in forward passes of N pictures."""
    step = make_critic_step(
        critic, "non-saturating", penalty, engine=engine, compile=False, check=False
    )
    given = arguments(labels=critic.class_head is not None)
    with torch.no_grad():
        once = flops(lambda: critic(given["real"]))
    return flops(lambda: step(**given)) / once


LIMITS = {  # of a piecewise-linear critic
    "explicit": {"none": 6, "wgan-gp": 10, "dragan": 10, "r1": 7, "r2": 7, "r1+r2": 8},
    "autograd": {"none": 6, "wgan-gp": 10, "dragan": 10, "r1": 9, "r2": 9, "r1+r2": 12},
}


@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize(
    ("engine", "penalty"), [(engine, penalty) for engine in FAST for penalty in LIMITS[engine]]
)
def test_a_step_costs_no_more_forwards_than_it_has_to(engine, penalty, bias):
    found = forwards(deep_critic(bias=bias), penalty, engine)
    # Far fewer would be passes that were not counted.
    assert LIMITS[engine][penalty] - 0.5 < found <= LIMITS[engine][penalty]


@pytest.mark.parametrize(
    ("penalty", "expected"),
    [("none", 6), ("wgan-gp", 12), ("dragan", 12), ("r1", 9), ("r2", 9), ("r1+r2", 12)],
)
def test_the_reference_wastes_two_forwards_on_points_of_their_own(penalty, expected):
    assert forwards(deep_critic(), penalty, "reference") == pytest.approx(expected, rel=0.04)


@pytest.mark.parametrize(
    "between",
    [lambda: nn.GroupNorm(2, WIDTH), nn.SiLU, lambda: nn.InstanceNorm2d(WIDTH)],
    ids=["GroupNorm", "SiLU", "InstanceNorm"],
)
@pytest.mark.parametrize(
    ("penalty", "limit"), [("none", 6), ("wgan-gp", 12), ("dragan", 12), ("r1", 9), ("r1+r2", 12)]
)
def test_a_curved_critic_costs_two_more_forwards(penalty, limit, between):
    assert limit - 0.5 < forwards(deep_critic(between), penalty, "explicit") <= limit


@pytest.mark.parametrize(
    ("penalty", "limit"), [("wgan-gp", 10), ("r1", 9), ("r2", 9), ("r1+r2", 12)]
)
def test_a_class_head_needs_a_delta_pass_of_its_own_where_rows_are_shared(penalty, limit):
    assert (
        limit - 0.5 < forwards(deep_critic(conditional="auxiliary"), penalty, "explicit") <= limit
    )


@pytest.mark.parametrize("engine", FAST)
def test_a_step_without_its_penalty_costs_what_the_loss_does(engine):
    critic, given = deep_critic(), arguments()
    step = make_critic_step(critic, "hinge", "r1", engine=engine, compile=False, check=False)
    with torch.no_grad():
        once = flops(lambda: critic(given["real"]))
    assert flops(lambda: step(**given, with_penalty=False)) / once <= 6


# Which convolutions run.


class Convolutions(TorchDispatchMode):
    """Records every convolution while active: (name, used operands, filter's shape, groups)."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.overloadpacket is aten.convolution:
            self.calls.append(("convolution", args[:2], args[1].shape, args[8]))
        elif func.overloadpacket is aten.convolution_backward:
            dy, x, weight, mask = *args[:3], args[10]
            # The other tells a shape only.
            used = [dy, *([weight] if mask[0] else []), *([x] if mask[1] else [])]
            self.calls.append(("backward", used, weight.shape, args[9]))
        elif "conv" in func.name() and func.overloadpacket in (
            aten._convolution,
            aten.mkldnn_convolution,
            aten.conv2d,
        ):
            raise AssertionError(f"{func.name()} was not decomposed: the record would miss it")
        return func(*args, **kwargs)


def recorded(critic, penalty, engine):
    step = make_critic_step(
        critic, "non-saturating", penalty, engine=engine, compile=False, check=False
    )
    with Convolutions() as convolutions:
        step(**arguments(labels=critic.class_head is not None))
    return convolutions.calls


CRITICS = {
    "plain": deep_critic,
    "bias": lambda: deep_critic(bias=True),
    "ReLU": lambda: deep_critic(nn.ReLU),
    "grouped": lambda: deep_critic(groups=8),
    "GroupNorm": lambda: deep_critic(lambda: nn.GroupNorm(2, WIDTH), bias=True),
    "class head": lambda: deep_critic(conditional="auxiliary"),
}


@pytest.mark.parametrize("engine", FAST)
@pytest.mark.parametrize("penalty", ["none", "wgan-gp", "r1", "r1+r2"])
@pytest.mark.parametrize("made", CRITICS)
def test_no_convolution_multiplies_zeros_or_filters_by_an_activation_map(made, penalty, engine):
    critic = CRITICS[made]()
    calls = recorded(critic, penalty, engine)
    # Forward, data and weight gradients of 7 layers, but no gradient of the pictures.
    assert len(calls) >= 20
    for name, operands, filter_, _ in calls:
        assert all(x.any() for x in operands), (name, filter_)
        assert tuple(filter_[2:]) == (3, 3), (name, filter_)


def test_the_record_sees_what_the_reference_wastes():
    """Else the test above could not fail."""
    calls = recorded(deep_critic(nn.ReLU), "wgan-gp", "reference")
    assert any(tuple(filter_[2:]) == (SIDE, SIDE) for _, _, filter_, _ in calls)
    assert not all(x.any() for _, operands, _, _ in calls for x in operands)


@pytest.mark.parametrize("engine", FAST)
@pytest.mark.parametrize("penalty", ["none", "wgan-gp", "r1", "r1+r2"])
def test_the_number_of_convolutions_does_not_grow_with_their_groups(penalty, engine):
    whole, grouped = (recorded(deep_critic(groups=groups), penalty, engine) for groups in (1, 8))
    assert len(grouped) == len(whole)
    assert {groups for *_, groups in grouped} == {1, 8}


def test_the_convolutions_of_the_reference_grow_with_their_groups():
    whole, grouped = (
        recorded(deep_critic(groups=groups), "wgan-gp", "reference") for groups in (1, 8)
    )
    assert len(grouped) > len(whole)


# The formula.

MASKS = [(True, False, False), (False, True, False), (True, True, True), (False, False, True)]


@pytest.mark.parametrize("mask", MASKS, ids=str)
def test_a_grouped_backward_by_hand(mask):
    x, dy, weight = torch.randn(5, 6, 9, 8), torch.randn(5, 4, 5, 4), torch.randn(4, 3, 3, 2)
    each = 2 * 5 * (4 * 5 * 4) * 3 * (3 * 2)  # every output meets 3 of the 6 channels
    assert convolution_backward_flops(
        dy, x, weight, [4], *shape((2, 2), (1, 0), groups=2), mask
    ) == each * sum(mask[:2])
    # The shapes do fit.
    aten.convolution_backward(dy, x, weight, [4], *shape((2, 2), (1, 0), groups=2), mask)


@pytest.mark.parametrize("mask", MASKS, ids=str)
def test_a_grouped_transposed_backward_by_hand(mask):
    x, dy, weight = torch.randn(5, 6, 4, 3), torch.randn(5, 4, 8, 7), torch.randn(6, 2, 4, 3)
    each = 2 * 5 * (6 * 4 * 3) * 2 * (4 * 3)  # every input meets 2 of the 4 output channels
    assert convolution_backward_flops(
        dy, x, weight, [4], *shape((2, 2), (1, 0), True, 2), mask
    ) == each * sum(mask[:2])
    aten.convolution_backward(dy, x, weight, [4], *shape((2, 2), (1, 0), True, 2), mask)


def shape(stride, padding, transposed=False, groups=1):
    """Arguments of a backward convolution from stride to groups, between its bias and its mask."""
    return list(stride), list(padding), [1, 1], transposed, [0, 0], groups


@pytest.mark.parametrize("transposed", [False, True], ids=["", "transposed"])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_backward_pass_costs_two_forwards_whatever_the_groups(groups, transposed):
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    layer, x = kind(8, 4, (3, 2), 2, 1, groups=groups), torch.randn(3, 8, 7, 6, requires_grad=True)
    with torch.no_grad():
        forward = flops(lambda: layer(x))
    assert flops(lambda: layer(x).sum().backward()) == 3 * forward
    by_hand = 2 * 3 * (8 * 7 * 6 * 4 if transposed else layer(x)[0].numel() * 8) * 3 * 2 // groups
    assert forward == by_hand
