"""From input gradients to values, norms and direction: kernels against float64 and autograd."""

import pytest
import torch

import ganfast.kernels.gradient_penalty as module
from ganfast.kernels.gradient_penalty import (
    gradient_penalty,
    gradient_penalty_reference,
    gradient_penalty_triton,
)
from tests.depth import in_turn
from tests.kernels.test_kernels_interpreted import (
    DEVICE,
    FLOATS,
    assert_as_exact,
    assert_dispatch,
    assert_op,
    on_kernels,
    randn,
    run_kernel,
)

WEIGHT, SCALE = 10.0, 0.3  # 0.3 is no float: what is rounded too early shows
KINDS = {
    "zero-centred": (0.0, False, True),
    **{f"two-sided {target}": (target, False, False) for target in (0.0, 1.0, 0.4)},
    **{f"one-sided {target}": (target, True, False) for target in (0.0, 1.0, 0.4)},
}  # target, one_sided, zero_centred
FEW = ["zero-centred", "two-sided 0.4", "one-sided 1.0"]
# On both sides of every target, and no gradient at all.
NORMS = torch.tensor([0.1, 0.7, 0.0, 3.0, 1.5], dtype=torch.float64)
ONE_LAUNCH, TWO_LAUNCHES = {"_whole_kernel": 1}, {"_squares_kernel": 1, "_direction_kernel": 1}
# shape of a sample, whether one program keeps it
SHAPES = {
    (1,): ONE_LAUNCH,
    (5,): ONE_LAUNCH,
    (1, 1, 1): ONE_LAUNCH,
    (3, 9, 7): ONE_LAUNCH,
    (16384,): ONE_LAUNCH,
    (5, 29, 113): TWO_LAUNCHES,  # 16385
    (3, 80, 80): TWO_LAUNCHES,
}
CASES = [
    (shape, layout)
    for shape in SHAPES
    for layout in ("contiguous", "channels last")
    if layout == "contiguous" or len(shape) == 3
]


def gradients(shape, dtype=torch.float32, layout="contiguous", norms=NORMS):
    """Samples of these norms, before they are rounded to the type."""
    x = randn(len(norms), *shape, dtype=torch.float64, layout=layout)
    per_sample = (-1, *[1] * len(shape))
    return (
        x / torch.linalg.vector_norm(x.flatten(1), dim=1).view(per_sample) * norms.view(per_sample)
    ).to(dtype)


def penalties(norm, target, one_sided, zero_centred, weight=WEIGHT):
    """The definition, in whatever torch can differentiate."""
    if zero_centred:
        return weight / 2 * norm**2
    excess = norm - target
    return weight * (excess.clamp(min=0) if one_sided else excess) ** 2


def derivative(g, kind, scale=SCALE):
    """By autograd in float64; where g is 0 and the norm has none, 0."""
    g = g.double().requires_grad_()
    flat = g.flatten(1)
    moved = flat.square().sum(1) > 0
    norm = torch.where(moved, torch.where(moved, flat.square().sum(1), 1.0).sqrt(), 0.0)
    values = penalties(norm, *kind)
    if kind[2]:
        values = WEIGHT / 2 * flat.square().sum(1)
    (direction,) = torch.autograd.grad(values.sum() * scale, g)
    return values.detach(), norm.detach(), direction


def assert_right(g, kind, launched):
    """Value, norm and direction of a kernel, against float64."""
    arguments = (WEIGHT, *kind, SCALE)
    found = run_kernel(gradient_penalty_triton, g, *arguments, **launched)
    assert found.direction.dtype == g.dtype
    assert found.direction.stride() == g.stride()
    assert found.value.dtype == found.norm.dtype == torch.float32
    reference = gradient_penalty_reference(g, *arguments)
    for part, own, exact in zip(found, reference, derivative(g, kind), strict=True):
        assert_as_exact(part, own, exact)
    return found


TYPES = [(dtype, kind) for dtype in FLOATS for kind in (KINDS if dtype == torch.float32 else FEW)]


@on_kernels
@pytest.mark.parametrize(("shape", "layout", "dtype", "kind"), in_turn(CASES, TYPES))
def test_value_norm_and_direction_are_those_of_float64(shape, layout, dtype, kind):
    found = assert_right(gradients(shape, dtype, layout), KINDS[kind], SHAPES[shape])
    assert found.norm[2] == 0
    assert (found.direction[2] == 0).all()


@on_kernels
@pytest.mark.parametrize(("kind", "shape"), in_turn(KINDS, [((16385,),), ((3, 9, 7),)]))
def test_gradients_of_zero_have_a_finite_value_and_no_direction(shape, kind):
    target, one_sided, zero_centred = KINDS[kind]
    g = torch.zeros(3, *shape)
    value, norm, direction = run_kernel(
        gradient_penalty_triton, g, WEIGHT, *KINDS[kind], SCALE, **SHAPES.get(shape, TWO_LAUNCHES)
    )
    assert (norm == 0).all()
    assert (direction == 0).all()
    expected = 0.0 if zero_centred or one_sided else WEIGHT * target**2
    assert value.tolist() == pytest.approx([expected] * 3, rel=1e-6)


@on_kernels
@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("shape", [(3, 3, 3), (70,), (4097, 5)], ids=str)
def test_any_number_of_samples(shape, n):
    g = gradients(shape, norms=NORMS[-n:])
    assert_right(g, KINDS["two-sided 1.0"], ONE_LAUNCH if g[0].numel() <= 16384 else TWO_LAUNCHES)


