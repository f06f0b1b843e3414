"""What a run reports while it trains: JSON lines, TensorBoard events, and progress for a person."""

import json
import math
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ganfast import disk
from ganfast.log import Lasting, logger, say
from ganfast.outside import parse_json, plain_file, reading

_SHOWN = {  # name in log.jsonl -> what the progress line calls it
    "critic/loss": "critic",
    "generator/loss": "generator",
    "critic/wasserstein": "W",
    "critic/gradient_norm": "|grad|",
    "critic/class_accuracy": "class",
}
_LONGEST = 1 << 30  # bytes of a log, which is read whole: some three million lines
_PLAIN_SECONDS = 10.0  # between two lines where the output is no terminal


class JsonLines:
    """log.jsonl: one object a line. Opening it drops the lines of steps that will be done again.

    Args:
        images: reals that the run has shown; later lines go.
        position: lines that the log had then, where the checkpoint says so; all others go.
    """

    _failed = False  # whether the last write failed

    def __init__(self, path: Path, images: int, position: int | None = None) -> None:
        lines, rest = split_log(path, images, position)
        cut_off = lines and not path.read_bytes().endswith(b"\n")  # a crash, just before the end
        if rest or cut_off:
            disk.replace_file(path, "".join(line + "\n" for line in lines).encode())
        self._count, self._path, self._file = len(lines), path, disk.Appended(path)

    def write(self, record: dict[str, Any]) -> None:
        """Add a line. One that cannot be written is reported, and tried again with the next."""
        self._count += 1
        try:
            self._file.add((json.dumps({k: _plain(v) for k, v in record.items()}) + "\n").encode())
            self._failed = False
        except OSError as error:
            if not self._failed:
                self._warn(error, "its lines wait for the next try")
            self._failed = True

    def position(self) -> int:
        """Lines written so far: unlike bytes, which times lengthen, the same in equal runs."""
        return self._count

    def sync(self) -> None:
        """Wait until every line is on disk; after an OSError a later call tries again."""
        self._file.sync()
        self._failed = False

    def close(self) -> None:
        """Close the file; a warning tells of lines that are lost.

        No checkpoint counts on these lines, because saving one syncs.
        """
        try:
            self._file.close()
        except OSError as error:
            self._warn(error, "its last lines are lost")

    def _warn(self, error: OSError, what_now: str) -> None:
        detail = error.strerror or error
        logger.warning("%s cannot be written: %s; %s", self._path, detail, what_now)


def log_lines(path: Path) -> list[str]:
    """The lines of a log.jsonl; none where there is no such file.

    Raises:
        InputError: it is no regular file, is too long for memory, or cannot be read.
    """
    if not path.exists():
        return []
    with reading(path):
        return plain_file(path, _LONGEST).decode(errors="replace").splitlines()


def split_log(
    path: Path, images: float, position: int | None = None
) -> tuple[list[str], list[str]]:
    """The lines of a log up to a checkpoint, and the others; see `JsonLines`."""
    before: list[str] = []
    after: list[str] = []
    for line in log_lines(path):
        # Damaged lines have no counter, and are none of those that were counted.
        is_before = (position is None or len(before) < position) and images_of(line) <= images
        (before if is_before else after).append(line)
    return before, after


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a log.jsonl; a line that is damaged, or cut off by a crash, is left out."""
    records = []
    for line in log_lines(path):
        with suppress(ValueError):
            if isinstance(record := parse_json(line), dict):
                records.append(record)
    return records


def images_of(line: str) -> float:
    """The counter of a line; infinite where it has none."""
    try:
        return float(parse_json(line)["images"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else str(value)
    return value


@contextmanager
def _heard_later() -> Iterator[None]:
    """TensorBoard's thread prints nothing of a full disk: its next call raises the same error."""
    before = threading.excepthook

    def hook(failed: threading.ExceptHookArgs) -> None:
        if not type(failed.thread).__module__.startswith("tensorboard."):
            before(failed)

    threading.excepthook = hook
    try:
        yield
    finally:
        if threading.excepthook is hook:  # else somebody came later, and goes later
            threading.excepthook = before


