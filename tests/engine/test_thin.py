"""Convolutions as a matrix product with summed overlaps, with derivatives, against torch."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.nn.utils.parametrizations import weight_norm

from ganfast.engine import convolution, lean
from ganfast.engine.convolution import Convolution, is_small, is_thin
from ganfast.engine.lean import ThinConvolutions

GEOMETRIES = [  # kernel, stride, padding, output padding, dilation
    (4, 2, 1, 0, 1),
    (4, 2, 1, 1, 1),  # the last of what the padding leaves
    (4, 2, 0, 1, 1),  # one more than the taps reach
    ((2, 6), (2, 3), (0, 2), (0, 1), 1),
    (5, 2, 2, 1, 1),
    (3, 1, 1, 0, 1),
    (3, 3, 0, 2, 2),
    ((2, 3), (2, 1), (0, 1), (1, 0), (1, 2)),
]
LAYOUTS = [torch.contiguous_format, torch.channels_last]


def counted(monkeypatch) -> list[int]:
    calls = []
    real = convolution.overlapped
    monkeypatch.setattr(convolution, "overlapped", lambda *a: (calls.append(1), real(*a))[1])
    return calls


@pytest.mark.parametrize(("channels", "layout"), list(itertools.product((1, 3), LAYOUTS)), ids=str)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_transposed_convolution_and_its_derivatives(geometry, channels, layout, bias, monkeypatch):
    kernel, stride, padding, output_padding, dilation = geometry
    kernel = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    torch.manual_seed(0)
    x = torch.randn(2, 5, 6, 4, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    w = (
        torch.randn(5, channels, *kernel, dtype=torch.float64)
        .to(memory_format=layout)
        .requires_grad_()
    )
    b = torch.randn(channels, dtype=torch.float64, requires_grad=True) if bias else None
    inputs = [t for t in (x, w, b) if t is not None]
    calls = counted(monkeypatch)
    layer = nn.ConvTranspose2d(
        5, channels, kernel, stride, padding, output_padding, 1, bias, dilation
    )
    state = {name: value for name, value in {"weight": w, "bias": b}.items() if value is not None}

    def derivatives(thin: bool):
        with ThinConvolutions(layer) if thin else torch.enable_grad():
            y = functional_call(layer, state, (x,))
        first = torch.autograd.grad(y.sin().sum(), inputs, create_graph=True)
        second = torch.autograd.grad(sum(g.cos().sum() for g in first), inputs)
        return y, *first, *second

    plain = derivatives(False)
    assert not calls
    for ours, theirs in zip(derivatives(True), plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    assert calls


@pytest.mark.parametrize(("channels", "layout"), list(itertools.product((1, 3), LAYOUTS)), ids=str)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_data_gradient_of_a_convolution_of_pictures(geometry, channels, layout, monkeypatch):
    kernel, stride, padding, _, dilation = geometry
    kernel = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    torch.manual_seed(0)
    x = (
        torch.randn(2, channels, 11, 9, dtype=torch.float64)
        .to(memory_format=layout)
        .requires_grad_()
    )
    w = (
        torch.randn(5, channels, *kernel, dtype=torch.float64)
        .to(memory_format=layout)
        .requires_grad_()
    )
    calls = counted(monkeypatch)
    y = F.conv2d(x, w, None, stride, padding, dilation)
    dy = torch.randn_like(y)
    (exact,) = torch.autograd.grad(y, x, dy)
    shape = Convolution(*(convolution.per_axis(v, 2) for v in (stride, padding, dilation)), 1)
    torch.testing.assert_close(shape.data_gradient(dy, w, x), exact, rtol=1e-10, atol=1e-10)
    assert len(calls) == 1


def test_only_steps_to_pictures_go_this_way():
    x, thin, wide = torch.zeros(1, 4, 3, 3), torch.zeros(4, 3, 2, 2), torch.zeros(4, 4, 2, 2)
    assert is_thin(x, thin, 1)
    assert not is_thin(x, wide, 1)
    assert not is_thin(x, thin, 2)
    assert not is_thin(x.bfloat16(), thin.bfloat16(), 1)
    assert not is_thin(x.to("meta"), thin.to("meta"), 1)
    assert not is_thin(torch.zeros(1, 4, 3), torch.zeros(4, 1, 2), 1)


def test_a_pass_to_the_pictures_makes_no_weight_gradients(monkeypatch):
    """The generator's gradients go through the critic's first layer, whose own are not wanted."""
    made = []
    real = lean.WeightGradient.apply
    monkeypatch.setattr(lean.WeightGradient, "apply", lambda *a: (made.append(1), real(*a))[1])
    x, layer = torch.randn(2, 1, 6, 6, requires_grad=True), nn.Conv2d(1, 4, 3)
    with ThinConvolutions(layer):
        y = layer(x)
    torch.autograd.grad(y.sum(), x, retain_graph=True)
    assert not made
    torch.autograd.grad(y.sum(), layer.weight)
    assert made


class Own(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


def test_modules_are_changed_for_as_long_as_asked_and_only_those_of_torch(monkeypatch):
    """Hooks, a size that is asked for, a weight that is computed: all as without."""
    calls = counted(monkeypatch)
    net = nn.Sequential(
        Own(1, 5, 3),
        nn.Conv2d(5, 4, 1, padding_mode="circular"),
        weight_norm(nn.ConvTranspose2d(4, 2, 4, 2, 1)),
        nn.Conv2d(2, 4, 3),
    ).double()
    seen = []
    net[2].register_forward_hook(lambda *a: seen.append(1))
    x = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    exact = net(x)
    assert not calls
    with ThinConvolutions(net), ThinConvolutions(net):
        torch.testing.assert_close(net(x), exact, rtol=1e-10, atol=1e-10)
        assert net[2](torch.zeros(1, 4, 3, 3).double(), output_size=[7, 7]).shape == (1, 2, 7, 7)
        assert ["forward" in vars(m) for m in net] == [False, False, True, True]
    assert (len(calls), len(seen)) == (1, 3)
    assert not any("forward" in vars(m) for m in net)
    assert torch.equal(net(x), exact)


def test_what_a_user_put_in_place_of_a_forward_stays():
    layer = nn.ConvTranspose2d(4, 1, 4, 2, 1)
    layer.forward = lambda x: torch.zeros(1)
    with ThinConvolutions(layer), ThinConvolutions(layer):
        assert layer(torch.ones(1, 4, 3, 3)) == 0
    assert layer(torch.ones(1, 4, 3, 3)) == 0


def test_a_copy_made_inside_is_one_of_its_own():
    layer, x = nn.ConvTranspose2d(4, 1, 4, 2, 1), torch.ones(1, 4, 3, 3)
    with ThinConvolutions(layer):
        twin = copy.deepcopy(layer)
    for p in twin.parameters():
        nn.init.zeros_(p)
    assert not twin(x).any()
    assert layer(x).any()


def test_no_pictures_are_drawn_as_none():
    layer = nn.ConvTranspose2d(4, 1, 4, 2, 1)
    with ThinConvolutions(layer):
        assert layer(torch.ones(0, 4, 3, 3)).shape == (0, 1, 6, 6)


def test_results_of_single_channel_pictures_stay_channels_last():
    """Strides do not tell it; a layout that changes made later operations several times slower."""
    w = torch.randn(4, 1, 4, 4)
    shape = Convolution((2, 2), (1, 1), (1, 1), 1, last=True)
    h = shape.forward(torch.tanh(torch.randn(2, 1, 8, 8)), w)
    assert h.stride() == (64, 1, 16, 4)
    again = shape.forward(torch.tanh(shape.data_gradient(h, w, torch.empty(2, 1, 8, 8))), w)
    assert again.stride() == h.stride()
    three = torch.randn(4, 3, 4, 4).to(memory_format=torch.channels_last)
    assert shape.data_gradient(h, three, torch.empty(2, 3, 8, 8)).is_contiguous(
        memory_format=torch.channels_last
    )


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(28, 28), (8, 11)], ids=str)
def test_what_a_compiler_is_told_of_the_sum_over_phases_is_what_it_gets(size, channels):
    h, w = ((length + 1) // 2 for length in size)
    given = (torch.randn(3, 5, h, w), torch.randn(5, channels, 4, 4), list(size), [2, 2], [1, 1])
    torch.library.opcheck(
        torch.ops.ganfast.by_phases.default, given, test_utils=("test_schema", "test_faketensor")
    )
    told = torch.empty(3, channels, *size).contiguous(memory_format=torch.channels_last).stride()
    found = torch.ops.ganfast.by_phases(*given)
    assert (found.shape, found.stride()[2:]) == ((3, channels, *size), told[2:])
    with FakeTensorMode() as mode:
        fake = torch.ops.ganfast.by_phases(
            *(mode.from_tensor(x) if isinstance(x, torch.Tensor) else x for x in given)
        )
    assert fake.stride() == found.stride()


# Weight gradients over small maps


SMALL = [  # picture, kernel, stride, padding, dilation
    ((7, 7), (4, 4), (2, 2), (1, 1), (1, 1)),
    ((5, 6), (3, 2), (2, 3), (0, 1), (1, 2)),
    ((3, 3), (3, 3), (1, 1), (1, 1), (1, 1)),
    ((2, 9), (1, 4), (1, 2), (0, 0), (2, 1)),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("geometry", SMALL, ids=str)
def test_weight_gradient_over_a_small_map(geometry, layout, monkeypatch):
    size, kernel, stride, padding, dilation = geometry
    torch.manual_seed(0)
    x = torch.randn(3, 5, *size, dtype=torch.float64).to(memory_format=layout)
    w = torch.randn(4, 5, *kernel, dtype=torch.float64, requires_grad=True)
    y = F.conv2d(x, w, None, stride, padding, dilation)
    dy = torch.randn_like(y).to(memory_format=layout)
    (exact,) = torch.autograd.grad(y, w, dy)
    calls, product = [], convolution.patch_product
    monkeypatch.setattr(
        convolution, "patch_product", lambda *given: (calls.append(1), product(*given))[1]
    )
    found = Convolution(stride, padding, dilation, 1).weight_gradient(dy, x, w)
    torch.testing.assert_close(found, exact, rtol=1e-12, atol=1e-12)
    assert len(calls) == 1, "the map has nine positions or fewer"


@pytest.mark.parametrize(
    ("shape", "weight", "groups", "small"),
    [
        ((2, 4, 3, 3), (4, 5, 4, 4), 1, True),
        ((2, 4, 1, 9), (4, 5, 4, 4), 1, True),
        ((2, 4, 3, 4), (4, 5, 4, 4), 1, False),
        ((2, 256, 4, 4), (256, 128, 4, 4), 1, True),
        ((2, 256, 4, 4), (256, 127, 4, 4), 1, False),
        ((2, 256, 4, 5), (256, 128, 4, 4), 1, False),
        ((2, 4, 3, 3), (4, 1, 4, 4), 4, False),
        ((0, 4, 3, 3), (4, 5, 4, 4), 1, False),
        ((2, 4, 9), (4, 5, 4), 1, False),
    ],
)
def test_which_maps_are_small(shape, weight, groups, small):
    assert is_small(torch.zeros(shape), torch.zeros(weight), groups) is small
    assert not is_small(torch.zeros(shape, dtype=torch.bfloat16), torch.zeros(weight), groups)
    assert not is_small(
        torch.zeros(shape, device="meta"), torch.zeros(weight, device="meta"), groups
    )
