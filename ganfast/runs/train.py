"""From a config to a finished run: prepare, resume or start, train, write the run directory."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from ganfast import configfile, disk
from ganfast.config import Config, run_folder
from ganfast.data.manifest import verified_beside
from ganfast.data.progress import progress_bar
from ganfast.device import set_libraries
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
from ganfast.fields import parts_of
from ganfast.host import usable_threads
from ganfast.log import logger, say
from ganfast.outside import read_json
from ganfast.presets import preset_config
from ganfast.runs import checkpoint as checkpoints
from ganfast.runs import resume
from ganfast.runs.logfile import RunLog
from ganfast.runs.run import Run
from ganfast.runs.saving import insist, tidy
from ganfast.runs.together import Together, begin, plan_together, record, share_engine
from ganfast.runs.writer import Writer, save_sheet, sheet_of_reals, unfinished
from ganfast.training.host_memory import keep_freed_memory
from ganfast.training.loop import train_loop
from ganfast.training.memory import batch_that_fits
from ganfast.training.plan import Plan
from ganfast.training.ranks import Ranks, joined, synchronise_batch_norm
from ganfast.training.state import restore


class Interrupted(Exception):
    """A signal ended the run; its state is saved."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


def _as_recorded(config: Config) -> Config:
    """A run that is there keeps its length and whether it augments, whatever this version would
    choose for its pictures."""
    folder, automatic = run_folder(config), config.augment == "auto"
    if (config.kimg and not automatic) or not (folder / "config.yaml").exists():
        return config
    recorded = configfile.read(folder / "config.yaml")
    augment = recorded.augment if automatic else config.augment
    return replace(config, kimg=config.kimg or recorded.kimg, augment=augment)


def train(
    config: Config | str,
    quiet: bool = False,
    checkpoint: str = "",
    fork_of: str | Path = "",
    force: bool = False,
    **fields: Any,
) -> Run:
    """Train a run to config.kimg, resuming what its directory already holds.

    In a container it lowers torch's threads, those of the whole process, to what the quota pays
    for; OMP_NUM_THREADS sets another number.
    In a process that torchrun started it is one rank of several, see `ganfast.training.ranks`.

    Args:
        config: what to train, or the name of a preset.
        quiet: print nothing but warnings.
        checkpoint: where to go on, by images shown, or "best"; "" = the newest. Later checkpoints
            are set aside.
        fork_of: a run directory; config.out becomes a new run that begins from its checkpoint.
        force: go on although the config changes what is computed; history.jsonl records it.
        fields: other values than those of ``config``, as `Config.replace` takes them; with the name
            of a preset also ``data``.

    Returns:
        The run.

    Raises:
        InputError: a config or data that cannot be used; no memory for it, no space, no permission.
        RunError: the training diverged again and again, or a checkpoint could not be written; the
            last one is whole. Or another rank is gone.
        Interrupted: SIGINT, SIGTERM or SIGHUP came; the state was saved first.
    """
    made = preset_config(config, **fields) if isinstance(config, str) else config.replace(**fields)
    config = _as_recorded(made)
    with joined(config.device) as ranks:
        return _joined(ranks, config, quiet or not ranks.first, checkpoint, fork_of, force)


def _joined(
    ranks: Ranks, config: Config, quiet: bool, checkpoint: str, fork_of: str | Path, force: bool
) -> Run:
    parent = None
    if fork_of and ranks.first:
        parent = Run.open(fork_of)
        resume.refuse_as_fork(run_folder(config))
    try:
        with progress_bar() if not quiet else nullcontext() as packing:
            plan = plan_together(ranks, config, packing, fork_of)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(
            "networks and pictures do not fit into memory: lower --net.width or --size"
        ) from error
    if plan.device.type == "cpu":
        keep_freed_memory()
    if "OMP_NUM_THREADS" not in os.environ:  # torch knows affinity, but no container's quota
        torch.set_num_threads(min(torch.get_num_threads(), usable_threads()))
    if parent:
        message = resume.fork(plan, parent, checkpoint)
        if not quiet:
            say(message)
    with ExitStack() as held:
        if ranks.first:
            resume.hold(plan.folder, held)
        try:
            return _train(plan, quiet, "" if parent else checkpoint, force, ranks)
        except OSError as error:
            go_on = f"`ganfast train --out {plan.folder}` goes on from the newest checkpoint"
            raise cannot_write(plan.folder, error, f"mend that, and {go_on}") from error
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            detail = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            logger.warning("out of memory: %s", detail)
            if ranks.together:  # the others wait, so that nothing can be tried
                raise InputError(_more_parts(plan, ranks)) from error
    # Raised out here: inside, the error above would keep alive what the step had in memory.
    raise InputError(_smaller_batch(plan))


