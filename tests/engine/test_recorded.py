"""Compiled generator steps and drawings: one graph each, right in every step that follows."""

import copy
import logging

import pytest
import torch
from torch import nn

from ganfast.bench.problem import Problem
from ganfast.bench.setting import Setting
from ganfast.config import LossConfig
from ganfast.engine import make_critic_step, make_drawing, make_generator_step, recorded
from ganfast.engine.check import relative_error
from ganfast.engine.compiled import compiled, graphs
from ganfast.models.dropout import Dropout
from ganfast.models.members import (
    holding,
    modes,
    modules,
    named_parameters,
    named_tensors,
    parameters,
    paths,
)
from ganfast.models.parts import spectral
from ganfast.presets import FROM_LATENTS
from tests.depth import DIFFERENT
from tests.engine.test_engine_reference import (
    CLASSES,
    LABELS,
    given,
    latents,
    small_critic,
    small_generator,
)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.jit, inside torch
COMPILED = [(preset, "recorded") for preset in DIFFERENT]
COMPILED += [pytest.param(preset, "inductor", marks=pytest.mark.accept) for preset in FROM_LATENTS]

# For tests of what is recorded, and when it is recorded anew: the program says little more.
rarely_compiled = pytest.mark.parametrize(
    "compiler", ["recorded", pytest.param("inductor", marks=pytest.mark.full)], indirect=True
)


def pair(preset):
    problem = Problem(Setting(preset, size=16, width=4, batch=6, classes=3))
    return problem.config, *problem.networks(0)


def fed(config, n=6, seed=0):
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(n, config.net.latent, generator=g)
    real = torch.rand(n, 1, 16, 16, generator=g) * 2 - 1
    return z, torch.arange(n) % 3, real if config.loss.kind == "relativistic" else None


def of(generator, critic):
    """All that a generator step changes, and where torch's generator stands."""
    return (
        [p.grad for p in generator.parameters()],
        [*generator.buffers(), *critic.buffers()],
        torch.random.get_rng_state(),
    )


def assert_alike(mine, theirs, tolerance=2e-5):
    assert relative_error(mine[0], theirs[0]) <= tolerance
    for found, exact in zip(
        mine[0], theirs[0], strict=True
    ):  # a bias before a batch norm has rounding for a gradient
        assert (found - exact).norm() <= tolerance * exact.norm() + 1e-6
    for found, exact in zip(mine[1], theirs[1], strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-6)
    assert torch.equal(mine[2], theirs[2]), "as many numbers are drawn"


@pytest.mark.parametrize(("preset", "compiler"), COMPILED, indirect=["compiler"])
def test_a_compiled_step_is_the_step_that_is_not(preset, compiler, caplog):
    config, *nets = pair(preset)
    found = {}
    for compile in (True, False):
        generator, critic = copy.deepcopy(nets)
        step = make_generator_step(generator, critic, config.loss, compile=compile)
        torch.manual_seed(5)
        found[compile] = []
        for seed in (1, 2):
            stats = step(*fed(config, seed=seed))
            found[compile].append((*copy.deepcopy(of(generator, critic)), stats))
        assert step.compiled == compile
    for mine, theirs in zip(found[True], found[False], strict=True):
        assert_alike(mine[:3], theirs[:3])
        assert mine[3].keys() == theirs[3].keys()
        for name, value in mine[3].items():
            assert value.item() == pytest.approx(theirs[3][name].item(), rel=1e-5, abs=1e-6)
    assert any(b.dtype == torch.int64 and b > 0 for b in found[True][0][1]) == any(
        b.dtype == torch.int64 for b in nets[0].buffers()
    )
    assert not [r for r in caplog.records if r.name == "ganfast"]


