"""The generator step: parameter gradients of the generator loss through the critic."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ganfast.augment import augmented
from ganfast.config import LossConfig
from ganfast.engine.gradients import FlatGradients
from ganfast.engine.lean import ThinConvolutions
from ganfast.engine.objective import Stats
from ganfast.engine.recorded import Compiled, Computation, Recorded, eager, why_not_recorded
from ganfast.errors import InputError
from ganfast.losses import accuracy, class_loss, generator_loss, loss_of
from ganfast.models import judge
from ganfast.models.parts import held_power_iteration
from ganfast.tensors import behind, full_precision

# gradients of the trainable parameters, and statistics
Result = tuple[Sequence[Tensor | None], Stats]
# pictures of latents, labels and conditions, of which the last two may be None
Drawing = Callable[[Tensor, Tensor | None, Tensor | None], Tensor]


def make_generator_step(
    generator: nn.Module,
    critic: nn.Module,
    loss: LossConfig,
    autocast: torch.dtype | None = None,
    compile: bool = False,
    computing: tuple[nn.Module, nn.Module] | None = None,
    check: bool = True,
    scale: Tensor | None = None,
) -> "GeneratorStep":
    """A callable that fills ``.grad`` of the generator's parameters, and of no others.

    Args:
        compile: in one graph with its gradients, of torch's layers and ours only. On a GPU
            networks with other layers go through torch.compile.
        computing: twins of both whose weights somebody keeps in the type of ``autocast``
            (`FlatAdam.computing`); None = autocast casts them in every step.
        check: compare the first step of that one graph with a step that is not compiled, which
            takes its place if they differ.
        scale: the gradients are filled times this, as by `make_critic_step`.

    Returns:
        ``step(z, labels=None, real=None, transforms=None, given=None, shown=None)``: latents (N,
        latent), labels int64 (N,) of the pictures to draw, and reals (N, C, H, W) with the same
        labels, which the relativistic loss and ``loss.pixel`` compare with. The critic sees fakes
        and reals by ``transforms`` (2, N, 7) of `ganfast.augment`. The generator is given the
        conditions ``given``, and the critic is shown ``shown`` (N, K, H, W) of them. With
        ``judged=False`` it leaves the critic out, and minimises ``loss.pixel`` alone. It returns
        0-d tensors and waits for nothing.
    """
    twins = computing or (generator, critic)
    return GeneratorStep(generator, critic, loss, autocast, compile, twins, check, scale)


class GeneratorStep:
    """Made by `make_generator_step`. ``compiled``: whether it is, as far as was tried."""

    def __init__(
        self,
        generator: nn.Module,
        critic: nn.Module,
        loss: LossConfig,
        autocast: torch.dtype | None,
        compile: bool,
        computing: tuple[nn.Module, nn.Module],
        check: bool,
        scale: Tensor | None,
    ) -> None:
        self.generator, self.gradients = generator, FlatGradients(generator)
        self.scale = scale
        nets, foreign = (generator, critic), compile and bool(why_not_recorded(*computing))
        self._runs: dict[bool, Callable[..., Result]] = {}
        for judged in (True, False):
            function = partial(_whole_loss, judged, loss)
            computation = partial(function, autocast), computing
            exactly = (partial(function, None), nets) if autocast is not None else None
            self._runs[judged] = partial(eager, computation, True)
            if foreign and next(generator.parameters()).is_cuda:
                self._runs[judged] = _ByTorch(computation)
            elif compile:
                recorded = "generator step", computation, True, exactly, check, True
                self._runs[judged] = Recorded(*recorded)

    @property
    def compiled(self) -> bool:
        return getattr(self._runs[True], "active", False)

    def __call__(
        self,
        z: Tensor,
        labels: Tensor | None = None,
        real: Tensor | None = None,
        transforms: Tensor | None = None,
        given: Tensor | None = None,
        shown: Tensor | None = None,
        judged: bool = True,
    ) -> Stats:
        if not self.gradients.fits:
            self.gradients = FlatGradients(self.generator)
        run = self._runs[judged]
        gradients, stats = run(z, labels, real, transforms, given, shown, self.scale)
        self.gradients.fill(gradients)
        return {name: value.detach() for name, value in stats.items()}


class _ByTorch(Compiled):
    """By torch.compile, and autograd."""

    def __init__(self, computation: Computation) -> None:
        super().__init__("generator step", computation, True)
        function, nets = computation
        self._compiled = torch.compile(function), nets

    def tried(self, *args: Tensor | None) -> Result:
        return eager(self._compiled, True, *args)


def _whole_loss(
    judged: bool,
    loss: LossConfig,
    autocast: torch.dtype | None,
    generator: nn.Module,
    critic: nn.Module,
    z: Tensor,
    labels: Tensor | None,
    real: Tensor | None,
    transforms: Tensor | None,
    given: Tensor | None,
    shown: Tensor | None,
    scale: Tensor | None,
) -> tuple[Tensor, Stats]:
    computed = torch.autocast(z.device.type, autocast, enabled=autocast is not None)
    with computed, held_power_iteration(critic), thin_convolutions(z.device, critic):
        fake = draw(generator, z, labels, given)
        if judged:
            total, stats = _judged(loss, critic, fake, labels, real, transforms, shown)
        else:
            total, stats = fake.new_zeros(()), {}
    if loss.pixel:
        if real is None:
            raise InputError("loss.pixel compares with reals: give real (N, C, H, W)")
        stats["pixel"] = (fake - real).abs().mean()
        total = total + loss.pixel * stats["pixel"]
    return total if scale is None else total * scale, stats


def _judged(
    loss: LossConfig,
    critic: nn.Module,
    fake: Tensor,
    labels: Tensor | None,
    real: Tensor | None,
    transforms: Tensor | None,
    shown: Tensor | None,
) -> tuple[Tensor, Stats]:
    """What the critic's answers cost, 0-d, and its parts."""
    paired = real if loss_of(loss).pairs else None
    if transforms is not None:
        fake = augmented(fake, transforms[0])
        paired = None if paired is None else augmented(paired, transforms[1])
    judgement = judge(critic, behind(fake, shown), labels)
    real_score = None if paired is None else judge(critic, behind(paired, shown), labels).score
    total = generator_loss(loss, judgement.score, real_score).mean()
    stats = {"loss": total}
    if judgement.classes is not None and labels is not None:
        by_class = class_loss(judgement.classes, labels).mean()
        stats |= {"class_loss": by_class, "class_accuracy": accuracy(judgement.classes, labels)}
        total = total + loss.class_weight_generator * by_class
    return total, stats


