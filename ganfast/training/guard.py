"""The divergence guard: is every number of a training state finite, and has no network grown out of all proportion?

One look is two fused reductions over everything that a checkpoint would hold and one transfer of as many numbers as there are
tensors. Nothing is read from the device between two looks.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ganfast.config import GuardConfig
from ganfast.training.state import State, contents_of

_NETWORKS = ("generator", "critic")


class Guard:
    """Judges states against the last one that it passed."""

    def __init__(self, config: GuardConfig) -> None:
        self.config = config
        self._good: dict[str, float] = {}  # network -> L2 norm of its weights when it last passed

    def statistics_problem(self, record: Mapping[str, object]) -> str | None:
        """What is wrong with the numbers of a log line; None = nothing."""
        for name, value in record.items():
            if isinstance(value, float) and not math.isfinite(value):
                return f"{name} is not a finite number"
            if (
                self.config.statistic
                and isinstance(value, float)
                and "/" in name
                and abs(value) > self.config.statistic
            ):
                return f"{name} is {value:.3g}, beyond guard.statistic {self.config.statistic:g}"
        return None

    @torch.no_grad()
    def state_problem(self, state: State) -> str | None:
        """What is wrong with weights, statistics, moments or gradients, by tensor; None = nothing, and the norms are kept."""
        tensors = named_tensors(state)
        found = torch.stack([norm.float() for norm in torch._foreach_norm(list(tensors.values()))])
        norms = dict(zip(tensors, found.tolist(), strict=True))
        bad = [name for name, norm in norms.items() if not math.isfinite(norm)]
        bad = [name for name in bad if not bool(torch.isfinite(tensors[name]).all())] or bad
        if bad:
            others = f", nor are {len(bad) - 1} other tensors" if len(bad) > 1 else ""
            return f"{bad[0]} is not a finite number{others}"
        grown = {
            net: math.hypot(
                *(
                    norms[f"{name} of the {net}"]
                    for name, _ in getattr(state, net).named_parameters()
                )
            )
            for net in _NETWORKS
        }
        for net, norm in grown.items():
            before = self._good.get(net)
            if self.config.growth and before and norm > self.config.growth * before:
                return f"the weights of the {net} grew from a norm of {before:.3g} to {norm:.3g}, {_largest(net, norms)} most"
        gradients = {
            name: norm for name, norm in norms.items() if name.startswith("the gradient of")
        }
        for name, norm in gradients.items():
            if self.config.gradient and norm > self.config.gradient:
                return f"{name} has a norm of {norm:.3g}, beyond guard.gradient {self.config.gradient:g}"
        self._good = grown
        return None


def _largest(net: str, norms: Mapping[str, float]) -> str:
    own = {
        name: norm
        for name, norm in norms.items()
        if name.endswith(f" of the {net}") and not name.startswith("the ")
    }
    return max(own, key=lambda name: own[name]) if own else net


def named_tensors(state: State) -> dict[str, Tensor]:
    """Every floating-point tensor of a state, and the gradients, by what a person would call it."""
    contents = contents_of(state)
    named: dict[str, Tensor] = {}
    for net, part in (
        ("generator", "generator"),
        ("critic", "critic"),
        ("generator's average", "ema"),
    ):
        named |= {f"{name} of the {net}": tensor for name, tensor in contents[part].items()}
    for net in _NETWORKS:
        parameters = list(getattr(state, net).named_parameters())
        for name, parameter in parameters:
            if parameter.grad is not None:
                named[f"the gradient of {name} of the {net}"] = parameter.grad
        for key, tensor in contents[f"optimizer_{net}"].items():
            index, moment = key.split(".", 1)
            named[f"Adam's {moment} for {parameters[int(index)][0]} of the {net}"] = tensor
    return {
        name: tensor
        for name, tensor in named.items()
        if tensor.is_floating_point() and not name.startswith("Adam's step")
    }
