"""What the steps to come are fed, in tensors that stay where they are: which pictures, latents, epsilons, and the rates.

All of it is a function of (seed, image counter). It is drawn for several generator steps at once, as one such draw costs many
small operations, and read by a counter on the device, so that a captured step goes through it by itself.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ganfast.config import Config
from ganfast.data.resident import ResidentData
from ganfast.latents import Purpose
from ganfast.losses import loss_of
from ganfast.penalties import drawn_numbers
from ganfast.random import noise, normal, uniform
from ganfast.training.ema import ema_decay

_NUMBERS = 2**17  # about as many latent numbers are drawn at once, for 64 generator steps at most


@dataclass
class CriticFeed:
    """One critic step."""

    real: Tensor  # (N, C, H, W) in [-1, 1]
    labels: Tensor | None  # int64 (N,), only where classes are learnt
    z: Tensor  # (N, latent)
    eps: Tensor | None  # (N,) in [0, 1), where the penalty's points are drawn from it (WGAN-GP)
    noise: Tensor | None  # like real in [0, 1), where they are drawn from that (DRAGAN)
    rate: Tensor  # learning rate, float64 0-d


@dataclass
class GeneratorFeed:
    """One generator step."""

    real: Tensor | None  # those last shown to the critic, for the loss that pairs
    labels: Tensor | None  # their classes
    z: Tensor
    rate: Tensor
    decay: Tensor  # what stays of the moving average, float64 0-d


class Feed:
    """``clock`` counts images on the device; `critic` and `generator` give what the step at the clock needs."""

    def __init__(self, config: Config, data: ResidentData) -> None:
        c, self.config, self.data, device = config, config, data, data.device
        turns, self.step_images = c.optim.critic_steps, c.optim.critic_steps * c.batch
        self.ahead = min(64, max(1, _NUMBERS // (self.step_images * c.net.latent)))
        count = self.ahead * self.step_images
        self.clock = torch.zeros((), dtype=torch.int64, device=device)
        self._first = torch.zeros_like(self.clock)  # clock of the first step in the tables
        self._drawn: range = range(0)  # the same on the host, with where they end
        self._offsets = torch.arange(count, device=device)
        self._step_offsets = torch.arange(self.ahead, device=device) * self.step_images
        self._positions = torch.zeros(self.ahead * turns, c.batch, dtype=torch.int64, device=device)
        self._mirrored = (
            torch.zeros(self.ahead * turns, c.batch, dtype=torch.bool, device=device)
            if data.flip
            else None
        )
        self._z = torch.zeros(self.ahead * turns, c.batch, c.net.latent, device=device)
        self._eps: Tensor | None = None
        if drawn_numbers(c.penalty) == "eps":
            self._eps = torch.zeros(self.ahead * turns, c.batch, device=device)
        self._z_generator = torch.zeros(self.ahead, c.batch, c.net.latent, device=device)
        self._rates = torch.zeros(self.ahead, 3, dtype=torch.float64, device=device)

    def due(self, images: int) -> bool:
        """Whether the step from ``images`` on is not in the tables, so that they must be drawn."""
        return images not in self._drawn

    def set(self, images: int) -> None:
        """Turn the clock, and start the tables, which must then be drawn, at ``images``."""
        self.clock.fill_(images)
        self._first.fill_(images)
        self._drawn = range(images, images + self.ahead * self.step_images, self.step_images)

    def draw(self) -> None:
        """Fill the tables from their first step on."""
        c, index = self.config, self._first + self._offsets
        steps = self._first + self._step_offsets
        last = index.view(self.ahead, c.optim.critic_steps, c.batch)[:, -1].reshape(
            -1
        )  # a generator step counts as its last turn
        self._positions.copy_(self.data.positions(index).view_as(self._positions))
        mirrored = self.data.mirrored(index)
        if self._mirrored is not None and mirrored is not None:
            self._mirrored.copy_(mirrored.view_as(self._mirrored))
        self._z.copy_(normal(c.seed, Purpose.CRITIC_LATENT, index, c.net.latent).view_as(self._z))
        if self._eps is not None:
            self._eps.copy_(uniform(c.seed, Purpose.EPSILON, index).view_as(self._eps))
        self._z_generator.copy_(
            normal(c.seed, Purpose.GENERATOR_LATENT, last, c.net.latent).view_as(self._z_generator)
        )
        factor, shown = schedule(c, steps), steps + self.step_images
        decay = ema_decay(self.step_images, shown, c.ema_kimg)
        self._rates.copy_(
            torch.stack([factor * c.optim.lr_critic, factor * c.optim.lr_generator, decay], dim=1)
        )

    def critic(self) -> CriticFeed:
        """For the critic step that shows the pictures from the clock on."""
        turn = (self.clock - self._first) // self.config.batch
        position = _row(self._positions, turn)
        real = self._pictures(position, turn)
        rate = _row(self._rates, turn // self.config.optim.critic_steps)[0]
        eps = None if self._eps is None else _row(self._eps, turn)
        return CriticFeed(
            real, self._labels(position), _row(self._z, turn), eps, self._noise(real), rate
        )

    def generator(self) -> GeneratorFeed:
        """For the generator step behind the last of its critic steps, the clock standing at its end."""
        turn = (self.clock - self._first) // self.config.batch - 1
        step = turn // self.config.optim.critic_steps
        position = _row(self._positions, turn)
        real = self._pictures(position, turn) if loss_of(self.config.loss).pairs else None
        _, rate, decay = _row(self._rates, step).unbind()
        return GeneratorFeed(
            real, self._labels(position), _row(self._z_generator, step), rate, decay
        )

    def _pictures(self, position: Tensor, turn: Tensor) -> Tensor:
        return self.data.pictures(
            position, None if self._mirrored is None else _row(self._mirrored, turn)
        )

    def _labels(self, position: Tensor) -> Tensor | None:
        return self.data.labels_at(position) if self.config.conditional != "no" else None

    def _noise(self, real: Tensor) -> Tensor | None:
        c = self.config
        if drawn_numbers(c.penalty) != "noise":
            return None
        index = self.clock + self._offsets[: c.batch]
        return noise(c.seed, Purpose.NOISE, index, real[0].numel()).view(real.shape)


def _row(table: Tensor, row: Tensor) -> Tensor:
    """table[row] by a number on the device, without reading it."""
    return table.index_select(0, row.view(1))[0]


def schedule(config: Config, images: Tensor) -> Tensor:
    """Factor on both learning rates of the steps from ``images`` on, float64 in [0, 1]; the first of a warm-up already moves.

    Constant, with a linear rise at the start and a linear fall at the end where the config asks for them.
    """
    done, whole = images.double() / 1000, config.kimg
    factor = torch.ones_like(done)
    if config.optim.warmup_kimg:
        step = config.batch * config.optim.critic_steps / 1000
        factor = ((done + step) / config.optim.warmup_kimg).clamp(max=1)
    start = config.optim.decay_from * whole
    if start < whole:
        factor = factor * ((whole - done) / (whole - start)).clamp(0, 1)
    return factor
