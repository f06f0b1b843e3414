"""The two steps against a textbook in float64: picture by picture, with bare square roots."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ganfast.config import LossConfig, OptimConfig, PenaltyConfig
from ganfast.engine import draw, make_critic_step, make_generator_step
from ganfast.models.parts import LEAK, Critic, Generator, spectral
from ganfast.training.optim import FlatAdam

LOSSES = ["minimax", "non-saturating", "least-squares", "hinge", "wasserstein", "relativistic"]
PENALTIES = ["none", "wgan-gp", "dragan", "r1", "r2", "r1+r2"]
SHAPE = (3, 9, 7)  # neither square nor even: transposed axes and dropped borders show
N, CLASSES = 5, 4


def small_critic(conditional="no", dtype=torch.float64, norm=nn.Identity, seed=0):
    torch.manual_seed(seed)
    acts, norms = (nn.LeakyReLU(LEAK) for _ in range(2)), [] if norm is nn.Identity else [norm(6)]
    first, second = nn.Conv2d(3, 4, 4, 2, 1), nn.Conv2d(4, 6, 3, 2, 1)
    trunk = nn.Sequential(first, next(acts), second, *norms, next(acts), nn.Flatten())
    critic = Critic(trunk, 6 * 2 * 2, CLASSES, conditional).to(dtype)
    with torch.no_grad():
        for p in critic.parameters():
            p.mul_(2)  # scores and gradient norms around 1
    return critic


def small_generator(classes=0, dtype=torch.float64, norm=nn.Identity):
    torch.manual_seed(1)
    norms = [] if norm is nn.Identity else [norm(4)]
    last = nn.ConvTranspose2d(4, 3, 4, 2, 1, output_padding=(1, 1))
    layers = nn.Sequential(*norms, nn.ReLU(), last)
    return Generator(8, (4, 4, 3), layers, classes).to(dtype)


def given(dtype=torch.float64, seed=3):
    g = torch.Generator().manual_seed(seed)
    real, fake = torch.rand(2, N, *SHAPE, generator=g, dtype=torch.float64) * 2 - 1
    eps, noise = torch.rand(N, generator=g), torch.rand(N, *SHAPE, generator=g)
    inputs = {"real": real, "fake": fake, "eps": eps, "noise": noise}
    return {name: x.to(dtype) for name, x in inputs.items()}


LABELS = torch.tensor([2, 0, 3, 3, 1])


def critic_term(kind, r, f):
    p = torch.sigmoid
    return {
        "minimax": -torch.log(p(r)) - torch.log(1 - p(f)),
        "non-saturating": -torch.log(p(r)) - torch.log(1 - p(f)),
        "least-squares": (r - 1) ** 2 / 2 + f**2 / 2,
        "hinge": torch.clamp(1 - r, min=0) + torch.clamp(1 + f, min=0),
        "wasserstein": f - r,
        "relativistic": -torch.log(p(r - f)),
    }[kind]


def generator_term(kind, r, f):
    p = torch.sigmoid
    return {
        "minimax": torch.log(1 - p(f)),
        "non-saturating": -torch.log(p(f)),
        "least-squares": (f - 1) ** 2 / 2,
        "hinge": -f,
        "wasserstein": -f,
        "relativistic": -torch.log(p(f - r)),
    }[kind]


def score_of(critic, x, label):
    return critic(x[None], None if label is None else label[None]).score[0]


def gradient_norm_at(critic, x, label):
    x = x.detach().clone().requires_grad_()
    (g,) = torch.autograd.grad(score_of(critic, x, label), x, create_graph=True)
    return (g**2).sum() ** 0.5


def textbook_critic_gradients(critic, loss, penalty, real, fake, eps, noise, labels=None):
    """(gradients by name, {loss, penalty, norms}) of the mean over pictures, each scored alone."""
    losses, penalties, norms, class_losses = [], [], [], []
    for n in range(len(real)):
        label = None if labels is None else labels[n]
        projected = label if critic.projection is not None else None
        scores = (score_of(critic, x[n], projected) for x in (real, fake))
        losses.append(critic_term(loss.kind, *scores))
        if penalty.kind in ("wgan-gp", "dragan"):
            inside = eps[n] * real[n] + (1 - eps[n]) * fake[n]
            around = real[n] + 0.5 * real.std() * noise[n]
            point = inside if penalty.kind == "wgan-gp" else around
            norm = gradient_norm_at(critic, point, projected)
            excess = norm - penalty.target
            if penalty.one_sided:
                excess = torch.clamp(excess, min=0)
            penalties.append(penalty.weight * excess**2)
            norms.append(norm)
        elif penalty.kind != "none":
            held = [x[n] for name, x in (("r1", real), ("r2", fake)) if name in penalty.kind]
            each = [gradient_norm_at(critic, x, projected) for x in held]
            penalties.append(sum(penalty.weight / 2 * norm**2 for norm in each))
            norms += each
        if critic.class_head is not None:
            for x in (real[n], fake[n])[: 2 if loss.class_fakes else 1]:
                class_losses.append(-torch.log(torch.softmax(critic(x[None]).classes[0], 0)[label]))
    total = sum(losses) / len(real)
    stats = {"loss": total.item()}
    if penalties:
        stats["penalty"] = (sum(penalties) / len(real)).item()
        stats["gradient_norm"] = (sum(norms) / len(norms)).item()
        stats["gradient_norm_max"] = max(norm.item() for norm in norms)
        total = total + penalty.interval * sum(penalties) / len(real)
    if class_losses:
        stats["class_loss"] = (sum(class_losses) / len(real)).item()
        total = total + loss.class_weight * sum(class_losses) / len(real)
    return gradients_by_name(critic, total), stats


def gradients_by_name(net, total):
    parameters = dict(net.named_parameters())
    gradients = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    return {
        name: torch.zeros_like(p) if g is None else g
        for (name, p), g in zip(parameters.items(), gradients, strict=True)
    }


def assert_gradients(net, expected, tolerance):
    scale = max(g.abs().max().item() for g in expected.values())
    assert scale > 1e-3  # a comparison of zeros shows nothing
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.shape == parameter.shape, name
        error = (parameter.grad.double() - expected[name]).abs().max().item()
        assert error <= tolerance * scale, (name, error / scale)


def distance_from_kinks(critic, *batches):
    """Smallest |pre-activation| of the leaky ReLUs, in units of their largest."""
    seen = []

    def measure(_, inputs, __):
        seen.append((inputs[0].abs().min() / inputs[0].abs().max()).item())

    leaks = [module for module in critic.modules() if isinstance(module, nn.LeakyReLU)]
    hooks = [module.register_forward_hook(measure) for module in leaks]
    for x in batches:
        critic.trunk(x)
    for hook in hooks:
        hook.remove()
    return min(seen)


# The critic step.


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("loss", LOSSES)
def test_the_critic_step_is_the_textbooks(loss, penalty):
    critic, loss, penalty = small_critic(), LossConfig(loss), PenaltyConfig(penalty, weight=3.0)
    expected, stats = textbook_critic_gradients(critic, loss, penalty, **given())
    returned = make_critic_step(critic, loss, penalty)(**given())
    assert_gradients(critic, expected, 2e-6)  # scores and input gradients may be rounded to float32
    for name, value in stats.items():
        assert returned[name].item() == pytest.approx(value, rel=2e-6, abs=2e-6), name


@pytest.mark.parametrize(
    "penalty",
    [
        PenaltyConfig("wgan-gp", weight=3.0, target=0.5, interval=4),
        PenaltyConfig("wgan-gp", weight=3.0, target=0.6, one_sided=True),
        PenaltyConfig("dragan", weight=3.0, target=0.6, one_sided=True, interval=2),
        PenaltyConfig("wgan-gp", weight=3.0, target=0.0),
        PenaltyConfig("r1+r2", weight=0.7, interval=16),
    ],
    ids=repr,
)
def test_the_variants_of_a_penalty_are_the_textbooks(penalty):
    critic, loss = small_critic(), LossConfig("wasserstein")
    expected, stats = textbook_critic_gradients(critic, loss, penalty, **given())
    returned = make_critic_step(critic, loss, penalty)(**given())
    assert_gradients(critic, expected, 2e-6)
    assert returned["penalty"].item() == pytest.approx(stats["penalty"], rel=2e-6)
    assert stats["penalty"] > 0


@pytest.mark.parametrize("penalty", PENALTIES)
def test_in_float32_the_critic_step_is_as_accurate_as_float32_allows(penalty):
    loss, penalty, exact = LossConfig("non-saturating"), PenaltyConfig(penalty, weight=3.0), given()
    critic = small_critic()
    share = exact["eps"].view(-1, 1, 1, 1)
    between = share * exact["real"] + (1 - share) * exact["fake"]
    around = exact["real"] + 0.5 * exact["real"].std() * exact["noise"]
    # Else rounding picks the side.
    assert distance_from_kinks(critic, exact["real"], exact["fake"], between, around) > 1e-5
    expected, _ = textbook_critic_gradients(critic, loss, penalty, **exact)
    critic = critic.float()
    make_critic_step(critic, loss, penalty)(**given(torch.float32))
    assert_gradients(critic, expected, 2e-5)


@pytest.mark.parametrize("penalty", PENALTIES)
def test_the_critic_step_fills_every_gradient_of_the_critic_and_no_other(penalty):
    critic, generator = small_critic(), small_generator()
    z, inputs = torch.randn(N, 8, dtype=torch.float64), given()
    fake = generator(z)
    assert fake.shape == (N, *SHAPE)
    make_critic_step(critic, LossConfig(), PenaltyConfig(penalty))(**inputs | {"fake": fake})
    for name, parameter in critic.named_parameters():
        assert parameter.grad.shape == parameter.shape, name
        assert parameter.grad.dtype == parameter.dtype, name
        assert not parameter.grad.requires_grad, name
    assert all(p.grad is None for p in generator.parameters())
    assert inputs["real"].grad is None
    assert not inputs["real"].requires_grad


@pytest.mark.parametrize("penalty", PENALTIES)
def test_gradients_are_replaced_not_added_to(penalty):
    critic = small_critic()
    step = make_critic_step(critic, LossConfig("hinge"), PenaltyConfig(penalty))
    step(**given(seed=8))
    step(**given())
    again = small_critic()
    make_critic_step(again, LossConfig("hinge"), PenaltyConfig(penalty))(**given())
    for p, q in zip(critic.parameters(), again.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("penalty", PENALTIES)
def test_gradients_lie_in_memory_as_their_parameters_do(penalty, memory_format):
    """Fused Adam walks both by address: other strides give a weight its neighbour's gradient."""
    critic = small_critic(dtype=torch.float32).to(memory_format=memory_format)
    make_critic_step(critic, LossConfig(), PenaltyConfig(penalty))(**given(torch.float32))
    generator = small_generator(dtype=torch.float32).to(memory_format=memory_format)
    make_generator_step(generator, critic, LossConfig())(latents(torch.float32))
    for net in (critic, generator):
        for name, parameter in net.named_parameters():
            assert parameter.grad.stride() == parameter.stride(), name


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("penalty", PENALTIES)
def test_the_optimizer_moves_every_weight_by_its_own_gradient(penalty, memory_format):
    critic = small_critic(dtype=torch.float32).to(memory_format=memory_format)
    before = {name: p.detach().double().clone() for name, p in critic.named_parameters()}
    optim = OptimConfig(lr_critic=0.01, beta1=0.5, beta2=0.9)
    optimizer = FlatAdam(critic, optim.lr_critic, optim)
    for group in optimizer.param_groups:
        group["eps"] = 1.0  # so that a step is not a mere sign
    make_critic_step(critic, LossConfig(), PenaltyConfig(penalty))(**given(torch.float32))
    gradients = {name: p.grad.double().clone() for name, p in critic.named_parameters()}
    optimizer.step()
    for name, parameter in critic.named_parameters():
        g = gradients[name]
        # Adam's first step: both moments are corrected to g and g^2.
        expected = before[name] - 0.01 * g / (g.abs() + 1)
        torch.testing.assert_close(parameter.double(), expected, rtol=1e-6, atol=1e-6, msg=name)


