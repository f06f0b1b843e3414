"""The measured problem as tensors: networks at initial weights and static inputs, the same for every variant."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ganfast.bench.setting import Setting
from ganfast.config import Config
from ganfast.device import find_device, resolved
from ganfast.models import NetSpec, build_critic, build_generator


@dataclass
class Inputs:
    """Of one iteration; every critic step takes the same."""

    real: Tensor  # (N, C, H, W) in [-1, 1]
    z: Tensor  # (N, latent)
    eps: Tensor  # (N,)
    noise: Tensor | None  # like real, in [0, 1), for penalties that draw it
    labels: Tensor | None  # (N,) int64


class Problem:
    """Everything about a setting that no variant may choose for itself."""

    def __init__(self, setting: Setting, proof: bool = False) -> None:
        """``proof``: without dropout, whose draws no two frameworks share, so that gradients can be compared."""
        self.setting = setting
        self.device = find_device(setting.device)
        config = resolved(setting.config(), self.device)
        self.config: Config = replace(config, net=replace(config.net, critic_dropout=0.0)) if proof else config
        self.classes = setting.class_count()
        self.spec = NetSpec.of(self.config, self.config.size, self.config.channels, self.classes, self.config.conditional)

    @property
    def autocast(self) -> torch.dtype | None:
        return torch.bfloat16 if self.config.precision == "bf16" else None

    def networks(self, seed: int) -> tuple[nn.Module, nn.Module]:
        """Generator and critic at the initial weights of a seed, in training mode, on the CPU."""
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            return build_generator(self.spec).train(), build_critic(self.spec).train()

    def inputs(self, seed: int) -> Inputs:
        """Noise, on the CPU."""
        c = self.config
        random = torch.Generator().manual_seed(1000 + seed)
        shape = (c.batch, c.channels, c.size, c.size)
        return Inputs(
            torch.rand(shape, generator=random) * 2 - 1,
            torch.randn(c.batch, c.net.latent, generator=random),
            torch.rand(c.batch, generator=random),
            torch.rand(shape, generator=random) if c.penalty.kind == "dragan" and c.penalty.active else None,
            torch.randint(self.classes, (c.batch,), generator=random) if self.classes else None,
        )

    @property
    def images(self) -> int:
        """Reals shown in one iteration."""
        return self.config.optim.critic_steps * self.config.batch
