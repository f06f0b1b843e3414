"""Scores from features: Frechet and kernel distance, neighbourhoods, class probabilities.

All are computed in float64. Features come in chunks. Frechet distances keep sums only; comparisons
of neighbours keep features, never pictures and never an N x N matrix.
"""

import warnings
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

_ROWS = 1024  # rows of a distance matrix at a time


class _Identity(nn.Module):
    """Stands for torchmetrics' extractor: features are extracted once, outside."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.num_features = dim

    def forward(self, features: Tensor) -> Tensor:
        return features.double()


class Frechet:
    """Squared Frechet distance of Gaussians to reference features, from sums in float64.

    It is Heusel 2017, arXiv:1706.08500, eq. 6. Own code, because it must run where there is torch
    and little more; the tests hold it against torchmetrics and scipy.

    Args:
        dim: of the features, which come in chunks (n, dim); two or more in all on each side.
    """

    def __init__(self, dim: int, device: torch.device) -> None:
        self._none = torch.zeros(dim + 1, dim + 1, dtype=torch.float64, device=device)
        self._reference, self._added = self._none, self._none

    def reference(self, features: Tensor) -> None:
        self._reference = self._reference + _second_moments(features)

    def add(self, features: Tensor) -> None:
        self._added = self._added + _second_moments(features)

    def distance(self) -> float:
        """The distance of the features added since the last call, which are then forgotten."""
        mean, covariance = _gaussian(self._reference)
        other_mean, other_covariance = _gaussian(self._added)
        self._added = self._none
        # The trace of (A B)^(1/2) is that of (A^(1/2) B A^(1/2))^(1/2), which is symmetric.
        values, vectors = torch.linalg.eigh(covariance)
        root = vectors * values.clamp_min(0).sqrt() @ vectors.T
        cross = torch.linalg.eigvalsh(root @ other_covariance @ root).clamp_min(0).sqrt().sum()
        traces = (mean - other_mean).square().sum() + covariance.trace() + other_covariance.trace()
        return max(0.0, float(traces - 2 * cross))  # of equal sets rounding may leave -1e-12


def _second_moments(features: Tensor) -> Tensor:
    """The sum of (x, 1)(x, 1)^T over features (n, D): count, sums and products, (D + 1, D + 1)."""
    x = torch.cat([features, features.new_ones(len(features), 1)], dim=1).double()
    return x.T @ x


def _gaussian(moments: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and unbiased covariance (D, D), on the host."""
    moments = moments.cpu()  # decompositions of small matrices are no faster on a GPU
    count, mean = moments[-1, -1], moments[-1, :-1] / moments[-1, -1]
    return mean, (moments[:-1, :-1] - count * torch.outer(mean, mean)) / (count - 1)


def kernel_distance(
    reals: Tensor, fakes: Tensor, seed: int = 0, subsets: int = 50
) -> tuple[float, float | None]:
    """Squared MMD with the kernel (x.y / D + 1)^3 of features (N, D) and (M, D), by torchmetrics.

    Unbiased; mean and standard deviation over random subsets of at most 1,000 (Binkowski 2018,
    arXiv:1801.01401). No deviation where every subset is the whole.
    """
    from torchmetrics.image.kid import KernelInceptionDistance

    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore", UserWarning)  # it warns that it keeps all features
        torch.manual_seed(seed)
        size = min(1000, len(reals), len(fakes))
        extractor = _Identity(reals.shape[1])
        metric = KernelInceptionDistance(extractor, subsets=subsets, subset_size=size)
        metric.to(reals.device)
        metric.update(reals, real=True)
        metric.update(fakes, real=False)
        mean, deviation = metric.compute()
    return float(mean), None if size == len(reals) == len(fakes) else float(deviation)


def squared_distances(a: Tensor, b: Tensor) -> Iterable[tuple[int, Tensor]]:
    """(first row, squared distances (rows, M)) of a (N, D) to b (M, D), some rows at a time."""
    centre = b.double().mean(0)  # nothing is lost in |x|^2 + |y|^2 - 2 x.y where both are near 0
    b = b.double() - centre
    lengths = b.square().sum(1)
    for first in range(0, len(a), _ROWS):
        rows = a[first : first + _ROWS].double() - centre
        yield first, (rows.square().sum(1)[:, None] + lengths - 2 * rows @ b.T).clamp_min(0)


def radii(x: Tensor, k: int) -> Tensor:
    """Squared distance of every row of x (N, D) to its k-th nearest other row, float64 (N,)."""
    # k + 1, because the nearest row is the row itself.
    return torch.cat([d.kthvalue(k + 1, dim=1).values for _, d in squared_distances(x, x)])


