"""The divergence guard: are all numbers of a training state finite, and its networks in proportion?

One look is two fused reductions over everything that a checkpoint would hold, and one transfer of
as many numbers as there are tensors. Nothing is read from the device between two looks.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ganfast.config import GuardConfig
from ganfast.training.state import State, contents_of

_NETWORKS = ("generator", "critic")
_SKIPPED = 20  # steps in a row: the scale that each halves is a millionth by then
# Relative change of the norm of all weights. At rates of 1e-9 it was 2e-8 at most after 469 steps,
# in trainings of the presets 5e-5 or more after 157 (2026-11-30).
_MOVED = 1e-6


class Guard:
    """Judges states against the last one that it passed."""

    def __init__(self, config: GuardConfig) -> None:
        self.config = config
        self._good: dict[str, float] = {}  # network -> L2 norm of its weights when it last passed
        self._first: dict[str, float] = {}  # the same at the first look
        self._moved: set[str] = set()

    def statistics_problem(self, record: Mapping[str, object]) -> str | None:
        """What is wrong with the numbers of a log line; None = nothing."""
        for name, value in record.items():
            if not isinstance(value, float):
                continue
            if not math.isfinite(value):
                return f"{name} is not a finite number"
            limit = self.config.statistic
            if limit and "/" in name and abs(value) > limit:
                return f"{name} is {value:.3g}, beyond guard.statistic {limit:g}"
        return None

    @torch.no_grad()
    def state_problem(self, state: State) -> str | None:
        """What is wrong with weights, statistics, moments or gradients, by tensor.

        None = nothing; then later states are compared with the norms of this one.
        """
        tensors = named_tensors(state)
        stacked = torch.stack([x.float() for x in torch._foreach_norm(list(tensors.values()))])
        norms = dict(zip(tensors, stacked.tolist(), strict=True))
        # A norm overflows before its numbers do: name a tensor that has such a number, if any has.
        bad = [name for name, norm in norms.items() if not math.isfinite(norm)]
        bad = [name for name in bad if not bool(torch.isfinite(tensors[name]).all())] or bad
        if bad:
            others = f", nor are {len(bad) - 1} other tensors" if len(bad) > 1 else ""
            return f"{bad[0]} is not a finite number{others}"
        for net, optimizer in zip(_NETWORKS, state.optimizers().values(), strict=True):
            scale = optimizer.scale
            if scale is not None and (skipped := scale.skipped()) >= _SKIPPED:
                return (
                    f"{skipped} steps of the {net} in a row were left out, as its gradient is not "
                    f"finite in float16 even at a loss scale of {float(scale.value):.2g}: "
                    "precision fp32 may train"
                )
        sizes = {net: _norm_of(net, state, norms) for net in _NETWORKS}
        for net, norm in sizes.items():
            before = self._good.get(net)
            if self.config.growth and before and norm > self.config.growth * before:
                return (
                    f"the weights of the {net} grew from a norm of {before:.3g} to {norm:.3g}, "
                    f"{_largest(net, norms)} most"
                )
        limit = self.config.gradient
        for name, norm in norms.items():
            if limit and name.startswith("the gradient of") and norm > limit:
                return f"{name} has a norm of {norm:.3g}, beyond guard.gradient {limit:g}"
        self._good, self._first = sizes, self._first or sizes
        self._moved |= {
            n for n, size in sizes.items() if abs(size - self._first[n]) > _MOVED * size
        }
        return None

    def still(self) -> list[str]:
        """Networks whose norm has been that of the first look in every look since."""
        return [net for net in _NETWORKS if net not in self._moved]


def _norm_of(net: str, state: State, norms: Mapping[str, float]) -> float:
    """L2 norm of all parameters of a network."""
    parameters = getattr(state, net).named_parameters()
    return math.hypot(*(norms[f"{name} of the {net}"] for name, _ in parameters))


def _largest(net: str, norms: Mapping[str, float]) -> str:
    """The tensor of a network with the largest norm."""
    own = [n for n in norms if n.endswith(f" of the {net}") and not n.startswith("the ")]
    return max(own, key=lambda name: norms[name], default=net)


def named_tensors(state: State) -> dict[str, Tensor]:
    """Every floating-point tensor of a state, and the gradients, by what a person would call it."""
    contents = contents_of(state)
    named: dict[str, Tensor] = {}
    for part, net in (*zip(_NETWORKS, _NETWORKS, strict=True), ("ema", "generator's average")):
        named |= {f"{name} of the {net}": tensor for name, tensor in contents[part].items()}
    for net in _NETWORKS:
        parameters = list(getattr(state, net).named_parameters())
        for name, parameter in parameters:
            if parameter.grad is not None:
                named[f"the gradient of {name} of the {net}"] = parameter.grad
        for key, tensor in contents[f"optimizer_{net}"].items():
            index, moment = key.split(".", 1)
            if index == "scale":
                continue
            named[f"Adam's {moment} for {parameters[int(index)][0]} of the {net}"] = tensor
    return {
        name: tensor
        for name, tensor in named.items()
        if tensor.is_floating_point() and not name.startswith("Adam's step")
    }
