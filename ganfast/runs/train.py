"""From a config to a finished run: prepare, resume or start, train, write what the run directory holds."""

import json
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import FrameType

import torch

from ganfast import disk
from ganfast.config import Config, run_folder
from ganfast.data.progress import progress_bar
from ganfast.engine import (
    Choice,
    CriticStep,
    Drawing,
    GeneratorStep,
    make_critic_step,
    make_drawing,
    make_generator_step,
)
from ganfast.errors import InputError, cannot_write, is_out_of_memory
from ganfast.evaluate.during import Scorer
from ganfast.log import logger, say
from ganfast.runs import checkpoint as checkpoints
from ganfast.runs import resume
from ganfast.runs.logfile import RunLog
from ganfast.runs.run import Run
from ganfast.runs.saving import insist, tidy
from ganfast.runs.writer import Writer, save_sheet, sheet_of_reals, unfinished
from ganfast.training.host_memory import keep_freed_memory
from ganfast.training.loop import train_loop
from ganfast.training.memory import batch_that_fits
from ganfast.training.plan import Plan, make_plan
from ganfast.training.state import restore


class Interrupted(Exception):
    """A signal ended the run; its state is saved."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


def _of_recorded_length(config: Config) -> Config:
    """A run that is there keeps its length, whatever this version would choose for its pictures."""
    folder = run_folder(config)
    if config.kimg or not (folder / "config.yaml").exists():
        return config
    return replace(config, kimg=Run.open(folder).config.kimg)


def train(
    config: Config,
    quiet: bool = False,
    checkpoint: str = "",
    fork_of: str | Path = "",
    force: bool = False,
) -> Run:
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
    parent, config = None, _of_recorded_length(config)
    if fork_of:
        parent = Run.open(fork_of)
        resume.refuse_as_fork(run_folder(config))
    try:
        with progress_bar() if not quiet else nullcontext() as packing:
            plan = make_plan(config, packing)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(
            "networks and pictures do not fit into memory: lower --net.width or --size"
        ) from error
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
            logger.warning(
                "out of memory: %s",
                str(error).splitlines()[0][:200] if str(error) else type(error).__name__,
            )
    raise InputError(
        _smaller_batch(plan)
    )  # from out here, as what the step had in memory is gone only now


def _smaller_batch(plan: Plan) -> str:
    batch, known = (
        batch_that_fits(plan, _make_steps),
        checkpoints.listed(plan.folder / "checkpoints"),
    )
    said = f"{plan.device} has no memory left at batch {plan.config.batch}"
    if not batch:
        return f"{said}, nor would it have at 2: lower --net.width or --size"
    how = (
        "was tried and fits"
        if plan.device.type == "cuda"
        else "would fit by the bytes counted for a picture"
    )
    forced = " with --force or --fork NEWDIR, as it changes what the run computes" if known else ""
    return f"{said}; {batch} {how}: give --batch {batch}{forced}"


def _train(plan: Plan, quiet: bool, checkpoint: str, force: bool) -> Run:
    config, folder, state = plan.config, plan.folder, plan.state
    run, changed = resume.open_folder(plan, force)
    found = resume.find(run, checkpoint)
    if found:
        restore(state, found[2], found[1].images, str(found[0]))
    # Made before anything is written, as it refuses what it cannot do.
    scorer = (
        Scorer(config, plan.pack.info, plan.device)
        if config.score.every_kimg and unfinished(state, config)
        else None
    )
    if unfinished(state, config):
        if found:
            resume.go_on_from(run, found, changed)
        resume.write_record(run)
    if not quiet:
        say(f"data: {plan.pack.info.recognised}")
        say(plan.describe())
        if found:
            say(
                f"resuming {folder} at {state.images / 1000:g} kimg"
                + ("" if unfinished(state, config) else ": already complete")
            )
    if not found:
        save_sheet(sheet_of_reals(plan), folder / "samples" / "reals.png", config.size)
    if not unfinished(state, config):
        tidy(
            run.checkpoint_folder, Run.open(folder).config.log.keep
        )  # what the last save could not remove
        return run

    torch.backends.cudnn.allow_tf32 = (
        config.precision != "fp32"
    )  # fp32 means fp32; matrix products already do
    began, first = time.monotonic(), state.images
    with ExitStack() as held:
        log = RunLog(
            folder,
            state.images,
            config.kimg * 1000,
            config.log.tensorboard,
            quiet,
            found[1].log_lines if found else None,
        )
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
            stop = lambda: bool(stopped)
            train_loop(
                state, plan.data, config, critic_step, generator_step, stop, writer.on_step, drawing
            )
            writer.finish()
        _write_engine(
            run, critic_step.choice
        )  # another one where the start-up check refused the first
    if stopped:
        name = signal.Signals(stopped[0]).name
        say(
            f"{name}: saved {folder} at {state.images / 1000:g} kimg; `ganfast train --out {folder}` goes on"
        )
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
        make_critic_step(
            state.critic,
            c.loss,
            c.penalty,
            plan.autocast,
            c.engine,
            plan.compile,
            computing=twins[1],
        ),
        make_generator_step(
            state.generator, state.critic, c.loss, plan.autocast, plan.compile, twins
        ),
        make_drawing(state.generator, plan.autocast, plan.compile, twins[0]),
    )


def _write_engine(run: Run, choice: Choice) -> None:
    """What computed the critic's gradients in the end, for whoever compares runs."""
    record = {
        "engine": choice.engine,
        "compiled": choice.compiled,
        "reason": choice.reason,
        "torch": torch.__version__,
    }
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
