"""The kernel that gathers training pictures, to the bit what torch makes of them on a CPU."""

import pytest
import torch

import ganfast.kernels.pictures as module
from ganfast.kernels.pictures import gather_pictures_reference, gather_pictures_triton
from tests.kernels.test_kernels_interpreted import DEVICE, assert_op, on_kernels, run_kernel


def stored(count, channels, height, width):
    """Every grey level, in no order that a gather could keep by accident."""
    generator = torch.Generator().manual_seed(count)
    shape = (count, channels, height, width)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


POSITION = torch.tensor([4, 0, 8, 8, 3])
MIRRORED = torch.tensor([True, False, True, False, False])


@on_kernels
@pytest.mark.parametrize("mirrored", [None, MIRRORED], ids=["as stored", "mirrored"])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 64, 64), (3, 5, 7), (4, 1, 1), (2, 33, 40)])
def test_pictures_are_gathered_scaled_and_mirrored(shape, mirrored):
    given = stored(9, *shape), None, POSITION, mirrored
    found = run_kernel(gather_pictures_triton, *given, _pictures_kernel=1).cpu()
    expected = gather_pictures_reference(*given)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(found, expected)
    first = given[0][4].double() / 127.5 - 1
    first = first if mirrored is None else first.flip(2)
    torch.testing.assert_close(found[0].double(), first, rtol=0, atol=2.0**-24)


@on_kernels
@pytest.mark.parametrize("mirrored", [None, MIRRORED], ids=["as stored", "mirrored"])
def test_each_channel_may_be_an_image_of_its_own(mirrored):
    """As the three digits of a picture of stacked-mnist."""
    planes = torch.tensor([[k % 6, (k * 5) % 6, (k + 2) % 6] for k in range(9)])
    given = stored(6, 1, 28, 28), planes, POSITION, mirrored
    found = run_kernel(gather_pictures_triton, *given, _pictures_kernel=1).cpu()
    assert torch.equal(found, gather_pictures_reference(*given))


@on_kernels
def test_the_operation_keeps_its_schema_and_its_fake():
    images = stored(9, 3, 8, 8).to(DEVICE)
    for position in (POSITION, POSITION[:0]):
        for mirrored in (None, MIRRORED[: len(position)].to(DEVICE)):
            assert_op(module._op, images, None, position.to(DEVICE), mirrored)
