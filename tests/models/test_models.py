"""Networks: right pictures and scores for every size and condition; users' classes, or refusals."""

import dataclasses
import itertools
import math

import pytest
import torch
from torch import nn

from ganfast.errors import InputError
from ganfast.models import NetSpec, build_critic, build_generator, judge, parameter_count
from ganfast.models.parts import Critic, spectral

SIZES = [*range(16, 33), 45, 63, 64, 65, 96, 101, 127, 128]  # every remainder, and the ends
SPEC = NetSpec(size=16, channels=1, classes=0, conditional="no", width=4, latent=8)
LABELS = torch.tensor([0, 2, 1])


def spec(**changes):
    return dataclasses.replace(SPEC, **changes)


def pictures(of, n=3):
    return (
        torch.rand(n, of.channels, of.size, of.size, generator=torch.Generator().manual_seed(7)) * 2
        - 1
    )


def latents(of, n=3):
    return torch.randn(n, of.latent, generator=torch.Generator().manual_seed(8))


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", SIZES)
def test_dcgan_makes_and_judges_pictures_of_every_size(size, channels):
    of = spec(size=size, channels=channels, width=2)
    drawn = build_generator(of)(latents(of))
    assert drawn.shape == (3, channels, size, size)
    assert drawn.abs().max() <= 1
    assert (drawn[0] - drawn[1]).abs().max() > 1e-3  # the latent matters
    said = judge(build_critic(of), drawn)
    assert said.score.shape == (3,)
    assert said.classes is None


@pytest.mark.parametrize(("size", "channels"), [(16, 1), (17, 3), (28, 1), (64, 3)])
def test_mlp_makes_and_judges_pictures(size, channels):
    of = spec(size=size, channels=channels, width=2, model="mlp")
    drawn = build_generator(of)(latents(of))
    assert drawn.shape == (3, channels, size, size)
    assert drawn.abs().max() <= 1
    assert judge(build_critic(of), drawn).score.shape == (3,)