def test_statistics_are_detached_scalars_of_this_step():
    critic, inputs = small_critic(), given()
    stats = make_critic_step(critic, LossConfig(), PenaltyConfig("wgan-gp"))(**inputs)
    names = "loss wasserstein real_score fake_score real_accuracy fake_accuracy".split()
    assert stats.keys() == {*names, "penalty", "gradient_norm", "gradient_norm_max"}
    for name, value in stats.items():
        assert value.shape == (), name
        assert not value.requires_grad, name
    real, fake = (
        torch.stack([score_of(critic, x, None) for x in inputs[k]]).mean().item()
        for k in ("real", "fake")
    )
    assert stats["real_score"].item() == pytest.approx(real, rel=1e-6)
    assert stats["fake_score"].item() == pytest.approx(fake, rel=1e-6)
    assert stats["wasserstein"].item() == pytest.approx(real - fake, rel=1e-5)
    none = make_critic_step(critic, LossConfig(), PenaltyConfig("none"))(**inputs)
    assert none.keys() == set(names)


@pytest.mark.parametrize("penalty", ["wgan-gp", "dragan"])
def test_the_same_eps_and_noise_give_the_same_gradients(penalty):
    critics, config = [small_critic(), small_critic(), small_critic()], PenaltyConfig(penalty)
    for seed, critic in enumerate(critics[:2]):
        torch.manual_seed(seed)  # must not matter
        make_critic_step(critic, LossConfig(), config)(**given())
    other = given(seed=9)
    inputs = given() | {name: other[name] for name in ("eps", "noise")}
    make_critic_step(critics[2], LossConfig(), config)(**inputs)
    for p, q in zip(critics[0].parameters(), critics[1].parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)
    assert not torch.equal(critics[0].trunk[0].weight.grad, critics[2].trunk[0].weight.grad)


