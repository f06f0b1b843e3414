"""The iteration that `ganfast train` runs: its own phases, each callable alone."""

from functools import partial
from typing import Any

import torch

from ganfast.bench.plain import Step
from ganfast.bench.problem import Inputs, Problem
from ganfast.config import EngineName
from ganfast.data.resident import ResidentData
from ganfast.device import prepared
from ganfast.engine import make_critic_step, make_drawing, make_generator_step
from ganfast.training.loop import Iteration
from ganfast.training.phases import Graphs, Phase
from ganfast.training.state import State


class Ours:
    """Phases of one problem.

    Beside critic and generator there is "draw", which serves ``self.ahead`` iterations.

    Args:
        engine: as in the config.
        compile: the steps.
        graph: capture the phases; InputError where they cannot be.
        unpenalised: under a penalty add the phase "critic without penalty". The ratio of the two
            is what the penalty costs.
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
        self.generator, self.critic = nets = self.state.generator, self.state.critic
        self.average, dtype = self.state.average, problem.autocast
        self.adam_generator = self.state.optimizer_generator
        self.adam_critic = self.state.optimizer_critic
        twins = self.adam_generator.computing, self.adam_critic.computing
        adams = self.adam_generator, self.adam_critic
        scales = [None if adam.scale is None else adam.scale.value for adam in adams]
        options: dict[str, Any] = {"check": False, "computing": twins[1], "scale": scales[1]}
        critic_step = make_critic_step(
            self.critic, c.loss, c.penalty, dtype, engine, compile, **options
        )
        options = {"check": False, "computing": twins, "scale": scales[0]}
        generator_step = make_generator_step(*nets, c.loss, dtype, compile, **options)
        drawing = make_drawing(self.generator, dtype, compile, twins[0])
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
        # A phase is captured behind its first calls, and the captured one is to be proven.
        for phase in self.phases.values() if graph else ():
            for _ in range(5):
                phase()

    def rewind(self) -> None:
        """To the second turn, so that the generator has pictures last shown.

        The weights may be others than before.
        """
        for optimizer in (self.adam_generator, self.adam_critic):
            optimizer.renew()
        self.feed.rewind()
        self.feed.critic()
        self._at = 1

    def used(self, phase: str) -> Inputs:
        """What the first call of a phase after `rewind` is fed."""
        self.rewind()
        fed = self.feed.critic() if phase == "critic" else self.feed.generator()
        real = torch.empty(0) if fed.real is None else fed.real
        eps, noise = getattr(fed, "eps", None), getattr(fed, "noise", None)
        self.rewind()
        return Inputs(real, fed.z, torch.empty(0) if eps is None else eps, noise, fed.labels)

    def _turn(self, critic: Phase) -> None:
        if self._at >= self._turns:  # the same tables again: speed does not depend on them
            self.feed.rewind()
            self._at = 0
        self._at += 1
        critic()
