"""What every engine of the critic step minimises and reports, from the critic's answers."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ganfast.augment import augmented
from ganfast.config import LossConfig
from ganfast.losses import accuracy, class_loss, critic_accuracy, critic_loss, wasserstein_estimate
from ganfast.models.parts import Judgement
from ganfast.tensors import behind

Stats = dict[str, Tensor]


class Inputs(NamedTuple):
    """One critic step: pictures (N, C, H, W), detached; labels int64 (N,) or None.

    Penalties hold gradients with respect to these pictures, before their transforms.
    """

    real: Tensor
    fake: Tensor
    real_labels: Tensor | None
    fake_labels: Tensor | None
    # one batch for each penalty at points of its own, judged with the labels of the reals
    points: tuple[Tensor, ...] = ()
    # gradients are computed times this power of two, 0-d (`ganfast.training.scale`); None = as is
    scale: Tensor | None = None
    # the share of its full weight that every penalty has in this step, 0-d; None = all of it
    penalty_share: Tensor | None = None
    # transforms of what the critic sees (`ganfast.augment`), (2 or more, N, 7): of the reals, the
    # fakes and each batch of points; None = it sees the pictures
    transforms: Tensor | None = None
    # what the pictures are made from, (N, K, ...) of their grid: the critic is shown it behind the
    # channels of reals, fakes and points alike; nothing is differentiated by it
    condition: Tensor | None = None

    def seen(self, batch: int, pictures: Tensor) -> Tensor:
        """What the critic sees of a batch: 0 = the reals, 1 = the fakes, then the points."""
        if self.transforms is not None:
            pictures = augmented(pictures, self.transforms[batch])
        return behind(pictures, self.condition)

    def changed(self, change: Callable[[Tensor], Tensor]) -> "Inputs":
        """The same step with other pictures."""
        points = tuple(change(x) for x in self.points)
        return self._replace(real=change(self.real), fake=change(self.fake), points=points)


def objective(
    config: LossConfig,
    real: Judgement,
    fake: Judgement,
    real_labels: Tensor | None,
    fake_labels: Tensor | None,
) -> tuple[Tensor, Stats]:
    """The critic's loss without penalties, 0-d, and its parts."""
    total = critic_loss(config, real.score, fake.score).mean()
    on_reals, on_fakes = critic_accuracy(config, real.score, fake.score)
    stats = {
        "loss": total,
        "wasserstein": wasserstein_estimate(real.score, fake.score),
        "real_score": real.score.mean(),
        "fake_score": fake.score.mean(),
        "real_accuracy": on_reals,
        "fake_accuracy": on_fakes,
    }
    if real.classes is not None and fake.classes is not None and real_labels is not None:
        by_class = class_loss(real.classes, real_labels).mean()
        if config.class_fakes and fake_labels is not None:
            by_class = by_class + class_loss(fake.classes, fake_labels).mean()
        stats |= {"class_loss": by_class, "class_accuracy": accuracy(real.classes, real_labels)}
        total = total + config.class_weight * by_class
    return total, stats


def penalty_stats(values: Sequence[Tensor], norms: Sequence[Tensor]) -> Stats:
    """Statistics of penalties' values, (N,) each, and of the gradient norms that they hold."""
    norm = torch.cat(list(norms))
    return {
        "penalty": torch.stack(list(values)).sum(0).mean(),
        "gradient_norm": norm.mean(),
        "gradient_norm_max": norm.max(),
    }