@pytest.mark.parametrize("penalty", ["wgan-gp", "dragan"])
def test_eps_and_noise_not_given_are_drawn_from_torchs_generator(penalty):
    inputs, drawn = {k: v.float() for k, v in given().items() if k in ("real", "fake")}, []
    for seed in (0, 0, 1):
        critic = small_critic(dtype=torch.float32)
        torch.manual_seed(seed)
        make_critic_step(critic, LossConfig(), PenaltyConfig(penalty))(**inputs)
        drawn.append(critic.trunk[0].weight.grad)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("penalty", PENALTIES)
def test_a_step_changes_no_parameter_and_no_input(penalty):
    critic, inputs = small_critic(), given()
    before = copy.deepcopy(critic.state_dict())
    make_critic_step(critic, LossConfig(), PenaltyConfig(penalty))(**inputs)
    for name, value in critic.state_dict().items():
        assert torch.equal(value, before[name]), name
    for name, value in given().items():
        assert torch.equal(value, inputs[name]), name
    assert critic.training


@pytest.mark.parametrize("penalty", PENALTIES[1:])
def test_a_step_between_lazy_penalties_is_one_without(penalty):
    lazy, plain = small_critic(), small_critic()
    step = make_critic_step(lazy, LossConfig(), PenaltyConfig(penalty, interval=4))
    stats = step(**given(), with_penalty=False)
    make_critic_step(plain, LossConfig(), PenaltyConfig("none"))(**given())
    assert "penalty" not in stats
    for p, q in zip(lazy.parameters(), plain.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)


