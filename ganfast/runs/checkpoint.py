"""The state of a run on disk: safetensors and JSON in a directory that appears whole or not at all.

    checkpoints/
        000012800/   named by real images shown
            generator, critic, ema, optimizer_generator, optimizer_critic   .safetensors
            augmentation.safetensors   where augment is adaptive
            state.json   schema, counter, position in log.jsonl, sizes and sha256 of all files
        best.json        the checkpoint with the best score, which `prune` spares
        set-aside/       what a run that went on from an earlier checkpoint left behind

Nothing random is stored: every draw is a function of seed and image counter (`ganfast.random`).
"""

import hashlib
import json
import operator
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor

import ganfast
from ganfast import disk
from ganfast.errors import InputError
from ganfast.log import logger
from ganfast.outside import LONGEST, parse_json, plain_file, reading
from ganfast.tensors import AUGMENTATION, Contents

SCHEMA = 2  # 1 had no hashes and no position in the log; it is still read
PARTS = ("generator", "critic", "ema", "optimizer_generator", "optimizer_critic")
BEST, ASIDE = "best.json", "set-aside"


class Damaged(InputError):
    """A checkpoint whose bytes are not what was written; another one may do."""


@dataclass(frozen=True)
class Record:
    """What state.json says."""

    schema: int
    images: int  # real images shown when it was written
    log_lines: int | None  # of log.jsonl then; None in schema 1
    files: Mapping[str, Mapping[str, Any]]  # name -> {"bytes", "sha256"}; {} in schema 1
    # What it was trained with, as JSON holds it; None in checkpoints that do not say.
    trained_as: Mapping[str, Any] | None = None
    # How its steps were computed: "engine", "compile"; None in checkpoints that do not say.
    computed: Mapping[str, Any] | None = None


class Loaded(NamedTuple):
    """A checkpoint whose bytes were compared with their hashes."""

    path: Path
    record: Record
    contents: dict[str, dict[str, Tensor]]


def write(
    folder: Path,
    images: int,
    contents: Contents,
    log_lines: int,
    trained_as: Mapping[str, Any] | None = None,
    computed: Mapping[str, Any] | None = None,
) -> Path:
    """Write ``folder/<images, 9 digits>``.

    It is written beside that place and then renamed, so that a half-written one is never seen.

    Returns:
        The checkpoint's directory. A whole one of this counter stays: it holds the same state.

    Raises:
        OSError: it could not be written; what was there before is untouched.
    """
    target = folder / f"{images:09d}"
    if target.exists() and not problem_of(target):
        return target
    disk.ensure_directory(folder)
    beside = folder / f".{target.name}.part"
    disk.make_directory(beside)
    files = {}
    for part, tensors in contents.items():
        data = safetensors.torch.save(dict(tensors))
        disk.write_file(beside / f"{part}.safetensors", data)
        digest = hashlib.sha256(data).hexdigest()
        files[f"{part}.safetensors"] = {"bytes": len(data), "sha256": digest}
    versions = {"ganfast": ganfast.__version__, "torch": str(torch.__version__)}
    facts: dict[str, Any] = {"schema": SCHEMA, "images": images, **versions}
    facts |= {} if trained_as is None else {"trained_as": dict(trained_as)}
    facts |= {} if computed is None else {"computed": dict(computed)}
    facts |= {"log_lines": log_lines, "files": files}
    disk.write_file(beside / "state.json", _sealed(facts))
    if target.exists():
        set_aside(target, folder)
    disk.publish(beside, target)
    return target


def _sealed(facts: dict[str, Any]) -> bytes:
    """JSON that ends with its own hash; written in one way only, so that no byte changes unseen."""
    digest = hashlib.sha256(json.dumps(facts, indent=1).encode()).hexdigest()
    return (json.dumps(facts | {"sha256": digest}, indent=1) + "\n").encode()


def read_record(checkpoint: Path) -> Record:
    """What state.json says.

    Raises:
        Damaged: it is missing, was changed after it was written, or has another one's name.
        InputError: it has a later schema.
    """
    path = checkpoint / "state.json"
    try:
        data = plain_file(path, LONGEST)
        state: dict[str, Any] = parse_json(data)
        schema, images = state["schema"], int(state["images"])
    except Exception as error:
        raise Damaged(
            f"{checkpoint} is not a checkpoint of ganfast: "
            f"state.json is missing or damaged ({error})"
        ) from error
    if _is_named(checkpoint.name) and int(checkpoint.name) != images:
        raise Damaged(
            f"{checkpoint} says that it is of {images} images: name it {images:09d} again"
        )
    if schema == 1 and "sha256" not in state:
        return Record(1, images, None, {})
    facts = {key: value for key, value in state.items() if key != "sha256"}
    sealed = _sealed(facts) == data
    if schema != SCHEMA and (sealed or "sha256" not in state):
        raise InputError(
            f"{checkpoint} has schema {schema}; "
            f"this version reads schemas 1 to {SCHEMA}: update ganfast"
        )
    if not sealed:
        raise Damaged(
            f"{path} was changed after it was written: its sha256 is not that of its contents"
        )
    lines, files = state.get("log_lines"), state.get("files")
    if not isinstance(files, dict) or not isinstance(lines, int) or lines < 0:
        raise Damaged(f"{path} lacks the files of the checkpoint, or its position in the log")
    trained_as = state.get("trained_as")
    trained_as = trained_as if isinstance(trained_as, dict) else None
    computed = state.get("computed")
    computed = computed if isinstance(computed, dict) else None
    return Record(schema, images, lines, files, trained_as, computed)


