"""Quality of recipes: train each of `recipes/<set>/<preset>.yaml` from fixed seeds, score its checkpoints, record both.

python benchmarks/quality.py train mnist wgan-gp --seed 0      # runs/quality/mnist/wgan-gp-0, resumed if it is there
python benchmarks/quality.py score mnist                       # results/quality/mnist-wgan-gp-0.json and so on, of finished runs
python benchmarks/quality.py score celeba-64 --extractor squeezenet.npz
python benchmarks/quality.py table mnist                       # a table of docs/results/quality.md, from the records
python benchmarks/quality.py table mnist --write               # put into that page

Every row of a table is given the same processor time of one thread: recipes name the thousand images that fit into it. What a row
took is recorded, wall clock and processor seconds, with the other conditions. Runs that still go on are scored without a record.
"""

import argparse
import dataclasses
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ganfast.checkpoint import listed
from ganfast.device import find_device
from ganfast.environment import environment
from ganfast.evaluate.evaluation import Evaluation, open_reference
from ganfast.evaluate.extractors import find_extractor
from ganfast.evaluate.sources import of_run
from ganfast.run import Run

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "quality"
PAGE = HERE.parent / "docs" / "results" / "quality.md"
QUICK = 2000  # pictures of each checkpoint, to choose the best
RUNS = Path(os.environ.get("GANFAST_QUALITY_RUNS", "runs/quality"))


def train(data: str, preset: str, seed: int) -> Path:
    """The run of a recipe, trained to its end; what that cost is added to cost.json."""
    folder = RUNS / data / f"{preset}-{seed}"
    recipe = HERE / "recipes" / data / f"{preset}.yaml"
    command = ["train", "--config", str(recipe), "--seed", str(seed), "--out", str(folder), "--quiet"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent)}
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    try:
        subprocess.run([sys.executable, "-m", "ganfast", *command], env=environment, check=True)
    finally:  # what a stopped part took counts too
        _add_cost(folder / "cost.json", before, time.monotonic() - began)
    return folder


def _add_cost(record: Path, before: resource.struct_rusage, wall: float) -> None:
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cost: dict[str, float] = {"cpu_seconds": 0.0, "wall_seconds": 0.0, "niceness": os.nice(0)}
    if record.exists():
        cost = json.loads(record.read_text())
    cost["cpu_seconds"] += after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    cost["wall_seconds"] += wall
    record.write_text(json.dumps(cost, indent=1) + "\n")


def score(data: str, extractor: str) -> None:
    """Records of all finished runs that have none: the last checkpoint, and the best by the Frechet distance of fewer pictures."""
    waiting = [f for f in sorted((RUNS / data).iterdir()) if not (RESULTS / f"{data}-{f.name}.json").exists()]
    if not waiting:
        return
    evaluation, own = _evaluation(waiting[0], extractor), ("out", "data_root")
    for folder in waiting:
        run = Run.open(folder)
        names = [path.name for path in listed(run.checkpoint_folder)]
        quick = _quick(run, names, evaluation)
        print(folder.name, quick, flush=True)
        if not (folder / "cost.json").exists():
            continue
        best = min(quick, key=lambda name: quick[name])
        last = _scored(run, names[-1], evaluation)
        content = {
            "schema": 1, "benchmark": "quality", "data": data, "preset": run.config.preset, "seed": run.config.seed,
            "images": int(names[-1]), **json.loads((folder / "cost.json").read_text()), "threads": 1,
            "conditions": "one thread, other processes on the machine; sample grids and 10 checkpoints included",
            "environment": environment(),
            "config": {name: value for name, value in dataclasses.asdict(run.config).items() if name not in own},
            "frechet_by_images": quick, "pictures_per_checkpoint": QUICK,
            "last": last, "best": last if best == names[-1] else _scored(run, best, evaluation),
        }  # fmt: skip
        RESULTS.mkdir(exist_ok=True)
        record = RESULTS / f"{data}-{folder.name}.json"
        record.write_text(json.dumps(content, indent=1) + "\n")
        print(record, flush=True)


def _evaluation(folder: Path, extractor: str) -> Evaluation:
    """Of the pictures that a run was trained on: 26,000 fakes where modes are counted, else 10,000, or as many as are held out."""
    config = Run.open(folder).config
    root = config.data_root or None
    pack, held_out = open_reference(config.data, config.size, config.channels, config.attributes, root)
    count = 26_000 if len(pack.info.classes) == 1000 else 10_000
    return Evaluation(pack, held_out, find_extractor(extractor, pack, find_device("cpu")), count)