def test_a_weight_of_zero_is_no_penalty():
    off, plain = small_critic(), small_critic()
    step = make_critic_step(off, LossConfig(), PenaltyConfig("wgan-gp", weight=0.0))
    assert "penalty" not in step(**given())
    make_critic_step(plain, LossConfig(), PenaltyConfig("none"))(**given())
    for p, q in zip(off.parameters(), plain.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)


def test_a_parameter_that_the_loss_does_not_use_has_no_gradient_and_zeros_in_the_flat_one():
    critic = small_critic()
    critic.idle = nn.Parameter(torch.ones(2, dtype=torch.float64))
    step = make_critic_step(critic, LossConfig(), PenaltyConfig("wgan-gp"))
    step(**given())
    assert critic.idle.grad is None
    place = next(i for i, p in enumerate(critic.parameters()) if p is critic.idle)
    assert step.gradients.views[place].tolist() == [0, 0]


def test_a_batch_of_one_is_enough():
    critic, one = small_critic(), {name: value[:1] for name, value in given().items()}
    expected, _ = textbook_critic_gradients(critic, LossConfig(), PenaltyConfig("wgan-gp"), **one)
    make_critic_step(critic, LossConfig(), PenaltyConfig("wgan-gp"))(**one)
    assert_gradients(critic, expected, 2e-6)


