"""`ganfast run check`: is a run directory what was written, and what can be resumed? Only reads."""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ganfast import locks
from ganfast.errors import InputError
from ganfast.runs import checkpoint as checkpoints
from ganfast.runs import identity, resume
from ganfast.runs.logfile import images_of, log_lines
from ganfast.runs.run import Run


@dataclass
class Checked:
    """The state of a run directory, as `check_run` saw it."""

    run: str
    preset: str
    data: str
    kimg: float  # length of the run
    held_by: str | None  # who trains it now
    # Name -> what is wrong with it, oldest first.
    checkpoints: dict[str, str | None] = field(default_factory=dict)
    set_aside: list[str] = field(default_factory=list)
    best: str | None = None
    log_lines: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def resumable(self) -> str | None:
        """The checkpoint that a training would go on from; None = it begins anew."""
        whole = (name for name, problem in reversed(self.checkpoints.items()) if problem is None)
        return next(whole, None)

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"sound": not self.problems, "resumable": self.resumable}

    def way_out(self) -> str:
        """What to do, as part of a sentence."""
        command = f"`ganfast train --out {self.run}`"
        if self.resumable:
            return f"{command} goes on from {int(self.resumable) / 1000:g} kimg"
        if self.checkpoints:
            return "no checkpoint can be resumed: restore one, or train into another --out"
        return f"there is no checkpoint yet: {command} begins anew"

    def describe(self) -> str:
        """For a person, a line each."""
        rows = [("run", f"{self.run}: {self.preset} on {self.data}, to {self.kimg:g} kimg")]
        rows += [("held by", self.held_by)] if self.held_by else []
        for name, problem in self.checkpoints.items():
            rows.append(("checkpoint", f"{name} {'damaged: ' + problem if problem else 'whole'}"))
        rows += [("best", self.best)] if self.best else []
        rows += [("set aside", ", ".join(self.set_aside))] if self.set_aside else []
        rows += [("log", f"{self.log_lines:,} lines")]
        rows += [("history", _sentence(event)) for event in self.history]
        of_checkpoints = self.checkpoints.values()
        rows += [("problem", text) for text in self.problems if text not in of_checkpoints]
        reached = int(self.resumable or 0)
        complete = self.resumable and reached >= self.kimg * 1000
        end = f"complete at {reached / 1000:g} kimg" if complete else self.way_out()
        rows += [("resume", end)]
        return "\n".join(f"{name:12}{text}" for name, text in rows)


def _sentence(event: dict[str, Any]) -> str:
    """A line of the history, for a person."""
    images = event.get("images")
    at = f"{images / 1000:g}" if isinstance(images, int) else "an unknown number of"
    where = f"{event.get('when')}, at {at} kimg: {event.get('event')}"
    of = f" of {event['of']}, checkpoint {event.get('checkpoint')}" if "of" in event else ""
    changed = identity.listed(event.get("changed", {}))
    return where + of + (f" ({changed})" if changed else "")


def check_run(folder: Path | str) -> Checked:
    """Verify a run directory: config, all bytes of all checkpoints, log, best checkpoint, history.

    Raises:
        InputError: it is no run directory, or its config cannot be read.
    """
    run = Run.open(folder)
    c, store = run.config, run.checkpoint_folder
    checked = Checked(str(folder), c.preset, c.data, c.kimg, locks.held_by(run.folder / locks.NAME))
    records: list[checkpoints.Record] = []
    for path in checkpoints.listed(store):
        try:
            record, _ = checkpoints.read(path)
            records.append(record)
            checked.checkpoints[path.name] = None
        except InputError as error:
            if path.exists():  # else the process that trains has just removed it
                checked.checkpoints[path.name] = str(error)
    problems = checked.problems
    problems += [problem for problem in checked.checkpoints.values() if problem]
    checked.set_aside = sorted(p.name for p in (store / checkpoints.ASIDE).glob("*") if p.is_dir())
    if (store / checkpoints.BEST).exists():
        best = checkpoints.best(store)
        checked.best = best.name if best else None
        if not best:
            problems.append(
                f"{store / checkpoints.BEST} names no checkpoint that is there: "
                "none counts as the best"
            )
    try:
        checked.history = identity.history(run.folder)
    except InputError as error:
        problems.append(str(error))
    if edited := resume.since_trained(run):
        problems.append(
            f"{run.folder / 'config.yaml'} is not what the newest checkpoint was trained with "
            f"({identity.listed(edited)})"
        )
    _check_log(run, records, checked)
    return checked


def _check_log(run: Run, records: list[checkpoints.Record], checked: Checked) -> None:
    """Lines must rise, and there must be as many before a checkpoint as the checkpoint says.

    A resumed run writes again what follows the last checkpoint, so that part is not judged.
    """
    path, problems = run.folder / "log.jsonl", checked.problems
    if not path.exists():
        if records:
            problems.append(f"{path} is missing")
        return
    try:
        lines = log_lines(path)
    except InputError as error:
        problems.append(str(error))
        return
    counters = [images_of(line) for line in lines]
    checked.log_lines = len(counters)
    if not records:
        return
    newest = records[-1]
    settled = newest.log_lines
    if settled is None:
        settled = sum(images <= newest.images for images in counters)
    before = 0.0
    for number, images in enumerate(counters[:settled], start=1):
        # Scores and diagnoses have lines of their own, with the counter of their step.
        of_step = '"images_per_second":' in lines[number - 1]
        least = math.nextafter(before, math.inf) if of_step else before
        if not least <= images <= newest.images:
            what = "is not what was written"
            if images < math.inf:
                what = f"is of {images:g} images, the one before of {before:g}"
            problems.append(f"{path}, line {number} {what}")
            return
        before = images
    for record in records:
        count = sum(images <= record.images for images in counters[:settled])
        if record.log_lines not in (None, count):
            problems.append(
                f"{path} has {count} lines up to {record.images / 1000:g} kimg "
                f"and had {record.log_lines} then"
            )
            return
