"""The training loop: who is updated when. It owns both optimizers and the average, and composes the phases of a step."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from ganfast.config import Config
from ganfast.data.resident import ResidentData
from ganfast.ema import average_of
from ganfast.engine import CriticStep, Drawing, GeneratorStep, make_drawing
from ganfast.feed import Feed
from ganfast.optim import FlatAdam
from ganfast.phases import Graphs, Phase, Stats
from ganfast.random import device_generator

OnStep = Callable[["State", Stats, Stats], None]


@dataclass
class State:
    """Everything that training changes. ``images`` is the only counter: all others, and all randomness, follow from it.

    Its tensors stay where they are for the whole of a training, as captured phases know their addresses: what restores a state
    copies into them.
    """

    generator: nn.Module
    critic: nn.Module
    average: nn.Module  # moving average of the generator: what samples are drawn from
    optimizer_generator: FlatAdam
    optimizer_critic: FlatAdam
    images: int = 0  # reals shown to the critic

    @staticmethod
    def of(generator: nn.Module, critic: nn.Module, config: Config, autocast: torch.dtype | None = None) -> "State":
        """At the start of a training; ``autocast``: the type that both networks will be computed in, None = as they are."""
        optim, average = config.optim, average_of(generator)
        return State(
            generator, critic, average,
            FlatAdam(generator, optim.lr_generator, optim, average, autocast),
            FlatAdam(critic, optim.lr_critic, optim, compute=autocast),
        )  # fmt: skip


def train_loop(
    state: State, data: ResidentData, config: Config, critic_step: CriticStep, generator_step: GeneratorStep,
    stop: Callable[[], bool], on_step: OnStep, drawing: Drawing | None = None,
) -> None:  # fmt: skip
    """Run generator steps, each after its critic steps, until config.kimg reals are shown or ``stop()`` is true.

    ``drawing`` makes the critic's fakes; None = the generator as it is.
    """
    drawing = drawing or make_drawing(state.generator)
    feed, own = Feed(config, data), device_generator(data.device)

    def draw_ahead() -> Stats:
        feed.draw()
        return {}

    def critic_phase(with_penalty: bool) -> Stats:
        """Score reals above fakes of the same classes, and stay flat where the penalty asks for it."""
        given = feed.critic()
        fake = drawing(given.z, given.labels)
        stats = critic_step(given.real, fake, given.labels, eps=given.eps, noise=given.noise, with_penalty=with_penalty)
        state.optimizer_critic.move(given.rate, limit=config.loss.clip)
        feed.clock.add_(config.batch)
        return stats

    def generator_phase() -> Stats:
        """Make fakes that the critic scores high, of the classes last shown; the average follows."""
        given = feed.generator()
        stats = generator_step(given.z, given.labels, given.real)
        state.optimizer_generator.move(given.rate, given.decay)
        return stats

    graphs = Graphs(config.cuda_graphs, data.device, "" if data.resident else "the pictures are streamed from host memory")
    draws = Phase("drawing", draw_ahead, graphs)
    plain = Phase("critic", lambda: critic_phase(False), graphs)
    penalised = Phase("penalised critic", lambda: critic_phase(True), graphs)
    generator = Phase("generator", generator_phase, graphs)

    while state.images < config.kimg * 1000 and not stop():
        own.manual_seed((config.seed * 0x9E3779B97F4A7C15 + state.images) % 2**63)  # for what networks draw themselves: dropout
        if feed.due(state.images):
            feed.set(state.images)
            draws()
        critic_stats: Stats = {}  # the latest of each: a lazy penalty may fall on any of the turns
        for _ in range(config.optim.critic_steps):
            due = state.images // config.batch % config.penalty.interval == 0
            critic_stats |= (penalised if due else plain)()
            state.images += config.batch
        on_step(state, critic_stats, generator())
