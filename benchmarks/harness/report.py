"""`ganfast bench report`: a Markdown table of records; and `make gpu`'s, in plain text."""

from collections.abc import Sequence
from typing import Any

from ganfast.bench.records import Record

_COLUMNS = {
    "images_per_s": "{:,.0f}",
    "seconds_per_kimg": "{:.3f}",
    "share_of_matrix_peak": "{:.0%}",
    "share_of_copy": "{:.0%}",
    "first_call_s": "{:.1f} s",
}
_HEADS = ["case", "phase", "variant", "median", "20%", "80%", "images/s", "s/kimg"]
_HEADS += ["of matrix peak", "of a copy", "first call"]


def markdown(records: Sequence[Record]) -> str:
    """One row a measurement, under the conditions that its record has in common."""
    lines = []
    for record in records:
        lines += [f"### {record['name']}", "", _conditions(record), "", _line(_HEADS)]
        lines.append("|" + "---|" * len(_HEADS))
        lines += [_line(_cells(m)) for m in record["measurements"]]
        lines += [f"- {name}: {why}" for name, why in record.get("failed", {}).items()] + [""]
    return "\n".join(lines)


def _conditions(record: Record) -> str:
    e, noise = record["environment"], record["noise"]
    threads = record["conditions"].get("threads", e.get("threads"))
    stopped = "**stopped before its end**; " if record.get("partial") else ""
    noisy = f"; **noisy** (spread {noise['spread']:.0%}, drift {noise['drift']:.0%})"
    return (
        f"{stopped}{e.get('gpu') or e.get('cpu')}, {threads} threads, torch {e.get('torch')}, "
        f"commit {e.get('commit')}, {record['utc']}{noisy if noise['noisy'] else ''}"
    )


def _cells(m: dict[str, Any]) -> list[str]:
    scale, unit = (1e3, "ms") if m["unit"] == "s" else (1.0, m["unit"])
    times = [f"{m['summary'][key] * scale:.3f} {unit}" for key in ("median", "p20", "p80")]
    more = [form.format(m[key]) if key in m else "" for key, form in _COLUMNS.items()]
    return [m["case"], m["phase"], m["variant"], *times, *more]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def phases(record: Record) -> list[str]:
    """For a terminal: a line for each measurement of phases, and the longest kernels of the best.

    Of another record, its name and failures.
    """
    stopped = ", stopped before its end" if record.get("partial") else ""
    lines = [record["name"] + stopped]
    timed = [m for m in record["measurements"] if "first_call_s" in m or "images_per_s" in m]
    for m in timed:
        cells = [f"{m['phase']:24}{m['variant']:24}{m['summary']['median'] * 1e6:10,.0f} us"]
        cells += [f"{m['launches']} launches"] if "launches" in m else []
        cells += [f"busy {m['busy_s'] * 1e6:,.0f} us"] if "busy_s" in m else []
        cells += [f"idle {m['idle_share']:.0%}"] if "idle_share" in m else []
        cells += [f"first {m['first_call_s']:.1f} s"] if "first_call_s" in m else []
        cells += [f"off {m['error']:.1g}"] if m.get("error") is not None else []
        cells += [m["profiler"]] if "profiler" in m else []
        lines.append("  " + ", ".join(cells))
    for phase in dict.fromkeys(m["phase"] for m in timed):
        ours = [m for m in timed if m["phase"] == phase and m["variant"].startswith("ganfast")]
        best = min(ours, key=lambda m: m["summary"]["median"], default=None)
        if best and "longest" in best:
            lines.append(f"  longest of {phase}, {best['variant']}")
            for name, count, seconds in best["longest"]:
                lines.append(f"  {seconds * 1e6:10,.1f} us {count:5}x  {name}")
    return lines + [f"  {name}: {why}" for name, why in record.get("failed", {}).items()]
