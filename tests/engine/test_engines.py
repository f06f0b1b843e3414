"""Every engine of the critic step against the reference in float64, on every kind of critic."""

import copy
import functools
import itertools
import logging
import re
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from ganfast.config import LossConfig, PenaltyConfig
from ganfast.engine import choose, make_critic_step
from ganfast.engine.autograd import AutogradStep
from ganfast.engine.counting import fewest, step_flops
from ganfast.engine.explicit import ExplicitStep
from ganfast.engine.objective import Inputs
from ganfast.engine.walking.walk import CannotWalk, walk
from ganfast.errors import InputError
from ganfast.fields import Schedule
from ganfast.flops import FlopCount
from ganfast.models import Judgement, as_judgement
from ganfast.models.dropout import Dropout
from ganfast.models.parts import LEAK, Critic, spectral
from ganfast.penalties import PENALTIES
from tests.depth import in_turn

ENGINES = ["reference", "autograd", "explicit"]
FAST = ENGINES[1:]
LOSSES = ["minimax", "non-saturating", "least-squares", "hinge", "wasserstein", "relativistic"]
KINDS = list(PENALTIES)
ROUNDING = 1e-10  # of float64, relative to the whole gradient
SHAPE = (3, 9, 7)  # neither square nor even: transposed axes and dropped borders show
N, CLASSES = 5, 4
LABELS = torch.tensor([2, 0, 3, 3, 1])


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def pictures(shape=SHAPE, n=N, seed=0, dtype=torch.float64):
    """Arguments of a step, the same numbers in every type."""
    g = torch.Generator().manual_seed(seed)
    real, fake = torch.rand(2, n, *shape, generator=g, dtype=torch.float64) * 2 - 1
    eps, noise = (torch.rand(n, *more, generator=g, dtype=torch.float64) for more in ((), shape))
    inputs = {"real": real, "fake": fake, "eps": eps, "noise": noise}
    return {name: x.to(dtype) for name, x in inputs.items()}


def labelled():
    return pictures() | {"real_labels": LABELS}


def walked(critic):
    """The walk of a critic, whoever wrote it, for the pictures of these tests."""
    given = [pictures()["real"]] + ([LABELS] if getattr(critic, "takes_labels", False) else [])
    dtype = next(critic.parameters()).dtype
    return walk(critic, given[0].to(dtype), *given[1:])


def unchecked(critic, loss="hinge", penalty="r1", engine="explicit", compile=False, **kwargs):
    """The step of an engine that is not compiled and not checked."""
    return make_critic_step(
        critic, loss, penalty, engine=engine, **{"compile": compile, "check": False} | kwargs
    )


def run(critic, engine, loss="non-saturating", penalty="wgan-gp", inputs=None, **kwargs):
    """(flat gradient, statistics, stepped copy) of one step; ``critic`` itself does not change."""
    critic = copy.deepcopy(critic)
    step = unchecked(critic, loss, penalty, engine, **kwargs)
    stats = step(**(pictures() if inputs is None else inputs))
    assert step.choice.engine == engine
    return step.gradients.flat, stats, critic


def gradient(critic, engine="reference", **kwargs):
    return run(critic, engine, **kwargs)[0]


def error(found, exact):
    """Relative to the whole gradient; one that vanishes but for rounding is no unit."""
    return ((found.double() - exact.double()).norm() / exact.double().norm().clamp_min(1e-6)).item()


def assert_engines_agree(
    critic, loss="non-saturating", penalty="wgan-gp", inputs=None, engines=FAST, least=1e-6
):
    """Gradients, statistics and buffers of the engines in float64."""
    exact, wanted, stepped = run(critic, "reference", loss, penalty, inputs)
    assert exact.isfinite().all()
    assert exact.norm() >= least  # a comparison of zeros shows nothing
    for engine in engines:
        found, stats, other = run(critic, engine, loss, penalty, inputs)
        assert error(found, exact) <= ROUNDING, (engine, error(found, exact))
        assert stats.keys() == wanted.keys(), engine
        for name, value in wanted.items():
            assert stats[name].shape == (), (engine, name)
            assert not stats[name].requires_grad, (engine, name)
            expected = pytest.approx(value.item(), rel=ROUNDING, abs=ROUNDING)
            assert stats[name].item() == expected, (engine, name)
        for (name, a), b in zip(stepped.named_buffers(), other.buffers(), strict=True):
            torch.testing.assert_close(b, a, rtol=1e-12, atol=1e-12, msg=f"{engine} {name}")
    return exact


def loud(critic):
    """In float64, with weights of twice the size, so that scores and gradient norms are about 1."""
    critic = critic.double()
    with torch.no_grad():
        for p in critic.parameters():
            p.mul_(2)
    return critic


def double(module, args, output):
    return output * 2


class Residual(nn.Module):
    """shortcut(x) + body(x)."""

    def __init__(self, body, shortcut=None):
        super().__init__()
        self.body, self.shortcut = body, shortcut

    def forward(self, x):
        return (x if self.shortcut is None else self.shortcut(x)) + self.body(x)


NAMED = {"conv": nn.Conv2d, "leak": nn.LeakyReLU, "linear": nn.Linear}


def net(*layers):
    """Layers in a row. "conv 3 4 3 2 1" names one and its arguments, "score" ends in one number."""
    row = nn.Sequential()
    for layer in layers:
        if layer == "score":
            row.append(nn.Flatten())
            row.append(nn.Linear(row(torch.zeros(2, *SHAPE)).shape[1], 1))
        elif isinstance(layer, str):
            name, *numbers = ("leak 0.2" if layer == "leak" else layer).split()
            row.append(NAMED[name](*(float(x) if "." in x else int(x) for x in numbers)))
        else:
            row.append(layer)
    return row


def plain_critic(seed=0, conditional="no", slope=LEAK):
    torch.manual_seed(seed)
    leak = f"leak {float(slope)}"
    trunk = net("conv 3 4 4 2 1", leak, "conv 4 6 3 2 1", leak, nn.Flatten())
    return loud(Critic(trunk, 6 * 2 * 2, CLASSES, conditional))


# Random piecewise-linear critics.

ACTIVATIONS = [lambda: nn.LeakyReLU(0.2), lambda: nn.LeakyReLU(0.7), nn.ReLU, nn.Identity]
CURVES = [nn.SiLU, nn.Tanh, nn.Softplus]


@st.composite
def convolutions(draw, before, sides):
    """A convolution that leaves at least one pixel."""
    groups = draw(st.sampled_from([g for g in (1, 2, 3) if before % g == 0]))
    kernel, stride, padding, dilation = (
        tuple(draw(st.integers(low, high)) for _ in sides)
        for low, high in ((1, 4), (1, 3), (0, 2), (1, 2))
    )
    dilation = tuple(
        d if d * (k - 1) < s + 2 * p else 1
        for d, k, s, p in zip(dilation, kernel, sides, padding, strict=True)
    )
    kernel = tuple(min(k, s + 2 * p) for k, s, p in zip(kernel, sides, padding, strict=True))
    after = groups * draw(st.integers(1, 3))
    return nn.Conv2d(
        before, after, kernel, stride, padding, dilation, groups, bias=draw(st.booleans())
    )


@st.composite
def random_critics(draw, curved=False):
    """(critic, shape of its pictures)."""
    activations = st.sampled_from(ACTIVATIONS + CURVES * curved)
    shape = (draw(st.integers(1, 3)), draw(st.integers(4, 9)), draw(st.integers(4, 9)))
    torch.manual_seed(draw(st.integers(0, 2**16)))
    layers, x = [], torch.zeros(1, *shape)
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(["plain", "plain", "residual", "shortcut"]))
        channels = x.shape[1]
        if kind == "plain":
            block = draw(convolutions(channels, x.shape[2:]))
        elif kind == "residual":
            block = Residual(net(nn.Conv2d(channels, channels, 3, 1, 1), draw(activations)()))
        else:
            body = net(nn.Conv2d(channels, 2, 3, 1, 1), nn.ReLU(), "conv 2 3 3 2 1")
            block = Residual(body, nn.Conv2d(channels, 3, 1, 2, bias=False))
        layers += [block, draw(activations)()]
        x = layers[-1](block(x))
        if curved and x[0].numel() > 8:  # fewer differ too little to be standardised
            norms = [nn.GroupNorm(1, x.shape[1]), nn.LayerNorm(x.shape[1:]), nn.Identity()]
            layers.append(draw(st.sampled_from(norms)))
        if min(x.shape[2:]) > 1 and draw(st.booleans()):
            padding, ceil, counted = (
                draw(values) for values in (st.integers(0, 1), st.booleans(), st.booleans())
            )
            layers.append(nn.AvgPool2d(2, draw(st.integers(1, 2)), padding, ceil, counted))
            x = layers[-1](x)
    layers.append(nn.Flatten())
    units = x.flatten(1).shape[1]
    if draw(st.booleans()):
        layers += [nn.Linear(units, 3), nn.LeakyReLU(0.2)]
        units = 3
    return loud(nn.Sequential(*layers, nn.Linear(units, 1, bias=draw(st.booleans())))), shape


single_penalties = st.builds(
    PenaltyConfig,
    kind=st.sampled_from(KINDS),
    weight=st.sampled_from([0.5, 3.0, 10.0]),
    target=st.sampled_from([0.0, 0.6, 1.0]),
    one_sided=st.booleans(),
    interval=st.sampled_from([1, 4]),
)
some_penalties = st.one_of(
    single_penalties,
    st.tuples(single_penalties, single_penalties).map(
        lambda pair: (pair[0], replace(pair[1], interval=pair[0].interval))
    ),
)


@pytest.mark.parametrize("examples", [40, pytest.param(250, marks=pytest.mark.accept)])
@pytest.mark.parametrize("curved", [False, True], ids=["piecewise linear", "curved"])
def test_engines_agree_on_random_critics(curved, examples):
    @settings(max_examples=examples, deadline=None, derandomize=True)
    @given(
        random_critics(curved),
        st.sampled_from(LOSSES),
        some_penalties,
        st.integers(2, 5),
        st.integers(0, 99),
    )
    def check(made, loss, penalty, n, seed):
        critic, shape = made
        assert_engines_agree(critic, loss, penalty, pictures(shape, n, seed), least=0.0)

    check()


