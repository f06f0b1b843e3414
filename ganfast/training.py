"""From a config to a finished run: prepare, resume or start, train, write what the run directory holds."""

import dataclasses
import json
import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from ganfast import checkpoint as checkpoints
from ganfast import configfile
from ganfast.config import Config
from ganfast.data.progress import progress_bar
from ganfast.ema import reestimate_batchnorm
from ganfast.engine import Choice, draw, make_critic_step, make_generator_step
from ganfast.errors import InputError, RunError
from ganfast.export.latents import latents
from ganfast.images import Pictures, comfortable_scale, grid, save_png
from ganfast.kernels.to_uint8 import to_uint8
from ganfast.log import RunLog, logger, say
from ganfast.loop import State, train_loop
from ganfast.plan import Plan, make_plan
from ganfast.run import Run

# Fields that may change when a run is resumed: they say where and how long, not what is computed.
_FREE = ("out", "kimg", "device", "data_root", "data", "compile", "cuda_graphs", "engine", "preset")
_SHEET = 64  # pictures in a sample grid, about


class Interrupted(Exception):
    """A signal ended the run; its state is saved."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


def train(config: Config, quiet: bool = False) -> Run:
    """Train a run to config.kimg, resuming what its directory already holds.

    Args:
        config: what to train; see `ganfast.presets.preset_config`.
        quiet: print nothing but warnings.

    Returns:
        The run.

    Raises:
        InputError: a config or data that cannot be used.
        RunError: the losses stopped being numbers; the run's last checkpoint is from before.
        Interrupted: SIGINT or SIGTERM came; the state was saved first.
    """
    with progress_bar() if not quiet else nullcontext() as packing:
        plan = make_plan(config, packing)
    config, folder, state = plan.config, plan.folder, plan.state
    run = _open_folder(plan)
    found = checkpoints.listed(run.checkpoint_folder)
    if found:
        modules, optimizers = _saved(state)
        state.images = checkpoints.load(found[-1], modules, optimizers)
    if _left(state, config):
        _write_record(run)
    if not quiet:
        say(f"data: {plan.pack.info.recognised}")
        say(plan.describe())
        if found:
            say(f"resuming {folder} at {state.images / 1000:g} kimg" + ("" if _left(state, config) else ": already complete"))
    if not found:
        _save_sheet(_sheet_of_reals(plan), folder / "samples" / "reals.png", config.size)
    if not _left(state, config):
        return run

    torch.backends.cudnn.allow_tf32 = config.precision != "fp32"  # fp32 means fp32; matrix products already do
    log = RunLog(folder, state.images, config.kimg * 1000, config.log.tensorboard, quiet)
    critic_step = make_critic_step(state.critic, config.loss, config.penalty, plan.autocast, config.engine, plan.compile)
    generator_step = make_generator_step(state.generator, state.critic, config.loss, plan.autocast, plan.compile)
    if not quiet:
        say(f"critic step: {critic_step.choice}")
    _write_engine(run, critic_step.choice)
    writer = Writer(plan, run, log)
    began, first = time.monotonic(), state.images
    try:
        with signals() as stopped:
            if not found:
                writer.samples()
            stop = lambda: bool(stopped)  # noqa: E731
            train_loop(state, plan.data, config, critic_step, generator_step, stop, writer.on_step, plan.autocast)
            writer.samples()
            writer.checkpoint()
        _write_engine(run, critic_step.choice)  # another one where the start-up check refused the first
    except torch.OutOfMemoryError as error:
        raise RunError(f"{plan.device} has no memory left at batch {config.batch}: lower --batch or --net.width") from error
    finally:
        log.close()
    if stopped:
        say(f"{signal.Signals(stopped[0]).name}: saved {folder} at {state.images / 1000:g} kimg; the same command goes on")
        raise Interrupted(stopped[0])
    if not quiet:
        seconds = time.monotonic() - began
        say(
            f"done: {state.images / 1000:g} kimg, {(state.images - first) / seconds:,.0f} img/s including samples and checkpoints, "
            f"{seconds:.0f} s\n  pictures  {folder}/samples\n  draw more ganfast sample {folder} -n 64 --grid grid.png"
        )
    return run


class Writer:
    """What a run writes while it trains: log lines, sample grids and checkpoints, each when due."""

    def __init__(self, plan: Plan, run: Run, log: RunLog) -> None:
        self.plan, self.run, self.log, c = plan, run, log, plan.config
        whole = c.kimg * 1000
        self.sample_every = c.log.sample_kimg * 1000 or whole / 20
        self.save_every = c.log.save_kimg * 1000 or whole / 10
        self.step_images = c.batch * c.optim.critic_steps

    def on_step(self, state: State, critic: dict[str, Tensor], generator: dict[str, Tensor]) -> None:
        self.log.progress.tick(state.images)
        c = self.plan.config
        step = state.images // self.step_images
        finished = state.images >= c.kimg * 1000
        # A lazy penalty is due in one of so many steps: the line is that of the step that has it, by the counter alone.
        wait = -(-c.penalty.interval // c.optim.critic_steps) if c.penalty.active else 1
        if finished or (step % c.log.every < wait and ("penalty" in critic or wait == 1)):
            named = {f"critic/{k}": v for k, v in critic.items()} | {f"generator/{k}": v for k, v in generator.items()}
            record = self.log.step(state.images, named)
            _refuse_non_finite(record, self.run)
        if self._crossed(state.images, self.sample_every):
            self.samples()
        if self._crossed(state.images, self.save_every):
            self.checkpoint()

    def _crossed(self, images: int, every: float) -> bool:
        return images // every != (images - self.step_images) // every

    def samples(self) -> None:
        """A grid from latents that stay the same throughout the run, classes in columns."""
        path = self.run.folder / "samples" / f"{self.plan.state.images:09d}.png"
        with self._apart():
            sheet = self._sheet()
            _save_sheet(sheet, path, self.plan.config.size)
            self.log.picture(self.plan.state.images, sheet)

    def checkpoint(self) -> None:
        state, config = self.plan.state, self.plan.config
        with self._apart():
            _refuse_non_finite_weights(state, self.run)
            self._fit_average()
            modules, optimizers = _saved(state)
            checkpoints.save(self.run.checkpoint_folder, state.images, modules, optimizers)
            checkpoints.prune(self.run.checkpoint_folder, config.log.keep)

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
        classes = len(self.run.classes)
        reestimate_batchnorm(self.plan.state.average, c.seed, c.net.latent, classes)

    @contextmanager
    def _apart(self) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.log.pause(time.monotonic() - began)


def _save_sheet(sheet: Pictures, path: Path, size: int) -> None:
    """A training goes on where Pillow is missing, as in an un-installed checkout on a machine that has little more than torch."""
    try:
        save_png(sheet, path, comfortable_scale(size))
    except ImportError as error:
        logger.warning("%s is not written: %s; pip install Pillow", path.name, error)


def sheet_columns(classes: int) -> int:
    """Columns of a grid: one a class where they fit side by side, else 8."""
    return classes if 2 < classes <= 16 else 8


def _sheet_of_reals(plan: Plan) -> Pictures:
    pictures, _ = plan.data.batch(0, min(_SHEET, len(plan.pack.images)))
    return grid(to_uint8(pictures).cpu().numpy(), 8)


def _saved(state: State) -> tuple[dict[str, nn.Module], dict[str, torch.optim.Optimizer]]:
    modules = {"generator": state.generator, "critic": state.critic, "ema": state.average}
    return modules, {"generator": state.optimizer_generator, "critic": state.optimizer_critic}


def _left(state: State, config: Config) -> bool:
    return state.images < config.kimg * 1000


def _open_folder(plan: Plan) -> Run:
    """The run that lives, or will live, in the folder; nothing is written.

    Raises:
        InputError: the folder holds another run with checkpoints, or something else.
    """
    config, folder = plan.config, plan.folder
    run = Run(folder, config, dataclasses.asdict(plan.pack.info))
    if (folder / "config.yaml").exists():
        if not checkpoints.listed(run.checkpoint_folder):
            return run  # it failed before its first checkpoint: nothing to lose
        old = Run.open(folder)
        changed = {
            name: values for name, values in configfile.differences(old.config, config).items()
            if name not in _FREE and not name.startswith("log.")
        }  # fmt: skip
        if changed:
            listed = "; ".join(f"{name} was {before!r}, now {now!r}" for name, (before, now) in changed.items())
            raise InputError(f"{folder} holds another run ({listed}); give those values, or another --out")
        if old.data["source_hash"] != plan.pack.info.source_hash:
            raise InputError(f"{folder} was trained on other pictures than {config.data} holds now; give those, or another --out")
        if old.config.kimg != config.kimg and config.optim.decay_from < 1:
            logger.warning("kimg was %g, now %g: learning rates fall towards the new end", old.config.kimg, config.kimg)
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and is not a run directory; choose another --out")
    return run


def _write_record(run: Run) -> None:
    """The run directory with its config and the manifest of its pictures."""
    try:
        (run.folder / "samples").mkdir(parents=True, exist_ok=True)
        manifest = run.folder / "data.json.part"
        manifest.write_text(json.dumps(run.data, indent=1, ensure_ascii=False) + "\n")
        manifest.replace(run.folder / "data.json")
        configfile.write(run.config, run.folder / "config.yaml")
    except OSError as error:
        raise InputError(f"{run.folder} cannot be written: {error.strerror or error}; choose another --out") from error


def _write_engine(run: Run, choice: Choice) -> None:
    """What computed the critic's gradients in the end, for whoever compares runs."""
    record = {"engine": choice.engine, "compiled": choice.compiled, "reason": choice.reason, "torch": torch.__version__}
    (run.folder / "engine.json").write_text(json.dumps(record, indent=1) + "\n")


def _refuse_non_finite_weights(state: State, run: Run) -> None:
    """Between two log lines a step may go wrong: what is saved must be worth resuming."""
    for net, parameters in (("generator", state.generator.named_parameters()), ("critic", state.critic.named_parameters())):
        for name, parameter in parameters:
            if not bool(torch.isfinite(parameter).all()):
                raise _not_a_number(f"{name} of the {net}", state.images, run)


def _refuse_non_finite(record: dict[str, Any], run: Run) -> None:
    for name, value in record.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise _not_a_number(name, record["images"], run)


def _not_a_number(what: str, images: int, run: Run) -> RunError:
    return RunError(
        f"{what} is not a finite number at {images / 1000:g} kimg; checkpoints in {run.checkpoint_folder} are from before; "
        "lower --optim.lr-critic or --optim.lr-generator and train into another --out"
    )


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