# Classes.


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize(
    ("conditional", "class_fakes"),
    [("projection", False), ("auxiliary", False), ("auxiliary", True)],
    ids=str,
)
def test_a_class_conditional_critic_step_is_the_textbooks(conditional, class_fakes, penalty):
    """The penalty holds the score's gradient only, also where the critic names classes."""
    critic, penalty = small_critic(conditional), PenaltyConfig(penalty, weight=3.0)
    loss = LossConfig("non-saturating", class_weight=0.6, class_fakes=class_fakes)
    expected, stats = textbook_critic_gradients(critic, loss, penalty, **given(), labels=LABELS)
    returned = make_critic_step(critic, loss, penalty)(**given(), real_labels=LABELS)
    assert_gradients(critic, expected, 2e-6)
    assert ("class_loss" in returned) == (conditional == "auxiliary")
    for name, value in stats.items():
        assert returned[name].item() == pytest.approx(value, rel=2e-6), name


def test_class_accuracy_is_that_of_the_reals():
    critic, inputs = small_critic("auxiliary"), given()
    guesses = critic(inputs["real"]).classes.argmax(1)
    right = torch.tensor([True, False, True, True, False])
    labels = torch.where(right, guesses, (guesses + 1) % CLASSES)
    stats = make_critic_step(critic, LossConfig(), PenaltyConfig())(**inputs, real_labels=labels)
    assert stats["class_accuracy"].item() == pytest.approx(0.6)


# The generator step.


def latents(dtype=torch.float64):
    generator = torch.Generator().manual_seed(2)
    return torch.randn(N, 8, dtype=torch.float64, generator=generator).to(dtype)


def textbook_generator_gradients(generator, critic, loss, z, real, labels=None):
    total, named = 0.0, 0.0
    for n in range(N):
        label = None if labels is None else labels[n]
        x = generator(z[n : n + 1], None if labels is None else labels[n : n + 1])[0]
        projected = label if critic.projection is not None else None
        scores = score_of(critic, real[n], projected), score_of(critic, x, projected)
        total = total + generator_term(loss.kind, *scores) / N
        if critic.class_head is not None:
            named = named - torch.log(torch.softmax(critic(x[None]).classes[0], 0)[label]) / N
    gradients = gradients_by_name(generator, total + loss.class_weight_generator * named)
    return gradients, total.item(), 0.0 if critic.class_head is None else named.item()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("conditional", ["no", "projection", "auxiliary"])
def test_the_generator_step_is_the_textbooks(conditional, loss):
    critic = small_critic(conditional)
    generator = small_generator(CLASSES if conditional != "no" else 0)
    labels = LABELS if conditional != "no" else None
    loss = LossConfig(loss, class_weight=9.0, class_weight_generator=0.4)
    expected, total, named = textbook_generator_gradients(
        generator, critic, loss, latents(), given()["real"], labels
    )
    assert distance_from_kinks(critic, generator(latents(), labels)) > 1e-5
    critic, generator = critic.float(), generator.float()  # fakes are drawn in float32
    stats = make_generator_step(generator, critic, loss)(
        latents(torch.float32), labels, given(torch.float32)["real"]
    )
    assert_gradients(generator, expected, 2e-5)
    assert stats["loss"].item() == pytest.approx(total, rel=1e-5, abs=1e-6)
    of_classes = {"class_loss", "class_accuracy"} if conditional == "auxiliary" else set()
    assert stats.keys() == {"loss"} | of_classes
    if conditional == "auxiliary":
        assert stats["class_loss"].item() == pytest.approx(named, rel=1e-5)
    for value in stats.values():
        assert value.shape == ()
        assert not value.requires_grad