@pytest.mark.parametrize(("loss", "penalty"), in_turn(LOSSES, ["none", *KINDS]))
def test_engines_agree_for_every_loss_and_penalty(loss, penalty):
    assert_engines_agree(plain_critic(), loss, PenaltyConfig(penalty, weight=3.0))


VARIANTS = [
    (PenaltyConfig("wgan-gp", target=0.0), PenaltyConfig("r1")),
    (PenaltyConfig("r1", weight=2.0, interval=3), PenaltyConfig("r2", weight=0.3, interval=3)),
    (PenaltyConfig("r2"), PenaltyConfig("dragan", one_sided=True, target=0.3)),
    (PenaltyConfig("wgan-gp", interval=2), PenaltyConfig("dragan", interval=2)),
    (PenaltyConfig("r1+r2", weight=0.7), PenaltyConfig("r1", weight=2.0)),
    (PenaltyConfig("wgan-gp", target=0.5), PenaltyConfig("wgan-gp", one_sided=True)),
]


@pytest.mark.parametrize("penalty", VARIANTS, ids=lambda pair: " and ".join(p.kind for p in pair))
def test_two_penalties_at_once_add_up(penalty):
    for critic in (plain_critic(), norm_critic("GroupNorm")):
        both = assert_engines_agree(critic, "hinge", penalty)
        first, second, none = (
            gradient(critic, loss="hinge", penalty=kind) for kind in (*penalty, "none")
        )
        torch.testing.assert_close(both, first + second - none, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("penalty", "engine"), in_turn([*KINDS, "two"], ENGINES), ids=lambda x: str(x)
)
def test_a_share_of_a_penalty_is_one_of_that_weight(penalty, engine):
    """Half of a weight that falls from 3 to 1 is 1.5, and so for two penalties at once."""
    kinds = ["r1+r2", "dragan"] if penalty == "two" else [penalty]
    falling = [PenaltyConfig(kind, weight=Schedule(3.0, 1.0)) for kind in kinds]
    fixed = [PenaltyConfig(kind, weight=1.5) for kind in kinds]
    share = {"penalty_share": torch.tensor(0.5, dtype=torch.float64)}
    part, stats, _ = run(plain_critic(), engine, "hinge", falling, pictures() | share)
    exact, wanted, _ = run(plain_critic(), "reference", "hinge", fixed)
    assert error(part, exact) <= ROUNDING
    assert error(part, gradient(plain_critic(), loss="hinge", penalty="none")) > 1e-3
    assert {name: x.item() for name, x in stats.items()} == pytest.approx(
        {name: x.item() for name, x in wanted.items()}, rel=ROUNDING
    )


@pytest.mark.parametrize("engine", ENGINES)
def test_a_step_without_its_penalty_is_one_that_has_none(engine):
    lazy, _, _ = run(plain_critic(), engine, "hinge", "r1", pictures() | {"with_penalty": False})
    assert error(lazy, gradient(plain_critic(), loss="hinge", penalty="none")) <= ROUNDING


@pytest.mark.parametrize("engine", ENGINES)
def test_smoothed_labels_reach_every_engine(engine):
    smooth = LossConfig("non-saturating", label_smoothing=0.2)
    found, exact, plain = (
        gradient(plain_critic(), name, loss=loss, penalty="r1")
        for name, loss in ((engine, smooth), ("reference", smooth), ("reference", smooth.kind))
    )
    assert error(found, exact) <= ROUNDING
    assert error(found, plain) > 1e-2


AS_LINES = nn.Flatten(), nn.Unflatten(1, (3, 9 * 7))


def test_critics_of_one_and_of_three_axes_are_walked():
    lines = net(*AS_LINES, nn.Conv1d(3, 4, 5, 2, 1), "leak", "score")
    solids = net(nn.Unflatten(1, (1, 3)), nn.Conv3d(1, 2, 3, 2, 1), nn.ReLU(), "score")
    for critic in (lines, solids):
        assert walked(critic).tail is None
        for penalty in ("wgan-gp", "r1"):
            assert_engines_agree(loud(critic), penalty=penalty)


LAYERS = {
    "global average": lambda: nn.AdaptiveAvgPool2d(1),
    "average of windows": lambda: nn.AvgPool2d(
        (3, 2), (2, 1), (1, 0), ceil_mode=True, count_include_pad=False
    ),
    "nearest": lambda: nn.Upsample(scale_factor=0.5),
    "bilinear": lambda: nn.Upsample((5, 11), mode="bilinear", align_corners=True),
    "flatten some axes": lambda: nn.Flatten(1, 2),
    "no kernel": lambda: nn.Conv2d(4, 3, 1, bias=False),
    "depthwise": lambda: nn.Conv2d(4, 8, 3, 1, 1, groups=4),
}


@pytest.mark.parametrize(("penalty", "layer"), in_turn(["wgan-gp", "none", "r1"], LAYERS))
def test_layers_that_are_known_are_walked(layer, penalty):
    critic = net("conv 3 4 3 1 1", "leak", LAYERS[layer](), nn.LeakyReLU(0.3), "score")
    assert walked(critic).tail is None
    assert_engines_agree(loud(critic), penalty=penalty)


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_paddings_by_name_are_walked(padding):
    critic = loud(net(nn.Conv2d(3, 4, (3, 5), padding=padding), "leak", "score"))
    assert walked(critic).tail is None
    assert_engines_agree(critic)


# Rounding.

ROUNDED = {
    "plain": lambda seed: plain_critic(seed),
    "normalised": lambda seed: norm_critic("GroupNorm", seed),
    "tail": lambda seed: spread_critic(seed=seed),
}


def away_from_kinks(make, inputs, penalties=("wgan-gp", "dragan")):
    """The first critic with no pre-activation near a kink: rounding must not pick the side."""
    share = inputs["eps"].view(-1, 1, 1, 1)
    between = share * inputs["real"] + (1 - share) * inputs["fake"]
    around = inputs["real"] + 0.5 * inputs["real"].std() * inputs["noise"]
    for seed in range(20):
        critic, distances = make(seed), []

        def measure(_, x, __, distances=distances):
            distances.append((x[0].abs().min() / x[0].abs().max()).item())

        hooks = [
            m.register_forward_hook(measure)
            for m in critic.modules()
            if isinstance(m, nn.LeakyReLU | nn.ReLU)
        ]
        for x in (inputs["real"], inputs["fake"], between, around):
            critic(x)
        for hook in hooks:
            hook.remove()
        if min(distances, default=1.0) > 1e-5:
            return critic
    raise AssertionError("no critic without values at a kink")


ROUNDINGS = in_turn(itertools.product(ROUNDED, ["none", *KINDS]), range(3))


@pytest.mark.parametrize(("make", "penalty", "seed"), ROUNDINGS)
def test_in_float32_engines_are_as_accurate_as_float32_allows(seed, penalty, make):
    penalty = PenaltyConfig(penalty, weight=3.0)
    critic = away_from_kinks(ROUNDED[make], pictures(seed=seed))
    exact = gradient(critic, penalty=penalty, inputs=pictures(seed=seed))
    critic, inputs = critic.float(), pictures(seed=seed, dtype=torch.float32)
    errors = {
        engine: error(gradient(critic, engine, penalty=penalty, inputs=inputs), exact)
        for engine in ENGINES
    }
    for engine in FAST:
        assert errors[engine] <= max(2e-5, 4 * errors["reference"]), errors


@pytest.mark.parametrize(("make", "penalty", "seed"), ROUNDINGS)
def test_under_bf16_engines_are_as_accurate_as_bf16_allows(seed, penalty, make):
    how = {"penalty": PenaltyConfig(penalty, weight=3.0)}
    critic = ROUNDED[make](seed)
    exact = gradient(critic, inputs=pictures(seed=seed, n=16), **how)
    how["inputs"] = pictures(seed=seed, n=16, dtype=torch.float32)
    critic, errors = critic.float(), {}
    for engine in ENGINES:
        found, stats, _ = run(critic, engine, autocast=torch.bfloat16, **how)
        assert found.dtype == torch.float32
        assert {value.dtype for value in stats.values()} == {torch.float32}
        errors[engine] = error(found, exact)
    assert errors["reference"] > 1e-4  # else bfloat16 was not used
    for engine in FAST:
        assert 1e-4 < errors[engine] <= 1.5 * errors["reference"] + 1e-3, errors


# Curved critics.

CURVED = {
    "GroupNorm": (lambda: nn.GroupNorm(2, 4), nn.Identity),
    "GroupNorm of units": (nn.Identity, lambda: nn.GroupNorm(3, 6)),
    "GroupNorm without weights": (lambda: nn.GroupNorm(4, 4, affine=False), nn.Identity),
    "LayerNorm of maps": (lambda: nn.LayerNorm((4, 4, 3)), lambda: nn.LayerNorm(6)),
    "LayerNorm of rows": (lambda: nn.LayerNorm(3), nn.Identity),
    "LayerNorm of units": (nn.Identity, lambda: nn.LayerNorm(6, elementwise_affine=False)),
    "LayerNorm without biases": (lambda: nn.LayerNorm((4, 3), bias=False), nn.Identity),
    "InstanceNorm": (lambda: nn.InstanceNorm2d(4), nn.Identity),
    "InstanceNorm with weights": (lambda: nn.InstanceNorm2d(4, affine=True), nn.Identity),
    "SiLU": (nn.SiLU, nn.SiLU),
    "Softplus": (nn.Softplus, nn.Softplus),
    "Tanh": (nn.Tanh, nn.Tanh),
}


def norm_critic(kind, seed=0):
    """Convolution, layer on maps, leaky ReLU; linear, layer on units, leaky ReLU; linear."""
    torch.manual_seed(seed)
    on_maps, on_units = (make() for make in CURVED[kind])
    critic = net(
        "conv 3 4 4 2 1",
        on_maps,
        "leak",
        nn.Flatten(),
        "linear 48 6",
        on_units,
        "leak",
        "linear 6 1",
    )
    with torch.no_grad():
        for norm in (on_maps, on_units):
            for p in norm.parameters():
                # Ones and zeros would hide a forgotten scale or shift.
                p.add_(0.3 * torch.randn_like(p))
    return loud(critic)


