"""The explicit engine's vocabulary: which layers compute what a torch module does."""

from typing import Any

import torch.nn.functional as F
from torch import nn

from ganfast.engine import layers as L
from ganfast.engine.convolution import Convolution, per_axis
from ganfast.engine.maps import Map
from ganfast.engine.norms import Affine, BatchNorm, Standardise
from ganfast.engine.walking.functions import dropout, padded
from ganfast.models.dropout import Dropout
from ganfast.models.r3 import Resample

Layers = list[L.Layer]
# Linear maps of each sample.
_LINEAR = (
    *(nn.PixelShuffle, nn.PixelUnshuffle, nn.Upsample, nn.AvgPool1d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d),
    *(nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d),
    *(nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d),
)


def module_layers(m: nn.Module, name: str) -> Layers | None:
    """The layers that compute what module ``m`` does; None for an unknown one.

    ``name`` is its path in the critic.
    """
    if m._forward_hooks or m._forward_pre_hooks:
        return None  # a hook changes the input or the result
    forwards = [getattr(type(m), method, m.forward) for method in ("forward", "_conv_forward")]
    torchs = all(f.__module__.startswith("torch.nn.") for f in forwards)
    if not torchs and type(m) not in (Dropout, Resample):
        return None  # a subclass of torch's with a forward of its own
    here = f"{name}." if name else ""
    weight, bias = f"{here}weight", f"{here}bias" if getattr(m, "bias", None) is not None else None
    match m:
        case nn.ConvTranspose1d() | nn.ConvTranspose2d() | nn.ConvTranspose3d():
            return None
        case nn.Conv1d() | nn.Conv2d() | nn.Conv3d():
            return _convolution(m, weight, bias)
        case Resample() if not m.up:
            shape = Convolution((2, 2), (1, 1), (1, 1), m.channels)
            return [_frozen(L.Conv(weight, None, shape))]
        case nn.Linear():
            return [L.Linear(weight, bias)]
        case nn.GroupNorm():
            return [Standardise(m.num_groups, m.eps), *_affine(m, weight, bias, True)]
        case nn.LayerNorm():
            axes = -len(m.normalized_shape)
            return [Standardise(axes, m.eps), *_affine(m, weight, bias, False)]
        case nn.InstanceNorm1d() | nn.InstanceNorm2d() | nn.InstanceNorm3d() if (
            not m.track_running_stats
        ):
            return [Standardise(0, m.eps), *_affine(m, weight, bias, True)]
        case nn.BatchNorm1d() | nn.BatchNorm2d() | nn.BatchNorm3d():
            return _batch_norm(m, here, bias)
    return _plain_layers(m)


def _convolution(m: Any, weight: str, bias: str | None) -> Layers:
    zeros = padded(m.padding, m.dilation, m.kernel_size)
    if m.padding_mode == "zeros" and zeros is not None:
        return [L.Conv(weight, bias, Convolution(m.stride, zeros, m.dilation, m.groups))]
    mode = "constant" if m.padding_mode == "zeros" else m.padding_mode
    sides = list(m._reversed_padding_repeated_twice)
    bare = Convolution(m.stride, (0,) * len(m.kernel_size), m.dilation, m.groups)
    return [Map(lambda x: F.pad(x, sides, mode)), L.Conv(weight, bias, bare)]


def _frozen(layer: L.Conv) -> L.Conv:
    """The convolution without a weight gradient."""
    layer.weights = ()
    return layer


def _affine(m: nn.Module, weight: str, bias: str | None, per_channel: bool) -> Layers:
    # Only a norm's weight is looked at: that of a layer under spectral normalisation would make
    # one more power iteration.
    return [] if getattr(m, "weight", None) is None else [Affine(weight, bias, per_channel)]


def _batch_norm(m: Any, here: str, bias: str | None) -> Layers | None:
    if not m.training or m.momentum is None:
        return None
    weight = f"{here}weight" if m.weight is not None else None
    mean, variance, counter = (
        f"{here}{buffer}" if getattr(m, buffer) is not None else None
        for buffer in ("running_mean", "running_var", "num_batches_tracked")
    )
    if not m.track_running_stats:
        return [BatchNorm(weight, bias, (), None, m.momentum, m.eps)]
    if mean is None or variance is None:
        return None
    return [BatchNorm(weight, bias, (mean, variance), counter, m.momentum, m.eps)]


def _plain_layers(m: nn.Module) -> Layers | None:
    """The same for modules without weights."""
    match m:
        case nn.LeakyReLU() if m.negative_slope >= 0:
            return [L.LeakyReLU(m.negative_slope)]
        case nn.ReLU():
            return [L.LeakyReLU(0.0)]
        case nn.SiLU():
            return [L.silu()]
        case nn.Tanh():
            return [L.tanh()]
        case nn.Softplus() if m.beta == 1 and m.threshold == 20:
            return [L.softplus()]
        case nn.AvgPool2d():
            sizes = [per_axis(a, 2) for a in (m.kernel_size, m.stride, m.padding)]
            options = m.ceil_mode, m.count_include_pad, m.divisor_override
            return [L.AvgPool((*sizes, *options))]
        case _ if isinstance(m, _LINEAR):
            return [Map(m.forward)]
        case nn.ConstantPad1d() | nn.ConstantPad2d() | nn.ConstantPad3d() if not m.value:
            return [Map(m.forward)]
        case nn.Flatten() if m.start_dim == 1:
            return [L.Reshape(lambda x: x.flatten(1, m.end_dim))]
        case nn.Unflatten() if m.dim == 1:
            return [L.Reshape(lambda x: x.unflatten(1, m.unflattened_size))]
        case nn.Identity():
            return []
        case nn.Dropout() | nn.Dropout2d():
            return _dropout(m)
    return None


def _dropout(m: nn.Dropout | nn.Dropout2d) -> Layers:
    if m.p == 0 or not m.training:
        return []
    if isinstance(m, Dropout):
        return [L.Dropout(m.numbers, m.mask)]
    return dropout(F.dropout if isinstance(m, nn.Dropout) else F.dropout2d, m.p)
