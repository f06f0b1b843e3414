"""Scores in which rare pictures count as much as common ones: spread by cluster, recall by class.

Both are computed in float64.
"""

import numpy as np
import torch
from torch import Tensor

from ganfast.evaluate.scores import squared_distances

_MOST_CLUSTERS = 50
_OF_CLUSTER = 20  # reals that a cluster has on average, at least
_ROUNDS = 20  # of k-means


def cluster_centres(reals: Tensor, seed: int = 0) -> Tensor:
    """Centres of features (N, D) by k-means, float64 (K, D), K = N / 20 and at most 50.

    The first centres are drawn far from each other (k-means++), so that rare pictures which differ
    from the others get a cluster of their own.
    """
    count = min(_MOST_CLUSTERS, max(1, len(reals) // _OF_CLUSTER))
    random, x = np.random.default_rng(seed), reals.double()
    centres = x[random.integers(len(x))][None]
    far = (x - centres).square().sum(1)
    while len(centres) < count and float(far.sum()) > 0:
        share = far.cpu().numpy().cumsum()
        chosen = int(np.searchsorted(share, random.random() * share[-1], side="right"))
        centres = torch.cat([centres, x[min(chosen, len(x) - 1)][None]])
        far = torch.minimum(far, (x - centres[-1]).square().sum(1))
    for _ in range(_ROUNDS):
        where = clusters_of(x, centres)
        sums = torch.zeros_like(centres).index_add(0, where, x)
        counts = torch.bincount(where, minlength=len(centres))[:, None]
        moved = torch.where(counts > 0, sums / counts.clamp_min(1), centres)
        if torch.equal(moved, centres):
            break
        centres = moved
    return centres


def clusters_of(x: Tensor, centres: Tensor) -> Tensor:
    """The nearest of the centres (K, D) to each row of x (N, D), int64 (N,)."""
    return torch.cat([d.argmin(1) for _, d in squared_distances(x, centres)])


def spreads(x: Tensor, centres: Tensor) -> Tensor:
    """Root mean squared distance of the rows in each cluster to their own mean, float64 (K,).

    It is unbiased before the root, and 0 where a cluster has one row or none.
    """
    x, where = x.double(), clusters_of(x, centres)
    counts = torch.bincount(where, minlength=len(centres))
    sums = torch.zeros_like(centres).index_add(0, where, x)
    residual = (x - (sums / counts.clamp_min(1)[:, None])[where]).square().sum(1)
    squares = torch.zeros_like(centres[:, 0]).index_add(0, where, residual)
    return (squares / (counts - 1).clamp_min(1)).sqrt()


def cluster_spread(reals: Tensor, fakes: Tensor, centres: Tensor) -> float:
    """Mean over clusters of the spread of fakes (M, D) over that of reals (N, D), each at most 1.

    A cluster without fakes counts 0, so that a mode that the generator left out costs 1 / K however
    rare it is. 1 = as varied as the reals everywhere; no labels are needed.
    """
    of_reals, of_fakes = spreads(reals, centres), spreads(fakes, centres)
    known = of_reals > 0
    if not bool(known.any()):
        return 1.0  # all reals of every cluster are equal: nothing to vary in
    return float((of_fakes[known] / of_reals[known]).clamp(max=1).mean())


def class_recalls(recalled: Tensor, labels: np.ndarray, classes: int) -> list[float | None]:
    """The share of each class's reals that are recalled; None for a class without any.

    Args:
        recalled: of `scores.neighbourhoods`, bool (N,).
        labels: classes of the same reals, int64 (N,).
    """
    hits = np.bincount(labels, weights=recalled.double().cpu().numpy(), minlength=classes)
    counts = np.bincount(labels, minlength=classes)
    return [hit / count if count else None for hit, count in zip(hits, counts, strict=True)]
