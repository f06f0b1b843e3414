"""The same GAN iteration in JAX, compiled by XLA: one `jax.jit` a phase, all buffers donated.

A phase gathers pictures from the device, draws latents, and computes gradients, Adam and average.

Networks are translated layer by layer, pictures NHWC and kernels HWIO, which is what XLA's convolutions take without transposing.
XLA removes the dead products with zero that torch's double backward leaves in, so this is the strongest alternative.
"""

import math
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.parametrize import is_parametrized

from ganfast.bench.problem import Inputs, Problem
from ganfast.config import Config, LossConfig
from ganfast.errors import InputError
from ganfast.models.parts import Critic, Generator
from ganfast.penalties import penalty_of

try:
    import jax
    import jax.numpy as jnp
    from jax import lax
except ImportError:  # the optional extra "jax"
    jax = None  # type: ignore[assignment]

Array = Any
Params = dict[str, Array]
ADAM_EPS = 1e-8


def available() -> str | None:
    """None, or why JAX cannot be measured here."""
    if jax is None:
        return "JAX is not installed: pip install 'ganfast[jax]'"
    if torch.cuda.is_available() and jax.default_backend() != "gpu":
        return "this JAX sees no GPU: pip install 'jax[cuda13]'"
    return None


class Leaf(NamedTuple):
    """A parameter's way to JAX's layout and back, both on numpy arrays."""

    there: Callable[[np.ndarray], np.ndarray]
    back: Callable[[np.ndarray], np.ndarray]


