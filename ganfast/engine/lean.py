"""Convolution and (leaky) ReLU whose derivatives of any order are built from the operations that
hardware is good at.

torch's own second derivatives are right but wasteful. Convolution's computes the weight gradient as
a convolution whose filter is the activation map, once a group; leaky ReLU's returns a dense zero
for its input, through which autograd then runs whole passes. Here convolution, its data gradient
and its weight gradient are three functions, each one's derivatives being the other two; and leaky
ReLU's derivative is a product with a mask, whose own derivative is the same product.
"""

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ganfast.engine.convolution import MOST, Convolution, is_thin, may_pad, per_axis
from ganfast.models.members import modules
from ganfast.tensors import laid_out_like

aten = torch.ops.aten


def leads_to(ctx: Any, position: int) -> bool:
    """Whether this backward pass leads to the input; ``needs_input_grad`` says that some pass may.

    The first pass of a penalty leads to the pictures only, and must not compute weight gradients
    that nobody takes.
    """
    if not ctx.needs_input_grad[position]:
        return False
    node = ctx.next_functions[position][0]
    leaf = hasattr(node, "variable")  # of leaves the engine does not say
    return leaf or torch._C._will_engine_execute_node(node)


class Convolve(torch.autograd.Function):
    """y(x, W) + b: linear in x and W."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, shape: Convolution
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.shape = shape
        return shape.forward(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        return (
            DataGradient.apply(dy, weight, x.detach(), ctx.shape) if leads_to(ctx, 0) else None,
            WeightGradient.apply(dy, x, weight.detach(), ctx.shape) if leads_to(ctx, 1) else None,
            dy.sum([0, *range(2, dy.dim())]) if leads_to(ctx, 2) else None,
            None,
        )


class DataGradient(torch.autograd.Function):
    """dx(dy, W): linear in both; ``x`` gives the shape only."""

    @staticmethod
    def forward(ctx: Any, dy: Tensor, weight: Tensor, x: Tensor, shape: Convolution) -> Tensor:
        ctx.save_for_backward(dy, weight)
        ctx.shape = shape
        return shape.data_gradient(dy, weight, x)

    @staticmethod
    def backward(ctx: Any, t: Tensor) -> Any:
        dy, weight = ctx.saved_tensors
        return (
            Convolve.apply(t, weight, None, ctx.shape) if leads_to(ctx, 0) else None,
            WeightGradient.apply(dy, t, weight.detach(), ctx.shape) if leads_to(ctx, 1) else None,
            None,
            None,
        )


class WeightGradient(torch.autograd.Function):
    """dW(dy, x): linear in both; ``weight`` gives the shape only."""

    @staticmethod
    def forward(ctx: Any, dy: Tensor, x: Tensor, weight: Tensor, shape: Convolution) -> Tensor:
        ctx.save_for_backward(dy, x)
        ctx.shape = shape
        return shape.weight_gradient(dy, x, weight)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Any:
        dy, x = ctx.saved_tensors
        return (
            Convolve.apply(x, v, None, ctx.shape) if leads_to(ctx, 0) else None,
            DataGradient.apply(dy, v, x.detach(), ctx.shape) if leads_to(ctx, 1) else None,
            None,
            None,
        )


class Leak(torch.autograd.Function):
    """x where it is positive, slope x elsewhere."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: float, inplace: bool) -> Tensor:
        y = F.leaky_relu(x, slope, inplace)
        if inplace:
            ctx.mark_dirty(y)
        ctx.save_for_backward(y)
        ctx.slope = slope
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        return LeakThrough.apply(dy, ctx.saved_tensors[0].detach(), ctx.slope), None, None


class LeakThrough(torch.autograd.Function):
    """v where y is positive, slope v elsewhere: linear in v, constant in y almost everywhere."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, y: Tensor, slope: float) -> Tensor:
        ctx.save_for_backward(y)
        ctx.slope = slope
        return aten.leaky_relu_backward(laid_out_like(v, y), y, slope, True)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return LeakThrough.apply(g, ctx.saved_tensors[0], ctx.slope), None, None


class LeanDerivatives(TorchFunctionMode):
    """While active, convolutions and (leaky) ReLUs of whatever runs are the ones of this file."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        replacement = _REPLACEMENTS.get(func)
        return (replacement or func)(*args, **(kwargs or {}))


class ThinConvolutions:
    """While active, a network's convolutions between many channels and a picture are this file's.

    Their modules get another forward: a mode that sees every operation, like `LeanDerivatives`,
    costs a small network more than it gains.
    """

    def __init__(self, net: nn.Module) -> None:
        self._changed = [m for m in modules(net) if _may_be_thin(m)]

    def __enter__(self) -> None:
        for module in self._changed:
            forward = _conv_forward if isinstance(module, nn.Conv2d) else _transposed_forward
            # A method, so that a copy of the module gets one of its own.
            module.__dict__["forward"] = MethodType(forward, module)

    def __exit__(self, *_: object) -> None:
        for module in self._changed:
            module.__dict__.pop("forward", None)


