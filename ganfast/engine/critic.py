"""`make_critic_step`: the critic's gradients by the fastest engine that gets them right."""

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor, nn

from ganfast.config import EngineName, LossConfig, PenaltyConfig
from ganfast.engine.autograd import AutogradStep
from ganfast.engine.check import check as verify
from ganfast.engine.check import nothing_changed
from ganfast.engine.compiled import compiled
from ganfast.engine.draws import Draws
from ganfast.engine.explicit import ExplicitStep
from ganfast.engine.fuse import fused
from ganfast.engine.gradients import FlatGradients
from ganfast.engine.objective import Inputs, Stats
from ganfast.engine.reference import whole_loss
from ganfast.engine.walk import CannotWalk, walk
from ganfast.engine.weights import EffectiveWeights
from ganfast.errors import InputError, is_out_of_memory
from ganfast.kernels._triton import use_triton
from ganfast.log import logger
from ganfast.models.members import modes
from ganfast.models.parts import held_power_iteration
from ganfast.penalties import penalty_of, points_of

# In about one batch of eight a value rounds across a kink, and the gradient moves by 1e-3 or more.
_ATTEMPTS = 4

# Computes a step with or without its penalties.
Engine = Callable[[Inputs, bool], tuple[list[Tensor | None], Stats]]


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


def make_critic_step(
    critic: nn.Module,
    loss: LossConfig | str = "wasserstein",
    penalty: PenaltyConfig | str | Sequence[PenaltyConfig | str] = "wgan-gp",
    autocast: torch.dtype | None = None,
    engine: EngineName = "auto",
    compile: bool | None = None,
    check: bool = True,
    computing: nn.Module | None = None,
) -> "CriticStep":
    """A callable that fills ``.grad`` of the critic's parameters with the gradient of its whole
    loss; see `CriticStep.__call__`.

    Args:
        critic: any module that maps pictures (N, C, H, W) to scores (N,) or (N, 1), or to (scores,
            class logits (N, K)). One whose ``takes_labels`` is true is called with labels as well.
        loss: what to minimise, or its kind by name.
        penalty: how the gradient is held, or its kind by name; several may be given; "none" or () =
            not at all.
        autocast: run the critic in this type (bfloat16), penalty and norms staying in float32; None
            = as it is.
        engine: "reference", "autograd" or "explicit"; "auto" = `choose`.
        compile: True = one compiled graph, but on a CPU "auto" leaves first derivatives alone as
            they are, which it makes slower; False = not; None = on a GPU only.
        check: compare the first step, with penalty and without, with the reference; an engine that
            fails is replaced.
        computing: a twin of the critic whose weights somebody keeps in the type of ``autocast``
            (`FlatAdam.computing`), which the explicit engine takes them from; None = they are cast
            in every step.

    Raises:
        InputError: an unknown name, a batch norm under a penalty, or an engine that was asked for
            and cannot take this critic.
    """
    loss = LossConfig(loss) if isinstance(loss, str) else loss  # type: ignore[arg-type]
    several = [penalty] if isinstance(penalty, PenaltyConfig | str) else list(penalty)
    configs = [PenaltyConfig(p) if isinstance(p, str) else p for p in several]  # type: ignore[arg-type]
    penalties = tuple(p for p in configs if p.active)
    if penalties:
        refuse_batch_norm(critic, penalties[0].kind)
    if len({p.interval for p in penalties}) > 1:
        raise InputError(
            f"penalties at intervals {', '.join(str(p.interval) for p in penalties)}; "
            "expected one for all of them"
        )
    return CriticStep(critic, loss, penalties, autocast, engine, compile, check, computing)


