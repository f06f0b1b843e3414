"""A trained generator as the module that is exported: z, labels and psi in, uint8 pictures out.

Parametrisations are replaced by the weights they give. Every BatchNorm, with the statistics that
the checkpoint stores, becomes part of the weights before it, in float64 and before any cast. With
no such weights it becomes a scale and a shift. Names of weights are those of the state dict, so
that the weights of another checkpoint go to the same places.
"""

import copy
import logging
from collections.abc import Sequence
from itertools import pairwise
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from ganfast.export.bundle.manifest import Input
from ganfast.models.parts import Generator
from ganfast.tasks import scaled

logger = logging.getLogger("ganfast")

_TRANSPOSED = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
_CONVOLUTION = nn.Conv1d | nn.Conv2d | nn.Conv3d | _TRANSPOSED


class Deployable(nn.Module):
    """The exported module: its arguments are the rows of ``inputs``, in their order."""

    def __init__(self, generator: nn.Module, inputs: Sequence[Input]) -> None:
        super().__init__()
        self.generator = generator
        self.inputs = inputs

    def forward(self, *arrays: Tensor) -> Tensor:
        """uint8 (N, H, W, C)."""
        pictures = self.drawn(*arrays)
        # The cast to uint8 comes last of all: TensorRT refuses uint8 inside a graph. Rounding is an
        # operation of its own, because targets differ in how a cast rounds.
        scaled = pictures.float().permute(0, 2, 3, 1) * 127.5 + 127.5
        return scaled.round().clamp(0, 255).to(torch.uint8)

    def drawn(self, *arrays: Tensor) -> Tensor:
        """The generator's own pictures, (N, C, H, W)."""
        given = {each.name: array for each, array in zip(self.inputs, arrays, strict=True)}
        z = given.pop("z") * given.pop("psi")[:, None]
        if self.inputs[-1].name == "condition":
            # The cast comes first of all: TensorRT refuses any other use of uint8.
            levels = given["condition"].float().permute(0, 3, 1, 2)
            given["condition"] = scaled(levels, levels.shape[1] - self.inputs[-1].masked)
        pictures: Tensor = self.generator(z, *given.values())
        return pictures


@torch.no_grad()
def deployable(generator: nn.Module, inputs: Sequence[Input]) -> Deployable:
    """A copy of a generator, ready to be exported: float32 on the CPU, evaluation mode.

    Args:
        generator: z (N, latent) [, labels (N,)] [, condition (N, k, h, w)] -> pictures
            (N, C, H, W) in [-1, 1], any module.
        inputs: what its graph is to take, as of `graph_inputs`.
    """
    generator = copy.deepcopy(generator).float().cpu().eval().requires_grad_(False)
    plain = without_parametrisations(copy.deepcopy(generator))
    folded = fold_batchnorm(copy.deepcopy(plain))
    if not _same(Deployable(folded, inputs), Deployable(generator, inputs)):
        logger.warning(
            "BatchNorm stays a scale and a shift of its own: folded into the weights before it, "
            "it gives other pictures"
        )
        folded = fold_batchnorm(plain, into_weights=False)
    folded = folded.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return Deployable(folded, inputs).eval()


def without_parametrisations(net: nn.Module) -> nn.Module:
    """Spectral and weight norms replaced by the weights they give in evaluation mode; in place."""
    for module in net.modules():
        if parametrize.is_parametrized(module):
            for name in list(module.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)
        for hook in list(module._forward_pre_hooks.values()):  # the older forms
            name = getattr(hook, "name", "")
            if type(hook).__name__ == "SpectralNorm":
                remove_spectral_norm(module, name)
            elif type(hook).__name__ == "WeightNorm":
                remove_weight_norm(module, name)
    return net.requires_grad_(False)


