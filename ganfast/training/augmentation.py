"""How often the critic's pictures are transformed: the probability p, and ADA's rule for it."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ganfast.augment import Transforms
from ganfast.config import Config
from ganfast.errors import InputError
from ganfast.fields import ends
from ganfast.losses import loss_of

# Section 3.1 of the paper, whose r is a mean over 4 batches. Here it is a moving mean, which needs
# no counter.
_TARGET, _BATCHES = 0.6, 4


class Augmentation:
    """p of a training, and transforms by it. Nothing waits for the device.

    ``p`` is float64 0-d and stays where it is, so that a captured phase goes on with new values.
    """

    def __init__(self, config: Config, device: torch.device) -> None:
        self.adaptive = config.augment == "adaptive"
        start = 0.0 if self.adaptive else ends(config.augment_p)[0]
        self.p = torch.full((), start, dtype=torch.float64, device=device)
        self._r = torch.full_like(self.p, _TARGET)
        self._most = config.batch / (config.augment_kimg * 1000)
        self._transforms = Transforms(config.size, config.size, device)

    def transforms(self, uniforms: Tensor, p: Tensor | None = None) -> Tensor:
        """Of a step's pictures, float32 (..., 7), by what the feed drew for them, (..., 10).

        ``p`` is that of a schedule, float64 0-d; None = ``self.p``.
        """
        return self._transforms(uniforms, self.p if p is None else p)

    def adapt(self, share: Tensor) -> Tensor:
        """Move p behind a critic step; returns a copy of it.

        Adaptive discriminator augmentation, arXiv:2006.06676, eq. 1: r is the mean sign of the
        scores of the reals, 2 share - 1, and stays near 0 for a critic that cannot tell training
        pictures from others.

        Args:
            share: of the batch's reals that score above the loss's middle, 0-d; over several
                devices, the mean over all of them.
        """
        self._r.lerp_(2 * share.double() - 1, 1 / _BATCHES)
        self.p.add_((self._r - _TARGET).sign(), alpha=self._most).clamp_(0, 1)
        return self.p.clone()

    def tensors(self) -> dict[str, Tensor]:
        """What the next steps depend on, by name, as it lies here; {} = nothing moves."""
        return {"p": self.p, "r": self._r} if self.adaptive else {}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy what `tensors` gave elsewhere; a run that was not adaptive begins at p = 0."""
        if self.adaptive:
            self.p.copy_(tensors.get("p", torch.zeros(())))
            self._r.copy_(tensors.get("r", torch.tensor(_TARGET)))


def refuse_adaptive(config: Config) -> None:
    """Raises InputError where p is to follow scores that mean nothing alone."""
    if config.augment == "adaptive" and loss_of(config.loss).middle is None:
        raise InputError(
            f"augment is adaptive, but a score of the {config.loss.kind} loss says nothing alone, "
            "so that p has nothing to follow; use on, or off"
        )
