"""`make_critic_step`: the critic's gradients by the fastest engine that gets them right."""

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ganfast.config import EngineName, LossConfig, PenaltyConfig
from ganfast.engine.check import check as verify
from ganfast.engine.check import nothing_changed, tried_scale
from ganfast.engine.choice import Choice, choose, raise_without_second_derivative, refuse_batch_norm
from ganfast.engine.counting import ORDER, fewest, step_flops
from ganfast.engine.engines import Engine, Engines
from ganfast.engine.gradients import FlatGradients
from ganfast.engine.objective import Inputs, Stats, refuse_mistakes, shared_labels
from ganfast.engine.walking.steps import CannotWalk, Walk
from ganfast.engine.walking.trace import CannotTrace, FrontEnd, Trace
from ganfast.engine.walking.walk import walk, walk_trace
from ganfast.engine.weights import EffectiveWeights, MadeWeights
from ganfast.errors import InputError, is_out_of_memory
from ganfast.log import logger
from ganfast.models import averages_scores
from ganfast.models.members import is_hooked, is_known, modes
from ganfast.models.parts import held_power_iteration
from ganfast.penalties import points_of
from ganfast.tensors import behind

# In about one batch of eight a value rounds across a kink, and the gradient moves by 1e-3 or more.
_ATTEMPTS = 4
_MOST_CHECKS = 8  # states of a critic that are compared with the reference


def make_critic_step(
    critic: nn.Module,
    loss: LossConfig | str = "wasserstein",
    penalty: PenaltyConfig | str | Sequence[PenaltyConfig | str] = "wgan-gp",
    autocast: torch.dtype | None = None,
    engine: EngineName = "auto",
    compile: bool | None = None,
    check: bool = True,
    computing: nn.Module | None = None,
    scale: Tensor | None = None,
) -> "CriticStep":
    """A callable that fills ``.grad`` of the critic's parameters with the gradient of its whole
    loss; see `CriticStep.__call__`.

    Args:
        critic: any module that maps pictures (N, C, H, W) to scores (N,) or (N, 1), or to (scores,
            class logits (N, K)). One whose ``takes_labels`` is true is called with labels as well.
        loss: what to minimise, or its kind by name.
        penalty: how the gradient is held, or its kind by name; several may be given; "none" or () =
            not at all.
        autocast: run the critic in this type (bfloat16, float16), penalty and norms staying in
            float32; None = as it is.
        engine: "reference", "autograd" or "explicit"; "auto" = `choose`, and where that is not
            explicit for a piecewise-linear critic, the one with the fewest FLOPs.
        compile: True = one compiled graph, but on a CPU "auto" leaves first derivatives alone as
            they are, which it makes slower; False = not; None = on a GPU only.
        check: compare the first step, with penalty and without, with the reference; an engine that
            fails is replaced.
        computing: a twin of the critic whose weights somebody keeps in the type of ``autocast``
            (`FlatAdam.computing`), which the explicit engine takes them from; None = they are cast
            in every step.
        scale: the gradients are filled times this power of two, float32 0-d on the device, which
            may change between steps (`FlatAdam.scale`); None = as they are. float16 needs one.

    Raises:
        InputError: an unknown name, a batch norm under a penalty, or an engine that was asked for
            and cannot take this critic.
    """
    critic = getattr(critic, "_orig_mod", critic)  # torch.compile's wrapper: engines compile
    if lazy := [name for name, p in critic.named_parameters() if is_lazy(p)]:
        raise InputError(
            f"parameter {lazy[0]} of the critic is lazy and has no shape yet: call the critic once "
            "on a batch of pictures before"
        )
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
    return CriticStep(critic, loss, penalties, autocast, engine, compile, check, computing, scale)


UNDECIDED = Choice("reference", False, "not chosen before the first pictures")


def _slowness(choice: Choice) -> float:
    return 2 * ORDER.index(choice.engine) + (not choice.compiled)


@dataclass
class _Chosen:
    """What computes the steps of one graph of the critic."""

    choice: Choice
    walked: Walk | None
    run: Engine
    unchecked: set[bool]
    uncounted: bool  # whether FLOPs decide, once there are pictures