@pytest.mark.parametrize("model", ["dcgan", "mlp"])
def test_every_pixel_counts_in_the_score_and_is_drawn(model):
    """Sizes that do not halve evenly lose no border."""
    for size in (16, 19, 23, 31):
        of = spec(size=size, model=model)
        x = pictures(of).requires_grad_()
        (gradient,) = torch.autograd.grad(judge(build_critic(of), x).score.sum(), x)
        seen = (gradient != 0).any(0)[0]
        assert seen[: size // 2 * 2, : size // 2 * 2].all()
        drawn = build_generator(of)(latents(of, 8))
        assert (drawn.std(0) > 0).all()


@pytest.mark.parametrize("size", [16, 28, 64, 128])
def test_channels_double_as_the_side_halves_up_to_eight_times_the_width(size):
    width = 4
    critic, generator = build_critic(spec(size=size)), build_generator(spec(size=size))
    convolutions = [m for m in critic.modules() if isinstance(m, nn.Conv2d)]
    channels = [m.out_channels for m in convolutions]
    assert channels == [min(width * 2**i, 8 * width) for i in range(len(channels))]
    sides, x = [], pictures(spec(size=size))
    for layer in critic.trunk:
        x = layer(x)
        if isinstance(layer, nn.Conv2d):
            sides.append(x.shape[-1])
    assert sides == [size // 2 ** (i + 1) for i in range(len(sides))]
    assert 3 <= sides[-1] <= 7
    mirrored = [m for m in generator.modules() if isinstance(m, nn.ConvTranspose2d)]
    assert [m.in_channels for m in mirrored] == channels[::-1]
    assert generator.first == (channels[-1], sides[-1], sides[-1])


@pytest.mark.parametrize("size", [0, 8, 15, 129, 256])
@pytest.mark.parametrize("model", ["dcgan", "mlp"])
def test_other_sizes_are_refused_by_name(model, size):
    for build in (build_critic, build_generator):
        with pytest.raises(InputError, match=rf"size is {size};.*{model}.*16 to 128"):
            build(spec(size=size, model=model))


# Classes.


@pytest.mark.parametrize("model", ["dcgan", "mlp"])
def test_a_conditional_generator_draws_the_class_it_is_asked_for(model):
    of = spec(classes=3, conditional="projection", model=model, generator_norm="none")
    generator = build_generator(of)
    z = latents(of, 1).expand(3, -1)
    drawn = generator(z, LABELS)
    for i, j in itertools.combinations(range(3), 2):
        assert (drawn[i] - drawn[j]).abs().max() > 1e-3
    torch.testing.assert_close(generator(z[:1], LABELS[1:2]), drawn[1:2])
    with pytest.raises(ValueError, match="labels"):
        generator(z)


@pytest.mark.parametrize("model", ["dcgan", "mlp"])
def test_projection_adds_the_labels_row_to_the_score(model):
    of = spec(classes=3, conditional="projection", model=model)
    critic, x = build_critic(of), pictures(of)
    features = critic.trunk(x)
    head, rows = critic.head, critic.projection.weight
    expected = torch.stack(
        [
            features[n] @ head.weight[0] + head.bias[0] + features[n] @ rows[LABELS[n]]
            for n in range(3)
        ]
    )
    torch.testing.assert_close(judge(critic, x, LABELS).score, expected)
    assert (
        judge(critic, x, LABELS).score - judge(critic, x, (LABELS + 1) % 3).score
    ).abs().min() > 1e-4
    assert judge(critic, x, LABELS).classes is None
    with pytest.raises(ValueError, match="labels"):
        critic(x)


@pytest.mark.parametrize("model", ["dcgan", "mlp"])
def test_an_auxiliary_critic_names_classes_without_being_told(model):
    of = spec(classes=5, conditional="auxiliary", model=model)
    critic, x = build_critic(of), pictures(of)
    said = judge(critic, x, LABELS)
    assert said.score.shape == (3,)
    assert said.classes.shape == (3, 5)
    assert torch.equal(said.score, judge(critic, x, (LABELS + 1) % 3).score)
    torch.testing.assert_close(said.classes, critic.class_head(critic.trunk(x)))


def test_a_spec_without_conditions_has_no_classes():
    from ganfast.config import Config

    assert NetSpec.of(Config(), 16, 1, 10, "no").classes == 0
    assert NetSpec.of(Config(), 16, 1, 10, "projection").classes == 10
    of = NetSpec.of(Config(model="mlp"), 20, 3, 10, "auxiliary")
    assert (of.size, of.channels, of.model, of.latent, of.conditional) == (
        20,
        3,
        "mlp",
        Config().net.latent,
        "auxiliary",
    )


# Norms.

LAYERS = {
    "none": None,
    "batch": nn.BatchNorm2d,
    "layer": nn.GroupNorm,
    "instance": nn.InstanceNorm2d,
}
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm, nn.InstanceNorm2d, nn.LayerNorm)


@pytest.mark.parametrize("norm", LAYERS)
def test_norms_lie_between_the_layers_but_not_on_pictures(norm):
    of = spec(size=64, critic_norm=norm, generator_norm=norm)
    critic, generator = build_critic(of), build_generator(of)
    convolutions = [m for m in critic.trunk if isinstance(m, nn.Conv2d)]
    kinds = [type(m) for m in critic.trunk if isinstance(m, NORMS)]
    assert kinds == [LAYERS[norm]] * (0 if norm == "none" else len(convolutions) - 1)
    assert isinstance(critic.trunk[1], nn.LeakyReLU)  # no norm right after the picture
    assert convolutions[0].bias is not None
    for convolution in convolutions[1:]:
        # A batch norm subtracts any bias again.
        assert (convolution.bias is None) == (norm == "batch")
    kinds = [type(m) for m in generator.modules() if isinstance(m, NORMS)]
    assert kinds == [LAYERS[norm]] * (0 if norm == "none" else len(convolutions))
    assert isinstance(generator.layers[-1], nn.ConvTranspose2d)  # no norm right before the picture
    assert generator.layers[-1].bias is not None


@pytest.mark.parametrize("model", ["dcgan", "mlp"])
@pytest.mark.parametrize(
    ("norm", "mixes"),
    [("none", False), ("batch", True), ("layer", False), ("instance", False), ("spectral", False)],
)
def test_only_a_batch_norm_lets_pictures_see_each_other(norm, mixes, model):
    """What a gradient penalty per picture needs, and why it refuses batch."""
    of = spec(critic_norm=norm, model=model)
    critic, x = build_critic(of).eval(), pictures(of)
    for module in critic.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.train()
    other = torch.cat([x[:1], -x[1:]])
    alone = (judge(critic, x).score[0] - judge(critic, other).score[0]).abs().item()
    assert (alone > 1e-3) if mixes else (alone < 1e-5)


@pytest.mark.parametrize("model", ["dcgan", "mlp"])
def test_layer_norm_is_over_a_whole_picture(model):
    of = spec(critic_norm="layer", model=model, size=20)
    critic, hidden = build_critic(of), pictures(of)
    for layer in critic.trunk:
        hidden = layer(hidden)
        if isinstance(layer, NORMS):
            for picture in hidden:
                assert abs(picture.mean()) < 1e-5
                assert picture.std(correction=0).item() == pytest.approx(1, abs=1e-2)
                if model == "dcgan":
                    # Of all channels together, not of each.
                    assert picture.mean((1, 2)).abs().max() > 0.01
            return
    pytest.fail("no norm found")


def test_instance_norm_is_over_each_channel_of_a_picture():
    of = spec(critic_norm="instance", size=20)
    hidden = pictures(of)
    for layer in build_critic(of).trunk:
        hidden = layer(hidden)
        if isinstance(layer, nn.InstanceNorm2d):
            assert hidden.mean((2, 3)).abs().max() < 1e-5
            assert (hidden.std((2, 3), correction=0) - 1).abs().max() < 0.02


@pytest.mark.parametrize("conditional", ["no", "projection", "auxiliary"])
@pytest.mark.parametrize("model", ["dcgan", "mlp"])
def test_spectral_norm_gives_every_layer_of_the_critic_a_largest_singular_value_of_one(
    model, conditional
):
    of = spec(critic_norm="spectral", model=model, conditional=conditional, classes=3)
    critic, x = build_critic(of), pictures(of)
    for _ in range(100):  # one power iteration each
        judge(critic, x, LABELS)
    layers = [m for m in critic.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) >= 3
    for layer in layers:
        largest = torch.linalg.matrix_norm(layer.weight.detach().double().flatten(1), ord=2)
        assert largest == pytest.approx(1, abs=0.01), layer
        raw = torch.linalg.matrix_norm(
            layer.parametrizations.weight.original.detach().flatten(1), ord=2
        )
        assert abs(raw - 1) > 0.01, layer  # it was not one before


def test_spectral_norm_reaches_convolutions_and_linear_layers_of_any_module():
    net = spectral(
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.Sequential(nn.Linear(4, 4)), nn.BatchNorm2d(2))
    )
    expected = [True, True, False]
    assert [hasattr(m, "parametrizations") for m in (net[0], net[1][0], net[2])] == expected


