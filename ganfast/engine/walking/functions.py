"""The explicit engine's vocabulary for a recorded forward: which layers compute what a call of a
torch function or method does.

Arguments are bound by torch's own names of them. What is no picture's is a `Fixed`.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from ganfast.engine import layers as L
from ganfast.engine import maps as M
from ganfast.engine.convolution import Convolution, per_axis
from ganfast.engine.norms import Affine, Standardise
from ganfast.engine.walking.record import shape_of

Layers = list[L.Layer]


@dataclass(frozen=True)
class Fixed:
    """A tensor that is made without pictures and labels: a weight, or a constant."""

    name: str  # among the weights that a step is given
    shape: tuple[int, ...]
    node: Any  # in the recorded graph


def padded(padding: Any, dilation: tuple[int, ...], kernel: tuple[int, ...]) -> Any:
    """The zeros that "same", "valid" or numbers put on both sides of each axis; None where "same"
    needs more on one side."""
    if not isinstance(padding, str):
        return per_axis(padding, len(kernel))
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    if padding == "valid":
        return (0,) * len(kernel)
    return None if any(r % 2 for r in reach) else tuple(r // 2 for r in reach)


def _names(*tensors: Any) -> list[str | None] | None:
    """Names of weights that may be left out; None where one is no weight."""
    if not all(t is None or isinstance(t, Fixed) for t in tensors):
        return None
    return [None if t is None else t.name for t in tensors]


def _convolution(axes: int) -> Callable[..., Layers | None]:
    def make(
        input: Any,
        weight: Any,
        bias: Any = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Layers | None:
        names = _names(weight, bias)
        if names is None:
            return None
        dilation = per_axis(dilation, axes)
        zeros = padded(padding, dilation, weight.shape[2:])
        if zeros is None:
            return None
        shape = Convolution(per_axis(stride, axes), zeros, dilation, groups)
        return [L.Conv(weight.name, names[1], shape)]

    return make


def _linear(input: Any, weight: Any, bias: Any = None) -> Layers | None:
    names = _names(weight, bias)
    return None if names is None else [L.Linear(weight.name, names[1])]


def _normed(groups: int, eps: float, weight: Any, bias: Any, per_channel: bool) -> Layers | None:
    names = _names(weight, bias)
    if names is None:
        return None
    affine: Layers = [Affine(names[0], names[1], per_channel)] if any(names) else []
    return [Standardise(groups, eps), *affine]


def _group_norm(
    input: Any, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Layers | None:
    return _normed(num_groups, eps, weight, bias, True)


def _layer_norm(
    input: Any, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Layers | None:
    return _normed(-len(normalized_shape), eps, weight, bias, False)


def _instance_norm(
    input: Any,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Layers | None:
    if running_mean is not None or not use_input_stats:
        return None
    return _normed(0, eps, weight, bias, True)


def _leaky_relu(input: Any, negative_slope: float = 0.01, inplace: bool = False) -> Layers | None:
    known = isinstance(negative_slope, int | float) and negative_slope >= 0
    return [L.LeakyReLU(negative_slope)] if known else None


def _relu(input: Any, inplace: bool = False) -> Layers:
    return [L.LeakyReLU(0.0)]


def _softplus(input: Any, beta: float = 1, threshold: float = 20) -> Layers | None:
    return [L.softplus()] if (beta, threshold) == (1, 20) else None


def _silu(input: Any, inplace: bool = False) -> Layers:
    return [L.silu()]


def _tanh(input: Any) -> Layers:
    return [L.tanh()]


def _negative(input: Any) -> Layers:
    return [L.Scale(-1.0)]


def dropout(draw: Callable[..., Tensor], p: float) -> Layers:
    """A layer that draws its masks by `draw`, torch's own dropout."""
    return [L.Dropout(lambda x: draw(torch.ones_like(x), p), lambda numbers, like: numbers)]


