"""A run for a number of minutes: planned once from measured steps, into plain numbers.

The steps are made on networks that are thrown away. The clock plays no part in the run itself.
"""

import math
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ganfast.config import Config
from ganfast.data.lookup import recognise
from ganfast.data.pack import Pack, PackInfo
from ganfast.device import set_libraries
from ganfast.errors import InputError
from ganfast.evaluate.during import Scorer
from ganfast.models import largest_side
from ganfast.models.parts import fits
from ganfast.presets import winner
from ganfast.runs.logfile import RunLog
from ganfast.runs.run import Run
from ganfast.runs.train import make_steps
from ganfast.runs.writer import Writer
from ganfast.training.host_memory import keep_freed_memory
from ganfast.training.loop import train_loop
from ganfast.training.plan import PackingProgress, make_plan, own_length
from ganfast.training.state import State

Clock = Callable[[], float]
# Shares of the time for measured steps: at the smallest size, and at the size of the run. The
# second is spent again for wider networks, and for compiled ones.
_ROUGH, _STEPS = 0.01, 0.013
# Two choices that no training was made to set. `dcgan` drew faces at 64x64 after 128 kimg.
_ENOUGH = 100.0  # kimg that a size must be shown, unless it is the smallest
_WIDER = 4.0  # times the suited length, from which on the networks are twice as wide


class Speed(NamedTuple):
    """Seconds that the parts of a run take."""

    start: float  # until steps are steady: building, checking, compiling
    image: float  # of a real picture in all phases, with what is logged
    sheet: float = 0.0
    save: float = 0.0  # of a checkpoint, until it is on disk
    score: float = 0.0

    def seconds(self, config: Config, kimg: float) -> float:
        """Of a whole run of ``kimg``; linear in it."""
        log, every = config.log, config.score.every_kimg
        sheets = 3 + (kimg / log.sample_kimg if log.sample_kimg else 20)  # 3: reals, first, last
        saves = 1 + (kimg / log.save_kimg if log.save_kimg else 10)
        scores = 1 + kimg / every if every else 0
        events = sheets * self.sheet + saves * self.save + scores * self.score
        return self.start + 1000 * kimg * self.image + events

    def kimg(self, config: Config, seconds: float) -> float:
        """The length that takes so long; below 0 where not even the start does."""
        once = self.seconds(config, 0)
        return (seconds - once) / (self.seconds(config, 1) - once)

    def told(self, config: Config) -> str:
        scoring = f", {self.score:.1f} s a scoring" if config.score.every_kimg else ""
        return (
            f"{1 / self.image:,.0f} img/s, {self.start:.1f} s to start, "
            f"{self.sheet:.2f} s a sheet, {self.save:.2f} s a checkpoint{scoring}"
        )


def budgeted(
    config: Config,
    minutes: float,
    began: float,
    progress: PackingProgress | None = None,
    now: Clock = time.monotonic,
) -> tuple[Config, str]:
    """The config of a run that ends ``minutes`` after ``began``, and why it is so.

    Size and width are chosen where they are 0, the length always.

    Args:
        config: of `ganfast.presets.budget_config` with the user's values over it.
        began: by the clock ``now``, seconds.
        progress: of packing.

    Returns:
        The config, and some lines for a person.

    Raises:
        InputError: anything that `make_plan` refuses, or no time for one kimg.
    """
    end, total, size_why = began + 60 * minutes, 60 * minutes, "as given"
    if not config.size:
        size, size_why = _size(config, total, now)
        config = replace(config, size=size)
    plan = make_plan(replace(config, kimg=1.0), progress)  # too short to be compiled on a CPU
    free = not config.net.width
    width_why = "the device's default" if free else "as given"
    # With channels known the pack would be another one.
    config, info = replace(plan.config, channels=config.channels), plan.pack.info
    speed = _measured(config, total * _STEPS, now)
    kimg = speed.kimg(config, end - now())
    suited = own_length(config.preset, info)
    if free and kimg >= _WIDER * suited:
        width_why = f"twice the default, as {kimg:.0f} kimg are many beside {suited:g}"
        config = replace(config, net=replace(config.net, width=2 * config.net.width))
        speed = _measured(config, total * _STEPS, now)
        kimg = speed.kimg(config, end - now())
    long = make_plan(replace(config, kimg=max(1.0, kimg)), pack=plan.pack)
    if long.compile and not plan.compile:
        speed = _measured(long.config, total * _STEPS, now)
        kimg = speed.kimg(config, end - now())
    if kimg < 1:
        least = (now() - began + speed.seconds(config, 1)) / 60
        raise InputError(
            f"--minutes {minutes:g} is too short for one kimg of {config.preset} at "
            f"{config.size}x{config.size}: give --minutes {math.ceil(11 * least) / 10:g} or more, "
            "or a smaller --size or --net.width"
        )
    # A task begins without its critic, which then needs most of the time.
    alone = min(config.loss.pixel_only_kimg, float(f"{kimg / 4:.2g}"))
    loss = replace(config.loss, pixel_only_kimg=alone)
    config = replace(config, kimg=_rounded_down(kimg), loss=loss)
    over = f"planned for {minutes:g} minutes, {now() - began:.0f} s of which are over:"
    preset_why = _preset_why(config, info.channels, minutes)
    return config, "\n".join(
        (
            over,
            f"  preset {config.preset}, {preset_why}",
            f"  size   {config.size}, {size_why}",
            f"  width  {config.net.width}, {width_why}; batch {config.batch}",
            f"  length {config.kimg:g} kimg, every picture {1000 * config.kimg / info.count:.3g} "
            f"times: measured {speed.told(config)}",
        )
    )