@pytest.mark.parametrize(("kind", "penalty"), in_turn(CURVED, [*KINDS, "none"]))
def test_engines_agree_on_curved_critics(kind, penalty):
    critic = norm_critic(kind)
    found = walked(critic)
    assert found.tail is None
    assert found.curved
    assert_engines_agree(critic, penalty=PenaltyConfig(penalty, weight=3.0, target=0.4))


# Parametrised weights.


@pytest.mark.parametrize("penalty", ["none", *KINDS])
@pytest.mark.parametrize("conditional", ["no", "projection"])
def test_engines_agree_under_spectral_normalisation(conditional, penalty):
    """Buffers agree too: one power iteration a step; test_engine_reference.py has the paper's."""
    critic = spectral(plain_critic(conditional=conditional))
    with torch.no_grad():
        for name, p in critic.named_parameters():
            if name.endswith("original"):
                p.normal_()  # far-off estimates: two iterations differ from one
    before = {name: b.clone() for name, b in critic.named_buffers()}
    inputs = pictures() if conditional == "no" else labelled()
    assert_engines_agree(critic, "hinge", penalty, inputs)
    _, _, stepped = run(critic, "explicit", "hinge", penalty, inputs)
    moves = [(b - before[name]).abs().max() for name, b in stepped.named_buffers()]
    assert max(moves) > 1e-3


@pytest.mark.parametrize("engine", ENGINES)
def test_two_steps_make_two_power_iterations(engine):
    critic = spectral(plain_critic())
    with torch.no_grad():
        critic.trunk[2].parametrizations.weight.original.normal_()
    twin = copy.deepcopy(critic)
    step = unchecked(critic, engine=engine)
    for _ in range(2):
        step(**pictures())
        twin(pictures()["real"])  # a forward in training mode is one
    for (name, a), b in zip(twin.named_buffers(), critic.buffers(), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-12, atol=1e-12, msg=name)
    assert all(m.training for m in critic.modules())


# Classes.


@pytest.mark.parametrize("penalty", ["none", *KINDS])
@pytest.mark.parametrize(
    ("conditional", "class_fakes"),
    [("projection", False), ("auxiliary", False), ("auxiliary", True)],
    ids=str,
)
def test_engines_agree_on_critics_of_classes(conditional, class_fakes, penalty):
    loss = LossConfig("relativistic", class_weight=0.6, class_fakes=class_fakes)
    critic = plain_critic(conditional=conditional)
    assert walked(critic).tail is None
    assert_engines_agree(critic, loss, PenaltyConfig(penalty, weight=3.0), labelled())


@pytest.mark.parametrize(
    "penalty", [("wgan-gp", "r1"), ("r1", "r2"), ("dragan", "r1+r2")], ids=" and ".join
)
@pytest.mark.parametrize("conditional", ["projection", "auxiliary"])
def test_engines_agree_on_classes_under_two_penalties(conditional, penalty):
    assert_engines_agree(plain_critic(conditional=conditional), "hinge", penalty, labelled())


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("penalty", ["none", "wgan-gp", "dragan", "r1", "r2", "r1+r2"])
def test_reals_and_fakes_may_differ_in_class_only_where_no_point_lies_between(penalty, engine):
    inputs = pictures() | {"real_labels": LABELS, "fake_labels": (LABELS + 1) % CLASSES}
    critic = plain_critic(conditional="projection")
    if penalty in ("wgan-gp", "dragan"):
        with pytest.raises(InputError, match=f"different labels.*{penalty}"):
            run(critic, engine, penalty=penalty, inputs=inputs)
        same = inputs | {"fake_labels": LABELS.clone()}  # equal, though not the same tensor
        found = gradient(critic, engine, penalty=penalty, inputs=same)
        assert error(found, gradient(critic, penalty=penalty, inputs=labelled())) <= ROUNDING
    else:
        exact = gradient(critic, penalty=penalty, inputs=inputs)
        found = gradient(critic, engine, penalty=penalty, inputs=inputs)
        assert error(found, exact) <= ROUNDING
        assert error(gradient(critic, penalty=penalty, inputs=labelled()), exact) > 1e-3


def test_the_reference_judges_fakes_as_their_own_class():
    """The comparison above has this for its definition."""
    labels = {"real_labels": LABELS, "fake_labels": (LABELS + 1) % CLASSES}
    critic = plain_critic(conditional="projection")
    _, stats, _ = run(critic, "reference", "hinge", "r1", pictures() | labels)
    expected = critic(pictures()["fake"], labels["fake_labels"]).score.mean().item()
    assert stats["fake_score"].item() == pytest.approx(expected)


# Critics that are walked up to a tail.


class Spread(nn.Module):
    """Minibatch standard deviation (arXiv:1710.10196, section 3) as one more map: samples meet."""

    def forward(self, x):
        spread = (x.var(0, correction=0) + 1e-8).sqrt().mean()
        return torch.cat([x, spread.expand(len(x), 1, *x.shape[2:])], 1)


class Softest(nn.Module):
    """log sum exp of several scores: a head that no layer of the engine knows."""

    def __init__(self, units, scores=3):
        super().__init__()
        self.scores = nn.Linear(units, scores)

    def forward(self, x):
        return torch.logsumexp(self.scores(x), 1)


class Embedded(nn.Module):
    """Projection by an embedding: the score gains the inner product of a row with the features."""

    takes_labels = True

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.LeakyReLU(0.2), nn.Flatten())
        self.head, self.embedding = nn.Linear(80, 1), nn.Embedding(CLASSES, 80, padding_idx=1)

    def forward(self, x, labels):
        features = self.trunk(x)
        return self.head(features)[:, 0] + (features * self.embedding(labels)).sum(1)


def spread_critic(norm=nn.Identity, seed=0):
    torch.manual_seed(seed)
    before = ("conv 3 4 3 2 1", norm(), "leak", Spread())
    return loud(net(*before, "conv 5 6 3 2 1", "leak", nn.Flatten(), Softest(36)))


@pytest.mark.parametrize("penalty", ["none", *KINDS, ("wgan-gp", "r2")], ids=str)
@pytest.mark.parametrize(
    "norm", [nn.Identity, lambda: nn.GroupNorm(2, 4)], ids=["plain", "normalised"]
)
def test_engines_agree_on_a_critic_whose_samples_meet(norm, penalty):
    critic = spread_critic(norm)
    found = walked(critic)
    assert found.tail is not None
    assert found.refused == ["3 (Spread)"]
    assert_engines_agree(critic, penalty=penalty)


def test_the_choice_names_what_the_tail_takes():
    found = walked(spread_critic())
    choice = choose(spread_critic(), (PenaltyConfig("r1"),), walked=found)
    assert choice.engine == "explicit"
    assert "3 (Spread)" in choice.reason
    assert choose(spread_critic(), (), compile=False, walked=found).engine == "reference"


@pytest.mark.parametrize("penalty", ["none", *KINDS])
def test_engines_agree_on_a_head_of_an_unknown_function(penalty):
    critic = loud(net("conv 3 4 3 2 1", "leak", nn.Flatten(), Softest(80)))
    found = walked(critic)
    assert found.refused == ["3 (Softest)"]
    assert [step.name for step in found.steps] == ["0", "1", "2", "3.scores"]
    assert_engines_agree(critic, penalty=penalty)


@pytest.mark.parametrize("penalty", ["none", *KINDS])
def test_engines_agree_on_a_tail_that_reads_labels(penalty):
    critic = loud(Embedded())
    found = walked(critic)
    assert found.tail is not None
    assert found.tail.takes_labels
    fakes = {"fake_labels": LABELS.flip(0)} if penalty in ("none", "r1", "r2", "r1+r2") else {}
    assert_engines_agree(critic, penalty=penalty, inputs=labelled() | fakes)


# Sums, norms, and weights in more than one place.


def uneven(norm):
    nn.init.normal_(norm.weight)
    return norm


def weight_normed():
    critic = plain_critic()
    weight_norm(critic.trunk[2])
    weight_norm(critic.head)
    return critic


def of_the_same_weight(layer):
    other = nn.Conv2d(4, 4, 3, 1, 1)
    other.weight = layer.weight
    return other


SOME = ["none", "wgan-gp", "r1"]


def pooled(pool):
    return lambda conv: (Residual(pool), "leak")


def curves(conv):
    return Residual(net(nn.GroupNorm(2, 4), nn.SiLU(), conv)), Residual(nn.Tanh()), nn.AvgPool2d(2)


def lines(conv):
    return loud(
        net(*AS_LINES, nn.Conv1d(3, 4, 5, 2, 1), uneven(nn.GroupNorm(2, 4)), nn.SiLU(), "score")
    )


# A critic, or its layers behind the first, which may use a convolution twice; penalties; the tail.
MEETING = {
    "group norm on lines": (lines, SOME, []),
    "curves in a residual sum": (curves, KINDS, []),
    "weight normalisation": (lambda _: weight_normed(), SOME, []),
    "spectral tail": (lambda _: spectral(spread_critic()), SOME[1:], ["3 (Spread)"]),
    "weight in the tail, too": (
        lambda conv: (conv, "leak", nn.Softshrink(0.01), conv),
        SOME[1:],
        ["3 (Softshrink)"],
    ),
    "average of a window": (pooled(nn.AvgPool2d((5, 4))), SOME, []),
    "average of all": (pooled(nn.AdaptiveAvgPool2d(1)), SOME, []),
    "layer twice": (
        lambda conv: ("leak", conv, "leak", Residual(conv), "leak"),
        ["none", *KINDS],
        [],
    ),
    "weight of two": (lambda conv: (conv, "leak", of_the_same_weight(conv)), SOME[:2], []),
}


@pytest.mark.parametrize(
    ("case", "penalty"), [(name, kind) for name, row in MEETING.items() for kind in row[1]]
)
def test_engines_agree_where_values_or_weights_meet(case, penalty):
    make, _, refused = MEETING[case]
    critic = make(nn.Conv2d(4, 4, 3, 1, 1))
    if not isinstance(critic, nn.Module):
        critic = loud(net("conv 3 4 3 2 1", *critic, "score"))
    assert walked(critic).refused == refused
    assert_engines_agree(critic, penalty=penalty)


