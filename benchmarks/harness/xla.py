"""The same GAN iteration in JAX, compiled by XLA: one `jax.jit` a phase, all buffers donated.

A phase gathers pictures from the device, draws latents, and computes gradients, Adam and average.

XLA removes the dead products with zero that torch's double backward leaves in, so this is the
strongest alternative.
"""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax import lax
from torch import nn

from ganfast.bench.problem import Inputs, Problem
from ganfast.bench.xla_nets import Array, CriticNet, GeneratorNet, Params
from ganfast.config import LossConfig, PenaltyConfig
from ganfast.errors import InputError
from ganfast.fields import ends
from ganfast.penalties import penalty_of

ADAM_EPS = 1e-8


class Xla:
    """Phases as `Plain` has them. Every phase is donated ``state`` and returns the next one."""

    def __init__(self, problem: Problem) -> None:
        if torch.cuda.is_available() and jax.default_backend() != "gpu":
            raise InputError("this JAX sees no GPU: pip install 'jax[cuda13]'")
        self.problem, c = problem, problem.config
        if c.loss.kind not in CRITIC_LOSSES.keys() & GENERATOR_LOSSES.keys():
            raise InputError(
                f"the JAX variant does not know the loss {c.loss.kind}; expected one of "
                f"{', '.join(CRITIC_LOSSES)}: add its formulas to {Path(__file__).name}"
            )
        if c.penalty.active and c.penalty.kind not in PENALTIES:
            raise InputError(
                f"the JAX variant does not know the penalty {c.penalty.kind}; expected one of "
                f"{', '.join(PENALTIES)}: add it to {Path(__file__).name}"
            )
        if problem.autocast == torch.float16:
            raise InputError("the JAX variant has no loss scale: give --precision fp32 or bf16")
        dtype = jnp.bfloat16 if problem.autocast is not None else jnp.float32
        generator, critic = problem.networks(0)
        self.critic = CriticNet(critic, (c.channels, c.size, c.size), dtype)  # type: ignore[arg-type]
        self.generator = GeneratorNet(generator, c.net.latent, dtype)  # type: ignore[arg-type]
        batch_norms = nn.modules.batchnorm._BatchNorm
        self.batch_norm = any(isinstance(m, batch_norms) for m in critic.modules())
        pictures, labels = problem.pack.images, problem.pack.labels
        self.data = {
            "pictures": jnp.asarray(np.ascontiguousarray(pictures.transpose(0, 2, 3, 1))),
            "labels": None if labels is None else jnp.asarray(labels.astype(np.int32)),
        }
        self.load(0)
        self.ahead = 1
        self._jitted = {
            "critic": jax.jit(self._critic_phase, donate_argnums=0),
            "generator": jax.jit(self._generator_phase, donate_argnums=0),
        }
        self.phases: dict[str, Callable[[], object]] = {
            name: partial(self._run, phase) for name, phase in self._jitted.items()
        }

    def load(self, seed: int) -> None:
        self._torch_nets = generator, critic = self.problem.networks(seed)
        nets = {"g": self.generator.params(generator), "c": self.critic.params(critic)}
        self.state = {
            "p": nets,
            "m": jax.tree.map(jnp.zeros_like, nets),
            "v": jax.tree.map(jnp.zeros_like, nets),
            "t": {"g": jnp.zeros(()), "c": jnp.zeros(())},
            "b": {"g": self.generator.buffers(generator), "c": self.critic.buffers(critic)},
            "average": jax.tree.map(jnp.copy, nets["g"]),
            "key": jax.random.key(seed, impl="rbg"),
            "shown": jnp.arange(self.problem.config.batch),  # pictures that the critic saw last
        }
        self._key = jax.random.key(seed, impl="rbg")
        self.wait()

    def used(self, phase: str) -> Inputs:
        """What the first call of a phase after `load` drew."""
        batch, _ = self._fed(self._key, self.data)
        eps = _torch(batch["eps"])
        if phase == "generator":
            z = self._latents(jax.random.split(self._key, 3)[0])
            batch = self._pictures(jnp.arange(len(z)), self.data) | {"z": z}
            eps = torch.zeros(len(z))
        noise, labels = batch.get("noise"), batch["labels"]
        return Inputs(
            _torch(batch["real"]).permute(0, 3, 1, 2),
            _torch(batch["z"]),
            eps,
            None if noise is None else _torch(noise).permute(0, 3, 1, 2),
            None if labels is None else _torch(labels).long(),
        )

    def _pictures(self, index: Array, data: Any) -> dict[str, Array]:
        labels = None if data["labels"] is None else data["labels"][index]
        return {"real": data["pictures"][index].astype(jnp.float32) / 127.5 - 1, "labels": labels}

    def _latents(self, key: Array) -> Array:
        c = self.problem.config
        return jax.random.normal(key, (c.batch, c.net.latent))

    def _fed(self, key: Array, data: Any) -> tuple[dict[str, Array], Array]:
        """What a critic phase is given, and which pictures they are."""
        which, latents, epsilons, noises = jax.random.split(key, 5)[1:]
        index = jax.random.randint(which, (self.problem.config.batch,), 0, len(data["pictures"]))
        batch = self._pictures(index, data)
        batch |= {"z": self._latents(latents), "eps": jax.random.uniform(epsilons, (len(index),))}
        if self.problem.draws_noise:
            batch["noise"] = jax.random.uniform(noises, batch["real"].shape)
        return batch, index

    def wait(self) -> None:
        jax.block_until_ready(self.state)

    def gradients(self, phase: str) -> list[np.ndarray]:
        """What Adam was given by the first call after `load`, in torch's order and layout."""
        scale = 1 / (1 - self.problem.config.optim.beta1)
        first = {name: m * scale for name, m in self.state["m"][phase[0]].items()}
        generator, critic = self._torch_nets
        if phase == "generator":
            return self.generator.back(first, generator)
        return self.critic.back(first, critic)

    def flops(self) -> dict[str, float]:
        """By XLA's own count of the compiled phase."""
        counts = {}
        for name, phase in self._jitted.items():
            analysis: Any = phase.lower(self.state, self.data).compile().cost_analysis()
            costs = analysis[0] if isinstance(analysis, list) else analysis or {}
            counts[name] = float(costs.get("flops", math.nan))
        return counts

    def _run(self, phase: Callable[[Any, Any], Any]) -> None:
        self.state = phase(self.state, self.data)

    def _critic_phase(self, state: Any, data: Any) -> Any:
        clip, p, b = self.problem.config.loss.clip, state["p"], state["b"]
        batch, shown = self._fed(state["key"], data)
        key, next_key = jax.random.split(jax.random.fold_in(state["key"], 1))
        new_g: Params = {}
        drawn = self.generator(p["g"], b["g"], new_g, batch["z"], batch["labels"])
        held = self.critic.iterated(p["c"], b["c"])
        gradient, new_c = jax.grad(self._critic_loss, has_aux=True)(
            p["c"], held, batch, lax.stop_gradient(drawn), key
        )
        state = self._adam(state, "c", gradient)
        if clip:
            clipped = jax.tree.map(lambda x: jnp.clip(x, -clip, clip), state["p"]["c"])
            state["p"] = state["p"] | {"c": clipped}
        buffers = {"g": b["g"] | new_g, "c": held | new_c}
        return state | {"b": buffers, "key": next_key, "shown": shown}

    def _critic_loss(
        self, p: Params, b: Params, batch: Any, fake: Array, key: Array
    ) -> tuple[Array, Params]:
        """The loss, and the critic's buffers behind it."""
        c, real, labels = self.problem.config, batch["real"], batch["labels"]
        new: Params = {}

        def judge(x: Array, y: Array, k: int) -> tuple[Array, Array]:
            return self.critic(p, b, new, x, y, jax.random.fold_in(key, k))

        penalty = penalty_of(c.penalty) if c.penalty.active else None
        gradients: list[Array] = []
        if penalty is not None and penalty.pictures:
            answers = []
            for k, (name, x) in enumerate((("real", real), ("fake", fake))):
                if name in penalty.pictures:
                    of_labels = partial(judge, y=labels, k=k)
                    score, pull, classes = jax.vjp(of_labels, x, has_aux=True)
                    gradients.append(pull(jnp.ones_like(score))[0])
                    answers.append((score, classes))
                else:
                    answers.append(judge(x, labels, k))
        elif self.batch_norm:
            answers = [judge(real, labels, 0), judge(fake, labels, 1)]
        else:  # one forward of 2 N rows
            both = None if labels is None else jnp.concatenate((labels, labels))
            score, classes = judge(jnp.concatenate((real, fake)), both, 0)
            halves = slice(None, len(real)), slice(len(real), None)
            answers = [(score[h], None if classes is None else classes[h]) for h in halves]
        (real_score, real_classes), (fake_score, fake_classes) = answers
        total = CRITIC_LOSSES[c.loss.kind](c.loss, real_score, fake_score).mean()
        if penalty is not None and penalty.points:
            x = _points(c.penalty.kind, real, fake, batch)
            gradient = jax.grad(lambda x: judge(x, labels, 2)[0].sum())(x)
            total = total + _norm_penalty(c.penalty, gradient)
        for gradient in gradients:
            total = total + c.penalty.full_weight / 2 * (gradient**2).sum((1, 2, 3)).mean()
        if real_classes is not None:
            of_fakes = _class_loss(fake_classes, labels) if c.loss.class_fakes else 0.0
            total = total + c.loss.class_weight * (_class_loss(real_classes, labels) + of_fakes)
        return total, new

    def _generator_phase(self, state: Any, data: Any) -> Any:
        """Of the classes last shown, as in training."""
        p, b = state["p"], state["b"]
        latents, key, next_key = jax.random.split(state["key"], 3)
        batch = self._pictures(state["shown"], data) | {"z": self._latents(latents)}
        gradient, new_g = jax.grad(self._generator_loss, has_aux=True)(
            p["g"], p["c"], b, batch, key
        )
        state = self._adam(state, "g", gradient)
        average, moved = state["average"], state["p"]["g"]
        average = jax.tree.map(lambda a, x: a + 1e-3 * (x - a), average, moved)
        return state | {"b": b | {"g": b["g"] | new_g}, "average": average, "key": next_key}

    def _generator_loss(
        self, p: Params, critic: Params, b: Any, batch: Any, key: Array
    ) -> tuple[Array, Params]:
        loss, labels = self.problem.config.loss, batch["labels"]
        new: Params = {}
        fake = self.generator(p, b["g"], new, batch["z"], labels)
        score, classes = self.critic(critic, b["c"], {}, fake, labels, key)
        real = None
        if loss.kind == "relativistic":
            real, _ = self.critic(critic, b["c"], {}, batch["real"], labels, key)
        total = GENERATOR_LOSSES[loss.kind](score, real).mean()
        if classes is not None:
            total = total + loss.class_weight_generator * _class_loss(classes, labels)
        return total, new

    def _adam(self, state: Any, net: str, gradient: Params) -> Any:
        """The state with one network ("g" or "c") moved. arXiv:1412.6980, algorithm 1."""
        optim = self.problem.config.optim
        rate, _ = ends(optim.lr_generator if net == "g" else optim.lr_critic)
        b1, b2, t = optim.beta1, ends(optim.beta2)[0], state["t"][net] + 1
        p, m, v = (state[name][net] for name in "pmv")
        m = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, m, gradient)
        v = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, v, gradient)
        step, root = rate / (1 - b1**t), lax.rsqrt(1 - b2**t)
        p = jax.tree.map(lambda p, m, v: p - step * m / (jnp.sqrt(v) * root + ADAM_EPS), p, m, v)
        moved = {"p": p, "m": m, "v": v, "t": t}
        return state | {name: state[name] | {net: value} for name, value in moved.items()}