@pytest.mark.parametrize("loss", LOSSES)
def test_the_generator_step_fills_the_gradients_of_the_generator_and_changes_nothing_else(loss):
    critic, generator = small_critic(dtype=torch.float32), small_generator(dtype=torch.float32)
    before = copy.deepcopy([*critic.state_dict().values(), *generator.state_dict().values()])
    step = make_generator_step(generator, critic, LossConfig(loss))
    inputs = (latents(torch.float32), None, given(torch.float32)["real"])
    step(*inputs)
    once = [p.grad.clone() for p in generator.parameters()]
    step(*inputs)
    # Replaced, not added to.
    assert all(torch.equal(p.grad, g) for p, g in zip(generator.parameters(), once, strict=True))
    assert all(p.grad is None for p in critic.parameters())
    assert all(p.requires_grad for p in critic.parameters())
    after = [*critic.state_dict().values(), *generator.state_dict().values()]
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


def test_the_generator_step_leaves_the_critics_gradients_alone():
    critic, generator = small_critic(dtype=torch.float32), small_generator(dtype=torch.float32)
    make_critic_step(critic, LossConfig(), PenaltyConfig("wgan-gp"))(**given(torch.float32))
    kept = [p.grad.clone() for p in critic.parameters()]
    make_generator_step(generator, critic, LossConfig())(latents(torch.float32))
    assert all(torch.equal(p.grad, g) for p, g in zip(critic.parameters(), kept, strict=True))


def test_the_relativistic_generator_step_needs_reals():
    critic, generator = small_critic(dtype=torch.float32), small_generator(dtype=torch.float32)
    step = make_generator_step(generator, critic, LossConfig("relativistic"))
    with pytest.raises(ValueError, match="relativistic"):
        step(latents(torch.float32))


