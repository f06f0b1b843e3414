"""Bias and leaky ReLU, delta and tangent: kernels against float64, the chain against autograd."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import leaky_relu

import ganfast.kernels.bias_act as module
from ganfast.kernels._triton import dense, launches
from ganfast.kernels.bias_act import biased_leaky_relu
from tests.depth import in_turn
from tests.kernels.test_kernels_interpreted import (
    DEVICE,
    FLOATS,
    LAYOUTS,
    assert_as_exact,
    assert_dispatch,
    assert_op,
    launching,
    on_kernels,
    poisoned_memory,
    randn,
    run_kernel,
)

# Odd: one element, no multiple of 8, of a program's 2048 elements, of 32 rows or of 64 columns.
# And rows or channels that fill whole bytes: 1x16 to 3x8x40x8.
SHAPES = "1x1 5x3 4x70 2x5x11 1x1x1x1 1x70x1x1 2x3x3x3 3x5x7x6 2x70x9x7 4x1x9x7 2x3x40x33"
SHAPES += " 3x16 2x5x24 2x72x4x4 3x8x40x8"
SHAPES = [tuple(map(int, shape.split("x"))) for shape in SHAPES.split()]
CASES = [
    (shape, layout)
    for shape in SHAPES
    for layout in LAYOUTS
    if layout == "contiguous" or len(shape) == 4
]
SLOPES = [0.2, 0.0]
# And slopes.
TYPES = [(torch.float32, 0.2), (torch.float32, 0.0), (torch.bfloat16, 0.2), (torch.float16, 0.2)]


def per_channel(v: Tensor, x: Tensor) -> Tensor:
    return v.view(-1, *[1] * (x.dim() - 2))


def in_memory(x: Tensor) -> np.ndarray:
    """Elements in the order they lie in, said without strides."""
    if x.dim() == 4 and not x.is_contiguous():
        x = x.permute(0, 2, 3, 1)
    return x.cpu().contiguous().flatten().numpy()


def bits_of(positive: Tensor) -> Tensor:
    """NumPy's packing, eight a byte, lowest first."""
    return torch.from_numpy(np.packbits(in_memory(positive), bitorder="little"))


def inputs(shape, dtype=torch.float32, layout="contiguous"):
    """x and a bias; an eighth of the sums is exactly 0, which has the negative side's slope."""
    x, bias = randn(*shape, dtype=dtype, layout=layout), randn(shape[1], seed=1)
    bias = bias.to(dtype).float()
    on_the_kink = torch.arange(x.numel()).view(shape) % 8 == 3
    x[on_the_kink] = (-per_channel(bias, x)).expand_as(x)[on_the_kink].to(dtype)
    return x, bias


def sums(x: Tensor, bias: Tensor) -> Tensor:
    return x.double() + per_channel(bias.double(), x)


def assert_forward_right(x, bias, slope):
    y, bits = run_kernel(module.bias_act_triton, x, bias, slope, _forward_kernel=1)
    exact = sums(x, bias)
    assert y.stride() == x.stride()
    assert_as_exact(y, module.bias_act_reference(x, bias, slope)[0], leaky_relu(exact, slope))
    assert bits.dtype == torch.uint8
    assert bits.tolist() == bits_of(exact > 0).tolist()  # those behind the last element are 0


def delta_inputs(shape, dtype=torch.float32, layout="contiguous"):
    """dy, the mask, and weights of the samples, every second of which reaches the bias."""
    weight = randn(shape[0], seed=3)
    weight[::2] = 0
    if shape[0] == 1:
        weight[0] = 0.7
    return (
        randn(*shape, seed=2, dtype=dtype, layout=layout),
        randn(*shape, seed=4, layout=layout) > 0,
        weight,
    )


def delta_kernel(dy: Tensor) -> str:
    return (
        "_delta_rows_kernel"
        if dy.is_contiguous() and dy[0, 0].numel() > 1
        else "_delta_columns_kernel"
    )


