"""Which engine computes the steps of a critic."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from torch import nn

from ganfast.config import EngineName, PenaltyConfig
from ganfast.engine.walking.steps import CannotWalk, Walk
from ganfast.engine.walking.walk import walk
from ganfast.errors import InputError


@dataclass(frozen=True)
class Choice:
    """Which engine computes the steps, and why."""

    engine: EngineName
    compiled: bool
    reason: str

    @property
    def title(self) -> str:
        return f"{'compiled ' if self.compiled else ''}{self.engine}"

    def __str__(self) -> str:
        return f"{self.title} engine ({self.reason})"


def refuse_batch_norm(critic: nn.Module, penalty: str) -> None:
    """Raises InputError where a batch norm would mix the input gradients of the samples."""
    kind, named = nn.modules.batchnorm._BatchNorm, critic.named_modules()
    norms = [
        name
        for name, module in named
        # With kept statistics a batch norm is a scale and a shift.
        if isinstance(module, kind) and (module.training or module.running_mean is None)
    ]
    if norms:
        raise InputError(
            f"layer {norms[0]} of the critic is a batch norm: with penalty {penalty} its gradient "
            "mixes samples; use GroupNorm, LayerNorm, InstanceNorm or spectral normalisation, or "
            "no penalty"
        )


def choose(
    critic: nn.Module,
    penalties: Sequence[PenaltyConfig],
    engine: EngineName = "auto",
    compile: bool | None = None,
    walked: Walk | str | None = None,
) -> Choice:
    """The engine for a critic, as far as it can be told without pictures. Nothing that varies from
    run to run decides, so that a resumed run gets the same engine.

    "auto" is explicit where the critic can be walked; else autograd where it is compiled, or
    penalised on a GPU; else the reference. Under a penalty `counting.fewest` may take another one
    at the first pictures. First derivatives alone took longer compiled on two CPU cores
    (benchmarks/results), so without a penalty they are not.

    Args:
        walked: the critic's walk, or why it has none; None = try.
    """
    if engine not in get_args(EngineName):
        raise InputError(f"engine is {engine!r}; expected one of {', '.join(get_args(EngineName))}")
    on_gpu = any(p.is_cuda for p in critic.parameters())
    compile = on_gpu if compile is None else compile
    if engine == "reference":
        return Choice(engine, False, "asked for")
    if engine == "autograd":
        return Choice(engine, compile, "asked for")
    if walked is None:
        try:
            walked = walk(critic)
        except CannotWalk as error:
            walked = str(error)
    if isinstance(walked, str):
        reason = f"the explicit engine cannot take this critic: {walked}"
        if engine == "explicit":
            raise InputError(f"{reason}; use engine autograd")
        return _without_explicit(reason, compile, on_gpu, bool(penalties))
    reason = f"all {len(walked.steps)} layers walked"
    if walked.tail is not None:
        reason = f"all layers walked but {', '.join(walked.refused)}"
    if engine == "explicit":
        return Choice(engine, compile, f"asked for; {reason}")
    if walked.tail is not None and not penalties:
        reason = f"no penalty, and {reason}"
        return _without_explicit(reason, compile, on_gpu, False)
    return Choice("explicit", compile, reason)


def _without_explicit(why: str, compile: bool, on_gpu: bool, penalised: bool) -> Choice:
    if compile and not (on_gpu or penalised):
        return Choice("reference", False, f"{why}; compiled it takes longer on a CPU")
    return Choice("autograd" if compile or (on_gpu and penalised) else "reference", compile, why)


def raise_without_second_derivative(error: Exception) -> None:
    """Raises InputError where ``error`` is torch's that an operation has no second derivative."""
    found = re.search(r"derivative for (\S+) is not implemented", str(error))
    if found or "does not currently support double backward" in str(error):
        what = found[1] if found else "torch.compile's backward"
        raise InputError(
            f"{what} has no second derivative, which a penalty needs: give a critic without it; "
            "attention has one inside torch.nn.attention.sdpa_kernel(SDPBackend.MATH)"
        ) from error
