"""Pictures from what is left of them around a hole."""

import torch
from torch import Tensor

from ganfast.errors import InputError
from ganfast.latents import Purpose
from ganfast.random import uniform
from ganfast.tasks.task import Task, psnr

_BOXES = 3  # rectangles at most


class Inpaint(Task):
    """The condition is the picture, black in the hole, and the mask: 255 = known, 0 = hole."""

    def check(self) -> None:
        self.given = (self.size, self.size, self.channels + 1)
        self.shown = self.channels + 1
        if self._most >= self.size:
            raise InputError(
                f"hole_share {self.config.hole_share} of {self.size} pixels leaves none that is "
                "known: set it lower"
            )

    def derive(self, pictures: Tensor, index: Tensor, seed: int) -> Tensor:
        known = self._known(index, seed)
        return torch.cat([torch.where(known > 0, pictures, -1.0), known], 1)

    @property
    def _most(self) -> int:
        """The longest side of a hole."""
        return max(2, round(self.config.hole_share * self.size))

    def _known(self, index: Tensor, seed: int) -> Tensor:
        """The masks of pictures, float32 (N, 1, H, W): 1 = known."""
        size, n = self.size, len(index)
        most = self._most
        pixel = torch.arange(size, device=index.device)
        if self.config.hole == "centre":
            start = (size - most) // 2
            inside = ((pixel >= start) & (pixel < start + most)).expand(n, 1, size)
            hole = inside[:, :, :, None] & inside[:, :, None, :]
        else:
            drawn = uniform(seed, Purpose.DEGRADE, index, 4 * _BOXES + 1)
            place, side = drawn[:, 1:].view(n, 2, 2, _BOXES).unbind(1)  # of rows, of columns
            length = (most / 2 + side * (most / 2)).floor()  # half of the most, or longer
            first = (place * (size - length + 1)).floor()
            at = pixel.view(1, 1, 1, -1)
            inside = (at >= first.unsqueeze(3)) & (at < (first + length).unsqueeze(3))
            which = torch.arange(_BOXES, device=index.device) <= (drawn[:, :1] * _BOXES).floor()
            boxes = inside[:, 0, :, :, None] & inside[:, 1, :, None, :]
            hole = (boxes & which[:, :, None, None]).any(1, keepdim=True)
        return (~hole).float()

    def show(self, given: Tensor) -> Tensor:
        picture, known = given[:, :-1], given[:, -1:]
        return torch.cat([picture * known, known], 1)

    def view(self, given: Tensor) -> Tensor:
        return given[:, :-1] * given[:, -1:]

    def baseline(self, given: Tensor, mean: Tensor) -> Tensor:
        """The mean training picture in the hole."""
        return torch.where(given[:, -1:] > 0, given[:, :-1], mean)

    def free(self, given: Tensor) -> Tensor:
        return 1 - given[:, -1:]

    def scores(self, drawn: Tensor, real: Tensor, given: Tensor) -> dict[str, Tensor]:
        """``hole_psnr``: PSNR in the hole; ``known_equal``: share of known pixels kept."""
        known = given[:, -1:]
        same = ((drawn - given[:, :-1]).abs() < 1e-3).float() * known
        share = same.flatten(1).sum(1) / (known.flatten(1).sum(1) * self.channels)
        return {"hole_psnr": psnr(drawn, real, self.free(given)), "known_equal": share}

    def __str__(self) -> str:
        return f"inpaint {self.config.hole} {self.config.hole_share:g}"
