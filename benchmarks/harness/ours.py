"""The iteration that `ganfast train` runs: the phases of `ganfast.training.loop` themselves, each callable alone."""

from functools import partial

import torch

from ganfast.bench.plain import Step
from ganfast.bench.problem import Inputs, Problem
from ganfast.config import EngineName
from ganfast.data.resident import ResidentData
from ganfast.device import prepared
from ganfast.engine import make_critic_step, make_drawing, make_generator_step
from ganfast.training.feed import CriticFeed, GeneratorFeed
from ganfast.training.loop import Iteration
from ganfast.training.phases import Graphs, Phase
from ganfast.training.state import State


class Ours:
    """Phases of one problem. Beside critic and generator there is what is drawn ahead, once for ``self.ahead`` iterations.

    Args:
        engine: as in the config.
        compile: the steps.
        graph: capture the phases; InputError where they cannot be.
        unpenalised: where there is a penalty, add the phase "critic without penalty": what it costs is the ratio of the two.
    """

    def __init__(
        self,
        problem: Problem,
        engine: EngineName = "auto",
        compile: bool = False,
        graph: bool = False,
        unpenalised: bool = False,
    ) -> None:
        c, device, self.problem = problem.config, problem.device, problem
        data = ResidentData(problem.pack, device, c.seed)
        generator, critic = (prepared(net, device) for net in problem.networks(0))
        self.state = State.of(generator, critic, c, problem.autocast)
        self.generator, self.critic = self.state.generator, self.state.critic
        self.average = self.state.average
        self.adam_generator = self.state.optimizer_generator
        self.adam_critic = self.state.optimizer_critic
        twins = self.adam_generator.computing, self.adam_critic.computing
        critic_step = make_critic_step(
            self.critic,
            c.loss,
            c.penalty,
            problem.autocast,
            engine,
            compile,
            check=False,
            computing=twins[1],
        )
        generator_step = make_generator_step(
            self.generator, self.critic, c.loss, problem.autocast, compile, twins, check=False
        )
        drawing = make_drawing(self.generator, problem.autocast, compile, twins[0])
        graphs = Graphs("on" if graph else "off", device)
        iteration = Iteration(self.state, data, c, critic_step, generator_step, drawing, graphs)
        self.feed, self.ahead = iteration.feed, iteration.feed.ahead
        self._turns = self.ahead * c.optim.critic_steps
        self.phases: dict[str, Step] = {
            "critic": partial(self._turn, iteration.penalised_critic),
            "generator": iteration.generator,
            "draw": iteration.draws,
        }
        if unpenalised and c.penalty.active:
            self.phases["critic without penalty"] = partial(self._turn, iteration.plain_critic)
        self.feed.set(0)
        self.feed.draw()
        self.rewind()
        for phase in self.phases.values() if graph else ():
            for _ in range(
                5
            ):  # a phase is captured behind its first calls, and what is captured is to be proven
                phase()

    def rewind(self) -> None:
        """To the second turn, so that the generator has pictures last shown; the weights may be others than before."""
        for optimizer in (self.adam_generator, self.adam_critic):
            optimizer.renew()
        self.feed.set(0)
        self.feed.clock.fill_(self.problem.config.batch)
        self._at = 1

    def used(self, phase: str) -> Inputs:
        """What the first call of a phase after `rewind` is fed."""
        self.feed.clock.fill_(
            self.problem.config.batch if self._turns > 1 or phase == "generator" else 0
        )
        given: CriticFeed | GeneratorFeed = (
            self.feed.critic() if phase == "critic" else self.feed.generator()
        )
        real = torch.empty(0) if given.real is None else given.real
        eps, noise = (given.eps, given.noise) if isinstance(given, CriticFeed) else (None, None)
        self.rewind()
        return Inputs(real, given.z, torch.empty(0) if eps is None else eps, noise, given.labels)

    def _turn(self, critic: Phase) -> None:
        if (
            self._at >= self._turns
        ):  # the same tables again: what they hold does not matter to speed
            self.feed.set(0)
            self._at = 0
        self._at += 1
        critic()