def refuse_batch_norm(critic: nn.Module, penalty: str) -> None:
    """Raises InputError where a batch norm would mix the input gradients of the samples."""
    kind, named = nn.modules.batchnorm._BatchNorm, critic.named_modules()
    norms = [name for name, module in named if isinstance(module, kind)]
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
) -> Choice:
    """The engine for a critic. Nothing that varies from run to run decides, so that a resumed run
    gets the same engine.

    "auto" is explicit where the critic can be walked; else autograd where it is compiled, or
    penalised on a GPU; else the reference. Measured on two CPU cores (benchmarks/results): autograd
    that is not compiled was slower than the reference, for all the work it saves; compiled it was
    faster. First derivatives alone took longer compiled, so without a penalty they are not.
    """
    if engine not in get_args(EngineName):
        raise InputError(f"engine is {engine!r}; expected one of {', '.join(get_args(EngineName))}")
    on_gpu = any(p.is_cuda for p in critic.parameters())
    compile = on_gpu if compile is None else compile
    if engine == "reference":
        return Choice(engine, False, "asked for")
    if engine == "autograd":
        return Choice(engine, compile, "asked for")
    try:
        walked = walk(critic)
    except CannotWalk as error:
        reason = f"the explicit engine cannot take this critic: {error}"
        if engine == "explicit":
            raise InputError(f"{reason}; use engine autograd") from error
        return _without_explicit(reason, compile, on_gpu, bool(penalties))
    reason = f"all {len(walked.steps)} layers walked"
    if walked.tail is not None:
        reason = f"all layers walked but {', '.join(walked.refused)}"
    if engine == "explicit":
        return Choice(engine, compile, f"asked for; {reason}")
    if walked.tail is not None and not penalties:
        return _without_explicit(f"no penalty, and {reason}", compile, on_gpu, False)
    return Choice("explicit", compile, reason)


def _without_explicit(why: str, compile: bool, on_gpu: bool, penalised: bool) -> Choice:
    if compile and not (on_gpu or penalised):
        return Choice("reference", False, f"{why}; compiled it takes longer on a CPU")
    return Choice("autograd" if compile or (on_gpu and penalised) else "reference", compile, why)


