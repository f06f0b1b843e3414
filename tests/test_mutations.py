"""Wrong engines must be caught: each mutation of the sources is one mistake, and the start-up check has to refuse its gradients.

A mutated engine is built from the edited text of its file and everything that imports it; the unedited text goes the same way and
must pass. What is checked is the verdict that a user's first step would get, at its own tolerance.
"""

import copy
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import ganfast.engine
from ganfast.config import LossConfig, PenaltyConfig
from ganfast.engine.check import check
from ganfast.engine.critic import points_of
from ganfast.engine.objective import Inputs
from ganfast.models.dropout import Dropout
from ganfast.models.parts import spectral
from tests.test_engines import LABELS, Residual, norm_critic, pictures, plain_critic, spread_critic

ROOT = Path(__file__).parents[1]
# Every module that takes part in a step, those that import others behind them.
CHAIN = {
    "ganfast.kernels.gradient_penalty": "kernels/gradient_penalty.py",
    "ganfast.engine.objective": "ganfast/engine/objective.py",
    "ganfast.engine.spectral": "ganfast/engine/spectral.py",
    "ganfast.engine.weights": "ganfast/engine/weights.py",
    "ganfast.engine.small": "ganfast/engine/small.py",
    "ganfast.engine.convolution": "ganfast/engine/convolution.py",
    "ganfast.engine.layers": "ganfast/engine/layers.py",
    "ganfast.engine.walk": "ganfast/engine/walk.py",
    "ganfast.engine.lean": "ganfast/engine/lean.py",
    "ganfast.engine.autograd": "ganfast/engine/autograd.py",
    "ganfast.engine.explicit": "ganfast/engine/explicit.py",
    "ganfast.engine.draws": "ganfast/engine/draws.py",
    "ganfast.engine.critic": "ganfast/engine/critic.py",
}


def built(file="", old="", new=""):
    """`make_critic_step` of the sources with one text replaced; nothing of it stays in `sys.modules`."""
    if file:
        assert (ROOT / file).read_text().count(old) == 1, f"{file} must hold this text exactly once: {old}"
    with pytest.MonkeyPatch.context() as patch:
        for name, path in CHAIN.items():
            source = (ROOT / path).read_text()
            module = ModuleType(name)
            module.__spec__ = importlib.util.spec_from_loader(name, loader=None)
            patch.setitem(sys.modules, name, module)
            package, _, short = name.rpartition(".")
            patch.setattr(sys.modules[package], short, module, raising=False)
            exec(compile(source.replace(old, new) if path == file else source, str(ROOT / path), "exec"), module.__dict__)
        return module.make_critic_step


def verdict(make, critic, penalty, engine="explicit", loss="non-saturating", labels=None, dtype=torch.float32):
    """What the start-up check says of one step of an engine."""
    critic = copy.deepcopy(critic).to(dtype)
    penalties = [PenaltyConfig(p) if isinstance(p, str) else p for p in (penalty if isinstance(penalty, tuple) else (penalty,))]
    given = pictures(dtype=dtype)
    step = make(critic, loss, [p for p in penalties if p.active], engine=engine, compile=False, check=False)
    torch.manual_seed(0)  # as the check does, for critics that draw numbers
    step(given["real"], given["fake"], labels, labels, given["eps"], given["noise"])
    points = points_of(penalties, *given.values())
    inputs = Inputs(given["real"], given["fake"], labels, labels, points)
    config = loss if isinstance(loss, LossConfig) else LossConfig(loss)
    found = [p.grad for p in critic.parameters()]
    return check(critic, config, [p for p in penalties if p.active], inputs, found, None, separable=False)


def weight_normed():
    critic = plain_critic()
    weight_norm(critic.trunk[2])
    return critic


def dropping_critic():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1), nn.LeakyReLU(0.2), nn.Dropout(0.3), nn.Flatten(), nn.Linear(80, 6), Dropout(0.3), nn.Linear(6, 1)
    )