@pytest.mark.parametrize(
    "first",
    [nn.Tanh, lambda: nn.InstanceNorm2d(3), lambda: nn.AvgPool2d(2)],
    ids=["curve", "norm", "pool"],
)
@pytest.mark.parametrize("penalty", ["none", *KINDS])
def test_engines_agree_where_the_first_layer_has_no_weights(penalty, first):
    assert_engines_agree(loud(net(first(), "conv 3 4 3 2 1", "leak", "score")), penalty=penalty)


# Forward passes as people write them.


class Styled(nn.Module):
    """Two convolutions that ``features(self, x)`` uses as it likes, and a linear head."""

    def __init__(self, features, ending=lambda y: y):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, 1, 1), nn.Conv2d(4, 4, 3, 1, 1)
        self.register_buffer("blur", torch.rand(4, 1, 3, 3))
        self.matrix = nn.Parameter(torch.randn(SHAPE[2], 4))
        self.features, self.ending = features, ending
        with torch.no_grad():
            self.head = nn.Linear(features(self, torch.zeros(1, *SHAPE)).flatten(1).shape[1], 1)

    def forward(self, x):
        return self.ending(self.head(self.features(self, x).flatten(1)))


RESIZED = {
    "nearest": {"scale_factor": 0.5},
    "nearest, odd factors": {"scale_factor": (0.7, 0.45)},
    "nearest, larger": {"size": (11, 13)},
    "bilinear": {"scale_factor": 0.5, "mode": "bilinear"},
    "bilinear, to a size": {"size": (4, 3), "mode": "bilinear"},
    "bilinear, corners": {"size": 5, "mode": "bilinear", "align_corners": True},
    "bilinear, smoothed": {"scale_factor": 0.6, "mode": "bilinear", "antialias": True},
}


def resizing(how):
    return lambda m, x: F.relu(m.b(F.interpolate(m.a(x), **how)))


STYLES = {
    "leaky_relu": lambda m, x: m.b(F.leaky_relu(m.a(x), 0.2)),
    "leaky_relu, default slope": lambda m, x: m.b(F.leaky_relu(m.a(x))),
    "leaky_relu, slope by name": lambda m, x: m.b(F.leaky_relu(m.a(x), negative_slope=0.3)),
    "relu, four ways": lambda m, x: torch.relu(F.relu(m.b(m.a(x).relu()))),
    "curves": lambda m, x: F.silu(m.b(F.softplus(m.a(torch.tanh(x)).tanh()))),
    "avg_pool2d": lambda m, x: F.relu(m.b(F.avg_pool2d(m.a(x), 2))),
    "avg_pool2d, borders": lambda m, x: F.relu(
        F.avg_pool2d(m.a(x), (3, 2), stride=(2, 3), padding=1, count_include_pad=False)
    ),
    "avg_pool2d, ceil": lambda m, x: F.relu(
        F.avg_pool2d(m.a(x), 2, ceil_mode=True, divisor_override=3)
    ),
    **{name: resizing(how) for name, how in RESIZED.items()},
    "picture made smaller": lambda m, x: m.b(
        F.leaky_relu(m.a(F.interpolate(x, **RESIZED["bilinear"])), 0.2)
    ),
    "residual": lambda m, x: F.relu(m.a(x)) + m.b(F.relu(m.a(x))),
    "residual of the picture": lambda m, x: m.a(x + F.leaky_relu(x, 0.2)),
    "the same twice": lambda m, x: (lambda y: F.relu(m.b(y + y)))(m.a(x)),
    "constant": lambda m, x: m.b(F.relu(m.a(x) * 0.7)) / 2,
    "constant first": lambda m, x: m.b(F.relu(0.7 * m.a(x))) * 3,
    "torch.flatten": lambda m, x: torch.flatten(F.relu(m.a(x)), 1),
    "flatten some axes": lambda m, x: F.relu(m.a(x)).flatten(start_dim=1, end_dim=2),
    "a number more": lambda m, x: m.b(F.relu(m.a(x) + 0.3)) - 0.1,
    "a number less it": lambda m, x: 0.2 - m.b(F.relu(0.5 - m.a(x))),
    "difference": lambda m, x: m.b(F.relu(m.a(x) - m.b(m.a(x)))),
    "mean of pixels": lambda m, x: m.b(F.relu(m.a(x))).mean((2, 3)),
    "sum of pixels": lambda m, x: m.b(F.relu(m.a(x))).sum(dim=(-1, -2), keepdim=True),
    "sum of channels": lambda m, x: torch.sum(F.relu(m.a(x)), 1),
    "bicubic": lambda m, x: F.interpolate(m.a(x), scale_factor=0.5, mode="bicubic"),
    "stretched sum": lambda m, x: m.a(x) + m.a(x)[:, :1],
    "slices": lambda m, x: m.b(F.relu(m.a(x)))[..., 1:, ::2],
    "times a weight": lambda m, x: F.relu(m.a(x) * m.b.bias.view(4, 1, 1)),
    "plus and minus weights": lambda m, x: (
        m.b.bias.view(4, 1, 1) - F.relu(m.a(x) + m.a.bias.view(1, -1, 1, 1)) - m.b.weight.mean()
    ),
    "over a weight": lambda m, x: F.relu(m.a(x)) / (2 + m.b.bias.square().view(4, 1, 1)),
    "scaled weight": lambda m, x: F.relu(F.conv2d(m.a(x), m.b.weight * 0.3, padding=1)),
    "weight of two": lambda m, x: F.conv2d(m.a(x), m.b.weight + m.b.weight.flip(3), m.a.bias),
    "cast weight": lambda m, x: F.conv2d(m.a(x), m.b.weight.to(x.dtype), m.a.bias),
    "grouped": lambda m, x: F.conv2d(m.a(x), m.b.weight[:, :2], padding="same", groups=2),
    "joined": lambda m, x: F.relu(torch.cat([m.a(x), m.b(m.a(x))], 1)),
    "joined, last axis": lambda m, x: torch.cat((F.relu(m.a(x)), m.a(x)), dim=-1),
    "padded": lambda m, x: F.relu(m.b(F.pad(m.a(x), (1, 2, 0, 1), mode="reflect"))),
    "reshaped": lambda m, x: F.relu(m.a(x)).view(len(x), 2, -1).reshape(x.size(0), -1, 1, 1),
    "transposed": lambda m, x: F.relu(m.a(x)).transpose(1, 3).permute(0, 3, 1, 2),
    "channels as samples": lambda m, x: m.b(F.relu(m.a(x)).flatten(0, 1).unflatten(0, (-1, 4))),
    "blurred by channel": lambda m, x: (
        lambda y: F.conv2d(
            y.reshape(y.shape[0] * y.shape[1], 1, *y.shape[2:]), m.blur[:1], stride=2
        ).view(len(y), 4, -1)
    )(F.relu(m.a(x))),
    "blurred in groups": lambda m, x: m.b(F.conv2d(F.relu(m.a(x)), m.blur, padding=1, groups=4)),
    "by a matrix": lambda m, x: F.relu(m.a(x)) @ m.matrix,
    "by a matrix and more": lambda m, x: torch.addmm(
        m.matrix[:1], F.relu(m.a(x)).mean((2, 3)), m.matrix[:4]
    ),
}
ENDINGS = {
    "as it is": lambda y: y,
    "column": lambda y: y[:, 0],
    "squeeze(1)": lambda y: y.squeeze(1),
    "squeeze(-1)": lambda y: y.squeeze(-1),
    "torch.squeeze": lambda y: torch.squeeze(y, dim=1),
    "flatten and scale": lambda y: 2 * y.flatten(1)[:, 0],
}


@pytest.mark.parametrize(("style", "penalty"), in_turn(STYLES, ["wgan-gp", "r1", "none", "r1+r2"]))
def test_engines_agree_on_functional_forwards(style, penalty):
    critic = loud(Styled(STYLES[style]))
    assert walked(critic).tail is None
    assert_engines_agree(critic, penalty=penalty)


@pytest.mark.parametrize("ending", ENDINGS)
def test_engines_agree_on_every_form_of_score(ending):
    critic = loud(Styled(STYLES["leaky_relu"], ENDINGS[ending]))
    assert walked(critic).tail is None
    assert_engines_agree(critic, penalty=("wgan-gp", "r1"))


@pytest.mark.parametrize(
    "style",
    [
        lambda m, x: m.b(F.relu(m.a(x) - m.a(x).flip(3))),
        lambda m, x: m.b(F.elu(m.a(x))),
        lambda m, x: F.softplus(m.a(x), 2.0),
        lambda m, x: F.relu(m.a(x)) * torch.sigmoid(m.b(m.a(x))),
        lambda m, x: F.max_pool2d(m.a(x), 2),
        lambda m, x: torch.add(m.a(x), x[:, :1], alpha=2),
        lambda m, x: F.leaky_relu(m.a(x), -0.5),
        lambda m, x: 1 / (3 + m.a(x).tanh()),
        lambda m, x: m.a(x) + m.a(x).mean(0, keepdim=True),
    ],
)
@pytest.mark.parametrize("penalty", ["wgan-gp", "r1"])
def test_engines_agree_on_functional_forwards_that_end_in_a_tail(style, penalty):
    """What is not known is left to autograd, never guessed."""
    critic = loud(Styled(style))
    assert walked(critic).tail is not None
    assert_engines_agree(critic, penalty=penalty)


@pytest.mark.parametrize("where", ["layer", "trunk"])
@pytest.mark.parametrize("penalty", ["wgan-gp", "r1"])
def test_engines_agree_on_a_critic_with_forward_hooks(where, penalty):
    critic = plain_critic()
    {"layer": critic.trunk[2], "trunk": critic.trunk}[where].register_forward_hook(double)
    assert walked(critic).tail is None
    plain = gradient(plain_critic(), penalty=penalty)
    assert error(gradient(critic, penalty=penalty), plain) > 1e-2
    assert_engines_agree(critic, penalty=penalty)


@pytest.mark.parametrize("kind", ["output", "input"])
def test_a_hook_on_the_critic_itself_is_not_overlooked(kind):
    critic = plain_critic().trunk.append(nn.Linear(24, 1).double())
    if kind == "output":
        critic.register_forward_hook(double)
    else:
        critic.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    assert_refused_or_agreed(critic)


