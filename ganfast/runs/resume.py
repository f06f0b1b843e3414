"""How a training begins: anew, where its directory stopped, at an earlier checkpoint, or as a fork of another run.

What a run has that was not trained straight through is in its history.jsonl, one object a line: forks, returns to an earlier
checkpoint, forced changes.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ganfast import __version__, configfile, disk, locks
from ganfast.config import flatten
from ganfast.errors import InputError
from ganfast.log import logger
from ganfast.runs import checkpoint as checkpoints
from ganfast.runs.logfile import split_log
from ganfast.runs.run import Run
from ganfast.training.plan import Plan
from ganfast.training.state import restore

# Fields that may change when a run is resumed: they say where and how long, not what is computed.
_FREE = ("out", "kimg", "device", "data_root", "data", "compile", "cuda_graphs", "engine", "preset")
_FREE_GROUPS = ("log.", "score.", "guard.")
HISTORY = "history.jsonl"
Found = tuple[
    Path, checkpoints.Record, dict[str, dict[str, Any]]
]  # a checkpoint, what it says of itself, its tensors
Changes = Mapping[str, tuple[Any, Any]]  # field -> (before, now)


def hold(folder: Path, held: ExitStack) -> None:
    """Lock a run directory, which is made if need be; what is no run directory is refused before anything is written there."""
    _refuse_foreign(folder)
    try:
        disk.ensure_directory(folder)
        held.enter_context(locks.locked(folder / locks.NAME, str(folder)))
    except OSError as error:
        raise InputError(
            f"{folder} cannot be written: {error.strerror or error}; choose another --out"
        ) from error


def _refuse_foreign(folder: Path) -> None:
    if (folder / "config.yaml").exists() or not folder.exists():
        return
    begun = {locks.NAME, "config.yaml.part"}  # all that a process killed before it can have left
    if not folder.is_dir() or any(path.name not in begun for path in folder.iterdir()):
        raise InputError(f"{folder} exists and is not a run directory; choose another --out")


def open_folder(plan: Plan, force: bool) -> tuple[Run, Changes]:
    """The run that lives, or will live, in the plan's folder, and what the plan forces upon it; nothing is written.

    Raises:
        InputError: the folder holds checkpoints of other mathematics, and ``force`` is not set; lists what differs.
    """
    config, folder = plan.config, plan.folder
    run = Run(folder, config, dataclasses.asdict(plan.pack.info))
    if not (folder / "config.yaml").exists() or not checkpoints.listed(run.checkpoint_folder):
        return run, {}  # it failed before its first checkpoint: nothing to lose
    old = Run.open(folder)
    changed = since_trained(run) | {
        name: values for name, values in _changes(old, run).items() if _counts(name)
    }
    ways_out = "--force goes on with the new values, --fork NEWDIR begins a new run from here, or give another --out"
    if changed and not force:
        pictures = changed.pop(_PICTURES, None)
        if changed:
            raise InputError(
                f"{folder} holds another run ({listed(changed)}); give those values; {ways_out}"
            )
        if pictures:
            raise InputError(
                f"{folder} was trained on other pictures than {config.data} holds now; give those; {ways_out}"
            )
    if old.config.kimg != config.kimg and config.optim.decay_from < 1:
        logger.warning(
            "kimg was %g, now %g: learning rates fall towards the new end",
            old.config.kimg,
            config.kimg,
        )
        changed["kimg"] = (old.config.kimg, config.kimg)
    return run, changed


def mathematics(run: Run) -> dict[str, Any]:
    """What a run's weights follow from, as JSON holds it: every field that must not change, and the pictures' hash."""
    held = {name: value for name, value in flatten(run.config).items() if _counts(name)}
    return json.loads(json.dumps(held | {"source_hash": run.data["source_hash"]}))


def _counts(name: str) -> bool:
    return name not in _FREE and not name.startswith(_FREE_GROUPS)


def since_trained(run: Run) -> dict[str, tuple[Any, Any]]:
    """What differs from the run that wrote the newest checkpoint, whose word is sealed: config.yaml is anybody's to edit."""
    for path in reversed(checkpoints.listed(run.checkpoint_folder)):
        try:
            before = checkpoints.read_record(path).trained_as or {}
        except InputError:
            continue
        now = mathematics(run)
        changed = {
            name: (value, now[name])
            for name, value in before.items()
            if name in now and now[name] != value
        }
        if hashes := changed.pop("source_hash", None):
            changed[_PICTURES] = tuple(f"those of hash {str(each)[:8]}" for each in hashes)  # type: ignore[assignment]
        return changed
    return {}


