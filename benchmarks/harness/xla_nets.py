"""Networks of ganfast in JAX: translated layer by layer, from torch's layout and back.

Pictures are NHWC and kernels HWIO, which is what XLA's convolutions take without transposing.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from torch import nn
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.parametrize import is_parametrized

from ganfast.errors import InputError
from ganfast.models.parts import Critic, Generator

Array = Any
Params = dict[str, Array]
Layer = Callable[..., Array]  # (params, buffers, new buffers, x, key) -> x


class Leaf(NamedTuple):
    """A parameter's way to JAX's layout and back, both on numpy arrays."""

    there: Callable[[np.ndarray], np.ndarray]
    back: Callable[[np.ndarray], np.ndarray]


class Net:
    """A translated network, and how its parameters are laid out."""

    def __init__(self, net: nn.Module, shape: tuple[int, ...], dtype: Any) -> None:
        """``shape``: of one input, (C, H, W) or (latent,)."""
        self.dtype = dtype
        self.leaves: dict[str, Leaf] = {}
        self.buffer_leaves: dict[str, Leaf] = {}
        self._spectral = {name for name, m in net.named_modules() if is_parametrized(m, "weight")}
        for name, module in net.named_modules():
            if is_parametrized(module, "weight") and not isinstance(
                module.parametrizations.weight[0], _SpectralNorm
            ):
                raise InputError(
                    f"layer {name} has a parametrisation that the JAX variant does not know"
                )

    def params(self, net: nn.Module) -> Params:
        weights = {self._short(n): p.detach().cpu().float() for n, p in net.named_parameters()}
        return {k: jnp.asarray(leaf.there(weights[k].numpy())) for k, leaf in self.leaves.items()}

    def buffers(self, net: nn.Module) -> Params:
        tensors = {self._short(n): b.detach().cpu().numpy() for n, b in net.named_buffers()}
        return {k: jnp.asarray(leaf.there(tensors[k])) for k, leaf in self.buffer_leaves.items()}

    def back(self, params: Params, net: nn.Module) -> list[np.ndarray]:
        """In torch's layout and order."""
        names = [self._short(name) for name, _ in net.named_parameters()]
        return [self.leaves[name].back(np.asarray(params[name])) for name in names]

    @staticmethod
    def _short(name: str) -> str:
        return name.replace(".parametrizations.weight.original", ".weight").replace(
            ".parametrizations.weight.0.", "."
        )

    def sequence(
        self, layers: nn.Sequential, prefix: str, shape: tuple[int, ...]
    ) -> tuple[Layer, tuple[int, ...]]:
        steps: list[Layer] = []
        for i, layer in enumerate(layers):
            step, shape = self.layer(layer, f"{prefix}{i}.", shape)
            steps.append(step)

        def run(p: Params, b: Params, new: Params, x: Array, key: Array) -> Array:
            for i, step in enumerate(steps):
                x = step(p, b, new, x, None if key is None else jax.random.fold_in(key, i))
            return x

        return run, shape

    def layer(
        self, m: nn.Module, name: str, shape: tuple[int, ...]
    ) -> tuple[Layer, tuple[int, ...]]:
        """``shape`` is torch's, (C, H, W) or (units,).

        A flattened map keeps its (C, H, W), so that the weights behind it can be permuted.
        """
        match m:
            case nn.Conv2d() | nn.ConvTranspose2d():
                return self._conv(m, name, shape)
            case nn.Linear():
                return self.linear(m, name, shape), (m.out_features,)
            case nn.BatchNorm2d() | nn.BatchNorm1d():
                return self._batch_norm(m, name), shape
            case nn.LeakyReLU() | nn.ReLU():
                slope = getattr(m, "negative_slope", 0.0)
                return _of(lambda x, _: jnp.where(x > 0, x, x * jnp.asarray(slope, x.dtype))), shape
            case nn.Flatten():
                return _of(lambda x, _: x.reshape(len(x), -1)), shape
            case nn.Unflatten():
                c, h, w = m.unflattened_size
                return _of(lambda x, _: x.reshape(-1, c, h, w).transpose(0, 2, 3, 1)), (c, h, w)
            case nn.Dropout():
                return _of(lambda x, key: _dropout(x, key, 1 - m.p)), shape
        raise InputError(
            f"layer {name[:-1]} is a {type(m).__name__}, which the JAX variant does not know"
        )

    def weight(self, p: Params, b: Params, name: str) -> Array:
        """With spectral norm, over the largest singular value (arXiv:1802.05957, eq. 11)."""
        w = p[f"{name}weight"]
        if name[:-1] in self._spectral:
            u, v = (lax.stop_gradient(b[f"{name}{which}"]) for which in ("_u", "_v"))
            w = w / (_matrix(w) @ v @ u)
        return w.astype(self.dtype)

    def linear(
        self, m: nn.Linear, name: str, shape: tuple[int, ...], out: tuple[int, ...] = ()
    ) -> Layer:
        """A ``shape`` of (C, H, W) is that of a flattened map as input; ``out`` as output."""
        rows = _order(shape)
        columns = _order(out or (m.out_features,))
        self.leaves[f"{name}weight"] = _permuted(rows, columns)
        self._spectral_buffers(name, rows, columns)
        if m.bias is not None:
            back = np.argsort(columns)
            self.leaves[f"{name}bias"] = Leaf(lambda x: x[columns], lambda x: x[back])

        def run(p: Params, b: Params, new: Params, x: Array, key: Array) -> Array:
            y = x.astype(self.dtype) @ self.weight(p, b, name)
            return y if m.bias is None else y + p[f"{name}bias"].astype(self.dtype)

        return run

    def _conv(
        self, m: nn.Conv2d | nn.ConvTranspose2d, name: str, shape: tuple[int, ...]
    ) -> tuple[Layer, tuple[int, ...]]:
        """A transposed convolution is the data gradient of the convolution that goes the other way.

        Its kernel is that one's: HWIO, with I = the channels made here.
        """
        self.leaves[f"{name}weight"] = _KERNEL
        if m.bias is not None:
            self.leaves[f"{name}bias"] = _SAME
        kernel, stride, pad = m.kernel_size[0], m.stride[0], int(m.padding[0])
        if isinstance(m, nn.Conv2d):
            rows = _order((m.in_channels, kernel, kernel))
            self._spectral_buffers(name, rows, np.arange(m.out_channels))
            side = [(s + 2 * pad - kernel) // stride + 1 for s in shape[1:]]
            convolve, _ = _convolution(stride, kernel, pad, shape[1])
        else:
            more = m.output_padding[0]
            side = [(s - 1) * stride - 2 * pad + kernel + more for s in shape[1:]]
            _, convolve = _convolution(stride, kernel, pad, side[0])

        def run(p: Params, b: Params, new: Params, x: Array, key: Array) -> Array:
            y = convolve(x.astype(self.dtype), self.weight(p, b, name))
            return y if m.bias is None else y + p[f"{name}bias"].astype(self.dtype)

        return run, (m.out_channels, *side)

    def _batch_norm(self, m: nn.Module, name: str) -> Layer:
        for which in ("weight", "bias"):
            self.leaves[f"{name}{which}"] = _SAME
        for which in ("running_mean", "running_var"):
            self.buffer_leaves[f"{name}{which}"] = _SAME
        momentum, eps = float(m.momentum), float(m.eps)  # type: ignore[arg-type]

        def run(p: Params, b: Params, new: Params, x: Array, key: Array) -> Array:
            axes = tuple(range(x.ndim - 1))
            exact = x.astype(jnp.float32)
            mean, var = exact.mean(axes), exact.var(axes)
            count = x.size // x.shape[-1]
            unbiased = var * (count / (count - 1))
            for which, value in (("running_mean", mean), ("running_var", unbiased)):
                old = new.get(f"{name}{which}", b[f"{name}{which}"])
                new[f"{name}{which}"] = lax.stop_gradient(old + momentum * (value - old))
            y = (exact - mean) * (lax.rsqrt(var + eps) * p[f"{name}weight"]) + p[f"{name}bias"]
            return y.astype(x.dtype)

        return run

    def _spectral_buffers(self, name: str, rows: np.ndarray, columns: np.ndarray) -> None:
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
        self.projection = net.projection and self.linear(net.projection, "projection.", features)
        self.classes = net.class_head and self.linear(net.class_head, "class_head.", features)

    def __call__(
        self, p: Params, b: Params, new: Params, x: Array, labels: Array, key: Array
    ) -> tuple[Array, Array]:
        """Score (N,) and class logits (N, K) or None, float32."""
        f = self.trunk(p, b, new, x, key)
        score = self.head(p, b, new, f, key)[:, 0]
        if self.projection is not None:
            by_class = self.projection(p, b, new, f, key)
            score = score + jnp.take_along_axis(by_class, labels[:, None], 1)[:, 0]
        logits = self.classes and self.classes(p, b, new, f, key).astype(jnp.float32)
        return score.astype(jnp.float32), logits


class GeneratorNet(Net):
    def __init__(self, net: Generator, latent: int, dtype: Any) -> None:
        super().__init__(net, (latent,), dtype)
        first = tuple(net.first)
        self.first = (first[1], first[2], first[0]) if len(first) == 3 else first
        self.project = self.linear(net.project, "project.", (latent,), first)
        self.has_classes = net.classes is not None
        if self.has_classes:
            columns = _order(first)
            back = np.argsort(columns)
            self.leaves["classes.weight"] = Leaf(lambda w: w[:, columns], lambda w: w[:, back])
        self.layers, _ = self.sequence(net.layers, "layers.", first)

    def __call__(self, p: Params, b: Params, new: Params, z: Array, labels: Array) -> Array:
        """Pictures NHWC in [-1, 1], float32."""
        hidden = self.project(p, b, new, z, None)
        if self.has_classes:
            hidden = hidden + p["classes.weight"].astype(self.dtype)[labels]
        pictures = self.layers(p, b, new, hidden.reshape(len(z), *self.first), None)
        return jnp.tanh(pictures).astype(jnp.float32)


@lru_cache
def _convolution(
    stride: int, kernel: int, pad: int, side: int
) -> tuple[Callable[..., Array], Callable[..., Array]]:
    """A convolution (x, w) -> y of square maps NHWC, and its data gradient (y, w) -> x.

    ``side`` is that of x. Both are differentiable at will. Convolution, data gradient and weight
    gradient are bilinear, and the derivatives of one are the other two. With these rules XLA gets
    only shapes that it is quick at. Left to jax.grad, on a CPU the weight gradient of a data
    gradient took 50 times as long as that of the convolution (32 -> 64 channels, 14 x 14), and the
    data gradient of an odd side 25 times.
    """
    dims = ("NHWC", "HWIO", "NHWC")
    out = (side + 2 * pad - kernel) // stride + 1
    pads = [(pad, (out - 1) * stride + kernel - side - pad)] * 2  # only rows that w reaches
    even = side + -(side + 2 * pad - kernel) % stride
    rows = (even + 2 * pad - kernel) // stride + 1 - out

    def convolved(x: Array, w: Array, pads: Any) -> Array:
        return lax.conv_general_dilated(x, w, (stride, stride), pads, dimension_numbers=dims)

    def plain(x: Array, w: Array) -> Array:
        return convolved(x, w, pads)

    def to_input(y: Array, w: Array) -> Array:
        y = jnp.pad(y, ((0, 0), (0, rows), (0, rows), (0, 0)))
        like = jax.ShapeDtypeStruct((len(y), even, even, w.shape[2]), y.dtype)
        whole = jax.linear_transpose(lambda x: convolved(x, w, [(pad, pad)] * 2), like)
        return whole(y)[0][:, :side, :side]

    def to_weight(x: Array, y: Array) -> Array:
        like = jax.ShapeDtypeStruct((kernel, kernel, x.shape[-1], y.shape[-1]), x.dtype)
        return jax.linear_transpose(lambda w: plain(x, w), like)(y)[0]

    conv, data, weight = (jax.custom_vjp(f) for f in (plain, to_input, to_weight))
    conv.defvjp(_saving(conv), lambda xw, g: (data(g, xw[1]), weight(xw[0], g)))
    data.defvjp(_saving(data), lambda yw, g: (conv(g, yw[1]), weight(g, yw[0])))
    weight.defvjp(_saving(weight), lambda xy, g: (data(xy[1], g), conv(xy[0], g)))
    return conv, data


def _saving(f: Callable[..., Array]) -> Callable[..., tuple[Array, tuple[Array, Array]]]:
    """The forward pass of a custom derivative, which needs both inputs again."""
    return lambda a, b: (f(a, b), (a, b))


def _of(f: Callable[[Array, Array], Array]) -> Layer:
    """A layer without parameters, of its input and a random key."""
    return lambda p, b, new, x, key: f(x, key)


def _dropout(x: Array, key: Array, keep: float) -> Array:
    mask = jax.random.bernoulli(key, keep, x.shape)
    return jnp.where(mask, x / jnp.asarray(keep, x.dtype), 0)


_SAME = Leaf(lambda x: x, lambda x: x)
_KERNEL = Leaf(lambda w: w.transpose(2, 3, 1, 0), lambda w: w.transpose(3, 2, 0, 1))  # to HWIO


def _order(shape: tuple[int, ...]) -> np.ndarray:
    """Where the flattened (H, W, C) map finds its numbers in the flattened (C, H, W) one."""
    index = np.arange(math.prod(shape)).reshape(shape)
    return index.transpose(1, 2, 0).reshape(-1) if len(shape) == 3 else index


def _permuted(rows: np.ndarray, columns: np.ndarray) -> Leaf:
    """torch's (out, in) to (in, out) with both axes in the order of NHWC."""
    there, back = np.ix_(rows, columns), np.ix_(np.argsort(rows), np.argsort(columns))
    return Leaf(lambda w: w.T[there], lambda w: w[back].T)


def _matrix(w: Array) -> Array:
    """(out, everything else) of a kernel HWIO or a matrix (in, out)."""
    return w.reshape(-1, w.shape[-1]).T


def _unit(x: Array) -> Array:
    return x / jnp.maximum(jnp.linalg.norm(x), 1e-12)