def read(
    checkpoint: Path, parts: Iterable[str] | None = None
) -> tuple[Record, dict[str, dict[str, Tensor]]]:
    """The tensors of some parts, from bytes that have been compared with their hashes; None = all.

    Raises:
        Damaged: a file is missing, or is not what was written; names it.
        InputError: a checkpoint of a later version.
    """
    record, contents = read_record(checkpoint), {}
    if parts is None:
        moving = f"{AUGMENTATION}.safetensors" in record.files
        parts = (*PARTS, AUGMENTATION) if moving else PARTS
    for part in parts:
        path = checkpoint / f"{part}.safetensors"
        with reading(path, Damaged):
            data = plain_file(path, sys.maxsize) if record.schema == 1 else _compared(path, record)
            contents[part] = safetensors.torch.load(data)
    return record, contents


def _compared(path: Path, record: Record) -> bytes:
    expected = record.files.get(path.name)
    if not isinstance(expected, dict) or not {"bytes", "sha256"} <= expected.keys():
        raise Damaged(f"{path} is not listed in state.json")
    data = plain_file(path, expected["bytes"])
    if len(data) != expected["bytes"]:
        raise Damaged(f"{path} has {len(data):,} bytes instead of {expected['bytes']:,}")
    if hashlib.sha256(data).hexdigest() != expected["sha256"]:
        raise Damaged(
            f"{path} was changed after it was written: its sha256 is not the one in state.json"
        )
    return data


def problem_of(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, after reading every byte of it; None = nothing."""
    try:
        read(checkpoint)
    except InputError as error:
        return str(error)
    return None


def listed(folder: Path) -> list[Path]:
    """Directories in ``folder`` named like checkpoints, oldest first, whatever they hold."""
    named = (p for p in folder.glob("[0-9]*") if _is_named(p.name))
    # Not sorted by text: 10**9 images have ten digits.
    return sorted((p for p in named if p.is_dir()), key=lambda p: int(p.name))


def _is_named(name: str) -> bool:
    """Whether a name is one that `write` gives a checkpoint: no path that leads elsewhere."""
    return name.isdecimal() and len(name) < 20


def newest_whole(folder: Path, parts: Iterable[str] | None = None) -> Loaded | None:
    """The newest checkpoint that can be read; None = there is none. Warnings name damaged ones.

    Raises:
        Damaged: there are checkpoints, and every one of them is damaged.
    """
    parts, first = None if parts is None else tuple(parts), None
    for path in reversed(listed(folder)):
        try:
            record, contents = read(path, parts)
        except Damaged as error:
            logger.warning("%s: this checkpoint is passed over", error)
            first = first or error
            continue
        if first:
            logger.warning("the checkpoint before, %s, is used instead", path)
        return Loaded(path, record, contents)
    if first:
        raise Damaged(
            f"every checkpoint in {folder} is damaged ({first}); "
            "restore one, or train into another --out"
        )
    return None


def prune(folder: Path, keep: int) -> None:
    """Remove all but the best and the last ``keep`` checkpoints, and what crashes left half-done.

    A ``keep`` of 0 spares all checkpoints.
    """
    for half_written in folder.glob(".*.part"):
        disk.remove(half_written)
    spared = best(folder)
    whole = [path for path in listed(folder) if (path / "state.json").exists()]
    for old in whole[:-keep] if keep else []:
        if old != spared:
            # Renamed first, so that a crash leaves no half of a checkpoint.
            beside = folder / f".{old.name}.part"
            disk.remove(beside)
            disk.calls.rename(old, beside)
            disk.remove(beside)


def set_aside(path: Path, folder: Path) -> Path:
    """Move a checkpoint, or a file that belongs to one, to set-aside; returns where it is then."""
    aside = folder / ASIDE
    disk.ensure_directory(aside)
    number, target = 1, aside / path.name
    while target.exists():
        number, target = number + 1, aside / f"{path.stem}-{number + 1}{path.suffix}"
    disk.calls.rename(path, target)
    disk.sync(path.parent)
    return target


def keep_best(checkpoint: Path, score: float, metric: str, lower_is_better: bool = True) -> bool:
    """Spare a checkpoint from pruning if its score beats the best so far by the same metric.

    Args:
        checkpoint: a directory that `write` made.
        score: any finite number.
        metric: what was measured and how; a best by another metric is replaced.

    Returns:
        Whether it is the best now.
    """
    folder = checkpoint.parent
    before = _read_best(folder)
    comparable = before if before and before["metric"] == metric and best(folder) else None
    better = operator.lt if lower_is_better else operator.gt
    if comparable and not better(score, comparable["score"]):
        return False
    record = {"checkpoint": checkpoint.name, "score": score, "metric": metric}
    record |= {"lower_is_better": lower_is_better}
    disk.replace_file(folder / BEST, (json.dumps(record, indent=1) + "\n").encode())
    return True


def best(folder: Path) -> Path | None:
    """The checkpoint with the best score; None where none was scored, or it is gone."""
    record = _read_best(folder)
    path = folder / record["checkpoint"] if record else folder
    return path if record and (path / "state.json").exists() else None


def _read_best(folder: Path) -> dict[str, Any] | None:
    path = folder / BEST
    if not path.exists():
        return None
    try:
        with reading(path):
            record = parse_json(plain_file(path, LONGEST))
            name, metric = str(record["checkpoint"]), str(record["metric"])
            if not _is_named(name):
                raise ValueError(f"it names {name[:80]!r}, which is no checkpoint")
            return {"checkpoint": name, "score": float(record["score"]), "metric": metric}
    except InputError as error:
        logger.warning("%s; no checkpoint counts as the best", error)
        return None
