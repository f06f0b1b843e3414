"""Float pictures to bytes: every level, ties to even, clipped, in any layout of the pictures."""

import numpy as np
import pytest
import torch
from torch import Tensor

import ganfast.kernels.to_uint8 as module
from ganfast.kernels.to_uint8 import to_uint8, to_uint8_reference, to_uint8_triton
from tests.kernels.test_kernels_interpreted import (
    DEVICE,
    FLOATS,
    LAYOUTS,
    assert_dispatch,
    assert_op,
    launching,
    on_kernels,
    randn,
    run_kernel,
)

SHAPES = [(1, 1, 1, 1), (2, 3, 3, 3), (5, 1, 7, 6), (3, 5, 9, 7), (2, 3, 40, 33)]


def scaled(x: Tensor) -> np.ndarray:
    """What is rounded, in float32 as the function promises; channels last."""
    with np.errstate(over="ignore"):
        return (x.cpu().float().permute(0, 2, 3, 1).numpy() + np.float32(1)) * np.float32(127.5)


def expected(x: Tensor) -> np.ndarray:
    return np.clip(np.rint(scaled(x)), 0, 255).astype(np.uint8)


def assert_right(x: Tensor) -> np.ndarray:
    found = run_kernel(module.to_uint8_triton, x, _tail_kernel=1)
    assert found.dtype == torch.uint8
    assert found.is_contiguous()
    np.testing.assert_array_equal(found.cpu().numpy(), expected(x))
    return found.cpu().numpy()


def as_pictures(values) -> Tensor:
    return torch.as_tensor(values).view(1, 1, 1, -1)


def ties() -> Tensor:
    """Values between two levels that float32 puts exactly in the middle."""
    half = (np.arange(255) + 0.5) / 127.5 - 1
    x = as_pictures(half.astype(np.float32))
    return x[..., (scaled(x) % 1 == 0.5).ravel()]


def every_value(dtype) -> Tensor:
    """All 2^16 of a type, without NaN."""
    x = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    return as_pictures(x[~x.isnan()])


@on_kernels
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_picture_is_rounded_as_numpy_rounds_it(shape, layout, dtype):
    assert_right(randn(*shape, dtype=dtype, layout=layout) * 0.8)


@on_kernels
def test_every_level_is_reached_from_its_own_value():
    levels = as_pictures((np.arange(256) / 127.5 - 1).astype(np.float32))
    assert assert_right(levels).ravel().tolist() == list(range(256))
    for shift in (-0.49, 0.49):  # of a level: nearest, not down
        moved = as_pictures(((np.arange(256) + shift) / 127.5 - 1).astype(np.float32))
        assert assert_right(moved).ravel().tolist() == list(range(256))


@on_kernels
def test_ties_go_to_the_even_level():
    x = ties()
    assert x.numel() > 100
    found = assert_right(x)
    assert (found % 2 == 0).all()
    assert {int(v) % 2 for v in np.floor(scaled(x)).ravel()} == {0, 1}  # up as often as down
    assert assert_right(torch.zeros(1, 1, 1, 1)).item() == 128  # 127.5


@on_kernels
@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_value_of_a_short_type_infinities_and_all(dtype):
    assert_right(every_value(dtype))


@on_kernels
@pytest.mark.filterwarnings("ignore:overflow")
def test_beyond_the_range_is_clipped():
    beyond = [-torch.inf, -3e38, -7.0, -1.0000001, -1.0, 1.0, 1.0000001, 3.5, 3e38, torch.inf]
    assert assert_right(as_pictures(torch.tensor(beyond))).ravel().tolist() == [0] * 5 + [255] * 5


@on_kernels
@pytest.mark.parametrize("layout", LAYOUTS)
def test_pictures_need_not_be_dense(layout):
    x = (randn(5, 5, 9, 7, layout=layout) * 0.8).to(DEVICE)
    for view in (
        x[:, ::2],
        x[:, 1:4],
        x[..., 1:-1],
        x[1::2],
        x.transpose(2, 3),
        x[:, :1].expand(5, 3, 9, 7),
        x[:1].expand(4, 5, 9, 7),
    ):
        before = view.clone()
        with launching(_tail_kernel=1):
            found = to_uint8_triton(view)
        np.testing.assert_array_equal(found.cpu().numpy(), expected(view))
        assert torch.equal(view, before)


@on_kernels
def test_float64_pictures_are_rounded_to_float32_first():
    assert_right(randn(2, 3, 9, 7, dtype=torch.float64))


@on_kernels
@pytest.mark.parametrize("shape", [(0, 3, 9, 7), (2, 3, 0, 7)], ids=str)
def test_no_pictures_launch_nothing(shape):
    n, c, h, w = shape
    assert run_kernel(to_uint8_triton, torch.empty(shape)).shape == (n, h, w, c)


@on_kernels
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_operation_keeps_its_schema_and_its_fake(layout):
    x = randn(2, 3, 9, 7, layout=layout).to(DEVICE)
    for view in (x, x[:, ::2], x.transpose(2, 3)):
        assert_op(module._op, view)


# The reference, and which of the two runs.


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_the_reference_rounds_as_numpy_does(dtype):
    pictures = [
        randn(3, 5, 9, 7, dtype=dtype),
        ties().to(dtype),
        randn(2, 3, 4, 5, dtype=dtype, layout="channels last")[:, ::2],
    ]
    if dtype != torch.float32:
        pictures.append(every_value(dtype))
    for x in pictures:
        found = to_uint8_reference(x)
        assert found.is_contiguous()
        np.testing.assert_array_equal(found.numpy(), expected(x))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_reference_or_kernel(monkeypatch, layout):
    for dtype in FLOATS:
        x = randn(2, 3, 9, 7, dtype=dtype, layout=layout)
        assert_dispatch(monkeypatch, to_uint8, to_uint8_reference, x, kernel={"_tail_kernel": 1})