class CriticStep:
    """Made by `make_critic_step`; ``choice`` is its engine, ``gradients.flat`` all gradients."""

    def __init__(
        self,
        critic: nn.Module,
        loss: LossConfig,
        penalties: tuple[PenaltyConfig, ...],
        autocast: torch.dtype | None,
        engine: EngineName,
        compile: bool | None,
        check: bool,
        computing: nn.Module | None,
    ) -> None:
        self.critic, self.computing = critic, computing
        self.loss, self.penalties, self.autocast = loss, penalties, autocast
        self._asked, self._wants_check = (engine, compile), check
        self._prepare()

    def _prepare(self) -> None:
        """Choice, buffers and engine for the critic as it stands."""
        self.choice = choose(self.critic, self.penalties, *self._asked)
        self.gradients = FlatGradients(self.critic)
        self._modes = modes(self.critic)
        self._run = self._engine(self.choice)
        self._unchecked = {bool(self.penalties), False} if self._wants_check else set()

    def __call__(
        self,
        real: Tensor,
        fake: Tensor,
        real_labels: Tensor | None = None,
        fake_labels: Tensor | None = None,
        eps: Tensor | None = None,
        noise: Tensor | None = None,
        with_penalty: bool = True,
    ) -> Stats:
        """Fill the gradients of one step.

        Args:
            real, fake: pictures (N, C, H, W) in [-1, 1]; gradients never flow back through them.
            real_labels, fake_labels: classes int64 (N,); fakes without labels of their own have
                those of the reals.
            eps: WGAN-GP's share of the real in each interpolate, (N,) in [0, 1].
            noise: DRAGAN's, like real, in [0, 1). Both are drawn from torch's generator where they
                are needed and not given.
            with_penalty: False leaves the penalties out. With an interval k the caller passes True
                at every k-th step, where the penalties weigh k times as much.

        Returns:
            0-d tensors, without waiting for the device: loss, wasserstein, real_score, fake_score;
            with a penalty penalty, gradient_norm, gradient_norm_max; with a class head class_loss,
            class_accuracy.
        """
        penalties = self.penalties if with_penalty else ()
        if real.shape != fake.shape:
            raise InputError(
                f"reals are {tuple(real.shape)} and fakes {tuple(fake.shape)}; expected one shape"
            )
        if getattr(self.critic, "takes_labels", False) and real_labels is None:
            raise InputError(
                "this critic judges a picture as one of its class: give real_labels (N,)"
            )
        if not self.gradients.fits or self._modes != modes(self.critic):
            # The critic was moved, laid out anew, frozen, thawed, or changed in what it computes.
            self._prepare()
        real, fake = real.detach(), fake.detach()
        fake_labels = self._shared_labels(real_labels, fake_labels, penalties)
        points = points_of(penalties, real, fake, eps, noise)
        inputs = Inputs(real, fake, real_labels, fake_labels, points)
        # Both kinds are checked at the first call of either, because a later call may be inside a
        # capture, which allows no check.
        while self._unchecked:
            penalised = bool(penalties) if bool(penalties) in self._unchecked else not penalties
            same = penalised == bool(penalties)
            self._check(inputs if same else self._other(inputs, penalised), penalised)
        gradients, stats = self._run(inputs, bool(penalties))
        self.gradients.fill(gradients)
        return stats

    def _shared_labels(
        self, real: Tensor | None, fake: Tensor | None, penalties: Sequence[PenaltyConfig]
    ) -> Tensor | None:
        if fake is None or fake is real or real is None:
            return real
        between = [p.kind for p in penalties if penalty_of(p).points]
        # waits for the device: give the same tensor, or none, to go without
        if between and not torch.equal(real, fake):
            raise InputError(
                f"reals and fakes have different labels, so that the points of {between[0]} have "
                "no class; draw the fakes with the labels of the reals"
            )
        return fake

    def _other(self, inputs: Inputs, penalised: bool) -> Inputs:
        """``inputs`` for a step of the other kind, with or without penalty. Nothing is drawn."""
        if not penalised:
            return inputs._replace(points=())
        real, fake = inputs.real, inputs.fake
        eps, noise = real.new_full((len(real),), 0.5), torch.full_like(real, 0.5)
        return inputs._replace(points=points_of(self.penalties, real, fake, eps, noise))

    def _check(self, inputs: Inputs, penalised: bool) -> None:
        """Take the next slower engine until one agrees with the reference on these pictures."""
        self._unchecked.discard(penalised)
        while (self.choice.engine, self.choice.compiled) != ("reference", False):
            problem = self._problem(inputs, penalised)
            if problem is None:
                return
            engine = self.choice.engine if self.choice.compiled else "reference"
            title = self.choice.title
            slower = Choice(engine, False, f"{title} {problem}")
            logger.warning("%s engine: %s; going on with %s", title, problem, slower.title)
            self.choice = slower
            self._run = self._engine(self.choice)
            self._unchecked = {not penalised}

    def _problem(self, inputs: Inputs, penalised: bool) -> str | None:
        """The error of the engine's gradients, in words; None = they are right.

        A value that rounds across a kink is no error of the engine. On slightly smaller pictures it
        rounds otherwise, so a few sizes are tried.
        """
        penalties, separable = self.penalties if penalised else (), self._separable()
        for attempt in range(_ATTEMPTS):
            moved = inputs.changed(partial(operator.mul, 0.99**attempt))
            last = attempt == _ATTEMPTS - 1
            try:
                with nothing_changed(self.critic), held_power_iteration(self.critic):
                    torch.manual_seed(0)  # for critics that draw numbers themselves
                    gradients, _ = self._run(moved, penalised)
                    compared = moved, gradients, self.autocast, separable, last
                    verdict = verify(self.critic, self.loss, penalties, *compared)
            except Exception as error:  # whatever a compiler or a user's critic comes up with
                if isinstance(error, InputError) or is_out_of_memory(error):
                    raise  # the critic's or the machine's fault, not the engine's
                return f"failed ({type(error).__name__}: {' '.join(str(error).split())[:160]})"
            if verdict.passed:
                return None
        gap, allowed = verdict.error, verdict.allowed
        return f"gave gradients {gap:.2g} off the reference's, {allowed:.2g} allowed"

    def _separable(self) -> bool:
        """Whether the samples are known not to meet."""
        try:
            return walk(self.critic).separable
        except CannotWalk:
            return False

    def _engine(self, choice: Choice) -> Engine:
        make: Callable[[bool], Engine] = getattr(self, f"_{choice.engine}")
        return make(choice.compiled)

    def _reference(self, compile: bool) -> Engine:
        plain = torch.compile(whole_loss) if compile else whole_loss

        def run(inputs: Inputs, penalised: bool) -> tuple[list[Tensor | None], Stats]:
            function, penalties = (whole_loss, self.penalties) if penalised else (plain, ())
            total, stats = function(self.critic, self.loss, penalties, inputs, self.autocast)
            gradients = torch.autograd.grad(total, self.gradients.parameters, allow_unused=True)
            return list(gradients), {name: value.detach() for name, value in stats.items()}

        return run

    def _autograd(self, compile: bool) -> Engine:
        plain = self._reference(compile)  # first derivatives need no help
        step: Any = AutogradStep(self.critic, self.loss, self.penalties, self.autocast)
        step = compiled(step) if compile else step

        def run(inputs: Inputs, penalised: bool) -> tuple[list[Tensor | None], Stats]:
            if not penalised:
                return plain(inputs, False)
            EffectiveWeights(self.critic)  # one power iteration
            weights = dict(self.critic.named_parameters()) | dict(self.critic.named_buffers())
            weights = {name: value.detach() for name, value in weights.items()}
            with held_power_iteration(self.critic):
                gradients, stats = step(weights, inputs)
            trainable = [n for n, p in self.critic.named_parameters() if p.requires_grad]
            return [gradients[name] for name in trainable], stats

        return run

    def _explicit(self, compile: bool) -> Engine:
        walked = walk(self.critic)
        if use_triton(self.gradients.flat) and self.gradients.flat.dtype != torch.float64:
            with held_power_iteration(self.critic):  # only the shapes are looked at
                walked = fused(walked, EffectiveWeights(self.critic).values)
        steps: dict[bool, Any] = {}
        draws = {}
        for penalised, penalties in ((True, self.penalties), (False, ())):
            step = ExplicitStep(walked, self.loss, penalties, self.autocast)
            steps[penalised] = compiled(step) if compile else step
            draws[penalised] = Draws(self.critic, walked, penalties, self.autocast)

        twin: Iterable[tuple[str, Tensor]] = ()
        if self.computing is not None:
            twin = self.computing.named_parameters(remove_duplicate=False)
        ready = {name: value.detach() for name, value in twin if value.dtype == self.autocast}

        def run(inputs: Inputs, penalised: bool) -> tuple[list[Tensor | None], Stats]:
            effective, buffers = EffectiveWeights(self.critic), {}
            if walked.normed:
                buffers = dict(self.critic.named_buffers(remove_duplicate=False))
            running = {name: buffers[name] for layer in walked.normed for name in layer.running}
            with torch.no_grad(), held_power_iteration(self.critic):
                drawn = draws[penalised](inputs)  # out here: a compiler would draw other numbers
                weights = effective.values | running
                gradients, stats = steps[penalised](weights, inputs, ready, drawn)
                for name, buffer in running.items():
                    buffer.copy_(gradients[name])
                for layer in walked.normed:
                    if layer.counter:
                        buffers[layer.counter] += 2  # reals and fakes
            return effective.parameter_gradients(gradients), stats

        return run
