"""Pictures from smaller ones."""

import torch.nn.functional as F
from torch import Tensor

from ganfast.errors import InputError
from ganfast.tasks.task import Task, levels, psnr


class SuperRes(Task):
    """The smaller picture is a bicubic mean, rounded to uint8's levels."""

    def check(self) -> None:
        side, scale = self.size // self.config.scale, self.config.scale
        if self.size % scale or side < 4:
            raise InputError(
                f"scale is {scale}, but pictures have {self.size} pixels a side; expected a side "
                f"of {scale} times 4 or more: set --task.scale or --size"
            )
        self.given = (side, side, self.channels)

    def derive(self, pictures: Tensor, index: Tensor, seed: int) -> Tensor:
        side = self.given[:2]
        return levels(F.interpolate(pictures, side, mode="bicubic", antialias=True))

    def show(self, given: Tensor) -> Tensor:
        return F.interpolate(given, scale_factor=self.config.scale, mode="bilinear")

    def view(self, given: Tensor) -> Tensor:
        return F.interpolate(given, scale_factor=self.config.scale, mode="nearest")

    def baseline(self, given: Tensor, mean: Tensor) -> Tensor:
        """Bicubic."""
        return F.interpolate(given, scale_factor=self.config.scale, mode="bicubic")

    def scores(self, drawn: Tensor, real: Tensor, given: Tensor) -> dict[str, Tensor]:
        """``consistency``: PSNR of the drawn picture made small again, against the given one."""
        return {"consistency": psnr(self.derive(drawn, given, 0), given)}

    def __str__(self) -> str:
        return f"superres x{self.config.scale} bicubic"