def residual_critic():
    torch.manual_seed(0)
    block = Residual(nn.Sequential(nn.LeakyReLU(0.2), nn.Conv2d(4, 4, 3, 1, 1)))
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), block, nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(80, 1))


def pooled_critic():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1), nn.LeakyReLU(0.2), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(48, 1))


def shrunk_critic():
    torch.manual_seed(0)
    resize = nn.Upsample((4, 3), mode="bilinear")
    return nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1), nn.SiLU(), resize, nn.Flatten(), nn.Linear(48, 1))


def twice_critic():
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 4, 3, 1, 1)
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), conv, nn.LeakyReLU(0.2), conv, nn.Flatten(), nn.Linear(80, 1))


EXPLICIT, LAYERS, PENALTY = "ganfast/engine/explicit.py", "ganfast/engine/layers.py", "kernels/gradient_penalty.py"
SPECTRAL, SMALL, DRAWS = "ganfast/engine/spectral.py", "ganfast/engine/small.py", "ganfast/engine/draws.py"
WALK, LEAN, WEIGHTS = "ganfast/engine/walk.py", "ganfast/engine/lean.py", "ganfast/engine/weights.py"
EXCESS = "excess = norm - target\n        excess = excess.relu()"  # with its next line: kernels compute one too
NORM = "torch.linalg.vector_norm(exact.flatten(1), dim=1)"
ONE_SIDED = PenaltyConfig("wgan-gp", target=1.5, one_sided=True)
LAZY = PenaltyConfig("wgan-gp", interval=4)