# Initial weights.


def assert_normal(values, mean, deviation):
    """Mean and standard deviation within 5 standard errors."""
    values = values.detach().double().flatten()
    n = len(values)
    assert n >= 32
    assert abs(values.mean().item() - mean) < 5 * deviation / math.sqrt(n)
    assert abs(values.std().item() - deviation) < 5 * deviation / math.sqrt(2 * n)
    assert values.abs().max() < mean + 6 * deviation


def weighted(net):
    return {
        n: m
        for n, m in net.named_modules()
        if isinstance(m, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)
    }


def raw_weight(module):
    return (
        module.parametrizations.weight.original
        if hasattr(module, "parametrizations")
        else module.weight
    )


@pytest.mark.parametrize("norm", ["batch", "none", "spectral"])
@pytest.mark.parametrize("model", ["dcgan", "mlp"])
def test_dcgan_initial_weights(model, norm):
    of = spec(width=32, model=model, init="dcgan", critic_norm=norm)
    critic, generator = build_critic(of), build_generator(of)
    for name, module in [*weighted(critic).items(), *weighted(generator).items()]:
        assert_normal(raw_weight(module), 0, 0.02)
        assert module.bias is None or (module.bias == 0).all(), name
    norms = [
        m
        for net in (critic, generator)
        for m in net.modules()
        if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)
    ]
    assert len(norms) >= 2
    for module in norms:
        assert_normal(module.weight, 1, 0.02)
        assert (module.bias == 0).all()


@pytest.mark.parametrize("init", ["dcgan", "he"])
def test_classes_start_as_large_in_the_generator_as_the_latent(init):
    of = spec(width=32, latent=50, classes=40, conditional="projection", init=init)
    generator = build_generator(of)
    from_latent = generator.project(torch.randn(2000, 50)).std().item()
    from_class = generator.classes.weight.std().item()
    assert from_class / from_latent == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("norm", ["none", "spectral"])
def test_he_initial_weights(norm):
    of = spec(width=32, size=32, classes=9, conditional="auxiliary", init="he", critic_norm=norm)
    critic = build_critic(of)
    for name, module in weighted(critic).items():
        fan_in = raw_weight(module)[0].numel()
        gain = 1 if "head" in name else 2 / (1 + 0.2**2)  # leaky ReLU of slope 0.2 follows
        assert_normal(raw_weight(module), 0, math.sqrt(gain / fan_in))
        assert (module.bias == 0).all()
    for name, module in weighted(build_generator(of)).items():
        taps = (
            16 // 4 * module.in_channels
            if isinstance(module, nn.ConvTranspose2d)
            else module.in_features
        )
        gain = 2 / (1 + 0.2**2) if name.startswith("layers") else 1
        assert_normal(module.weight, 0, math.sqrt(gain / taps))
        assert (module.bias is None) or (module.bias == 0).all()


