"""A network's effective weights, and the way back from their gradients to its parameters."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.parametrize import is_parametrized

from ganfast.engine.walking.steps import Making
from ganfast.models.members import is_known_class, named_parameters, parameters, paths
from ganfast.models.r3 import Resample

_CONVOLUTIONS = nn.Conv1d, nn.Conv2d, nn.Conv3d
_TRANSPOSED = nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d
_CAST = *_CONVOLUTIONS, *_TRANSPOSED, nn.Linear


def computing_copy(net: nn.Module, copies: Mapping[nn.Parameter, Tensor]) -> nn.Module:
    """A twin that shares every parameter and buffer of ``net``. Where autocast would cast, it has
    the copies instead.

    Autocast casts weights and biases of convolutions and linear layers. One that another layer uses
    too stays shared, and so does one from which a spectral or weight normalisation, old style or
    new, makes the weight.

    Args:
        copies: by the parameter, values of another type, shaped and laid out as it is.
    """
    # By the parameter's identity: for each user, whether it may have the copy.
    used: dict[int, list[bool]] = {}
    for module in net.modules():
        # Old normalisations make the weight in a hook.
        plain = type(module) in _CAST and not module._forward_pre_hooks
        for name, parameter in module.named_parameters(recurse=False):
            used.setdefault(id(parameter), []).append(plain and name in ("weight", "bias"))
    memo: dict[int, Tensor] = {id(x): x for x in (*net.parameters(), *net.buffers())}
    for parameter, copied in copies.items():
        if all(used[id(parameter)]):
            memo[id(parameter)] = nn.Parameter(copied)
    return copy.deepcopy(net, memo)  # which takes the memo's tensors for copied already


class EffectiveWeights:
    """``values``: every tensor by its layer's name for it, detached. With a parametrisation it is
    the result of that.

    To make the object is the one power iteration that a critic step gives each spectral
    normalisation in training mode.
    """

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self._named = named_parameters(net)
        self.values = {name: p.detach() for name, p in self._named}
        filters = [(path, m) for path, m in paths(net) if isinstance(m, Resample)]
        self.values |= {f"{path}.weight": m.weight for path, m in filters}
        self._made: dict[str, Tensor] = {}
        self._normed: dict[str, tuple[nn.Parameter, Back]] = {}
        for path, module in parametrised(net):
            made: Any = module.parametrizations
            for tensor in made:
                if not is_torchs(made[tensor]):
                    continue
                name = f"{path}.{tensor}" if path else tensor
                if norm := spectral_of(module, tensor):
                    original = made[tensor].original
                    self.values[name], back = normalised(original, norm)
                    self._normed[name] = original, back
                    continue
                with torch.enable_grad():
                    self._made[name] = getattr(module, tensor)
                self.values[name] = self._made[name].detach()

    def parameter_gradients(self, gradients: Mapping[str, Tensor]) -> list[Tensor | None]:
        """From gradients of the effective weights to those of the trainable parameters; None = 0.

        A parameter that has several names, or is both parametrised and used as it is, gets the sum.
        """
        total: dict[int, Tensor] = {}  # by the parameter's identity

        def add(parameter: Tensor, gradient: Tensor | None) -> None:
            if gradient is not None:
                key = id(parameter)
                total[key] = total[key] + gradient if key in total else gradient

        made = [name for name in self._made if name in gradients and self._made[name].requires_grad]
        if made:
            named = [(f".{name}", p) for name, p in self.net.named_parameters() if p.requires_grad]
            originals = [p for name, p in named if ".parametrizations." in name]
            cotangents = [gradients[name].to(self._made[name].dtype) for name in made]
            outputs = [self._made[name] for name in made]
            through = torch.autograd.grad(outputs, originals, cotangents, allow_unused=True)
            for p, gradient in zip(originals, through, strict=True):
                add(p, gradient)
        for name, (original, back) in self._normed.items():
            if name in gradients and original.requires_grad:
                add(original, back(gradients[name].to(original.dtype)))
        for name, p in self._named:
            add(p, gradients.get(name))
        return [total.get(id(p)) for p in parameters(self.net) if p.requires_grad]


class MadeWeights:
    """The weights of a step with those that the forward makes of them, and the way back."""

    def __init__(self, making: Making | None, weights: Mapping[str, Tensor]) -> None:
        self.weights, self._making = weights, making
        self._tensors: dict[str, Tensor] = {}
        if self._making is None:
            return
        self._leaves = {name: weights[name].detach() for name in self._making.reads}
        for leaf in self._leaves.values():
            leaf.requires_grad_(leaf.is_floating_point())
        with torch.enable_grad():
            made = self._making.module(*self._leaves.values())
        # a number of Python's keeps its digits: torch would make float32 of it
        tensors = [
            torch.as_tensor(x, dtype=torch.float64 if isinstance(x, float) else None) for x in made
        ]
        self._tensors = dict(zip(self._making.made, tensors, strict=True))
        self.weights = {**weights, **{name: x.detach() for name, x in self._tensors.items()}}

    def back(self, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        """Gradients of the weights that were given, from those of all."""
        made = {n: x for n, x in self._tensors.items() if n in gradients and x.requires_grad}
        if not made:
            return gradients
        leaves = {name: x for name, x in self._leaves.items() if x.requires_grad}
        cotangents = [gradients[name].to(x.dtype) for name, x in made.items()]
        through = torch.autograd.grad(
            list(made.values()), list(leaves.values()), cotangents, allow_unused=True
        )
        reached = {name: g for name, g in zip(leaves, through, strict=True) if g is not None}
        return added({n: g for n, g in gradients.items() if n not in made}, reached)


def added(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gradients from two places; weights that are in both get the sum."""
    return {**a, **b, **{name: a[name] + b[name] for name in a.keys() & b.keys()}}


