"""Dropout (Srivastava 2014) whose random numbers cost little beside the layers around it, also on a CPU.

There torch's own draws one number an element, in sequence: a fifth of the original GAN's critic phase on two cores. Sixteen bits an
element are enough, and torch's generator gives sixty-four at a time.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LEVELS = 1 << 16


class Dropout(nn.Dropout):
    """`torch.nn.Dropout`; on a CPU with other numbers of torch's generator, and ``p`` as the nearest multiple of 2**-16 below 1."""

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask(x) if self.training and self.p > 0 else x

    def mask(self, like: Tensor) -> Tensor:
        """0 with probability p, else 1 / (1 - p): shaped, typed and laid out as ``like``."""
        if like.device.type != "cpu":
            return F.dropout(torch.ones_like(like), self.p)
        dropped = min(round(self.p * _LEVELS), _LEVELS - 1)
        numbers = torch.randint(-(2**63), 2**63 - 1, (-(-like.numel() // 4),)).view(torch.int16)
        mask = torch.empty_like(like)
        mask.as_strided((like.numel(),), (1,)).copy_(numbers[: like.numel()] >= dropped - _LEVELS // 2)
        return mask.mul_(_LEVELS / (_LEVELS - dropped))
