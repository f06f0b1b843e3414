"""The kernel that draws: NumPy's Philox and uniforms bit for bit, normals to their last place."""

from functools import partial

import numpy as np
import pytest
import torch

import ganfast.kernels.latents as module
from ganfast import latents as host
from ganfast.kernels.latents import KINDS, latents, latents_reference, uniforms_reference
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


def draw(seed, stream, index, count, kind="normal"):
    def drawn(index):
        out = torch.empty(1, len(index), count, dtype=KINDS[kind][0], device=index.device)
        module.draw_triton(kind, seed, stream, index, out)
        return out[0]

    return run_kernel(drawn, index, _draw_kernel=1).cpu()


def numpy_words(seed, stream, index, count):
    generator = np.random.Philox(
        key=np.array([seed, stream], np.uint64), counter=np.array([0, index, 0, 0], np.uint64)
    )
    return generator.random_raw(count)


def assert_numpys_words(seed, stream, count):
    """52 bits of each of ``count`` words, exactly, and what the upper ones of them make: a wrong
    bit of key, counter or product reaches them."""
    words = np.stack([numpy_words(seed, stream, int(i), count) for i in INDEX])
    grains = draw(seed, stream, INDEX, 4 * count, "grain").numpy()
    assert grains.dtype == np.float32
    parts = (grains.reshape(*words.shape, 4) * 2.0**13).astype(np.uint64)
    found = sum(parts[:, :, k] << np.uint64(51 - 13 * k) for k in range(4))
    np.testing.assert_array_equal(found, words >> np.uint64(12) << np.uint64(12))
    uniform = draw(seed, stream, INDEX, count, "uniform").numpy()
    assert uniform.dtype == np.float32
    np.testing.assert_array_equal(uniform, (words >> np.uint64(40)) / 2.0**24)
    np.testing.assert_array_equal(draw(seed, stream, INDEX, count, "coin"), words < 2**63)


def assert_references_normals(seed, stream, index, count, most_off=0):
    found = draw(seed, stream, index, count)
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
    assert_numpys_words(seed, stream, 7)


@on_kernels
@pytest.mark.parametrize("count", range(1, 10))
def test_any_number_of_columns(count):
    """Rows end in the middle of a block of four words."""
    assert_numpys_words(7, 3, count)
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
        found = draw(seed, stream, INDEX, 9).numpy()
        np.testing.assert_array_max_ulp(
            found, host.latents(seed, INDEX.numpy(), 9, stream=stream), 1
        )
        assert (found == host.latents(seed, INDEX.numpy(), 9, stream=stream)).mean() > 0.97


@on_kernels
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_does_not_depend_on_the_batch_it_is_drawn_in(kind):
    index = torch.arange(5, 305)
    whole = draw(9, 4, index, 5, kind)
    for i in (0, 1, 63, 64, 150, 299):
        assert torch.equal(draw(9, 4, index[i : i + 1], 5, kind)[0], whole[i])
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    assert torch.equal(draw(9, 4, index[order], 5, kind), whole[order])
    assert torch.equal(draw(9, 4, index, 3, kind), whole[:, :3])


@on_kernels
def test_seed_stream_and_index_each_draw_their_own():
    rows = torch.cat(
        [draw(seed, stream, torch.tensor([0, 1]), 4) for seed in (0, 1) for stream in (0, 1)]
    )
    assert len(rows.flatten().unique()) == rows.numel()
    assert not torch.equal(draw(0, 1, INDEX, 4), draw(1, 0, INDEX, 4))


@on_kernels
@pytest.mark.parametrize("kind", KINDS)
def test_groups_of_rows_may_lie_apart(kind):
    """As the tables of a training: what lies between is not touched."""
    table = torch.zeros(4, 7, 11, dtype=KINDS[kind][0], device=DEVICE)
    index = torch.arange(90, 90 + 4 * 5)
    with launching(_draw_kernel=1):
        module.draw_triton(kind, 5, 0, index.to(DEVICE), table[:, :5])
    assert torch.equal(table[:, :5].reshape(20, 11).cpu(), draw(5, 0, index, 11, kind))
    assert not table[:, 5:].any()


