"""A convolution without its tensors, and the operations that it and its derivatives consist of."""

from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.flop_counter import register_flop_formula

from ganfast.log import logger


class Convolution(NamedTuple):
    """Over any number of axes; weights are (out, in / groups, *kernel)."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    last: bool = False  # the result is channels last, though one channel's strides do not say so

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        x = as_channels_last(x) if self.last and is_thin(x, weight, self.groups) else x
        if may_pad(x, weight.shape[1], self.groups) and is_faster(self._forward, x, weight):
            x, weight = padded(x), padded(weight)
        return self._forward(x, weight, bias)

    def data_gradient(self, dy: Tensor, weight: Tensor, x: Tensor) -> Tensor:
        """``x`` gives the shape only."""
        few = weight.shape[1]
        if is_thin(dy, weight, self.groups):
            return overlapped(dy, weight, x.shape[2:], self)
        if may_pad(dy, few, self.groups) and is_faster(self._data_gradient, weight, x, dy):
            return self._data_gradient(padded(weight), unwritten(x), dy)[:, :few]
        return self._data_gradient(weight, x, dy)

    def weight_gradient(self, dy: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """``weight`` gives the shape only."""
        few = weight.shape[1]
        if is_small(dy, weight, self.groups):
            return patch_product(dy, x, weight, self)
        if may_pad(dy, few, self.groups) and is_faster(self._weight_gradient, x, weight, dy):
            return self._weight_gradient(padded(x), unwritten(weight), dy)[:, :few]
        return self._weight_gradient(x, weight, dy)

    def _forward(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return torch.ops.aten.convolution(x, weight, bias, *self._options)

    def _data_gradient(self, weight: Tensor, x: Tensor, dy: Tensor) -> Tensor:
        return self._backward(dy, x, weight, [True, False, False])[0]

    def _weight_gradient(self, x: Tensor, weight: Tensor, dy: Tensor) -> Tensor:
        return self._backward(dy, x, weight, [False, True, False])[1]

    def _backward(
        self, dy: Tensor, x: Tensor, weight: Tensor, mask: list[bool]
    ) -> tuple[Tensor, Tensor, Tensor]:
        return torch.ops.aten.convolution_backward(dy, x, weight, None, *self._options, mask)

    @property
    def _options(self) -> tuple[Any, ...]:
        """As torch's operations take them, between them "not transposed" and no output padding."""
        zeros = [0] * len(self.stride)
        return self.stride, self.padding, self.dilation, False, zeros, self.groups


def per_axis(value: Any, axes: int) -> tuple[int, ...]:
    """A number for all axes, or one for each."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * (axes if len(values) == 1 else 1)


# Convolutions between many channels and a picture's one to three, on a CPU.
#
# oneDNN vectorises over channels, so that writing one channel costs it as much as writing
# sixteen. As a matrix product, which gives every tap of every position, and a sum of the
# overlapping taps, the step towards pictures takes a quarter of the time for one channel, and
# half of it for three (one and two cores, float32, batches of 32 and 64, from 32 and 64 channels
# of 14x14 to 32x32).

MOST = 3  # channels of a picture


def is_thin(values: Tensor, weight: Tensor, groups: int) -> bool:
    """Whether `overlapped` is faster for ``values`` (N, C, h, w), weights (C, few, *kernel)."""
    return _plain(values, groups) and weight.shape[1] <= MOST


def _plain(values: Tensor, groups: int) -> bool:
    """Whether the matrix products of this file may take the place of oneDNN's convolutions."""
    floats = values.dtype in (torch.float32, torch.float64) and values.device.type == "cpu"
    return floats and groups == 1 and values.dim() == 4 and len(values) > 0


def overlapped(values: Tensor, weight: Tensor, size: tuple[int, ...], shape: Convolution) -> Tensor:
    """The transposed convolution of ``values`` (N, C, h, w) with ``weight`` (C, few, *kernel):
    (N, few, *size), in the layout of ``values``."""
    (n, _, h, w), (_, few, *_) = values.shape, weight.shape
    kernel, (stride, padding, dilation, *_) = tuple(weight.shape[2:]), shape
    reached = [(length - 1) * s + k for length, s, k in zip((h, w), stride, kernel, strict=True)]
    inside = all(p + side <= end for p, side, end in zip(padding, size, reached, strict=True))
    whole_strides = not any(k % s for k, s in zip(kernel, stride, strict=True))
    if inside and set(dilation) == {1} and whole_strides:
        by_phases = _opaque if isinstance(values, FakeTensor) else _by_phases
        pictures = by_phases(values, weight, list(size), list(stride), list(padding))
    else:
        taps = weight.reshape(len(weight), -1).t() @ values.flatten(2)  # (N, few kernel, h w)
        # As one picture of many channels, because threads share channels, not pictures.
        one = taps.flatten(0, 1)[None]
        pictures = F.fold(one, size, kernel, dilation, padding, stride).view(n, few, *size)
    last = values.is_contiguous(memory_format=torch.channels_last)
    return as_channels_last(pictures) if last else pictures.contiguous()