def make_drawing(
    generator: nn.Module,
    autocast: torch.dtype | None = None,
    compile: bool = False,
    computing: nn.Module | None = None,
    check: bool = True,
) -> Drawing:
    """`draw` for a critic's step, without gradients.

    Args:
        compile: in one graph, of torch's layers and ours only; else as it is.
        computing: the generator's twin, as of `make_generator_step`.
        check: compare the first result of that graph with `draw`, which takes its place if they
            differ.
    """
    net = computing or generator
    function = partial(_drawn, autocast)
    if not compile:
        return partial(function, net)
    exactly = (partial(_drawn, None), (generator,)) if autocast is not None else None
    return Recorded("drawing for the critic", (function, (net,)), exactly=exactly, check=check)


@torch.no_grad()
def _drawn(
    autocast: torch.dtype | None,
    generator: nn.Module,
    z: Tensor,
    labels: Tensor | None,
    given: Tensor | None = None,
) -> Tensor:
    with torch.autocast(z.device.type, autocast, enabled=autocast is not None):
        return draw(generator, z, labels, given)


def draw(
    generator: nn.Module, z: Tensor, labels: Tensor | None = None, given: Tensor | None = None
) -> Tensor:
    """Pictures in float32 or more, whatever the generator computes in; ``labels`` with classes
    only, ``given`` with conditions only."""
    more = [x for x in (labels, given) if x is not None]
    with thin_convolutions(z.device, generator):
        return full_precision(generator(z, *more))


def thin_convolutions(device: torch.device, net: nn.Module) -> AbstractContextManager[Any]:
    """`ThinConvolutions` where they may be the faster ones."""
    ours = device.type == "cpu" or torch.backends.cudnn.benchmark
    return ThinConvolutions(net) if ours and not torch.compiler.is_compiling() else nullcontext()
