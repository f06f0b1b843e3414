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
    "cluster_spread": ("spread in clusters", ".3f"),
    "class_recall": ("recall, mean of classes", ".3f"),
    "class_recall_least": ("recall, worst class", ".3f"),
    "classifier_score": ("classifier score", ".2f"),
    "label_accuracy": ("label accuracy", ".2%"),
    "kl_uniform": ("class KL to uniform", ".4f"),
    "kl_data": ("class KL to data", ".4f"),
    "modes": ("classes seen", ".0f"),
    "copy_ratio": ("distance to copies", ".2f"),
}


def table(results: Sequence[Result]) -> str:
    """Scores in rows; sources, then floor and ceiling, in columns; notes and protocol ids below.

    There is a floor and a ceiling for each number of pictures.
    """
    counts = {r.protocol["fakes"]: r for r in results}
    rows = [["", *shortened([r.name for r in results])]]
    for count in counts:
        of_count = f" of {count}" if len(counts) > 1 else ""
        rows[0] += [f"floor{of_count}", f"ceiling{of_count}"]
    for key, (title, form) in _ROWS.items():
        if any(key in r.scores for r in results):
            row = [title, *(_cell(r.scores, key, form) for r in results)]
            for r in counts.values():
                ceiling = format(r.ceiling, form) if key == "frechet" else ""
                row += [_cell(r.floor, key, form), ceiling]
            rows.append(row)
    first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
    lines = []
    for title, *cells in rows:
        cells = [cell.rjust(width) for cell, width in zip(cells, others, strict=True)]
        lines.append("  ".join([title.ljust(first), *cells]))
    lines += _notes(results, list(counts.values()))
    return "\n".join([*lines, *(f"{r.name}: {r.protocol_id}" for r in results)])


def _notes(results: Sequence[Result], counts: Sequence[Result]) -> list[str]:
    """What a reader must know to judge the scores; ``counts`` has a result for every floor."""
    reals = " and ".join(dict.fromkeys(f"{r.floor_pictures:,}" for r in counts)) + " held-out reals"
    if not results[0].against.divided:
        reals += ", which were trained on, too, as the set is not divided"
    gaussian = f"a Gaussian of {COMPONENTS} components fitted to the reference's pixels"
    notes = [f"floor: {reals}; ceiling: {gaussian}"]
    for r in results:
        if own := r.protocol["drawn"].get("classes"):
            others = f"not those of {r.protocol['data']}: no label accuracy"
            notes.append(f"{r.name} has classes of {own}, {others}")
    if not results[0].protocol["published"]:
        local = "local" in results[0].protocol["extractor"]
        notes.append(
            "scores of a local extractor: they compare on this machine only"
            if local
            else "scores of a file the user gave: they compare with those of the same file only"
        )
    return notes


def _cell(scores: dict[str, float], key: str, form: str) -> str:
    return format(scores[key], form) if key in scores else "-"
