"""The moving average against its closed form and torch's; its BatchNorm statistics in float64."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ganfast.config import OptimConfig
from ganfast.latents import Purpose, latents
from ganfast.training.ema import RAMP, average_of, ema_decay, reestimate_batchnorm
from ganfast.training.optim import FlatAdam

MANY = 10**9  # images shown: far beyond the ramp


def net(value, dtype=torch.float64):
    module = nn.Linear(3, 2).to(dtype)
    with torch.no_grad():
        for p in module.parameters():
            p.fill_(value)
    return module


def update_average(average, generator, step_images, images, half_life_kimg):
    """As a training step does it, with gradients of zero."""
    decay = ema_decay(step_images, torch.tensor(images), torch.tensor(half_life_kimg).double())
    FlatAdam(generator, 0.1, OptimConfig(), average).step(decay=decay)


def values(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def test_after_a_half_life_half_of_the_start_is_left():
    average, target = average_of(net(1.0)), net(5.0)
    for _ in range(25):  # 25 steps of 80 images: one half-life of 2 kimg
        update_average(average, target, 80, MANY, half_life_kimg=2.0)
    torch.testing.assert_close(
        values(average), torch.full((8,), 3.0, dtype=torch.float64), rtol=1e-12, atol=0
    )
    for _ in range(50):
        update_average(average, target, 80, MANY, half_life_kimg=2.0)
    torch.testing.assert_close(
        values(average), torch.full((8,), 4.5, dtype=torch.float64), rtol=1e-12, atol=0
    )


def test_the_half_life_is_counted_in_images_not_in_steps():
    averages = []
    for steps in (1, 4, 100):
        average = average_of(net(1.0))
        for _ in range(steps):
            update_average(average, net(5.0), 1000 // steps, MANY, half_life_kimg=3.0)
        averages.append(values(average))
    expected = torch.full((8,), 5 - 4 * 0.5 ** (1 / 3), dtype=torch.float64)
    for average in averages:
        torch.testing.assert_close(average, expected, rtol=1e-12, atol=0)


def test_early_in_a_run_the_half_life_is_a_fraction_of_the_images_seen():
    average = average_of(net(0.0))
    update_average(average, net(1.0), 64, 4000, half_life_kimg=5.0)
    beta = 0.5 ** (64 / (RAMP * 4000))
    torch.testing.assert_close(
        values(average), torch.full((8,), 1 - beta, dtype=torch.float64), rtol=1e-12, atol=0
    )
    assert 0 < RAMP < 0.5


def test_the_ramp_forgets_the_initial_weights():
    """The untrained generator has no weight after a few thousand images, whatever the half-life."""
    average, target, images = average_of(net(1.0)), net(0.0), 0
    while images < 20_000:
        images += 64
        update_average(average, target, 64, images, half_life_kimg=1e6)
    # The product of beta: 0.5 ** (sum of 64 / (RAMP images)), a harmonic sum.
    expected = 0.5 ** (sum(1 / k for k in range(1, images // 64 + 1)) / RAMP)
    assert values(average).max().item() == pytest.approx(expected, rel=1e-10)
    assert expected < 1e-6


@pytest.mark.parametrize(("half_life", "images"), [(0.0, MANY), (0.0, 64), (5.0, 0)])
def test_no_half_life_copies(half_life, images):
    torch.manual_seed(0)
    average, target = average_of(nn.Linear(3, 2)), nn.Linear(3, 2)
    update_average(average, target, 64, images, half_life)
    assert torch.equal(values(average), values(target))


def test_it_is_torchs_own_average_at_the_same_decay():
    torch.manual_seed(0)
    generator = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 3))
    ours = average_of(generator)
    theirs = AveragedModel(generator, multi_avg_fn=get_ema_multi_avg_fn(0.5 ** (160 / 3000)))
    theirs.update_parameters(generator)  # its first update copies
    for _ in range(20):
        with torch.no_grad():
            for p in generator.parameters():
                p.add_(torch.randn_like(p))
        update_average(ours, generator, 160, MANY, half_life_kimg=3.0)
        theirs.update_parameters(generator)
    torch.testing.assert_close(values(ours), values(theirs.module), rtol=1e-5, atol=1e-6)
    assert (values(ours) - values(generator)).abs().max() > 1


def test_the_average_is_a_copy_that_is_never_trained():
    generator = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    average = average_of(generator)
    assert not average.training
    assert generator.training
    assert not any(p.requires_grad for p in average.parameters())
    assert all(p.requires_grad for p in generator.parameters())
    before = values(average).clone()
    with torch.no_grad():
        generator[0].weight.add_(1)
    assert torch.equal(values(average), before)
    update_average(average, generator, 64, MANY, 1.0)
    assert not any(p.requires_grad for p in average.parameters())


def test_the_generator_is_not_changed_by_its_average():
    generator = net(2.0)
    update_average(average_of(net(1.0)), generator, 64, MANY, 1.0)
    assert (values(generator) == 2).all()


# BatchNorm statistics.


def two_norms(conditional=False):
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm1 = nn.Linear(5, 6), nn.BatchNorm1d(6, momentum=0.03)
            self.second, self.norm2 = nn.Linear(6, 4), nn.BatchNorm1d(4)
            self.classes = nn.Embedding(3, 6) if conditional else None

        def forward(self, z, labels=None):
            hidden = self.first(z)
            if self.classes is not None:
                hidden = hidden + self.classes(labels)
            return self.norm2(self.second(torch.relu(self.norm1(hidden))))

    module = Net()
    with torch.no_grad():
        module.norm1.weight.uniform_(0.5, 2)
        module.norm1.bias.normal_()
    return module


def normalised(x, norm):
    return (x - x.mean(0)) / (x.var(0, correction=0) + norm.eps).sqrt() * norm.weight + norm.bias


@pytest.mark.parametrize("classes", [0, 3])
def test_statistics_are_those_of_the_same_latents_in_float64(classes):
    net = two_norms(conditional=classes > 0)
    exact = copy.deepcopy(net).double()
    reestimate_batchnorm(net, seed=7, latent=5, classes=classes, batches=3, batch=50)
    means, variances = ([], []), ([], [])
    for k in range(3):
        index = torch.arange(50 * k, 50 * (k + 1))
        z = torch.from_numpy(latents(7, index.numpy(), 5, stream=Purpose.BATCHNORM)).double()
        hidden = exact.first(z) + (exact.classes(index % classes) if classes else 0)
        inner = exact.second(torch.relu(normalised(hidden, exact.norm1)))
        for i, x in enumerate((hidden, inner)):
            means[i].append(x.mean(0))
            variances[i].append(x.var(0, correction=1))
    for i, norm in enumerate((net.norm1, net.norm2)):
        mean, variance = (torch.stack(v[i]).mean(0).detach() for v in (means, variances))
        torch.testing.assert_close(norm.running_mean.double(), mean, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(norm.running_var.double(), variance, rtol=1e-5, atol=1e-5)


def test_statistics_do_not_depend_on_what_was_there_before():
    fresh, used = two_norms(), two_norms()
    for _ in range(3):
        used(torch.randn(20, 5) * 9 + 4)
    torch.manual_seed(1)
    reestimate_batchnorm(fresh, 7, 5, 0)
    torch.manual_seed(2)
    reestimate_batchnorm(used, 7, 5, 0)
    reestimate_batchnorm(used, 7, 5, 0)
    for (name, a), b in zip(fresh.state_dict().items(), used.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    other = two_norms()
    reestimate_batchnorm(other, 8, 5, 0)
    assert not torch.equal(other.norm1.running_mean, fresh.norm1.running_mean)


def test_large_maps_see_the_first_batch_and_small_ones_every():
    net = nn.Sequential(
        nn.Unflatten(1, (5, 1, 1)),
        nn.ConvTranspose2d(5, 3, 8),
        nn.BatchNorm2d(3),
        nn.Upsample(scale_factor=2),
        nn.BatchNorm2d(3),
    )
    first = copy.deepcopy(net)
    reestimate_batchnorm(net, 7, 5, 0, batches=4, batch=16)
    reestimate_batchnorm(first, 7, 5, 0, batches=1, batch=16)
    assert [int(net[i].num_batches_tracked) for i in (2, 4)] == [4, 1], "8x8 and 16x16"
    assert torch.equal(net[4].running_var, first[4].running_var)
    assert not torch.equal(net[2].running_var, first[2].running_var)
    assert all(not module._forward_hooks for module in net)


def test_weights_momenta_and_gradients_are_left_alone():
    net = two_norms()
    weights = values(net).clone()
    reestimate_batchnorm(net, 7, 5, 0)
    assert torch.equal(values(net), weights)
    assert (net.norm1.momentum, net.norm2.momentum) == (0.03, 0.1)
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    assert not any(m.training for m in net.modules())


def test_the_average_then_draws_normalised_activations():
    """Its purpose: in evaluation the norm gives mean 0 and deviation 1 over fresh latents."""
    net = two_norms()
    reestimate_batchnorm(net, 7, 5, 0)
    drawn = net(torch.from_numpy(latents(1, torch.arange(20_000).numpy(), 5)))
    assert drawn.mean(0).abs().max() < 0.15
    assert (drawn.std(0) - 1).abs().max() < 0.1


def test_networks_without_batch_norm_are_left_as_they_are():
    net = nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4))
    before = copy.deepcopy(net.state_dict())
    reestimate_batchnorm(net, 7, 5, 0)
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
