"""r3 and resnet: sizes, widths as published, formulas by hand, initial weights, options."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ganfast.config import Config, NetConfig
from ganfast.device import resolved
from ganfast.errors import InputError
from ganfast.models import FAMILIES, NetSpec, build_critic, build_generator, judge
from ganfast.models.dropout import Dropout
from ganfast.models.parts import Residual, fits, halved_sides, widths
from ganfast.models.r3 import Block, Resample, groups_of
from tests.models.test_models import LABELS, NORMS, assert_normal, latents, pictures

SPEC = NetSpec(16, 1, 0, "no", 4, 8, generator_norm="none", model="r3", blocks=1)
both = pytest.mark.parametrize("model", ["r3", "resnet"])


def spec(**changes):
    return dataclasses.replace(SPEC, **changes)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def convolutions(net):
    return [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]


def moved(net):
    """With weights in place of zeros, so that every layer does something."""
    with torch.no_grad():
        for p in net.parameters():
            if not p.any():
                p.normal_(0, 0.1)
    return net


@both
@pytest.mark.parametrize(
    ("size", "channels"), [(16, 1), (20, 3), (24, 1), (28, 1), (32, 3), (64, 3), (128, 3)]
)
def test_every_pixel_is_drawn_and_judged(size, channels, model):
    of = spec(size=size, channels=channels, width=2, model=model)
    drawn = build_generator(of)(latents(of))
    assert drawn.shape == (3, channels, size, size)
    assert drawn.abs().max() <= 1
    varied = drawn.std(0).amax(0) > 0  # units of so narrow a network may be 0 in all pictures
    assert varied.any(0).all()
    assert varied.any(1).all()
    x = pictures(of).requires_grad_()
    said = judge(build_critic(of), x)
    assert said.score.shape == (3,)
    (gradient,) = torch.autograd.grad(said.score.sum(), x)
    seen = (gradient != 0).flatten(0, 1).any(0)
    assert seen.any(0).all()
    assert seen.any(1).all()


def test_sides_halve_exactly_to_4_to_7():
    assert halved_sides(64) == [64, 32, 16, 8, 4]
    assert halved_sides(28) == [28, 14, 7]
    possible = {n * 2**k for n in (4, 5, 6, 7) for k in range(2, 7)}
    assert {size for size in range(16, 257) if fits(size)} == {s for s in possible if s <= 256}


@both
@pytest.mark.parametrize(
    ("size", "expected"),
    [(15, "16 to 256"), (257, "16 to 256"), (26, "to 24 or 28"), (100, "to 96 or 112")],
)
def test_other_sizes_are_refused_with_sizes_that_do(size, expected, model):
    for build in (build_critic, build_generator):
        with pytest.raises(InputError, match=rf"size is {size}; the {model}.*{expected}"):
            build(spec(size=size, model=model))


@pytest.mark.parametrize("model", ["dcgan", "mlp"])
def test_blocks_of_networks_without_blocks_are_refused(model):
    with pytest.raises(InputError, match=rf"blocks is 2; the {model} networks have no.*--model"):
        build_critic(spec(model=model, blocks=2))


# As published.

R3 = {  # size, width: channels and groups from 4x4 up
    (32, 768): ([768] * 4, [96] * 4),
    (64, 384): ([768] * 4 + [384], [96] * 4 + [48]),
    (256, 96): ([768] * 4 + [384, 192, 96], [96] * 4 + [48, 24, 12]),
}


@pytest.mark.parametrize(("size", "width"), R3)
def test_r3_has_the_papers_widths_and_cardinality(size, width):
    channels, cardinality = R3[size, width]
    of = spec(size=size, channels=3, width=width, latent=64, init="torch", blocks=0)
    with torch.device("meta"):
        generator, critic = build_generator(of), build_critic(of)
    blocks = [[m for m in net.modules() if isinstance(m, Block)] for net in (generator, critic)]
    for found in (blocks[0], blocks[1][::-1]):
        assert [b.body[0].in_channels for b in found] == [c for c in channels for _ in range(2)]
        assert [b.body[2].groups for b in found] == [g for g in cardinality for _ in range(2)]
    # The learnt map, and the critic's end.
    assert (
        generator.layers[0].weight.shape == critic.trunk[-2].weight.shape == (channels[0], 1, 4, 4)
    )
    assert generator.project.weight.shape == (channels[0], 64)
    for net in (generator, critic):
        for m in net.modules():
            assert not isinstance(m, NORMS)
            if isinstance(m, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                activated = any(m in (b.body[0], b.body[2]) for some in blocks for b in some)
                assert (m.bias is not None) == activated


def test_resnet_has_the_papers_widths():
    shapes = {}
    for size, width in ((32, 128), (64, 64)):
        of = spec(size=size, channels=3, width=width, model="resnet", init="torch")
        with torch.device("meta"):
            nets = build_generator(of), build_critic(of)
        shapes[size] = [
            [(m.in_channels, m.out_channels) for m in convolutions(net) if m.kernel_size == (3, 3)]
            for net in nets
        ]
    assert shapes[32][0] == [(128, 128)] * 6 + [(128, 3)]
    assert shapes[32][1] == [(3, 128)] + [(128, 128)] * 7
    assert [out for _, out in shapes[64][0]] == [512, 512, 256, 256, 128, 128, 64, 64, 3][-9:]
    assert [out for _, out in shapes[64][1]][-1] == 256


def test_widths_double_up_to_the_most_or_a_larger_width():
    assert widths(5, 32, 128) == [32, 64, 128, 128, 128]
    assert widths(3, 200, 128) == [200, 200, 200]


@pytest.mark.parametrize(
    ("channels", "groups"), [(1536, 96), (32, 2), (40, 2), (24, 1), (8, 1), (56, 2)]
)
def test_groups_are_equal_and_have_16_channels_or_more(channels, groups):
    assert groups_of(channels) == groups


@pytest.mark.parametrize(("model", "usual"), [("r3", 2), ("resnet", 1)])
def test_blocks_a_stage(model, usual):
    def count(blocks):
        of = spec(size=32, model=model, blocks=blocks)
        nets = build_generator(of), build_critic(of)
        return [sum(isinstance(m, Residual) for m in net.modules()) for net in nets]

    stages = {"r3": (4, 4), "resnet": (3, 2)}[model]
    extra = {"r3": 0, "resnet": 2}[model]  # at the end of the critic
    for blocks in (1, 3):
        assert count(blocks) == [stages[0] * blocks, stages[1] * blocks + extra]
    assert count(0) == count(usual)


# Formulas.


@pytest.mark.parametrize("up", [False, True])
def test_the_side_changes_by_the_interpolation_filter(up):
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    found = Resample(3, up).double()(x)
    taps = torch.tensor([1, 3, 3, 1], dtype=torch.float64) / 8
    by_hand = torch.zeros(2, 3, 12, 12, dtype=torch.float64) if up else torch.zeros(2, 3, 3, 3)
    by_hand = by_hand.double()
    small, large = (x, by_hand) if up else (by_hand, x)
    for i in range(small.shape[2]):
        for j in range(small.shape[3]):
            for a in range(4):
                for b in range(4):
                    row, column = 2 * i + a - 1, 2 * j + b - 1
                    if min(row, column) >= 0 and max(row, column) < large.shape[2]:
                        weight = taps[a] * taps[b]
                        if up:  # twice the density a side
                            large[..., row, column] += 4 * weight * small[..., i, j]
                        else:
                            small[..., i, j] += weight * large[..., row, column]
    torch.testing.assert_close(found, by_hand)


def test_the_filter_never_learns():
    for net in (build_critic(spec()), build_generator(spec())):
        filters = [m for m in net.modules() if isinstance(m, Resample)]
        assert len(filters) == 2
        assert not any([*m.parameters()] for m in filters)
        assert all(p.requires_grad for p in net.parameters())


def test_a_block_of_r3_by_hand():
    block, x = moved(Block(8)).double(), torch.randn(2, 8, 5, 5, dtype=torch.float64)
    first, _, second, _, last = block.body
    h = torch.einsum("oi,nihw->nohw", first.weight[:, :, 0, 0], x) + first.bias[:, None, None]
    h = torch.where(h > 0, h, 0.2 * h)
    h = F.conv2d(h, second.weight, second.bias, padding=1, groups=second.groups)
    h = torch.where(h > 0, h, 0.2 * h)
    expected = x + torch.einsum("oi,nihw->nohw", last.weight[:, :, 0, 0], h)
    torch.testing.assert_close(block(x), expected)


def test_a_block_of_resnet_that_halves_by_hand():
    of = spec(size=32, width=4, model="resnet")
    block = build_critic(of).double().trunk[1]
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    first, second = convolutions(block.body)
    (shortcut,) = convolutions(block.shortcut)
    h = F.conv2d(x.clamp(min=0), first.weight, first.bias, padding=1)
    h = F.conv2d(h.clamp(min=0), second.weight, second.bias, padding=1)
    both_ways = h + F.conv2d(x, shortcut.weight, shortcut.bias)
    expected = both_ways.view(2, 8, 3, 2, 3, 2).mean((3, 5))  # the paper's order of the shortcut
    torch.testing.assert_close(block(x), expected)


# Classes.


def test_the_score_of_r3_is_a_product_with_the_classs_embedding():
    of = spec(classes=3, conditional="projection")
    critic, x = build_critic(of).double(), pictures(of).double()
    features = critic.trunk(x)
    length = features.shape[1]
    expected = torch.stack(
        [(critic.head.weight @ features[n]) @ critic.classes.weight[LABELS[n]] for n in range(3)]
    ) / math.sqrt(length)
    found = critic(x, LABELS)
    torch.testing.assert_close(found.score, expected)
    assert found.classes is None
    assert (found.score - critic(x, (LABELS + 1) % 3).score).abs().min() > 1e-5
    with pytest.raises(ValueError, match="labels"):
        critic(x)


@both
def test_an_auxiliary_critic_names_classes_without_being_told(model):
    of = spec(classes=5, conditional="auxiliary", model=model)
    critic, x = build_critic(of), pictures(of)
    said = judge(critic, x, LABELS)
    assert torch.equal(said.score, judge(critic, x, (LABELS + 1) % 3).score)
    torch.testing.assert_close(said.classes, critic.class_head(critic.trunk(x)))


@both
def test_a_conditional_generator_draws_the_class_it_is_asked_for(model):
    of = spec(classes=3, conditional="projection", model=model)
    generator, z = build_generator(of), latents(of, 1).expand(3, -1)
    drawn = generator(z, LABELS)
    assert min((drawn[i] - drawn[(i + 1) % 3]).abs().max() for i in range(3)) > 1e-3
    torch.testing.assert_close(generator(z[:1], LABELS[1:2]), drawn[1:2])


# Initial weights.


def test_r3_initial_weights():
    of = spec(size=32, channels=3, width=16, blocks=2, classes=40, conditional="projection")
    gain = math.sqrt(2 / (1 + 0.2**2)) * 8 ** (-1 / 4)  # 4 stages of 2 blocks
    for net in (build_critic(of), build_generator(of)):
        inside = {}
        for block in (m for m in net.modules() if isinstance(m, Block)):
            first, _, second, _, last = block.body
            inside |= {first: gain, second: gain, last: 0}
            assert not first.bias.any()
            assert not second.bias.any()
        assert len(inside) == 24
        for m in net.modules():
            if isinstance(m, nn.Conv2d | nn.Linear) and m is not getattr(net, "classes", None):
                of_m = inside.get(m, 1)
                if of_m:
                    assert_normal(m.weight, 0, of_m / math.sqrt(m.weight[0].numel()))
                else:
                    assert not m.weight.any()
        assert_normal(net.classes.weight, 0, 1)
    assert_normal(net.layers[0].weight, 0, 1)  # the learnt map


def test_resnet_starts_with_scores_and_gradients_of_moderate_size():
    """He's weights, and unit gain in shortcuts, from 16 to 128 pixels."""
    for size in (16, 32, 128):
        of = spec(size=size, width=8, model="resnet")
        x = pictures(of, 8).requires_grad_()
        score = judge(build_critic(of), x).score
        (gradient,) = torch.autograd.grad(score.sum(), x)
        assert 0.02 < gradient.flatten(1).norm(dim=1).mean() < 2
        assert score.abs().max() < 10


