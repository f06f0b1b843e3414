"""The training loop: who is updated when, from which random draws. It owns both optimizers and the average."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ganfast.config import Config, OptimConfig
from ganfast.data.resident import ResidentData
from ganfast.ema import average_of, update_average
from ganfast.engine import CriticStep, GeneratorStep, draw
from ganfast.random import Purpose, device_generator, normal, uniform

OnStep = Callable[["State", dict[str, Tensor], dict[str, Tensor]], None]


@dataclass
class State:
    """Everything that training changes. ``images`` is the only counter: all others, and all randomness, follow from it."""

    generator: nn.Module
    critic: nn.Module
    average: nn.Module  # moving average of the generator: what samples are drawn from
    optimizer_generator: torch.optim.Optimizer
    optimizer_critic: torch.optim.Optimizer
    images: int = 0  # reals shown to the critic

    @staticmethod
    def of(generator: nn.Module, critic: nn.Module, config: Config) -> "State":
        optim = config.optim
        return State(
            generator, critic, average_of(generator),
            adam(generator, optim.lr_generator, optim), adam(critic, optim.lr_critic, optim),
        )  # fmt: skip


def train_loop(
    state: State, data: ResidentData, config: Config, critic_step: CriticStep, generator_step: GeneratorStep,
    stop: Callable[[], bool], on_step: OnStep, autocast: torch.dtype | None = None,
) -> None:  # fmt: skip
    """Run generator steps, each after its critic steps, until config.kimg reals are shown or ``stop()`` is true."""
    seed, batch, turns = config.seed, config.batch, config.optim.critic_steps
    conditional = config.conditional != "no"
    draws, own = Draws(config, data.device), device_generator(data.device)
    while state.images < config.kimg * 1000 and not stop():
        set_learning_rates(state, config)
        own.manual_seed((seed * 0x9E3779B97F4A7C15 + state.images) % 2**63)  # for what networks draw themselves: dropout
        z, eps, z_generator = draws.at(state.images)

        # Critic: score reals above fakes of the same classes, and stay flat where the penalty asks for it.
        critic_stats: dict[str, Tensor] = {}  # the latest of each: a lazy penalty may fall on any of the turns
        reals, classes = data.batch(state.images, turns * batch)
        for turn in range(turns):
            mine = slice(turn * batch, (turn + 1) * batch)
            real, labels = reals[mine], classes[mine] if conditional and classes is not None else None
            with torch.no_grad(), torch.autocast(real.device.type, autocast, enabled=autocast is not None):
                fake = draw(state.generator, z[turn], labels)
            noise = dragan_noise(config, state.images, real)
            due = state.images // batch % config.penalty.interval == 0
            critic_stats |= critic_step(real, fake, labels, eps=eps[turn], noise=noise, with_penalty=due)
            state.optimizer_critic.step()
            clip_weights(state.critic, config.loss.clip)
            state.images += batch

        # Generator: make fakes that the critic scores high, of the classes last shown.
        generator_stats = generator_step(z_generator, labels, real)
        state.optimizer_generator.step()
        update_average(state.average, state.generator, turns * batch, state.images, config.ema_kimg)
        on_step(state, critic_stats, generator_stats)


def adam(net: nn.Module, rate: float, optim: OptimConfig) -> torch.optim.Adam:
    """Fused Adam over a network's parameters."""
    return torch.optim.Adam(net.parameters(), lr=rate, betas=(optim.beta1, optim.beta2), fused=True)


def set_learning_rates(state: State, config: Config) -> None:
    """Constant, with a linear rise at the start and a linear fall at the end where the config asks for them."""
    factor = schedule(config, state.images)
    rates = ((state.optimizer_generator, config.optim.lr_generator), (state.optimizer_critic, config.optim.lr_critic))
    for optimizer, rate in rates:
        for group in optimizer.param_groups:
            group["lr"] = rate * factor


def schedule(config: Config, images: int) -> float:
    """Factor on both rates after ``images`` reals, in [0, 1]; the first step of a warm-up already moves."""
    done, whole = images / 1000, config.kimg
    factor = 1.0
    if config.optim.warmup_kimg:
        step = config.batch * config.optim.critic_steps / 1000
        factor = min(1.0, (done + step) / config.optim.warmup_kimg)
    start = config.optim.decay_from * whole
    if done > start:
        factor *= max(0.0, (whole - done) / (whole - start))
    return factor


@torch.no_grad()
def clip_weights(critic: nn.Module, limit: float) -> None:
    """WGAN, arXiv:1701.07875, algorithm 1: every weight into [-limit, limit]; 0 = leave them."""
    if limit:
        parameters: list[Tensor] = list(critic.parameters())
        torch._foreach_clamp_min_(parameters, -limit)
        torch._foreach_clamp_max_(parameters, limit)


class Draws:
    """Latents and epsilons of the steps to come, several generator steps at once: one such draw costs many small operations."""

    _NUMBERS = 2**17  # about as many latent numbers at a time, of 64 generator steps at most

    def __init__(self, config: Config, device: torch.device) -> None:
        self.config, self.device = config, device
        self._first = self._end = 0  # image counters that are drawn

    def at(self, images: int) -> tuple[Tensor, Tensor, Tensor]:
        """For the step from ``images`` on: z (turns, batch, latent), eps (turns, batch), the generator's z (batch, latent)."""
        step = self.config.optim.critic_steps * self.config.batch
        if not self._first <= images < self._end or (images - self._first) % step:
            self._draw(images, step)
        k = (images - self._first) // step
        return self._z[k], self._eps[k], self._z_generator[k]

    def _draw(self, images: int, step: int) -> None:
        c, turns = self.config, self.config.optim.critic_steps
        ahead = min(64, max(1, self._NUMBERS // (step * c.net.latent)))
        self._first, self._end = images, images + ahead * step
        index = torch.arange(self._first, self._end, device=self.device)
        last = index.view(ahead, turns, c.batch)[:, -1].reshape(-1)  # the generator step counts as its last critic step
        self._z = normal(c.seed, Purpose.CRITIC_LATENT, index, c.net.latent).view(ahead, turns, c.batch, c.net.latent)
        self._eps = uniform(c.seed, Purpose.EPSILON, index).view(ahead, turns, c.batch)
        self._z_generator = normal(c.seed, Purpose.GENERATOR_LATENT, last, c.net.latent).view(ahead, c.batch, c.net.latent)


def dragan_noise(config: Config, images: int, real: Tensor) -> Tensor | None:
    """Uniform noise like ``real`` for the pictures from ``images`` on; None for penalties that draw none."""
    if config.penalty.kind != "dragan" or not config.penalty.active:
        return None
    index = torch.arange(images, images + len(real), device=real.device)
    return uniform(config.seed, Purpose.NOISE, index, real[0].numel()).view(real.shape)
