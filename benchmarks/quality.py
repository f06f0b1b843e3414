"""Quality of recipes: train each of the table below from fixed seeds, score its checkpoints, record both.

python benchmarks/quality.py train mnist wgan-gp --seed 0      # runs/quality/mnist/wgan-gp-0, resumed if it is there
python benchmarks/quality.py score mnist                       # finished runs: a line each into results/quality-mnist.jsonl
python benchmarks/quality.py score celeba-64 --extractor squeezenet.npz
python benchmarks/quality.py table mnist                       # a table of docs/results/quality.md, from the records
python benchmarks/quality.py table mnist --write               # put into that page

Every row of a table is given the same processor time of one thread: recipes name the thousand images that fit into it. What a row
took is recorded, wall clock and processor seconds, with the other conditions. Runs that still go on are scored without a record.
"""

import argparse
import dataclasses
import datetime
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ganfast.device import find_device
from ganfast.environment import environment
from ganfast.errors import InputError
from ganfast.evaluate.evaluation import Evaluation, open_reference
from ganfast.evaluate.extractors import find_extractor
from ganfast.runs.checkpoint import listed
from ganfast.runs.run import Run
from ganfast.runs.source import of_run

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PAGE = HERE.parent / "docs" / "results" / "quality.md"
QUICK = 2000  # pictures of each checkpoint, to choose the best
RUNS = Path(os.environ.get("GANFAST_QUALITY_RUNS", "runs/quality"))

# Thousand images by set and preset, as many as fit into about the same processor time of a thread:
# 300 s for mnist and stacked-mnist, 900 s for celeba-64.
KIMG: dict[str, dict[str, int]] = {
    "mnist": {
        "acgan": 215,
        "dcgan": 256,
        "dragan": 215,
        "gan": 1256,
        "hinge": 240,
        "lsgan": 256,
        "r1": 208,
        "rpgan": 192,
        "wgan": 430,
        "wgan-gp": 288,
    },
    "stacked-mnist": {
        "acgan": 270,
        "dcgan": 320,
        "dragan": 270,
        "gan": 1575,
        "hinge": 300,
        "lsgan": 320,
        "r1": 260,
        "rpgan": 250,
        "wgan": 550,
        "wgan-gp": 360,
    },
    "celeba-64": {
        "acgan": 107,
        "dcgan": 128,
        "dragan": 97,
        "gan": 300,
        "hinge": 133,
        "lsgan": 130,
        "r1": 116,
        "rpgan": 100,
        "wgan": 194,
        "wgan-gp": 136,
    },
}


def recipe(data: str, preset: str) -> dict[str, Any]:
    """What a config file of the recipe holds."""
    known = KIMG.get(data, {})
    if preset not in known:
        raise InputError(
            f"{data} has no recipe of {preset}; expected one of {', '.join(known or KIMG)}"
        )
    common = {"preset": preset, "kimg": known[preset], "net": {"width": 32}, "log": {"keep": 0}}
    match data:
        case "stacked-mnist":  # classes asked for would be modes given away, but acgan learns them
            conditional = "auxiliary" if preset == "acgan" else "no"
            net = {"width": 32, "latent": 48}  # 16 a digit, as for one
            return common | {"data": data, "conditional": conditional, "net": net}
        case "celeba-64":
            optim = {"decay_from": 0.5}
            return common | {"data": "celeba-half", "size": 64, "batch": 32, "optim": optim}
    return common | {"data": data}


def train(data: str, preset: str, seed: int) -> Path:
    """The run of a recipe, trained to its end; what that cost is added to cost.json."""
    folder = RUNS / data / f"{preset}-{seed}"
    config = RUNS / data / f"{preset}.json"  # which is YAML too
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(json.dumps(recipe(data, preset)))
    command = [
        "train",
        "--config",
        str(config),
        "--seed",
        str(seed),
        "--out",
        str(folder),
        "--quiet",
    ]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "PYTHONPATH": str(HERE.parent),
    }
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
    done = {f"{r['preset']}-{r['seed']}" for r in read(data)}
    waiting = [f for f in sorted((RUNS / data).iterdir()) if f.is_dir() and f.name not in done]
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
            "date": datetime.date.today().isoformat(),
            "schema": 1,
            "benchmark": "quality",
            "data": data,
            "preset": run.config.preset,
            "seed": run.config.seed,
            "images": int(names[-1]),
            **json.loads((folder / "cost.json").read_text()),
            "threads": 1,
            "conditions": "one thread, other processes on the machine; sample grids and 10 checkpoints included",
            "environment": environment(),
            "config": {
                name: value
                for name, value in dataclasses.asdict(run.config).items()
                if name not in own
            },
            "frechet_by_images": quick,
            "pictures_per_checkpoint": QUICK,
            "last": last,
            "best": last if best == names[-1] else _scored(run, best, evaluation),
        }
        with campaign(data).open("a") as file:
            file.write(json.dumps(content) + "\n")
        print(f"{folder.name} -> {campaign(data)}", flush=True)