@pytest.mark.parametrize("preset", ["gan", "wgan-gp"])
def test_a_compiled_drawing_is_the_drawing_and_moves_the_statistics_of_batch_norms_as_it_does(
    preset, compiler
):
    config, generator, _ = pair(preset)
    twin = copy.deepcopy(generator)
    draw, plain = make_drawing(generator, compile=True), make_drawing(twin)
    before = graphs.total()
    for seed in (1, 2):
        z, labels, _ = fed(config, seed=seed)
        mine, theirs = draw(z, labels), plain(z, labels)
        assert not mine.requires_grad
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
    assert graphs.total() == before + 1
    for one, other in zip(generator.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert [b.item() for b in generator.buffers() if b.dtype == torch.int64] == [2] * sum(
        isinstance(m, nn.modules.batchnorm._BatchNorm) for m in generator.modules()
    )


def changed_batch(generator, critic):
    return None


def frozen(generator, critic):
    generator.project.weight.requires_grad_(False)


def other_dropout(generator, critic):
    next(m for m in critic.modules() if isinstance(m, Dropout)).p = 0.7


def judged_in_eval_mode(generator, critic):
    critic.eval()


def laid_out_anew(generator, critic):
    layer = generator.layers[-2]
    layer.weight.data = layer.weight.data.t().contiguous().t()


def another_layer(generator, critic):
    critic.trunk[2] = nn.ReLU()


def another_slope(generator, critic):
    next(m for m in critic.modules() if isinstance(m, nn.LeakyReLU)).negative_slope = 0.5


def moved_weights(generator, critic):
    with torch.no_grad():
        for p in (*generator.parameters(), *critic.parameters()):
            p.mul_(1.5)


@rarely_compiled
@pytest.mark.parametrize(
    ("change", "anew"),
    [
        (changed_batch, 1),
        (frozen, 1),
        (other_dropout, 1),
        (judged_in_eval_mode, 1),
        (laid_out_anew, 1),
        (another_layer, 1),
        (another_slope, 1),
        (moved_weights, 0),
    ],
)
def test_what_changes_between_two_steps_is_seen(change, anew, compiler):
    config, *nets = pair("gan")
    found, made = [], []
    for compile in (True, False):
        generator, critic = copy.deepcopy(nets)
        step = make_generator_step(generator, critic, config.loss, compile=compile)
        torch.manual_seed(5)
        step(*fed(config))
        change(generator, critic)
        before = graphs.total()
        step(*fed(config, n=4 if change is changed_batch else 6, seed=3))
        made.append(graphs.total() - before)
        found.append(
            (
                [p.grad for p in generator.parameters() if p.requires_grad],
                *of(generator, critic)[1:],
            )
        )
    assert_alike(*found)
    assert made == [anew, 0]


@pytest.mark.accept
def test_twins_in_bf16_are_what_is_computed_with(caplog):
    config, *nets = pair("wgan-gp")
    exact = copy.deepcopy(nets)
    make_generator_step(*exact, config.loss)(*fed(config))
    errors = {}
    for compile in (True, False):
        generator, critic = copy.deepcopy(nets)
        twins = tuple(copy.deepcopy(net).to(torch.bfloat16) for net in (generator, critic))
        step = make_generator_step(generator, critic, config.loss, torch.bfloat16, compile, twins)
        step(*fed(config))
        found = [p.grad for p in generator.parameters()]
        errors[compile] = relative_error(found, [p.grad for p in exact[0].parameters()])
        assert step.compiled == compile
        assert {g.dtype for g in found} == {torch.float32}
    assert 1e-4 < errors[True] < 1.5 * errors[False]
    assert not [r for r in caplog.records if r.name == "ganfast"]


@rarely_compiled
def test_a_module_with_two_paths_is_computed_with_and_left_as_it_was(caplog, compiler):
    def net(last, out):
        torch.manual_seed(0)
        twice, norm = nn.Linear(8, 8), nn.BatchNorm1d(8)
        return nn.Sequential(
            twice, norm, nn.ReLU(), twice, norm, nn.Tanh(), nn.Linear(8, out), last
        )

    found = []
    for compile in (True, False):
        generator = net(nn.Unflatten(1, (3, 9, 7)), 189)
        critic = nn.Sequential(nn.Flatten(), nn.Linear(189, 8), net(nn.Identity(), 1))
        nets = generator, critic
        own = [tensor for net in nets for tensor in (*net.parameters(), *net.buffers())]
        z = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
        pictures = make_drawing(generator, compile=compile)(z, None)
        step = make_generator_step(generator, critic, LossConfig(), compile=compile)
        step(z)
        assert step.compiled == compile
        now = [tensor for net in nets for tensor in (*net.parameters(), *net.buffers())]
        assert [*map(id, now)] == [*map(id, own)]
        found.append(of(generator, critic))
        found[-1][1].append(pictures)
    assert_alike(*found)
    assert not [r for r in caplog.records if r.name == "ganfast"]


@pytest.mark.parametrize("engine", ["autograd", "explicit"])
def test_critics_with_a_module_on_two_paths_keep_their_parameters(engine):
    torch.manual_seed(0)
    twice = nn.Linear(8, 8)
    critic = nn.Sequential(
        nn.Flatten(), nn.Linear(189, 8), twice, nn.SELU(), twice, nn.SELU(), nn.Linear(8, 1)
    )
    own = [*map(id, critic.parameters())]
    step = make_critic_step(critic, "hinge", "r1", engine=engine, compile=False)
    step(**given(torch.float32))
    assert step.choice.engine == engine
    assert [*map(id, critic.parameters())] == own


def test_held_tensors_are_taken_back_after_an_error():
    net = shared()
    own = named_tensors(net)
    other = torch.zeros(3, 3)
    with holding(net, {"0.weight": other}):
        assert net[0].weight is net[2][0].weight is net[2][1].weight is other
        assert net[0].bias is own[1][1]

    def fail():
        with holding(net, {"0.weight": other}):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [(n, id(x)) for n, x in named_tensors(net)] == [(n, id(x)) for n, x in own]


@rarely_compiled
def test_a_callers_mistake_costs_no_graph(caplog, compiler):
    generator = small_generator(CLASSES, torch.float32)
    critic = small_critic("projection", torch.float32)
    step = make_generator_step(generator, critic, LossConfig("relativistic"), compile=True)
    z, real = latents(torch.float32), given(torch.float32)["real"]
    with pytest.raises(ValueError, match="relativistic"):
        step(z, LABELS)
    step(z, LABELS, real)
    with pytest.raises(IndexError, match="out of range"):
        step(z, LABELS + 9, real)
    step(z, LABELS, real)
    assert step.compiled
    assert not [r for r in caplog.records if r.name == "ganfast"]


def test_the_autocast_that_a_caller_is_in_stays_outside():
    """By inductor also in `make test`: it is there, and its programs pass the check."""
    generator = small_generator(dtype=torch.float32)
    drawing, z = make_drawing(generator, compile=True), latents(torch.float32)
    exact, before = make_drawing(generator)(z, None), graphs.total()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(drawing(z, None), exact, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(drawing(z, None), exact, rtol=1e-5, atol=1e-6)
    assert graphs.total() == before + 1


@rarely_compiled
def test_batch_norms_count_each_of_their_calls(compiler, caplog):
    """Also one that is called twice in a forward, beside one that keeps no statistics."""
    shared, without = nn.BatchNorm1d(8), nn.BatchNorm1d(8, track_running_stats=False)
    generator = nn.Sequential(nn.Linear(6, 8), shared, nn.BatchNorm1d(8), without, shared)
    twin, z = copy.deepcopy(generator), torch.randn(5, 6)
    by_graph, exact = make_drawing(generator, compile=True), make_drawing(twin)
    for _ in range(2):
        torch.testing.assert_close(by_graph(z, None), exact(z, None), rtol=1e-5, atol=1e-6)
    assert [int(generator[i].num_batches_tracked) for i in (1, 2)] == [4, 2]
    for mine, theirs in zip(generator.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
    assert "not compiled" not in caplog.text


@rarely_compiled
def test_a_network_that_is_trained_and_not_in_turns_has_two_graphs(compiler):
    config, generator, _ = pair("gan")
    drawing, (z, labels, _) = make_drawing(generator, compile=True), fed(config)
    before = graphs.total()
    for _ in range(2):
        drawing(z, labels)
        generator.eval()
        drawing(z, labels)
        generator.train()
    assert graphs.total() == before + 2


class Growing(nn.Linear):
    """What it computes depends on how often it was called."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return self.calls * x


def growing_weight():
    """A class of its own that has been given torch's normalisation, and its name with it."""
    return spectral(nn.Sequential(Growing(4, 4)))[0]


def hooked():
    layer = nn.Identity()
    layer.register_forward_hook(lambda module, given, found: found * 2)
    return layer


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (lambda: Growing(4, 4), "Growing is a class of its own"),
        (growing_weight, "Growing is a class of its own"),
        (hooked, "Identity has hooks"),
        (lambda: nn.Dropout(0.3), "Dropout draws numbers"),
    ],
)
def test_layers_that_a_graph_would_freeze_are_left_to_eager_torch_and_named(layer, said, caplog):
    with caplog.at_level(logging.WARNING, "ganfast"):
        critic = small_critic(dtype=torch.float32)
        critic.trunk.append(layer())
        generator = small_generator(dtype=torch.float32)
        step = make_generator_step(generator, critic, LossConfig(), compile=True)
        before = graphs.total()
        step(latents(torch.float32))
        assert not step.compiled
        assert f"generator step: not compiled ({said}" in caplog.text
        generator.layers.insert(0, layer())
        make_drawing(generator, compile=True)(latents(torch.float32), None)
        assert f"drawing for the critic: not compiled ({said}" in caplog.text
    assert graphs.total() == before


@rarely_compiled
def test_a_hook_that_comes_later_is_seen(caplog, compiler):
    generator, critic = small_generator(dtype=torch.float32), small_critic(dtype=torch.float32)
    step, calls = make_generator_step(generator, critic, LossConfig(), compile=True), []
    step(latents(torch.float32))
    assert step.compiled
    critic.trunk[0].register_forward_hook(lambda *_: calls.append(1))
    for _ in range(3):
        step(latents(torch.float32))
    assert len(calls) == 3
    assert caplog.text.count("generator step: not compiled (Conv2d has hooks") == 1


def test_a_graph_with_wrong_gradients_is_refused_at_its_first_step(monkeypatch, caplog, compiler):
    real = recorded._Graph.__call__

    def wrong(self, *args):
        found = real(self, *args)
        return (
            ([1.01 * g for g in found[0]], found[1]) if isinstance(found, tuple) else 1.01 * found
        )

    monkeypatch.setattr(recorded._Graph, "__call__", wrong)
    generators = []
    for compile in (True, False):
        generator, critic = small_generator(dtype=torch.float32), small_critic(dtype=torch.float32)
        step = make_generator_step(generator, critic, LossConfig(), compile=compile)
        for _ in range(2):
            step(latents(torch.float32))
        assert not step.compiled
        generators.append(generator)
    drawing, exact = make_drawing(generator, compile=True), make_drawing(generator)
    assert torch.equal(drawing(latents(torch.float32), None), exact(latents(torch.float32), None))
    said = "drawing for the critic: not compiled (what a graph gives is 0.01 off what it should)"
    assert caplog.text.count(said) == 1
    said = "generator step: not compiled (what a graph gives is 0.01 off what it should)"
    assert caplog.text.count(said) == 1
    for p, q in zip(*(g.parameters() for g in generators), strict=True):
        assert torch.equal(p.grad, q.grad)


def test_a_compiler_that_fails_is_said_once_and_the_step_taken_all_the_same(monkeypatch, caplog):
    def fail(*_):
        raise RuntimeError("no C++ compiler\nanywhere")

    monkeypatch.setattr(torch._inductor, "compile", fail)
    generator = small_generator(CLASSES, torch.float32)
    critic = small_critic("projection", torch.float32)
    step = make_generator_step(generator, critic, LossConfig("relativistic"), compile=True)
    for _ in range(2):
        step(latents(torch.float32), LABELS, given(torch.float32)["real"])
    assert (
        caplog.text.count("generator step: not compiled (RuntimeError: no C++ compiler anywhere)")
        == 1
    )
    draw = make_drawing(generator, compile=True)
    for _ in range(2):
        assert torch.equal(
            draw(latents(torch.float32), LABELS),
            make_drawing(generator)(latents(torch.float32), LABELS),
        )
    said = "drawing for the critic: not compiled (RuntimeError: no C++ compiler anywhere)"
    assert caplog.text.count(said) == 1
    assert all(p.grad is not None for p in generator.parameters())


def test_a_graph_is_found_by_all_that_it_depends_on():
    calls = []

    def function(named, pair, flag):
        calls.append(1)
        return {
            "sum": named["a"] + pair[0],
            "rest": [named["b"] * 2, (pair[1],)] if flag else [pair[1], (named["b"],)],
        }

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch._inductor, "compile", lambda graph, _: graph)
        run = compiled(function)
        a, b, c, d = torch.randn(4, 3).unbind(0)
        for flag in (True, False, True):
            expected = function({"a": a, "b": b}, (c, d), flag)
            found = run({"a": a, "b": b}, (c, d), flag)
            assert torch.equal(found["sum"], expected["sum"])
            assert torch.equal(found["rest"][0], expected["rest"][0])
            assert torch.equal(found["rest"][1][0], expected["rest"][1][0])
        assert len(calls) == 3 + 2
        for other in (a[:2], a.double(), torch.randn(6)[::2]):  # another shape, type, layout
            run({"a": other, "b": b}, (c[: len(other)], d), True)
        assert len(calls) == 3 + 2 + 3
        run({"b": b, "a": a}, (c, d), True)  # names in another order are other arguments
        assert len(calls) == 3 + 2 + 4