def assert_delta_right(dy, mask, weight, slope):
    bits = bits_of(mask)
    dz, db = run_kernel(
        module.bias_act_delta_triton, dy, bits, slope, weight, **{delta_kernel(dy): 1}
    )
    exact = dy.double() * torch.where(mask, 1.0, float(slope))
    weighted = exact * weight.double().view(-1, *[1] * (dy.dim() - 1))
    all_but_channels = [0, *range(2, dy.dim())]
    reference = module.bias_act_delta_reference(dy, bits, slope, weight)
    assert dz.stride() == dy.stride()
    assert_as_exact(dz, reference[0], exact)
    assert db.dtype == torch.float32
    assert_as_exact(
        db, reference[1], weighted.sum(all_but_channels), terms=weighted.abs().sum(all_but_channels)
    )


def assert_tangent_right(shape, slope, dtype=torch.float32, layout="contiguous"):
    mask = randn(*shape, seed=4, layout=layout) > 0
    c = randn(*shape, seed=5, dtype=dtype, layout=layout)
    t = run_kernel(module.bias_act_tangent_triton, c, bits_of(mask), slope, _tangent_kernel=1)
    assert t.stride() == c.stride()
    exact = c.double() * torch.where(mask, 1.0, float(slope))
    assert_as_exact(t, module.bias_act_tangent_reference(c, bits_of(mask), slope), exact)


@on_kernels
@pytest.mark.parametrize(("shape", "layout", "dtype", "slope"), in_turn(CASES, TYPES))
def test_forward_and_every_bit_are_those_of_float64(shape, layout, dtype, slope):
    assert_forward_right(*inputs(shape, dtype, layout), slope)


@on_kernels
@pytest.mark.parametrize(("shape", "layout", "dtype", "slope"), in_turn(CASES, TYPES))
def test_delta_and_bias_gradient_are_those_of_float64(shape, layout, dtype, slope):
    assert_delta_right(*delta_inputs(shape, dtype, layout), slope)


@on_kernels
@pytest.mark.parametrize(("shape", "layout", "dtype", "slope"), in_turn(CASES, TYPES))
def test_the_tangent_is_that_of_float64(shape, layout, dtype, slope):
    assert_tangent_right(shape, slope, dtype, layout)


@on_kernels
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_tangent_may_be_written_over_some_rows_of_another_tensor(layout):
    """As the explicit engine does: rows before and behind keep what they hold."""
    h, c = randn(6, 8, 5, 3, layout=layout), randn(3, 8, 5, 3, seed=5, layout=layout)
    mask = randn(3, 8, 5, 3, seed=4, layout=layout) > 0
    expected = h.clone()
    expected[2:5] = module.bias_act_tangent_reference(c, bits_of(mask), 0.2)
    with poisoned_memory() as guards, launching(_tangent_kernel=1):
        given = guards.copy(h.to(DEVICE))
        rows = given[2:5]
        t = module.bias_act_tangent(c.to(DEVICE), bits_of(mask).to(DEVICE), 0.2, rows)
    assert t is rows
    assert given.stride() == h.stride()
    assert torch.equal(given.cpu(), expected)


@on_kernels
@pytest.mark.parametrize(("shape", "layout", "slope"), in_turn(CASES, SLOPES))
def test_forward_then_delta_is_autograds_derivative(shape, layout, slope):
    x, bias = inputs(shape, layout=layout)
    dy = randn(*shape, seed=2, layout=layout)
    point, b = x.double().requires_grad_(), bias.double().requires_grad_()
    dx, dbias = torch.autograd.grad(
        leaky_relu(point + per_channel(b, x), slope), (point, b), dy.double()
    )
    _, bits = module.bias_act_triton(x.to(DEVICE), bias.to(DEVICE), slope)
    dz, db = module.bias_act_delta_triton(
        dy.to(DEVICE), bits, slope, torch.ones(shape[0], device=DEVICE)
    )
    torch.testing.assert_close(dz.cpu().double(), dx, rtol=2e-7, atol=0)
    torch.testing.assert_close(db.cpu().double(), dbias, rtol=1e-5, atol=1e-5)


@on_kernels
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_bias_gradient_is_the_same_every_time(layout):
    dy, mask, weight = (v.to(DEVICE) for v in delta_inputs((3, 33, 9, 7), layout=layout))
    bits = bits_of(mask).to(DEVICE)
    first, second = (module.bias_act_delta_triton(dy, bits, 0.2, weight)[1] for _ in range(2))
    assert torch.equal(first, second)


