"""The generator step: parameter gradients of the generator loss through the critic."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ganfast.config import LossConfig
from ganfast.engine.check import ROUNDING, nothing_changed, relative_error
from ganfast.engine.gradients import FlatGradients
from ganfast.engine.lean import ThinConvolutions
from ganfast.engine.recorded import Recorded, why_not_recorded
from ganfast.errors import is_out_of_memory
from ganfast.log import logger
from ganfast.losses import accuracy, class_loss, generator_loss
from ganfast.models import judge
from ganfast.models.members import parameters
from ganfast.models.parts import full_precision, held_power_iteration

Stats = dict[str, Tensor]
Drawing = Callable[[Tensor, Tensor | None], Tensor]
Found = tuple[Sequence[Tensor | None], Stats]  # gradients of the trainable parameters, and statistics
_ATTEMPTS = 4  # a value that rounds across a kink in one batch does not in another


def make_generator_step(
    generator: nn.Module,
    critic: nn.Module,
    loss: LossConfig,
    autocast: torch.dtype | None = None,
    compile: bool = False,
    computing: tuple[nn.Module, nn.Module] | None = None,
    check: bool = True,
) -> "GeneratorStep":
    """A callable that fills ``.grad`` of the generator's parameters, and of no others.

    Args:
        compile: on a GPU by torch.compile; on a CPU in one graph with its gradients, of torch's layers and ours only.
        computing: twins of both whose weights somebody keeps in the type of ``autocast`` (`FlatAdam.computing`); None = autocast
            casts them in every step.
        check: compare the first step of that one graph with a step that is not compiled, which takes its place if they differ.

    Returns:
        ``step(z, labels=None, real=None)``: latents (N, latent), labels int64 (N,) of the pictures to draw, and reals (N, C, H, W)
        with the same labels, which the relativistic loss compares with. It returns 0-d tensors and waits for nothing.
    """
    return GeneratorStep(generator, critic, loss, autocast, compile, computing or (generator, critic), check)


class GeneratorStep:
    """Made by `make_generator_step`. ``compiled``: whether it is."""

    def __init__(
        self, generator: nn.Module, critic: nn.Module, loss: LossConfig, autocast: torch.dtype | None, compile: bool,
        computing: tuple[nn.Module, nn.Module], check: bool,
    ) -> None:  # fmt: skip
        self.nets, self.computing, self.loss, self.autocast = (generator, critic), computing, loss, autocast
        self.gradients = FlatGradients(generator)
        self._unchecked = check
        self._compiled = self._graph() if compile else None

    @property
    def compiled(self) -> bool:
        return self._compiled is not None

    def __call__(self, z: Tensor, labels: Tensor | None = None, real: Tensor | None = None) -> Stats:
        if not self.gradients.fits:
            self.gradients = FlatGradients(self.nets[0])
        found, stats = self._found(z, labels, real)
        self.gradients.fill(found)
        return {name: value.detach() for name, value in stats.items()}

    def _found(self, *given: Any) -> Found:
        if self._compiled is not None:
            capturing = torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()  # then it may be the capture's error
            try:
                if self._unchecked:
                    self._check(self._compiled, *given)
                    self._unchecked = False
                return self._compiled(*given)
            except Exception as error:  # whatever a compiler comes up with; the step itself fails again below, with its own words
                if capturing or is_out_of_memory(error):
                    raise
                problem = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
                logger.warning("generator step: not compiled (%s)", problem)
                self._compiled = None
        return self._eager(self.computing, self.autocast, *given)

    def _eager(self, nets: tuple[nn.Module, nn.Module], autocast: torch.dtype | None, *given: Any) -> Found:
        return _differentiated(nets[0], *_whole_loss(*nets, self.loss, autocast, *given))

    def _graph(self) -> Callable[..., Found] | None:
        whole = partial(_whole_loss, *self.computing, self.loss, self.autocast)
        if next(self.nets[0].parameters()).is_cuda:
            self._unchecked, run = False, torch.compile(whole)
            return lambda *given: _differentiated(self.computing[0], *run(*given))
        if why := why_not_recorded(*self.computing):
            logger.warning("generator step: not compiled, as %s", why)
            return None
        return Recorded(whole, self.computing, trained=True)

    def _check(self, graph: Callable[..., Found], z: Tensor, *given: Tensor | None) -> None:
        """Raises RuntimeError where a graph's gradients are not those of the step as it is written."""
        exactly, plainly = partial(self._eager, self.nets, None), partial(self._eager, self.computing, self.autocast)
        for attempt in range(_ATTEMPTS):
            exact, plain, found = (self._drawn_alike(step, 0.99**attempt * z, *given) for step in (exactly, plainly, graph))
            error = relative_error(found, exact)
            if error <= ROUNDING + 2 * relative_error(plain, exact):
                return
        raise RuntimeError(f"its gradients are {error:.2g} off those of the step as it is written")

    def _drawn_alike(self, step: Callable[..., Found], *given: Tensor | None) -> list[Tensor]:
        with nothing_changed(self.nets[0]), nothing_changed(self.nets[1]):
            torch.manual_seed(0)  # for networks that draw numbers themselves
            gradients, _ = step(*given)
        return [torch.zeros_like(p) if g is None else g for g, p in zip(gradients, self.gradients.parameters, strict=True)]