class Net:
    """A translated network: ``apply(params, buffers, x, ...)`` and how its parameters are laid out."""

    def __init__(self, net: nn.Module, shape: tuple[int, ...], dtype: Any) -> None:
        """``shape``: of one input, (C, H, W) or (latent,)."""
        self.dtype = dtype
        self.leaves: dict[str, Leaf] = {}
        self.buffer_leaves: dict[str, Leaf] = {}
        self._spectral = {name for name, m in net.named_modules() if is_parametrized(m, "weight")}
        for name, module in net.named_modules():
            if is_parametrized(module, "weight") and not isinstance(module.parametrizations.weight[0], _SpectralNorm):
                raise InputError(f"layer {name} has a parametrisation that the JAX variant does not know")

    def params(self, net: nn.Module) -> Params:
        given = {self._short(n): p.detach().cpu().float().numpy() for n, p in net.named_parameters()}
        return {name: jnp.asarray(leaf.there(given[name])) for name, leaf in self.leaves.items()}

    def buffers(self, net: nn.Module) -> Params:
        given = {self._short(n): b.detach().cpu().numpy() for n, b in net.named_buffers()}
        return {name: jnp.asarray(leaf.there(given[name])) for name, leaf in self.buffer_leaves.items()}

    def back(self, params: Params, net: nn.Module) -> list[np.ndarray]:
        """In torch's layout and order."""
        return [self.leaves[self._short(n)].back(np.asarray(params[self._short(n)])) for n, _ in net.named_parameters()]

    @staticmethod
    def _short(name: str) -> str:
        return name.replace(".parametrizations.weight.original", ".weight").replace(".parametrizations.weight.0.", ".")

    def _add(self, name: str, leaf: Leaf) -> str:
        self.leaves[name] = leaf
        return name

    # Layers: each gives a function (params, buffers, new buffers, x, key) -> x.

    def sequence(self, layers: nn.Sequential, prefix: str, shape: tuple[int, ...]) -> tuple[Callable[..., Array], tuple[int, ...]]:
        made: list[Callable[..., Array]] = []
        for i, layer in enumerate(layers):
            step, shape = self.layer(layer, f"{prefix}{i}.", shape)
            made.append(step)

        def run(p: Params, b: Params, new: Params, x: Array, key: Array) -> Array:
            for i, step in enumerate(made):
                x = step(p, b, new, x, None if key is None else jax.random.fold_in(key, i))
            return x

        return run, shape

    def layer(self, m: nn.Module, name: str, shape: tuple[int, ...]) -> tuple[Callable[..., Array], tuple[int, ...]]:
        """``shape`` is torch's, (C, H, W) or (units,); a flattened map keeps its (C, H, W) so that weights can be permuted."""
        match m:
            case nn.Conv2d():
                return self._conv(m, name, shape)
            case nn.ConvTranspose2d():
                return self._conv_transpose(m, name, shape)
            case nn.Linear():
                return self.linear(m, name, shape), (m.out_features,)
            case nn.BatchNorm2d() | nn.BatchNorm1d():
                return self._batch_norm(m, name), shape
            case nn.LeakyReLU() | nn.ReLU():
                slope = getattr(m, "negative_slope", 0.0)
                return (lambda p, b, new, x, key: jnp.where(x > 0, x, x * jnp.asarray(slope, x.dtype))), shape
            case nn.Flatten():
                return (lambda p, b, new, x, key: x.reshape(len(x), -1)), shape
            case nn.Unflatten():
                c, h, w = m.unflattened_size
                return (lambda p, b, new, x, key: x.reshape(-1, c, h, w).transpose(0, 2, 3, 1)), (c, h, w)
            case nn.Dropout():
                keep = 1 - m.p
                return (
                    lambda p, b, new, x, key: jnp.where(jax.random.bernoulli(key, keep, x.shape), x / jnp.asarray(keep, x.dtype), 0)
                ), shape
        raise InputError(f"layer {name[:-1]} is a {type(m).__name__}, which the JAX variant does not know")

    def weight(self, p: Params, b: Params, name: str) -> Array:
        """With spectral normalisation divided by the largest singular value by its estimates (arXiv:1802.05957, eq. 11)."""
        w = p[f"{name}weight"]
        if name[:-1] in self._spectral:
            u, v = (lax.stop_gradient(b[f"{name}{which}"]) for which in ("_u", "_v"))
            w = w / (_matrix(w) @ v @ u)
        return w.astype(self.dtype)

    def linear(self, m: nn.Linear, name: str, shape: tuple[int, ...], out: tuple[int, ...] = ()) -> Callable[..., Array]:
        """``shape`` (C, H, W): the input is a flattened map; ``out`` (C, H, W): the output becomes one."""
        rows = _order(shape)
        columns = _order(out or (m.out_features,))
        self._add(f"{name}weight", _permuted(rows, columns))
        self._spectral_buffers(name, m, rows, columns)
        if m.bias is not None:
            self._add(f"{name}bias", Leaf(lambda x: x[columns], lambda x: x[np.argsort(columns)]))

        def run(p: Params, b: Params, new: Params, x: Array, key: Array) -> Array:
            y = x.astype(self.dtype) @ self.weight(p, b, name)
            return y if m.bias is None else y + p[f"{name}bias"].astype(self.dtype)

        return run

    def _conv(self, m: nn.Conv2d, name: str, shape: tuple[int, ...]) -> tuple[Callable[..., Array], tuple[int, ...]]:
        self._add(f"{name}weight", Leaf(lambda w: w.transpose(2, 3, 1, 0), lambda w: w.transpose(3, 2, 0, 1)))
        kernel, stride, pad = m.kernel_size[0], m.stride[0], int(m.padding[0])
        self._spectral_buffers(name, m, _order((m.in_channels, kernel, kernel)), np.arange(m.out_channels))
        if m.bias is not None:
            self._add(f"{name}bias", _SAME)
        conv, _ = _convolution(stride, kernel, pad, shape[1])

        def run(p: Params, b: Params, new: Params, x: Array, key: Array) -> Array:
            y = conv(x.astype(self.dtype), self.weight(p, b, name))
            return y if m.bias is None else y + p[f"{name}bias"].astype(self.dtype)

        side = [(s + 2 * pad - kernel) // stride + 1 for s in shape[1:]]
        return run, (m.out_channels, *side)

    def _conv_transpose(
        self, m: nn.ConvTranspose2d, name: str, shape: tuple[int, ...]
    ) -> tuple[Callable[..., Array], tuple[int, ...]]:
        # The data gradient of the convolution that goes the other way, whose kernel is HWIO with I = the channels made here.
        self._add(f"{name}weight", Leaf(lambda w: w.transpose(2, 3, 1, 0), lambda w: w.transpose(3, 2, 0, 1)))
        kernel, stride, pad, more = m.kernel_size[0], m.stride[0], int(m.padding[0]), m.output_padding[0]
        if m.bias is not None:
            self._add(f"{name}bias", _SAME)
        side = [(s - 1) * stride - 2 * pad + kernel + more for s in shape[1:]]
        _, transposed = _convolution(stride, kernel, pad, side[0])

        def run(p: Params, b: Params, new: Params, x: Array, key: Array) -> Array:
            y = transposed(x.astype(self.dtype), self.weight(p, b, name))
            return y if m.bias is None else y + p[f"{name}bias"].astype(self.dtype)

        return run, (m.out_channels, *side)

    def _batch_norm(self, m: nn.Module, name: str) -> Callable[..., Array]:
        for which in ("weight", "bias"):
            self._add(f"{name}{which}", _SAME)
        for which in ("running_mean", "running_var"):
            self.buffer_leaves[f"{name}{which}"] = _SAME
        momentum, eps = float(m.momentum), float(m.eps)  # type: ignore[arg-type]

        def run(p: Params, b: Params, new: Params, x: Array, key: Array) -> Array:
            axes = tuple(range(x.ndim - 1))
            exact = x.astype(jnp.float32)
            mean, var = exact.mean(axes), exact.var(axes)
            count = x.size // x.shape[-1]
            for which, value in (("running_mean", mean), ("running_var", var * (count / (count - 1)))):
                old = new.get(f"{name}{which}", b[f"{name}{which}"])
                new[f"{name}{which}"] = lax.stop_gradient(old + momentum * (value - old))
            return ((exact - mean) * (lax.rsqrt(var + eps) * p[f"{name}weight"]) + p[f"{name}bias"]).astype(x.dtype)

        return run

    def _spectral_buffers(self, name: str, m: nn.Module, rows: np.ndarray, columns: np.ndarray) -> None:
        if name[:-1] in self._spectral:
            self.buffer_leaves[f"{name}_u"] = Leaf(lambda u: u[columns], lambda u: u)
            self.buffer_leaves[f"{name}_v"] = Leaf(lambda v: v[rows], lambda v: v)

    def iterated(self, p: Params, b: Params) -> Params:
        """Buffers after one power iteration of every spectral norm."""
        new = dict(b)
        for name in self._spectral:
            w = lax.stop_gradient(_matrix(p[f"{name}.weight"]))
            u = _unit(w @ b[f"{name}._v"])
            new[f"{name}._u"], new[f"{name}._v"] = u, _unit(w.T @ u)
        return new


class CriticNet(Net):
    def __init__(self, net: Critic, shape: tuple[int, ...], dtype: Any) -> None:
        super().__init__(net, shape, dtype)
        self.trunk, features = self.sequence(net.trunk, "trunk.", shape)
        self.head = self.linear(net.head, "head.", features)
        self.projection = None if net.projection is None else self.linear(net.projection, "projection.", features)
        self.classes = None if net.class_head is None else self.linear(net.class_head, "class_head.", features)

    def __call__(self, p: Params, b: Params, new: Params, x: Array, labels: Array, key: Array) -> tuple[Array, Array]:
        """Score (N,) and class logits (N, K) or None, float32."""
        f = self.trunk(p, b, new, x, key)
        score = self.head(p, b, new, f, key)[:, 0]
        if self.projection is not None:
            score = score + jnp.take_along_axis(self.projection(p, b, new, f, key), labels[:, None], 1)[:, 0]
        said = None if self.classes is None else self.classes(p, b, new, f, key).astype(jnp.float32)
        return score.astype(jnp.float32), said


class GeneratorNet(Net):
    def __init__(self, net: Generator, latent: int, dtype: Any) -> None:
        super().__init__(net, (latent,), dtype)
        first = tuple(net.first)
        self.first = (first[1], first[2], first[0]) if len(first) == 3 else first
        self.project = self.linear(net.project, "project.", (latent,), first)
        self.has_classes = net.classes is not None
        if self.has_classes:
            columns = _order(first)
            self._add("classes.weight", Leaf(lambda w: w[:, columns], lambda w: w[:, np.argsort(columns)]))
        self.layers, _ = self.sequence(net.layers, "layers.", first)

    def __call__(self, p: Params, b: Params, new: Params, z: Array, labels: Array) -> Array:
        """Pictures NHWC in [-1, 1], float32."""
        hidden = self.project(p, b, new, z, None)
        if self.has_classes:
            hidden = hidden + p["classes.weight"].astype(self.dtype)[labels]
        return jnp.tanh(self.layers(p, b, new, hidden.reshape(len(z), *self.first), None)).astype(jnp.float32)


@lru_cache
def _convolution(stride: int, kernel: int, pad: int, side: int) -> tuple[Callable[..., Array], Callable[..., Array]]:
    """A convolution (x, w) -> y of square maps NHWC with this side, and its data gradient (y, w) -> x, both differentiable at will.

    Convolution, data gradient and weight gradient are bilinear, and each one's derivatives are the other two. Said so, XLA gets
    only shapes that it is quick at: left to jax.grad, on a CPU the weight gradient of a data gradient took 50 times as long as the
    weight gradient of the convolution (32 -> 64 channels, 14 x 14), and the data gradient of an odd side 25 times.
    """
    dims = ("NHWC", "HWIO", "NHWC")
    out = (side + 2 * pad - kernel) // stride + 1
    pads = [(pad, (out - 1) * stride + kernel - side - pad)] * 2  # no row that the kernel does not reach
    even = side + -(side + 2 * pad - kernel) % stride
    rows = (even + 2 * pad - kernel) // stride + 1 - out

    def plain(x: Array, w: Array) -> Array:
        return lax.conv_general_dilated(x, w, (stride, stride), pads, dimension_numbers=dims)

    def to_input(y: Array, w: Array) -> Array:
        y = jnp.pad(y, ((0, 0), (0, rows), (0, rows), (0, 0)))
        whole = lambda x: lax.conv_general_dilated(x, w, (stride, stride), [(pad, pad)] * 2, dimension_numbers=dims)  # noqa: E731
        like = jax.ShapeDtypeStruct((len(y), even, even, w.shape[2]), y.dtype)
        return jax.linear_transpose(whole, like)(y)[0][:, :side, :side]

    def to_weight(x: Array, y: Array) -> Array:
        like = jax.ShapeDtypeStruct((kernel, kernel, x.shape[-1], y.shape[-1]), x.dtype)
        return jax.linear_transpose(lambda w: plain(x, w), like)(y)[0]

    conv, data, weight = (jax.custom_vjp(f) for f in (plain, to_input, to_weight))
    conv.defvjp(lambda x, w: (conv(x, w), (x, w)), lambda given, g: (data(g, given[1]), weight(given[0], g)))
    data.defvjp(lambda y, w: (data(y, w), (y, w)), lambda given, g: (conv(g, given[1]), weight(g, given[0])))
    weight.defvjp(lambda x, y: (weight(x, y), (x, y)), lambda given, g: (data(given[1], g), conv(given[0], g)))
    return conv, data


class Xla:
    """Phases as `Plain` has them. ``state`` is donated to every phase and replaced by what it returns."""

    def __init__(self, problem: Problem) -> None:
        reason = available()
        if reason:
            raise InputError(reason)
        self.problem, c = problem, problem.config
        dtype = jnp.bfloat16 if problem.autocast is not None else jnp.float32
        self._torch_nets = problem.networks(0)
        generator, critic = self._torch_nets
        self.critic = CriticNet(critic, (c.channels, c.size, c.size), dtype)  # type: ignore[arg-type]
        self.generator = GeneratorNet(generator, c.net.latent, dtype)  # type: ignore[arg-type]
        self.batch_norm = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in critic.modules())
        pack = problem.pack
        labels = None if pack.labels is None else jnp.asarray(pack.labels.astype(np.int32))
        self.data = {"pictures": jnp.asarray(np.ascontiguousarray(pack.images.transpose(0, 2, 3, 1))), "labels": labels}
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
        zeros = lambda tree: jax.tree.map(jnp.zeros_like, tree)  # noqa: E731
        self.state = {
            "p": nets, "m": zeros(nets), "v": zeros(nets), "t": {"g": jnp.zeros(()), "c": jnp.zeros(())},
            "b": {"g": self.generator.buffers(generator), "c": self.critic.buffers(critic)},
            "average": jax.tree.map(jnp.copy, nets["g"]), "key": jax.random.key(seed, impl="rbg"),
        }  # fmt: skip
        self.state["shown"] = jnp.arange(self.problem.config.batch)  # the pictures that the critic saw last
        self._key = jax.random.key(seed, impl="rbg")
        self.wait()

    def used(self, phase: str) -> Inputs:
        """What the first call of a phase after `load` drew."""
        given, _ = self._fed(self._key, self.data)
        z, labels = given["z"], given["labels"]
        if phase == "generator":
            given = self._pictures(jnp.arange(len(z)), self.data)
            z, labels = self._latents(jax.random.split(self._key, 3)[0]), given["labels"]
        there = lambda x: torch.from_numpy(np.array(x))  # noqa: E731
        pictures = {k: there(given[k]).permute(0, 3, 1, 2) for k in ("real", "noise") if given.get(k) is not None}
        eps = there(given["eps"]) if phase == "critic" else torch.zeros(len(z))
        return Inputs(pictures["real"], there(z), eps, pictures.get("noise"), None if labels is None else there(labels).long())

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
        given["noise"] = jax.random.uniform(noises, given["real"].shape) if self.problem.draws_noise else None
        return given, index

    def wait(self) -> None:
        jax.block_until_ready(self.state)

    def gradients(self, phase: str) -> list[np.ndarray]:
        """What Adam was given by the first call of a phase after `load`, in torch's order and layout."""
        short = phase[0]
        scale = 1 / (1 - self.problem.config.optim.beta1)
        first = {name: m * scale for name, m in self.state["m"][short].items()}
        generator, critic = self._torch_nets
        return self.generator.back(first, generator) if short == "g" else self.critic.back(first, critic)

    def flops(self) -> dict[str, float]:
        """By XLA's own count of the compiled phase."""
        found = {}
        for name, phase in (("critic", self._critic), ("generator", self._generator)):
            analysis: Any = phase.lower(self.state, self.data).compile().cost_analysis()
            found[name] = float((analysis[0] if isinstance(analysis, list) else analysis or {}).get("flops", math.nan))
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
        new_c: Params = {}
        gradient = jax.grad(self._critic_loss)(p["c"], held, new_c_holder := _Holder(), given, fake, key)
        new_c = new_c_holder.value
        params, m, v, t = _adam(p["c"], gradient, state["m"]["c"], state["v"]["c"], state["t"]["c"], c.optim.lr_critic, c)
        if c.loss.clip:
            params = jax.tree.map(lambda x: jnp.clip(x, -c.loss.clip, c.loss.clip), params)
        return state | {
            "p": p | {"c": params}, "m": state["m"] | {"c": m}, "v": state["v"] | {"c": v}, "t": state["t"] | {"c": t},
            "b": {"g": b["g"] | new_g, "c": held | new_c}, "key": next_key, "shown": shown,
        }  # fmt: skip

    def _critic_loss(self, p: Params, b: Params, holder: "_Holder", given: Any, fake: Array, key: Array) -> Array:
        c, real, labels = self.problem.config, given["real"], given["labels"]
        new: Params = {}
        judge = lambda x, y, k: self.critic(p, b, new, x, y, jax.random.fold_in(key, k))  # noqa: E731
        penalty = c.penalty if c.penalty.active else None
        gradients: list[Array] = []
        row = None if penalty is None else penalty_of(penalty)
        if row is not None and row.pictures:
            answers = []
            for k, (name, x) in enumerate((("real", real), ("fake", fake))):
                if name in row.pictures:
                    score, pull, classes = jax.vjp(lambda x, k=k: judge(x, labels, k), x, has_aux=True)
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
            answers = [(score[:n], None if classes is None else classes[:n]), (score[n:], None if classes is None else classes[n:])]
        (real_score, real_classes), (fake_score, fake_classes) = answers
        total = _critic_loss(c.loss, real_score, fake_score).mean()
        if penalty is not None and row is not None and row.points:
            if penalty.kind == "dragan":
                x = real + 0.5 * real.std(ddof=1) * given["noise"]
            elif penalty.kind == "wgan-gp":
                eps = given["eps"][:, None, None, None]
                x = eps * real + (1 - eps) * fake
            else:
                raise InputError(f"the JAX variant has no penalty {penalty.kind!r}; leave jax out of --variants")
            gradient = jax.grad(lambda x: judge(x, labels, 2)[0].sum())(x)
            excess = jnp.sqrt((gradient**2).sum((1, 2, 3))) - penalty.target
            total = total + penalty.weight * ((jnp.maximum(excess, 0) if penalty.one_sided else excess) ** 2).mean()
        for gradient in gradients:
            total = total + penalty.weight / 2 * (gradient**2).sum((1, 2, 3)).mean()  # type: ignore[union-attr]
        if real_classes is not None:
            named = _class_loss(real_classes, labels) + (_class_loss(fake_classes, labels) if c.loss.class_fakes else 0.0)
            total = total + c.loss.class_weight * named
        holder.value = new
        return total

    def _generator_phase(self, state: Any, data: Any) -> Any:
        c, p, b = self.problem.config, state["p"], state["b"]
        latents, key, next_key = jax.random.split(state["key"], 3)
        given = self._pictures(state["shown"], data) | {"z": self._latents(latents)}  # of the classes last shown
        gradient, new_g = jax.grad(self._generator_loss, has_aux=True)(p["g"], p["c"], b, given, key)
        params, m, v, t = _adam(p["g"], gradient, state["m"]["g"], state["v"]["g"], state["t"]["g"], c.optim.lr_generator, c)
        average = jax.tree.map(lambda a, x: a + 1e-3 * (x - a), state["average"], params)
        return state | {
            "p": p | {"g": params}, "m": state["m"] | {"g": m}, "v": state["v"] | {"g": v}, "t": state["t"] | {"g": t},
            "b": b | {"g": b["g"] | new_g}, "average": average, "key": next_key,
        }  # fmt: skip

    def _generator_loss(self, p: Params, critic: Params, b: Any, given: Any, key: Array) -> tuple[Array, Params]:
        loss, labels = self.problem.config.loss, given["labels"]
        new: Params = {}
        fake = self.generator(p, b["g"], new, given["z"], labels)
        score, classes = self.critic(critic, b["c"], {}, fake, labels, key)
        real = self.critic(critic, b["c"], {}, given["real"], labels, key)[0] if loss.kind == "relativistic" else None
        total = _generator_loss(loss, score, real).mean()
        if classes is not None:
            total = total + loss.class_weight_generator * _class_loss(classes, labels)
        return total, new


