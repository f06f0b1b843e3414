"""What the next steps need: pictures, latents, epsilons and rates, in tensors that stay in place.

All of it is a function of (seed, image counter). One draw serves several generator steps, as it
costs many small operations. Steps read it by a counter on the device, so that a captured step goes
through it by itself.
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
    eps: Tensor | None  # (N,) in [0, 1), for penalties whose points need it (WGAN-GP)
    noise: Tensor | None  # like real in [0, 1), for penalties whose points need it (DRAGAN)
    rate: Tensor  # learning rate, float64 0-d


@dataclass
class GeneratorFeed:
    """One generator step."""

    real: Tensor | None  # the reals last shown to the critic, for a loss that pairs
    labels: Tensor | None  # classes of these reals
    z: Tensor
    rate: Tensor
    decay: Tensor  # what stays of the moving average, float64 0-d


class Feed:
    """Serves the step at which ``clock`` stands, which counts images on the device."""

    def __init__(self, config: Config, data: ResidentData) -> None:
        c, self.config, self.data, device = config, config, data, data.device
        self.step_images = c.optim.critic_steps * c.batch
        self.ahead = min(64, max(1, _NUMBERS // (self.step_images * c.net.latent)))
        count, rows = self.ahead * self.step_images, self.ahead * c.optim.critic_steps
        self.clock = torch.zeros((), dtype=torch.int64, device=device)
        self._first = torch.zeros_like(self.clock)  # clock of the first step in the tables
        self._drawn = range(0)  # on the host: clocks of all steps in the tables
        self._offsets = torch.arange(count, device=device)
        self._step_offsets = torch.arange(self.ahead, device=device) * self.step_images
        self._positions = torch.zeros(rows, c.batch, dtype=torch.int64, device=device)
        self._mirrored: Tensor | None = None
        if data.flip:
            self._mirrored = torch.zeros(rows, c.batch, dtype=torch.bool, device=device)
        self._z = torch.zeros(rows, c.batch, c.net.latent, device=device)
        self._eps: Tensor | None = None
        if drawn_numbers(c.penalty) == "eps":
            self._eps = torch.zeros(rows, c.batch, device=device)
        self._z_generator = torch.zeros(self.ahead, c.batch, c.net.latent, device=device)
        self._rates = torch.zeros(self.ahead, 3, dtype=torch.float64, device=device)

    def due(self, images: int) -> bool:
        """Whether the tables lack the step from ``images`` on, so that they must be drawn."""
        return images not in self._drawn

    def set(self, images: int) -> None:
        """Turn the clock to ``images`` and let the tables start there; `draw` must follow."""
        self.clock.fill_(images)
        self._first.fill_(images)
        self._drawn = range(images, images + self.ahead * self.step_images, self.step_images)

    def draw(self) -> None:
        """Fill the tables from their first step on."""
        c, index = self.config, self._first + self._offsets
        steps = self._first + self._step_offsets
        # A generator step counts as the last of its critic's turns.
        last = index.view(self.ahead, c.optim.critic_steps, c.batch)[:, -1].reshape(-1)
        self._positions.copy_(self.data.positions(index).view_as(self._positions))
        mirrored = self.data.mirrored(index)
        if self._mirrored is not None and mirrored is not None:
            self._mirrored.copy_(mirrored.view_as(self._mirrored))
        self._z.copy_(normal(c.seed, Purpose.CRITIC_LATENT, index, c.net.latent).view_as(self._z))
        if self._eps is not None:
            self._eps.copy_(uniform(c.seed, Purpose.EPSILON, index).view_as(self._eps))
        z = normal(c.seed, Purpose.GENERATOR_LATENT, last, c.net.latent)
        self._z_generator.copy_(z.view_as(self._z_generator))
        factor, shown = schedule(c, steps), steps + self.step_images
        decay = ema_decay(self.step_images, shown, c.ema_kimg)
        rates = [factor * c.optim.lr_critic, factor * c.optim.lr_generator, decay]
        self._rates.copy_(torch.stack(rates, dim=1))

    def critic(self) -> CriticFeed:
        """For the critic step that shows the pictures from the clock on."""
        turn = (self.clock - self._first) // self.config.batch
        position = _row(self._positions, turn)
        real, labels = self._pictures(position, turn), self._labels(position)
        rate = _row(self._rates, turn // self.config.optim.critic_steps)[0]
        eps = None if self._eps is None else _row(self._eps, turn)
        return CriticFeed(real, labels, _row(self._z, turn), eps, self._noise(real), rate)

    def generator(self) -> GeneratorFeed:
        """For the generator step whose last critic step ended where the clock stands."""
        turn = (self.clock - self._first) // self.config.batch - 1
        step = turn // self.config.optim.critic_steps
        position = _row(self._positions, turn)
        real = self._pictures(position, turn) if loss_of(self.config.loss).pairs else None
        _, rate, decay = _row(self._rates, step).unbind()
        z = _row(self._z_generator, step)
        return GeneratorFeed(real, self._labels(position), z, rate, decay)

    def _pictures(self, position: Tensor, turn: Tensor) -> Tensor:
        mirrored = None if self._mirrored is None else _row(self._mirrored, turn)
        return self.data.pictures(position, mirrored)

    def _labels(self, position: Tensor) -> Tensor | None:
        return self.data.labels_at(position) if self.config.conditional != "no" else None

    def _noise(self, real: Tensor) -> Tensor | None:
        c = self.config
        if drawn_numbers(c.penalty) != "noise":
            return None
        index = self.clock + self._offsets[: c.batch]
        return noise(c.seed, Purpose.NOISE, index, real[0].numel()).view(real.shape)


def _row(table: Tensor, row: Tensor) -> Tensor:
    """table[row] by a number on the device, which the host does not wait for."""
    return table.index_select(0, row.view(1))[0]


def schedule(config: Config, images: Tensor) -> Tensor:
    """Factor on both learning rates of the steps from ``images`` on, float64 in [0, 1].

    Constant, with a linear rise at the start and a linear fall at the end where the config asks for
    them. The first step of a warm-up already moves.
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