def neighbourhoods(reals: Tensor, fakes: Tensor, k: int = 5) -> tuple[dict[str, float], Tensor]:
    """How far fakes (M, D) lie among reals (N, D) and reals among fakes; more than k of each.

    precision: share of fakes inside the k-th-neighbour ball of some real; recall: the other way
    round (Kynkaanniemi 2019, arXiv:1904.06991). density: balls of reals a fake lies in, over k;
    coverage: share of reals whose ball holds a fake (Naeem 2020, arXiv:2002.09797).

    Returns:
        The scores, and which reals are recalled, bool (N,).
    """
    around_reals, around_fakes = radii(reals, k), radii(fakes, k)
    # Of every fake: the balls of reals that it lies in.
    inside = torch.zeros(len(fakes), dtype=torch.long, device=reals.device)
    recalled, covered = [], []
    for first, d in squared_distances(reals, fakes):
        within = d <= around_reals[first : first + len(d), None]
        inside += within.sum(0)
        covered.append(within.any(1))
        recalled.append((d <= around_fakes).any(1))
    found = torch.cat(recalled)
    scores = {
        "precision": float((inside > 0).double().mean()),
        "recall": float(found.double().mean()),
        "density": float(inside.double().mean() / k),
        "coverage": float(torch.cat(covered).double().mean()),
    }
    return scores, found


def nearest(
    x: Tensor, chunks: Iterable[Tensor], itself: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The nearest row among chunks (m, D) for every row of x (N, D).

    Args:
        itself: position of every row of x among the chunks, int64 (N,), which is passed over; -1
            where it is not there.

    Returns:
        Distances, float64 (N,), and positions, int64 (N,).
    """
    best = torch.full((len(x),), torch.inf, dtype=torch.float64, device=x.device)
    where = torch.zeros(len(x), dtype=torch.long, device=x.device)
    start = 0
    for chunk in chunks:
        for first, d in squared_distances(x, chunk):
            rows = slice(first, first + len(d))
            if itself is not None:
                own = itself[rows] - start
                here = ((own >= 0) & (own < len(chunk))).nonzero()[:, 0]
                d[here, own[here]] = torch.inf
            value, position = d.min(1)
            closer = value < best[rows]
            best[rows] = torch.where(closer, value, best[rows])
            where[rows] = torch.where(closer, position + start, where[rows])
        start += len(chunk)
    return best.sqrt(), where


class ClassScores:
    """What class probabilities tell of pictures, summed up chunk by chunk."""

    def __init__(self, classes: int) -> None:
        self.counts, self.mean = np.zeros(classes, np.int64), np.zeros(classes)
        self.entropy = 0.0  # sum over pictures of sum p log p
        self.right, self.asked = 0, 0

    def add(self, logits: Tensor, labels: np.ndarray | None) -> None:
        """Logits (N, K) of some pictures, and the classes that were asked for, where some were."""
        log_p = logits.double().log_softmax(1)
        p = log_p.exp()
        classes = log_p.argmax(1).cpu().numpy()
        self.counts += np.bincount(classes, minlength=len(self.counts))
        self.mean += p.sum(0).cpu().numpy()
        self.entropy += float((p * log_p).sum())
        if labels is not None:
            self.right += int((classes == labels).sum())
            self.asked += len(labels)

    def scores(self, reals: np.ndarray) -> dict[str, float]:
        """Scores against the class counts of the reals, (K,).

        classifier_score: exp of the mean KL of p(class | picture) from p(class), 1 to K (Salimans
            2016, arXiv:1606.03498).
        kl_uniform, kl_data: KL of the classes the judge sees from uniform, and from those of the
            reals, in nats.
        modes: how many classes appear.
        label_accuracy: share of pictures that show the class asked for.
        """
        n = self.counts.sum()
        mean = self.mean / n
        marginal = float((mean[mean > 0] * np.log(mean[mean > 0])).sum())
        scores = {
            "classifier_score": float(np.exp(self.entropy / n - marginal)),
            "kl_uniform": divergence(self.counts, np.ones(len(self.counts))),
            "kl_data": divergence(self.counts, reals),
            "modes": float((self.counts > 0).sum()),
        }
        return scores | ({"label_accuracy": self.right / self.asked} if self.asked else {})


def divergence(counts: np.ndarray, reference: np.ndarray) -> float:
    """KL(counts || reference) of two histograms (K,), in nats: the reverse KL of a generator.

    It is infinite where a class that counts has is missing from the reference.
    """
    p, q = counts / counts.sum(), reference / reference.sum()
    seen = p > 0
    with np.errstate(divide="ignore"):
        return float((p[seen] * np.log(p[seen] / q[seen])).sum())