class _Holder:
    """Carries buffers out of a differentiated function beside its value."""

    value: Params


def _adam(p: Params, g: Params, m: Params, v: Params, t: Array, rate: float, c: Config) -> tuple[Params, Params, Params, Array]:
    """Kingma and Ba 2015, arXiv:1412.6980, algorithm 1."""
    b1, b2, t = c.optim.beta1, c.optim.beta2, t + 1
    m = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, m, g)
    v = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, v, g)
    step, root = rate / (1 - b1**t), lax.rsqrt(1 - b2**t)
    return jax.tree.map(lambda p, m, v: p - step * m / (jnp.sqrt(v) * root + ADAM_EPS), p, m, v), m, v, t


def _critic_loss(config: LossConfig, real: Array, fake: Array) -> Array:
    """As `ganfast.losses.critic_loss`."""
    soft = jax.nn.softplus
    match config.kind:
        case "minimax" | "non-saturating":
            return soft(-real) + config.label_smoothing * real + soft(fake)
        case "least-squares":
            return 0.5 * (real - 1) ** 2 + 0.5 * fake**2
        case "hinge":
            return jax.nn.relu(1 - real) + jax.nn.relu(1 + fake)
        case "relativistic":
            return soft(fake - real)
    return fake - real


def _generator_loss(config: LossConfig, fake: Array, real: Array) -> Array:
    """As `ganfast.losses.generator_loss`."""
    match config.kind:
        case "minimax":
            return -jax.nn.softplus(fake)
        case "non-saturating":
            return jax.nn.softplus(-fake)
        case "least-squares":
            return 0.5 * (fake - 1) ** 2
        case "relativistic":
            return jax.nn.softplus(real - fake)
    return -fake


def _class_loss(logits: Array, labels: Array) -> Array:
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1).mean()


_SAME = Leaf(lambda x: x, lambda x: x)


def _order(shape: tuple[int, ...]) -> np.ndarray:
    """Where the flattened (H, W, C) map finds its numbers in the flattened (C, H, W) one."""
    index = np.arange(math.prod(shape)).reshape(shape)
    return index.transpose(1, 2, 0).reshape(-1) if len(shape) == 3 else index


def _permuted(rows: np.ndarray, columns: np.ndarray) -> Leaf:
    """torch's (out, in) to (in, out) with both axes in the order of NHWC."""
    return Leaf(
        lambda w: w.T[np.ix_(rows, columns)], lambda w: w[np.ix_(np.argsort(rows), np.argsort(columns))].T,
    )  # fmt: skip


def _matrix(w: Array) -> Array:
    """(out, everything else) of a kernel HWIO or a matrix (in, out)."""
    return w.reshape(-1, w.shape[-1]).T


def _unit(x: Array) -> Array:
    return x / jnp.maximum(jnp.linalg.norm(x), 1e-12)