def _preset_why(config: Config, channels: int, minutes: float) -> str:
    row = winner(config.data, channels, minutes)
    if config.preset != row.preset:
        return "as given"
    return f"of least Frechet distance after {row.minutes:g} minutes of {row.data} ({row.record})"


def sizes(model: str, side: int) -> list[int]:
    """Sides to choose from, rising: powers of two from 32 on that the pictures have, and their own
    where it can be halved down to 4 to 7; 16 where the pictures have less.

    A model of the user's own is tried at the pictures' own side alone, up to 64.
    """
    if ":" in model:
        return [min(side, 64)]
    most = min(side, largest_side(model))
    own = {most} if most >= 16 and fits(most) else set()
    return sorted({size for size in (32, 64, 128, 256) if size <= most} | own) or [16]


def _size(config: Config, total: float, now: Clock) -> tuple[int, str]:
    """The largest of `sizes` at which the time is enough, judged by steps at the smallest.

    A step takes time in proportion to the pixels of its pictures, at most.
    """
    source = recognise(config.data, config.data_root or None)
    channels, side = source.looked_at()
    smallest, *larger = sizes(config.model, side)
    if not larger:
        return smallest, f"the only one for pictures of side {side}"
    shape = 2 * config.batch, config.channels or channels, smallest, smallest
    # Blank pictures of two classes: what they show costs no time, and none need be packed.
    named = source.name, source.kind, "", shape[0], shape[1], smallest
    info = PackInfo(*named, ("a", "b"), source.flip, "all", (), "", "")
    blank = Pack(np.zeros(shape, np.uint8), np.arange(shape[0]) % 2, info)
    plain = replace(config, size=smallest, imbalance=0.0, balanced=False, kimg=1.0)
    speed = _measured(plain, total * _ROUGH, now, blank, scored=False)
    for size in reversed(larger):
        slower = speed._replace(image=speed.image * (size / smallest) ** 2)
        if slower.kimg(config, total) >= _ENOUGH:
            return size, f"the largest up to the pictures' {side} that gets {_ENOUGH:g} kimg"
    return smallest, f"as a larger one would not get {_ENOUGH:g} kimg"


def _rounded_down(kimg: float) -> float:
    """To three digits."""
    digit = 10.0 ** (math.floor(math.log10(kimg)) - 2)
    return round(math.floor(kimg / digit) * digit, 2)


def _measured(
    config: Config, seconds: float, now: Clock, pack: Pack | None = None, scored: bool = True
) -> Speed:
    """Train networks of their own for some ``seconds``, in a folder that goes.

    Building, steps, log, sheet and checkpoint are those of a run. At least two steps are made.
    """
    began = now()
    marks: list[tuple[int, float]] = []  # images, and when they were done
    plan = make_plan(config, pack=pack)
    state, device = plan.state, plan.device
    set_libraries(device, plan.config.precision)
    if device.type == "cpu":
        keep_freed_memory()
    critic, generator, drawing = make_steps(plan)
    log = replace(config.log, sample_kimg=0.0, save_kimg=0.0)
    # Steps without the critic, as a task begins with, take less time: the run ends early by that.
    loss = replace(plan.config.loss, pixel_only_kimg=0.0)
    endless = replace(plan, config=replace(plan.config, log=log, loss=loss, kimg=1e9))
    # Behind the captures of a GPU, whose second look is at twice as many steps, and so on: between
    # two looks nothing waits for the device.
    first = (8 if device.type == "cuda" else 1) * config.batch * config.optim.critic_steps

    def on_step(state: State, *stats: dict[str, Tensor]) -> None:
        writer.on_step(state, *stats)
        if state.images == first * 2 ** len(marks):
            marks.append((state.images, finished()))

    def finished() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return now()

    def enough() -> bool:
        return len(marks) > 1 and marks[-1][1] - marks[0][1] >= seconds / 2

    def timed(part: Callable[[], object]) -> float:
        before = finished()
        part()
        return finished() - before

    def save() -> None:
        writer.checkpoint()
        writer.saver.flush()

    with tempfile.TemporaryDirectory(prefix="ganfast-") as folder, ExitStack() as held:
        scorer = None
        if scored and config.score.every_kimg:
            scorer = Scorer(plan.config, plan.pack.info, device)
        run = Run(Path(folder), endless.config, asdict(plan.pack.info))
        lines = RunLog(run.folder, 0, 1e12, config.log.tensorboard, quiet=True)
        held.callback(lines.close)
        verdict: Future[None] = Future()
        verdict.set_result(None)  # the run itself reads every picture of its pack
        writer = Writer(endless, run, lines, None, dict, verdict)
        held.callback(writer.close)
        train_loop(state, plan.data, endless.config, critic, generator, enough, on_step, drawing)
        (before, start), (images, end) = marks[0], marks[-1]
        return Speed(
            start - began,
            (end - start) / (images - before),
            timed(writer.samples),
            timed(save),
            timed(partial(scorer, state.average, 0)) if scorer else 0.0,
        )
