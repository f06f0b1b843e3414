"""Sharp pictures from blurred and noisy ones."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ganfast.latents import Purpose
from ganfast.random import normal
from ganfast.tasks.task import Task, levels

_SHARPER = 2.0  # weight of an unsharp mask: best of 1 and 2 at the default blur on faces of 64x64


class Deblur(Task):
    """A Gaussian blur, then normal noise, rounded to uint8's levels."""

    def derive(self, pictures: Tensor, index: Tensor, seed: int) -> Tensor:
        numbers = normal(seed, Purpose.DEGRADE, index, pictures[0].numel()).view(pictures.shape)
        return levels(self._blurred(pictures) + self.config.noise / 127.5 * numbers)

    def _blurred(self, pictures: Tensor) -> Tensor:
        sigma = self.config.blur
        if not sigma:
            return pictures
        reach = min(int(3 * sigma + 0.5), self.size - 1)
        at = torch.arange(-reach, reach + 1, dtype=pictures.dtype, device=pictures.device)
        kernel = torch.exp(-at.square() / (2 * sigma**2))
        kernel = (kernel / kernel.sum()).expand(self.channels, 1, 1, -1)
        wide = F.pad(pictures.contiguous(), (reach,) * 4, mode="reflect")
        rows = F.conv2d(wide, kernel, groups=self.channels)
        return F.conv2d(rows, kernel.transpose(2, 3), groups=self.channels)

    def baseline(self, given: Tensor, mean: Tensor) -> Tensor:
        """An unsharp mask."""
        return given + _SHARPER * (given - self._blurred(given))

    def __str__(self) -> str:
        return f"deblur sigma {self.config.blur:g} noise {self.config.noise:g}"
