"""The start-up check: the very callable that will train, at its real batch shape, against a
reference."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import itemgetter

import torch
from torch import Tensor, nn

from ganfast.config import LossConfig, PenaltyConfig
from ganfast.engine.objective import Inputs
from ganfast.engine.reference import whole_loss
from ganfast.models.parts import held_power_iteration

ROUNDING = 1e-3  # relative error of the whole gradient that is never wrong in float32


@dataclass(frozen=True)
class Verdict:
    """Relative error of the whole gradient against the reference, and what is allowed."""

    error: float
    allowed: float

    @property
    def passed(self) -> bool:
        return self.error <= self.allowed  # False for NaN


def reference_gradients(
    critic: nn.Module,
    loss: LossConfig,
    penalties: Sequence[PenaltyConfig],
    inputs: Inputs,
    autocast: torch.dtype | None = None,
    rows: int = 0,
) -> list[Tensor]:
    """Gradients of the trainable parameters by the definition, ``rows`` pictures at a time (0 =
    all), so that memory stays small.

    Only a critic whose samples do not meet may be sliced. Spectral normalisation is taken as it
    stands. The scale of the inputs is divided out again.
    """
    parameters = [p for p in critic.parameters() if p.requires_grad]
    total = [torch.zeros_like(p) for p in parameters]
    n = len(inputs.real)
    for start in range(0, n, rows or n):
        part = slice(start, start + (rows or n))
        labels = (inputs.real_labels, inputs.fake_labels)
        real_labels, fake_labels = (None if x is None else x[part] for x in labels)
        some = inputs.changed(itemgetter(part))
        transforms = None if inputs.transforms is None else inputs.transforms[:, part]
        some = some._replace(real_labels=real_labels, fake_labels=fake_labels)
        condition = None if inputs.condition is None else inputs.condition[part]
        some = some._replace(transforms=transforms, condition=condition)
        with torch.enable_grad(), held_power_iteration(critic):
            value, _ = whole_loss(critic, loss, penalties, some, autocast)
            gradients = torch.autograd.grad(value, parameters, materialize_grads=True)
        for sum_, gradient in zip(total, gradients, strict=True):
            sum_ += gradient * (len(some.real) / n)
    return unscaled(total, inputs)


def unscaled(gradients: Sequence[Tensor], inputs: Inputs) -> list[Tensor]:
    """Float32 gradients without the scale of the inputs that they were computed for."""
    scale = inputs.scale
    return list(gradients) if scale is None else [g.float() / scale for g in gradients]


def tried_scale(scale: Tensor, attempt: int) -> Tensor:
    """The scale at which an attempt compares gradients: 1/16 of ``scale``, 1/256 and so on. A
    training may yet have to find a scale that float16 has room for."""
    return scale / 16 ** (attempt + 1)


def check(
    critic: nn.Module,
    loss: LossConfig,
    penalties: Sequence[PenaltyConfig],
    inputs: Inputs,
    gradients: Sequence[Tensor | None],
    autocast: torch.dtype | None,
    separable: bool,
    patient: bool = False,
) -> Verdict:
    """The error of an engine's ``gradients`` for ``inputs``, times their scale, against the
    reference's.

    ``separable``: the critic's samples do not meet, so that the reference may take a few at a time.
    ``patient``: measure in float64 and allow four times the error of eager autograd. This is for
    critics so large that some value always rounds across a kink. A critic that draws random numbers
    draws the same in every call.
    """
    rows = 8 if separable else 0

    def reference(critic: nn.Module, inputs: Inputs, autocast: torch.dtype | None) -> list[Tensor]:
        torch.manual_seed(0)
        return reference_gradients(critic, loss, penalties, inputs, autocast, rows)

    plain = inputs._replace(scale=None)
    with full_float32():
        if patient:
            exact = reference(copy.deepcopy(critic).double(), plain.changed(Tensor.double), None)
        else:
            exact = reference(critic, plain, None)
    allowed = ROUNDING
    # A GPU may round the factors of float32 products to fewer bits, in eager autograd too.
    if patient or autocast is not None or exact[0].is_cuda:
        eager = reference(critic, inputs, autocast)
        allowed += (4 if patient else 2) * relative_error(eager, exact)
    pairs = zip(gradients, exact, strict=True)
    filled = [torch.zeros_like(e) if g is None else g for g, e in pairs]
    return Verdict(relative_error(unscaled(filled, inputs), exact), allowed)


def relative_error(gradients: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """|gradients - exact| / |exact|, all of them as one vector; 0 where both vanish."""
    pairs = zip(gradients, exact, strict=True)
    gap = torch.stack([(g.double() - e.double()).square().sum() for g, e in pairs]).sum()
    whole = torch.stack([e.double().square().sum() for e in exact]).sum()
    return float((gap / whole).sqrt()) if whole > 0 else float(gap.sqrt())


@contextmanager
def full_float32() -> Iterator[None]:
    """Float32 convolutions and products with all their bits on a GPU."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@contextmanager
def nothing_changed(net: nn.Module) -> Iterator[None]:
    """Generators and buffers are afterwards what they were."""
    buffers = [(b, b.clone()) for b in net.buffers()]
    devices = sorted({p.device.index or 0 for p in net.parameters() if p.is_cuda})
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
