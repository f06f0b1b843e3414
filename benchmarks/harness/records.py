"""Records: one JSON schema for every measurement, with raw samples, conditions and environment.

    {"schema": 2, "kind": "train" | "kernels" | "sample" | "loop" | ..., "name": ..., "utc": ...,
     "environment": {...},    what `ganfast env --json` prints
     "code": ...,             sha256 of all of ganfast's Python files (since 2026-11-23)
     "conditions": {...},     must be equal for two records to be about the same thing
     "calibration": {"loop_s": [...], "matrix_flops": ..., "copy_bytes_per_s": ..., ...},
     "noise": {"spread": ..., "drift": ..., "noisy": ...},
     "measurements": [{"case": "", "phase": "critic", "variant": "jax", "unit": "s",
                       "samples": [...], "summary": {...}, ...}],
     "failed": {"variant": "why"},
     "partial": true}         only in <name>.partial.json: measured so far, or until a stop

A campaign, as in benchmarks/results, is one file of such records, one a line:

    python -m ganfast.bench.records results/*.json > 2026-11-24-train.jsonl
"""

import datetime
import hashlib
import itertools
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import ganfast
from ganfast.bench.stats import noise, summary
from ganfast.errors import InputError

SCHEMA = 2
_SAMPLES = 100  # of a measurement in a campaign
Record = dict[str, Any]


def measurement(
    phase: str, variant: str, samples: Sequence[float], case: str = "", unit: str = "s", **more: Any
) -> dict[str, Any]:
    """One entry of "measurements"."""
    entry = {"case": case, "phase": phase, "variant": variant, "unit": unit}
    return {**entry, "samples": list(samples), "summary": summary(samples), **more}


def make(
    kind: str,
    name: str,
    conditions: Mapping[str, Any],
    measurements: Sequence[dict[str, Any]],
    calibration: Mapping[str, Any] | None = None,
    failed: Mapping[str, str] | None = None,
) -> Record:
    from ganfast.environment import environment

    begun = {
        "schema": SCHEMA,
        "kind": kind,
        "name": name,
        "utc": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "environment": environment(),
        "code": code(),
        "conditions": dict(conditions),
        "calibration": dict(calibration or {}),
    }
    return updated(begun, measurements, failed or {})


def updated(
    record: Record, measurements: Sequence[dict[str, Any]], failed: Mapping[str, str]
) -> Record:
    """The record with all that has been measured by now."""
    flag = noise([m["samples"] for m in measurements if m["unit"] == "s"])
    return record | {"noise": flag, "measurements": list(measurements), "failed": dict(failed)}


def reason(error: Exception) -> str:
    """For "failed"."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


@cache
def code() -> str:
    """Of every Python file: unlike a commit it stays when a record is added to the checkout."""
    home, digest = Path(ganfast.__file__).parent, hashlib.sha256()
    links = [home / name for name in ("kernels", "export", "bench")]  # rglob does not follow them
    for path in sorted({path for folder in (home, *links) for path in folder.rglob("*.py")}):
        digest.update(str(path.relative_to(home)).encode() + path.read_bytes())
    return digest.hexdigest()


def write(record: Record, folder: Path) -> Path:
    """As <folder>/<date>-<name>.json, or with -2, -3 behind it: no record is ever replaced."""
    stem = f"{record['utc'][:10]}-{record['name']}"
    suffixes = itertools.chain([""], (f"-{number}" for number in itertools.count(2)))
    paths = (folder / f"{stem}{suffix}.json" for suffix in suffixes)
    path = _put(record, next(path for path in paths if not path.exists()))
    _partial(record, folder).unlink(missing_ok=True)
    return path


def keeper(folder: Path | None) -> Callable[[Record], object]:
    """What writes a record that is still being measured, so that a stop loses nothing.

    None = nothing is written.
    """
    return lambda record: folder and _put(record | {"partial": True}, _partial(record, folder))


def _partial(record: Record, folder: Path) -> Path:
    return folder / f"{record['utc'][:10]}-{record['name']}.partial.json"


def _put(record: Record, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(record, indent=1) + "\n")
    beside.replace(path)
    return path


def read(path: Path) -> Record:
    """The record in a file that holds one; raises InputError where it holds another number."""
    records = read_all(path)
    if len(records) != 1:
        raise InputError(
            f"{path} holds {len(records)} records; expected one, as ganfast bench writes"
        )
    return records[0]


def read_all(path: Path) -> list[Record]:
    """The records of a file: one as `write` makes it, or a campaign of one a line (.jsonl).

    Raises:
        InputError: no such file, no records, or those of another version of ganfast.
    """
    try:
        text = path.read_text()
        parts = text.splitlines() if path.suffix == ".jsonl" else [text]
        loaded = [json.loads(part) for part in parts]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(
            f"{path} cannot be read as a benchmark record: {error}; "
            "expected JSON that ganfast bench wrote"
        ) from error
    for record in loaded:
        schema = record.get("schema") if isinstance(record, dict) else None
        if schema != SCHEMA:
            raise InputError(
                f"{path} has schema {schema!r}; expected {SCHEMA}: "
                "a record of another ganfast, or none"
            )
        try:
            _check(record)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            what = f"{type(error).__name__}: {error}"
            raise InputError(
                f"{path} is no whole benchmark record ({what}); measure again"
            ) from error
    return loaded


def _check(record: Record) -> None:
    """Raises Python's own errors where something that every reader needs is not there."""
    texts, tables = ("kind", "name", "utc"), ("environment", "conditions", "calibration", "noise")
    for names, kind in ((texts, str), (tables, dict)):
        for name in names:
            if not isinstance(record[name], kind):
                raise TypeError(f"{name} is of another type")
    bool(record["noise"]["noisy"])
    for m in record["measurements"]:
        named = all(isinstance(m[name], str) for name in ("case", "phase", "variant", "unit"))
        if not named or not (m["samples"] or m.get("count")):
            raise ValueError(f"a measurement without samples or name: {m.get('variant')}")
        for number in (*m["samples"], *(m["summary"][name] for name in ("p20", "median", "p80"))):
            float(number)


def condensed(record: Record) -> Record:
    """For a campaign: samples of six digits, and none where there are more than a hundred.

    Up to a hundred are kept, because ratios of rounds are computed from them.
    """

    def short(m: dict[str, Any]) -> dict[str, Any]:
        count, samples = len(m["samples"]), [float(f"{x:.6g}") for x in m["samples"][:_SAMPLES]]
        return m | ({"samples": samples} if count <= _SAMPLES else {"samples": [], "count": count})

    return record | {"measurements": [short(m) for m in record["measurements"]]}


def lasting(conditions: Mapping[str, Any], *but: str) -> dict[str, Any]:
    """Conditions that two records must share to be about the same thing, without ``but``."""
    return {name: value for name, value in conditions.items() if name not in ("load_1min", *but)}


def keyed(record: Record) -> dict[tuple[str, str, str], dict[str, Any]]:
    """Measurements by (case, phase, variant)."""
    return {(m["case"], m["phase"], m["variant"]): m for m in record["measurements"]}


if __name__ == "__main__":
    for name in sys.argv[1:]:
        for one in read_all(Path(name)):
            print(json.dumps(condensed(one)))