@on_kernels
@pytest.mark.parametrize("channels", [8, 70])
def test_a_program_may_take_several_blocks_of_rows(monkeypatch, channels):
    """The last program has fewer blocks, and the last block fewer rows."""
    monkeypatch.setattr(module, "_PROGRAMS", 3)
    inputs = delta_inputs((3, channels, 40, 33), layout="channels last")
    assert_delta_right(*inputs, 0.2)


@on_kernels
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(3, 5, 20, 33), (3, 8, 20, 32)], ids=str)  # five programs, eight
def test_indices_of_64_bits_find_the_same_elements(monkeypatch, shape, layout):
    """Where tensors have more than 2**31 elements, which no test has memory for."""
    monkeypatch.setattr(module, "_large", lambda x: True)
    assert_forward_right(*inputs(shape, layout=layout), 0.2)
    assert_delta_right(*delta_inputs(shape, layout=layout), 0.2)


@on_kernels
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_sample_of_weight_zero_reaches_its_delta_and_not_the_bias(layout):
    dy, mask, _ = delta_inputs((3, 5, 7, 6), layout=layout)
    bits = bits_of(mask)
    full = module.bias_act_delta_triton(
        dy.to(DEVICE), bits.to(DEVICE), 0.2, torch.tensor([1.0, 0.0, 1.0], device=DEVICE)
    )
    dy[1] *= 100
    moved = module.bias_act_delta_triton(
        dy.to(DEVICE), bits.to(DEVICE), 0.2, torch.tensor([1.0, 0.0, 1.0], device=DEVICE)
    )
    assert torch.equal(full[1], moved[1])
    torch.testing.assert_close(moved[0][1], full[0][1] * 100)


@on_kernels
@pytest.mark.parametrize("kind", FLOATS, ids=str)
def test_the_bias_may_have_another_type_than_the_pictures(kind):
    for dtype in FLOATS:
        x, bias = randn(2, 5, 7, 6, dtype=dtype), randn(5, seed=1, dtype=kind)
        assert_forward_right(x, bias, 0.2)


@on_kernels
@pytest.mark.parametrize("layout", LAYOUTS)
def test_pictures_and_deltas_need_not_be_dense(layout):
    """The bits follow the memory order of the dense copy, which y and dz have."""
    x, bias = randn(4, 5, 7, 6, layout=layout).to(DEVICE), randn(10, seed=1).to(DEVICE)
    for wide in (x[:, ::2], x[..., 1:], x[1::2], x.transpose(2, 3), x[:1].expand(3, 5, 7, 6)):
        b = bias[: wide.shape[1]].contiguous()
        y, bits = module.bias_act_triton(wide, b, 0.2)
        exact = sums(wide, b).cpu()
        torch.testing.assert_close(y.cpu().double(), leaky_relu(exact, 0.2), rtol=1e-6, atol=1e-6)
        mask = torch.empty_like(y, device="cpu", dtype=torch.bool).copy_(exact > 0)
        assert bits.tolist() == bits_of(mask).tolist()
        dz, db = module.bias_act_delta_triton(wide, bits, 0.2, torch.ones(len(wide), device=DEVICE))
        t = module.bias_act_tangent_triton(wide, bits, 0.2)
        expected = wide.cpu().double() * torch.where(exact > 0, 1.0, 0.2)
        torch.testing.assert_close(dz.cpu().double(), expected, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(t.cpu().double(), expected, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(db.cpu().double(), expected.sum((0, 2, 3)), rtol=1e-5, atol=1e-5)


@on_kernels
def test_a_bias_need_not_be_dense():
    x, wide = randn(2, 5, 7, 6), randn(10, seed=1).to(DEVICE)
    for bias in (wide[::2], wide[:1].expand(5), wide.view(5, 2)[:, 1]):
        expected, bits = module.bias_act_reference(x, bias.cpu(), 0.2)
        found = module.bias_act_triton(x.to(DEVICE), bias, 0.2)
        torch.testing.assert_close(found[0].cpu(), expected, rtol=1e-6, atol=1e-6)
        assert torch.equal(found[1].cpu(), bits)


@on_kernels
@pytest.mark.parametrize("layout", LAYOUTS)
def test_sample_weights_need_not_be_dense(layout):
    dy, mask, _ = delta_inputs((3, 5, 7, 6), layout=layout)
    wide, bits = randn(6, seed=1).to(DEVICE), bits_of(mask)
    for weight in (wide[::2], wide[:1].expand(3), wide.view(3, 2)[:, 1]):
        _, expected = module.bias_act_delta_reference(dy, bits, 0.2, weight.cpu())
        _, db = module.bias_act_delta_triton(dy.to(DEVICE), bits.to(DEVICE), 0.2, weight)
        torch.testing.assert_close(db.cpu(), expected, rtol=1e-5, atol=1e-5)


@on_kernels
@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4, 5)], ids=str)
def test_an_empty_batch_launches_nothing(shape):
    x, none = torch.empty(shape), torch.empty(0, dtype=torch.uint8)
    y, bits = run_kernel(module.bias_act_triton, x, torch.ones(3), 0.2)
    t = run_kernel(module.bias_act_tangent_triton, x, none, 0.2)
    assert y.shape == t.shape == shape
    assert bits.shape == (0,)
    dz, db = run_kernel(module.bias_act_delta_triton, x, none, 0.2, torch.empty(0))
    assert dz.shape == shape
    assert db.tolist() == [0, 0, 0]


