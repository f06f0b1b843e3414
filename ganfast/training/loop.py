"""The training loop: which network is updated when.

An `Iteration` composes the phases of a step; `train_loop` runs them until enough reals are shown.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ganfast.config import Config
from ganfast.data.resident import ResidentData
from ganfast.device import autocast_of
from ganfast.engine import CriticStep, Drawing, GeneratorStep, make_drawing
from ganfast.random import device_generator
from ganfast.tasks import task_of
from ganfast.tensors import behind
from ganfast.training.feed import CriticFeed, Feed, GeneratorFeed
from ganfast.training.phases import Graphs, Phase, Stats, Watch
from ganfast.training.spread import thumbnails
from ganfast.training.state import State

OnStep = Callable[[State, Stats, Stats], None]


class Iteration:
    """The phases of a step, over the tensors of a state and of its `Feed`.

    `train_loop` runs them and `ganfast bench` times them: the benchmark measures the program.
    """

    def __init__(
        self,
        state: State,
        data: ResidentData,
        config: Config,
        critic_step: CriticStep,
        generator_step: GeneratorStep,
        drawing: Drawing,
        graphs: Graphs,
        watch: Watch | None = None,
    ) -> None:
        """``drawing`` makes the critic's fakes; ``graphs`` says whether phases are captured, and
        ``watch`` what must not change while they are replayed."""
        self.feed = Feed(config, data)
        self._state, self._config, self._drawing = state, config, drawing
        self._critic_step, self._generator_step = critic_step, generator_step
        self.draws = Phase("drawing", self._draw_ahead, graphs)
        self.plain_critic = Phase("critic", partial(self._critic, False), graphs, watch)
        self.penalised_critic = Phase(
            "penalised critic", partial(self._critic, True), graphs, watch
        )
        self.generator = Phase("generator", partial(self._generator, True), graphs, watch)
        self.unjudged = Phase("generator alone", partial(self._generator, False), graphs, watch)

    def _draw_ahead(self) -> Stats:
        self.feed.draw()
        return {}

    def _critic(self, with_penalty: bool) -> Stats:
        """Score reals above fakes of the same classes, and stay flat where the penalty asks it."""
        batch = self.feed.critic()
        real, labels = batch.real, batch.labels
        fake = self._drawing(batch.z, labels, batch.given)
        stats = self._critic_step(
            *(real, fake, labels),
            eps=batch.eps,
            noise=batch.noise,
            with_penalty=with_penalty,
            penalty_share=batch.penalty_share,
            transforms=self._transforms(batch),
            condition=batch.shown,
        )
        augmentation, clip = self._state.augmentation, self._config.loss.clip
        if augmentation is not None and augmentation.adaptive:
            stats |= {"augment_p": augmentation.adapt(stats["real_accuracy"])}
        self._state.optimizer_critic.move(batch.rate, limit=clip, beta2=batch.beta2)
        return stats | {"thumbnails": thumbnails(real, fake)}

    def _generator(self, judged: bool) -> Stats:
        """Make fakes of the classes last shown that the critic scores high; the average follows.

        Not ``judged``: they come near the reals of their conditions, and the critic rests.
        """
        batch = self.feed.generator()
        stats = self._generator_step(
            *(batch.z, batch.labels, batch.real),
            transforms=self._transforms(batch),
            given=batch.given,
            shown=batch.shown,
            judged=judged,
        )
        self._state.optimizer_generator.move(batch.rate, batch.decay, beta2=batch.beta2)
        return stats

    def _transforms(self, batch: CriticFeed | GeneratorFeed) -> Tensor | None:
        augmentation = self._state.augmentation
        if augmentation is None or batch.uniforms is None:
            return None
        return augmentation.transforms(batch.uniforms, batch.augment_p)


def watch_of(state: State, data: ResidentData, config: Config) -> Watch:
    """Both networks, as the phases call them."""
    pictures, labels = data.batch(0, config.batch)
    task = task_of(config, config.size, config.channels)
    index = torch.arange(config.batch, device=data.device)
    given = task.derive(pictures, index, config.seed) if task else None
    shown = task.show(given) if task and given is not None else None
    labels = labels if config.conditional != "no" else None
    z = torch.zeros(config.batch, config.net.latent, device=data.device)
    judged = labels if getattr(state.critic, "takes_labels", False) else None
    calls = (
        (state.critic, (behind(pictures, shown), judged)),
        (state.generator, (z, labels, given)),
    )
    return Watch(calls, autocast_of(config))


def train_loop(
    state: State,
    data: ResidentData,
    config: Config,
    critic_step: CriticStep,
    generator_step: GeneratorStep,
    stop: Callable[[], bool],
    on_step: OnStep,
    drawing: Drawing | None = None,
) -> None:
    """Run steps until config.kimg thousand reals are shown or ``stop()`` is true.

    ``drawing`` makes the critic's fakes; None = the generator as it is.
    """
    drawing, own = drawing or make_drawing(state.generator), device_generator(data.device)
    watch = watch_of(state, data, config) if data.device.type == "cuda" else None
    refusal = watch.refusal() if watch else ""
    refusal = refusal if data.resident else "the pictures are streamed from host memory"
    graphs = Graphs(config.cuda_graphs, data.device, refusal)
    phases = Iteration(state, data, config, critic_step, generator_step, drawing, graphs, watch)

    while state.images < config.kimg * 1000 and not stop():
        # What networks draw themselves, as dropout does, follows from the counter: a run that
        # was stopped here goes on with the same numbers.
        own.manual_seed((config.seed * 0x9E3779B97F4A7C15 + state.images) % 2**63)
        if phases.feed.due(state.images):
            phases.feed.set(state.images)
            phases.draws()

        # Critic: several turns. A lazy penalty may fall on any, so statistics of all are joined.
        critic_stats: Stats = {}
        judged = state.images >= config.loss.pixel_only_kimg * 1000
        for _ in range(config.optim.critic_steps):
            penalised = state.images // config.batch % config.penalty.interval == 0
            if judged:
                critic_stats |= (phases.penalised_critic if penalised else phases.plain_critic)()
            else:
                phases.feed.skip()
            state.images += config.batch

        # Generator: one turn.
        generator_stats = (phases.generator if judged else phases.unjudged)()
        on_step(state, critic_stats, generator_stats)
