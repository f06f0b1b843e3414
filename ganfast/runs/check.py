"""`ganfast run check`: is everything in a run directory what was written there, and what can be resumed? Reads, changes nothing."""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ganfast import locks
from ganfast.errors import InputError
from ganfast.runs import checkpoint as checkpoints
from ganfast.runs import resume
from ganfast.runs.logfile import images_of
from ganfast.runs.run import Run


@dataclass
class Checked:
    """What was found in a run directory."""

    run: str
    preset: str
    data: str
    kimg: float  # that it is to reach
    held_by: str | None  # who trains it now
    checkpoints: dict[str, str | None] = field(
        default_factory=dict
    )  # name -> what is wrong with it; oldest first
    set_aside: list[str] = field(default_factory=list)
    best: str | None = None
    log_lines: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def resumable(self) -> str | None:
        """The checkpoint that a training would go on from; None = it begins anew."""
        return next(
            (name for name, problem in reversed(self.checkpoints.items()) if problem is None), None
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"sound": not self.problems, "resumable": self.resumable}

    def way_out(self) -> str:
        """What to do, as part of a sentence."""
        if self.resumable:
            return (
                f"`ganfast train --out {self.run}` goes on from {int(self.resumable) / 1000:g} kimg"
            )
        if self.checkpoints:
            return "no checkpoint can be resumed: restore one, or train into another --out"
        return f"there is no checkpoint yet: `ganfast train --out {self.run}` begins anew"

    def describe(self) -> str:
        """For a person, a line each."""
        rows = [("run", f"{self.run}: {self.preset} on {self.data}, to {self.kimg:g} kimg")]
        rows += [("held by", self.held_by)] if self.held_by else []
        rows += [
            ("checkpoint", f"{name} {'damaged: ' + problem if problem else 'whole'}")
            for name, problem in self.checkpoints.items()
        ]
        rows += [("best", self.best)] if self.best else []
        rows += [("set aside", ", ".join(self.set_aside))] if self.set_aside else []
        rows += [("log", f"{self.log_lines:,} lines")]
        rows += [("history", _told(event)) for event in self.history]
        rows += [
            ("problem", problem)
            for problem in self.problems
            if problem not in self.checkpoints.values()
        ]
        complete = self.resumable and int(self.resumable) >= self.kimg * 1000
        rows += [
            (
                "resume",
                f"complete at {int(self.resumable or 0) / 1000:g} kimg"
                if complete
                else self.way_out(),
            )
        ]
        return "\n".join(f"{name:12}{text}" for name, text in rows)


def _told(event: dict[str, Any]) -> str:
    images = event.get("images")
    at = f"{images / 1000:g}" if isinstance(images, int) else "an unknown number of"
    where = f"{event.get('when')}, at {at} kimg: {event.get('event')}"
    of = f" of {event['of']}, checkpoint {event.get('checkpoint')}" if "of" in event else ""
    changed = resume.listed(event.get("changed", {}))
    return where + of + (f" ({changed})" if changed else "")


def check_run(folder: Path | str) -> Checked:
    """Verify a run directory: config, every byte of every checkpoint, the log against them, the best one, the history.

    Raises:
        InputError: it is no run directory, or its config cannot be read.
    """
    run = Run.open(folder)
    c, store = run.config, run.checkpoint_folder
    found = Checked(str(folder), c.preset, c.data, c.kimg, locks.held_by(run.folder / locks.NAME))
    records: list[checkpoints.Record] = []
    for path in checkpoints.listed(store):
        try:
            record, _ = checkpoints.read(path)
            records.append(record)
            found.checkpoints[path.name] = None
            if record.images != int(path.name):
                found.checkpoints[path.name] = f"{path} says that it is of {record.images} images"
        except InputError as error:
            if path.exists():  # else whoever trains has just removed it
                found.checkpoints[path.name] = str(error)
    found.problems += [problem for problem in found.checkpoints.values() if problem]
    found.set_aside = sorted(p.name for p in (store / checkpoints.ASIDE).glob("*") if p.is_dir())
    if (store / checkpoints.BEST).exists():
        best = checkpoints.best(store)
        found.best = best.name if best else None
        if not best:
            found.problems.append(
                f"{store / checkpoints.BEST} names no checkpoint that is there: none counts as the best"
            )
    try:
        found.history = resume.history(run.folder)
    except InputError as error:
        found.problems.append(str(error))
    if edited := resume.since_trained(run):
        changed = resume.listed(edited)
        found.problems.append(
            f"{run.folder / 'config.yaml'} is not what the newest checkpoint was trained with ({changed})"
        )
    _check_log(run, records, found)
    return found


def _check_log(run: Run, records: list[checkpoints.Record], found: Checked) -> None:
    """Lines rise, and there are as many before each checkpoint as it says. What follows the last one is written again."""
    path = run.folder / "log.jsonl"
    if not path.exists():
        if records:
            found.problems.append(f"{path} is missing")
        return
    try:
        counters = [images_of(line) for line in path.read_text(errors="replace").splitlines()]
    except OSError as error:
        found.problems.append(f"{path} cannot be read: {error.strerror or error}")
        return
    found.log_lines = len(counters)
    if not records:
        return
    newest = records[-1]
    settled = (
        newest.log_lines
        if newest.log_lines is not None
        else sum(images <= newest.images for images in counters)
    )
    for number, (before, images) in enumerate(
        zip([0.0, *counters], counters[:settled], strict=False), start=1
    ):
        if not before < images <= newest.images:
            what = (
                f"is of {images:g} images, the one before of {before:g}"
                if images < math.inf
                else "is not what was written"
            )
            found.problems.append(f"{path}, line {number} {what}")
            return
    for record in records:
        count = sum(images <= record.images for images in counters[:settled])
        if record.log_lines not in (None, count):
            found.problems.append(
                f"{path} has {count} lines up to {record.images / 1000:g} kimg and had {record.log_lines} then"
            )
            return
