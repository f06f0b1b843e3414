"""The ways to compute one iteration, and the proof that they compute the same."""

import math
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np
import torch

from ganfast.bench.ours import Ours
from ganfast.bench.plain import Plain, Step, pictures, whole_generator_loss
from ganfast.bench.problem import Inputs, Problem
from ganfast.bench.timing import untimed
from ganfast.engine import make_critic_step
from ganfast.engine.check import full_float32
from ganfast.errors import InputError, RunError
from ganfast.losses import loss_of

PROVEN = ("critic", "generator")  # phases that every variant has
# In some batches a value rounds across a kink in one variant and not in another, an error of
# neither. So several seeds are tried.
SEEDS = 8
# Relative error of the whole gradient in fp32: a right gradient meets it on at least one seed, a
# wrong one on none.
EXACT = 1e-4


class Prepared(Protocol):
    """A variant ready to run.

    Every phase is a whole one: pictures and latents, gradients, Adam, and what follows it.
    """

    phases: dict[str, Step]
    ahead: int  # iterations that one "draw" phase serves, where there is one

    def load(self, seed: int) -> None:
        """Initial weights of a seed, Adam's moments 0, all in place."""

    def used(self, phase: str) -> Inputs:
        """What the first call of a phase after `load` was fed."""

    def gradients(self, phase: str) -> list[np.ndarray]:
        """What Adam was given by the first call of a phase after `load`."""

    def wait(self) -> None: ...


class TorchPrepared:
    """Networks and Adam of a torch variant, loaded in place, so that a captured graph sees them."""

    def __init__(self, problem: Problem, steps: Any) -> None:
        self._problem, self._steps = problem, steps
        self.phases, self.ahead, self.used = steps.phases, steps.ahead, steps.used

    @torch.no_grad()
    def load(self, seed: int) -> None:
        steps, (generator, critic) = self._steps, self._problem.networks(seed)
        steps.generator.load_state_dict(generator.state_dict())
        steps.critic.load_state_dict(critic.state_dict())
        steps.average.load_state_dict(generator.state_dict())
        for optimizer in (steps.adam_generator, steps.adam_critic):
            for state in optimizer.state.values():
                for value in state.values():
                    value.zero_()
        steps.rewind()

    def gradients(self, phase: str) -> list[np.ndarray]:
        adam, net = getattr(self._steps, f"adam_{phase}"), getattr(self._steps, phase)
        scale = 1 / (1 - self._problem.config.optim.beta1)
        moments = [adam.state[p]["exp_avg"] * scale for p in net.parameters()]
        return [moment.cpu().double().numpy() for moment in moments]

    def wait(self) -> None:
        if self._problem.device.type == "cuda":
            torch.cuda.synchronize()


def _xla(problem: Problem) -> Prepared:
    if find_spec("jax") is None:
        raise InputError("JAX is not installed: pip install 'ganfast[jax]'")
    # Else XLA takes 75% of a GPU's memory, once for all, at its first use.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    from ganfast.bench.xla import Xla

    return Xla(problem)


def _plain(**flags: bool) -> Callable[[Problem], Prepared]:
    return lambda problem: TorchPrepared(problem, Plain(problem, **flags))


def _ours(**flags: Any) -> Callable[[Problem], Prepared]:
    return lambda problem: TorchPrepared(problem, Ours(problem, unpenalised=True, **flags))


@dataclass(frozen=True)
class Variant:
    """One way to compute the iteration."""

    prepare: Callable[[Problem], Prepared]
    baseline: bool
    gpu: bool = False  # only there
    counted: bool = False  # its operations pass torch's dispatcher, where they can be counted