def _by_phases(
    values: Tensor, weight: Tensor, size: list[int], stride: list[int], padding: list[int]
) -> Tensor:
    """A kernel q strides long: each phase of the stride is the sum of q x q shifted maps.

    The result is channels last.
    """
    (n, c, h, w), few, (sy, sx) = values.shape, weight.shape[1], stride
    qy, qx = weight.shape[2] // sy, weight.shape[3] // sx
    by_tap = weight.reshape(c, few, qy, sy, qx, sx).permute(2, 4, 1, 3, 5, 0).reshape(-1, c)
    taps = by_tap @ values.permute(0, 2, 3, 1).reshape(-1, c).t()
    taps = taps.view(qy, qx, few, sy, sx, n, h, w)
    phases = values.new_zeros(few, sy, sx, n, h + qy - 1, w + qx - 1)
    for y in range(qy):
        for x in range(qx):
            phases[..., y : y + h, x : x + w] += taps[y, x]
    whole = phases.permute(3, 0, 4, 1, 5, 2).reshape(n, few, (h + qy - 1) * sy, (w + qx - 1) * sx)
    (top, left), (height, width) = padding, size
    inside = whole[:, :, top : top + height, left : left + width]
    return inside.clone(memory_format=torch.channels_last)


# One operation for a compiler, which takes minutes to make slower code of its parts.
_opaque = torch.library.custom_op("ganfast::by_phases", _by_phases, mutates_args=())


@_opaque.register_fake
def _(
    values: Tensor, weight: Tensor, size: list[int], stride: list[int], padding: list[int]
) -> Tensor:
    return values.new_empty(len(values), *size, weight.shape[1]).permute(0, 3, 1, 2)


@register_flop_formula(torch.ops.ganfast.by_phases)
def _(values: tuple[int, ...], weight: tuple[int, ...], *_: Any, **__: Any) -> int:
    """Of the matrix product inside, which a counter does not see where it is one operation."""
    n, c, h, w = values
    return 2 * n * c * h * w * prod(weight[1:])


def as_channels_last(x: Tensor) -> Tensor:
    """``x`` (N, few, H, W) in channels-last layout, with strides that say so.

    Pictures of one channel have that layout anyway, but torch gives them contiguous strides. A
    convolution chooses the layout of its result by the strides; in the other layout every later
    layer is slower.
    """
    n, channels, height, width = x.shape
    if channels > 1 or not x.is_contiguous():
        return x.contiguous(memory_format=torch.channels_last)
    return x.as_strided((n, 1, height, width), (height * width, 1, width, 1))


# Weight gradients of convolutions whose results are small maps, on a CPU, as one matrix product.
#
# oneDNN vectorises them along the rows of a map; where these are three numbers long, copying
# every patch and multiplying takes 0.3 to 0.9 of its time, and with many channels also where they
# are four (float32, two cores, batches of 16 to 64, 32 to 512 channels).

_POSITIONS = 9  # of a map that is small with any number of channels
_MORE, _WEIGHTS = 16, 1 << 19  # of one that is with so many weights


def is_small(dy: Tensor, weight: Tensor, groups: int) -> bool:
    """Whether `patch_product` is faster for the gradient of ``weight`` by ``dy`` (N, out, h, w)."""
    if not _plain(dy, groups):
        return False
    positions = dy.shape[2] * dy.shape[3]
    return positions <= _POSITIONS or (positions <= _MORE and weight.numel() >= _WEIGHTS)


