"""`ganfast bench report`: a Markdown table and plots of records."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ganfast.bench.records import Record, lasting
from ganfast.errors import InputError

COLOURS = (
    "#9a9a9a",
    "#4c78a8",
    "#f58518",
    "#54a24b",
    "#e45756",
    "#72b7b2",
    "#b279a2",
    "#eeca3b",
    "#9d755d",
    "#ff9da6",
    "#bab0ac",
)

_COLUMNS = {
    "images_per_s": "{:,.0f}",
    "seconds_per_kimg": "{:.3f}",
    "share_of_matrix_peak": "{:.0%}",
    "first_call_s": "{:.1f} s",
}


def write_report(found: Sequence[Record], folder: Path) -> list[Path]:
    """report.md, and bars, roofline and scaling curves as PNG and SVG where the records have what they show."""
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / "report.md"]
    written[0].write_text(markdown(found))
    known = {"preset", "size", "width", "batch", "images"}
    trains = [
        r
        for r in found
        if r["kind"] == "train" and r["measurements"] and known <= r["conditions"].keys()
    ]
    if trains:
        written += _saved(_bars(trains), folder / "bars")
        counted = [
            r
            for r in trains
            if "matrix_flops" in r["calibration"]
            and any("flops_per_s" in m for m in r["measurements"])
        ]
        if counted:
            written += _saved(_roofline(counted), folder / "roofline")
        for name, group in sweeps(trains).items():
            written += _saved(_scaling(name.partition("-")[0], group), folder / f"scaling-{name}")
    return written


def markdown(found: Sequence[Record]) -> str:
    """One row a measurement, under what is common to all of a record."""
    lines = []
    for r in found:
        e, c = r["environment"], r["conditions"]
        where = e.get("gpu") or e.get("cpu")
        lines += [
            f"### {r['name']}",
            "",
            ("**stopped before its end**; " if r.get("partial") else "")
            + f"{where}, {c.get('threads', e.get('threads'))} threads, torch {e.get('torch')}, commit {e.get('commit')}, {r['utc']}"
            + (
                f"; **noisy** (spread {r['noise']['spread']:.0%}, drift {r['noise']['drift']:.0%})"
                if r["noise"]["noisy"]
                else ""
            ),
            "",
            "| case | phase | variant | median | 20% | 80% | images/s | s/kimg | of matrix peak | first call |",
            "|---|---|---|---|---|---|---|---|---|---|",
        ]
        for m in r["measurements"]:
            scale, unit = (1e3, "ms") if m["unit"] == "s" else (1.0, m["unit"])
            s = m["summary"]
            cells = [
                m["case"],
                m["phase"],
                m["variant"],
                *(f"{s[k] * scale:.3f} {unit}" for k in ("median", "p20", "p80")),
            ]
            for key, form in _COLUMNS.items():
                cells.append(form.format(m[key]) if key in m else "")
            lines.append(f"| {' | '.join(cells)} |")
        lines += [f"- {name}: {why}" for name, why in r.get("failed", {}).items()] + [""]
    return "\n".join(lines)


def sweeps(trains: Sequence[Record]) -> dict[str, list[Record]]:
    """Records of one machine and code that differ in nothing but batch, width or size, three or more; by axis and preset."""
    found: dict[str, list[Record]] = {}
    for axis in ("batch", "width", "size"):
        groups: dict[Any, list[Record]] = {}
        for r in trains:
            same = lasting(
                r["conditions"], axis, "images"
            )  # of an iteration: as many as its batches hold
            machine = [r["environment"].get(name) for name in ("cpu", "gpu", "torch")]
            groups.setdefault(
                json.dumps([same, machine, r.get("code")], sort_keys=True), []
            ).append(r)
        for group in groups.values():
            if len({r["conditions"].get(axis) for r in group}) >= 3:
                stem = f"{axis}-{group[0]['conditions']['preset']}"
                names = (stem, *(f"{stem}-{number}" for number in range(2, len(found) + 2)))
                found[next(name for name in names if name not in found)] = sorted(
                    group, key=lambda r: r["conditions"][axis]
                )
    return found


def _plots() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise InputError(
            "plots need matplotlib: pip install 'ganfast[bench]'; report.md is written"
        ) from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def _variants(trains: Sequence[Record]) -> dict[str, str]:
    names = list(dict.fromkeys(m["variant"] for r in trains for m in r["measurements"]))
    return dict(zip(names, COLOURS * 3, strict=False))


def _bars(trains: Sequence[Record]) -> Any:
    """Whole iteration: medians with 20th and 80th percentile, as speed over the slowest variant of each setting."""
    colours = _variants(trains)
    figure, axes = _plots().subplots(
        figsize=(max(6.0, 1.3 * len(trains) + 2), 4.2), layout="constrained"
    )
    width = 0.8 / len(colours)
    for i, (name, colour) in enumerate(colours.items()):
        at, heights, ends = [], [], []
        for k, r in enumerate(trains):
            by = {m["variant"]: m for m in r["measurements"] if m["phase"] == "iteration"}
            if name in by:
                rate = [
                    r["conditions"]["images"] / by[name]["summary"][p]
                    for p in ("p80", "median", "p20")
                ]
                at.append(k + i * width)
                heights.append(rate[1])
                ends.append((rate[1] - rate[0], rate[2] - rate[1]))
        axes.bar(
            at,
            heights,
            width,
            yerr=np.array(ends).T if ends else None,
            capsize=2,
            color=colour,
            label=name,
        )
    labels = [
        f"{r['conditions']['preset']}\n{r['conditions']['size']}px b{r['conditions']['batch']}"
        for r in trains
    ]
    axes.set_xticks([k + 0.4 - width / 2 for k in range(len(trains))], labels, fontsize=8)
    axes.set_ylabel("images/s, whole iteration")
    axes.legend(fontsize=8, ncols=2)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _roofline(trains: Sequence[Record]) -> Any:
    """Achieved operations a second of each phase against the measured matrix peak."""
    colours = _variants(trains)
    figure, axes = _plots().subplots(figsize=(6.4, 4.4), layout="constrained")
    seen = set()
    for r in trains:
        for m in r["measurements"]:
            if "flops_per_s" in m:
                label = m["variant"] if m["variant"] not in seen else None
                seen.add(m["variant"])
                marker = "o" if m["phase"] == "critic" else "^"
                axes.scatter(
                    m["flops"] / 1e9,
                    m["flops_per_s"] / 1e9,
                    color=colours[m["variant"]],
                    marker=marker,
                    label=label,
                    s=28,
                )
    peak = max(r["calibration"]["matrix_flops"] for r in trains)
    axes.axhline(peak / 1e9, color="black", lw=1)
    axes.annotate(
        "measured matrix peak",
        (0.02, peak / 1e9),
        xycoords=("axes fraction", "data"),
        va="bottom",
        fontsize=8,
    )
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="GFLOP a call (circle: critic, triangle: generator)",
        ylabel="GFLOP/s achieved",
    )
    axes.set_ylim(top=peak / 1e9 * 1.6)
    axes.legend(fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _scaling(axis: str, group: Sequence[Record]) -> Any:
    """Seconds an iteration over batch, width or side."""
    colours = _variants(group)
    figure, axes = _plots().subplots(figsize=(6.0, 4.2), layout="constrained")
    for name, colour in colours.items():
        points = [
            (r["conditions"][axis], m["summary"])
            for r in group
            for m in r["measurements"]
            if m["phase"] == "iteration" and m["variant"] == name
        ]
        if points:
            x = [at for at, _ in points]
            axes.plot(
                x,
                [s["median"] * 1e3 for _, s in points],
                marker="o",
                ms=4,
                color=colour,
                label=name,
            )
            axes.fill_between(
                x,
                [s["p20"] * 1e3 for _, s in points],
                [s["p80"] * 1e3 for _, s in points],
                color=colour,
                alpha=0.2,
            )
    first = group[0]["conditions"]
    others = [
        f"{name} {first[name]}"
        for name in ("size", "width", "batch", "precision", "device", "threads")
        if name != axis
    ]
    axes.set_title(f"{first['preset']}: {', '.join(others)}", fontsize=9)
    axes.set(xscale="log", yscale="log", xlabel=axis, ylabel="ms an iteration")
    ticks = [r["conditions"][axis] for r in group]
    axes.set_xticks(ticks, [str(t) for t in ticks])
    axes.set_xticks([], minor=True)
    axes.legend(fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _saved(figure: Any, stem: Path) -> list[Path]:
    paths = [stem.with_suffix(suffix) for suffix in (".png", ".svg")]
    for path in paths:
        figure.savefig(path, dpi=130)
    _plots().close(figure)
    return paths
