"""Curves of runs from their log.jsonl: losses, Wasserstein estimate, gradient norm, speed, and scores where some were logged."""

from collections.abc import Sequence
from pathlib import Path

from ganfast.errors import InputError
from ganfast.log import read_log
from ganfast.run import Run

_PANELS = {
    "critic/loss": "critic loss", "generator/loss": "generator loss", "critic/wasserstein": "Wasserstein estimate",
    "critic/gradient_norm": "gradient norm", "images_per_second": "images/s",
}  # fmt: skip


def draw_curves(folders: Sequence[str], out: str) -> Path:
    """One panel for each quantity that some run logged, one line a run; writes .png or .svg.

    Raises:
        InputError: a folder that is no run or has no log, or another kind of file asked for.
    """
    path = Path(out)
    if path.suffix.lower() not in (".png", ".svg"):
        raise InputError(f"{out}: curves are written as FILE.png or FILE.svg")
    logs = {}
    for folder in folders:
        records = read_log(Run.open(folder).folder / "log.jsonl")
        if not records:
            raise InputError(f"{folder} has logged nothing yet: train it further with `ganfast train --out {folder}`")
        logs[folder] = records
    from matplotlib.figure import Figure

    logged = {key for records in logs.values() for record in records for key in record}
    panels = {k: v for k, v in _PANELS.items() if k in logged} | {k: k for k in sorted(logged) if k.startswith("score/")}
    figure = Figure(figsize=(5 * min(3, len(panels)), 3.2 * -(-len(panels) // 3)), layout="constrained")
    for number, (key, title) in enumerate(panels.items()):
        axes = figure.add_subplot(-(-len(panels) // 3), min(3, len(panels)), number + 1, title=title, xlabel="kimg")
        for folder, records in logs.items():
            points = [(r["images"] / 1000, r[key]) for r in records if isinstance(r.get(key), int | float)]
            if points:
                axes.plot(*zip(*points, strict=True), label=Path(folder).name, linewidth=1)
        if number == 0:
            axes.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path