def _scored(run: Run, which: str, evaluation: Evaluation, count: int = 0) -> dict[str, Any]:
    result = evaluation.score(of_run(run, which, 0, 1.0, "cpu"), count).to_json()
    return result | {"name": run.folder.name, "images": int(which)}


def _quick(run: Run, names: list[str], evaluation: Evaluation) -> dict[str, float]:
    """Frechet distance by checkpoint; what was found before is kept beside the run."""
    path = run.folder / "quick.json"
    found: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}
    for name in names:
        if name not in found:
            found[name] = evaluation.score(of_run(run, name, 0, 1.0, "cpu"), QUICK).scores["frechet"]
            path.write_text(json.dumps(found, indent=1) + "\n")
    return found


def table(data: str) -> str:
    """Markdown, one row a record, last checkpoint (best in brackets where it is another); then reals and the Gaussian."""
    records = [json.loads(path.read_text()) for path in sorted(RESULTS.glob(f"{data}-*.json"))]
    if not records:
        raise SystemExit(f"no record of {data} in {RESULTS}")
    records.sort(key=lambda r: r["last"]["scores"]["frechet"])
    large = records[0]["last"]["ceiling"] > 1000  # distances of other networks than the classifier are thousands
    keys = {"frechet": ",.0f" if large else ".2f", "kernel": ".2g" if large else ".4f"}
    keys |= {"precision": ".3f", "recall": ".3f", "density": ".2f", "coverage": ".3f"}
    if data == "stacked-mnist":
        keys = {"modes": ".0f", "kl_data": ".3f"} | keys
    asked = any("label_accuracy" in r["last"]["scores"] for r in records)
    heads = ["preset", "seed", "kimg", "CPU s", "wall s", *(_HEADS.get(k, k) for k in keys), *(["asked and got"] if asked else [])]
    rows = [_row(r, keys, asked) for r in records]
    reals, ceiling = records[0]["last"]["floor"], records[0]["last"]["ceiling"]
    got = [format(reals["label_accuracy"], ".1%")] if asked else []
    rows.append(["held-out reals", "", "", "", "", *(format(reals[k], form) for k, form in keys.items()), *got])
    gaussian = [format(ceiling, keys["frechet"]) if k == "frechet" else "" for k in keys]
    rows.append(["300-component Gaussian", "", "", "", "", *gaussian, *([""] if asked else [])])
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("|" + "|".join(cell if cell == "---" else f" {cell} " if cell else " " for cell in row) + "|" for row in lines)


_HEADS = {"kl_data": "KL"}


def _row(record: dict[str, Any], keys: dict[str, str], asked: bool) -> list[str]:
    last, best = record["last"], record["best"]
    cells = {k: format(last["scores"][k], form) for k, form in keys.items()}
    if best["images"] != last["images"]:
        cells["frechet"] += f" ({format(best['scores']['frechet'], keys['frechet'])} at {best['images'] / 1000:.0f})"
    got = last["scores"].get("label_accuracy")
    return [
        f"`{record['preset']}`", str(record["seed"]), f"{record['images'] / 1000:.0f}", f"{record['cpu_seconds']:.0f}",
        f"{record['wall_seconds']:.0f}", *cells.values(), *(["-" if got is None else format(got, ".1%")] if asked else []),
    ]  # fmt: skip


def write(data: str, page: Path) -> None:
    """Put the table between a page's marks <!-- quality:<set> --> and <!-- end -->."""
    text = page.read_text()
    begin = f"<!-- quality:{data} -->\n"
    if begin not in text:
        raise SystemExit(f"{page} has no line {begin.strip()}")
    before, after = text.split(begin, 1)
    page.write_text(before + begin + table(data) + "\n" + after[after.index("<!-- end -->") :])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["train", "score", "table"])
    parser.add_argument("data")
    parser.add_argument("preset", nargs="?", default="wgan-gp")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--extractor", default="auto", help="as of ganfast eval")
    parser.add_argument("--write", action="store_true", help="table: into docs/results/quality.md")
    given = parser.parse_args()
    if given.what == "train":
        print(train(given.data, given.preset, given.seed))
    elif given.what == "score":
        score(given.data, given.extractor)
    elif given.write:
        write(given.data, PAGE)
    else:
        print(table(given.data))
    return 0


if __name__ == "__main__":
    sys.exit(main())