@on_kernels
def test_infinities_and_nan_pass():
    x = torch.tensor([[torch.inf, -torch.inf, torch.nan, -1.0]])
    y, bits = run_kernel(module.bias_act_triton, x, torch.zeros(4), 0.2, _forward_kernel=1)
    assert y[0, :2].tolist() == [torch.inf, -torch.inf]
    assert y[0, 2].isnan()
    assert bits.tolist() == [1]


@on_kernels
@pytest.mark.parametrize(
    ("shape", "layout"),
    [((5, 3), "contiguous"), *(((2, 3, 3, 3), layout) for layout in LAYOUTS)],
    ids=str,
)
def test_the_operations_keep_their_schemas_and_fakes(shape, layout):
    x, bias = (v.to(DEVICE) for v in inputs(shape, torch.bfloat16, layout))
    _, bits = module.bias_act_triton(x, bias, 0.2)
    weight = torch.ones(shape[0], device=DEVICE)
    for v in (x, x[:, 1:], x[1:]):
        assert_op(module._bias_act, v, bias[-v.shape[1] :], 0.2)
        assert_op(module._bias_act_delta, v, bits, 0.2, weight[: len(v)])
        assert_op(module._bias_act_tangent, v, bits, 0.2, torch.empty_like(dense(v)))


# The references, and which of the two runs.


def test_in_float64_the_slope_has_all_its_bits():
    x = torch.tensor([[-1.0, 3.0]], dtype=torch.float64)
    y, bits = module.bias_act_reference(x, torch.zeros(2, dtype=torch.float64), 0.2)
    dz, _ = module.bias_act_delta_reference(torch.ones_like(x), bits, 0.2, torch.ones(1))
    assert y.tolist() == [[-0.2, 3.0]]
    assert dz.tolist() == module.bias_act_tangent_reference(torch.ones_like(x), bits, 0.2).tolist()
    assert dz.tolist() == [[0.2, 1.0]]


@pytest.mark.parametrize("dtype", [torch.float64, *FLOATS], ids=str)
@pytest.mark.parametrize(("shape", "layout"), CASES, ids=str)
def test_the_references_are_the_definition(shape, layout, dtype):
    x, bias = inputs(shape, dtype, layout)
    y, bits = module.bias_act_reference(x, bias, 0.2)
    exact = sums(x, bias)
    rounding = {"rtol": torch.finfo(dtype).eps, "atol": 2 * torch.finfo(torch.float32).eps}
    torch.testing.assert_close(y.double(), leaky_relu(exact, 0.2), **rounding)
    assert y.stride() == x.stride()
    assert bits.tolist() == bits_of(exact > 0).tolist()
    dy, mask, weight = delta_inputs(shape, dtype, layout)
    dz, db = module.bias_act_delta_reference(dy, bits_of(mask), 0.2, weight)
    expected = dy.double() * torch.where(mask, 1.0, 0.2)
    torch.testing.assert_close(dz.double(), expected, **rounding)
    assert dz.stride() == dy.stride()
    assert db.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    weighted = expected * weight.double().view(-1, *[1] * (dy.dim() - 1))
    torch.testing.assert_close(
        db.double(), weighted.sum([0, *range(2, dy.dim())]), rtol=1e-5, atol=1e-4
    )
    t = module.bias_act_tangent_reference(dy, bits_of(mask), 0.2)
    torch.testing.assert_close(t.double(), expected, **rounding)