class CriticStep:
    """Made by `make_critic_step`; ``choice`` is its engine, ``gradients.flat`` all gradients.

    A critic of torch's and our classes is chosen for when the step is made. Any other is recorded
    in every call: what its forward reads may change.
    """

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
        scale: Tensor | None,
    ) -> None:
        self.critic, self.computing, self.scale = critic, computing, scale
        self.loss, self.penalties, self.autocast = loss, penalties, autocast
        self._asked, self._wants_check = (engine, compile), check
        # Whether an engine that was asked for and cannot take the critic is an error.
        self.insists, self._prepared = True, 0
        # Of several processes that train together: from the slowness of this one's choice to that
        # of the slowest, which all take.
        self.slowest: Callable[[float], float] | None = None
        self.gradients = FlatGradients(critic)
        self._prepare()

    def _prepare(self) -> None:
        """Buffers and engine for the critic as it stands."""
        if not self.gradients.fits:
            self.gradients = FlatGradients(self.critic)
        self._prepared += 1
        self._modes = modes(self.critic)
        how = self.critic, self.loss, self.penalties, self.autocast, self.computing
        self._engines = Engines(*how, lambda: self._constants)
        engine, compile = self._asked
        known = is_known(self.critic)
        # A step that runs the forward needs no graph of it.
        hooked = is_hooked(self.critic)
        eager = hooked or engine == "reference"
        eager = eager or (engine == "autograd" and not self._compiles(compile))
        self._front_end = None if known or eager else FrontEnd(self.critic, self.autocast)
        self._chosen: dict[tuple[Trace | None, EngineName], _Chosen] = {}
        self._trace: Trace | None = None
        self._constants: dict[str, Tensor] = {}  # of the graph, in this call
        self.choice = UNDECIDED
        self._refused_now = False  # whether this call is the first without a graph
        if self._front_end is None:
            why = "hooks on parameters, or on all modules, may change gradients" if hooked else ""
            self._choose(None, why or ("" if known else "it is not recorded"))

    def _compiles(self, asked: bool | None) -> bool:
        return asked or (asked is None and self.gradients.flat.is_cuda)

    def _choose(
        self, trace: Trace | None, refusal: str = "", engine: EngineName | None = None
    ) -> None:
        """Engines for one graph of the critic, or for a critic without one. ``engine``: None = the
        one asked for."""
        asked, compile = self._asked
        engine = engine or asked
        key = trace, engine
        if key not in self._chosen:
            found: Walk | str = refusal
            if not refusal:
                try:
                    averaged = averages_scores(self.critic)
                    found = walk(self.critic) if trace is None else walk_trace(trace, averaged)
                except CannotWalk as error:
                    found = str(error)
            # What computes by a graph may be compiled. A forward without one runs in every step.
            compile = False if refusal else compile
            try:
                choice = choose(self.critic, self.penalties, engine, compile, found)
            except InputError:
                if self.insists:
                    raise
                choice = choose(self.critic, self.penalties, "auto", compile, found)
            self._trace, walked = trace, None if isinstance(found, str) else found
            run = self._engines.made(choice, walked, trace)
            # A forward that keeps state must not run more often than in eager autograd.
            # Nor need options that change in every step be checked in every step.
            checked = self._wants_check and not refusal and self._prepared <= _MOST_CHECKS
            unchecked = {bool(self.penalties), False} if checked else set()
            # No engine takes as few FLOPs for two or more piecewise-linear layers as the explicit
            # one.
            whole = walked is not None and not walked.curved and walked.learning > 1
            uncounted = engine == "auto" and bool(self.penalties) and not (whole or refusal)
            self._chosen[key] = _Chosen(choice, walked, run, unchecked, uncounted)
        self._trace, self._now = trace, self._chosen[key]
        self.choice = self._now.choice

    def _record(
        self, real: Tensor, labels: Tensor | None, condition: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Choose for the critic as its forward is in this call. Returns the graph's constants."""
        inputs = Inputs(real, real, labels, labels, condition=condition)
        if self._front_end is None:
            self._count(inputs, {})
            return {}
        judged = labels if getattr(self.critic, "takes_labels", False) else None
        try:
            shown = behind(real, condition)
            given = (shown,) if judged is None else (shown, judged)
            trace, constants = self._front_end(*given)
        except CannotTrace as error:
            self._refused_now = error.new
            if len(real) < 2:  # which is the one call's own
                self._choose(None, str(error), "auto")
                return {}
            try:
                self._choose(None, str(error))
            except InputError:
                self._prepare()
                raise
            return {}
        self._constants = constants  # an engine that is made looks at their shapes
        self._choose(trace)
        self._count(inputs, constants)
        return constants

    def _count(self, inputs: Inputs, constants: Mapping[str, Tensor]) -> None:
        """Let FLOPs decide, where they are to."""
        now = self._now
        if not now.uncounted:
            return
        now.uncounted = False
        inputs = self._other(inputs, True)
        try:
            flops = step_flops(
                *(self.critic, self.loss, self.penalties, inputs),
                *(now.walked, constants, self.autocast),
            )
        except Exception:  # an operation that needs numbers: the choice stays
            return
        compile = self._compiles(self._asked[1])
        engine = fewest(flops, not compile and not inputs.real.is_cuda)
        counted = ", ".join(f"{name} {flops[name] / 1e6:.4g}" for name in ORDER if name in flops)
        reason = f"{now.choice.reason}; MFLOP: {counted}"
        self.choice = now.choice = Choice(engine, compile and engine != "reference", reason)
        now.run = self._engines.made(now.choice, now.walked, self._trace)

    @property
    def walked(self) -> Walk | None:
        """The critic's walk, as of the last call; None where it has none."""
        return self._now.walked

    def weights(self) -> dict[str, Tensor]:
        """What the steps of `walked` read by name, as of the last call."""
        values = EffectiveWeights(self.critic).values | self._constants
        return {**MadeWeights(self.walked.making if self.walked else None, values).weights}

    def prepare(
        self, real: Tensor, labels: Tensor | None = None, condition: Tensor | None = None
    ) -> Choice:
        """Choose for pictures such as ``real``, as the first step would. Nothing is computed."""
        self._constants = self._record(real, labels, condition)
        return self.choice

    def __call__(
        self,
        real: Tensor,
        fake: Tensor,
        real_labels: Tensor | None = None,
        fake_labels: Tensor | None = None,
        eps: Tensor | None = None,
        noise: Tensor | None = None,
        with_penalty: bool = True,
        penalty_share: Tensor | None = None,
        transforms: Tensor | None = None,
        condition: Tensor | None = None,
        std: Tensor | None = None,
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
            penalty_share: what every penalty has of its full weight (`PenaltyConfig.full_weight`)
                in this step, floating point 0-d on the device; None = 1.
            transforms: the critic sees `ganfast.augment.augmented` pictures, float32 (2 + P, N, 7):
                of reals, fakes, and the points of each of the P penalties at points of their own.
            condition: what the pictures are made from, (N, K, H, W): the critic, of C + K channels,
                is shown it behind all of them. Penalties hold gradients by the picture alone.
            std: standard deviation, 0-d, of the batch that the reals are a part of, for DRAGAN;
                None = theirs.

        Returns:
            0-d tensors, without waiting for the device: loss, wasserstein, real_score, fake_score,
            real_accuracy, fake_accuracy (`ganfast.losses.critic_accuracy`); with a penalty penalty,
            gradient_norm, gradient_norm_max; with a class head class_loss, class_accuracy.
        """
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False):
                drawn, changing = (eps, noise), (penalty_share, transforms, condition)
                labels = real_labels, fake_labels
                return self(real, fake, *labels, *drawn, with_penalty, *changing, std)
        penalties = self.penalties if with_penalty else ()
        what = real, fake, real_labels, transforms, condition
        refuse_mistakes(self.critic, self.penalties, *what)
        if not self.gradients.fits or self._modes != modes(self.critic):
            # The critic was moved, laid out anew, frozen, thawed, or changed in what it computes.
            self._prepare()
        # Autograd cannot save tensors that inference mode made.
        real, fake = (x.clone() if x.is_inference() else x.detach() for x in (real, fake))
        self._constants = self._record(real, real_labels, condition)
        fake_labels = shared_labels(real_labels, fake_labels, penalties)
        points = points_of(penalties, real, fake, eps, noise, std)
        labels, factors = (real_labels, fake_labels), (self.scale, penalty_share)
        inputs = Inputs(real, fake, *labels, points, *factors, transforms, condition)
        return self._fill(inputs, bool(penalties))

    def _fill(self, inputs: Inputs, penalised: bool) -> Stats:
        try:
            if self._now.unchecked:
                self._check_both(inputs, penalised)
            with torch.enable_grad():
                gradients, stats = self._now.run(inputs, penalised)
        except Exception as error:
            if self._refused_now:  # by the caller's mistake, perhaps: the next call records again
                self._prepare()
            raise_without_second_derivative(error)
            raise
        self._refused_now = False
        self.gradients.fill(gradients)
        return stats

    def _other(self, inputs: Inputs, penalised: bool) -> Inputs:
        """``inputs`` for a step of the other kind, with or without penalty. Nothing is drawn."""
        if not penalised:
            return inputs._replace(points=())
        real, fake = inputs.real, inputs.fake
        eps, noise = real.new_full((len(real),), 0.5), torch.full_like(real, 0.5)
        return inputs._replace(points=points_of(self.penalties, real, fake, eps, noise))

    def _check_both(self, inputs: Inputs, now: bool) -> None:
        """Steps with and without penalty are checked at the first call of either, because a later
        call may be inside a capture, which allows no check. ``now``: whether this one has it."""
        while unchecked := self._now.unchecked:
            penalised = now if now in unchecked else not now
            self._check(inputs if penalised == now else self._other(inputs, penalised), penalised)
        if self.slowest is not None:
            self._take(self.slowest(_slowness(self.choice)))

    def _check(self, inputs: Inputs, penalised: bool) -> None:
        """Take the next slower engine until one agrees with the reference on these pictures."""
        now = self._now
        while (now.choice.engine, now.choice.compiled) != ("reference", False):
            problem = self._problem(inputs, penalised)
            if problem is None:
                break
            engine = now.choice.engine if now.choice.compiled else "reference"
            title = now.choice.title
            slower = Choice(engine, False, f"{title} {problem}")
            logger.warning("%s engine: %s; going on with %s", title, problem, slower.title)
            self.choice = now.choice = slower
            now.run = self._engines.made(slower, now.walked, self._trace)
            now.unchecked = {not penalised}
        now.unchecked.discard(penalised)

    def _take(self, slowness: float) -> None:
        """Compute as slowly as that, because a check of another process failed."""
        if slowness == _slowness(self.choice):
            return
        engine = ORDER[int(slowness // 2)]
        choice = Choice(engine, slowness % 2 == 0, "another rank's check refused a faster one")
        self.choice = self._now.choice = choice
        self._now.run = self._engines.made(choice, self._now.walked, self._trace)

    def _problem(self, inputs: Inputs, penalised: bool) -> str | None:
        """The error of the engine's gradients, in words; None = they are right.

        A value that rounds across a kink is no error of the engine. On slightly smaller pictures it
        rounds otherwise, so a few sizes are tried.
        """
        penalties, separable = self.penalties if penalised else (), self._separable()
        for attempt in range(_ATTEMPTS):
            moved = inputs.changed(partial(operator.mul, 0.99**attempt))
            if inputs.scale is not None:
                moved = moved._replace(scale=tried_scale(inputs.scale, attempt))
            last = attempt == _ATTEMPTS - 1
            try:
                held = held_power_iteration(self.critic)
                with nothing_changed(self.critic), held, torch.enable_grad():
                    torch.manual_seed(0)  # for critics that draw numbers themselves
                    gradients, _ = self._now.run(moved, penalised)
                    compared = moved, gradients, self.autocast, separable, last
                    verdict = verify(self.critic, self.loss, penalties, *compared)
            except Exception as error:  # whatever a compiler or a user's critic comes up with
                if isinstance(error, InputError) or is_out_of_memory(error):
                    raise  # the critic's or the machine's fault, not the engine's
                self._raise_mistake(moved, penalised)
                return f"failed ({type(error).__name__}: {' '.join(str(error).split())[:160]})"
            if verdict.passed:
                return None
        gap, allowed = verdict.error, verdict.allowed
        return f"gave gradients {gap:.2g} off the reference's, {allowed:.2g} allowed"

    def _raise_mistake(self, inputs: Inputs, penalised: bool) -> None:
        """Raise what the reference raises, if it does: then the caller is mistaken, not an
        engine."""
        with nothing_changed(self.critic), held_power_iteration(self.critic), torch.enable_grad():
            self._engines.made(Choice("reference", False, ""), None, None)(inputs, penalised)

    def _separable(self) -> bool:
        """Whether the samples are known not to meet."""
        return self._now.walked is not None and self._now.walked.separable