@on_kernels
def test_no_rows_launch_nothing():
    with launching():
        assert latents(0, 0, torch.empty(0, dtype=torch.int64, device=DEVICE), 5).shape == (0, 5)


@on_kernels
def test_indices_need_not_be_dense():
    wide = torch.arange(40).to(DEVICE)
    for index in (wide[::3], wide.view(8, 5)[:, 2], wide[3:4].expand(6)):
        with launching(_draw_kernel=1):
            found = module.uniforms(5, 0, index, 5)
        assert torch.equal(found.cpu(), module.uniforms_reference(5, 0, index.cpu(), 5))


@on_kernels
@pytest.mark.parametrize("kind", KINDS)
def test_the_operation_keeps_its_schema_and_its_fake(kind):
    for index in (torch.arange(6), torch.arange(12)[::2], torch.arange(0)):
        out = torch.zeros(1, len(index), 5, dtype=KINDS[kind][0], device=DEVICE)
        assert_op(module._draw, kind, -5, 2, index.to(DEVICE), out)


@on_kernels
@pytest.mark.parametrize("seed", [0, 2**63, 2**64 - 1])
@pytest.mark.parametrize("stream", [0, 1, 2**63, 2**64 - 1])
def test_the_public_functions_take_every_seed_and_stream(seed, stream):
    with launching(_draw_kernel=2):
        drawn = latents(seed, stream, INDEX.to(DEVICE), 5)
        uniform = module.uniforms(seed, stream, INDEX.to(DEVICE), 5)
    assert torch.equal(uniform.cpu(), module.uniforms_reference(seed, stream, INDEX, 5))
    torch.testing.assert_close(
        drawn.cpu(), latents_reference(seed, stream, INDEX, 5), rtol=2e-7, atol=0
    )


# Which of the two runs; tests/test_random.py has the reference itself.


@pytest.mark.parametrize("name", ["latents", "uniforms", "coins", "grains"])
def test_reference_or_kernel(name, monkeypatch):
    public, reference = (getattr(module, n) for n in (name, f"{name}_reference"))
    for seed in (3, 2**64 - 1):
        drawn, expected = (
            (lambda index, f=f, s=seed: f(s, 4, index, 5)) for f in (public, reference)
        )
        assert_dispatch(monkeypatch, drawn, expected, INDEX, kernel={"_draw_kernel": 1})


@pytest.mark.parametrize("name", ["latents", "uniforms", "coins"])
def test_numbers_go_where_they_are_wanted(name):
    function = getattr(module, name)
    for table in (torch.zeros(1, 8, 3), torch.zeros(2, 9, 3)[:, :4]):
        out = (table.bool() if name == "coins" else table).to(DEVICE)
        assert function(4, 1, INDEX.to(DEVICE), 3, out) is out
        assert torch.equal(out.reshape(8, 3), function(4, 1, INDEX.to(DEVICE), 3))


@on_kernels
def test_blocks_of_all_rows_are_counted_in_64_bits(monkeypatch):
    """2^16 rows of 2^16 blocks are 2^32, of which the first program writes 128."""
    monkeypatch.setattr(module, "launch", partial(first_program, module.launch))
    written = torch.zeros(1 << 18, device=DEVICE)  # every row, as far as memory goes
    whole = written.as_strided((1, 1 << 16, 1 << 18), (0, 0, 1))
    index = torch.zeros(1 << 16, dtype=torch.int64, device=DEVICE)
    module.draw_triton("uniform", 5, 0, index, whole)
    assert torch.equal(written[:512].cpu(), uniforms_reference(5, 0, torch.tensor([0]), 512)[0])
    assert not written[512:].any()


def first_program(launch, kernel, grid, *args, **constants):
    launch(kernel, (1,), *args, **constants)