_PICTURES = "the pictures"


def _changes(old: Run, new: Run) -> dict[str, tuple[Any, Any]]:
    changed = configfile.differences(old.config, new.config)
    if old.data["source_hash"] != new.data["source_hash"]:
        changed[_PICTURES] = tuple(
            f"{run.config.data} ({run.data['source_hash'][:8]})" for run in (old, new)
        )  # type: ignore[assignment]
    return changed


def listed(changed: Changes) -> str:
    """What changed, as part of a sentence."""
    return "; ".join(
        f"{name} was {before!r}, now {now!r}" for name, (before, now) in changed.items()
    )


def find(run: Run, which: str) -> Found | None:
    """A checkpoint of a run, whole: "" is the newest that is; None where the run has none yet.

    Raises:
        InputError: there is no such checkpoint, it is damaged, or it is one of another run.
    """
    found = _chosen(run, which)
    if found and found[0].resolve().parent != run.checkpoint_folder.resolve():
        raise InputError(
            f"{found[0]} is no checkpoint of {run.folder}; with --fork NEWDIR a new run begins from it"
        )
    return found


def _chosen(run: Run, which: str) -> Found | None:
    path = run.find(which) if which else None
    return (
        (path, *checkpoints.read(path)) if path else checkpoints.newest_whole(run.checkpoint_folder)
    )


def go_on_from(run: Run, found: Found, changed: Changes) -> None:
    """Make a run directory end at one of its checkpoints, and record what is not as in a run that was never stopped.

    Later checkpoints, sample grids and lines of the log go to checkpoints/set-aside, in an order that leaves a whole run wherever
    this is interrupted.
    """
    path, record, _ = found
    later = [
        other
        for other in checkpoints.listed(run.checkpoint_folder)
        if int(other.name) > record.images
    ]
    if later:
        _, rest = split_log(run.folder / "log.jsonl", record.images, record.log_lines)
        if (
            checkpoints.best(run.checkpoint_folder) in later
        ):  # its score is not one of the checkpoint that will have its name
            checkpoints.set_aside(run.checkpoint_folder / checkpoints.BEST, run.checkpoint_folder)
        if rest:
            cut = run.checkpoint_folder / f"log-after-{path.name}.jsonl"
            disk.replace_file(cut, _lines(rest))
            checkpoints.set_aside(cut, run.checkpoint_folder)
        pictures = [
            p
            for p in (run.folder / "samples").glob("*.png")
            if p.stem.isdecimal() and int(p.stem) > record.images
        ]
        moved = [
            checkpoints.set_aside(other, run.checkpoint_folder)
            for other in (*pictures, *reversed(later))
        ]
        logger.warning(
            "back at %g kimg: later checkpoints (%s), %d sample grids and %d lines of the log were moved to %s",
            record.images / 1000,
            ", ".join(p.name for p in later),
            len(pictures),
            len(rest),
            moved[-1].parent,
        )
        remember(run.folder, "return", images=record.images, set_aside=[p.name for p in later])
    if changed:
        event = (
            "length" if set(changed) == {"kimg"} else "force"
        )  # of a run whose rates fall towards its end
        if event == "force":
            logger.warning("forced: %s", listed(changed))
        remember(run.folder, event, images=record.images, changed=changed)


