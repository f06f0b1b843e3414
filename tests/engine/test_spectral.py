"""Spectral normalisation without autograd against torch's own in float64, with its gradients."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.nn.utils.parametrize import register_parametrization

from ganfast.engine.weights import EffectiveWeights, normalised, spectral_of

LAYERS = {
    "linear": lambda: nn.Linear(7, 5),
    "convolution": lambda: nn.Conv2d(3, 6, (2, 4)),
    "one channel": lambda: nn.Conv2d(1, 6, 4),
    "one axis": lambda: nn.Conv1d(3, 4, 5),
    "three axes": lambda: nn.Conv3d(2, 3, 2),
    "groups": lambda: nn.Conv2d(4, 6, 3, groups=2),
}


def layer_of(kind, layout=torch.contiguous_format, **how):
    torch.manual_seed(0)
    layer = LAYERS[kind]().double()
    layer = layer.to(memory_format=layout) if layer.weight.dim() == 4 else layer
    return spectral_norm(layer, **how)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("kind", LAYERS)
def test_it_computes_what_torchs_does(kind, layout, iterations, training):
    layer = layer_of(kind, layout, n_power_iterations=iterations)
    twin = copy.deepcopy(layer)
    norm = spectral_of(layer, "weight")
    norm.train(training)
    twin.parametrizations.weight[0].train(training)
    original = layer.parametrizations.weight.original
    found, back = normalised(original, norm)
    exact = twin.weight
    torch.testing.assert_close(found, exact, rtol=1e-13, atol=1e-14)
    assert found.stride() == exact.stride()
    for ours, theirs in zip(layer.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-14)
    gradient = torch.randn_like(exact)
    (wanted,) = torch.autograd.grad(exact, twin.parametrizations.weight.original, gradient)
    torch.testing.assert_close(back(gradient), wanted, rtol=1e-12, atol=1e-13)
    normalised(original, norm.train())  # later estimates do not change the way back
    torch.testing.assert_close(back(gradient), wanted, rtol=1e-12, atol=1e-13)


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def chained():
    layer = layer_of("linear")
    register_parametrization(layer, "weight", Doubled())
    return layer


@pytest.mark.parametrize(
    "make",
    [
        lambda: spectral_norm(nn.ConvTranspose2d(3, 4, 2)),
        lambda: layer_of("linear", dim=1),
        lambda: weight_norm(nn.Linear(3, 4)),
    ],
    ids=["transposed", "by columns", "none"],
)
def test_what_it_does_not_take_is_left_to_autograd(make):
    layer = make().double()
    if hasattr(layer.parametrizations.weight, "original"):
        assert spectral_of(layer, "weight") is None
    twin = copy.deepcopy(layer)
    made = EffectiveWeights(layer)
    exact = twin.weight
    torch.testing.assert_close(made.values["weight"], exact, rtol=1e-12, atol=1e-13)
    gradient = torch.randn_like(exact)
    parameters = [p for p in twin.parameters() if p.requires_grad]
    wanted = torch.autograd.grad(exact, parameters, gradient, allow_unused=True)
    for ours, theirs in zip(made.parameter_gradients({"weight": gradient}), wanted, strict=True):
        assert (ours is None) == (theirs is None)
        if theirs is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)


def test_somebodys_own_parametrisation_is_left_to_the_forward():
    """It may keep state, which must move as often as in eager autograd."""
    layer = chained()
    assert spectral_of(layer, "weight") is None
    assert EffectiveWeights(layer).values.keys() == {"bias", "parametrizations.weight.original"}


def test_a_frozen_weight_gets_no_gradient():
    layer = layer_of("linear")
    layer.parametrizations.weight.original.requires_grad_(False)
    made = EffectiveWeights(layer)
    assert made.parameter_gradients({"weight": torch.ones(5, 7, dtype=torch.float64)}) == [None]