@pytest.mark.parametrize("size", [16, 28, 64])
def test_he_weights_start_the_critics_gradient_norm_near_one(size):
    norms = {}
    for init in ("he", "torch"):
        of = spec(width=16, size=size, init=init)
        x = pictures(of, 16).requires_grad_()
        (gradient,) = torch.autograd.grad(judge(build_critic(of), x).score.sum(), x)
        norms[init] = gradient.flatten(1).norm(dim=1).mean().item()
    assert 0.4 < norms["he"] < 2.5
    assert norms["torch"] < 0.2


def test_torch_initial_weights_are_left_as_torch_makes_them():
    for module in weighted(build_critic(spec(width=16, init="torch"))).values():
        bound = 1 / math.sqrt(module.weight[0].numel())  # uniform within 1 / sqrt(fan-in)
        assert 0.97 * bound < module.weight.abs().max() <= bound


def test_initial_weights_follow_torchs_seed():
    for init in ("he", "dcgan", "torch"):
        states = []
        for seed in (3, 3, 4):
            torch.manual_seed(seed)
            states.append(
                torch.cat([p.flatten() for p in build_critic(spec(init=init)).parameters()])
            )
        assert torch.equal(states[0], states[1])
        assert not torch.equal(states[0], states[2])


# What an engine walks.

WALKABLE = {
    *"Critic Sequential Conv2d Linear LeakyReLU Flatten".split(),
    *"BatchNorm1d BatchNorm2d GroupNorm LayerNorm InstanceNorm2d".split(),
}
PARAMETRISED = {
    *"ParametrizedConv2d ParametrizedLinear ModuleDict ParametrizationList _SpectralNorm".split()
}


@pytest.mark.parametrize("conditional", ["no", "projection", "auxiliary"])
@pytest.mark.parametrize("norm", ["none", "batch", "layer", "instance", "spectral"])
@pytest.mark.parametrize("model", ["dcgan", "mlp"])
def test_every_critic_is_a_sequence_of_layers_that_an_engine_can_walk(model, norm, conditional):
    of = spec(model=model, critic_norm=norm, conditional=conditional, classes=3)
    critic = build_critic(of)
    allowed = WALKABLE | (PARAMETRISED if norm == "spectral" else set())
    assert {type(m).__name__ for m in critic.modules()} <= allowed
    assert type(critic) is Critic
    x = hidden = pictures(of)
    for layer in critic.trunk:  # nothing happens besides its layers, one after the other
        assert type(layer).__name__ in allowed - {"Sequential"}
    critic.eval()
    for layer in critic.trunk:
        hidden = layer(hidden)
    assert torch.equal(critic.trunk(x), hidden)


def test_parameter_count_by_hand():
    critic = Critic(nn.Sequential(nn.Flatten()), 16, classes=3, conditional="auxiliary")
    assert parameter_count(critic) == 16 + 1 + 3 * 16 + 3
    critic.head.bias.requires_grad_(False)
    assert parameter_count(critic) == 16 + 3 * 16 + 3


# A user's own classes.

