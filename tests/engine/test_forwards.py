"""Critics of random forwards that read and keep Python state, by every engine and by eager torch.

A critic's source is run as a module of its own, its world. So the engines and the oracle have
separate and equal globals, lists, arrays, random numbers and weights.
"""

import random
import re
import sys
from collections import Counter
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import _SpectralNorm

from ganfast.engine import make_critic_step
from ganfast.engine.critic import CriticStep
from ganfast.engine.walking.walk import walk
from ganfast.errors import InputError
from tests.engine.forwards import PIECES, STEPS, Example

pytestmark = pytest.mark.filterwarnings("ignore:Dynamo does not know")  # of random.random
ENGINES = ["auto", "reference", "autograd", "explicit"]
ROUNDING = 1e-9  # of float64, relative to the whole gradient
SEEDS = 30  # of `make test`
CHUNK = 5  # seeds in one test of `make accept`


def scrambled(seed):
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - what many critics draw from
    torch.manual_seed(seed)


class World:
    """An example's module and critic. No two have one name: the front end remembers modules."""

    count = 0

    def __init__(self, example):
        World.count += 1
        self.example, self.module = example, ModuleType(f"world_{World.count}")
        sys.modules[self.module.__name__] = self.module
        exec(compile(example.source, self.module.__name__, "exec"), vars(self.module))
        scrambled(example.seed)
        self.net = self.module.net = self.module.Net().double()
        with torch.no_grad():
            for p in self.net.parameters():
                p.mul_(1.5)

    def change(self, k):
        """What happens between two steps: an optimizer's, and the user's."""
        exec(self.example.changes[k], vars(self.module))
        with torch.no_grad():
            for p in self.net.parameters():
                p.add_(0.1 * torch.cos(torch.arange(p.numel()) + k).view_as(p))

    def gradient(self):
        """Of the parameters that are trained, as one vector; 0 where there is none."""
        trained = [p for p in self.net.parameters() if p.requires_grad]
        return torch.cat([(p * 0 if p.grad is None else p.grad).flatten() for p in trained])

    def state(self):
        kept = [PIECES[name].keeps for name in self.example.names if PIECES[name].keeps]
        found = {text: torch.as_tensor(eval(text, vars(self.module))) for text in kept}
        return found | {name: b.clone() for name, b in self.net.named_buffers()}

    def close(self):
        del sys.modules[self.module.__name__]


def fed(k):
    g = torch.Generator().manual_seed(k)
    real, fake = torch.rand(2, 5, 3, 9, 7, generator=g, dtype=torch.float64) * 2 - 1
    return {"real": real, "fake": fake, "eps": torch.rand(5, generator=g, dtype=torch.float64)}


def slope_at(x, score):
    return torch.autograd.grad(score.sum(), x, create_graph=True)[0].flatten(1)


def eager(net, loss, penalty, real, fake, eps):
    """The step in plain torch, with one power iteration of torch's spectral normalisation."""
    for p in net.parameters():
        p.grad = None
    real, fake = (x.clone().requires_grad_("r1" in penalty) for x in (real, fake))
    if penalty == "r1":
        fake.requires_grad_(False)
    norms = [m for m in net.modules() if isinstance(m, _SpectralNorm) and m.training]
    a = net(real).flatten()
    for norm in norms:
        norm.eval()
    b = net(fake).flatten()
    total = {
        "wasserstein": lambda: b.mean() - a.mean(),
        "non-saturating": lambda: F.softplus(-a).mean() + F.softplus(b).mean(),
        "relativistic": lambda: F.softplus(b - a).mean(),
        "hinge": lambda: F.relu(1 - a).mean() + F.relu(1 + b).mean(),
    }[loss]()
    for x, score in ((real, a), (fake, b)):
        if x.requires_grad:
            total = total + 5 * slope_at(x, score).square().sum(1).mean()
    if penalty == "wgan-gp":
        share = eps.view(-1, 1, 1, 1)
        points = (share * real + (1 - share) * fake).requires_grad_()
        total = total + 10 * (slope_at(points, net(points)).norm(dim=1) - 1).square().mean()
    for norm in norms:
        norm.train()
    total.backward()