def assert_refused_or_agreed(critic, penalty="wgan-gp"):
    try:
        walked(critic)
    except CannotWalk:
        assert_engines_agree(critic, penalty=penalty, engines=["autograd"])
        return
    assert_engines_agree(critic, penalty=penalty)


class Equalised(nn.Conv2d):
    """A convolution by type only: its weights are scaled in use (arXiv:1710.10196, section 4.1)."""

    def forward(self, x):
        return self._conv_forward(x, self.weight * 0.37, self.bias)


class EqualisedLinear(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight * 0.37, self.bias)


class LouderLeak(nn.LeakyReLU):
    def forward(self, x):
        return super().forward(x) * 2**0.5


SUBCLASSES = {
    "convolution": lambda: Equalised(3, 4, 3, 2, 1),
    "leak": LouderLeak,
    "linear": lambda: EqualisedLinear(80, 1),
}


@pytest.mark.parametrize("kind", SUBCLASSES)
def test_a_layer_with_a_forward_of_its_own_is_not_taken_for_its_base_class(kind):
    layers = {
        "convolution": nn.Conv2d(3, 4, 3, 2, 1),
        "leak": nn.LeakyReLU(0.2),
        "flat": nn.Flatten(),
        "linear": nn.Linear(80, 1),
    }
    assert_refused_or_agreed(loud(net(*(layers | {kind: SUBCLASSES[kind]()}).values())))


@pytest.mark.parametrize(
    "act", [nn.ReLU(inplace=True), nn.LeakyReLU(0.2, inplace=True)], ids=["ReLU", "LeakyReLU"]
)
def test_engines_agree_on_activations_in_place(act):
    critic = net("conv 3 4 3 2 1", act, "conv 4 4 3 1 1", act, "score")
    assert_engines_agree(loud(critic))
    assert_engines_agree(loud(critic), penalty="r1")


@pytest.mark.parametrize("penalty", ["wgan-gp", "r1"])
def test_what_an_activation_in_place_overwrites_is_overwritten_for_its_other_readers_too(penalty):
    """The pre-activation block as it is mostly written: its shortcut carries the activated map."""
    assert_refused_or_agreed(loud(net("conv 3 4 3 2 1", Overwriting(), "score")), penalty)


class Overwriting(nn.Module):
    def __init__(self):
        super().__init__()
        self.act, self.conv = nn.LeakyReLU(0.2, inplace=True), nn.Conv2d(4, 4, 3, 1, 1)

    def forward(self, x):
        return self.conv(self.act(x)) + x


class Branching(nn.Module):
    """Python control flow on values."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3, 2, 1), nn.Linear(80, 1)

    def forward(self, x):
        x = self.conv(x)
        x = F.relu(x) if x.mean() > 100 else F.leaky_relu(x, 0.2)
        return self.head(x.flatten(1))


def test_control_flow_on_values_cannot_be_walked_and_runs_in_every_step():
    critic = loud(Branching())
    why = r"cannot be recorded at test_engines.py:\d+: Data-dependent branching"
    with pytest.raises(CannotWalk, match=why):
        walked(critic)
    with pytest.raises(InputError, match=why):
        unchecked(critic, engine="explicit")(**pictures())
    step = unchecked(critic, engine="auto", compile=True)
    step(**pictures())
    # A compiler would keep the branch that it saw.
    assert (step.choice.engine, step.choice.compiled) == ("reference", False)
    assert re.search(why, step.choice.reason)
    for penalty in ("wgan-gp", "r1"):
        assert_engines_agree(critic, penalty=penalty, engines=["autograd"])


def test_an_unknown_first_layer_cannot_be_walked():
    critic = nn.Sequential(nn.ConvTranspose2d(3, 4, 3), nn.Flatten(), nn.Linear(396, 1))
    with pytest.raises(CannotWalk, match=r"0 \(ConvTranspose2d\)"):
        walked(critic)
    assert choose(critic, (PenaltyConfig("r1"),), compile=True).engine == "autograd"


LINEAR = {
    "pixel shuffle": (4, 6, 6, nn.PixelShuffle(2)),
    "pixel unshuffle": (4, 6, 6, nn.PixelUnshuffle(3)),
    "circular": (4, 5, 6, nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")),
    "same, even kernel": (4, 5, 6, nn.Conv2d(4, 4, 2, padding="same")),
    "adaptive": (4, 5, 6, nn.AdaptiveAvgPool2d((2, 3))),
    "bicubic": (4, 5, 6, nn.Upsample(scale_factor=2, mode="bicubic")),
    "zeros around": (4, 5, 6, nn.ZeroPad2d((1, 0, 2, 1))),
    "reflected": (4, 5, 6, nn.ReflectionPad2d(2)),
    "line: convolution": (4, 9, nn.Conv1d(4, 3, 3, 2, padding=2, padding_mode="replicate")),
    "line: pooling": (4, 9, nn.AvgPool1d(3, 2)),
    "line: norm": (4, 9, nn.InstanceNorm1d(4, affine=True)),
    "line: nearest": (4, 9, nn.Upsample(scale_factor=2)),
    "clip: convolution": (4, 3, 4, 5, nn.Conv3d(4, 3, 2, stride=(1, 2, 1))),
    "clip: pooling": (4, 4, 4, 4, nn.AvgPool3d(2)),
    "clip: norm": (4, 3, 4, 5, nn.InstanceNorm3d(4)),
    "clip: trilinear": (4, 3, 4, 5, nn.Upsample(size=(2, 5, 3), mode="trilinear")),
}


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize(("name", "penalty"), in_turn(LINEAR, ["wgan-gp", "r1", "none", "r1+r2"]))
def test_engines_agree_on_linear_layers_over_any_axes(name, penalty):
    *shape, layer = copy.deepcopy(LINEAR[name])
    units = layer(torch.zeros(2, *shape)).flatten(1).shape[1]
    critic = nn.Sequential(layer, nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(units, 1))
    assert walk(critic).tail is None
    assert_engines_agree(loud(critic), penalty=penalty, inputs=pictures(shape))


@pytest.mark.parametrize(
    "layer",
    [
        nn.AlphaDropout(0.3),
        nn.BatchNorm2d(4, momentum=None),
        nn.InstanceNorm2d(4, track_running_stats=True),
        nn.Softplus(2.0),
        nn.PReLU(),
        nn.MaxPool2d(2),
        nn.LeakyReLU(-0.2),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_layers_that_are_not_known_are_left_to_the_tail(layer):
    critic = net("conv 3 4 3 2 1", layer, "score")
    assert walked(critic).refused == [f"1 ({type(layer).__name__})"]
    if not isinstance(layer, nn.BatchNorm2d):  # refused together with a penalty
        torch.manual_seed(7)  # dropout's numbers
        exact = gradient(loud(critic))
        for engine in FAST:
            torch.manual_seed(7)
            assert error(gradient(critic, engine), exact) <= ROUNDING, engine


def test_dropout_that_drops_nothing_is_no_layer():
    critic = net("conv 3 4 3 2 1", nn.Dropout(0.5), nn.Dropout(0.0), "score")
    assert (len(walked(critic).steps), walked(critic).draws) == (4, True)
    assert (len(walked(critic.eval()).steps), walked(critic).draws) == (3, False)
    assert_engines_agree(loud(critic))


DROPPERS = {
    "torch's": lambda: nn.Dropout(0.3),
    "of channels": lambda: nn.Dropout2d(0.3),
    "ours": lambda: Dropout(0.3),
    "behind GroupNorm": lambda: nn.Sequential(nn.GroupNorm(2, 4), nn.Dropout(0.3)),
    "behind InstanceNorm": lambda: nn.Sequential(nn.InstanceNorm2d(4), Dropout(0.3)),
}


def dropping(first="torch's"):
    """Two layers that draw, so that their order counts; the first draws in the pictures' layout."""
    torch.manual_seed(0)
    leak, drop = f"leak {LEAK}", DROPPERS[first]()
    trunk = net("conv 3 4 4 2 1", leak, drop, "conv 4 6 3 2 1", leak, nn.Flatten(), nn.Dropout(0.5))
    critic = loud(Critic(trunk, 6 * 2 * 2, CLASSES, "auxiliary"))
    return critic.to(memory_format=torch.channels_last)


@pytest.mark.parametrize(("penalty", "first"), in_turn(["none", *KINDS], DROPPERS))
def test_dropout_is_walked_with_the_numbers_that_the_reference_draws(penalty, first):
    critic = dropping(first)
    assert walked(critic).tail is None
    inputs = labelled()
    found, states = {}, []
    for engine in ENGINES:
        torch.manual_seed(7)
        found[engine], _, _ = run(critic, engine, penalty=penalty, inputs=inputs)
        states.append(torch.random.get_rng_state())
        assert error(found[engine], found["reference"]) <= ROUNDING, engine
        assert torch.equal(states[-1], states[0]), engine
    torch.manual_seed(8)
    other, _, _ = run(critic, "explicit", penalty=penalty, inputs=inputs)
    assert error(other, found["explicit"]) > 0.1, "other numbers, another gradient"


def drawn(engine, penalty, steps, **kwargs):
    """(step, its gradients): steps on the same pictures with dropout's numbers from seed 3."""
    step = unchecked(dropping(), penalty=penalty, engine=engine, **kwargs)
    torch.manual_seed(3)
    return step, [step(**labelled()) and step.gradients.flat.clone() for _ in range(steps)]


def test_dropout_draws_anew_in_every_step_and_as_often_as_the_reference():
    (_, exact), (_, found) = (drawn(engine, "r1", 3, check=True) for engine in ENGINES[::2])
    for ours, theirs in zip(found, exact, strict=True):
        assert error(ours, theirs) <= ROUNDING
    assert error(found[0], found[1]) > 0.1


@pytest.mark.parametrize("penalty", ["none", "r1", "wgan-gp"])
def test_compiled_dropout_draws_what_the_reference_draws(penalty, compiler):
    step, found = drawn("explicit", penalty, 2, compile=True)
    assert step.choice.title == "compiled explicit"
    step, exact = drawn("reference", penalty, 2)
    assert step.choice.title == "reference"
    for ours, theirs in zip(found, exact, strict=True):
        assert error(ours, theirs) <= ROUNDING


