"""Spread by cluster and recall by class, against numpy in float64 and numbers done by hand."""

import numpy as np
import pytest
import torch

from ganfast.evaluate.tails import (
    class_recalls,
    cluster_centres,
    cluster_spread,
    clusters_of,
    spreads,
)

RNG = np.random.default_rng(0)


def tensor(x):
    return torch.from_numpy(np.asarray(x, dtype=np.float64))


def test_spread_by_hand():
    # Two clusters on a line. Reals: deviations 1 and 3 from their means; fakes: half, and one row.
    centres = tensor([[0.0], [100.0]])
    reals = tensor([[-1.0], [1.0], [97.0], [103.0], [100.0]])
    fakes = tensor([[-0.5], [0.5], [90.0]])
    assert spreads(reals, centres).tolist() == pytest.approx([2**0.5, 3.0], rel=1e-12)
    assert spreads(fakes, centres).tolist() == pytest.approx([0.5**0.5, 0.0], rel=1e-12)
    assert cluster_spread(reals, fakes, centres) == pytest.approx((0.5 + 0.0) / 2, rel=1e-12)
    assert cluster_spread(reals, reals, centres) == 1
    assert cluster_spread(reals, 100 * fakes, centres) <= 1  # more than reals counts as equal
    assert cluster_spread(tensor([[0.0], [0.0], [100.0]]), fakes, centres) == 1


def test_spreads_equal_numpy():
    x, centres = RNG.standard_normal((2300, 7)), RNG.standard_normal((9, 7))
    where = ((x[:, None] - centres) ** 2).sum(2).argmin(1)
    assert clusters_of(tensor(x), tensor(centres)).tolist() == where.tolist()
    expected = [np.sqrt(x[where == k].var(0, ddof=1).sum()) for k in range(9)]
    assert spreads(tensor(x), tensor(centres)).tolist() == pytest.approx(expected, rel=1e-9)


def test_centres_are_where_k_means_stops_and_rare_pictures_have_their_own():
    common, rare = RNG.standard_normal((490, 4)), 40 + 0.1 * RNG.standard_normal((10, 4))
    reals = np.concatenate([common, rare])
    centres = cluster_centres(tensor(reals), seed=3)
    assert centres.shape == (25, 4)
    assert torch.equal(centres, cluster_centres(tensor(reals), seed=3))
    where = clusters_of(tensor(reals), centres).numpy()
    assert set(where[490:]).isdisjoint(where[:490])
    means = np.stack([reals[where == k].mean(0) for k in range(25) if (where == k).any()])
    assert len(means) >= 24
    found = centres.numpy()[np.unique(where)]
    assert np.abs(found - means).max() < 0.2, "each centre is about the mean of its rows"
    # Without the rare ones, or with one of them repeated, the score falls by their share of the
    # clusters of two reals or more, one of which has no spread to miss.
    without, repeated = reals[:490], np.concatenate([common, np.repeat(rare[:1], 10, 0)])
    several = {k for k in range(25) if (where == k).sum() > 1}
    lost = len(several & set(where[490:])) / len(several)
    for fakes in (without, repeated):
        score = cluster_spread(tensor(reals), tensor(fakes), centres)
        assert score == pytest.approx(1 - lost, abs=1e-6)
    assert lost >= 1 / 25


def test_as_many_clusters_as_pictures_allow():
    assert len(cluster_centres(tensor(RNG.standard_normal((100, 2))))) == 5
    assert len(cluster_centres(tensor(RNG.standard_normal((2000, 2))))) == 50
    assert len(cluster_centres(tensor(np.ones((100, 2))))) == 1


def test_recall_of_classes_by_hand():
    recalled = torch.tensor([True, False, True, True, False])
    labels = np.array([0, 0, 2, 2, 0])
    assert class_recalls(recalled, labels, 4) == [pytest.approx(1 / 3), None, 1, None]