# Options of every network.


@both
@pytest.mark.parametrize("norm", ["batch", "layer", "instance", "spectral", "none"])
def test_norms_are_where_they_are_asked_for(norm, model):
    of = spec(critic_norm=norm, generator_norm=norm, model=model, width=8)
    critic, x = build_critic(of), pictures(of)
    normed = [m for m in critic.modules() if isinstance(m, NORMS)]
    assert bool(normed) == (norm not in ("none", "spectral"))
    assert all(hasattr(m, "parametrizations") == (norm == "spectral") for m in convolutions(critic))
    other = torch.cat([x[:1], -x[1:]])
    moved(critic)
    alone = (judge(critic, x).score[0] - judge(critic, other).score[0]).abs().item()
    assert (alone > 1e-3) == (norm == "batch")


@both
def test_dropout_follows_every_activation_of_the_critic(model):
    of = spec(critic_dropout=0.3, model=model)
    critic = build_critic(of)
    dropped = [m for m in critic.modules() if isinstance(m, Dropout)]
    activations = [m for m in critic.modules() if isinstance(m, nn.LeakyReLU | nn.ReLU)]
    assert len(dropped) == len(activations) > 4
    assert all(m.p == 0.3 for m in dropped)


@pytest.mark.parametrize(
    ("model", "width"), [("dcgan", 32), ("r3", 16), ("resnet", 16), ("my.module:Critic,r3", 16)]
)
def test_the_width_on_a_cpu_follows_from_the_family(model, width):
    cpu = torch.device("cpu")
    assert resolved(Config(model=model), cpu).net.width == width
    assert resolved(Config(model=model, net=NetConfig(width=5)), cpu).net.width == 5


def test_every_family_is_named_where_a_model_is_unknown():
    with pytest.raises(InputError, match=", ".join(FAMILIES)):
        build_critic(spec(model="r4"))