def _more_parts(plan: Plan, ranks: Ranks) -> str:
    c = plan.config
    return (
        f"rank {ranks.rank}: {plan.device} has no memory left at "
        f"{c.batch // ranks.size // c.accumulate} pictures of batch {c.batch} at a time: "
        "give a higher --accumulate, more ranks or a lower --batch"
    )


def _smaller_batch(plan: Plan) -> str:
    batch, parts = batch_that_fits(plan, make_steps), plan.config.accumulate
    message = f"{plan.device} has no memory left at batch {plan.config.batch}"
    if not batch:
        least = "2" if parts == 1 else "2 in each part"
        return f"{message}, nor would it have at {least}: lower --net.width or --size"
    how = "would fit by the bytes counted for a picture"
    if plan.device.type == "cuda":
        how = "was tried and fits"
    way_out = f"give --batch {batch}"
    if checkpoints.listed(plan.folder / "checkpoints"):
        way_out += " with --force or --fork NEWDIR, as it changes what the run computes"
    if plan.config.batch % batch == 0:
        parts *= plan.config.batch // batch
        way_out += f"; or --accumulate {parts}, which changes no more than rounding and batch norm"
    return f"{message}; {batch} {how}: {way_out}"


def _train(plan: Plan, quiet: bool, checkpoint: str, force: bool, ranks: Ranks) -> Run:
    """Start the run of a locked folder, or go on with it, and train it to its end."""
    config, folder, state = plan.config, plan.folder, plan.state
    run, resumed = Run(folder, config, asdict(plan.pack.info)), None
    if ranks.first:
        run, changed = resume.open_folder(plan, force)
        resumed = resume.find(run, checkpoint, force)
    if resumed:
        plan = replace(plan, computed=resumed.record.computed or _engine_before(run))
        restore(state, resumed.contents, resumed.record.images, str(resumed.path))
    plan = begin(ranks, plan)
    complete = not unfinished(state, config)
    scorer = None
    if not complete and ranks.first:
        if config.score.every_kimg:  # made before anything is written, as it may refuse the config
            scorer = Scorer(config, plan.pack.info, plan.device)
        if resumed:
            resume.go_on_from(run, resumed, changed)
        resume.write_record(run)
        record(run, plan, ranks)
    if not quiet:
        say(f"data: {plan.pack.info.recognised}")
        say(plan.describe())
        if resumed:
            end = f": already complete; {resume.way_on(plan)}" if complete else ""
            say(f"resuming {folder} at {state.images / 1000:g} kimg{end}")
    if not resumed and ranks.first:
        save_sheet(sheet_of_reals(plan), folder / "samples" / "reals.png", config.size)
    if complete:
        if ranks.first:  # what the last save could not remove goes now
            tidy(run.checkpoint_folder, Run.open(folder).config.log.keep)
        return run
    began, first = time.monotonic(), state.images
    stopped = _train_on(plan, run, scorer, resumed, quiet, ranks)
    reached = f"{state.images / 1000:g} kimg"
    if stopped:
        name = signal.Signals(stopped[0]).name
        if ranks.first:
            say(f"{name}: saved {folder} at {reached}; `ganfast train --out {folder}` goes on")
        raise Interrupted(stopped[0])
    if not quiet:
        seconds = time.monotonic() - began
        speed = f"{(state.images - first) / seconds:,.0f} img/s"
        more = f"  draw more ganfast sample {folder} -n 64 --grid grid.png"
        say(
            f"done: {reached}, {speed} including samples and checkpoints, {seconds:.0f} s\n"
            f"  pictures  {folder}/samples\n"
            + (f"  score     ganfast eval {folder}" if plan.task else more)
        )
    return run