def campaign(data: str) -> Path:
    """The file with a record a line."""
    return RESULTS / f"quality-{data}.jsonl"


def read(data: str) -> list[dict[str, Any]]:
    path = campaign(data)
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _evaluation(folder: Path, extractor: str) -> Evaluation:
    """Of the pictures that a run was trained on: 26,000 fakes where modes are counted, else 10,000, or as many as are held out."""
    config = Run.open(folder).config
    root = config.data_root or None
    pack, held_out = open_reference(
        config.data, config.size, config.channels, config.attributes, root
    )
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
            found[name] = evaluation.score(of_run(run, name, 0, 1.0, "cpu"), QUICK).scores[
                "frechet"
            ]
            path.write_text(json.dumps(found, indent=1) + "\n")
    return found


def table(data: str) -> str:
    """Markdown, one row a record, last checkpoint (best in brackets where it is another); then reals and the Gaussian."""
    records = read(data)
    if not records:
        raise SystemExit(f"no record of {data} in {RESULTS}")
    records.sort(key=lambda r: r["last"]["scores"]["frechet"])
    large = (
        records[0]["last"]["ceiling"] > 1000
    )  # distances of other networks than the classifier are thousands
    keys = {"frechet": ",.0f" if large else ".2f", "kernel": ".2g" if large else ".4f"}
    keys |= {"precision": ".3f", "recall": ".3f", "density": ".2f", "coverage": ".3f"}
    if data == "stacked-mnist":
        keys = {"modes": ".0f", "kl_data": ".3f"} | keys
    asked = any("label_accuracy" in r["last"]["scores"] for r in records)
    heads = [
        "preset",
        "seed",
        "kimg",
        "CPU s",
        "wall s",
        *(_HEADS.get(k, k) for k in keys),
        *(["asked and got"] if asked else []),
    ]
    rows = [_row(r, keys, asked) for r in records]
    reals, ceiling = records[0]["last"]["floor"], records[0]["last"]["ceiling"]
    got = [format(reals["label_accuracy"], ".1%")] if asked else []
    rows.append(
        [
            "held-out reals",
            "",
            "",
            "",
            "",
            *(format(reals[k], form) for k, form in keys.items()),
            *got,
        ]
    )
    gaussian = [format(ceiling, keys["frechet"]) if k == "frechet" else "" for k in keys]
    rows.append(["300-component Gaussian", "", "", "", "", *gaussian, *([""] if asked else [])])
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(
        "|"
        + "|".join(cell if cell == "---" else f" {cell} " if cell else " " for cell in row)
        + "|"
        for row in lines
    )


_HEADS = {"kl_data": "KL"}


def _row(record: dict[str, Any], keys: dict[str, str], asked: bool) -> list[str]:
    last, best = record["last"], record["best"]
    cells = {k: format(last["scores"][k], form) for k, form in keys.items()}
    if best["images"] != last["images"]:
        cells["frechet"] += (
            f" ({format(best['scores']['frechet'], keys['frechet'])} at {best['images'] / 1000:.0f})"
        )
    got = last["scores"].get("label_accuracy")
    return [
        f"`{record['preset']}`",
        str(record["seed"]),
        f"{record['images'] / 1000:.0f}",
        f"{record['cpu_seconds']:.0f}",
        f"{record['wall_seconds']:.0f}",
        *cells.values(),
        *(["-" if got is None else format(got, ".1%")] if asked else []),
    ]


def write(data: str, page: Path) -> None:
    """Put the table between a page's marks <!-- quality:<set> --> and <!-- end -->."""
    text = page.read_text()
    begin = f"<!-- quality:{data} -->\n"
    if begin not in text:
        raise SystemExit(f"{page} has no line {begin.strip()}")
    before, after = text.split(begin, 1)
    page.write_text(before + begin + table(data) + "\n" + after[after.index("<!-- end -->") :])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