# What is wrong: (file, text, text instead, critic, penalty).
MUTATIONS = {
    # The penalty and its direction.
    "the norm penalty pushes the other way": (
        PENALTY, EXCESS, EXCESS.replace("norm - target", "target - norm"), plain_critic, "wgan-gp"),
    "the 2 of a square's derivative": (PENALTY, "2 * weight * scale * excess", "weight * scale * excess", plain_critic, "wgan-gp"),
    "gamma in place of gamma / 2's derivative": (
        PENALTY, "torch.full_like(norm, weight * scale)", "torch.full_like(norm, weight / 2 * scale)", plain_critic, "r1"),
    "direction not of unit length": (PENALTY, "* excess / norm, 0.0)", "* excess, 0.0)", plain_critic, "wgan-gp"),
    "one side forgotten": (PENALTY, "excess.relu() if one_sided else excess", "excess", plain_critic, ONE_SIDED),
    "target forgotten": (PENALTY, EXCESS, EXCESS.replace("norm - target", "norm"), plain_critic, "wgan-gp"),
    "a norm over channels only": (
        PENALTY, NORM, "torch.linalg.vector_norm(exact, dim=1).flatten(1).mean(1)", plain_critic, "wgan-gp"),
    "a norm over the batch": (PENALTY, NORM, "torch.linalg.vector_norm(exact).expand(len(g))", plain_critic, "wgan-gp"),
    "sum in place of mean": (EXPLICIT, "penalty.interval / n", "penalty.interval", plain_critic, "wgan-gp"),
    "interval lost": (EXPLICIT, "penalty.interval / n", "1 / n", plain_critic, LAZY),
    "zero-centred and norm penalty swapped": (
        EXPLICIT, "not penalty.at_own_points,", "penalty.at_own_points,", plain_critic, "r1"),
    "the second of two penalties forgotten": (
        EXPLICIT, "directions[k] + found.direction if k in directions else found.direction", "found.direction",
        plain_critic, ("r1", PenaltyConfig("r1+r2"))),
    # Layers.
    "no mask in the tangent": (
        LAYERS, "def tangent(self, w: Weights, kept: Kept, *t: Tensor) -> Tensor:\n        return self._through(kept, t[0])",
        "def tangent(self, w: Weights, kept: Kept, *t: Tensor) -> Tensor:\n        return t[0]", plain_critic, "wgan-gp"),
    "another slope backwards": (
        LAYERS, "aten.leaky_relu_backward(v, kept[0], self.slope, True)", "aten.leaky_relu_backward(v, kept[0], 0.3, True)",
        plain_critic, "r1"),
    "bias in the tangent": (
        LAYERS, "return self._apply(w, t[0], None)", "return self._apply(w, t[0], w[self.bias] if self.bias else None)",
        plain_critic, "wgan-gp"),
    "no second derivative of a curve": (
        LAYERS, "return dy * t * self.second_derivative(kept[0])", "return 0 * dy", lambda: norm_critic("SiLU"), "wgan-gp"),
    "its sign": (
        LAYERS, "return dy * t * self.second_derivative(kept[0])", "return -dy * t * self.second_derivative(kept[0])",
        lambda: norm_critic("Tanh"), "wgan-gp"),
    "a wrong second derivative of SiLU": (
        LAYERS, "s * (1 - s) * (2 + x * (1 - 2 * s))", "s * (1 - s) * (1 + x * (1 - 2 * s))", lambda: norm_critic("SiLU"), "r1"),
    "sign of a norm's second-order term": (
        LAYERS, "return -((y * mean(d * ty)", "return ((y * mean(d * ty)", lambda: norm_critic("GroupNorm"), "wgan-gp"),
    "one summand of it": (
        LAYERS, "+ dx * mean(y * v) + ty", "+ ty", lambda: norm_critic("GroupNorm"), "wgan-gp"),
    "a norm taken for linear": (
        LAYERS, "return (v - mean(v) - y * mean(y * v)) / sigma", "return (v - mean(v)) / sigma",
        lambda: norm_critic("LayerNorm of maps"), "wgan-gp"),
    "no scale on the way back": (
        LAYERS, "return (self._scaled(w, dy),)", "return (dy,)", lambda: norm_critic("InstanceNorm with weights"), "wgan-gp"),
    "no scale in the tangent": (
        LAYERS, "return self._scaled(w, t[0])", "return t[0]", lambda: norm_critic("InstanceNorm with weights"), "wgan-gp"),
    "one statistic for all channels": (
        LAYERS, "self.groups or x.shape[1], -1", "self.groups or 1, -1", lambda: norm_critic("InstanceNorm"), "r1"),
    "pooling's tangent of sums": (
        LAYERS, "return aten.avg_pool2d(t[0], *self.arguments)", "return 4 * aten.avg_pool2d(t[0], *self.arguments)",
        pooled_critic, "wgan-gp"),
    "a weight gradient of one half of the rows": (
        LAYERS, "deltas.to(kind).flatten(0, -2).t() @ inputs.to(kind).flatten(0, -2)",
        "deltas.to(kind)[: len(deltas) // 2].flatten(0, -2).t() @ inputs.to(kind)[: len(deltas) // 2].flatten(0, -2)",
        plain_critic, "wgan-gp"),
    "resizing's corners": (WALK, "align = (bool(corners),)", "align = (not corners,)", shrunk_critic, "wgan-gp"),
    # Rows and passes.
    "tangents from the loss's rows": (
        EXPLICIT, "tangent = self._tangent(w, kept, direction, rows.penalised)\n\n",
        "tangent = self._tangent(w, kept, direction, slice(0, rows.count))\n\n", plain_critic, "wgan-gp"),
    "the loss's slope lost on shared rows": (EXPLICIT, "_times(h[both], slope) + t", "h[both] + t", plain_critic, "r1"),
    "its bias too": (EXPLICIT, "[d[own], _times(d[both], slope)]", "[d[own], d[both]]", plain_critic, "r1"),
    "tangents lost on shared rows": (
        EXPLICIT, "_times(h[both], slope) + t[:shared]", "_times(h[both], slope)", plain_critic, "r1+r2"),
    "biases that see penalised rows": (EXPLICIT, "return [h], [d], [d[own]]", "return [h], [d], [d]", plain_critic, "wgan-gp"),
    "seed 1 on the loss's rows": (
        EXPLICIT, "torch.cat([s[: rows.start], one])", "torch.cat([torch.ones_like(s[: rows.start]), one])",
        plain_critic, "wgan-gp"),
    "reals held in place of fakes": (
        EXPLICIT, "return not (holds(penalties, \"r1\")", "return (holds(penalties, \"r1\")", plain_critic, "r2"),
    "unit deltas not 1": (EXPLICIT, "return [torch.ones_like(score),", "return [torch.full_like(score, 1.01),", plain_critic, "r1"),
    "a class head held by the penalty": (
        EXPLICIT, "*(torch.zeros_like(c) for c in classes)]", "*(torch.ones_like(c) for c in classes)]",
        lambda: plain_critic(conditional="auxiliary"), "wgan-gp"),
    "only the last path of a residual": (
        EXPLICIT, "pending[i] = pending[i] + d if i in pending else d", "pending[i] = d", residual_critic, "r1"),
    "no shortcut in the tangent": (LAYERS, "return t[0] + t[1]", "return t[1]", residual_critic, "wgan-gp"),
    "only the last use of a weight": (
        EXPLICIT, "{**a, **b, **{name: a[name] + b[name] for name in a.keys() & b.keys()}}", "{**a, **b}", twice_critic, "wgan-gp"),
    "a curved critic taken for piecewise-linear": (
        WALK, "any(step.layer.curved for step in self.steps)", "False", lambda: norm_critic("Softplus"), "wgan-gp"),
    "second-order terms that meet no adjoint": (
        EXPLICIT, "d = bend.added(step.layer, kept[step.output], i, step.output, d)", "pass",
        lambda: norm_critic("GroupNorm"), "r1"),
    "second-order terms on the wrong rows": (
        EXPLICIT, "torch.cat([d[: self.start], d[self.start :] + more])",
        "torch.cat([d[: len(more)] + more, d[len(more) :]])", lambda: norm_critic("SiLU"), "wgan-gp"),
    "adjoints that do not reach the points": (
        EXPLICIT, "([values[i][reached], tangent[i]], [a, delta.pop(out)], [a])",
        "([values[i][: rows.loss], tangent[i]], [a[: rows.loss], delta.pop(out)], [a[: rows.loss]])",
        lambda: norm_critic("GroupNorm"), "wgan-gp"),
    "penalised rows without their delta": (
        EXPLICIT, "([values[i][reached], tangent[i]], [a, delta.pop(out)], [a])", "([values[i][reached]], [a], [a])",
        lambda: norm_critic("SiLU"), "r1"),
    "reals taken for fakes": (EXPLICIT, "else [second, first, *points]", "else [first, second, *points]", plain_critic, "r1"),
    "a tail that knows nothing of the penalty": (
        EXPLICIT, "whole = whole + (t.detach() * d[self.rows.penalised]).sum()", "pass", spread_critic, "wgan-gp"),
    "a tail that is not penalised on all of its rows": (
        EXPLICIT, "scores = torch.cat([s.score for s in held]).sum()", "scores = held[0].score.sum()", spread_critic, "r1+r2"),
    "the gradients of a tail forgotten": (EXPLICIT, "self.gradients = dict(zip", "dict(zip", spread_critic, "r1"),
    # Parametrised weights.
    "gradients that do not go through the normalisation": (
        WEIGHTS, "        if made:\n", "        if False:\n", weight_normed, "wgan-gp"),
    "gradients that leave the largest singular value where it is": (
        SPECTRAL, "return (gradient - shaped) / sigma", "return gradient / sigma", lambda: spectral(plain_critic()), "wgan-gp"),
    "a singular value that is 1% too large": (
        SPECTRAL, "sigma = u.dot(", "sigma = 1.01 * u.dot(", lambda: spectral(plain_critic()), "r1"),
    # Dropout.
    "a delta that dropout lets through": (LAYERS, "return (dy * kept[0],)", "return (dy,)", dropping_critic, "wgan-gp"),
    "a tangent that dropout lets through": (LAYERS, "return t[0] * kept[0]", "return t[0]", dropping_critic, "wgan-gp"),
    "the reals' masks on the fakes": (
        DRAWS, "for at in sorted(blocks)]", "for at in sorted(blocks, reverse=True)]", dropping_critic, "r1"),
    # Small maps.
    "patches of another stride": (SMALL, "stride[0] * row", "row", plain_critic, "wgan-gp"),
    "patches without their borders": (SMALL, "padding[0] : padding[0] + h", ": h", plain_critic, "wgan-gp"),
}  # fmt: skip

