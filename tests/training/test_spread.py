"""The spread of fakes beside that of reals, against numpy in float64; what it costs."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from ganfast.training.spread import spread, thumbnails

RNG = np.random.default_rng(0)


def pictures(*shape):
    return torch.from_numpy(RNG.uniform(-1, 1, shape)).float()


# Odd sides, colour, a side below the thumbnail's, and channels last.
@pytest.mark.parametrize("shape", [(6, 1, 28, 28), (5, 3, 17, 17), (4, 3, 6, 6), (2, 1, 64, 64)])
def test_spread_is_the_mean_distance_to_the_nearest_other_picture_over_that_of_reals(shape):
    real, fake = pictures(*shape), 0.3 * pictures(*shape)
    fake[1] = fake[0] + 0.01
    step = max(1, shape[2] // 8)
    means = []
    for x in (real, fake):
        pixels = x[:, :, step // 2 :: step, step // 2 :: step].double().flatten(1).numpy()
        distances = cdist(pixels, pixels)
        np.fill_diagonal(distances, np.inf)
        means.append(distances.min(1).mean())
    found = spread(thumbnails(real.to(memory_format=torch.channels_last), fake))
    assert found.shape == ()
    assert found.item() == pytest.approx(means[1] / means[0], rel=1e-5)


def test_repetition_shows_however_many_pictures_are_repeated():
    real = pictures(64, 1, 28, 28)
    for several in (1, 8, 16):
        fake = real[:several].repeat(64 // several, 1, 1, 1)
        assert spread(thumbnails(real, fake)).item() == 0, several
    assert spread(thumbnails(real, real.flip(0))).item() == pytest.approx(1, rel=1e-6)
    assert spread(thumbnails(real[:1].repeat(64, 1, 1, 1), real)).isfinite()


def test_a_thumbnail_is_small_and_made_without_a_look_at_numbers():
    small = thumbnails(pictures(3, 3, 128, 128), pictures(3, 3, 128, 128))
    assert small.shape == (2, 3, 3, 8, 8)
    assert thumbnails(*torch.empty(2, 3, 1, 28, 28, device="meta")).shape == (2, 3, 1, 9, 9)
