"""The state of a run on disk: safetensors and JSON in a directory that appears whole or not at all.

    checkpoints/
        000012800/   named by real images shown
            generator, critic, ema, optimizer_generator, optimizer_critic   .safetensors
            state.json   schema, counter, position in log.jsonl, size and sha256 of the other files and of itself
        best.json        the checkpoint with the best score, which `prune` spares
        set-aside/       what a run that went on from an earlier checkpoint left behind

Nothing random is stored: every draw is a function of the seed and the image counter (`ganfast.random`).
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

import ganfast
from ganfast import disk
from ganfast.errors import InputError
from ganfast.log import logger
from ganfast.tensors import Contents

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
    trained_as: Mapping[str, Any] | None = (
        None  # what it was trained with, as JSON holds it; None where nobody said
    )


def write(
    folder: Path,
    images: int,
    contents: Contents,
    log_lines: int,
    trained_as: Mapping[str, Any] | None = None,
) -> Path:
    """Write ``folder/<images, 9 digits>``, beside it first and then renamed, so that a half-written one is never seen.

    Returns:
        The checkpoint's directory. A whole one that is there already is kept: the same counter means the same state.

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
        files[f"{part}.safetensors"] = {
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
    facts = {
        "schema": SCHEMA,
        "images": images,
        "ganfast": ganfast.__version__,
        "torch": str(torch.__version__),
    }
    facts |= {} if trained_as is None else {"trained_as": dict(trained_as)}
    disk.write_file(
        beside / "state.json", _sealed(facts | {"log_lines": log_lines, "files": files})
    )
    if target.exists():
        set_aside(target, folder)
    disk.publish(beside, target)
    return target


def _sealed(facts: dict[str, Any]) -> bytes:
    """JSON that ends with its own hash; written in one way only, so that no byte of it can change unseen."""
    digest = hashlib.sha256(json.dumps(facts, indent=1).encode()).hexdigest()
    return (json.dumps(facts | {"sha256": digest}, indent=1) + "\n").encode()


def read_record(checkpoint: Path) -> Record:
    """What state.json says. Raises `Damaged` where it is missing or was changed, InputError for a later schema."""
    path = checkpoint / "state.json"
    try:
        data = path.read_bytes()
        state: dict[str, Any] = json.loads(data)
        schema, images = state["schema"], int(state["images"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise Damaged(
            f"{checkpoint} is not a checkpoint of ganfast: state.json is missing or damaged ({error})"
        ) from error
    if schema == 1 and "sha256" not in state:
        return Record(1, images, None, {})
    facts = {key: value for key, value in state.items() if key != "sha256"}
    sealed = _sealed(facts) == data
    if schema != SCHEMA and (sealed or "sha256" not in state):
        raise InputError(
            f"{checkpoint} has schema {schema}; this version reads schemas 1 to {SCHEMA}: update ganfast"
        )
    if not sealed:
        raise Damaged(
            f"{path} was changed after it was written: its sha256 is not that of its contents"
        )
    lines, files = state.get("log_lines"), state.get("files")
    if not isinstance(files, dict) or not isinstance(lines, int) or lines < 0:
        raise Damaged(f"{path} lacks the files of the checkpoint, or its position in the log")
    trained_as = state.get("trained_as")
    return Record(
        schema, images, lines, files, trained_as if isinstance(trained_as, dict) else None
    )


def read(
    checkpoint: Path, parts: Iterable[str] = PARTS
) -> tuple[Record, dict[str, dict[str, Tensor]]]:
    """The tensors of some parts, from bytes that have been compared with their hashes.

    Raises:
        Damaged: a file is missing, or is not what was written; names it.
        InputError: a checkpoint of a later version.
    """
    record, contents = read_record(checkpoint), {}
    for part in parts:
        path = checkpoint / f"{part}.safetensors"
        try:
            data = path.read_bytes()
        except OSError as error:
            raise Damaged(f"{path} cannot be read: {error.strerror or error}") from error
        if record.schema > 1:
            _compare(path, data, record)
        try:
            contents[part] = safetensors.torch.load(data)
        except (
            Exception
        ) as error:  # safetensors raises its own type, and others, for damaged headers
            raise Damaged(f"{path} is damaged: {error}") from error
    return record, contents


def _compare(path: Path, data: bytes, record: Record) -> None:
    expected = record.files.get(path.name)
    if not isinstance(expected, dict) or not {"bytes", "sha256"} <= expected.keys():
        raise Damaged(f"{path} is not listed in state.json")
    if len(data) != expected["bytes"]:
        raise Damaged(f"{path} has {len(data):,} bytes instead of {expected['bytes']:,}")
    if hashlib.sha256(data).hexdigest() != expected["sha256"]:
        raise Damaged(
            f"{path} was changed after it was written: its sha256 is not the one in state.json"
        )


def problem_of(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, after reading every byte of it; None = nothing."""
    try:
        read(checkpoint)
    except InputError as error:
        return str(error)
    return None


def listed(folder: Path) -> list[Path]:
    """Directories below ``folder`` that are named like checkpoints, oldest first, also those that lost what makes them one."""
    found = (
        p for p in folder.glob("[0-9]*") if p.name.isdecimal() and len(p.name) < 20 and p.is_dir()
    )
    return sorted(found, key=lambda p: int(p.name))  # not by text: 10**9 images have ten digits


def newest_whole(
    folder: Path, parts: Iterable[str] = PARTS
) -> tuple[Path, Record, dict[str, dict[str, Tensor]]] | None:
    """The newest checkpoint that can be read, and its contents; None where there is none. Damaged ones are named in a warning.

    Raises:
        Damaged: there are checkpoints, and every one of them is damaged.
    """
    parts, first = tuple(parts), None
    for path in reversed(listed(folder)):
        try:
            record, contents = read(path, parts)
        except Damaged as error:
            logger.warning("%s: this checkpoint is passed over", error)
            first = first or error
            continue
        if first:
            logger.warning("the checkpoint before, %s, is used instead", path)
        return path, record, contents
    if first:
        raise Damaged(
            f"every checkpoint in {folder} is damaged ({first}); restore one, or train into another --out"
        )
    return None


def prune(folder: Path, keep: int) -> None:
    """Remove all but the last ``keep`` checkpoints and the best, 0 removes none of them, and what crashes left half-written."""
    for left in folder.glob(".*.part"):
        disk.remove(left)
    spared, whole = (
        best(folder),
        [path for path in listed(folder) if (path / "state.json").exists()],
    )
    for old in whole[:-keep] if keep else []:
        if old != spared:
            beside = (
                folder / f".{old.name}.part"
            )  # gone at once: a crash half-way leaves no half checkpoint
            disk.remove(beside)
            disk.calls.rename(old, beside)
            disk.remove(beside)


def set_aside(path: Path, folder: Path) -> Path:
    """Move a checkpoint, or a file that belongs to one, out of the way of a run that goes on without it; returns where it is."""
    aside = folder / ASIDE
    disk.ensure_directory(aside)
    number, target = 1, aside / path.name
    while target.exists():
        number, target = number + 1, aside / f"{path.stem}-{number + 1}{path.suffix}"
    disk.calls.rename(path, target)
    disk.sync(path.parent)
    return target


def keep_best(checkpoint: Path, score: float, metric: str, lower_is_better: bool = True) -> bool:
    """Spare a checkpoint from pruning if its score beats that of the best so far, by the same metric.

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
    if comparable and not (
        score < comparable["score"] if lower_is_better else score > comparable["score"]
    ):
        return False
    record = {
        "checkpoint": checkpoint.name,
        "score": score,
        "metric": metric,
        "lower_is_better": lower_is_better,
    }
    disk.replace_file(folder / BEST, (json.dumps(record, indent=1) + "\n").encode())
    return True


def best(folder: Path) -> Path | None:
    """The checkpoint with the best score; None where none was scored, or it is gone."""
    record = _read_best(folder)
    path = folder / record["checkpoint"] if record else folder
    return path if record and (path / "state.json").exists() else None


def _read_best(folder: Path) -> dict[str, Any] | None:
    try:
        record = json.loads((folder / BEST).read_text())
        return {
            "checkpoint": str(record["checkpoint"]),
            "score": float(record["score"]),
            "metric": str(record["metric"]),
        }
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        logger.warning("%s is damaged (%s): no checkpoint counts as the best", folder / BEST, error)
        return None
