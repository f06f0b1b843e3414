"""The shuffle's kernel, to the bit its definition. tests/test_random.py has the definition."""

import pytest
import torch

import ganfast.kernels.shuffle as module
from ganfast.kernels.shuffle import permute, permute_reference, permute_triton
from tests.kernels.test_kernels_interpreted import (
    DEVICE,
    assert_dispatch,
    assert_op,
    launching,
    on_kernels,
    run_kernel,
)

# Image counters of a run, around those where a word changes its sign or a float its last place.
COUNTERS = torch.cat(
    [torch.arange(24)] + [torch.arange(2**p - 12, 2**p + 12) for p in (31, 32, 53, 62)]
)


@on_kernels
@pytest.mark.parametrize("seed", [0, 2**64 - 1])
@pytest.mark.parametrize("size", [1, 2, 60_000, 2**31 - 1])
def test_the_kernel_shuffles_as_the_definition(size, seed):
    position, epoch = COUNTERS % size, COUNTERS // size
    given = position, size, None, seed, 7, epoch
    found = run_kernel(permute_triton, *given, _shuffle_kernel=1).cpu()
    assert torch.equal(found, permute_reference(position, size, seed, 7, epoch))
    assert torch.equal(found, module._permuted_on_host(position, size, seed, 7, epoch))


@on_kernels
def test_every_position_may_have_a_size_and_an_epoch_of_its_own():
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randint(1, 2**31, (200,), generator=generator)
    sizes[:4] = torch.tensor([1, 1, 2, 2**31 - 1])
    index = torch.randint(0, 2**62, (200,), generator=generator)
    given = index % sizes, 0, sizes, 3, 1, index // sizes
    found = run_kernel(permute_triton, *given, _shuffle_kernel=1).cpu()
    assert torch.equal(found, permute_reference(index % sizes, sizes, 3, 1, index // sizes))


@on_kernels
def test_the_kernel_makes_permutations():
    position = torch.arange(97)
    for epoch in range(2):
        given = position, 97, None, 5, 0, torch.full_like(position, epoch)
        found = run_kernel(permute_triton, *given, _shuffle_kernel=1).cpu()
        assert torch.equal(found.sort().values, position)


@on_kernels
def test_the_operation_keeps_its_schema_and_its_fake():
    for position in (torch.arange(12)[::2], torch.arange(0)):
        sizes = torch.full_like(position, 12)
        for size, each in ((12, None), (0, sizes)):
            given = position, size, each, -5, 2, torch.zeros_like(position)
            assert_op(module._op, *(x.to(DEVICE) if torch.is_tensor(x) else x for x in given))


@on_kernels
def test_the_public_function_takes_every_seed_and_either_size():
    index = COUNTERS
    for seed in (1, 2**63):
        for size in (97, torch.full_like(index, 97)):
            on_device = size.to(DEVICE) if torch.is_tensor(size) else size
            with launching(_shuffle_kernel=1):
                found = permute(
                    (index % 97).to(DEVICE), on_device, seed, 2**64 - 1, (index // 97).to(DEVICE)
                )
            expected = permute_reference(index % 97, size, seed, 2**64 - 1, index // 97)
            assert torch.equal(found.cpu(), expected)


def test_reference_or_kernel(monkeypatch):
    index = COUNTERS
    public, reference = (
        (lambda position, epoch, f=f: f(position, 60_000, 3, 7, epoch))
        for f in (permute, permute_reference)
    )
    given = index % 60_000, index // 60_000
    assert_dispatch(monkeypatch, public, reference, *given, kernel={"_shuffle_kernel": 1})
