"""The kernel that draws: NumPy's Philox and uniforms bit for bit, normals to their last place."""

import numpy as np
import pytest
import torch

import ganfast.kernels.latents as module
from ganfast import latents as host
from ganfast.kernels.latents import (
    draw_triton,
    latents,
    latents_reference,
    uniforms,
    uniforms_reference,
)
from tests.kernels.test_kernels_interpreted import (
    DEVICE,
    assert_dispatch,
    assert_op,
    launching,
    on_kernels,
    run_kernel,
)

# Where an argument's type or sign changes.
SEEDS = [0, 1, 42, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1]
INDEX = torch.tensor([0, 1, 2, 2**32 - 1, 2**32, 2**40, 2**53 + 1, 2**63 - 1])


def draw(seed, stream, index, count, normal):
    return run_kernel(module.draw_triton, seed, stream, index, count, normal, _draw_kernel=1).cpu()


def numpy_words(seed, stream, index, count):
    generator = np.random.Philox(
        key=np.array([seed, stream], np.uint64), counter=np.array([0, index, 0, 0], np.uint64)
    )
    return generator.random_raw(count)


def assert_numpys_uniforms(seed, stream, count):
    """The upper 53 bits of a word, exactly: a wrong bit of key, counter or product reaches them."""
    words = np.stack([numpy_words(seed, stream, int(i), count) for i in INDEX])
    found = draw(seed, stream, INDEX, count, False)
    assert found.dtype == torch.float64
    assert found.tolist() == ((words >> np.uint64(11)) / 2.0**53).tolist()


def assert_references_normals(seed, stream, index, count, most_off=0):
    found = draw(seed, stream, index, count, True)
    expected = latents_reference(seed, stream, index, count)
    assert found.dtype == torch.float32
    assert found.shape == expected.shape
    assert found.isfinite().all(), "not written"
    # An int32 has no room for a wrong sign.
    steps = (found.view(torch.int32).long() - expected.view(torch.int32).long()).abs()
    assert steps.max() <= 1
    assert (steps > 0).sum() <= most_off


@on_kernels
@pytest.mark.parametrize("stream", [0, 1, 13, 2**64 - 1])
@pytest.mark.parametrize("seed", SEEDS)
def test_uniforms_are_the_words_of_numpys_philox(seed, stream):
    assert_numpys_uniforms(seed, stream, 7)


@on_kernels
@pytest.mark.parametrize("count", range(1, 10))
def test_any_number_of_columns(count):
    """Rows end in the middle of a block of four words."""
    assert_numpys_uniforms(7, 3, count)
    assert_references_normals(7, 3, INDEX, count)


@on_kernels
@pytest.mark.parametrize("rows", [500, pytest.param(2000, marks=pytest.mark.accept)])
def test_normals_are_those_of_the_reference_but_for_a_last_place_in_a_hundred_thousand(rows):
    assert_references_normals(11, 0, torch.arange(rows), 60, most_off=1)


@on_kernels
@pytest.mark.parametrize("seed", SEEDS)
def test_normals_of_every_seed_and_of_large_indices(seed):
    assert_references_normals(seed, 2, INDEX, 6)


@on_kernels
def test_normals_are_those_of_the_exported_sampler():
    for seed, stream in ((3, 0), (2**64 - 1, 5)):
        found = draw(seed, stream, INDEX, 9, True).numpy()
        np.testing.assert_array_max_ulp(
            found, host.latents(seed, INDEX.numpy(), 9, stream=stream), 1
        )
        assert (found == host.latents(seed, INDEX.numpy(), 9, stream=stream)).mean() > 0.97


@on_kernels
@pytest.mark.parametrize("normal", [True, False])
def test_a_row_does_not_depend_on_the_batch_it_is_drawn_in(normal):
    index = torch.arange(5, 305)
    whole = draw(9, 4, index, 5, normal)
    for i in (0, 1, 63, 64, 150, 299):
        assert torch.equal(draw(9, 4, index[i : i + 1], 5, normal)[0], whole[i])
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    assert torch.equal(draw(9, 4, index[order], 5, normal), whole[order])
    assert torch.equal(draw(9, 4, index, 3, normal), whole[:, :3])


@on_kernels
def test_seed_stream_and_index_each_draw_their_own():
    rows = torch.cat(
        [draw(seed, stream, torch.tensor([0, 1]), 4, False) for seed in (0, 1) for stream in (0, 1)]
    )
    assert len(rows.flatten().unique()) == rows.numel()
    assert not torch.equal(draw(0, 1, INDEX, 4, False), draw(1, 0, INDEX, 4, False))


@on_kernels
def test_no_rows_launch_nothing():
    for normal in (True, False):
        assert run_kernel(
            draw_triton, 0, 0, torch.empty(0, dtype=torch.int64), 5, normal
        ).shape == (0, 5)


@on_kernels
def test_indices_need_not_be_dense():
    wide = torch.arange(40).to(DEVICE)
    for index in (wide[::3], wide.view(8, 5)[:, 2], wide[3:4].expand(6)):
        with launching(_draw_kernel=1):
            found = draw_triton(5, 0, index, 5, False)
        assert torch.equal(found.cpu(), uniforms_reference(5, 0, index.cpu(), 5))


@on_kernels
@pytest.mark.parametrize("normal", [True, False])
def test_the_operation_keeps_its_schema_and_its_fake(normal):
    for index in (torch.arange(6), torch.arange(12)[::2], torch.arange(0)):
        assert_op(module._draw, -5, 2, index.to(DEVICE), 5, normal)


@on_kernels
@pytest.mark.parametrize("seed", [0, 2**63, 2**64 - 1])
@pytest.mark.parametrize("stream", [0, 1, 2**63, 2**64 - 1])
def test_the_public_functions_take_every_seed_and_stream(seed, stream):
    with launching(_draw_kernel=2):
        drawn = latents(seed, stream, INDEX.to(DEVICE), 5)
        uniform = uniforms(seed, stream, INDEX.to(DEVICE), 5)
    assert torch.equal(uniform.cpu(), uniforms_reference(seed, stream, INDEX, 5))
    torch.testing.assert_close(
        drawn.cpu(), latents_reference(seed, stream, INDEX, 5), rtol=2e-7, atol=0
    )


# Which of the two runs; tests/test_random.py has the reference itself.


def test_reference_or_kernel(monkeypatch):
    for public, reference in ((latents, latents_reference), (uniforms, uniforms_reference)):
        for seed in (3, 2**64 - 1):
            drawn, expected = (
                (lambda index, f=f, s=seed: f(s, 4, index, 5)) for f in (public, reference)
            )
            assert_dispatch(monkeypatch, drawn, expected, INDEX, kernel={"_draw_kernel": 1})
