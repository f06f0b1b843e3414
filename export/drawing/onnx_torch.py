"""An ONNX graph computed with torch operations: what the torch back end runs.

Only the operations that generators are made of, as ONNX defines them (onnx.ai/onnx/operators).
Weights of convolutions lie channels last, the layout in which cuDNN and oneDNN compute.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ganfast.errors import InputError

Attributes = Mapping[str, Any]


class Program:
    """A graph with its weights on a device: its inputs by name in, its first output out."""

    def __init__(self, model: bytes, device: torch.device) -> None:
        """Raises InputError for an operation that is not here, or without the package onnx."""
        self.weights, self._steps, self._output = _parsed(model, device)

    @torch.inference_mode()
    def __call__(self, **inputs: Tensor) -> Tensor:
        values: dict[str, Any] = {**self.weights, **inputs}
        for operation, names, attributes, results, unused in self._steps:
            outputs = operation(attributes, *(values[name] if name else None for name in names))
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            values |= zip(results, outputs, strict=False)
            for name in unused:
                del values[name]
        images: Tensor = values[self._output]
        return images

    def refit(self, model: bytes) -> None:
        """Copy the weights of another file with the same graph into these.

        Their addresses stay, so that captured CUDA graphs stay valid.

        Raises:
            InputError: its weights have other names, shapes or types.
        """
        others, _, _ = _parsed(model, torch.device("cpu"))
        for name in sorted(self.weights.keys() | others.keys()):
            if _form(self.weights.get(name)) != _form(others.get(name)):
                raise InputError(
                    f"{name} is not the same in the new graph; "
                    "load the new bundle with load_sampler"
                )
        for name, value in others.items():
            self.weights[name].copy_(value)


def _form(weight: Tensor | None) -> tuple[Any, ...] | None:
    return None if weight is None else (weight.shape, weight.dtype)


def _parsed(model: bytes, device: torch.device) -> tuple[dict[str, Tensor], list[Any], str]:
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError as error:
        raise InputError(
            'the torch back end reads ONNX files: pip install "ganfast[export]"'
        ) from error
    graph = onnx.load_model_from_string(model).graph
    missing = sorted({node.op_type for node in graph.node} - set(_OPERATIONS))
    if missing:
        raise InputError(f"the torch back end has no {', '.join(missing)}; use backend onnxruntime")
    weights = {t.name: _on(device, _tensor(numpy_helper.to_array(t))) for t in graph.initializer}
    last: dict[str, int] = {name: i for i, node in enumerate(graph.node) for name in node.input}
    output = graph.output[0].name
    steps = []
    for i, node in enumerate(graph.node):
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "Constant":
            value = (
                numpy_helper.to_array(attributes["value"])
                if "value" in attributes
                else np.asarray(next(iter(attributes.values())))
            )
            weights[node.output[0]] = _on(device, _tensor(value))
            continue
        unused = [
            n for n in {*node.input} if n and last[n] == i and n not in weights and n != output
        ]
        steps.append(
            (_OPERATIONS[node.op_type], list(node.input), attributes, list(node.output), unused)
        )
    return weights, steps, output


def _tensor(array: np.ndarray) -> Tensor:
    if array.dtype.name == "bfloat16":  # ml_dtypes'
        return torch.from_numpy(array.astype(np.float32)).bfloat16()
    return torch.from_numpy(np.array(array))


def _on(device: torch.device, value: Tensor) -> Tensor:
    if value.dtype in (torch.int64, torch.int32) and value.dim() <= 1:
        return value  # shapes, axes and indices are read by the host
    value = value.to(device)
    return value.contiguous(memory_format=torch.channels_last) if value.dim() == 4 else value


_TYPES = {
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
    11: torch.float64,
    16: torch.bfloat16,
}


def _ints(value: Tensor | None) -> list[int]:
    return [] if value is None else [int(v) for v in value.reshape(-1).tolist()]


def _pads(a: Attributes, spatial: int) -> list[int]:
    """Symmetric padding; ONNX gives begins, then ends."""
    pads = list(a.get("pads", [0] * 2 * spatial))
    if pads[:spatial] != pads[spatial:] or a.get("auto_pad", b"NOTSET") != b"NOTSET":
        raise InputError(
            f"the torch back end has no convolution with padding {pads}; use backend onnxruntime"
        )
    return pads[:spatial]


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def _conv(a: Attributes, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    d = x.dim() - 2
    function = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[d]
    ones = [1] * d
    stride, dilation = a.get("strides", ones), a.get("dilations", ones)
    return function(_channels_last(x), w, b, stride, _pads(a, d), dilation, a.get("group", 1))


def _conv_transpose(a: Attributes, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    d = x.dim() - 2
    function = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}[d]
    ones, extra = [1] * d, a.get("output_padding", [0] * d)
    stride, dilation, groups = a.get("strides", ones), a.get("dilations", ones), a.get("group", 1)
    return function(_channels_last(x), w, b, stride, _pads(a, d), extra, groups, dilation)


def _gemm(a: Attributes, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    x, w = (x.t() if a.get("transA") else x), (w.t() if a.get("transB") else w)
    alpha, beta = a.get("alpha", 1.0), a.get("beta", 1.0)
    return alpha * (x @ w) if b is None else torch.addmm(b, x, w, beta=beta, alpha=alpha)


def _reshape(a: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    sizes = _ints(shape)
    if not a.get("allowzero"):
        sizes = [x.shape[i] if n == 0 else n for i, n in enumerate(sizes)]
    return x.reshape(sizes)


def _shape(a: Attributes, x: Tensor) -> Tensor:
    return torch.tensor(list(x.shape)[a.get("start", 0) : a.get("end", x.dim())])


def _along(x: Tensor, values: Tensor, axis: int) -> Tensor:
    """``values``, one a channel of ``axis`` or one for all, as they broadcast over x."""
    if values.numel() <= 1:
        return values.reshape(())
    return values.reshape([-1 if i == axis % x.dim() else 1 for i in range(x.dim())])


def _quantize(a: Attributes, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    axis = a.get("axis", 1)
    kind = torch.uint8 if zero is None else zero.dtype
    at = 0.0 if zero is None else _along(x, zero, axis).float()
    low, high = torch.iinfo(kind).min, torch.iinfo(kind).max
    return torch.clamp(torch.round(x / _along(x, scale, axis)) + at, low, high).to(kind)


def _dequantize(a: Attributes, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    axis = a.get("axis", 1)
    at = 0.0 if zero is None else _along(x, zero, axis).to(scale.dtype)
    return (x.to(scale.dtype) - at) * _along(x, scale, axis)


def _instance_norm(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.instance_norm(x, weight=weight, bias=bias, eps=a.get("epsilon", 1e-5))


def _group_norm(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.group_norm(x, a["num_groups"], weight, bias, a.get("epsilon", 1e-5))


def _layer_norm(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    shape = x.shape[a.get("axis", -1) % x.dim() :]
    return F.layer_norm(x, shape, weight, bias, a.get("epsilon", 1e-5))


def _reduce(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def reduced(a: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
        along = _ints(axes) or list(a.get("axes", range(x.dim())))
        return function(x, dim=along, keepdim=bool(a.get("keepdims", 1)))

    return reduced


def _slice(
    a: Attributes, x: Tensor, starts: Tensor, ends: Tensor, axes: Any = None, steps: Any = None
) -> Tensor:
    first = _ints(starts)
    along, strides = _ints(axes) or range(len(first)), _ints(steps) or [1] * len(first)
    cut: list[Any] = [slice(None)] * x.dim()
    for axis, *edges in zip(along, first, _ints(ends), strides, strict=True):
        cut[axis] = slice(*edges)
    return x[tuple(cut)]


def _split(a: Attributes, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    axis = a.get("axis", 0)
    return x.chunk(a["num_outputs"], axis) if sizes is None else x.split(_ints(sizes), axis)


def _unsqueeze(a: Attributes, x: Tensor, axes: Tensor) -> Tensor:
    places = _ints(axes)
    for axis in sorted(axis % (x.dim() + len(places)) for axis in places):
        x = x.unsqueeze(axis)
    return x


def _gather(a: Attributes, x: Tensor, index: Tensor) -> Tensor:
    axis, at = a.get("axis", 0), index.to(x.device)
    rows = x.index_select(axis, at.reshape(-1))
    return rows.reshape(*x.shape[:axis], *at.shape, *x.shape[axis:][1:])


def _depth_to_space(a: Attributes, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    b = a["blocksize"]
    if a.get("mode", b"DCR") == b"CRD":
        return F.pixel_shuffle(x, b)
    blocks = x.reshape(n, b, b, c // (b * b), h, w).permute(0, 3, 4, 1, 5, 2)
    return blocks.reshape(n, c // (b * b), h * b, w * b)


def _resize(
    a: Attributes,
    x: Tensor,
    roi: Any = None,
    scales: Tensor | None = None,
    sizes: Tensor | None = None,
) -> Tensor:
    mode, place = a.get("mode", b"nearest"), a.get("coordinate_transformation_mode", b"half_pixel")
    if sizes is not None:
        size = _ints(sizes)[2:]
    else:
        assert scales is not None  # ONNX asks for one of the two
        size = [int(n * s) for n, s in zip(x.shape[2:], scales.tolist()[2:], strict=True)]
    plain = not a.get("antialias")
    whole = all(after % before == 0 for before, after in zip(x.shape[2:], size, strict=True))
    if plain and mode == b"nearest" and whole:
        return F.interpolate(x, size, mode="nearest")
    at_centres_or_corners = place in (b"half_pixel", b"pytorch_half_pixel", b"align_corners")
    if plain and mode == b"linear" and at_centres_or_corners:
        return F.interpolate(x, size, mode="bilinear", align_corners=place == b"align_corners")
    raise InputError(
        f"the torch back end has no such Resize ({mode.decode()}, {place.decode()}); "
        "use backend onnxruntime"
    )


_OPERATIONS: dict[str, Callable[..., Any]] = {
    "Constant": lambda a: None,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": lambda a, x, y: x @ y,
    "Add": lambda a, x, y: x + y,
    "Sub": lambda a, x, y: x - y,
    "Mul": lambda a, x, y: x * y,
    "Div": lambda a, x, y: x / y,
    "Pow": lambda a, x, y: x**y,
    "Sqrt": lambda a, x: x.sqrt(),
    "Reciprocal": lambda a, x: x.reciprocal(),
    "Neg": lambda a, x: -x,
    "Exp": lambda a, x: x.exp(),
    "Erf": lambda a, x: x.erf(),
    "Relu": lambda a, x: x.relu(),
    "LeakyRelu": lambda a, x: F.leaky_relu(x, a.get("alpha", 0.01)),
    "Tanh": lambda a, x: x.tanh(),
    "Sigmoid": lambda a, x: x.sigmoid(),
    "Softplus": lambda a, x: F.softplus(x),
    "Elu": lambda a, x: F.elu(x, a.get("alpha", 1.0)),
    "Softmax": lambda a, x: x.softmax(a.get("axis", -1)),
    "PRelu": lambda a, x, s: torch.where(x > 0, x, x * s),
    "Round": lambda a, x: x.round(),
    "Clip": lambda a, x, low=None, high=None: x.clamp(low, high),
    "Cast": lambda a, x: x.to(_TYPES[a["to"]]),
    "Transpose": lambda a, x: x.permute(a["perm"]),
    "Identity": lambda a, x: x,
    "Reshape": _reshape,
    "Flatten": lambda a, x: x.reshape(int(np.prod(x.shape[: a.get("axis", 1)])), -1),
    "Shape": _shape,
    "Unsqueeze": _unsqueeze,
    "Squeeze": lambda a, x, axes: x.squeeze(tuple(_ints(axes))),
    "Gather": _gather,
    "Slice": _slice,
    "Concat": lambda a, *xs: torch.cat(xs, a["axis"]),
    "Expand": lambda a, x, shape: x + x.new_zeros(_ints(shape)),
    "Split": _split,
    "DepthToSpace": _depth_to_space,
    "Resize": _resize,
    "ReduceMean": _reduce(torch.mean),
    "ReduceSum": _reduce(torch.sum),
    "InstanceNormalization": _instance_norm,
    "GroupNormalization": _group_norm,
    "LayerNormalization": _layer_norm,
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
}