def shared():
    """One layer under two names, a missing one, a normalised weight, a tied parameter."""
    layer = nn.Linear(3, 3)
    net = nn.Sequential(
        layer,
        nn.BatchNorm1d(3),
        nn.Sequential(layer, nn.Linear(3, 3, bias=False)),
        spectral(nn.Linear(3, 3)),
    )
    net[2][1].weight = layer.weight
    net.register_module("none", None)
    return net


@pytest.mark.parametrize(
    "net", [shared, lambda: pair("gan")[1], lambda: pair("hinge")[2], lambda: nn.Linear(2, 2)]
)
def test_members_are_those_of_torchs_walks(net):
    net = net()

    def same(mine, theirs):
        return [(n, id(x)) for n, x in mine] == [(n, id(x)) for n, x in theirs]

    assert same(paths(net), net.named_modules(remove_duplicate=False))
    assert same(named_parameters(net), net.named_parameters(remove_duplicate=False))
    assert sorted(map(id, dict(named_tensors(net)).values())) == sorted(
        {*map(id, net.parameters()), *map(id, net.buffers())}
    )
    assert {n for n, _ in named_tensors(net)} == {
        n for n, _ in (*net.named_parameters(), *net.named_buffers())
    }
    assert [*map(id, modules(net))] == [*map(id, net.modules())]
    assert [*map(id, parameters(net))] == [*map(id, net.parameters())]


def test_what_a_class_says_of_a_module_counts_too():
    class Annealed(nn.Dropout):
        now = 0.0

        @property
        def p(self):
            return self.now

        @p.setter
        def p(self, value):
            pass

    layer = Annealed()
    before = modes(layer)
    layer.now = 0.5
    assert modes(layer) != before
