"""Dropout: drops as often as it says, everywhere alike, and scales what it keeps."""

import math

import pytest
import torch
from torch import nn

from ganfast.models.dropout import Dropout


def masked(layer, like):
    return layer.mask(layer.numbers(like), like)


@pytest.mark.parametrize("p", [0.01, 0.3, 0.5, 0.9])
def test_every_lane_of_the_random_words_drops_with_probability_p(p):
    torch.manual_seed(0)
    n = 1 << 18
    kept = (masked(Dropout(p), torch.empty(4 * n)) != 0).view(n, 4).double()
    bound = 5 * math.sqrt(p * (1 - p) / n) + 2**-17
    assert ((1 - kept.mean(0)) - p).abs().max() <= bound
    centred = kept - kept.mean(0)
    for shift in range(1, 4):  # neighbours in a word, and the same lane of the next one
        pairs = (centred[:, shift:] * centred[:, :-shift]).mean() / (p * (1 - p))
        assert pairs.abs() <= 5 / math.sqrt(n), shift
    assert (centred[1:] * centred[:-1]).mean().abs() / (p * (1 - p)) <= 5 / math.sqrt(n)


@pytest.mark.parametrize(
    ("p", "level"), [(0.3, 19661), (0.5, 32768), (1e-9, 0), (1 - 1e-9, 65535), (0.25, 16384)]
)
def test_what_is_kept_is_scaled_by_the_share_that_is_kept(p, level):
    torch.manual_seed(1)
    mask = masked(Dropout(p), torch.empty(1 << 18, dtype=torch.float64))
    assert {0.0, 65536 / (65536 - level)} >= set(mask.unique().tolist())
    assert (mask != 0).any()


@pytest.mark.parametrize("shape", [(1,), (3,), (5, 7), (2, 3, 4, 5), (0, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_mask_is_shaped_typed_and_laid_out_as_what_it_is_for(shape, dtype):
    like = torch.zeros(shape, dtype=dtype)
    for layout in (
        like,
        like.to(memory_format=torch.channels_last)
        if like.dim() == 4
        else like.t()
        if like.dim() == 2
        else like,
    ):
        mask = masked(Dropout(0.3), layout)
        assert (mask.shape, mask.dtype) == (layout.shape, dtype)
        assert mask.stride() == layout.stride() or not mask.numel()


def test_the_gradient_goes_where_the_value_went():
    torch.manual_seed(2)
    x = torch.randn(64, 33, dtype=torch.float64, requires_grad=True)
    y = Dropout(0.4)(x)
    (dx,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(dx * x.detach(), y.detach(), rtol=0, atol=0)
    assert 0 < (dx == 0).sum() < dx.numel()


def test_it_is_the_identity_where_torchs_is():
    x = torch.randn(5, 5)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0)(x) is x


def test_the_same_seed_drops_the_same_and_the_next_call_drops_others():
    layer, x = Dropout(0.5), torch.ones(1000)
    torch.manual_seed(3)
    first, second = layer(x), layer(x)
    torch.manual_seed(3)
    assert torch.equal(layer(x), first)
    assert not torch.equal(first, second)


def test_its_moments_are_those_of_torchs():
    torch.manual_seed(4)
    x = torch.randn(1 << 20, dtype=torch.float64)
    for layer in (Dropout(0.3), nn.Dropout(0.3)):
        y = layer(x)
        assert abs((y - x).mean()) <= 5 * math.sqrt(0.3 / 0.7 / len(x))
        assert ((y - x) ** 2).mean().item() == pytest.approx(0.3 / 0.7, rel=0.01)