def _torch(x: Array) -> torch.Tensor:
    return torch.from_numpy(np.array(x))


PENALTIES = ("wgan-gp", "dragan", "r1", "r2", "r1+r2")
# As `ganfast.losses` has them, of scores (N,).
CRITIC_LOSSES: dict[str, Callable[[LossConfig, Array, Array], Array]] = {
    "minimax": lambda c, real, fake: _saturating(c, real, fake),
    "non-saturating": lambda c, real, fake: _saturating(c, real, fake),
    "wasserstein": lambda c, real, fake: fake - real,
    "least-squares": lambda c, real, fake: 0.5 * (real - 1) ** 2 + 0.5 * fake**2,
    "hinge": lambda c, real, fake: jax.nn.relu(1 - real) + jax.nn.relu(1 + fake),
    "relativistic": lambda c, real, fake: jax.nn.softplus(fake - real),
}
GENERATOR_LOSSES: dict[str, Callable[[Array, Array], Array]] = {
    "minimax": lambda fake, real: -jax.nn.softplus(fake),
    "non-saturating": lambda fake, real: jax.nn.softplus(-fake),
    "wasserstein": lambda fake, real: -fake,
    "least-squares": lambda fake, real: 0.5 * (fake - 1) ** 2,
    "hinge": lambda fake, real: -fake,
    "relativistic": lambda fake, real: jax.nn.softplus(real - fake),
}


def _saturating(c: LossConfig, real: Array, fake: Array) -> Array:
    return jax.nn.softplus(-real) + c.label_smoothing * real + jax.nn.softplus(fake)


def _class_loss(logits: Array, labels: Array) -> Array:
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1).mean()


def _points(kind: str, real: Array, fake: Array, batch: Any) -> Array:
    """Where a penalty with points of its own looks."""
    if kind == "dragan":
        return real + 0.5 * real.std(ddof=1) * batch["noise"]
    if kind == "wgan-gp":
        eps = batch["eps"][:, None, None, None]
        return eps * real + (1 - eps) * fake
    raise InputError(f"the JAX variant has no penalty {kind!r}; leave jax out of --variants")


def _norm_penalty(penalty: PenaltyConfig, gradient: Array) -> Array:
    excess = jnp.sqrt((gradient**2).sum((1, 2, 3))) - penalty.target
    if penalty.one_sided:
        excess = jnp.maximum(excess, 0)
    return penalty.full_weight * (excess**2).mean()