def refuse_as_fork(folder: Path) -> None:
    """Raises InputError where a fork cannot be made."""
    if not folder.name:
        raise InputError(f"--fork is {str(folder)!r}; expected the path of a new directory")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        go_on = (
            f"; `ganfast train --out {folder}` goes on with it"
            if (folder / "config.yaml").exists()
            else ""
        )
        raise InputError(f"{folder} exists; a fork begins in a new directory{go_on}")


def fork(plan: Plan, parent: Run, which: str) -> str:
    """Make the plan's folder a run that stands where a checkpoint of another stands, with its log up to there and its history.

    Any field may differ that leaves the networks their shape; what does is recorded. Returns a sentence that says so.

    Raises:
        InputError: no such checkpoint, other networks, nothing left to train, or a folder that is taken or cannot be written.
    """
    folder, run = plan.folder, Run(plan.folder, plan.config, dataclasses.asdict(plan.pack.info))
    found = _chosen(parent, which)
    if not found:
        raise InputError(f"{parent.folder} has no checkpoint yet to begin from; train it further")
    path, record, contents = found
    restore(
        plan.state, contents, record.images, str(path)
    )  # other networks are refused before anything is written
    if record.images >= plan.config.kimg * 1000:
        raise InputError(
            f"{path} is at {record.images / 1000:g} kimg, and kimg is {plan.config.kimg:g}: give a higher --kimg"
        )
    changed = {name: values for name, values in _changes(parent, run).items() if name != "out"}
    log, _ = split_log(parent.folder / "log.jsonl", record.images, record.log_lines)
    beside = folder.with_name(f".{folder.name}.part")
    try:
        disk.ensure_directory(folder.parent)
        with locks.locked(folder.with_name(f".{folder.name}.lock"), str(folder)):
            refuse_as_fork(folder)
            disk.make_directory(beside)
            disk.write_file(beside / "log.jsonl", _lines(log))
            disk.write_file(
                beside / HISTORY, _lines(json.dumps(line) for line in history(parent.folder))
            )
            remember(
                beside,
                "fork",
                images=record.images,
                of=str(parent.folder.resolve()),
                checkpoint=path.name,
                state_sha256=hashlib.sha256((path / "state.json").read_bytes()).hexdigest(),
                changed=changed,
            )
            checkpoints.write(
                beside / "checkpoints", record.images, contents, len(log), mathematics(run)
            )
            write_record(dataclasses.replace(run, folder=beside))
            disk.publish(beside, folder)
    except OSError as error:
        raise InputError(
            f"{folder} cannot be written: {error.strerror or error}; choose another --fork"
        ) from error
    return f"{folder} is a fork of {path}" + (f" ({listed(changed)})" if changed else "")


def write_record(run: Run) -> None:
    """The run directory with its config and the manifest of its pictures."""
    try:
        disk.ensure_directory(run.folder)
        configfile.write(
            run.config, run.folder / "config.yaml"
        )  # first: a folder that has it is a run's, if this ends half-way
        disk.replace_file(
            run.folder / "data.json", (json.dumps(run.data, indent=1) + "\n").encode()
        )
        disk.ensure_directory(run.folder / "samples")
    except OSError as error:
        raise InputError(
            f"{run.folder} cannot be written: {error.strerror or error}; choose another --out"
        ) from error


def remember(folder: Path, event: str, **facts: Any) -> None:
    """Add a line to the history of a run."""
    path = folder / HISTORY
    before = path.read_bytes() if path.exists() else b""
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    line = {"event": event, "when": now, "ganfast": __version__} | facts
    disk.replace_file(path, before + _lines([json.dumps(line)]))


def history(folder: Path) -> list[dict[str, Any]]:
    """What `remember` recorded, oldest first; InputError where it cannot be read."""
    path = folder / HISTORY
    try:
        events = (
            [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        )
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged: {error}") from error
    for number, event in enumerate(events, start=1):
        changed = event.get("changed", {}) if isinstance(event, dict) else None
        if not isinstance(changed, dict) or any(
            not isinstance(pair, list) or len(pair) != 2 for pair in changed.values()
        ):
            raise InputError(f"{path} is damaged: line {number} is no event")
    return events


def _lines(lines: Any) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()
