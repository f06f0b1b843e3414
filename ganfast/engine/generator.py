"""The generator step: parameter gradients of the generator loss through the critic."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ganfast.config import LossConfig
from ganfast.engine.gradients import FlatGradients
from ganfast.engine.lean import ThinConvolutions
from ganfast.errors import is_out_of_memory
from ganfast.log import logger
from ganfast.losses import accuracy, class_loss, generator_loss
from ganfast.models import judge
from ganfast.models.parts import full_precision, held_power_iteration

GeneratorStep = Callable[..., dict[str, Tensor]]


def make_generator_step(
    generator: nn.Module,
    critic: nn.Module,
    loss: LossConfig,
    autocast: torch.dtype | None = None,
    compile: bool = False,
    computing: tuple[nn.Module, nn.Module] | None = None,
) -> GeneratorStep:
    """A callable that fills ``.grad`` of the generator's parameters, and of no others.

    Args:
        computing: twins of both whose weights somebody keeps in the type of ``autocast`` (`FlatAdam.computing`); None = autocast
            casts them in every step.

    Returns:
        ``step(z, labels=None, real=None)``: latents (N, latent), labels int64 (N,) of the pictures to draw, and reals (N, C, H, W)
        with the same labels, which the relativistic loss compares with. It returns 0-d tensors and waits for nothing.
    """

    drawn_by, judged_by = computing or (generator, critic)

    def whole_loss(z: Tensor, labels: Tensor | None, real: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        computed = torch.autocast(z.device.type, autocast, enabled=autocast is not None)
        with computed, held_power_iteration(judged_by), thin_convolutions(z.device, judged_by):
            said = judge(judged_by, draw(drawn_by, z, labels), labels)
            paired = real if loss.kind == "relativistic" else None
            real_score = None if paired is None else judge(judged_by, paired, labels).score
        total = generator_loss(loss, said.score, real_score).mean()
        stats = {"loss": total}
        if said.classes is not None and labels is not None:
            named = class_loss(said.classes, labels).mean()
            stats |= {"class_loss": named, "class_accuracy": accuracy(said.classes, labels)}
            total = total + loss.class_weight_generator * named
        return total, stats

    run = torch.compile(whole_loss) if compile else whole_loss
    gradients = FlatGradients(generator)

    def step(z: Tensor, labels: Tensor | None = None, real: Tensor | None = None) -> dict[str, Tensor]:
        nonlocal gradients, run
        try:
            total, stats = run(z, labels, real)
        except Exception as error:  # whatever a compiler comes up with; the step itself fails again below, with its own words
            capturing = z.is_cuda and torch.cuda.is_current_stream_capturing()  # then it may be the capture's error
            if run is whole_loss or capturing or is_out_of_memory(error):
                raise
            logger.warning(
                "generator step: not compiled (%s: %s)", type(error).__name__, " ".join(str(error).split())[:160]
            )  # fmt: skip
            run = whole_loss
            total, stats = run(z, labels, real)
        if not gradients.fits:
            gradients = FlatGradients(generator)
        leaves = [p for p in drawn_by.parameters() if p.requires_grad]  # as many, in the order of the generator's own
        gradients.fill(torch.autograd.grad(total, leaves, allow_unused=True))
        return {name: value.detach() for name, value in stats.items()}

    return step


def draw(generator: nn.Module, z: Tensor, labels: Tensor | None = None) -> Tensor:
    """Pictures in float32 or more, whatever the generator computes in; labels only where there are classes."""
    with thin_convolutions(z.device, generator):
        return full_precision(generator(z) if labels is None else generator(z, labels))


def thin_convolutions(device: torch.device, net: nn.Module) -> AbstractContextManager[Any]:
    """`ThinConvolutions` where they are the faster ones."""
    return nullcontext() if device.type != "cpu" or torch.compiler.is_compiling() else ThinConvolutions(net)