def is_torchs(chain: nn.Module) -> bool:
    """Whether all parametrisations of a weight are torch's, which keep no state but in a spectral
    normalisation."""
    kinds: list[Any] = [type(part) for part in chain.children()]
    return all(map(is_known_class, kinds))


def parametrised(net: nn.Module) -> list[tuple[str, nn.Module]]:
    """The parametrised modules, each once, by its first path."""
    first: dict[int, tuple[str, nn.Module]] = {}
    for path, module in reversed(paths(net)):
        if "parametrizations" in module._modules:
            first[id(module)] = path, module
    return [(path, module) for path, module in reversed(first.values()) if is_parametrized(module)]


# A weight over the estimate of its largest singular value (Miyato 2018, arXiv:1802.05957), and
# the way back, without autograd.
#
# What `torch.nn.utils.parametrizations.spectral_norm` computes, on the same buffers, in the order
# in which weights lie in memory: torch's copies a weight in channels-last layout in every use,
# and differentiates the quotient operation by operation.

Back = Callable[[Tensor], Tensor]  # gradient of the normalised weight -> gradient of the weight


def spectral_of(module: nn.Module, tensor: str) -> _SpectralNorm | None:
    """The spectral normalisation of ``module.tensor``, if `normalised` can take its place."""
    chain: Any = module.parametrizations[tensor]  # type: ignore[index]
    if len(chain) != 1 or type(chain[0]) is not _SpectralNorm:
        return None
    weight, norm = chain.original, chain[0]
    dense = weight.is_contiguous() or (
        weight.dim() == 4 and weight.is_contiguous(memory_format=torch.channels_last)
    )
    return norm if norm.dim == 0 and weight.dim() > 1 and dense else None


@torch.no_grad()
def normalised(weight: Tensor, norm: _SpectralNorm) -> tuple[Tensor, Back]:
    """``weight`` (out, ...) over sigma = u^T W v. In training mode the module's power iterations
    improve u and v.

    With u and v held fixed, dW = (g - <g, W / sigma> u v^T) / sigma: equation 12 there.
    """
    last = not weight.is_contiguous()  # a convolution's, channels last
    matrix = (weight.permute(0, 2, 3, 1) if last else weight).flatten(1)
    v = norm._v.view(weight.shape[1:]).permute(1, 2, 0).flatten() if last else norm._v
    u = norm._u
    if norm.training:
        for _ in range(norm.n_power_iterations):
            u = F.normalize(torch.mv(matrix, v), dim=0, eps=norm.eps)
            v = F.normalize(torch.mv(matrix.t(), u), dim=0, eps=norm.eps)
        norm._u.copy_(u)
        norm._v.view(weight.shape[1:]).copy_(
            v.view(*weight.shape[2:], -1).permute(2, 0, 1) if last else v.view(weight.shape[1:])
        )
    u, v = u.clone(), v.clone()  # the buffers move on
    sigma = u.dot(torch.mv(matrix, v))
    quotient = weight / sigma

    @torch.no_grad()
    def back(gradient: Tensor) -> Tensor:
        along = (gradient * quotient).sum()
        outer = torch.outer(u * along, v)
        if last:
            outer = outer.view(len(u), *weight.shape[2:], -1).permute(0, 3, 1, 2)
        else:
            outer = outer.view(weight.shape)
        return (gradient - outer) / sigma

    return quotient, back
