"""Results side by side, as text."""

from collections.abc import Sequence

from ganfast.evaluate.evaluation import Result

_ROWS = {  # score -> what the table calls it, and its format
    "frechet": ("Frechet distance", ".3f"), "kernel": ("kernel distance", ".4f"), "precision": ("precision", ".3f"),
    "recall": ("recall", ".3f"), "density": ("density", ".3f"), "coverage": ("coverage", ".3f"),
    "classifier_score": ("classifier score", ".2f"), "label_accuracy": ("label accuracy", ".2%"),
    "kl_uniform": ("class KL to uniform", ".4f"), "kl_data": ("class KL to data", ".4f"), "modes": ("classes seen", ".0f"),
    "copy_ratio": ("distance to copies", ".2f"),
}  # fmt: skip


def table(results: Sequence[Result]) -> str:
    """Scores in rows, sources in columns, then the floor (held-out reals) and the ceiling; protocol ids below."""
    heads = ["", *(r.name.rstrip("/").split("/")[-1] for r in results), "floor", "ceiling"]
    rows = [heads]
    for key, (title, form) in _ROWS.items():
        if not any(key in r.scores for r in results):
            continue
        cells = [format(r.scores[key], form) if key in r.scores else "-" for r in results]
        floor = format(results[0].floor[key], form) if key in results[0].floor else "-"
        rows.append([title, *cells, floor, format(results[0].ceiling, form) if key == "frechet" else ""])
    widths = [max(len(row[i]) for row in rows) for i in range(len(heads))]
    lines = ["  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(r, widths, strict=True))) for r in rows]
    reals = "held-out reals" + ("" if results[0].against.divided else ", which were trained on, too, as the set is not divided")
    lines.append(f"floor: {reals}; ceiling: a Gaussian of 300 components fitted to the reference's pixels")
    for r in results:
        if own := r.protocol["drawn"].get("classes"):
            lines.append(f"{r.name} has classes of {own}, not those of {r.protocol['data']}: no label accuracy")
    if not results[0].protocol["published"]:
        lines.append("scores of a local extractor: they compare on this machine only" if "local" in results[0].protocol["extractor"]
                     else "scores of a file the user gave: they compare with those of the same file only")  # fmt: skip
    return "\n".join([*lines, *(f"{r.name}: {r.protocol_id}" for r in results)])