def test_where_a_tail_may_draw_as_well_the_walk_ends_before_the_first_layer_that_draws(caplog):
    critic = dropping()
    critic.trunk.insert(5, nn.AlphaDropout(0.3))
    found = walked(critic)
    assert (len(found.steps), found.draws, found.refused) == (2, False, ["trunk.2 (Dropout)"])
    step = unchecked(critic, check=True)
    step(**labelled())
    assert step.choice.engine == "explicit"
    assert not warnings_of(caplog)


def test_the_check_passes_with_dropout_behind_every_norm_in_the_layout_of_training(caplog):
    for first in DROPPERS:
        step = make_critic_step(dropping(first).float(), "hinge", "r1", compile=False)
        step(**pictures(dtype=torch.float32) | {"real_labels": LABELS})
        assert step.choice.engine == "explicit", first
    assert not warnings_of(caplog)


@pytest.mark.accept
def test_our_dropout_compiles_in_autograd_too():
    step = unchecked(net("conv 3 4 3 2 1", Dropout(0.3), "score"), engine="autograd", compile=True)
    step(**pictures(dtype=torch.float32))
    assert step.gradients.flat.isfinite().all()


def test_a_probability_that_is_changed_counts_from_the_next_step():
    critic = dropping()
    for module in (critic.trunk[2], critic.trunk[6]):
        module.p = 0.0
    step = unchecked(critic, check=True)
    step(**labelled())
    still = step.gradients.flat.clone()
    critic.trunk[2].p = 0.5
    step(**labelled())
    assert error(step.gradients.flat, still) > 0.1


BATCH_NORMS = {
    "default": lambda: nn.BatchNorm2d(4),
    "momentum": lambda: nn.BatchNorm2d(4, momentum=0.7, eps=0.3),
    "no weights": lambda: nn.BatchNorm2d(4, affine=False),
    "no statistics": lambda: nn.BatchNorm2d(4, track_running_stats=False),
    "neither": lambda: nn.BatchNorm2d(4, affine=False, track_running_stats=False),
    "of all steps": lambda: nn.BatchNorm2d(4, momentum=None),
    "first": lambda: nn.Identity(),
    "of features": lambda: nn.Sequential(nn.Flatten(), nn.BatchNorm1d(80)),
}


def batch_normed(kind, norm=None):
    torch.manual_seed(0)
    first = [nn.BatchNorm2d(3)] if kind == "first" else []
    middle = norm or BATCH_NORMS[kind]()
    critic = net(*first, "conv 3 4 3 2 1", middle, "leak", nn.Flatten(), "linear 80 1")
    for module in critic.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.affine:
            nn.init.normal_(module.weight, 1, 0.3)
            nn.init.normal_(module.bias, 0, 0.3)
    return critic.double()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", BATCH_NORMS)
def test_batch_norm_scores_reals_and_fakes_apart_in_every_engine(kind, engine):
    assert_batch_norm_right(kind, engine)


COMPILED = [(kind, "recorded") for kind in BATCH_NORMS]
for kind in BATCH_NORMS:
    depth = pytest.mark.accept if kind == "default" else pytest.mark.full
    COMPILED.append(pytest.param(kind, "inductor", marks=depth))


@pytest.mark.parametrize(("kind", "compiler"), COMPILED, indirect=["compiler"])
def test_batch_norm_scores_reals_and_fakes_apart_where_it_is_compiled(kind, compiler):
    assert_batch_norm_right(kind, "compiled")


def assert_batch_norm_right(kind, engine):
    """Gradients, running statistics and counters of the definition: first reals, then fakes."""
    compiled = engine == "compiled"  # which goes on without a check, where the tail has statistics
    steps = [
        unchecked(batch_normed(kind), penalty="none", engine=name, compile=compile, check=compiled)
        for name, compile in (
            ("reference", False),
            ("explicit", True) if compiled else (engine, False),
        )
    ]
    for seed in range(2):
        torch.manual_seed(seed)
        real, fake = torch.randn(2, 6, *SHAPE, dtype=torch.float64).unbind()
        exact, found = (step(real, fake) for step in steps)
        torch.testing.assert_close(found, exact)
        assert error(steps[1].gradients.flat, steps[0].gradients.flat) <= ROUNDING
        torch.testing.assert_close(steps[1].critic.state_dict(), steps[0].critic.state_dict())


def test_batch_norm_is_walked_where_its_halves_are_all_that_matters():
    assert walked(batch_normed("default")).tail is None
    assert not walked(batch_normed("default")).separable
    assert walked(plain_critic()).separable
    assert choose(batch_normed("default"), ()).engine == "explicit"
    assert walked(batch_normed("default").eval()).refused == ["1 (BatchNorm2d)"]
    with pytest.raises(InputError, match="layer 1 of the critic is a batch norm"):
        make_critic_step(batch_normed("default"), "hinge", "r1")


def stepped(critic, engine="explicit", changes=(), batches=(6, 6)):
    """State of a critic after steps, and the last gradient; each change comes behind a step."""
    critic = critic.float()
    step = unchecked(critic, penalty="none", engine=engine)
    torch.manual_seed(0)
    for n, change in itertools.zip_longest(batches, changes):
        step(*torch.randn(2, n, *SHAPE).unbind())
        if change:
            change(critic)
    return critic.state_dict() | {"gradient": step.gradients.flat.clone()}


def test_a_batch_norm_that_is_used_twice_is_left_to_the_tail():
    """Its statistics move by the reals' first and second use, then by the fakes'."""

    def critic():
        norm = nn.BatchNorm2d(4)
        return batch_normed("", nn.Sequential(norm, nn.LeakyReLU(0.1), norm))

    assert [step.name for step in walked(critic()).steps] == ["0"]
    torch.testing.assert_close(stepped(critic()), stepped(critic(), "reference"))


def replaced_statistics(critic):
    critic[1].running_mean = torch.full((4,), 0.5)


@pytest.mark.parametrize(
    "change",
    [
        lambda critic: critic.double().float(),
        replaced_statistics,
        lambda critic: setattr(critic[1], "momentum", 0.9),
        lambda critic: setattr(critic[1], "eps", 0.5),
        lambda critic: critic[1].register_forward_hook(lambda m, x, y: 2 * y) and None,
    ],
    ids=["moved", "replaced", "momentum", "eps", "hook"],
)
def test_changes_of_a_batch_norm_between_two_steps_count(change):
    engines = "auto", "reference"
    found, exact = (stepped(batch_normed("default"), name, [change]) for name in engines)
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "missing", ["running_mean running_var", "num_batches_tracked", "weight", "bias", "weight bias"]
)
def test_a_batch_norm_may_lack_any_of_its_tensors(missing):
    def critic():
        made = batch_normed("default")
        for name in missing.split():
            setattr(made[1], name, None)
        return made

    torch.testing.assert_close(stepped(critic()), stepped(critic(), "reference"))


def test_a_batch_norm_of_one_value_is_refused_like_torch_does():
    for engine, kind, message in (
        ("reference", ValueError, "more than 1 value per channel"),
        ("explicit", InputError, r"one value a channel, \(1, 80\); expected 2 or more pictures"),
    ):
        with pytest.raises(kind, match=message):
            stepped(batch_normed("of features"), engine, batches=(6, 1))


def test_a_batch_norm_that_nobody_reads_is_not_walked():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.norm = plain_critic(), nn.BatchNorm2d(3)

        def forward(self, x):
            self.norm(x)
            return self.body(x)

    with pytest.raises(CannotWalk, match=r"keeps state \(norm.num_batches_tracked\)"):
        walked(Idle())


@pytest.mark.parametrize("compile", [False, True])
def test_the_check_compares_a_batch_norm_on_the_whole_batch(compile, caplog, compiler):
    critic = batch_normed("default").float()
    before = {name: value.clone() for name, value in critic.state_dict().items()}
    step = make_critic_step(critic, "hinge", "none", engine="explicit", compile=compile)
    torch.manual_seed(0)
    # More than the check would take of separable pictures at once.
    real, fake = torch.randn(2, 24, *SHAPE).unbind()
    step(real, fake)
    assert step.choice.title == ("compiled explicit" if compile else "explicit")
    assert not [record for record in caplog.records if record.name == "ganfast"]
    twin = batch_normed("default").float()
    twin.load_state_dict(before)
    make_critic_step(twin, "hinge", "none", engine="reference")(real, fake)
    # The check itself moved nothing.
    torch.testing.assert_close(critic.state_dict(), twin.state_dict())


# Parameters.


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("penalty", ["none", *KINDS])
@pytest.mark.parametrize("kind", ["GroupNorm", "SiLU", None])
def test_a_critic_of_zeros_has_finite_gradients_in_every_engine(kind, penalty, engine):
    critic = norm_critic(kind) if kind else plain_critic()
    with torch.no_grad():
        for p in critic.parameters():
            p.zero_()
    flat, stats, _ = run(critic, engine, "hinge", penalty)
    assert flat.isfinite().all()
    assert all(value.isfinite() for value in stats.values())
    if penalty != "none":
        assert stats["gradient_norm_max"] == 0


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("penalty", ["wgan-gp", "r1"])
@pytest.mark.parametrize(
    "make",
    [plain_critic, lambda: spectral(plain_critic()), spread_critic],
    ids=["plain", "spectral", "tail"],
)
def test_frozen_parameters_get_no_gradient_and_change_no_other(make, penalty, engine):
    whole, frozen = make(), make()
    frozen.load_state_dict(whole.state_dict())
    names = [name for name, _ in frozen.named_parameters()][1::2]
    for name, p in frozen.named_parameters():
        p.requires_grad_(name not in names)
    grads = {}
    for critic, used in ((whole, "reference"), (frozen, engine)):
        unchecked(critic, penalty=penalty, engine=used)(**pictures())
        grads[used, critic is frozen] = {name: p.grad for name, p in critic.named_parameters()}
    for name, exact in grads["reference", False].items():
        if name in names:
            assert grads[engine, True][name] is None, name
        else:
            off = (grads[engine, True][name] - exact).norm()
            assert off <= ROUNDING * exact.norm() + 1e-12, name


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_every_gradient_is_a_view_into_the_flat_buffer_with_its_parameters_strides(
    memory_format, engine
):
    critic = plain_critic().to(memory_format=memory_format)
    step = unchecked(critic, penalty="wgan-gp", engine=engine)
    memory = step.gradients.flat.untyped_storage().data_ptr()
    exact = run(plain_critic(), "reference", "hinge", "wgan-gp")[2]
    for _ in range(2):
        step(**pictures())
        start = 0
        for (name, p), wanted in zip(critic.named_parameters(), exact.parameters(), strict=True):
            assert p.grad.untyped_storage().data_ptr() == memory, name
            assert p.grad.storage_offset() == start, name
            assert p.grad.stride() == p.stride(), name
            torch.testing.assert_close(p.grad, wanted.grad, rtol=1e-9, atol=1e-12, msg=name)
            start += p.numel()
        assert start == len(step.gradients.flat)
        critic.zero_grad(set_to_none=True)
        assert critic.head.weight.grad is None


