"""What a classifier learns from drawn pictures, in place of real ones or beside them.

The classifiers of a comparison have the same weights to begin with and take the same number of
steps. Their batches show the same classes in the same order. They differ in the share of pictures
that a generator drew: 0 is resampling of the reals, 1 is the score CAS (Ravuri 2019,
arXiv:1905.10887).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ganfast.data import Pack
from ganfast.data.build import Progress
from ganfast.data.resident import ResidentData
from ganfast.errors import InputError
from ganfast.evaluate.classifier import Batches, Classifier, as_input, fitted, moved
from ganfast.images import Pictures
from ganfast.latents import Purpose
from ganfast.random import normal, uniform

VERSION = 1  # of the definitions below: part of the protocol
STEPS, BATCH = 500, 128  # of every classifier
# Share of drawn pictures in what a classifier learns from.
SHARES = {"real, resampled": 0.0, "real + drawn": 0.5, "drawn only": 1.0}
COLUMNS = ("all", "rarest third", "all, noisy", "rarest third, noisy")
NOISE = 0.3  # standard deviation of the noise on test pictures, which span [-1, 1]
_CHUNK = 500
Draw = Callable[[int, int, NDArray[np.int64]], Pictures]


@dataclass(frozen=True)
class Tests:
    """Pictures that neither the generator nor a classifier was trained on.

    Attributes:
        pictures: uint8 (N, C, H, W).
        labels: int64 (N,).
        origin: what they are, in words.
    """

    pictures: NDArray[np.uint8]
    labels: NDArray[np.int64]
    origin: str

    def noisy(self) -> "Tests":
        """The same with noise, rounded to 8 bits; that of a picture depends on its place alone."""
        parts = []
        for start in range(0, len(self.pictures), _CHUNK):
            some = self.pictures[start : start + _CHUNK]
            place = torch.arange(start, start + len(some))
            numbers = normal(0, Purpose.JUDGE, place, int(np.prod(some.shape[1:]))).numpy()
            noise = numbers.reshape(some.shape) * (NOISE * 127.5)
            parts.append(np.rint(some + noise).clip(0, 255).astype(np.uint8))
        return replace(self, pictures=np.concatenate(parts))


def unseen(pack: Pack, test: Pack | None, reals: ResidentData) -> Tests:
    """The test split; of a set that is not divided the pictures that its imbalance left out.

    Raises:
        InputError: every picture was trained on.
    """
    if test is not None and test.labels is not None:
        if test.info.classes != pack.info.classes:
            raise InputError(
                f"the test split of {pack.info.name} has other classes than its training pictures"
            )
        return Tests(np.asarray(test.images), test.labels, "test split")
    if reals.subset is None:
        raise InputError(
            f"{pack.info.name} has no test split, and the run was trained on all of it: give "
            "a folder with train/ and test/, or train with --imbalance, which leaves pictures out"
        )
    rest = np.setdiff1d(np.arange(len(pack.images)), reals.subset.cpu().numpy())
    assert pack.labels is not None
    return Tests(np.asarray(pack.images[rest]), pack.labels[rest], "left out by --imbalance")


class Comparison:
    """Classifiers that learnt from reals, from drawn pictures, and from both.

    Args:
        reals: the generator's own training pictures, balanced.
        tests: what the classifiers are asked.
        draw: pictures start .. stop, uint8 (N, H, W, C), of classes int64 (N,).
        count: pictures that are drawn for each seed.
        flip: whether pictures may be mirrored.
    """

    def __init__(
        self, reals: ResidentData, tests: Tests, draw: Draw, count: int, flip: bool
    ) -> None:
        assert reals.class_counts is not None
        self.reals, self.draw, self.flip = reals, draw, flip
        self.count = max(1, count // reals.classes) * reals.classes
        self.counts: list[int] = reals.class_counts.tolist()
        self.tests = tests, tests.noisy()
        rare = np.isin(tests.labels, rarest_third(self.counts))
        self._shown = np.ones_like(rare), rare

    @property
    def protocol(self) -> dict[str, Any]:
        """What the accuracies depend on, beside the pictures."""
        return {
            "version": VERSION,
            "steps": STEPS,
            "batch": BATCH,
            "noise": NOISE,
            "shares": SHARES,
            "drawn_per_class": self.count // self.reals.classes,
            "real_of_each_class": self.counts,
            "rarest_third": rarest_third(self.counts),
            "tests": f"{len(self.tests[0].labels)}, {self.tests[0].origin}",
        }

    def drawn(self, seed: int) -> NDArray[np.uint8]:
        """Drawn pictures (count, C, H, W), the classes in turn; no two seeds have one in common."""
        labels = np.arange(self.count) % self.reals.classes
        pictures = self.draw(seed * self.count, (seed + 1) * self.count, labels)
        return np.ascontiguousarray(pictures.transpose(0, 3, 1, 2))

    def accuracies(self, seed: int, progress: Progress | None = None) -> dict[str, list[float]]:
        """For each of `SHARES` the accuracies of `COLUMNS`, by one classifier each."""
        drawn, found = self.drawn(seed), {}
        for name, share in SHARES.items():
            net = learned(self.reals, drawn, share, seed, self.flip, progress)
            rights = [right(net, tests) for tests in self.tests]
            found[name] = [float(r[some].mean()) for r in rights for some in self._shown]
        return found


def learned(
    reals: ResidentData,
    drawn: NDArray[np.uint8],
    share: float,
    seed: int,
    flip: bool,
    progress: Progress | None = None,
) -> Classifier:
    """A classifier after `STEPS` steps.

    Args:
        reals: balanced: every class is shown equally often.
        drawn: uint8 (N, C, H, W): picture i is of class i modulo the number of classes.
        share: probability that a drawn picture of its class takes the place of a real one.
        seed: of the weights, of the order and of the shifts.
    """
    device, classes = reals.device, reals.classes

    def batches() -> Batches:
        for step in range(STEPS):
            # seeds read the endless stream of reals at other places
            index = torch.arange(BATCH, device=device) + (seed * STEPS + step) * BATCH
            position = reals.positions(index)
            x, labels = reals.pictures(position, None), reals.labels_at(position)
            assert labels is not None
            u = uniform(seed, Purpose.JUDGE, index, 5)
            which = (u[:, 1] * (len(drawn) // classes)).long() * classes + labels
            fakes = as_input(torch.from_numpy(drawn[which.cpu().numpy()]), device)
            x = torch.where((u[:, 0] < share)[:, None, None, None], fakes, x)
            move = (u[0, 2:].cpu() * torch.tensor([5, 5, 2])).long()
            yield moved(x, move, flip), labels

    size, channels = drawn.shape[2], drawn.shape[1]
    return fitted(size, channels, classes, seed, device, STEPS, batches(), progress)


@torch.no_grad()
def right(net: Classifier, tests: Tests) -> NDArray[np.bool_]:
    """Which of the pictures the classifier calls by their class, bool (N,)."""
    device, found = net.head.weight.device, []
    for start in range(0, len(tests.pictures), _CHUNK):
        x = as_input(torch.from_numpy(tests.pictures[start : start + _CHUNK]), device)
        found.append(net(x)[1].argmax(1).cpu().numpy())
    return np.equal(np.concatenate(found), tests.labels)


def rarest_third(counts: Sequence[int]) -> list[int]:
    """The third of the classes, at least one, that have the fewest pictures, rarest first."""
    order = sorted(range(len(counts)), key=lambda k: (counts[k], -k))
    return order[: max(1, len(counts) // 3)]


def table(results: Sequence[Mapping[str, Sequence[float]]]) -> str:
    """Mean accuracies in percent, and the smallest and largest of the seeds, as text."""
    width = max(map(len, SHARES))
    lines = ["  ".join([" " * width, *(column.rjust(22) for column in COLUMNS)])]
    for name in SHARES:
        of_seeds = 100 * np.array([result[name] for result in results])
        numbers = zip(of_seeds.mean(0), of_seeds.min(0), of_seeds.max(0), strict=True)
        cells = (f"{mean:.2f} ({low:.2f}-{high:.2f})".rjust(22) for mean, low, high in numbers)
        lines.append("  ".join([name.ljust(width), *cells]))
    return "\n".join(lines)
