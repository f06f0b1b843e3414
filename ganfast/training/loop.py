"""The training loop: who is updated when. It owns both optimizers and the average, and composes the phases of a step."""

from collections.abc import Callable
from functools import partial

from ganfast.config import Config
from ganfast.data.resident import ResidentData
from ganfast.engine import CriticStep, Drawing, GeneratorStep, make_drawing
from ganfast.random import device_generator
from ganfast.training.feed import Feed
from ganfast.training.phases import Graphs, Phase, Stats
from ganfast.training.state import State

OnStep = Callable[["State", Stats, Stats], None]


class Iteration:
    """The phases of an iteration, over the tensors of a state and of what is drawn ahead.

    `train_loop` runs them, and `ganfast bench` times them: what is measured is the program itself.
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
    ) -> None:
        """``drawing`` makes the critic's fakes; ``graphs`` says whether phases are captured."""
        self.feed = Feed(config, data)
        self._state, self._config = state, config
        self._critic_step, self._generator_step, self._drawing = (
            critic_step,
            generator_step,
            drawing,
        )
        self.draws = Phase("drawing", self._draw_ahead, graphs)
        self.plain_critic = Phase("critic", partial(self._critic, False), graphs)
        self.penalised_critic = Phase("penalised critic", partial(self._critic, True), graphs)
        self.generator = Phase("generator", self._generator, graphs)

    def _draw_ahead(self) -> Stats:
        self.feed.draw()
        return {}

    def _critic(self, with_penalty: bool) -> Stats:
        """Score reals above fakes of the same classes, and stay flat where the penalty asks for it."""
        inputs = self.feed.critic()
        fake = self._drawing(inputs.z, inputs.labels)
        stats = self._critic_step(
            inputs.real,
            fake,
            inputs.labels,
            eps=inputs.eps,
            noise=inputs.noise,
            with_penalty=with_penalty,
        )
        self._state.optimizer_critic.move(inputs.rate, limit=self._config.loss.clip)
        self.feed.clock.add_(self._config.batch)
        return stats

    def _generator(self) -> Stats:
        """Make fakes that the critic scores high, of the classes last shown; the average follows."""
        inputs = self.feed.generator()
        stats = self._generator_step(inputs.z, inputs.labels, inputs.real)
        self._state.optimizer_generator.move(inputs.rate, inputs.decay)
        return stats


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
    """Run generator steps, each after its critic steps, until config.kimg reals are shown or ``stop()`` is true.

    ``drawing`` makes the critic's fakes; None = the generator as it is.
    """
    drawing, own = drawing or make_drawing(state.generator), device_generator(data.device)
    refusal = "" if data.resident else "the pictures are streamed from host memory"
    graphs = Graphs(config.cuda_graphs, data.device, refusal)
    phases = Iteration(state, data, config, critic_step, generator_step, drawing, graphs)

    while state.images < config.kimg * 1000 and not stop():
        # For what networks draw themselves: dropout.
        own.manual_seed((config.seed * 0x9E3779B97F4A7C15 + state.images) % 2**63)
        if phases.feed.due(state.images):
            phases.feed.set(state.images)
            phases.draws()
        critic_stats: Stats = {}  # the latest of each: a lazy penalty may fall on any of the turns
        for _ in range(config.optim.critic_steps):
            due = state.images // config.batch % config.penalty.interval == 0
            critic_stats |= (phases.penalised_critic if due else phases.plain_critic)()
            state.images += config.batch
        on_step(state, critic_stats, phases.generator())
