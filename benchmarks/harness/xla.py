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
from ganfast.config import Config, LossConfig
from ganfast.errors import InputError
from ganfast.penalties import penalty_of

ADAM_EPS = 1e-8


class Xla:
    """Phases as `Plain` has them. ``state`` is donated to every phase and replaced by what it returns."""

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
        dtype = jnp.bfloat16 if problem.autocast is not None else jnp.float32
        self._torch_nets = problem.networks(0)
        generator, critic = self._torch_nets
        self.critic = CriticNet(critic, (c.channels, c.size, c.size), dtype)  # type: ignore[arg-type]
        self.generator = GeneratorNet(generator, c.net.latent, dtype)  # type: ignore[arg-type]
        self.batch_norm = any(
            isinstance(m, nn.modules.batchnorm._BatchNorm) for m in critic.modules()
        )
        pack = problem.pack
        labels = None if pack.labels is None else jnp.asarray(pack.labels.astype(np.int32))
        self.data = {
            "pictures": jnp.asarray(np.ascontiguousarray(pack.images.transpose(0, 2, 3, 1))),
            "labels": labels,
        }
        self._critic = jax.jit(self._critic_phase, donate_argnums=0)
        self._generator = jax.jit(self._generator_phase, donate_argnums=0)
        self.load(0)
        self.ahead = 1
        self.phases: dict[str, Callable[[], object]] = {
            "critic": partial(self._run, "_critic"),
            "generator": partial(self._run, "_generator"),
        }

    def load(self, seed: int) -> None:
        self._torch_nets = generator, critic = self.problem.networks(seed)
        nets = {"g": self.generator.params(generator), "c": self.critic.params(critic)}
        zeros = lambda tree: jax.tree.map(jnp.zeros_like, tree)
        self.state = {
            "p": nets,
            "m": zeros(nets),
            "v": zeros(nets),
            "t": {"g": jnp.zeros(()), "c": jnp.zeros(())},
            "b": {"g": self.generator.buffers(generator), "c": self.critic.buffers(critic)},
            "average": jax.tree.map(jnp.copy, nets["g"]),
            "key": jax.random.key(seed, impl="rbg"),
        }
        self.state["shown"] = jnp.arange(
            self.problem.config.batch
        )  # the pictures that the critic saw last
        self._key = jax.random.key(seed, impl="rbg")
        self.wait()

    def used(self, phase: str) -> Inputs:
        """What the first call of a phase after `load` drew."""
        given, _ = self._fed(self._key, self.data)
        z, labels = given["z"], given["labels"]
        if phase == "generator":
            given = self._pictures(jnp.arange(len(z)), self.data)
            z, labels = self._latents(jax.random.split(self._key, 3)[0]), given["labels"]
        there = lambda x: torch.from_numpy(np.array(x))
        pictures = {
            k: there(given[k]).permute(0, 3, 1, 2)
            for k in ("real", "noise")
            if given.get(k) is not None
        }
        eps = there(given["eps"]) if phase == "critic" else torch.zeros(len(z))
        return Inputs(
            pictures["real"],
            there(z),
            eps,
            pictures.get("noise"),
            None if labels is None else there(labels).long(),
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
        given = self._pictures(index, data)
        given |= {"z": self._latents(latents), "eps": jax.random.uniform(epsilons, (len(index),))}
        given["noise"] = (
            jax.random.uniform(noises, given["real"].shape) if self.problem.draws_noise else None
        )
        return given, index

    def wait(self) -> None:
        jax.block_until_ready(self.state)

    def gradients(self, phase: str) -> list[np.ndarray]:
        """What Adam was given by the first call of a phase after `load`, in torch's order and layout."""
        short = phase[0]
        scale = 1 / (1 - self.problem.config.optim.beta1)
        first = {name: m * scale for name, m in self.state["m"][short].items()}
        generator, critic = self._torch_nets
        return (
            self.generator.back(first, generator)
            if short == "g"
            else self.critic.back(first, critic)
        )

    def flops(self) -> dict[str, float]:
        """By XLA's own count of the compiled phase."""
        found = {}
        for name, phase in (("critic", self._critic), ("generator", self._generator)):
            analysis: Any = phase.lower(self.state, self.data).compile().cost_analysis()
            found[name] = float(
                (analysis[0] if isinstance(analysis, list) else analysis or {}).get(
                    "flops", math.nan
                )
            )
        return found

    def _run(self, phase: str) -> None:
        self.state = getattr(self, phase)(self.state, self.data)

    def _critic_phase(self, state: Any, data: Any) -> Any:
        c, p, b = self.problem.config, state["p"], state["b"]
        given, shown = self._fed(state["key"], data)
        key, next_key = jax.random.split(jax.random.fold_in(state["key"], 1))
        new_g: Params = {}
        fake = lax.stop_gradient(self.generator(p["g"], b["g"], new_g, given["z"], given["labels"]))
        held = self.critic.iterated(p["c"], b["c"])
        gradient, new_c = jax.grad(self._critic_loss, has_aux=True)(p["c"], held, given, fake, key)
        params, m, v, t = _adam(
            p["c"],
            gradient,
            state["m"]["c"],
            state["v"]["c"],
            state["t"]["c"],
            c.optim.lr_critic,
            c,
        )
        if c.loss.clip:
            params = jax.tree.map(lambda x: jnp.clip(x, -c.loss.clip, c.loss.clip), params)
        return state | {
            "p": p | {"c": params},
            "m": state["m"] | {"c": m},
            "v": state["v"] | {"c": v},
            "t": state["t"] | {"c": t},
            "b": {"g": b["g"] | new_g, "c": held | new_c},
            "key": next_key,
            "shown": shown,
        }

    def _critic_loss(
        self, p: Params, b: Params, given: Any, fake: Array, key: Array
    ) -> tuple[Array, Params]:
        """The loss, and the critic's buffers behind it."""
        c, real, labels = self.problem.config, given["real"], given["labels"]
        new: Params = {}
        judge = lambda x, y, k: self.critic(p, b, new, x, y, jax.random.fold_in(key, k))
        penalty = c.penalty if c.penalty.active else None
        gradients: list[Array] = []
        row = None if penalty is None else penalty_of(penalty)
        if row is not None and row.pictures:
            answers = []
            for k, (name, x) in enumerate((("real", real), ("fake", fake))):
                if name in row.pictures:
                    score, pull, classes = jax.vjp(
                        lambda x, k=k: judge(x, labels, k), x, has_aux=True
                    )
                    gradients.append(pull(jnp.ones_like(score))[0])
                    answers.append((score, classes))
                else:
                    answers.append(judge(x, labels, k))
        elif self.batch_norm:
            answers = [judge(real, labels, 0), judge(fake, labels, 1)]
        else:  # one forward of 2 N rows
            both = None if labels is None else jnp.concatenate((labels, labels))
            score, classes = judge(jnp.concatenate((real, fake)), both, 0)
            n = len(real)
            answers = [
                (score[:n], None if classes is None else classes[:n]),
                (score[n:], None if classes is None else classes[n:]),
            ]
        (real_score, real_classes), (fake_score, fake_classes) = answers
        total = CRITIC_LOSSES[c.loss.kind](c.loss, real_score, fake_score).mean()
        if penalty is not None and row is not None and row.points:
            if penalty.kind == "dragan":
                x = real + 0.5 * real.std(ddof=1) * given["noise"]
            elif penalty.kind == "wgan-gp":
                eps = given["eps"][:, None, None, None]
                x = eps * real + (1 - eps) * fake
            else:
                raise InputError(
                    f"the JAX variant has no penalty {penalty.kind!r}; leave jax out of --variants"
                )
            gradient = jax.grad(lambda x: judge(x, labels, 2)[0].sum())(x)
            excess = jnp.sqrt((gradient**2).sum((1, 2, 3))) - penalty.target
            total = (
                total
                + penalty.weight
                * ((jnp.maximum(excess, 0) if penalty.one_sided else excess) ** 2).mean()
            )
        for gradient in gradients:
            total = total + penalty.weight / 2 * (gradient**2).sum((1, 2, 3)).mean()  # type: ignore[union-attr]
        if real_classes is not None:
            named = _class_loss(real_classes, labels) + (
                _class_loss(fake_classes, labels) if c.loss.class_fakes else 0.0
            )
            total = total + c.loss.class_weight * named
        return total, new

    def _generator_phase(self, state: Any, data: Any) -> Any:
        c, p, b = self.problem.config, state["p"], state["b"]
        latents, key, next_key = jax.random.split(state["key"], 3)
        given = self._pictures(state["shown"], data) | {
            "z": self._latents(latents)
        }  # of the classes last shown
        gradient, new_g = jax.grad(self._generator_loss, has_aux=True)(
            p["g"], p["c"], b, given, key
        )
        params, m, v, t = _adam(
            p["g"],
            gradient,
            state["m"]["g"],
            state["v"]["g"],
            state["t"]["g"],
            c.optim.lr_generator,
            c,
        )
        average = jax.tree.map(lambda a, x: a + 1e-3 * (x - a), state["average"], params)
        return state | {
            "p": p | {"g": params},
            "m": state["m"] | {"g": m},
            "v": state["v"] | {"g": v},
            "t": state["t"] | {"g": t},
            "b": b | {"g": b["g"] | new_g},
            "average": average,
            "key": next_key,
        }

    def _generator_loss(
        self, p: Params, critic: Params, b: Any, given: Any, key: Array
    ) -> tuple[Array, Params]:
        loss, labels = self.problem.config.loss, given["labels"]
        new: Params = {}
        fake = self.generator(p, b["g"], new, given["z"], labels)
        score, classes = self.critic(critic, b["c"], {}, fake, labels, key)
        real = (
            self.critic(critic, b["c"], {}, given["real"], labels, key)[0]
            if loss.kind == "relativistic"
            else None
        )
        total = GENERATOR_LOSSES[loss.kind](score, real).mean()
        if classes is not None:
            total = total + loss.class_weight_generator * _class_loss(classes, labels)
        return total, new


def _adam(
    p: Params, g: Params, m: Params, v: Params, t: Array, rate: float, c: Config
) -> tuple[Params, Params, Params, Array]:
    """Kingma and Ba 2015, arXiv:1412.6980, algorithm 1."""
    b1, b2, t = c.optim.beta1, c.optim.beta2, t + 1
    m = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, m, g)
    v = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, v, g)
    step, root = rate / (1 - b1**t), lax.rsqrt(1 - b2**t)
    return (
        jax.tree.map(lambda p, m, v: p - step * m / (jnp.sqrt(v) * root + ADAM_EPS), p, m, v),
        m,
        v,
        t,
    )


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