@pytest.mark.parametrize("engine", ENGINES)
def test_pictures_in_channels_last_change_nothing(engine):
    last = {
        name: x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
        for name, x in pictures().items()
    }
    for kind in ("GroupNorm", "LayerNorm of maps"):
        critic = norm_critic(kind)
        exact = gradient(critic)
        moved, _, stepped = run(critic.to(memory_format=torch.channels_last), engine, inputs=last)
        # The flat buffer has the order of the strides.
        found = torch.cat([p.grad.flatten() for p in stepped.parameters()])
        assert len(moved) == len(found)
        assert error(found, exact) <= ROUNDING


# Which engine is chosen: for the presets in test_engine_choice.py.


def test_engines_asked_for_are_taken_and_others_named():
    assert [choose(plain_critic(), (), engine).engine for engine in ENGINES] == ENGINES
    assert choose(plain_critic(), (), "explicit", compile=True).compiled
    assert not choose(plain_critic(), (), "reference", compile=True).compiled
    with pytest.raises(InputError, match="engine is 'fast'.*reference.*autograd.*explicit"):
        choose(plain_critic(), (), "fast")


# The start-up check.


def warnings_of(caplog):
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


def checked_step(critic, engine, penalty="wgan-gp", check=True, **kwargs):
    return unchecked(critic, "non-saturating", penalty, engine, check=check, **kwargs)


STEPS = {"explicit": ExplicitStep, "autograd": AutogradStep}


def spoil(monkeypatch, engine, change):
    """Let the engine's gradients go through ``change``."""
    right = STEPS[engine].__call__

    @functools.wraps(right)
    def wrong(self, *args):
        found, stats = right(self, *args)
        return change(found), stats

    monkeypatch.setattr(STEPS[engine], "__call__", wrong)


def failing(found):
    raise RuntimeError("the compiler\ngave up")


def scaled(factor, *names):
    """All gradients times a factor, or those of these names."""
    return lambda gradients: {
        name: g * factor if name in (names or gradients) else g for name, g in gradients.items()
    }


CHANGES = {
    "a little too large": (scaled(1.01), r"off the reference's"),
    "one gradient lost": (scaled(0, "trunk.0.weight"), "off the"),
    "not a number": (scaled(float("nan")), "nan off"),
    "one not a number": (scaled(float("nan"), "head.bias"), "nan off"),
    "no gradients": (failing, r"failed \(RuntimeError: the compiler gave up\)"),
}


@pytest.mark.parametrize("engine", FAST)
@pytest.mark.parametrize("change", CHANGES)
def test_a_wrong_engine_is_replaced_by_the_reference_in_its_first_step(
    change, engine, monkeypatch, caplog
):
    function, said = CHANGES[change]
    spoil(monkeypatch, engine, function)
    critic = plain_critic().float()
    step = checked_step(critic, engine)
    assert step.choice.engine == engine
    inputs = pictures(dtype=torch.float32)
    exact, wanted, _ = run(critic, "reference", inputs=inputs)
    for _ in range(2):
        stats = step(**inputs)
        assert error(step.gradients.flat, exact) == 0
        assert stats == wanted
    (message,) = warnings_of(caplog)
    assert message.startswith(f"{engine} engine: ")
    assert message.endswith("going on with reference")
    assert re.search(said, message), message
    assert (step.choice.engine, step.choice.compiled) == ("reference", False)


@pytest.mark.parametrize("engine", FAST)
@pytest.mark.parametrize("penalty", ["none", *KINDS])
def test_a_right_engine_passes_the_check(penalty, engine, caplog):
    for dtype in (torch.float32, torch.float64):
        step = checked_step(plain_critic().to(dtype), engine, penalty)
        step(**pictures(dtype=dtype))
        assert step.choice.engine == engine
    step = checked_step(plain_critic().float(), engine, penalty, autocast=torch.bfloat16)
    step(**pictures(dtype=torch.float32))
    assert step.choice.engine == engine
    assert not warnings_of(caplog)


@pytest.mark.parametrize("kind", [True, False], ids=["penalised", "plain"])
@pytest.mark.parametrize("first", [True, False], ids=["penalised first", "plain first"])
def test_an_engine_that_is_wrong_in_one_kind_of_step_is_found_at_the_first_of_either(
    first, kind, monkeypatch, caplog
):
    """Later on a step may be inside the capture of a graph, where nothing can be checked."""
    right = ExplicitStep.__call__

    def wrong(self, *args):
        gradients, stats = right(self, *args)
        return scaled(2 if bool(self.penalties) == kind else 1)(gradients), stats

    monkeypatch.setattr(ExplicitStep, "__call__", wrong)
    critic = plain_critic()
    step = checked_step(critic, "explicit")
    step(**pictures(), with_penalty=first)
    assert len(warnings_of(caplog)) == 1
    step(**pictures(), with_penalty=False)
    assert error(step.gradients.flat, run(critic, "reference", penalty="none")[0]) == 0
    step(**pictures())
    assert error(step.gradients.flat, run(critic, "reference")[0]) == 0
    assert len(warnings_of(caplog)) == 1


@pytest.mark.parametrize("engine", FAST)
@pytest.mark.parametrize("spoiled", [False, True], ids=["right", "wrong"])
def test_the_check_changes_no_generator_no_buffer_and_no_parameter(spoiled, engine, monkeypatch):
    if spoiled:
        spoil(monkeypatch, engine, scaled(-1))
    critics = [spectral(plain_critic(conditional="projection")) for _ in range(2)]
    with torch.no_grad():
        critics[0].trunk[2].parametrizations.weight.original.normal_()
    critics[1].load_state_dict(critics[0].state_dict())
    before = copy.deepcopy(critics[0].state_dict())
    inputs = {name: labelled()[name] for name in ("real", "fake", "real_labels")}
    states = []
    for critic, check in zip(critics, (True, False), strict=True):
        torch.manual_seed(5)
        step = checked_step(critic, engine if check else "reference", "dragan", check=check)
        step(**inputs)  # draws its noise
        states.append(torch.get_rng_state())
        assert all(m.training for m in critic.modules())
    assert torch.equal(*states)
    parameters = dict(critics[0].named_parameters())
    first, second = (critic.state_dict() for critic in critics)
    for (name, a), b in zip(first.items(), second.values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12, msg=name)
        assert name not in parameters or torch.equal(a, before[name]), name
    for p, q in zip(critics[0].parameters(), critics[1].parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-12)


def test_the_check_looks_once_only(monkeypatch):
    calls = []
    spoil(monkeypatch, "explicit", lambda found: calls.append(1) or found)
    step = checked_step(plain_critic(), "explicit")
    for expected in (3, 4, 5):  # one of either kind is looked at
        step(**pictures())
        assert len(calls) == expected


def test_a_critic_that_draws_numbers_passes_the_check(caplog):
    critic = net("conv 3 4 3 2 1", "leak", nn.Dropout(0.3), "score")
    for engine in FAST:
        for penalty in ("wgan-gp", "r1", "r2", "r1+r2"):
            step = checked_step(critic, engine, penalty)
            step(**pictures(dtype=torch.float32))
            assert step.choice.engine == engine
    assert not warnings_of(caplog)


def test_the_check_leaves_the_users_mistakes_to_the_user():
    critic = net("conv 3 4 3 2 1", nn.Flatten(), "linear 80 2").double()
    step = checked_step(critic, "explicit")
    with pytest.raises(InputError, match="scores of shape"):
        step(**pictures())


# Compiling.


def refuse(*args, **kwargs):
    raise AssertionError("the compiler was called")


@pytest.mark.parametrize("engine", ENGINES)
def test_engines_that_are_not_compiled_never_call_the_compiler(engine, monkeypatch):
    monkeypatch.setattr(torch, "compile", refuse)
    monkeypatch.setattr(torch._inductor, "compile", refuse)
    for penalty in ("none", "wgan-gp", "r1"):
        assert gradient(plain_critic(), engine, penalty=penalty).norm() > 0
        # As "auto" has it on a CPU.
        assert not make_critic_step(plain_critic(), "hinge", penalty).choice.compiled


@pytest.mark.accept
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.jit, inside torch
@pytest.mark.parametrize(
    ("engine", "steps"),
    [
        ("explicit", [(5, True), (5, True), (3, True), (5, False)]),
        ("autograd", [(5, True), (5, True)]),
        ("autograd", [(5, False), (5, False)]),
    ],
    ids=["explicit", "autograd", "autograd without penalty"],
)
def test_a_compiled_engine_agrees_with_the_reference(engine, steps, caplog):
    """Gradients, statistics, power iterations, with and without penalty, for two batch sizes."""
    critic = spectral(plain_critic(conditional="projection"))
    twin = copy.deepcopy(critic)
    step = make_critic_step(critic, "hinge", "wgan-gp", engine=engine, compile=True, check=True)
    exact = make_critic_step(twin, "hinge", "wgan-gp", engine="reference", check=False)
    for n, penalised in steps:
        inputs = pictures(n=n, seed=n) | {"real_labels": LABELS[:n], "with_penalty": penalised}
        stats, wanted = step(**inputs), exact(**inputs)
        assert error(step.gradients.flat, exact.gradients.flat) <= ROUNDING
        assert stats.keys() == wanted.keys()
        for name, value in wanted.items():
            assert stats[name].item() == pytest.approx(value.item(), rel=1e-9, abs=1e-12), name
    for (name, a), b in zip(twin.named_buffers(), critic.buffers(), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-12, atol=1e-12, msg=name)
    assert (step.choice.engine, step.choice.compiled) == (engine, True)
    assert not warnings_of(caplog)


