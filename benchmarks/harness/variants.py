"""The ways to compute one iteration that are measured against each other, and the proof that they compute the same."""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ganfast.bench.ours import Ours
from ganfast.bench.plain import Plain, Step, pictures, whole_generator_loss
from ganfast.bench.problem import Inputs, Problem
from ganfast.engine import make_critic_step
from ganfast.engine.check import full_float32
from ganfast.errors import InputError, RunError
from ganfast.losses import loss_of

PROVEN = ("critic", "generator")  # phases that every variant has
SEEDS = 8  # in some batches a value rounds across a kink in one variant and not in another, which is no error of either
EXACT = 1e-4  # relative error of the whole gradient in fp32 on at least one seed: a wrong gradient has it on none


class Prepared(Protocol):
    """A variant ready to run. Every phase is a whole one: pictures and latents, gradients, Adam, and what follows it."""

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

    def __init__(self, problem: Problem, made: Any) -> None:
        self._problem, self._made, self.phases, self.ahead = problem, made, made.phases, made.ahead

    @torch.no_grad()
    def load(self, seed: int) -> None:
        made, fresh = self._made, self._problem.networks(seed)
        for net, new in zip(
            (made.generator, made.critic, made.average), (*fresh, fresh[0]), strict=True
        ):
            net.load_state_dict(new.state_dict())
        for optimizer in (made.adam_generator, made.adam_critic):
            for state in optimizer.state.values():
                for value in state.values():
                    value.zero_()
        made.rewind()

    def used(self, phase: str) -> Inputs:
        return self._made.used(phase)

    def gradients(self, phase: str) -> list[np.ndarray]:
        adam = getattr(self._made, f"adam_{phase}")
        scale = 1 / (1 - self._problem.config.optim.beta1)
        return [
            (adam.state[p]["exp_avg"] * scale).cpu().double().numpy()
            for p in getattr(self._made, phase).parameters()
        ]

    def wait(self) -> None:
        if self._problem.device.type == "cuda":
            torch.cuda.synchronize()


def _xla(problem: Problem) -> Prepared:
    if find_spec("jax") is None:
        raise InputError("JAX is not installed: pip install 'ganfast[jax]'")
    from ganfast.bench.xla import Xla

    return Xla(problem)


def _plain(**flags: bool) -> Callable[[Problem], Prepared]:
    return lambda problem: TorchPrepared(problem, Plain(problem, **flags))


def _ours(**flags: Any) -> Callable[[Problem], Prepared]:
    return lambda problem: TorchPrepared(problem, Ours(problem, unpenalised=True, **flags))


@dataclass(frozen=True)
class Variant:
    """One way to compute the iteration."""

    what: str
    prepare: Callable[[Problem], Prepared]
    baseline: bool
    gpu: bool = False  # only there
    counted: bool = False  # its operations pass torch's dispatcher, where they can be counted


VARIANTS: dict[str, Variant] = {
    "naive": Variant(
        "fp32, contiguous, three forward passes, Adam as torch makes it",
        _plain(tuned=False),
        True,
        counted=True,
    ),
    "tuned": Variant(
        "the precision asked for, channels last, merged loss rows, fused Adam",
        _plain(),
        True,
        counted=True,
    ),
    "compiled": Variant(
        "tuned, under torch.compile with its second derivatives", _plain(compile=True), True
    ),
    "tuned-graph": Variant(
        "tuned, each phase captured in a CUDA graph", _plain(graph=True), True, gpu=True
    ),
    "compiled-graph": Variant(
        "compiled, captured", _plain(compile=True, graph=True), True, gpu=True
    ),
    "jax": Variant("jax.jit of each phase, NHWC, buffers donated", _xla, True),
    "ganfast": Variant(
        "the phases of ganfast train with the engine that auto takes", _ours(), False, counted=True
    ),
    "ganfast-compiled": Variant("the same with --compile on", _ours(compile=True), False),
    "ganfast-graph": Variant(
        "the same with --compile off --cuda-graphs on", _ours(graph=True), False, gpu=True
    ),
    "ganfast-compiled-graph": Variant(
        "compiled and captured, as on a GPU", _ours(compile=True, graph=True), False, gpu=True
    ),
    "ganfast-autograd-compiled": Variant(
        "engine autograd, compiled", _ours(engine="autograd", compile=True), False
    ),
}
DEFAULT = ("naive", "tuned", "jax", "ganfast")


def exact_gradients(problem: Problem, seed: int, phase: str, given: Inputs) -> list[np.ndarray]:
    """Of a phase by the definition, in float64 and plain PyTorch on the problem's device, at the initial weights of a seed."""
    c, device = problem.config, problem.device
    generator, critic = (net.to(device, torch.float64) for net in problem.networks(seed))
    real, z, eps = (t.to(device, torch.float64) for t in (given.real, given.z, given.eps))
    labels = None if given.labels is None else given.labels.to(device)
    noise = None if given.noise is None else given.noise.to(device, torch.float64)
    if phase == "critic":
        with torch.no_grad():
            fake = pictures(generator, z, labels)
        make_critic_step(critic, c.loss, c.penalty, engine="reference", check=False)(
            real, fake, labels, eps=eps, noise=noise
        )
    else:
        paired = real if loss_of(c.loss).pairs else None
        whole_generator_loss(generator, critic, c.loss, z, labels, paired).backward(
            inputs=list(generator.parameters())
        )
    net = critic if phase == "critic" else generator
    return [_array(p.grad) for p in net.parameters() if p.grad is not None]


def _array(x: Tensor) -> np.ndarray:
    return x.cpu().numpy().copy()


def distance(found: Sequence[np.ndarray], exact: Sequence[np.ndarray]) -> float:
    """|found - exact| / |exact| of all gradients as one vector."""
    gap = sum(float(np.square(f - e).sum()) for f, e in zip(found, exact, strict=True))
    return math.sqrt(gap / sum(float(np.square(e).sum()) for e in exact))


def prove(problem: Problem, variant: Prepared) -> dict[str, float]:
    """Errors of both phases against float64, of the very callables that are timed, on what they were fed.

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
                    found = variant.gradients(phase)
                    errors[phase] = min(
                        errors[phase],
                        distance(found, exact_gradients(problem, seed, phase, variant.used(phase))),
                    )
            if max(errors.values()) <= allowed:
                return errors
    worst = max(errors, key=lambda phase: errors[phase])
    raise RunError(
        f"gradients of the {worst} are {errors[worst]:.2g} off float64 on each of {SEEDS} seeds, {allowed:g} allowed"
    )


def first_calls(variant: Prepared, now: Callable[[], float]) -> dict[str, float]:
    """Seconds of the first call of each phase: compilation, capture, first touch; Adam makes its state."""
    first = {}
    for phase, run in variant.phases.items():
        start = now()
        run()
        variant.wait()
        first[phase] = now() - start
    return first
