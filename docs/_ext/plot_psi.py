"""Draws docs/pictures/psi.svg from docs/results/psi-digits.json: python docs/_ext/plot_psi.py"""

import json
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

# Text as text; the same bytes each time.
matplotlib.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "psi"}
DOCS = Path(__file__).parents[1]


def main() -> None:
    record = json.loads((DOCS / "results" / "psi-digits.json").read_text())
    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axes = figure.add_subplot(title="wgan-gp on digits", xlabel="recall", ylabel="precision")
    rows = record["rows"]
    axes.plot([r["recall"] for r in rows], [r["precision"] for r in rows], marker="o", label="psi")
    for row in rows:
        place = row["recall"], row["precision"]
        axes.annotate(f"{row['psi']:g}", place, textcoords="offset points", xytext=(6, 4))
    axes.plot(record["floor"]["recall"], record["floor"]["precision"], "k*", label="held-out reals")
    axes.set_ylim(0.8, 1.0)
    axes.legend(loc="lower left")
    figure.savefig(DOCS / "pictures" / "psi.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
