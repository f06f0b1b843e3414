"""The measured problem, the same for every variant: networks at initial weights, and pictures."""

from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor, nn

from ganfast.bench.setting import Setting
from ganfast.data.pack import Pack, PackInfo
from ganfast.device import autocast_of, find_device, resolved
from ganfast.errors import InputError
from ganfast.models import NetSpec, build_critic, build_generator
from ganfast.penalties import drawn_numbers
from ganfast.presets import FROM_LATENTS

_PICTURES, _BYTES = 60_000, 2**26  # as many as MNIST has, of large ones as many as fit


@dataclass
class Inputs:
    """What one phase was fed."""

    real: Tensor  # (N, C, H, W) in [-1, 1]
    z: Tensor  # (N, latent)
    eps: Tensor  # (N,) in [0, 1)
    noise: Tensor | None  # like real, in [0, 1), for penalties that draw it
    labels: Tensor | None  # (N,) int64


class Problem:
    """Everything about a setting that no variant may choose for itself."""

    def __init__(self, setting: Setting, proof: bool = False) -> None:
        """``proof``: without dropout, whose draws no two frameworks share."""
        if setting.preset not in FROM_LATENTS:
            raise InputError(
                f"preset {setting.preset} makes pictures from others, which the variants do not; "
                f"expected one of {', '.join(FROM_LATENTS)}"
            )
        self.setting = setting
        self.device = find_device(setting.device)
        _keep_freed_memory(self.device)
        config = resolved(setting.config(), self.device)
        net = replace(config.net, critic_dropout=0.0) if proof else config.net
        # So long that rates and other schedules stay at their first values while measuring.
        self.config = c = replace(config, net=net, kimg=1e9, seed=0)
        self.classes = setting.class_count()
        self.spec = NetSpec.of(c, c.size, c.channels, self.classes, c.conditional)

    @property
    def autocast(self) -> torch.dtype | None:
        return autocast_of(self.config)

    def networks(self, seed: int) -> tuple[nn.Module, nn.Module]:
        """Generator and critic at the initial weights of a seed, in training mode, on the CPU."""
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            return build_generator(self.spec).train(), build_critic(self.spec).train()

    @cached_property
    def pack(self) -> Pack:
        """Noise as pictures, uint8: speed does not depend on what they show."""
        c, random = self.config, np.random.default_rng(0)
        count = min(_PICTURES, _BYTES // (c.channels * c.size**2))
        pictures = random.integers(0, 256, (count, c.channels, c.size, c.size), dtype=np.uint8)
        names = tuple(str(k) for k in range(self.classes))
        labels = random.integers(0, self.classes, count) if self.classes else None
        shape, where = (count, c.channels, c.size), ("noise", "arrays", "noise")
        info = PackInfo(*where, *shape, names, False, "train", (), "", "")
        return Pack(pictures, labels, info)

    @property
    def draws_noise(self) -> bool:
        """Whether the penalty needs noise like the pictures."""
        return drawn_numbers(self.config.penalty) == "noise"

    @property
    def images(self) -> int:
        """Reals shown in one iteration."""
        return self.config.optim.critic_steps * self.config.batch


def _keep_freed_memory(device: torch.device) -> None:
    """As `ganfast train` does for its whole process, so the baselines have it too.

    An older revision that is compared with may not know it.
    """
    if device.type == "cpu" and find_spec("ganfast.training.host_memory"):
        from ganfast.training.host_memory import keep_freed_memory

        keep_freed_memory()
