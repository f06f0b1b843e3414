"""Quality of recipes: train each of `recipes/<data>/<preset>.yaml` from fixed seeds, score its checkpoints, record both.

python benchmarks/quality.py train mnist wgan-gp --seed 0      # runs/quality/mnist/wgan-gp-0, resumed if it is there
python benchmarks/quality.py score mnist                       # results/quality/mnist-wgan-gp-0.json and so on, of finished runs
python benchmarks/quality.py table mnist                       # the README's table, from the records

Every row is given the same processor time of one thread: recipes name the thousand images that fit into it. What a row took is
recorded, wall clock and processor seconds, with the other conditions.
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

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "quality"
QUICK = 2000  # pictures of each checkpoint, to choose the best
RUNS = Path(os.environ.get("GANFAST_QUALITY_RUNS", "runs/quality"))


def train(data: str, preset: str, seed: int) -> Path:
    """The run of a recipe, trained to its end; what that cost is added to cost.json."""
    folder = RUNS / data / f"{preset}-{seed}"
    recipe = HERE / "recipes" / data / f"{preset}.yaml"
    command = ["train", "--config", str(recipe), "--seed", str(seed), "--out", str(folder), "--quiet"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent)}
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run([sys.executable, "-m", "ganfast", *command], env=environment, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    record = folder / "cost.json"
    cost: dict[str, Any] = json.loads(record.read_text()) if record.exists() else {"cpu_seconds": 0.0, "wall_seconds": 0.0}
    cost["cpu_seconds"] += after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    cost["wall_seconds"] += time.monotonic() - began
    record.write_text(json.dumps(cost, indent=1) + "\n")
    return folder


def score(data: str) -> None:
    """Records of all finished runs that have none: the last checkpoint, and the best by the Frechet distance of fewer pictures."""
    import torch

    from ganfast.environment import environment
    from ganfast.evaluate.evaluation import Evaluation, open_reference
    from ganfast.evaluate.extractors import find_extractor
    from ganfast.evaluate.sources import of_run
    from ganfast.run import Run

    pack, held_out = open_reference(data)
    evaluation = Evaluation(pack, held_out, find_extractor("auto", pack, torch.device("cpu")))
    for folder in sorted((RUNS / data).iterdir()):
        record = RESULTS / f"{data}-{folder.name}.json"
        if record.exists() or not (folder / "cost.json").exists():
            continue
        run = Run.open(folder)
        names = [path.name for path in listed(run.checkpoint_folder)]

        def of(which: str, count: int = 0, run: Run = run) -> dict[str, Any]:
            result = evaluation.score(of_run(run, which, 0, 1.0, "cpu"), count).to_json()
            return result | {"name": run.folder.name, "images": int(which)}

        quick = {name: of(name, QUICK)["scores"]["frechet"] for name in names}
        best = min(quick, key=lambda name: quick[name])
        last = of(names[-1])
        content = {
            "schema": 1, "benchmark": "quality", "data": data, "preset": run.config.preset, "seed": run.config.seed,
            "images": int(names[-1]), **json.loads((folder / "cost.json").read_text()), "threads": 1,
            "conditions": "one thread, niceness 10, other processes on the machine; sample grids and 10 checkpoints included",
            "environment": environment(), "config": dataclasses.asdict(run.config),
            "frechet_by_images": quick, "pictures_per_checkpoint": QUICK,
            "last": last, "best": last if best == names[-1] else of(best),
        }  # fmt: skip
        for private in ("out", "data_root"):
            content["config"].pop(private)
        RESULTS.mkdir(exist_ok=True)
        record.write_text(json.dumps(content, indent=1) + "\n")
        print(record, flush=True)


def table(data: str) -> str:
    """Markdown, one row a record, last checkpoint (best in brackets where it is another)."""
    records = [json.loads(path.read_text()) for path in sorted(RESULTS.glob(f"{data}-*.json"))]
    records.sort(key=lambda r: r["last"]["scores"]["frechet"])
    keys = {"frechet": ".2f", "kernel": ".4f", "precision": ".3f", "recall": ".3f", "density": ".2f", "coverage": ".3f"}
    lines = [f"| preset | seed | kimg | CPU s | wall s | {' | '.join(keys)} | asked and got |", "|---" * (6 + len(keys)) + "|"]
    for r in records:
        last, best = r["last"], r["best"]
        cells = [format(last["scores"][k], form) for k, form in keys.items()]
        if best["images"] != last["images"]:
            cells[0] += f" ({best['scores']['frechet']:.2f} at {best['images'] / 1000:.0f})"
        got = last["scores"].get("label_accuracy")
        lines.append(
            f"| `{r['preset']}` | {r['seed']} | {r['images'] / 1000:.0f} | {r['cpu_seconds']:.0f} | {r['wall_seconds']:.0f} | "
            + " | ".join(cells) + f" | {'-' if got is None else format(got, '.1%')} |"
        )  # fmt: skip
    floor, ceiling = records[0]["last"]["floor"], records[0]["last"]["ceiling"]
    cells = [format(floor[k], form) for k, form in keys.items()]
    lines.append(f"| held-out reals | | | | | {' | '.join(cells)} | {floor['label_accuracy']:.1%} |")
    lines.append(f"| 300-component Gaussian | | | | | {ceiling:.2f} | " + "| " * len(keys) + "|")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["train", "score", "table"])
    parser.add_argument("data")
    parser.add_argument("preset", nargs="?", default="wgan-gp")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if given.what == "train":
        print(train(given.data, given.preset, given.seed))
    elif given.what == "score":
        score(given.data)
    else:
        print(table(given.data))
    return 0


if __name__ == "__main__":
    sys.exit(main())
