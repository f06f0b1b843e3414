"""The training loop: which network is updated when.

An `Iteration` composes the phases of a step; `train_loop` runs them until enough reals are shown.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ganfast.config import Config
from ganfast.data.resident import ResidentData
from ganfast.device import autocast_of
from ganfast.engine import CriticStep, Drawing, GeneratorStep, make_drawing
from ganfast.fields import parts_of
from ganfast.models.dropout import draws_by_part, part_of_batch
from ganfast.random import device_generator
from ganfast.tasks import task_of
from ganfast.tensors import behind
from ganfast.training.feed import AnyFeed, CriticFeed, Feed, GeneratorFeed, part_of
from ganfast.training.phases import Graphs, Phase, Stats, Watch
from ganfast.training.ranks import ALONE, Ranks
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
        ranks: Ranks = ALONE,
    ) -> None:
        """``drawing`` makes the critic's fakes; ``graphs`` says whether phases are captured, and
        ``watch`` what must not change while they are replayed."""
        self.feed, self._ranks = Feed(config, data, ranks.rows(config)), ranks
        self._state, self._config, self._drawing = state, config, drawing
        self._critic_step, self._generator_step = critic_step, generator_step
        self.draws_by_part = draws_by_part(state.generator, state.critic)
        self._met: set[tuple[Any, bool]] = set()  # steps whose first call the ranks waited for
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
        noisy = with_penalty and batch.noise is not None
        std = self._ranks.std(batch.real) if noisy else None

        def step(part: CriticFeed) -> Stats:
            fake = self._drawing(part.z, part.labels, part.given)
            stats = self._critic_step(
                *(part.real, fake, part.labels),
                eps=part.eps,
                noise=part.noise,
                with_penalty=with_penalty,
                penalty_share=part.penalty_share,
                transforms=self._transforms(part),
                condition=part.shown,
                std=std,
            )
            return stats | {"thumbnails": thumbnails(part.real, fake)}

        stats = self._in_parts(self._critic_step, with_penalty, batch, step)
        augmentation, clip = self._state.augmentation, self._config.loss.clip
        if augmentation is not None and augmentation.adaptive:
            share = stats["real_accuracy"].double()
            self._ranks.mean(share)
            stats |= {"augment_p": augmentation.adapt(share)}
        self._state.optimizer_critic.move(batch.rate, limit=clip, beta2=batch.beta2)
        return stats

    def _generator(self, judged: bool) -> Stats:
        """Make fakes of the classes last shown that the critic scores high; the average follows.

        Not ``judged``: they come near the reals of their conditions, and the critic rests.
        """
        batch = self.feed.generator()

        def step(part: GeneratorFeed) -> Stats:
            return self._generator_step(
                *(part.z, part.labels, part.real),
                transforms=self._transforms(part),
                given=part.given,
                shown=part.shown,
                judged=judged,
            )

        stats = self._in_parts(self._generator_step, judged, batch, step)
        self._state.optimizer_generator.move(batch.rate, batch.decay, beta2=batch.beta2)
        return stats

    def _in_parts(
        self,
        network: CriticStep | GeneratorStep,
        kind: bool,
        batch: AnyFeed,
        step: Callable[[AnyFeed], Stats],
    ) -> Stats:
        """Take ``step`` for each part of the batch: then the network's gradient is that of all
        parts of all ranks. ``kind``: with the penalty, or judged. Returns the statistics of this
        rank's parts."""
        ranks, parts = self._ranks, self._config.accumulate
        if parts == 1:
            with part_of_batch(ranks.rank, ranks.size):
                stats = step(batch)
        else:
            count, found = len(batch.z) // parts, []
            total = torch.zeros_like(network.gradients.flat)
            begun = torch.get_rng_state()
            nets = self._state.generator, self._state.critic
            buffers = [(x, x.clone()) for net in nets for x in net.buffers()]
            for number in range(parts):
                # Other layers would draw the same in every part. On a GPU no capture could put the
                # generator back.
                if self.draws_by_part and not total.is_cuda:
                    torch.set_rng_state(begun)
                for buffer, before in buffers:  # else spectral norms would move with every part
                    buffer.copy_(before)
                rows = slice(number * count, (number + 1) * count)
                with part_of_batch(ranks.rank * parts + number, ranks.size * parts):
                    found.append(step(part_of(batch, rows)))
                total.add_(network.gradients.flat, alpha=1 / parts)
            network.gradients.flat.copy_(total)
            stats = _joined(found)
        if ranks.together:
            if (network, kind) not in self._met:  # which one of them may have compiled for minutes
                ranks.most(0.0, patient=True)
                self._met.add((network, kind))
            ranks.mean(network.gradients.flat)
        return stats

    def _transforms(self, batch: CriticFeed | GeneratorFeed) -> Tensor | None:
        augmentation = self._state.augmentation
        if augmentation is None or batch.uniforms is None:
            return None
        return augmentation.transforms(batch.uniforms, batch.augment_p)


def _joined(parts: Sequence[Stats]) -> Stats:
    """Statistics of a batch from those of its equal parts; see `Ranks.statistics`."""

    def joined(name: str, values: list[Tensor]) -> Tensor:
        if name == "thumbnails":
            return torch.cat(values, dim=1)
        stacked = torch.stack(values)
        return stacked.amax(0) if name.endswith("_max") else stacked.mean(0)

    return {name: joined(name, [stats[name] for stats in parts]) for name in parts[0]}


def watch_of(state: State, data: ResidentData, config: Config, count: int) -> Watch:
    """Both networks, as the phases call them with ``count`` pictures."""
    pictures, labels = data.batch(0, count)
    task = task_of(config, config.size, config.channels)
    index = torch.arange(count, device=data.device)
    given = task.derive(pictures, index, config.seed) if task else None
    shown = task.show(given) if task and given is not None else None
    labels = labels if config.conditional != "no" else None
    z = torch.zeros(count, config.net.latent, device=data.device)
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
    ranks: Ranks = ALONE,
) -> None:
    """Run steps until config.kimg thousand reals are shown or ``stop()`` is true.

    ``drawing`` makes the critic's fakes; None = the generator as it is.
    """
    drawing, own = drawing or make_drawing(state.generator), device_generator(data.device)
    count = parts_of(config.batch, config.accumulate, ranks.size)
    watch = watch_of(state, data, config, count) if data.device.type == "cuda" else None
    refusal = watch.refusal() if watch else ""
    refusal = refusal if data.resident else "the pictures are streamed from host memory"
    graphs = Graphs(config.cuda_graphs, data.device, refusal)
    what = state, data, config, critic_step, generator_step, drawing, graphs, watch
    phases = Iteration(*what, ranks)
    # Where a network draws what only its own rows take, ranks must not draw the same.
    apart = 0 if phases.draws_by_part else ranks.rank

    while state.images < config.kimg * 1000 and not stop():
        # What networks draw themselves, as dropout does, follows from the counter: a run that
        # was stopped here goes on with the same numbers.
        own.manual_seed((config.seed * 0x9E3779B97F4A7C15 + state.images + apart) % 2**63)
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