# docs/guides/benchmark.md says what each is. "-graph" captures every phase in a CUDA graph.
VARIANTS: dict[str, Variant] = {
    "naive": Variant(_plain(tuned=False), True, counted=True),
    "tuned": Variant(_plain(), True, counted=True),
    "compiled": Variant(_plain(compile=True), True),
    "tuned-graph": Variant(_plain(graph=True), True, gpu=True),
    "compiled-graph": Variant(_plain(compile=True, graph=True), True, gpu=True),
    "jax": Variant(_xla, True),
    "ganfast": Variant(_ours(), False, counted=True),
    "ganfast-compiled": Variant(_ours(compile=True), False),
    "ganfast-graph": Variant(_ours(graph=True), False, gpu=True),
    "ganfast-compiled-graph": Variant(_ours(compile=True, graph=True), False, gpu=True),
    "ganfast-autograd-compiled": Variant(_ours(engine="autograd", compile=True), False),
}
DEFAULT = ("naive", "tuned", "jax", "ganfast")


def exact_gradients(problem: Problem, seed: int, phase: str, inputs: Inputs) -> list[np.ndarray]:
    """Of a phase by the definition, in float64 and plain PyTorch on the problem's device.

    The weights are the initial ones of a seed. cuDNN does not time its algorithms for float64,
    which would take longer than all the rest.
    """
    c, device = problem.config, problem.device
    generator, critic = (net.to(device, torch.float64) for net in problem.networks(seed))
    real, z, eps = (t.to(device, torch.float64) for t in (inputs.real, inputs.z, inputs.eps))
    labels = None if inputs.labels is None else inputs.labels.to(device)
    noise = None if inputs.noise is None else inputs.noise.to(device, torch.float64)
    if phase == "critic":
        with torch.no_grad():
            fake = pictures(generator, z, labels)
        step = make_critic_step(critic, c.loss, c.penalty, engine="reference", check=False)
        step(real, fake, labels, eps=eps, noise=noise)
    else:
        paired = real if loss_of(c.loss).pairs else None
        loss = whole_generator_loss((generator, critic), c.loss, z, labels, paired)
        loss.backward(inputs=list(generator.parameters()))
    net = critic if phase == "critic" else generator
    return [p.grad.cpu().numpy().copy() for p in net.parameters() if p.grad is not None]


def distance(gradients: Sequence[np.ndarray], exact: Sequence[np.ndarray]) -> float:
    """|gradients - exact| / |exact| of all gradients as one vector."""
    gap = sum(float(np.square(g - e).sum()) for g, e in zip(gradients, exact, strict=True))
    return math.sqrt(gap / sum(float(np.square(e).sum()) for e in exact))


def prove(problem: Problem, variant: Prepared) -> dict[str, float]:
    """Errors of both phases against float64, of the very callables that are timed.

    Both sides get the inputs that the variant was fed.

    Raises:
        RunError: a gradient is wrong on every seed.
    """
    allowed = EXACT if problem.autocast is None else 0.1
    errors = dict.fromkeys(PROVEN, math.inf)
    with full_float32() if problem.autocast is None else nullcontext():
        for seed in range(SEEDS):
            for phase in PROVEN:
                if errors[phase] > allowed:
                    variant.load(seed)
                    variant.phases[phase]()
                    variant.wait()
                    gradients = variant.gradients(phase)
                    with untimed():
                        exact = exact_gradients(problem, seed, phase, variant.used(phase))
                    errors[phase] = min(errors[phase], distance(gradients, exact))
            if max(errors.values()) <= allowed:
                return errors
    worst = max(errors, key=lambda phase: errors[phase])
    raise RunError(
        f"gradients of the {worst} are {errors[worst]:.2g} off float64 on each of {SEEDS} seeds, "
        f"{allowed:g} allowed"
    )


def first_calls(variant: Prepared, now: Callable[[], float]) -> dict[str, float]:
    """Seconds of the first call of each phase: compilation, capture, first touch.

    Adam makes its state in it.
    """
    first = {}
    for phase, run in variant.phases.items():
        start = now()
        run()
        variant.wait()
        first[phase] = now() - start
    return first