# What critics return, and what callers do.


class Several(nn.Module):
    """Scores of patches at two scales, and class logits."""

    def __init__(self, answer, **options):
        super().__init__()
        self.body, self.patches = net("conv 3 4 3 1 1", "leak"), nn.Conv2d(4, 1, 3)
        self.whole, self.logits = nn.Linear(4, 1), nn.Linear(4, CLASSES)
        self.answer = answer
        for name, value in options.items():
            setattr(self, name, value)

    def forward(self, x):
        features = self.body(x)
        pooled = features.mean((2, 3))
        return self.answer(self.patches(features), self.whole(pooled), self.logits(pooled))


AVERAGED = {
    "a map": lambda patches, whole, logits: patches,
    "two scales": lambda patches, whole, logits: [patches, whole],
    "one map twice": lambda patches, whole, logits: [patches, whole, patches],
    "a map and classes": lambda patches, whole, logits: Judgement(patches.squeeze(1), logits),
    "scales and classes": lambda patches, whole, logits: Judgement([patches, whole], logits),
}


@pytest.mark.parametrize("penalty", ["none", "wgan-gp", "r1", "r1+r2"])
@pytest.mark.parametrize("answer", AVERAGED)
def test_engines_agree_on_scores_that_a_critic_averages(answer, penalty):
    critic = loud(Several(AVERAGED[answer], averages_scores=True))
    assert walked(critic).tail is None
    inputs = labelled() if "classes" in answer else None
    assert_engines_agree(critic, penalty=penalty, inputs=inputs)


def test_an_averaged_score_is_the_mean_over_patches_then_scales():
    maps = [torch.arange(12.0).view(2, 1, 2, 3), torch.tensor([[1.0], [3.0]])]
    score = as_judgement(maps, 2, averaged=True).score
    torch.testing.assert_close(score, torch.tensor([(2.5 + 1) / 2, (8.5 + 3) / 2]))


@pytest.mark.parametrize("engine", ["auto", "reference", "autograd"])
@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda p, w, c: p, r"scores of shape \(\d+, 1, 7, 5\).*averages_scores = True"),
        (lambda p, w, c: [w, w], r"a tensor \(\d+, 1\) beside its scores; expected class logits"),
        (lambda p, w, c: (w, p), r"a tensor \(\d+, 1, 7, 5\) beside its scores"),
        (lambda p, w, c: (w, w, w), r"tuple \[a tensor .*expected scores, or \(scores, class"),
        (lambda p, w, c: {"score": w}, r"returned a dict; expected scores"),
        (lambda p, w, c: [[w, p], [w, p]], r"returned list \[list \["),
        (lambda p, w, c: w.mean(), r"scores of shape \(\) for \d+ pictures"),
        (lambda p, w, c: None, r"returned a NoneType"),
    ],
)
def test_an_answer_that_says_nothing_of_each_picture_is_one_sentence(answer, message, engine):
    step = make_critic_step(loud(Several(answer)), "hinge", "r1", engine=engine, compile=False)
    with pytest.raises(InputError, match=message):
        step(**pictures())


@pytest.mark.parametrize("engine", ["auto", *ENGINES])
@pytest.mark.parametrize("make", [plain_critic, lambda: Several(AVERAGED["a map"])])
def test_a_mistake_of_the_caller_demotes_no_engine(make, engine):
    critic = make().double()
    critic.averages_scores = True
    step = make_critic_step(critic, "hinge", "r1", engine=engine, compile=False)
    with pytest.raises((InputError, RuntimeError), match=r"same|match|fake tensor"):
        step(**pictures(dtype=torch.float32))
    step(**pictures())
    assert step.choice.engine == ("explicit" if engine == "auto" else engine)
    assert error(step.gradients.flat, gradient(critic, loss="hinge", penalty="r1")) <= ROUNDING


@pytest.mark.parametrize("penalty", ["none", "wgan-gp", "r1"])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_parameter_without_influence_has_no_gradient_as_in_eager_autograd(engine, penalty):
    critic = loud(Several(lambda patches, whole, logits: whole))
    step = unchecked(critic, penalty=penalty, engine=engine)
    critic.patches.weight.grad = torch.ones_like(critic.patches.weight)
    step(**pictures())
    unused = {name for name, p in critic.named_parameters() if p.grad is None}
    assert unused == {f"{m}.{n}" for m in ("patches", "logits") for n in ("weight", "bias")}
    torch.testing.assert_close(
        step.gradients.flat,
        torch.cat([x.flatten() for x in gradients_or_zeros(critic)]),
        rtol=0,
        atol=0,
    )


def gradients_or_zeros(net):
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in net.parameters()]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_engines_work_where_gradients_are_switched_off(mode, engine):
    critic = loud(Several(AVERAGED["a map"], averages_scores=True))
    exact = gradient(critic, penalty="wgan-gp")
    step = make_critic_step(critic, "non-saturating", "wgan-gp", engine=engine, compile=False)
    with mode():
        step(**{name: x.clone() for name, x in pictures().items()})
    assert error(step.gradients.flat, exact) <= ROUNDING


@pytest.mark.parametrize("engine", ENGINES)
def test_the_flat_gradient_follows_a_critic_that_changes_its_type(engine):
    critic = plain_critic().float()
    step = unchecked(critic, engine=engine)
    step(**pictures(dtype=torch.float32))
    critic.double()
    step(**pictures())
    assert step.gradients.flat.dtype == torch.float64
    assert error(step.gradients.flat, gradient(critic, loss="hinge", penalty="r1")) <= ROUNDING


def test_what_no_engine_can_take_is_one_sentence_with_a_way_out():
    lazy = nn.Sequential(nn.Flatten(), nn.LazyLinear(1))
    with pytest.raises(InputError, match=r"parameter 1.weight .* lazy.*call the critic once"):
        make_critic_step(lazy)
    with pytest.raises(InputError, match="the batch has no pictures"):
        unchecked(plain_critic())(**pictures(n=0))


def test_a_frozen_batch_norm_may_be_penalised():
    critic = batch_normed("default").eval()
    critic[1].running_var.uniform_(0.5, 2)
    assert_engines_agree(critic, penalty="r1")


def test_a_compiled_critic_is_taken_without_its_wrapper():
    critic = plain_critic()
    exact = gradient(critic, loss="hinge", penalty="r1")
    step = unchecked(torch.compile(critic, backend="eager"))
    step(**pictures())
    assert error(step.gradients.flat, exact) <= ROUNDING


class Attentive(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(8, 1)

    def forward(self, x):
        h = self.embed(x).flatten(2).transpose(1, 2)[:, None].contiguous()
        return self.head(F.scaled_dot_product_attention(h, h, h).mean((1, 2)))


def test_attention_without_a_second_derivative_names_the_way_out():
    step = make_critic_step(Attentive(), penalty="r1", compile=False)
    inputs = pictures(dtype=torch.float32)
    with pytest.raises(InputError, match=r"no second derivative.*sdpa_kernel"):
        step(**inputs)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        step(**inputs)
    assert step.gradients.flat.norm() > 0


@pytest.mark.parametrize("engine", ["auto", "explicit"])
def test_an_option_of_a_layer_of_torch_may_change_between_two_steps(engine):
    critic = net("conv 3 4 3 1 1", "leak", nn.Upsample(scale_factor=2), nn.AdaptiveAvgPool2d(1))
    critic = loud(critic.append(nn.Flatten()).append(nn.Linear(4, 1)))
    step = unchecked(critic, engine=engine)
    step(**pictures())
    before = step.gradients.flat.clone()
    critic[0].dilation = critic[0].padding = (2, 2)
    critic[2].scale_factor = 3
    step(**pictures())
    exact = gradient(critic, loss="hinge", penalty="r1")
    assert error(before, exact) > 1e-2
    assert error(step.gradients.flat, exact) <= ROUNDING


# FLOPs decide.


@pytest.mark.parametrize("layer", [Spread(), nn.PReLU()], ids=["own", "of torch"])
def test_counting_the_work_of_engines_moves_nothing(layer):
    critic = spectral(net("conv 3 4 3 2 1", "leak", layer, "score")).float()
    before, numbers = copy.deepcopy(critic.state_dict()), torch.get_rng_state()
    step = make_critic_step(critic, penalty="r1", compile=False)
    choice = step.prepare(pictures(dtype=torch.float32)["real"])
    assert re.search(r"MFLOP: explicit [\d.]+, autograd [\d.]+, reference [\d.]+", choice.reason)
    torch.testing.assert_close(critic.state_dict(), before, rtol=0, atol=0)
    torch.testing.assert_close(torch.get_rng_state(), numbers, rtol=0, atol=0)


@pytest.mark.parametrize("shape", [SHAPE, (3, 16, 16)], ids=["odd", "even"])
def test_the_counts_are_those_of_the_steps_that_run(shape):
    critic = nn.Sequential(nn.Conv2d(3, 4, 4, 2, 1), Spread(), nn.MaxPool2d(2), nn.Conv2d(5, 1, 1))
    critic.averages_scores = True
    inputs = pictures(shape, dtype=torch.float32)
    steps = {name: unchecked(critic, penalty="wgan-gp", engine=name) for name in ENGINES}
    for step in steps.values():
        step(**inputs)
    ran = {}
    for name, step in steps.items():
        with FlopCount() as count:
            step(**inputs)
        ran[name] = count.total
    given = Inputs(inputs["real"], inputs["fake"], None, None, (inputs["real"],))
    loss, penalties = LossConfig(), (PenaltyConfig("wgan-gp"),)
    counted = step_flops(critic, loss, penalties, given, walk(critic, inputs["real"]), {})
    assert counted == ran


def test_of_engines_with_the_same_count_the_first_in_order_is_taken():
    for eager, first in ((False, "explicit"), (True, "reference")):
        assert fewest({"explicit": 102, "autograd": 100, "reference": 102}, eager) == first
        assert fewest({"explicit": 102, "autograd": 100, "reference": 103}, eager) == "explicit"
        assert fewest({"explicit": 103, "autograd": 100, "reference": 90}, eager) == "reference"
    assert fewest({"autograd": 91, "reference": 90}, eager=False) == "autograd"