def steps(example, engine, imported=True):
    """(gradient after each step, state at the end, engines that were chosen). Fewer gradients where
    the explicit engine refused, as it may."""
    world, gradients, chosen = World(example), [], []
    step = None
    if not imported:  # the name is that of a copy, which stays as it is
        copied = sys.modules[world.module.__name__] = ModuleType(world.module.__name__)
        vars(copied).update(vars(world.module))
    try:
        for k in range(STEPS):
            scrambled(k)
            if engine == "eager":
                eager(world.net, example.loss, example.penalty, **fed(k))
            else:
                step = step or make_critic_step(
                    world.net, example.loss, example.penalty, engine=engine, compile=False
                )
                step(**fed(k))
                chosen.append(step.choice.engine)
                # The start-up check must have nothing to mend.
                assert engine in ("auto", chosen[-1]), step.choice
                assert not re.search(r" off the reference|failed \(", step.choice.reason)
            gradients.append(world.gradient())
            if k < STEPS - 1:
                world.change(k)
        return gradients, world.state(), chosen
    except InputError as error:
        assert engine == "explicit"
        assert "the explicit engine cannot take this critic" in str(error)
        return gradients, None, chosen
    finally:
        world.close()


def problems(example, engines, imported=True):
    """What the engines do otherwise than eager torch, and what "auto" chose last."""
    exact, state, _ = steps(example, "eager")
    found, choice = [], ""
    for engine in engines:
        gradients, kept, chosen = steps(example, engine, imported)
        for k, (ours, theirs) in enumerate(zip(gradients, exact, strict=False)):
            error = ((ours - theirs).norm() / theirs.norm().clamp_min(1e-6)).item()
            if not error <= ROUNDING:
                found.append(f"{engine} ({chosen[k]}), step {k}: gradient {error:.2g} off")
        for name in state if kept else ():
            if not torch.allclose(kept[name].double(), state[name].double(), 1e-9, 1e-12):
                found.append(f"{engine}: {name} is {kept[name]}, in eager torch {state[name]}")
        choice = chosen[-1] if engine == "auto" else choice
    return found, choice


def engines_of(seed):
    """For `make test`: the choice, and one engine that is asked for."""
    return ["auto", ENGINES[1 + seed % 3]]


chosen: dict[int, str] = {}  # by seed


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_forward_may_read_and_keep_anything(seed):
    example = Example(seed)
    found, chosen[seed] = problems(example, engines_of(seed))
    assert not found, example


@pytest.mark.accept
@pytest.mark.parametrize("start", range(0, 500, CHUNK))
def test_forwards_may_read_and_keep_anything_in_every_engine(start):
    for example in map(Example, range(start, start + CHUNK)):
        found, _ = problems(example, ENGINES)
        assert not found, example


def test_the_examples_have_every_piece_and_both_engines():
    names = {name for seed in range(SEEDS) for name in Example(seed).names}
    assert names == PIECES.keys()
    if len(chosen) < SEEDS:
        pytest.skip("not all examples were run in this process")
    counts = Counter(chosen.values())
    assert counts["explicit"] >= SEEDS / 3, counts
    assert counts["reference"] >= SEEDS / 4, counts


def test_a_record_that_is_never_renewed_is_found_out(monkeypatch):
    right = CriticStep._record

    def once(self, *given):
        if not hasattr(self, "first"):
            self.first = right(self, *given)
        return self.first

    monkeypatch.setattr(CriticStep, "_record", once)
    # A number that is read, a buffer that is read, and a depth.
    assert any(problems(Example(seed), ["auto"])[0] for seed in (1, 7, 9))


def test_globals_are_those_of_the_forward_and_not_of_a_module_that_has_its_name():
    (seed,) = (seed for seed in range(1, 9, 2) if "global" in Example(seed).names)
    assert problems(Example(seed), ["auto"]) == ([], "explicit")
    assert problems(Example(seed), ["auto"], imported=False) == ([], "reference")


@pytest.mark.parametrize("name", ["checkpoint", "own backward", "hook on features", "vmap"])
def test_a_forward_with_a_graph_of_its_own_inside_is_computed_as_it_is(name):
    assert problems(Example(1, [name]), ["auto", "explicit"]) == ([], "reference")


