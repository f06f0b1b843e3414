"""The loss scale of float16, without which small gradients vanish.

float16 has no number between 0 and 2^-24, and few digits below 2^-14; float32 and bfloat16 go down
to 2^-126. So a step's gradients are computed times a power of two, S, and divided by it in float32.
Micikevicius et al. 2018, arXiv:1710.03740, section 3.2. S follows the rule of torch.amp.GradScaler:
an overflow halves S and its step is left out; `_SOUND_STEPS` steps without one double S.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

# From 2^16, the scales of wgan-gp came to rest at 2^11 to 2^14 on digits and MNIST. Each halving on
# the way is a step that is lost.
_FIRST = 2.0**12
# Where S is as large as it can be, one step in 2000 is lost: 0.05% of the work.
_SOUND_STEPS = 2000
# Times 2^24, the smallest number of float16 is 2^-48: of a sum in float32 that is no part.
_MOST = 2.0**24


class LossScale:
    """S of one network, and its rule. Nothing waits for the device.

    ``value`` is S, float32 0-d; ``skip`` is 1 after a gradient that is not finite, else 0, float32
    0-d. Both stay where they are, so that a captured phase goes on with new values.
    """

    def __init__(self, device: torch.device) -> None:
        self.value = torch.full((), _FIRST, device=device)
        self.skip = torch.zeros((), device=device)
        self._sound = torch.zeros((), dtype=torch.int32, device=device)  # steps since S changed
        self._skipped = torch.zeros((), dtype=torch.int32, device=device)  # steps in a row

    def divide(self, gradient: Tensor) -> None:
        """Divide a gradient (total,), float32, by S in place, and move S by the rule.

        A gradient that is not finite becomes 0: its step is to be left out, as ``skip`` says.
        """
        self.skip.zero_()
        torch._amp_foreach_non_finite_check_and_unscale_(
            [gradient], self.skip, self.value.reciprocal()
        )
        gradient.masked_fill_(self.skip > 0, 0.0)
        self._skipped.add_(1).mul_(self.skip.int())
        torch._amp_update_scale_(self.value, self._sound, self.skip, 2.0, 0.5, _SOUND_STEPS)
        self.value.clamp_(1 / _MOST, _MOST)

    def skipped(self) -> int:
        """How many of the last steps were left out in a row. Waits for the device."""
        return int(self._skipped)

    def tensors(self) -> dict[str, Tensor]:
        """What the next steps depend on, by name, as it lies here."""
        return {"value": self.value, "sound": self._sound, "skipped": self._skipped}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy what `tensors` gave elsewhere; a run that had no scale begins with the first one."""
        mine = self.tensors()
        fresh = LossScale(self.value.device).tensors()
        for name, tensor in mine.items():
            tensor.copy_(tensors.get(name, fresh[name]))
