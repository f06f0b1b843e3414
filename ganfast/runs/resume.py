"""How a training begins: anew, where its directory stopped, at an earlier checkpoint, or as a fork.

history.jsonl tells, one object a line, what is not as in a run trained straight through: forks,
returns to an earlier checkpoint, forced changes.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ganfast import __version__, configfile, disk, locks
from ganfast.config import depends_on_length
from ganfast.errors import InputError
from ganfast.log import logger
from ganfast.outside import LONGEST, plain_file
from ganfast.presets import PRESETS
from ganfast.runs import checkpoint as checkpoints
from ganfast.runs.identity import (
    HISTORY,
    PICTURES,
    Changes,
    counts,
    differences,
    history,
    listed,
    mathematics,
    other_pictures,
    refuse_foreign,
)
from ganfast.runs.logfile import split_log
from ganfast.runs.run import Run
from ganfast.training.plan import Plan, own_length
from ganfast.training.state import restore


def hold(folder: Path, held: ExitStack) -> None:
    """Lock a run directory, made if need be. Other directories are refused before any write.

    So are links in place of what the run fills: files elsewhere would be written and removed.
    """
    _refuse_foreign(folder)
    for name in ("checkpoints", f"checkpoints/{checkpoints.ASIDE}", "samples", "tensorboard"):
        disk.refuse_link(folder / name)
    try:
        disk.ensure_directory(folder)
        held.enter_context(locks.locked(folder / locks.NAME, str(folder)))
    except OSError as error:
        raise _unwritable(folder, error, "--out") from error


def _unwritable(folder: Path, error: OSError, flag: str) -> InputError:
    detail = error.strerror or error
    return InputError(f"{folder} cannot be written: {detail}; choose another {flag}")


def _refuse_foreign(folder: Path) -> None:
    if (folder / "config.yaml").exists() or not folder.exists():
        return
    begun = {locks.NAME, "config.yaml.part"}  # all that a process killed earlier can have left
    if not folder.is_dir() or any(path.name not in begun for path in folder.iterdir()):
        raise InputError(f"{folder} exists and is not a run directory; choose another --out")


def open_folder(plan: Plan, force: bool) -> tuple[Run, Changes]:
    """The run in the plan's folder, there already or to come, and what the plan forces upon it.

    Nothing is written.

    Raises:
        InputError: the folder holds checkpoints of other mathematics, and ``force`` is not set;
            lists what differs.
    """
    config, folder = plan.config, plan.folder
    run = Run(folder, config, dataclasses.asdict(plan.pack.info))
    if not (folder / "config.yaml").exists() or not checkpoints.listed(run.checkpoint_folder):
        return run, {}  # it failed before its first checkpoint: nothing to lose
    old = Run.open(folder)
    edited = {name: values for name, values in _changes(old, run).items() if counts(name)}
    changed = since_trained(run) | edited
    if changed and not force:
        pictures = changed.pop(PICTURES, None)
        problem = f"was trained on other pictures than {config.data} holds now; give those"
        if old.data["source_hash"] == run.data["source_hash"]:
            problem += " (the files look the same: another version of Pillow may read them so)"
        if changed:
            problem = f"holds another run ({listed(changed)}); give those values"
        if changed or pictures:
            raise InputError(
                f"{folder} {problem}; --force goes on with the new values, "
                "--fork NEWDIR begins a new run from here, or give another --out"
            )
    before, now = old.config.kimg, config.kimg
    if before != now and depends_on_length(config):
        logger.warning("kimg was %g, now %g: schedules move towards the new end", before, now)
        changed["kimg"] = (before, now)
    return run, changed


def beginning(plan: Plan, parent: str, checkpoint: str, force: bool) -> str:
    """What `train` would do with the plan's folder, for a person; nothing is written.

    Raises:
        InputError: `train` would refuse the plan.
    """
    if parent:
        refuse_as_fork(plan.folder)
        return f"begins {plan.folder} at {_fork_point(plan, Run.open(parent), checkpoint).path}"
    _refuse_foreign(plan.folder)
    run, changed = open_folder(plan, force)
    found = find(run, checkpoint, force)
    if not found:
        return f"begins {plan.folder}"
    forced = {name: values for name, values in changed.items() if name != "kimg"}
    images, what = found.record.images, f"; forced: {listed(forced)}" if forced else ""
    if images >= plan.config.kimg * 1000:
        return f"{plan.folder} is complete at {images / 1000:g} kimg; {way_on(plan)}"
    values = "its config.yaml gives what no flag gives"
    return f"goes on with {plan.folder} at {images / 1000:g} kimg; {values}{what}"


def way_on(plan: Plan) -> str:
    """What goes on with a run that is complete: a trial is not the training that was meant."""
    kimg, preset = plan.config.kimg, plan.config.preset
    own = own_length(preset, plan.pack.info) if preset in PRESETS else 0
    return f"--kimg {own:g} goes on to the preset's own length" if own > kimg else "--kimg goes on"


def since_trained(run: Run) -> dict[str, tuple[Any, Any]]:
    """What differs from the run that wrote the newest checkpoint."""
    for path in reversed(checkpoints.listed(run.checkpoint_folder)):
        try:
            return differences(checkpoints.read_record(path), run)
        except InputError:
            continue
    return {}


def _changes(old: Run, new: Run) -> dict[str, tuple[Any, Any]]:
    changed = configfile.differences(old.config, new.config)
    if hashes := other_pictures(old.data, new.data):
        before, now = (f"{r.config.data} ({h})" for r, h in zip((old, new), hashes, strict=True))
        changed[PICTURES] = before, now
    return changed


def find(run: Run, which: str, force: bool = False) -> checkpoints.Loaded | None:
    """A checkpoint of a run, whole; "" = the newest that is whole. None: the run has none yet.

    With ``force`` it may have been trained with other values than the run has.

    Raises:
        InputError: there is no such checkpoint, it is damaged, or it is one of another run.
    """
    checkpoint = _chosen(run, which)
    if checkpoint and checkpoint.path.resolve().parent != run.checkpoint_folder.resolve():
        raise InputError(
            f"{checkpoint.path} is no checkpoint of {run.folder}; "
            "with --fork NEWDIR a new run begins from it"
        )
    if checkpoint and not force:
        refuse_foreign(run, checkpoint.path, checkpoint.record)
    return checkpoint


def _chosen(run: Run, which: str) -> checkpoints.Loaded | None:
    if not which:
        return checkpoints.newest_whole(run.checkpoint_folder)
    path = run.find(which)
    return checkpoints.Loaded(path, *checkpoints.read(path))


def go_on_from(run: Run, checkpoint: checkpoints.Loaded, changed: Changes) -> None:
    """Make a run directory end at one of its checkpoints.

    The history records what is not as in a run that was never stopped.
    """
    images = checkpoint.record.images
    later = [p for p in checkpoints.listed(run.checkpoint_folder) if int(p.name) > images]
    if later:
        _set_aside_later(run, checkpoint, later)
        remember(run.folder, "return", images=images, set_aside=[p.name for p in later])
    if changed:
        # A changed length alone is recorded where schedules move towards the end.
        event = "length" if set(changed) == {"kimg"} else "force"
        if event == "force":
            logger.warning("forced: %s", listed(changed))
        remember(run.folder, event, images=images, changed=changed)


def _set_aside_later(run: Run, checkpoint: checkpoints.Loaded, later: list[Path]) -> None:
    """Move later checkpoints, sample grids and lines of the log to checkpoints/set-aside.

    The order leaves a whole run wherever this is interrupted.
    """
    images, folder = checkpoint.record.images, run.checkpoint_folder
    _, rest = split_log(run.folder / "log.jsonl", images, checkpoint.record.log_lines)
    if checkpoints.best(folder) in later:  # another checkpoint will get the name that was scored
        checkpoints.set_aside(folder / checkpoints.BEST, folder)
    if rest:
        cut = folder / f"log-after-{checkpoint.path.name}.jsonl"
        disk.replace_file(cut, _lines(rest))
        checkpoints.set_aside(cut, folder)
    grids = [p for p in (run.folder / "samples").glob("*.png") if p.stem.isdecimal()]
    grids = [p for p in grids if int(p.stem) > images]
    moved = [checkpoints.set_aside(path, folder) for path in (*grids, *reversed(later))]
    logger.warning(
        "back at %g kimg: later checkpoints (%s), %d sample grids and %d lines of the log "
        "were moved to %s",
        images / 1000,
        ", ".join(p.name for p in later),
        len(grids),
        len(rest),
        moved[-1].parent,
    )


def refuse_as_fork(folder: Path) -> None:
    """Raise InputError where no fork can be made at ``folder``."""
    if not folder.name:
        raise InputError(f"--fork is {str(folder)!r}; expected the path of a new directory")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        go_on = ""
        if (folder / "config.yaml").exists():
            go_on = f"; `ganfast train --out {folder}` goes on with it"
        raise InputError(f"{folder} exists; a fork begins in a new directory{go_on}")


def fork(plan: Plan, parent: Run, which: str) -> str:
    """Make the plan's folder a run that stands where a checkpoint of another run stands.

    It gets the parent's history, and its log up to there. Any field may differ that leaves the
    networks their shape; the history records it. Returns a sentence that says so.

    Raises:
        InputError: no such checkpoint, other networks, nothing left to train, or a folder that is
            taken or cannot be written.
    """
    folder, run = plan.folder, Run(plan.folder, plan.config, dataclasses.asdict(plan.pack.info))
    path, record, contents = _fork_point(plan, parent, which)
    changed = {name: values for name, values in _changes(parent, run).items() if name != "out"}
    log, _ = split_log(parent.folder / "log.jsonl", record.images, record.log_lines)
    beside = folder.with_name(f".{folder.name}.part")
    try:
        disk.ensure_directory(folder.parent)
        with locks.locked(folder.with_name(f".{folder.name}.lock"), str(folder)):
            refuse_as_fork(folder)
            disk.make_directory(beside)
            disk.write_file(beside / "log.jsonl", _lines(log))
            events = [json.dumps(event) for event in history(parent.folder)]
            disk.write_file(beside / HISTORY, _lines(events))
            remember(
                beside,
                "fork",
                images=record.images,
                of=str(parent.folder.resolve()),
                checkpoint=path.name,
                state_sha256=hashlib.sha256((path / "state.json").read_bytes()).hexdigest(),
                changed=changed,
            )
            trained_as, store = mathematics(run), beside / "checkpoints"
            made = trained_as, record.computed
            checkpoints.write(store, record.images, contents, len(log), *made)
            write_record(dataclasses.replace(run, folder=beside))
            disk.publish(beside, folder)
    except OSError as error:
        raise _unwritable(folder, error, "--fork") from error
    return f"{folder} is a fork of {path}" + (f" ({listed(changed)})" if changed else "")


def _fork_point(plan: Plan, parent: Run, which: str) -> checkpoints.Loaded:
    """The checkpoint of ``parent`` that the plan's state then is at. Writes nothing."""
    checkpoint = _chosen(parent, which)
    if not checkpoint:
        raise InputError(f"{parent.folder} has no checkpoint yet to begin from; train it further")
    path, record, contents = checkpoint
    restore(plan.state, contents, record.images, str(path))  # refuses other networks
    if record.images >= plan.config.kimg * 1000:
        raise InputError(
            f"{path} is at {record.images / 1000:g} kimg, and kimg is {plan.config.kimg:g}: "
            "give a higher --kimg"
        )
    refuse_foreign(parent, path, record)
    return checkpoint


def write_record(run: Run) -> None:
    """The run directory with its config and the manifest of its pictures."""
    try:
        disk.ensure_directory(run.folder)
        # First, because it marks a run's folder: this may end half-way.
        configfile.write(run.config, run.folder / "config.yaml")
        data = json.dumps(run.data, indent=1) + "\n"
        disk.replace_file(run.folder / "data.json", data.encode())
        disk.ensure_directory(run.folder / "samples")
    except OSError as error:
        raise _unwritable(run.folder, error, "--out") from error


def remember(folder: Path, event: str, **facts: Any) -> None:
    """Add a line to the history of a run."""
    path = folder / HISTORY
    before = plain_file(path, LONGEST) if path.exists() else b""
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    line = {"event": event, "when": now, "ganfast": __version__} | facts
    disk.replace_file(path, before + _lines([json.dumps(line)]))


def _lines(lines: Iterable[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()