class Swapped(nn.Module):
    """A layer that the forward finds in many places."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(48, 5), nn.Linear(48, 5), nn.Linear(5, 1)
        self.now, self.order, self.table = self.a, [self.a, self.b], {"a": self.a}
        self.weights = [self.a.weight]

    def place(self, x):
        return self.now(x)

    def forward(self, x):
        return self.head(F.leaky_relu(self.place(x.flatten(1)), 0.2))


class ByOrder(Swapped):
    def place(self, x):
        return self.order[0](x)


class ByTable(Swapped):
    def place(self, x):
        return self.table["a"](x)


class ByWeight(Swapped):
    def place(self, x):
        return F.linear(x, self.weights[0], self.a.bias)


class ByMethod(Swapped):
    pass


def two_layers():
    layers = nn.Conv2d(3, 4, 4, 2, 1), nn.LeakyReLU(np.float64(0.2)), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(16, 1))


CHANGES = {
    "a layer": (Swapped, lambda c: setattr(c, "now", c.b)),
    "the order of layers": (ByOrder, lambda c: c.order.reverse()),
    "a layer in a dict": (ByTable, lambda c: c.table.update(a=c.b)),
    "a weight in a list": (ByWeight, lambda c: c.weights.__setitem__(0, c.b.weight)),
    "a method of the class": (ByMethod, lambda c: setattr(ByMethod, "place", lambda s, x: s.b(x))),
    "a number of NumPy": (two_layers, lambda c: setattr(c[1], "negative_slope", np.float64(0.7))),
    "a hook of a parameter": (
        two_layers,
        lambda c: c[0].weight.register_hook(lambda gradient: gradient / 2) and None,
    ),
}


def textbook(critic, real, fake, eps):
    """The gradient of WGAN-GP's loss, flat."""
    share = eps.view(-1, 1, 1, 1)
    points = (share * real + (1 - share) * fake).requires_grad_()
    (g,) = torch.autograd.grad(critic(points).sum(), points, create_graph=True)
    penalty = (g.flatten(1).norm(dim=1) - 1).square().mean()
    critic.zero_grad()
    (critic(fake).mean() - critic(real).mean() + 10 * penalty).backward()
    return torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in critic.parameters()]
    )


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_swapped_between_two_steps_counts(change):
    make, swap = CHANGES[change]
    torch.manual_seed(0)
    critic = make().double()
    step = make_critic_step(critic, compile=False)
    for k in range(3):
        real, fake = torch.randn(2, 6, 3, 4, 4, dtype=torch.float64).unbind()
        eps = torch.rand(6, dtype=torch.float64)
        step(real, fake, eps=eps)
        found = step.gradients.flat.clone()
        torch.testing.assert_close(found, textbook(critic, real, fake, eps), rtol=1e-9, atol=1e-12)
        if k == 0:
            swap(critic)


class Projected(nn.Module):
    takes_labels = True

    def __init__(self, padding):
        super().__init__()
        self.body, self.head = nn.Linear(48, 5), nn.Linear(5, 1)
        self.rows = nn.Embedding(4, 5, padding_idx=padding)

    def forward(self, x, labels):
        h = F.leaky_relu(self.body(x.flatten(1)), 0.2)
        return self.head(h)[:, 0] + (h * self.rows(labels)).sum(1)


@pytest.mark.parametrize("padding", [None, 0, 2])
def test_a_projection_is_walked_but_for_a_row_that_does_not_learn(padding):
    torch.manual_seed(0)
    critic = Projected(padding).double()
    labels = torch.tensor([0, 1, 2, 3, 2, 0])
    real, fake = torch.randn(2, 6, 3, 4, 4, dtype=torch.float64).unbind()
    flat = {}
    for engine in ("explicit", "reference"):
        step = make_critic_step(critic, "hinge", "r1+r2", engine=engine, compile=False, check=False)
        step(real, fake, labels)
        flat[engine] = step.gradients.flat.clone()
    torch.testing.assert_close(flat["explicit"], flat["reference"], rtol=1e-9, atol=1e-12)
    assert (walk(critic, real, labels).tail is None) is (padding is None)


def test_a_single_picture_and_a_mistake_leave_the_engine_as_it_was():
    torch.manual_seed(0)
    real, fake = torch.randn(2, 6, 3, 4, 4).unbind()
    for engine in ("auto", "explicit"):
        step = make_critic_step(Swapped(), engine=engine, compile=False)
        step(real[:1], fake[:1])
        assert step.choice.engine == "reference"
        with pytest.raises((InputError, RuntimeError)):
            step(real[:, :2], fake[:, :2])
        step(real, fake)
        assert step.choice.engine == "explicit"