class RunLog:
    """Log file, TensorBoard and progress of one run.

    Args:
        folder: the run directory.
        images, target: reals shown so far and in all.
        tensorboard: write events; without the package this says so once and goes on.
        quiet: show no progress.
        position: see `JsonLines`.
    """

    def __init__(
        self,
        folder: Path,
        images: int,
        target: float,
        tensorboard: bool,
        quiet: bool = False,
        position: int | None = None,
    ) -> None:
        self.lines = JsonLines(folder / "log.jsonl", images, position)
        self._hook = ExitStack()
        if tensorboard:
            self._hook.enter_context(_heard_later())
        self.events = _event_writer(folder / "tensorboard", images) if tensorboard else None
        self.started, self.paused = time.monotonic(), 0.0
        self.last_time, self.last_images = self.started, images
        self.progress = Progress(images, target, quiet)

    def step(self, images: int, stats: dict[str, Tensor]) -> dict[str, Any]:
        """Record a step: the only place where training waits for the device."""
        values: dict[str, float] = {}
        if stats:  # in one transfer
            stacked = torch.stack([value.double() for value in stats.values()])
            values = dict(zip(stats, stacked.tolist(), strict=True))
        now = time.monotonic()
        rate = (images - self.last_images) / max(1e-9, now - self.last_time - self.paused)
        self.last_time, self.last_images, self.paused = now, images, 0.0
        record = {"images": images, "seconds": now - self.started, "images_per_second": rate}
        record |= values
        self.lines.write(record)
        if self.events:
            for name, value in (*values.items(), ("speed/images_per_second", rate)):
                self.events.add_scalar(name, value, images)
        self.progress.update(images, rate, values)
        return record

    def scores(self, images: int, scores: dict[str, float]) -> None:
        """Record scores of a checkpoint, as "score/<name>", on a line of their own."""
        named = {f"score/{name}": value for name, value in scores.items()}
        self.lines.write({"images": images, "seconds": time.monotonic() - self.started, **named})
        if self.events:
            for name, value in named.items():
                self.events.add_scalar(name, value, images)

    def diagnosis(self, images: int, sentence: str) -> None:
        """Record what the numbers say of the training, as "diagnosis", on a line of its own."""
        seconds = time.monotonic() - self.started
        self.lines.write({"images": images, "seconds": seconds, "diagnosis": sentence})

    def pause(self, seconds: float) -> None:
        """Leave time spent on samples and checkpoints out of images per second."""
        self.paused += seconds

    def position(self) -> int:
        """Lines of log.jsonl."""
        return self.lines.position()

    def sync(self) -> None:
        """Wait until log lines are on disk, and events handed to the system."""
        self.lines.sync()
        if self.events:
            self.events.flush()

    def picture(self, images: int, sheet: Any) -> None:
        """A sample grid, uint8 (H, W, C), for TensorBoard."""
        if self.events:
            self.events.add_image("samples", sheet, images, dataformats="HWC")

    def close(self) -> None:
        self.progress.close()
        self.lines.close()
        try:
            if self.events:
                self.events.close()
        finally:
            self._hook.close()


def _event_writer(folder: Path, images: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        logger.warning(
            "tensorboard is not installed: events are not written (pip install tensorboard)"
        )
        return None
    try:
        return SummaryWriter(str(folder), purge_step=images + 1 if images else None)
    except UnicodeEncodeError:
        logger.warning("events are not written: TensorBoard takes no path that is not UTF-8")
        return None


class Progress:
    """A live bar on a terminal; elsewhere a plain line every ten seconds; nothing if ``quiet``."""

    def __init__(self, images: int, target: float, quiet: bool = False) -> None:
        self.target, self.spoken, self.quiet = target, time.monotonic(), quiet
        self.bar, self.text = None, ""
        person: Any = Lasting(sys.stderr)
        if person.isatty() and not quiet and find_spec("rich"):
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            description, bar = TextColumn("{task.description}"), BarColumn(bar_width=24)
            columns = description, bar, TimeRemainingColumn()
            self.bar = Progress(*columns, console=Console(file=person), refresh_per_second=4)
            self.task = self.bar.add_task("starting", total=target, completed=images)
            self.bar.start()

    def tick(self, images: int) -> None:
        """A step is done; nothing is read from the device for it."""
        if self.bar:
            self.bar.update(self.task, completed=images)

    def update(self, images: int, rate: float, values: dict[str, float]) -> None:
        if self.quiet:
            return
        shown = [f"{label} {values[name]:.3g}" for name, label in _SHOWN.items() if name in values]
        progress = f"{images / 1000:.1f}/{self.target / 1000:g} kimg  {rate:,.0f} img/s"
        self.text = f"{progress}  {'  '.join(shown)}"
        if self.bar:
            self.bar.update(self.task, completed=images, description=self.text)
        elif time.monotonic() - self.spoken >= _PLAIN_SECONDS:
            self.spoken = time.monotonic()
            left = max(0.0, self.target - images) / max(rate, 1e-9)
            say(f"{self.text}  ETA {int(left) // 60}:{int(left) % 60:02d}")

    def close(self) -> None:
        if self.bar:
            self.bar.stop()
            self.bar = None
        if self.text:
            say(self.text)