def _may_be_thin(m: nn.Module) -> bool:
    """Whether torch's own class computes the module, with pictures of at most `MOST` channels."""
    if vars(m).keys() & {"forward", "_conv_forward"}:
        return False  # a user's forward, or this file's already
    kind: Any = type(m)
    if isinstance(m, nn.Conv2d):
        forwards = kind.forward, kind._conv_forward
        own = forwards == (nn.Conv2d.forward, nn.Conv2d._conv_forward)
        return own and m.in_channels <= MOST and m.padding_mode == "zeros"
    transposed = isinstance(m, nn.ConvTranspose2d) and m.out_channels <= MOST
    return transposed and kind.forward is nn.ConvTranspose2d.forward


def _is_thin(m: Any, x: Tensor, weight: Tensor) -> bool:
    on_cpu = is_thin(x, weight, m.groups) and not torch.is_autocast_enabled("cpu")
    return on_cpu or may_pad(x, weight.shape[1], m.groups)


def _cast(*tensors: Tensor | None) -> Any:
    """As autocast would on a GPU, which does not see the operations of this file."""
    if not torch.is_autocast_enabled("cuda"):
        return tensors
    kind = torch.get_autocast_dtype("cuda")
    kept = [t is None or not t.is_cuda or t.dtype == torch.float64 for t in tensors]
    return [t if t is None or as_is else t.to(kind) for t, as_is in zip(tensors, kept, strict=True)]


# Both read the weight once: under spectral normalisation every reading is a power iteration.


def _conv_forward(m: Any, x: Tensor) -> Tensor:
    x, weight, bias = _cast(x, m.weight, m.bias)
    if not _is_thin(m, x, weight) or isinstance(m.padding, str):
        return m._conv_forward(x, weight, bias)
    shape = Convolution(m.stride, m.padding, m.dilation, 1, last=True)
    return Convolve.apply(x, _seen(weight), _seen(bias), shape)


def _transposed_forward(m: Any, x: Tensor, output_size: list[int] | None = None) -> Tensor:
    """A transposed convolution is the data gradient of the convolution with its weights."""
    if output_size is not None:
        return nn.ConvTranspose2d.forward(m, x, output_size)
    x, weight, bias = _cast(x, m.weight, m.bias)
    s, p, d, o = m.stride, m.padding, m.dilation, m.output_padding
    if not _is_thin(m, x, weight):
        return torch.conv_transpose2d(x, weight, bias, s, p, o, m.groups, d)
    size = [
        (n - 1) * s[i] - 2 * p[i] + d[i] * (k - 1) + o[i] + 1
        for i, (n, k) in enumerate(zip(x.shape[2:], weight.shape[2:], strict=True))
    ]
    like = x.new_empty(len(x), weight.shape[1], *size)
    y = DataGradient.apply(x, _seen(weight), like, Convolution(s, p, d, 1, last=True))
    return y if bias is None else y + bias.view(-1, 1, 1)


def _convolution(axes: int, original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def convolve(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor:
        if isinstance(padding, str) or input.dim() != axes + 2:
            return original(input, weight, bias, stride, padding, dilation, groups)
        device = input.device.type
        if torch.is_autocast_enabled(device) and input.dtype != torch.float64:
            kind = torch.get_autocast_dtype(device)
            input, weight = input.to(kind), weight.to(kind)
        bias = None if bias is None else bias.to(weight.dtype)
        s, p, d = (per_axis(value, axes) for value in (stride, padding, dilation))
        return Convolve.apply(input, weight, bias, Convolution(s, p, d, groups))

    return convolve


def _seen(weight: Tensor | None) -> Tensor | None:
    """A view, so that `leads_to` can tell whether a pass leads to the leaf."""
    return None if weight is None else weight.view_as(weight)


def _leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    if negative_slope < 0:
        return F.leaky_relu(input, negative_slope, inplace)
    return Leak.apply(input, negative_slope, inplace)


def _relu(input: Tensor, inplace: bool = False) -> Tensor:
    return Leak.apply(input, 0.0, inplace)


_REPLACEMENTS: dict[Any, Callable[..., Tensor]] = {
    torch.conv1d: _convolution(1, torch.conv1d),
    torch.conv2d: _convolution(2, torch.conv2d),
    torch.conv3d: _convolution(3, torch.conv3d),
    F.leaky_relu: _leaky_relu,
    F.relu: _relu,
    torch.relu: _relu,
    Tensor.relu: _relu,
}