@pytest.mark.parametrize("dtype", [torch.float64, *FLOATS], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_reference_or_kernel(monkeypatch, layout, dtype):
    x, bias = inputs((2, 3, 3, 3), dtype, layout)
    dy, mask, weight = delta_inputs((2, 3, 3, 3), dtype, layout)
    runs = dtype != torch.float64
    for public, reference, arguments, kernel in (
        (module.bias_act, module.bias_act_reference, (x, bias, 0.2), "_forward_kernel"),
        (
            module.bias_act_delta,
            module.bias_act_delta_reference,
            (dy, bits_of(mask), 0.2, weight),
            delta_kernel(dy),
        ),
        (
            module.bias_act_tangent,
            module.bias_act_tangent_reference,
            (dy, bits_of(mask), 0.2),
            "_tangent_kernel",
        ),
    ):
        assert_dispatch(
            monkeypatch, public, reference, *arguments, kernel={kernel: 1} if runs else {}
        )


@pytest.mark.parametrize("wrong", ["type", "layout"])
def test_a_tangent_is_not_written_into_another_type_or_layout(wrong):
    c, bits = randn(2, 8, 3, 3), torch.zeros(18, dtype=torch.uint8)
    out = c.half() if wrong == "type" else c.contiguous(memory_format=torch.channels_last)
    with pytest.raises(ValueError, match=r"out has strides .*; expected \(72, 9, 3, 1\) and"):
        module.bias_act_tangent(c, bits, 0.2, out)


# For eager autograd.


def doubly(x, bias, slope, function):
    """y, its gradients, and the gradients of a penalty on the gradient of x."""
    x, bias = x.detach().requires_grad_(), bias.detach().requires_grad_()
    y = function(x, bias, slope)
    scale = torch.linspace(-2, 2, y.numel(), dtype=y.dtype, device=y.device).view(y.shape)
    # Its gradient depends on y, so that the second derivative is none of zeros.
    curved = (scale * y**2).sum()
    dx, db = torch.autograd.grad(curved, (x, bias), create_graph=True)
    ddx, ddb = torch.autograd.grad((dx**2).sum() + (db**2).sum(), (x, bias))
    return {"y": y, "dx": dx, "db": db, "ddx": ddx, "ddb": ddb}


def leaky(x, bias, slope):
    return torch.nn.functional.leaky_relu(x + bias.view(-1, *[1] * (x.dim() - 2)), slope)


@pytest.mark.parametrize("slope", [0.2, 0.0])
def test_second_derivatives_pass_gradgradcheck(slope):
    x, bias = randn(2, 8, 3, 2, seed=1).double(), randn(8, seed=2).double()
    inputs = (x.requires_grad_(), bias.requires_grad_())
    function = partial(biased_leaky_relu, slope=slope)
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


@on_kernels
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_second_derivatives_through_the_kernels_are_those_of_float64(memory_format):
    x = randn(3, 8, 5, 7, seed=1).to(DEVICE, memory_format=memory_format)
    bias = randn(8, seed=2).to(DEVICE)
    truth = doubly(x.double(), bias.double(), 0.2, leaky)
    own = doubly(x, bias, 0.2, leaky)
    before = dict(launches)
    for name, found in doubly(x, bias, 0.2, biased_leaky_relu).items():
        one_rounding = torch.finfo(found.dtype).eps * truth[name].abs().max()
        allowed = 2 * (own[name] - truth[name]).abs().max() + 4 * one_rounding
        assert (found - truth[name]).abs().max() <= allowed, name
    assert launches["_forward_kernel"] == before.get("_forward_kernel", 0) + 1
    assert launches["_tangent_kernel"] > before.get("_tangent_kernel", 0)
