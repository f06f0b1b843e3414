"""From a config to a finished run: prepare, resume or start, train, write what the run directory holds."""

import dataclasses
import json
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from ganfast import checkpoint as checkpoints
from ganfast import configfile
from ganfast.config import Config
from ganfast.data.pack import Pack, open_data
from ganfast.data.resident import ResidentData
from ganfast.device import find_device, resolved
from ganfast.ema import reestimate_batchnorm
from ganfast.engine import make_critic_step, make_generator_step
from ganfast.errors import InputError, RunError
from ganfast.export.latents import latents
from ganfast.images import Pictures, comfortable_scale, grid, save_png
from ganfast.log import RunLog, logger, say
from ganfast.loop import State, train_loop
from ganfast.models import build_critic, build_generator
from ganfast.random import Purpose, scalar_seed
from ganfast.run import Run, net_spec

# Fields that may change when a run is resumed: they say where and how long, not what is computed.
_FREE = ("out", "kimg", "device", "data_root", "data", "compile", "preset")
_SHEET = 64  # pictures in a sample grid, about


class Interrupted(Exception):
    """A signal ended the run; its state is saved."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


@dataclass
class Plan:
    """A config made definite: what `train` runs and `--dry-run` prints."""

    config: Config  # nothing automatic left but the device
    folder: Path
    device: torch.device
    pack: Pack
    data: ResidentData
    state: State

    @property
    def autocast(self) -> torch.dtype | None:
        return torch.bfloat16 if self.config.precision == "bf16" else None


def run_folder(config: Config) -> Path:
    """Where a run goes: config.out, or runs/<preset>-<data>."""
    return Path(config.out or f"runs/{config.preset}-{Path(config.data.rstrip('/')).stem or 'data'}")


def make_plan(config: Config, progress: Any = None) -> Plan:
    """Open the data, build the networks and their optimizers; nothing is written.

    Raises:
        InputError: anything in the config that cannot be done with this data on this machine.
    """
    device = find_device(config.device)
    pack = open_data(
        config.data, size=config.size, channels=config.channels, attributes=config.attributes, root=config.data_root or None,
        progress=progress,
    )  # fmt: skip
    config = resolved(replace(config, size=pack.info.size, channels=pack.info.channels), device)
    config = _with_classes(config, pack)
    if config.batch > len(pack.images):
        raise InputError(f"batch is {config.batch}, but {pack.info.name} has only {len(pack.images)} pictures; set --batch lower")
    flip = pack.info.flip if config.flip == "auto" else config.flip == "on"
    data = ResidentData(pack, device, config.seed, flip, config.balanced, config.imbalance)

    spec = net_spec(config, dataclasses.asdict(pack.info))
    torch.manual_seed(scalar_seed(config.seed, Purpose.INIT, 0))
    generator, critic = build_generator(spec), build_critic(spec)
    _check_user_critic(critic, config, spec.size, spec.channels)
    generator, critic = (net.to(device, memory_format=torch.channels_last).train() for net in (generator, critic))
    return Plan(config, run_folder(config), device, pack, data, State.of(generator, critic, config))


def _with_classes(config: Config, pack: Pack) -> Config:
    wanted = config.conditional
    if wanted == "auto":
        wanted = "projection" if config.attributes or config.balanced or config.imbalance else "no"
    if wanted != "no" and not pack.info.classes:
        raise InputError(
            f"conditional is {wanted}, but {pack.info.name} has no classes; use sub-folders as classes, --attributes for celeba, "
            "or --conditional no"
        )
    return replace(config, conditional=wanted)


def _check_user_critic(critic: nn.Module, config: Config, size: int, channels: int) -> None:
    norms = [name for name, m in critic.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if norms and config.penalty.active:
        raise InputError(
            f"layer {norms[0]} of the critic is a batch norm: with penalty {config.penalty.kind} its gradient mixes samples; "
            "use GroupNorm, LayerNorm, InstanceNorm or spectral normalisation, or --penalty.kind none"
        )


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
    plan = make_plan(config, None if quiet else _packing_progress)
    config, folder, state = plan.config, plan.folder, plan.state
    run = _open_folder(plan)
    found = checkpoints.listed(run.checkpoint_folder)
    if found:
        modules, optimizers = _saved(state)
        state.images = checkpoints.load(found[-1], modules, optimizers)
    if not quiet:
        say(plan.pack.info.recognised)
        say(describe(plan))
        if found:
            say(f"resuming {folder} at {state.images / 1000:g} kimg" + ("" if _left(state, config) else ": already complete"))
    if not found:
        save_png(_sheet_of_reals(plan), folder / "samples" / "reals.png", comfortable_scale(config.size))
    if not _left(state, config):
        return run

    log = RunLog(folder, state.images, config.kimg * 1000, config.log.tensorboard)
    critic_step = make_critic_step(state.critic, config.loss, config.penalty, plan.autocast)
    generator_step = make_generator_step(state.generator, state.critic, config.loss, plan.autocast)
    if config.compile:
        critic_step, generator_step = _compiled(critic_step, generator_step, config)
    writer = Writer(plan, run, log)
    began, first = time.monotonic(), state.images
    try:
        with signals() as stopped:
            if not found:
                writer.samples()
            train_loop(
                state, plan.data, config, critic_step, generator_step, lambda: bool(stopped), writer.on_step, plan.autocast
            )
            writer.samples()
            writer.checkpoint()
    finally:
        log.close()
    if stopped:
        say(f"{signal.Signals(stopped[0]).name}: saved {folder} at {state.images / 1000:g} kimg; the same command goes on from there")
        raise Interrupted(stopped[0])
    if not quiet:
        seconds = time.monotonic() - began
        say(
            f"done: {state.images / 1000:g} kimg, {(state.images - first) / seconds:,.0f} img/s including samples and checkpoints, "
            f"{seconds:.0f} s\n  pictures  {folder}/samples\n  draw more ganfast sample {folder} -n 64 --grid grid.png"
        )
    return run


def describe(plan: Plan) -> str:
    """One line on what is about to run."""
    c = plan.config
    classes = {"no": "", "projection": f", {plan.data.classes} classes by projection", "auxiliary": f", {plan.data.classes} classes by class head"}
    flip = ", mirrored" if plan.data.flip else ""
    return (
        f"{c.preset} at {c.size}x{c.size}x{c.channels}{classes[c.conditional]}{flip} on {plan.device}, {c.precision}, "
        f"batch {c.batch}, {c.kimg:g} kimg -> {plan.folder}"
    )


class Writer:
    """What a run writes while it trains: log lines, sample grids and checkpoints, each when due."""

    def __init__(self, plan: Plan, run: Run, log: RunLog) -> None:
        self.plan, self.run, self.log, c = plan, run, log, plan.config
        whole = c.kimg * 1000
        self.sample_every = c.log.sample_kimg * 1000 or whole / 20
        self.save_every = c.log.save_kimg * 1000 or whole / 10
        self.step_images = c.batch * c.optim.critic_steps

    def on_step(self, state: State, critic: dict[str, Tensor], generator: dict[str, Tensor]) -> None:
        if state.images // self.step_images % self.plan.config.log.every == 0:
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
            save_png(sheet, path, comfortable_scale(self.plan.config.size))
            self.log.picture(self.plan.state.images, sheet)

    def checkpoint(self) -> None:
        state, config = self.plan.state, self.plan.config
        with self._apart():
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
        from ganfast.engine import draw
        from ganfast.kernels.to_uint8 import to_uint8_reference

        with torch.no_grad():
            return grid(to_uint8_reference(draw(self.plan.state.average, z, labels)).cpu().numpy(), columns)

    def _fit_average(self) -> None:
        c = self.plan.config
        classes = len(self.run.classes)
        reestimate_batchnorm(self.plan.state.average, c.seed, c.net.latent, classes)

    @contextmanager
    def _apart(self) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.log.pause(time.monotonic() - began)


def sheet_columns(classes: int) -> int:
    """Columns of a grid: one a class where they fit side by side, else 8."""
    return classes if 2 < classes <= 16 else 8


def _sheet_of_reals(plan: Plan) -> Pictures:
    pictures, _ = plan.data.batch(0, min(_SHEET, len(plan.pack.images)))
    from ganfast.kernels.to_uint8 import to_uint8_reference

    return grid(to_uint8_reference(pictures).cpu().numpy(), 8)


def _saved(state: State) -> tuple[dict[str, nn.Module], dict[str, torch.optim.Optimizer]]:
    modules = {"generator": state.generator, "critic": state.critic, "ema": state.average}
    return modules, {"generator": state.optimizer_generator, "critic": state.optimizer_critic}


def _left(state: State, config: Config) -> bool:
    return state.images < config.kimg * 1000


def _open_folder(plan: Plan) -> Run:
    """Make the run directory, or check that the one there is this run's."""
    config, folder = plan.config, plan.folder
    if (folder / "config.yaml").exists():
        old = configfile.read(folder / "config.yaml")
        changed = {
            name: values for name, values in configfile.differences(old, config).items()
            if name not in _FREE and not name.startswith("log.")
        }  # fmt: skip
        if changed:
            listed = "; ".join(f"{name} was {old!r}, now {new!r}" for name, (old, new) in changed.items())
            raise InputError(f"{folder} holds another run ({listed}); give those values, or another --out")
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and is not a run directory; choose another --out")
    try:
        (folder / "samples").mkdir(parents=True, exist_ok=True)
        configfile.write(config, folder / "config.yaml")
        manifest = dataclasses.asdict(plan.pack.info)
        (folder / "data.json").write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror or error}; choose another --out") from error
    return Run(folder, config, manifest)


def _refuse_non_finite(record: dict[str, Any], run: Run) -> None:
    bad = [name for name, value in record.items() if isinstance(value, float) and value != value]
    if bad:
        raise RunError(
            f"{bad[0]} is not a number at {record['images'] / 1000:g} kimg; the last checkpoint in {run.checkpoint_folder} is from "
            "before; lower --optim.lr-critic or --optim.lr-generator"
        )


def _packing_progress(what: str, done: int, total: int) -> None:
    if total >= 5000 and (done == total or done % max(1, total // 10) == 0):
        say(f"{what}: {done:,}/{total:,}")


def _compiled(critic_step: Any, generator_step: Any, config: Config) -> tuple[Any, Any]:
    """torch.compile of the steps' networks. A penalised critic stays eager: torch refuses to differentiate compiled code twice."""
    raise NotImplementedError


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