def fold_batchnorm(net: nn.Module, into_weights: bool = True) -> nn.Module:
    """Every BatchNorm with fixed statistics becomes part of the layer before it, or a `ScaleShift`.

    In place. The layer before is the one right before it in an `nn.Sequential`. A user's module may
    compute otherwise, so the caller compares pictures.
    """
    if into_weights:
        for module in list(net.modules()):
            if isinstance(module, Generator) and module.layers and _is_fixed(module.layers[0]):
                _fold_first_norm(module)
            if isinstance(module, nn.Sequential):
                _fold_sequence(module)
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if _is_fixed(child):
                setattr(parent, name, ScaleShift(child))
    return net


class ScaleShift(nn.Module):
    """BatchNorm in evaluation mode: y = weight x + bias, with one weight and bias a channel."""

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__()
        assert norm.running_mean is not None
        self.weight, self.bias = (
            nn.Parameter(value.to(norm.running_mean.dtype), requires_grad=False)
            for value in _scale_shift(norm)
        )

    def forward(self, x: Tensor) -> Tensor:
        along = (-1, *[1] * (x.dim() - 2))
        return x * self.weight.view(along) + self.bias.view(along)


def _is_fixed(module: nn.Module | None) -> TypeGuard[_BatchNorm]:
    return isinstance(module, _BatchNorm) and module.running_mean is not None


def _scale_shift(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """scale, shift (C,) in float64."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = -norm.running_mean.double() * scale
    return scale, shift if norm.bias is None else shift + norm.bias.double()


def _fold_sequence(sequence: nn.Sequential) -> None:
    names = list(sequence._modules)
    for before, name in pairwise(names):
        layer, norm = sequence._modules[before], sequence._modules[name]
        if not _is_fixed(norm):
            continue
        assert norm.running_mean is not None
        assert norm.running_var is not None
        mean, variance = norm.running_mean.double(), norm.running_var.double()
        scale = torch.ones_like(mean) if norm.weight is None else norm.weight.double()
        shift = torch.zeros_like(mean) if norm.bias is None else norm.bias.double()
        statistics = mean, variance, norm.eps, scale, shift
        if isinstance(layer, _CONVOLUTION):
            transposed = isinstance(layer, _TRANSPOSED)
            if transposed and layer.groups > 1:
                continue  # weights (in, out / groups, ...): a channel of the norm is no row of them
            weight, bias = fuse_conv_bn_weights(
                layer.weight.double(), _double(layer.bias), *statistics, transposed
            )
        elif isinstance(layer, nn.Linear):
            weight, bias = fuse_linear_bn_weights(
                layer.weight.double(), _double(layer.bias), *statistics
            )
        else:
            continue
        layer.weight, layer.bias = _fixed(weight), _fixed(bias)
        sequence._modules[name] = nn.Identity()


def _fold_first_norm(net: Generator) -> None:
    """Fold the norm that opens the layers of ganfast's own generators.

    It stands behind the sum of the projection of z and the class's row, and so goes into both.
    """
    norm = net.layers[0]
    assert isinstance(norm, _BatchNorm)
    units = net.project.out_features // norm.num_features  # of the projection, a channel
    scale, shift = (value.repeat_interleave(units) for value in _scale_shift(norm))
    net.project.weight = _fixed(net.project.weight.double() * scale[:, None])
    net.project.bias = _fixed(net.project.bias.double() * scale + shift)
    if net.classes is not None:
        net.classes.weight = _fixed(net.classes.weight.double() * scale)
    net.layers[0] = nn.Identity()


def _fixed(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.float(), requires_grad=False)


def _double(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.double()


def _same(folded: Deployable, original: Deployable) -> bool:
    """Equal but for roundings: an eighth of a grey level.

    In float32, because a user's module may make float32 constants.
    """
    random = torch.Generator().manual_seed(0)
    arrays = []
    for each in folded.inputs:
        like = torch.from_numpy(each.zeros(4))
        drawn = (
            like.random_(each.below, generator=random)
            if each.below
            else like.normal_(generator=random)
        )
        arrays.append(drawn)
    return bool(torch.allclose(folded.drawn(*arrays), original.drawn(*arrays), rtol=0, atol=1e-3))
