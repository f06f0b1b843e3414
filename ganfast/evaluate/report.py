"""Results side by side, as text."""

from collections.abc import Sequence

from ganfast.evaluate.ceiling import COMPONENTS
from ganfast.evaluate.evaluation import Result
from ganfast.evaluate.names import shortened

_ROWS = {  # score -> what the table calls it, and its format
    "frechet": ("Frechet distance", ".3f"),
    "kernel": ("kernel distance", ".4f"),
    "precision": ("precision", ".3f"),
    "recall": ("recall", ".3f"),
    "density": ("density", ".3f"),
    "coverage": ("coverage", ".3f"),
    "classifier_score": ("classifier score", ".2f"),
    "label_accuracy": ("label accuracy", ".2%"),
    "kl_uniform": ("class KL to uniform", ".4f"),
    "kl_data": ("class KL to data", ".4f"),
    "modes": ("classes seen", ".0f"),
    "copy_ratio": ("distance to copies", ".2f"),
}


def table(results: Sequence[Result]) -> str:
    """Scores in rows, sources in columns, then floor and ceiling for each number of pictures; protocol ids below."""
    counts = {r.protocol["fakes"]: r for r in results}
    heads = ["", *shortened([r.name for r in results])]
    for count in counts:
        heads += [
            f"{what} of {count}" if len(counts) > 1 else what for what in ("floor", "ceiling")
        ]
    rows = [heads]
    for key, (title, form) in _ROWS.items():
        if any(key in r.scores for r in results):
            row = [title, *(_cell(r.scores, key, form) for r in results)]
            for r in counts.values():
                row += [
                    _cell(r.floor, key, form),
                    format(r.ceiling, form) if key == "frechet" else "",
                ]
            rows.append(row)
    widths = [max(len(row[i]) for row in rows) for i in range(len(heads))]
    lines = [
        "  ".join(
            c.ljust(w) if i == 0 else c.rjust(w)
            for i, (c, w) in enumerate(zip(r, widths, strict=True))
        )
        for r in rows
    ]
    reals = (
        " and ".join(dict.fromkeys(f"{r.floor_pictures:,}" for r in counts.values()))
        + " held-out reals"
    )
    reals += (
        ""
        if results[0].against.divided
        else ", which were trained on, too, as the set is not divided"
    )
    lines.append(
        f"floor: {reals}; ceiling: a Gaussian of {COMPONENTS} components fitted to the reference's pixels"
    )
    for r in results:
        if own := r.protocol["drawn"].get("classes"):
            lines.append(
                f"{r.name} has classes of {own}, not those of {r.protocol['data']}: no label accuracy"
            )
    if not results[0].protocol["published"]:
        lines.append(
            "scores of a local extractor: they compare on this machine only"
            if "local" in results[0].protocol["extractor"]
            else "scores of a file the user gave: they compare with those of the same file only"
        )
    return "\n".join([*lines, *(f"{r.name}: {r.protocol_id}" for r in results)])


def _cell(scores: dict[str, float], key: str, form: str) -> str:
    return format(scores[key], form) if key in scores else "-"