# Of the lean autograd.
LEAN_MUTATIONS = {
    "a mask of its own derivative": (
        LEAN, "return LeakThrough.apply(g, ctx.saved_tensors[0], ctx.slope), None, None", "return g, None, None",
        plain_critic, "wgan-gp"),
    "no way from the data gradient to the weight": (
        LEAN, "WeightGradient.apply(dy, t, weight.detach(), ctx.shape) if wanted(ctx, 1) else None", "None",
        plain_critic, "wgan-gp"),
    "the weight gradient paired with the wrong map": (
        LEAN, "WeightGradient.apply(dy, t, weight.detach(), ctx.shape)",
        "WeightGradient.apply(dy, 2 * t, weight.detach(), ctx.shape)", plain_critic, "r1"),
    "no way back to the delta": (
        LEAN, "Convolve.apply(t, weight, None, ctx.shape) if wanted(ctx, 0) else None", "None", plain_critic, "r1"),
    "slope lost": (LEAN, "y = F.leaky_relu(x, slope, inplace)", "y = F.leaky_relu(x, inplace=inplace)", plain_critic, "r1"),
}  # fmt: skip


def arguments_for(critic):
    return {"labels": LABELS} if getattr(critic, "class_head", None) is not None else {}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_the_check_refuses_a_mutated_engine(mutation):
    file, old, new, made, penalty = MUTATIONS[mutation]
    critic = made()
    found = verdict(built(file, old, new), critic, penalty, **arguments_for(critic))
    assert not found.passed, found
    right = verdict(built(), critic, penalty, **arguments_for(critic))
    assert right.passed, right
    assert right.error < 1e-4


