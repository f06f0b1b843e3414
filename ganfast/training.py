"""From a config to a finished run: prepare, resume or start, train, write what the run directory holds."""

import copy
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor

from ganfast import checkpoint as checkpoints
from ganfast import disk, resume
from ganfast.config import Config, run_folder
from ganfast.data.progress import progress_bar
from ganfast.ema import reestimate_batchnorm
from ganfast.engine import Choice, CriticStep, Drawing, GeneratorStep, draw, make_critic_step, make_drawing, make_generator_step
from ganfast.errors import InputError, RunError, cannot_write, is_out_of_memory
from ganfast.evaluate.during import Scorer
from ganfast.guard import Guard
from ganfast.host_memory import keep_freed_memory
from ganfast.images import Pictures, comfortable_scale, grid, png
from ganfast.kernels.to_uint8 import to_uint8
from ganfast.latents import latents
from ganfast.log import RunLog, logger, say
from ganfast.loop import State, train_loop
from ganfast.memory import batch_that_fits
from ganfast.plan import Plan, make_plan
from ganfast.run import Run
from ganfast.saving import Copy, Finish, Saver, insist, restore, tidy

_SHEET = 64  # pictures in a sample grid, about


class Interrupted(Exception):
    """A signal ended the run; its state is saved."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


def train(config: Config, quiet: bool = False, checkpoint: str = "", fork_of: str | Path = "", force: bool = False) -> Run:
    """Train a run to config.kimg, resuming what its directory already holds.

    Args:
        config: what to train; see `ganfast.presets.preset_config`.
        quiet: print nothing but warnings.
        checkpoint: where to go on, by images shown, or "best"; "" = the newest. What is later is set aside.
        fork_of: a run directory; config.out becomes a new run that begins from its checkpoint.
        force: go on although the config changes what is computed; recorded in the run's history.jsonl.

    Returns:
        The run.

    Raises:
        InputError: a config or data that cannot be used; no memory for it, no space, no permission.
        RunError: the training diverged again and again, or a checkpoint could not be written; the last one is whole.
        Interrupted: SIGINT or SIGTERM came; the state was saved first.
    """
    parent = None
    if fork_of:
        parent = Run.open(fork_of)
        resume.refuse_as_fork(run_folder(config))
    try:
        with progress_bar() if not quiet else nullcontext() as packing:
            plan = make_plan(config, packing)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise InputError("networks and pictures do not fit into memory: lower --net.width or --size") from error
    if plan.device.type == "cpu":
        keep_freed_memory()
    if parent:
        said = resume.fork(plan, parent, checkpoint)
        if not quiet:
            say(said)
    with ExitStack() as held:
        resume.hold(plan.folder, held)
        try:
            return _train(plan, quiet, "" if parent else checkpoint, force)
        except OSError as error:
            go_on = f"mend that, and `ganfast train --out {plan.folder}` goes on from the newest checkpoint"
            raise cannot_write(plan.folder, error, go_on) from error
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            logger.warning("out of memory: %s", str(error).splitlines()[0][:200] if str(error) else type(error).__name__)
    raise InputError(_smaller_batch(plan))  # from out here, as what the step had in memory is gone only now


def _smaller_batch(plan: Plan) -> str:
    batch, known = batch_that_fits(plan, _make_steps), checkpoints.listed(plan.folder / "checkpoints")
    said = f"{plan.device} has no memory left at batch {plan.config.batch}"
    if not batch:
        return f"{said}, nor would it have at 2: lower --net.width or --size"
    how = "was tried and fits" if plan.device.type == "cuda" else "would fit by the bytes counted for a picture"
    forced = " with --force or --fork NEWDIR, as it changes what the run computes" if known else ""
    return f"{said}; {batch} {how}: give --batch {batch}{forced}"


def _train(plan: Plan, quiet: bool, checkpoint: str, force: bool) -> Run:
    config, folder, state = plan.config, plan.folder, plan.state
    run, changed = resume.open_folder(plan, force)
    found = resume.find(run, checkpoint)
    if found:
        restore(state, found[2], found[1].images, str(found[0]))
    # Made before anything is written, as it refuses what it cannot do.
    scorer = Scorer(config, plan.pack.info, plan.device) if config.score.every_kimg and _left(state, config) else None
    if _left(state, config):
        if found:
            resume.go_on_from(run, found, changed)
        resume.write_record(run)
    if not quiet:
        say(f"data: {plan.pack.info.recognised}")
        say(plan.describe())
        if found:
            say(f"resuming {folder} at {state.images / 1000:g} kimg" + ("" if _left(state, config) else ": already complete"))
    if not found:
        _save_sheet(_sheet_of_reals(plan), folder / "samples" / "reals.png", config.size)
    if not _left(state, config):
        tidy(run.checkpoint_folder, Run.open(folder).config.log.keep)  # what the last save could not remove
        return run

    torch.backends.cudnn.allow_tf32 = config.precision != "fp32"  # fp32 means fp32; matrix products already do
    began, first = time.monotonic(), state.images
    with ExitStack() as held:
        log = RunLog(
            folder, state.images, config.kimg * 1000, config.log.tensorboard, quiet, found[1].log_lines if found else None
        )  # fmt: skip
        held.callback(log.close)
        critic_step, generator_step, drawing = _make_steps(plan)
        if not quiet:
            say(f"critic step: {critic_step.choice}")
        _write_engine(run, critic_step.choice)
        writer = Writer(plan, run, log, scorer)
        held.callback(writer.close)
        with signals() as stopped:
            if not found:
                writer.samples()
            stop = lambda: bool(stopped)  # noqa: E731
            train_loop(state, plan.data, config, critic_step, generator_step, stop, writer.on_step, drawing)
            writer.finish()
        _write_engine(run, critic_step.choice)  # another one where the start-up check refused the first
    if stopped:
        name = signal.Signals(stopped[0]).name
        say(f"{name}: saved {folder} at {state.images / 1000:g} kimg; `ganfast train --out {folder}` goes on")
        raise Interrupted(stopped[0])
    if not quiet:
        seconds = time.monotonic() - began
        say(
            f"done: {state.images / 1000:g} kimg, {(state.images - first) / seconds:,.0f} img/s including samples and checkpoints, "
            f"{seconds:.0f} s\n  pictures  {folder}/samples\n  draw more ganfast sample {folder} -n 64 --grid grid.png"
        )
    return run


def _make_steps(plan: Plan) -> tuple[CriticStep, GeneratorStep, Drawing]:
    state, c = plan.state, plan.config
    twins = state.optimizer_generator.computing, state.optimizer_critic.computing
    return (
        make_critic_step(state.critic, c.loss, c.penalty, plan.autocast, c.engine, plan.compile, computing=twins[1]),
        make_generator_step(state.generator, state.critic, c.loss, plan.autocast, plan.compile, twins),
        make_drawing(state.generator, plan.autocast, plan.compile, twins[0]),
    )


class Writer:
    """What a run writes while it trains, each when due: log lines, sample grids, checkpoints of states that the guard passed."""

    def __init__(self, plan: Plan, run: Run, log: RunLog, scorer: Scorer | None = None) -> None:
        self.plan, self.run, self.log, self.scorer, c = plan, run, log, scorer, plan.config
        whole = c.kimg * 1000
        self.sample_every = c.log.sample_kimg * 1000 or whole / 20
        self.save_every = c.log.save_kimg * 1000 or whole / 10
        self.score_every = c.score.every_kimg * 1000
        self.step_images = c.batch * c.optim.critic_steps
        self.guard, self.tries = Guard(c.guard), 0
        self.good = Copy(on_host=False)  # the state that the guard passed last
        self.said, self.restored_at = "", -1  # of the last divergence
        self.saver = Saver(run.checkpoint_folder, c.log.keep, _average_finisher(plan, run), log.sync, resume.mathematics(run))
        self.saver.remember(plan.state)
        self.good.take(plan.state)
        self.guard.state_problem(plan.state)  # norms to compare with

    def on_step(self, state: State, critic: dict[str, Tensor], generator: dict[str, Tensor]) -> None:
        self.log.progress.tick(state.images)
        self.saver.poll()
        c, problem = self.plan.config, None
        step = state.images // self.step_images
        finished = state.images >= c.kimg * 1000
        # A lazy penalty is due in one of so many steps: the line is that of the step that has it, by the counter alone.
        wait = -(-c.penalty.interval // c.optim.critic_steps) if c.penalty.active else 1
        if finished or (step % c.log.every < wait and ("penalty" in critic or wait == 1)):
            named = {f"critic/{k}": v for k, v in critic.items()} | {f"generator/{k}": v for k, v in generator.items()}
            record = self.log.step(state.images, named)
            problem = self.guard.statistics_problem(record)
        sound = True
        if problem or (c.guard.every and step % c.guard.every == 0):
            sound = self._hold(problem)
        if self._crossed(state.images, self.sample_every):
            self.samples()
        if sound and not finished:  # what was only just restored has proved nothing; the last checkpoint waits for the last grid
            due = self.scorer is not None and self._crossed(state.images, self.score_every)
            if due or self._crossed(state.images, self.save_every):
                self.checkpoint(due)

    def _crossed(self, images: int, every: float) -> bool:
        return images // every != (images - self.step_images) // every

    def samples(self) -> None:
        """A grid from latents that stay the same throughout the run, classes in columns."""
        path = self.run.folder / "samples" / f"{self.plan.state.images:09d}.png"
        with self._apart():
            sheet = self._sheet()
            _save_sheet(sheet, path, self.plan.config.size)
            self.log.picture(self.plan.state.images, sheet)

    def checkpoint(self, scored: bool = False) -> None:
        """Have the state written, unless it has diverged; scored first, so that the line is in the log a resumed run keeps."""
        with self._apart():
            if self._hold(None) and self.plan.state.images != self.saver.last.images:
                self.tries = 0
                kept = self._score() if scored else None
                self.saver.save(self.plan.state, self.log.position(), kept)

    def _score(self) -> Callable[[Path], None]:
        """Scores of the average, logged; returns what spares the checkpoint if it is the best."""
        scorer, images, by = self.scorer, self.plan.state.images, self.plan.config.score.by
        assert scorer is not None
        self._fit_average()
        scores, protocol = scorer(self.plan.state.average, images)
        self.log.scores(images, scores)

        def keep_best(path: Path) -> None:
            if math.isfinite(scores[by]):
                checkpoints.keep_best(path, scores[by], f"{by}: {protocol}", scorer.lower_is_better)

        return keep_best

    def finish(self) -> None:
        """The last grid and the last checkpoint, on disk."""
        state = self.plan.state
        with self._apart():
            self._hold(None)
            if self.tries > 1 and self.restored_at == state.images:
                raise RunError(f"{self.said}, the last step, after going back {self.tries - 1} times; {self._way_out()}")
        self.samples()
        with self._apart():
            kept = self._score() if self.scorer and not _left(state, self.plan.config) else None
            self.saver.save(state, self.log.position(), kept)
        self.saver.flush()

    def close(self) -> None:
        self.saver.close()

    def _hold(self, problem: str | None) -> bool:
        """Whether the state is sound; if not, it is replaced by the last one that was, and the counter goes on.

        The second time since a checkpoint, what the guard passed last may have been ill already: then it is that checkpoint's.

        Raises:
            RunError: that was tried as often as the config allows.
        """
        state, images = self.plan.state, self.plan.state.images
        tensor = self.guard.state_problem(state)
        if not (problem or tensor):
            self.good.take(state)
            return True
        said = "; ".join(text for text in (problem, tensor) if text) + f" at {images / 1000:g} kimg"
        self.tries, self.said, self.restored_at = self.tries + 1, said, images
        if self.tries > self.plan.config.guard.tries:
            raise RunError(f"{said}, after going back {self.tries - 1} times; {self._way_out()}")
        if self.tries > 1:
            self.saver.flush()  # as the thread completes what it writes
        good = self.saver.last if self.tries > 1 else self.good
        restore(state, good.contents, images, str(self.run.folder))  # the counter goes on: the same pictures would diverge again
        for parameter in (*state.generator.parameters(), *state.critic.parameters()):
            if parameter.grad is not None:
                parameter.grad.zero_()  # in place, as captured phases know it; the next look must not blame the old one
        self.guard.state_problem(state)  # the norms to compare with are those of this state
        logger.warning(
            "%s: back to the state of %g kimg, on with the pictures from here (%d of %d times)",
            said, good.images / 1000, self.tries, self.plan.config.guard.tries,
        )  # fmt: skip
        return False

    def _way_out(self) -> str:
        lower = "lower --optim.lr-critic or --optim.lr-generator"
        if not checkpoints.listed(self.run.checkpoint_folder):
            return f"there is no checkpoint from before: {lower}, and train into another --out"
        return (
            f"checkpoints in {self.run.checkpoint_folder} are from before; "
            f"with `ganfast train --out {self.run.folder} --fork NEWDIR` a new run begins there: "
            f"{lower}, or train into another --out"
        )

    def _sheet(self) -> Pictures:
        self._fit_average()
        names = self.run.classes
        columns = sheet_columns(len(names))
        count = columns * (_SHEET // columns)
        device = self.plan.device
        z = torch.from_numpy(latents(self.plan.config.seed, torch.arange(count).numpy(), self.plan.config.net.latent)).to(device)
        labels = torch.arange(count, device=device) % len(names) if names else None
        with torch.no_grad():
            return grid(to_uint8(draw(self.plan.state.average, z, labels)).cpu().numpy(), columns)

    def _fit_average(self) -> None:
        c = self.plan.config
        reestimate_batchnorm(self.plan.state.average, c.seed, c.net.latent, len(self.run.classes))

    @contextmanager
    def _apart(self) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.log.pause(time.monotonic() - began)


def _average_finisher(plan: Plan, run: Run) -> Finish | None:
    """Gives a host copy of the average its batch statistics, on a network of its own; None where it has none."""
    average = copy.deepcopy(plan.state.average).cpu()
    if not any(isinstance(module, torch.nn.modules.batchnorm._BatchNorm) for module in average.modules()):
        return None

    def finish(tensors: dict[str, Tensor]) -> None:
        average.load_state_dict(tensors)
        reestimate_batchnorm(average, plan.config.seed, plan.config.net.latent, len(run.classes))
        for name, value in average.state_dict().items():
            tensors[name].copy_(value)

    return finish


def _save_sheet(sheet: Pictures, path: Path, size: int) -> None:
    """A training goes on where Pillow is missing, as in an un-installed checkout on a machine that has little more than torch."""
    try:
        data = png(sheet, comfortable_scale(size))
    except ImportError as error:
        logger.warning("%s is not written: %s; pip install Pillow", path.name, error)
        return

    def write() -> None:
        disk.ensure_directory(path.parent)
        disk.replace_file(path, data)

    insist(path.name, write)


def sheet_columns(classes: int) -> int:
    """Columns of a grid: one a class where they fit side by side, else 8."""
    return classes if 2 < classes <= 16 else 8


def _sheet_of_reals(plan: Plan) -> Pictures:
    pictures, _ = plan.data.batch(0, min(_SHEET, len(plan.pack.images)))
    return grid(to_uint8(pictures).cpu().numpy(), 8)


def _left(state: State, config: Config) -> bool:
    return state.images < config.kimg * 1000


def _write_engine(run: Run, choice: Choice) -> None:
    """What computed the critic's gradients in the end, for whoever compares runs."""
    record = {"engine": choice.engine, "compiled": choice.compiled, "reason": choice.reason, "torch": torch.__version__}
    data = (json.dumps(record, indent=1) + "\n").encode()
    insist("engine.json", lambda: disk.replace_file(run.folder / "engine.json", data))


@contextmanager
def signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM instead of dying of the first; a second one ends the process at once."""
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if received:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        received.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield received  # only the main thread may install handlers
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