@on_kernels
@pytest.mark.parametrize("zero_centred", [True, False])
def test_no_samples_launch_nothing(zero_centred):
    value, norm, direction = run_kernel(
        gradient_penalty_triton, torch.empty(0, 3, 9, 7), WEIGHT, 1.0, False, zero_centred, SCALE
    )
    assert value.shape == norm.shape == (0,)
    assert direction.shape == (0, 3, 9, 7)


@on_kernels
@pytest.mark.parametrize(
    ("layout", "shape"), in_turn(["channels last", "contiguous"], [((4, 9, 7),), ((4, 80, 80),)])
)
def test_gradients_need_not_be_dense(shape, layout):
    wide = gradients(shape, layout=layout).to(DEVICE)
    for g in (
        wide[:, ::2],
        wide[:, 1:3],
        wide[..., 1:],
        wide[1::2],
        wide.transpose(2, 3),
        wide[:1].expand(5, *shape),
    ):
        before = g.clone()
        found = gradient_penalty_triton(g, WEIGHT, 1.0, False, False, SCALE)
        reference = gradient_penalty_reference(g.cpu(), WEIGHT, 1.0, False, False, SCALE)
        for part, own, exact in zip(
            found, reference, derivative(g.cpu(), (1.0, False, False)), strict=True
        ):
            assert_as_exact(part, own, exact)
        assert torch.equal(g, before)


@on_kernels
@pytest.mark.parametrize(("kind", "shape"), in_turn(KINDS, [((3, 9, 7),), ((3, 80, 80),)]))
def test_direction_is_the_derivative_of_the_mean_penalty(shape, kind):
    """What the engines rely on: with scale 1 / N, it is autograd's gradient of the batch mean."""
    g = gradients(shape, norms=torch.tensor([0.1, 0.7, 3.0], dtype=torch.float64))
    point = g.double().requires_grad_()
    mean = penalties(torch.linalg.vector_norm(point.flatten(1), dim=1), *KINDS[kind]).mean()
    (expected,) = torch.autograd.grad(mean, point)
    value, _, direction = run_kernel(
        gradient_penalty_triton, g, WEIGHT, *KINDS[kind], 1 / 3, **SHAPES[shape]
    )
    assert value.mean().item() == pytest.approx(mean.item(), rel=1e-6)
    torch.testing.assert_close(direction.cpu().double(), expected, rtol=1e-5, atol=1e-8)


@on_kernels
def test_a_sample_does_not_depend_on_its_batch():
    for shape in ((3, 9, 7), (16385,)):
        g = gradients(shape).to(DEVICE)
        whole = gradient_penalty_triton(g, WEIGHT, 1.0, False, False, SCALE)
        for i in range(len(g)):
            alone = gradient_penalty_triton(g[i : i + 1], WEIGHT, 1.0, False, False, SCALE)
            assert all(torch.equal(a[0], b[i]) for a, b in zip(alone, whole, strict=True))


@on_kernels
@pytest.mark.parametrize(
    ("layout", "shape"), in_turn(["contiguous", "channels last"], [((3, 9, 7),), ((3, 80, 80),)])
)
def test_the_operation_keeps_its_schema_and_its_fake(shape, layout):
    g = gradients(shape, layout=layout).to(DEVICE)
    for zero_centred in (True, False):
        assert_op(module._op, g, WEIGHT, 1.0, False, zero_centred, SCALE)


@on_kernels
def test_the_operation_keeps_its_fake_where_gradients_are_not_dense():
    """A compiled step lays out what follows by the fake's strides."""
    for layout in ("contiguous", "channels last"):
        wide = gradients((4, 9, 7), layout=layout).to(DEVICE)
        for g in (wide[:, ::2], wide[..., 1:], wide.transpose(2, 3)):
            assert_op(module._op, g, WEIGHT, 1.0, False, False, SCALE)


# The reference, and which of the two runs.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, *FLOATS], ids=str)
def test_the_reference_is_autograds_derivative(dtype, kind):
    g = gradients((3, 9, 7), dtype)
    found = gradient_penalty_reference(g, WEIGHT, *KINDS[kind], SCALE)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert found.value.dtype == found.norm.dtype == wide
    assert found.direction.dtype == dtype
    for part, exact in zip(found, derivative(g, KINDS[kind]), strict=True):
        rounding = 8 * torch.finfo(part.dtype).eps
        torch.testing.assert_close(
            part.double(), exact, rtol=rounding, atol=rounding * exact.abs().max().item()
        )


@pytest.mark.parametrize("kind", ["zero-centred", "two-sided 1.0", "one-sided 0.4"])
@pytest.mark.parametrize("shape", [(3, 9, 7), (16385,)], ids=str)
def test_reference_or_kernel(monkeypatch, shape, kind):
    launched = SHAPES.get(shape, TWO_LAUNCHES)
    assert_dispatch(
        monkeypatch,
        gradient_penalty,
        gradient_penalty_reference,
        gradients(shape),
        WEIGHT,
        *KINDS[kind],
        SCALE,
        kernel=launched,
    )
    assert_dispatch(
        monkeypatch,
        gradient_penalty,
        gradient_penalty_reference,
        gradients(shape, torch.float64),
        WEIGHT,
        *KINDS[kind],
        SCALE,
        kernel={},
    )