def _dropout(draw: Callable[..., Tensor]) -> Callable[..., Layers]:
    def make(input: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Layers:
        return dropout(draw, p) if training and p else []

    return make


def _avg_pool(
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Layers | None:
    sizes = [per_axis(x, 2) for x in (kernel_size, stride or kernel_size, padding)]
    pool = L.AvgPool((*sizes, ceil_mode, count_include_pad, divisor_override))
    return [pool] if len(shape_of(input)) == 4 else None


def _padding(
    input: Any, pad: Any, mode: str = "constant", value: float | None = None
) -> Layers | None:
    return None if value else [M.Map(lambda x: F.pad(x, pad, mode))]


_LAYERS: dict[Any, Callable[..., Layers | None]] = {
    torch.conv1d: _convolution(1),
    torch.conv2d: _convolution(2),
    torch.conv3d: _convolution(3),
    F.linear: _linear,
    F.group_norm: _group_norm,
    F.layer_norm: _layer_norm,
    F.instance_norm: _instance_norm,
    F.leaky_relu: _leaky_relu,
    F.relu: _relu,
    torch.relu: _relu,
    "relu": _relu,
    F.softplus: _softplus,
    F.avg_pool2d: _avg_pool,
    F.silu: _silu,
    F.tanh: _tanh,
    torch.tanh: _tanh,
    "tanh": _tanh,
    F.pad: _padding,
    torch._C._nn.pad: _padding,  # what the front end records
    F.dropout: _dropout(F.dropout),
    F.dropout2d: _dropout(F.dropout2d),
    operator.neg: _negative,
    torch.neg: _negative,
    "neg": _negative,
}
# Linear in their first argument, which is all that they take from the pictures. Whether samples
# stay apart is told by the shapes.
_LINEAR = {
    F.avg_pool1d,
    F.avg_pool3d,
    F.adaptive_avg_pool1d,
    F.adaptive_avg_pool2d,
    F.adaptive_avg_pool3d,
    F.interpolate,
    F.pixel_shuffle,
    F.pixel_unshuffle,
    torch.mean,
    torch.sum,
    torch.transpose,
    torch.permute,
    torch.movedim,
    "mean",
    "sum",
    "transpose",
    "permute",
    "movedim",
    "contiguous",
    "clone",
    operator.getitem,
}
# Another shape of the same numbers in the same order.
_SHAPES = {
    torch.flatten,
    torch.reshape,
    torch.squeeze,
    torch.unsqueeze,
    torch.unflatten,
    "flatten",
    "reshape",
    "view",
    "view_as",
    "reshape_as",
    "squeeze",
    "unsqueeze",
    "unflatten",
}
_CASTS = {"to", "float", "double", "half", "bfloat16", "type", "type_as"}


def function_layers(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Layers | None:
    """The layers of a node whose one picture value is its first argument; [] = it changes nothing.

    ``args`` and ``kwargs`` are the node's, with `Fixed` in place of nodes. Reshapes are the
    walker's.
    """
    target = node.target
    if target in _LAYERS:
        try:
            return _LAYERS[target](*args, **kwargs)
        except TypeError:  # an argument that is not known here
            return None
    if changes_nothing(node):
        return []
    if target in _CASTS:
        before, after = (n.meta["example_value"].dtype for n in (args[0], node))
        floats = before.is_floating_point and after.is_floating_point
        return [M.Map(lambda x: x.to(after))] if floats else None
    rest, named = args[1:], kwargs
    if target not in _LINEAR or _holds_nodes((rest, named)):
        return None
    if target is operator.getitem and not _keeps_batch(rest[0]):
        return None
    if isinstance(target, str):
        return [M.Map(lambda x: getattr(x, target)(*rest, **named))]
    return [M.Map(lambda x: target(x, *rest, **named))]


def is_reshape(node: fx.Node) -> bool:
    """Whether the node gives its first argument another shape."""
    return node.target in _SHAPES


def changes_nothing(node: fx.Node) -> bool:
    """Whether the node casts to the type that its first argument has."""
    if node.target not in _CASTS:
        return False
    before, after = (n.meta["example_value"] for n in (node.all_input_nodes[0], node))
    return isinstance(before, Tensor) and before.dtype == after.dtype


def _holds_nodes(arguments: Any) -> bool:
    found: list[Any] = []
    fx.map_arg(arguments, found.append)
    leaves = torch.utils._pytree.tree_leaves(arguments)
    return bool(found) or any(isinstance(x, Fixed | Tensor | torch.SymInt) for x in leaves)


def _keeps_batch(index: Any) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    plain = all(p is None or p is Ellipsis or isinstance(p, int | slice) for p in parts)
    return plain and (parts[0] is Ellipsis or parts[0] == slice(None))


def column(node: fx.Node) -> L.Layer | None:
    """x[:, column] of an untraced graph."""
    if node.target is not operator.getitem or not isinstance(node.args[1], tuple):
        return None
    match node.args[1]:
        case (rows, int() as k) if rows == slice(None):
            return L.Column(k)
    return None