OWN = '''
import torch
from torch import nn

class MyGenerator(nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.spec = spec
        self.layer = nn.Linear(spec.latent, spec.channels * spec.size**2)

    def forward(self, z, labels=None):
        spec = self.spec
        return torch.tanh(self.layer(z)).view(-1, spec.channels, spec.size, spec.size)

class Flat(nn.Module):
    """(N,)"""
    def __init__(self, spec):
        super().__init__()
        self.spec = spec
        self.layer = nn.Linear(spec.channels * spec.size**2, 1 + spec.classes)

    def forward(self, x):
        return self.layer(x.flatten(1))[:, 0]

class Column(Flat):
    """(N, 1)"""
    def forward(self, x):
        return self.layer(x.flatten(1))[:, :1]

class Pair(Flat):
    """(N, 1) and logits"""
    def forward(self, x):
        said = self.layer(x.flatten(1))
        return said[:, :1], said[:, 1:]

class TakesLabels(Flat):
    takes_labels = True
    def forward(self, x, labels):
        return super().forward(x) + labels

class Two(Flat):
    """(N, 2), which is no score"""
    def forward(self, x):
        return self.layer(x.flatten(1)).expand(-1, 2)

class Mean(Flat):
    """one score for the batch, which is no score either"""
    def forward(self, x):
        return super().forward(x).mean()
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    name = (
        f"own_networks_{tmp_path.name.replace('-', '_')}"  # a module is imported once in a process
    )
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def test_own_networks_are_built_from_the_spec(own):
    of = spec(model=f"{own}:MyGenerator,{own}:Flat", size=10)  # their sizes are their own affair
    generator, critic = build_generator(of), build_critic(of)
    assert type(generator).__name__ == "MyGenerator"
    assert type(critic).__name__ == "Flat"
    assert generator.spec == critic.spec == of
    assert judge(critic, generator(latents(of))).score.shape == (3,)


def test_what_is_not_given_is_dcgan_or_the_named_family(own):
    assert type(build_generator(spec(model=f"{own}:Flat"))).__module__.startswith("ganfast")
    assert isinstance(build_generator(spec(model=f"{own}:Flat")).layers[-1], nn.ConvTranspose2d)
    assert not any(
        isinstance(m, nn.ConvTranspose2d)
        for m in build_generator(spec(model=f"mlp,{own}:Flat")).modules()
    )
    assert type(build_critic(spec(model=f"{own}:MyGenerator"))) is Critic


@pytest.mark.parametrize("name", ["Flat", "Column"])
def test_scores_may_be_flat_or_a_column(own, name):
    of = spec(model=f"{own}:{name}")
    critic, x = build_critic(of), pictures(of)
    said = judge(critic, x)
    torch.testing.assert_close(said.score, critic.layer(x.flatten(1))[:, 0])
    assert said.score.shape == (3,)
    assert said.classes is None


def test_scores_may_come_with_class_logits(own):
    of = spec(model=f"{own}:Pair", classes=4, conditional="auxiliary")
    critic, x = build_critic(of), pictures(of)
    said = judge(critic, x, LABELS)
    expected = critic.layer(x.flatten(1))
    torch.testing.assert_close(said.score, expected[:, 0])
    torch.testing.assert_close(said.classes, expected[:, 1:])


def test_a_critic_that_takes_labels_gets_them(own):
    of = spec(model=f"{own}:TakesLabels", classes=3, conditional="projection")
    critic, x = build_critic(of), pictures(of)
    torch.testing.assert_close(
        judge(critic, x, LABELS).score, critic.layer(x.flatten(1))[:, 0] + LABELS
    )


@pytest.mark.parametrize(("name", "shape"), [("Two", r"\(3, 2\)"), ("Mean", r"\(\)")])
def test_scores_of_another_shape_are_refused_with_their_shape(own, name, shape):
    of = spec(model=f"{own}:{name}")
    with pytest.raises(InputError, match=rf"shape {shape} for 3 pictures"):
        judge(build_critic(of), pictures(of))


def test_scores_and_logits_are_float32_under_autocast():
    of = spec(classes=3, conditional="auxiliary")
    critic, x = build_critic(of), pictures(of)
    with torch.autocast("cpu", torch.bfloat16):
        assert critic(x).score.dtype == torch.bfloat16
        said = judge(critic, x)
    assert said.score.dtype == said.classes.dtype == torch.float32


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("dcgam", r"'dcgam'.*dcgan, mlp"),
        ("", r"''.*dcgan, mlp"),
        ("no_such_module_here:Critic", "no_such_module_here:Critic.*No module named"),
        ("{own}:Missing", "{own}:Missing.*has no Missing"),
        ("{own}:", "expected dcgan, mlp"),
        (":Critic", ":Critic"),
        ("dcgan,", "''"),
    ],
)
def test_models_that_cannot_be_found_are_refused_by_name(own, model, expected):
    with pytest.raises(InputError, match=expected.format(own=own)):
        build_critic(spec(model=model.format(own=own)))


def test_a_missing_import_inside_an_own_module_is_said_to_be_that(tmp_path, monkeypatch):
    (tmp_path / "own_with_missing_import.py").write_text("import surely_not_installed\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match="surely_not_installed"):
        build_critic(spec(model="own_with_missing_import:Critic"))


def test_a_failure_inside_an_own_module_is_not_taken_for_a_missing_class(tmp_path, monkeypatch):
    (tmp_path / "own_with_a_mistake.py").write_text(
        "import math\nmath.no_such_function\nclass Critic: pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(Exception, match="no_such_function"):
        build_critic(spec(model="own_with_a_mistake:Critic"))


def test_a_module_in_the_current_folder_is_found(tmp_path, monkeypatch):
    import sys

    (tmp_path / "own_in_the_current_folder.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    assert type(build_critic(spec(model="own_in_the_current_folder:Flat"))).__name__ == "Flat"
