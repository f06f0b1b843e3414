"""Curves of runs from log.jsonl: losses, Wasserstein estimate, gradient norm, speed and scores."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ganfast import disk
from ganfast.errors import InputError
from ganfast.evaluate.names import shortened
from ganfast.runs.logfile import read_log
from ganfast.runs.run import Run

_PANELS = {
    "critic/loss": "critic loss",
    "generator/loss": "generator loss",
    "critic/wasserstein": "Wasserstein estimate",
    "critic/gradient_norm": "gradient norm",
    "critic/real_accuracy": "accuracy on reals",
    "critic/fake_accuracy": "accuracy on fakes",
    "generator/spread": "spread of fakes / reals",
    "images_per_second": "images/s",
}


def draw_curves(folders: Sequence[str], out: str) -> Path:
    """One panel for each quantity that some run logged, one line a run; writes .png or .svg.

    Raises:
        InputError: a folder that is no run or has logged nothing to draw, or ``out`` has another
            suffix.
    """
    path = Path(out)
    if path.suffix.lower() not in (".png", ".svg"):
        raise InputError(f"{out}: curves are written as FILE.png or FILE.svg")
    logs = {str(Path(folder)): _logged(Path(folder)) for folder in folders}
    from matplotlib.figure import Figure

    logged = {key for points in logs.values() for key in points}
    panels = {key: title for key, title in _PANELS.items() if key in logged}
    panels |= {key: key for key in sorted(logged - set(_PANELS))}
    rows, columns = -(-len(panels) // 3), min(3, len(panels))
    figure = Figure(figsize=(5 * columns, 3.2 * rows), layout="constrained")
    for number, (key, title) in enumerate(panels.items()):
        axes = figure.add_subplot(rows, columns, number + 1, title=title, xlabel="kimg")
        for colour, points in enumerate(logs.values()):
            curve = points.get(key, [])
            marker = "o" if len(curve) == 1 else None  # one point makes no line
            axes.plot(*zip(*curve, strict=True), color=f"C{colour}", linewidth=1, marker=marker)
        if number == 0:
            _name_runs(axes, shortened(list(logs)))
    picture = io.BytesIO()
    figure.savefig(picture, format=path.suffix[1:].lower(), dpi=110)
    path.parent.mkdir(parents=True, exist_ok=True)
    disk.replace_file(path, picture.getvalue())
    return path


def _logged(folder: Path) -> dict[str, list[tuple[float, float]]]:
    """(kimg, value) of each quantity that is drawn and that a run logged."""
    path = Run.open(folder).folder / "log.jsonl"
    records = read_log(path)
    if not records:
        raise InputError(
            f"{folder} has logged nothing yet: train it further with `ganfast train --out {folder}`"
        )
    points: dict[str, list[tuple[float, float]]] = {}
    for record in records:
        if _is_number(record.get("images")):
            for key, value in record.items():
                if (key in _PANELS or key.startswith("score/")) and _is_number(value):
                    points.setdefault(key, []).append((record["images"] / 1000, value))
    if not points:
        raise InputError(
            f"{path} has none of the quantities that are drawn: {', '.join(_PANELS)}, score/..."
        )
    return points


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and abs(value) < 1e300  # neither infinite nor NaN


def _name_runs(axes: Any, names: Sequence[str]) -> None:
    """A legend with any name: matplotlib drops a leading "_" and reads two "$" as a formula."""
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], color=f"C{colour}") for colour in range(len(names))]
    legend = axes.legend(lines, ["run"] * len(names), fontsize="small")
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_parse_math(False)
        text.set_text(name.encode(errors="backslashreplace").decode())  # it may be no UTF-8
