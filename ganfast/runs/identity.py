"""What a run is: what its weights follow from. A checkpoint belongs to the run that it agrees with.

A checkpoint is sealed by a hash, whereas anybody may edit config.yaml, or rename a directory.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ganfast.errors import InputError
from ganfast.fields import flatten
from ganfast.outside import LONGEST, parse_json, plain_file, reading
from ganfast.runs.checkpoint import Record

if TYPE_CHECKING:
    from ganfast.runs.run import Run

# Fields that may change when a run is resumed: they say where and how long, not what is computed.
_FREE = (
    *("out", "kimg", "device", "data_root", "data", "compile", "cuda_graphs", "engine", "preset"),
    "accumulate",
)
_FREE_GROUPS = ("log.", "score.", "guard.")
HISTORY = "history.jsonl"
PICTURES = "the pictures"  # named among changed fields
Changes = Mapping[str, tuple[Any, Any]]  # field -> (before, now)


def mathematics(run: "Run") -> dict[str, Any]:
    """What a run's weights follow from: every field that must not change, and the pictures' hashes.

    Values are as JSON holds them, so that they can be compared with those of a checkpoint.
    """
    facts = {name: value for name, value in flatten(run.config).items() if counts(name)}
    facts |= {name: run.data[name] for name in _HASHES if run.data.get(name)}
    return json.loads(json.dumps(facts))


# Of the arrays, and of what identifies the files: a touched file is another one with the same
# pictures. Older runs have the second only.
_HASHES = "pictures_hash", "source_hash"


def counts(name: str) -> bool:
    """Whether a field of the config must not change."""
    return name not in _FREE and not name.startswith(_FREE_GROUPS)


def other_pictures(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, str] | None:
    """The hashes, shortened, that tell the pictures of two runs apart; None = the same pictures."""
    key = next((name for name in _HASHES if before.get(name) and now.get(name)), "")
    if not key or before[key] == now[key]:
        return None
    return str(before[key])[:8], str(now[key])[:8]


def differences(record: Record, run: "Run") -> dict[str, tuple[Any, Any]]:
    """What a checkpoint was trained with, and the run has otherwise: field -> (before, now)."""
    before, now = record.trained_as or {}, mathematics(run)
    both = [name for name in before if name in now and name not in _HASHES]
    changed = {name: (before[name], now[name]) for name in both if before[name] != now[name]}
    if hashes := other_pictures(before, now):
        old, new = (f"those of hash {digest}" for digest in hashes)
        changed[PICTURES] = old, new
    return changed


def refuse_foreign(run: "Run", checkpoint: Path, record: Record) -> None:
    """Raise InputError for a checkpoint of another run.

    What a run's history records as changed may be as it was before. A checkpoint that does not say
    what it was trained with belongs to any run.
    """
    changed = differences(record, run)
    for event in history(run.folder) if changed else []:
        for field, values in event.get("changed", {}).items():
            if field == PICTURES or (field in changed and changed[field][0] in values):
                changed.pop(field, None)
    if changed:
        raise InputError(
            f"{checkpoint} is of another run than {run.folder} ({listed(changed)}): "
            "take one of this run's own, or the run that it is of"
        )


def listed(changed: Changes) -> str:
    """What changed, as part of a sentence."""
    pairs = changed.items()
    return "; ".join(f"{name} was {before!r}, now {now!r}" for name, (before, now) in pairs)


def history(folder: Path) -> list[dict[str, Any]]:
    """What `remember` recorded, oldest first; InputError where it cannot be read."""
    path = folder / HISTORY
    with reading(path):
        lines = plain_file(path, LONGEST).splitlines() if path.exists() else []
        events = [parse_json(line) for line in lines]
    for number, event in enumerate(events, start=1):
        changed = event.get("changed", {}) if isinstance(event, dict) else None
        if not isinstance(changed, dict) or any(
            not isinstance(pair, list) or len(pair) != 2 for pair in changed.values()
        ):
            raise InputError(f"{path} is damaged: line {number} is no event")
    return events