@pytest.mark.parametrize("mutation", LEAN_MUTATIONS)
def test_the_check_refuses_a_mutated_autograd(mutation):
    file, old, new, made, penalty = LEAN_MUTATIONS[mutation]
    found = verdict(built(file, old, new), made(), penalty, "autograd")
    assert not found.passed, found
    right = verdict(built(), made(), penalty, "autograd")
    assert right.passed, right
    assert right.error < 1e-4


def test_a_class_head_may_not_take_the_form_of_one_logit():
    """A row that both loss and penalty hold has a delta of its own for each logit: no one slope leads from the unit delta to it."""
    one_form = "elif not walk.curved and (shared <= 0 or len(places) == 1):"
    forced = built(EXPLICIT, one_form, "elif not walk.curved:")
    loss = LossConfig("non-saturating", class_weight=1.0)
    critic = plain_critic(conditional="auxiliary")
    assert verdict(forced, critic, "r1", loss=loss, labels=LABELS).error > 0.1
    assert verdict(built(), critic, "r1", loss=loss, labels=LABELS).passed
    assert verdict(forced, plain_critic(), "r1").passed  # where there is one logit it is the form to take


def test_nothing_of_a_mutated_copy_stays():
    before = {name: sys.modules[name] for name in CHAIN}
    built(PENALTY, EXCESS, EXCESS.replace("norm - target", "norm"))
    assert {name: sys.modules[name] for name in CHAIN} == before
    assert ganfast.engine.layers is before["ganfast.engine.layers"]
    assert verdict(ganfast.engine.make_critic_step, plain_critic(), "wgan-gp").passed


def test_a_text_that_is_not_there_once_is_an_error():
    for old in ("no such text", "return"):
        with pytest.raises(AssertionError, match="exactly once"):
            built(EXPLICIT, old, "")