def patch_product(dy: Tensor, x: Tensor, weight: Tensor, shape: Convolution) -> Tensor:
    """The gradient of a convolution's weight from the deltas ``dy`` of its results for pictures
    ``x``, channels last. ``weight`` gives the shape only."""
    (n, _, h, w), (out, channels, *kernel) = x.shape, weight.shape
    (sy, sx), (top, left), (dilation_y, dilation_x), *_ = shape
    padded = x.new_zeros(n, h + 2 * top, w + 2 * left, channels)
    padded[:, top : top + h, left : left + w] = x.permute(0, 2, 3, 1)
    picture, row, column, channel = padded.stride()
    strides = picture, sy * row, sx * column, dilation_y * row, dilation_x * column, channel
    patches = padded.as_strided((n, *dy.shape[2:], *kernel, channels), strides)
    patches = patches.reshape(n * dy.shape[2] * dy.shape[3], -1)
    product = dy.permute(0, 2, 3, 1).reshape(-1, out).t() @ patches
    return product.view(out, *kernel, channels).permute(0, 3, 1, 2)


# Convolutions between many channels and a picture's one to three, on a GPU in half precision: with
# zeros for channels, up to eight, where that is faster.
#
# Tensor cores take eight numbers of a pixel at a time. cuDNN is said to pad packed NCHW itself
# ("Tensor Ops Made Easier in cuDNN", NVIDIA 2018); inductor pads matrix products only. Zeros add
# nothing to a sum. Whether the copies are worth it depends on the GPU and on the library, so both
# are timed on the device.
#
# Like the choices that cuDNN makes by time, these may differ between two runs, and the last bits
# with them. So `torch.backends.cudnn.benchmark` switches both.

CHANNELS = 8
_CALLS, _WARM_UP = 20, 3
_SLEEP = 20_000_000  # cycles in which the GPU waits for the host to queue what is timed

_faster: dict[Any, bool] = {}  # of what was timed, for the process


def may_pad(x: Tensor, few: int, groups: int) -> bool:
    """Whether a convolution of ``x`` with a picture's ``few`` channels is timed both ways."""
    if not (x.is_cuda and torch.backends.cudnn.benchmark):
        return False
    half = x.dtype in (torch.bfloat16, torch.float16)
    if not (half and groups == 1 and x.dim() == 4 and 0 < few <= MOST and len(x) > 0):
        return False
    # FLOPs are counted on fake tensors that nobody records, and are those of the definition.
    counted = isinstance(x, FakeTensor) and get_proxy_mode() is None
    return not (counted or torch.compiler.is_compiling())


def is_faster(operation: Callable[..., Tensor], *tensors: Tensor) -> bool:
    """Whether ``operation(*tensors)`` takes less time with the first two, pictures and weights,
    padded.

    It is a method of a `Convolution`, timed on the device at its first call with tensors of these
    shapes.
    """
    method: Any = operation
    key = method.__name__, method.__self__, *[(t.shape, t.dtype, t.device) for t in tensors]
    if key not in _faster:
        if torch.cuda.is_current_stream_capturing():
            return False
        with _disable_current_modes(), torch.no_grad():  # outside of what is being recorded
            own = [torch.zeros(t.shape, dtype=t.dtype, device=t.device) for t in tensors]
            first, second, *more = [t.contiguous(memory_format=torch.channels_last) for t in own]
            plain = _milliseconds(lambda: operation(first, second, *more))
            other = _milliseconds(lambda: operation(padded(first), padded(second), *more))
        _faster[key] = other < plain
        logger.debug(
            "%s of %s: %.4f ms, padded to %d channels %.4f ms; taken: %s",
            *(operation.__name__, [tuple(t.shape) for t in tensors], plain, CHANNELS, other),
            "padded" if other < plain else "as it is",
        )
    return _faster[key]


def _milliseconds(run: Callable[[], Tensor]) -> float:
    """Of one call on the GPU, without what the host takes to queue it."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for _ in range(_WARM_UP):
        run()
    torch.cuda._sleep(_SLEEP)
    start.record()
    for _ in range(_CALLS):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / _CALLS


def padded(x: Tensor) -> Tensor:
    """``x`` (N, few, H, W) with zeros for channels up to `CHANNELS`, channels last."""
    more = F.pad(x, (0, 0, 0, 0, 0, CHANNELS - x.shape[1]))
    return more.contiguous(memory_format=torch.channels_last)


def unwritten(x: Tensor) -> Tensor:
    """What `padded` returns, without its numbers: only its shape and layout are read."""
    n, _, h, w = x.shape
    return x.new_empty(n, h, w, CHANNELS).permute(0, 3, 1, 2)