def test_draw_gives_float32_pictures_also_under_autocast():
    generator = small_generator(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert generator(torch.randn(N, 8)).dtype == torch.bfloat16
        assert draw(generator, torch.randn(N, 8)).dtype == torch.float32


# Norms with a state.


def one_power_iteration(module):
    """(u, v) after one iteration of arXiv:1802.05957, algorithm 1, from the buffers as they are."""
    state = module.parametrizations.weight[0]
    matrix = module.parametrizations.weight.original.detach().flatten(1)
    u = F.normalize(matrix @ state._v, dim=0, eps=1e-12)
    return u, F.normalize(matrix.T @ u, dim=0, eps=1e-12)


@pytest.mark.parametrize("penalty", PENALTIES)
def test_a_critic_step_makes_one_power_iteration(penalty):
    critic = spectral(small_critic("projection"))
    layers = [m for m in critic.modules() if hasattr(m, "parametrizations")]
    assert len(layers) == 4
    with torch.no_grad():
        # As after a large update: the estimates are far off, so two iterations differ from one.
        for layer in layers:
            layer.parametrizations.weight.original.normal_()
    expected = [one_power_iteration(layer) for layer in layers]
    started = [layer.parametrizations.weight[0]._v.clone() for layer in layers]
    step = make_critic_step(critic, LossConfig("hinge"), PenaltyConfig(penalty))
    step(**given(), real_labels=LABELS)
    for layer, (u, v), old in zip(layers, expected, started, strict=True):
        state = layer.parametrizations.weight[0]
        torch.testing.assert_close(state._u, u, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(state._v, v, rtol=1e-12, atol=1e-12)
        if len(v) > 1 and layer.parametrizations.weight.original.flatten(1).shape[0] > 1:
            assert (state._v - old).abs().max() > 1e-3  # it moved
    assert all(m.training for m in critic.modules())


@pytest.mark.parametrize("loss", LOSSES)
def test_a_generator_step_makes_no_power_iteration(loss):
    critic = spectral(small_critic(dtype=torch.float32))
    generator = small_generator(dtype=torch.float32)
    with torch.no_grad():
        critic.trunk[0].parametrizations.weight.original.normal_()
    before = copy.deepcopy(critic.state_dict())
    step = make_generator_step(generator, critic, LossConfig(loss))
    step(latents(torch.float32), real=given(torch.float32)["real"])
    for name, value in critic.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(m.training for m in critic.modules())


@pytest.mark.parametrize("penalty", PENALTIES)
def test_reals_fakes_and_interpolates_meet_the_same_normalised_weights(penalty):
    loss, penalty = LossConfig("hinge"), PenaltyConfig(penalty, weight=3.0)
    critic = spectral(small_critic())
    with torch.no_grad():
        critic.trunk[2].parametrizations.weight.original.normal_()
    twin = copy.deepcopy(critic)
    make_critic_step(critic, loss, penalty)(**given())
    twin(given()["real"])  # the one power iteration
    expected, _ = textbook_critic_gradients(twin.eval(), loss, penalty, **given())
    assert_gradients(critic, expected, 2e-6)


def test_a_batch_normalised_critic_scores_reals_and_fakes_apart():
    def gradients(joined):
        critic, inputs = small_critic(norm=nn.BatchNorm2d), given()
        if joined:
            both = critic(torch.cat([inputs["real"], inputs["fake"]])).score
            real, fake = both[:N], both[N:]
        else:
            real, fake = critic(inputs["real"]).score, critic(inputs["fake"]).score
        return critic, gradients_by_name(critic, critic_term("hinge", real, fake).mean())

    critic, expected = gradients(joined=False)
    fresh = small_critic(norm=nn.BatchNorm2d)
    make_critic_step(fresh, LossConfig("hinge"), PenaltyConfig("none"))(**given())
    assert_gradients(fresh, expected, 2e-6)
    # Reals first, then fakes.
    torch.testing.assert_close(fresh.trunk[3].running_mean, critic.trunk[3].running_mean)
    _, joint = gradients(joined=True)
    with pytest.raises(AssertionError):  # the comparison tells the two apart
        assert_gradients(fresh, joint, 1e-2)


@pytest.mark.parametrize("penalty", PENALTIES[1:])
def test_norms_within_a_picture_go_with_a_penalty(penalty):
    critic, config = small_critic(norm=partial(nn.GroupNorm, 1)), PenaltyConfig(penalty, weight=3.0)
    expected, _ = textbook_critic_gradients(critic, LossConfig("hinge"), config, **given())
    make_critic_step(critic, LossConfig("hinge"), config)(**given())
    assert_gradients(critic, expected, 2e-6)


# bfloat16.


@pytest.mark.parametrize("penalty", PENALTIES)
def test_under_bf16_the_critic_step_is_close_and_its_gradients_float32(penalty):
    how, inputs = (
        (LossConfig("non-saturating"), PenaltyConfig(penalty, weight=3.0)),
        given(torch.float32),
    )
    exact, mixed = small_critic(dtype=torch.float32), small_critic(dtype=torch.float32)
    wanted = make_critic_step(exact, *how)(**inputs)
    stats = make_critic_step(mixed, *how, autocast=torch.bfloat16)(**inputs)
    a, b = (torch.cat([p.grad.flatten() for p in net.parameters()]) for net in (exact, mixed))
    assert {p.grad.dtype for p in mixed.parameters()} == {torch.float32}
    assert {value.dtype for value in stats.values()} == {torch.float32}
    # bfloat16 keeps 8 bits: not equal, else it was not used.
    assert 1e-4 < (a - b).norm() / a.norm() < 0.05
    for name, value in wanted.items():
        assert stats[name].item() == pytest.approx(value.item(), rel=0.05, abs=0.05), name


def test_under_bf16_the_generator_step_is_close_and_its_gradients_float32():
    exact, mixed = small_generator(dtype=torch.float32), small_generator(dtype=torch.float32)
    critic, z = small_critic(dtype=torch.float32), latents(torch.float32)
    make_generator_step(exact, critic, LossConfig("non-saturating"))(z)
    make_generator_step(mixed, critic, LossConfig("non-saturating"), autocast=torch.bfloat16)(z)
    a, b = (torch.cat([p.grad.flatten() for p in net.parameters()]) for net in (exact, mixed))
    assert {p.grad.dtype for p in mixed.parameters()} == {torch.float32}
    assert 1e-4 < (a - b).norm() / a.norm() < 0.05