def _whole_loss(
    generator: nn.Module, critic: nn.Module, loss: LossConfig, autocast: torch.dtype | None,
    z: Tensor, labels: Tensor | None, real: Tensor | None,
) -> tuple[Tensor, Stats]:  # fmt: skip
    computed = torch.autocast(z.device.type, autocast, enabled=autocast is not None)
    with computed, held_power_iteration(critic), thin_convolutions(z.device, critic):
        said = judge(critic, draw(generator, z, labels), labels)
        paired = real if loss.kind == "relativistic" else None
        real_score = None if paired is None else judge(critic, paired, labels).score
    total = generator_loss(loss, said.score, real_score).mean()
    stats = {"loss": total}
    if said.classes is not None and labels is not None:
        named = class_loss(said.classes, labels).mean()
        stats |= {"class_loss": named, "class_accuracy": accuracy(said.classes, labels)}
        total = total + loss.class_weight_generator * named
    return total, stats


def _differentiated(generator: nn.Module, total: Tensor, stats: Stats) -> Found:
    leaves = [p for p in parameters(generator) if p.requires_grad]  # in a twin as many, in the order of the generator's own
    return torch.autograd.grad(total, leaves, allow_unused=True), stats


def make_drawing(
    generator: nn.Module, autocast: torch.dtype | None = None, compile: bool = False, computing: nn.Module | None = None
) -> Drawing:
    """`draw` for a critic's step, without gradients.

    Args:
        compile: on a CPU in one graph, of torch's layers and ours only; else as it is.
        computing: the generator's twin, as of `make_generator_step`.
    """
    net = computing or generator
    recorded = compile and not next(generator.parameters()).is_cuda and not why_not_recorded(net)

    def drawn(z: Tensor, labels: Tensor | None) -> Tensor:
        with torch.autocast(z.device.type, autocast, enabled=autocast is not None):
            return draw(net, z, labels)

    return torch.no_grad()(Recorded(drawn, [net]) if recorded else drawn)


def draw(generator: nn.Module, z: Tensor, labels: Tensor | None = None) -> Tensor:
    """Pictures in float32 or more, whatever the generator computes in; labels only where there are classes."""
    with thin_convolutions(z.device, generator):
        return full_precision(generator(z) if labels is None else generator(z, labels))


def thin_convolutions(device: torch.device, net: nn.Module) -> AbstractContextManager[Any]:
    """`ThinConvolutions` where they are the faster ones."""
    return nullcontext() if device.type != "cpu" or torch.compiler.is_compiling() else ThinConvolutions(net)