def _train_on(
    plan: Plan,
    run: Run,
    scorer: Scorer | None,
    resumed: checkpoints.Loaded | None,
    quiet: bool,
    ranks: Ranks,
) -> list[int]:
    """Train from the state of the plan to its end, or to a signal; returns the signals received."""
    config, state = plan.config, plan.state
    set_libraries(plan.device, config.precision)
    with ExitStack() as held:
        if plan.compile and plan.device.type == "cpu" and not quiet:
            say("compiling the steps, which takes half a minute or so; --compile off does without")
        if ranks.together and config.sync_batchnorm:
            synchronise_batch_norm(state)
        critic, generator, drawing = make_steps(plan)
        critic.insists = config.engine != "auto"
        pictures, labels = plan.batch(parts_of(config.batch, config.accumulate, ranks.size))
        critic.prepare(pictures, labels, plan.conditions(pictures)[1])
        share_engine(ranks, critic)
        writer = None
        if ranks.first:
            writer = _writer(plan, run, scorer, resumed, quiet, critic, held)
        with signals() as received:
            together = Together(ranks, plan, writer, received)
            stopped = together.stopped
            if writer is not None and not resumed:
                writer.samples()
            if ranks.together:  # the first exchange of the steps may be one that is not patient
                ranks.most(0.0, patient=True)
            how = critic, generator, lambda: bool(stopped), together.on_step, drawing
            train_loop(state, plan.data, config, *how, ranks)
            together.finish()
        # The start-up check may have refused the first choice.
        if ranks.first:
            _write_engine(run, _choice(plan, critic))
    return stopped


def _writer(
    plan: Plan,
    run: Run,
    scorer: Scorer | None,
    resumed: checkpoints.Loaded | None,
    quiet: bool,
    critic: CriticStep,
    held: ExitStack,
) -> Writer:
    """What writes a run, until ``held`` ends; it says how the critic is computed."""
    verdict = verified_beside(plan.pack)  # beside the first steps
    position = resumed.record.log_lines if resumed else None
    target, events = plan.config.kimg * 1000, plan.config.log.tensorboard
    log = RunLog(run.folder, plan.state.images, target, events, quiet, position)
    held.callback(log.close)
    if not quiet:
        say(f"critic step: {_choice(plan, critic)}")
    _write_engine(run, _choice(plan, critic))

    def computed() -> dict[str, Any]:
        return {"engine": critic.choice.engine, "compile": plan.compile}

    writer = Writer(plan, run, log, scorer, computed, verdict)
    held.callback(writer.close)
    return writer


def make_steps(plan: Plan) -> tuple[CriticStep, GeneratorStep, Drawing]:
    """What the phases of a training call, over the networks of the plan."""
    state, c = plan.state, plan.config
    autocast, compiled = plan.autocast, plan.compile
    twins = state.optimizer_generator.computing, state.optimizer_critic.computing
    optimizers = state.optimizer_generator, state.optimizer_critic
    scales = [None if it.scale is None else it.scale.value for it in optimizers]
    # Ranks whose batch norms wait for each other must call the critic equally often.
    options: dict[str, Any] = {"computing": twins[1], "scale": scales[1]}
    options["check"] = not c.sync_batchnorm
    critic = make_critic_step(
        state.critic, c.loss, c.penalty, autocast, plan.engine, compiled, **options
    )
    options = {"computing": twins, "scale": scales[0]}
    generator = make_generator_step(
        state.generator, state.critic, c.loss, autocast, compiled, **options
    )
    return critic, generator, make_drawing(state.generator, autocast, compiled, twins[0])


def _engine_before(run: Run) -> dict[str, Any]:
    """What engine.json says of a run whose checkpoints do not; {} = nothing."""
    try:
        said = read_json(run.folder / "engine.json")
        return {"engine": said["engine"], "compile": said["compiled"]}
    except (InputError, KeyError, TypeError):
        return {}


def _choice(plan: Plan, critic: CriticStep) -> Choice:
    """The engine, and why; a run keeps the one that it began with."""
    choice = critic.choice
    if plan.engine == plan.config.engine or plan.engine != choice.engine:
        return choice
    return replace(choice, reason="as the run was computed so far")


def _write_engine(run: Run, choice: Choice) -> None:
    """Record what computed the critic's gradients in the end: runs are compared by it."""
    record = {"engine": choice.engine, "compiled": choice.compiled, "reason": choice.reason}
    record |= {"torch": torch.__version__}
    data = (json.dumps(record, indent=1) + "\n").encode()
    insist("engine.json", lambda: disk.replace_file(run.folder / "engine.json", data))


@contextmanager
def signals() -> Iterator[list[int]]:
    """Collects SIGINT, SIGTERM and SIGHUP: the first is only noted, a second one ends the process.

    SIGHUP, which a lost terminal sends, stays ignored where it was (`nohup`).
    """
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if received:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        received.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield received  # only the main thread may install handlers
        return
    numbers = [signal.SIGINT, signal.SIGTERM]
    hang_up = getattr(signal, "SIGHUP", None)  # not on Windows
    if hang_up and signal.getsignal(hang_up) is not signal.SIG_IGN:
        numbers.append(hang_up)
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
