"""Quality of recipes: train each of the table below from fixed seeds, score and record it.

python benchmarks/quality.py train mnist wgan-gp --seed 0   # into runs/quality, or resumed there
python benchmarks/quality.py score mnist          # finished runs: a line each in the records
python benchmarks/quality.py score celeba-64 --extractor squeezenet.npz
python benchmarks/quality.py table mnist          # a table of docs/results/quality.md
python benchmarks/quality.py table mnist --write  # put into that page

Every row of a table is given the same processor time of one thread: recipes name the thousand
images that fit into it. Wall clock and processor seconds of a row are recorded with the other
conditions. Runs that still go on are scored without a record.
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
_TABLE = """
preset   mnist  stacked-mnist  celeba-64
acgan      215            270        107
dcgan      256            320        128
dragan     215            270         97
gan       1256           1575        300
hinge      240            300        133
lsgan      256            320        130
r1         208            260        116
rpgan      192            250        100
wgan       430            550        194
wgan-gp    288            360        136
"""
_HEAD, *_ROWS = (line.split() for line in _TABLE.strip().splitlines())
KIMG = {name: {row[0]: int(row[i]) for row in _ROWS} for i, name in enumerate(_HEAD) if i}


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
            optim: dict[str, Any] = {"decay_from": 0.5}
            if preset == "wgan-gp":  # its rows have the values that it had then
                optim |= {"lr_generator": 2e-4, "lr_critic": 2e-4, "beta1": 0.0, "critic_steps": 5}
                common["net"] = {"width": 32, "init": "he"}
            return common | {"data": "celeba-half", "size": 64, "batch": 32, "optim": optim}
    return common | {"data": data}


def train(data: str, preset: str, seed: int) -> Path:
    """The run of a recipe, trained to its end; what that cost is added to cost.json."""
    folder = RUNS / data / f"{preset}-{seed}"
    config = RUNS / data / f"{preset}.json"  # which is YAML too
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(json.dumps(recipe(data, preset)))
    command = [sys.executable, "-m", "ganfast", "train", "--config", str(config), "--quiet"]
    command += ["--seed", str(seed), "--out", str(folder)]
    one_thread = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent)}
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    try:
        subprocess.run(command, env=os.environ | one_thread, check=True)
    finally:  # a stopped part counts too
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
    """Records of all finished runs that have none.

    The last checkpoint is scored, and the best by the Frechet distance of fewer pictures.
    """
    recorded = {f"{r['preset']}-{r['seed']}" for r in read(data)}
    folders = sorted(path for path in (RUNS / data).iterdir() if path.is_dir())
    waiting = [folder for folder in folders if folder.name not in recorded]
    if not waiting:
        return
    evaluation = _evaluation(waiting[0], extractor)
    for folder in waiting:
        run = Run.open(folder)
        names = [path.name for path in listed(run.checkpoint_folder)]
        quick = _quick(run, names, evaluation)
        print(folder.name, quick, flush=True)
        if (folder / "cost.json").exists():
            content = _record(data, run, quick, evaluation)
            with campaign(data).open("a") as file:
                file.write(json.dumps(content) + "\n")
            print(f"{folder.name} -> {campaign(data)}", flush=True)


def _record(data: str, run: Run, quick: dict[str, float], evaluation: Evaluation) -> dict[str, Any]:
    best, newest = min(quick, key=lambda name: quick[name]), max(quick)
    last = _scored(run, newest, evaluation)
    config = dataclasses.asdict(run.config)
    del config["out"], config["data_root"]
    return {
        "date": datetime.date.today().isoformat(),
        "schema": 1,
        "benchmark": "quality",
        "data": data,
        "preset": run.config.preset,
        "seed": run.config.seed,
        "images": int(newest),
        **json.loads((run.folder / "cost.json").read_text()),
        "threads": 1,
        "conditions": "one thread, other processes on the machine; "
        "sample grids and 10 checkpoints included",
        "environment": environment(),
        "config": config,
        "frechet_by_images": quick,
        "pictures_per_checkpoint": QUICK,
        "last": last,
        "best": last if best == newest else _scored(run, best, evaluation),
    }


def campaign(data: str) -> Path:
    """The file with a record a line."""
    return RESULTS / f"quality-{data}.jsonl"


def read(data: str) -> list[dict[str, Any]]:
    path = campaign(data)
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _evaluation(folder: Path, extractor: str) -> Evaluation:
    """Of the pictures that a run was trained on.

    Fakes are 26,000 where modes are counted, else 10,000, or as many as are held out.
    """
    run = Run.open(folder)
    c, how = run.config, run.config.data_options() | {"rules": run.data["rules"]}
    pack, held_out = open_reference(c.data, c.size, c.channels, **how)
    count = 26_000 if len(pack.info.classes) == 1000 else 10_000
    return Evaluation(pack, held_out, find_extractor(extractor, pack, find_device("cpu")), count)


def _scored(run: Run, which: str, evaluation: Evaluation) -> dict[str, Any]:
    result = evaluation.score(of_run(run, which, 0, 1.0, "cpu"), 0).to_json()
    return result | {"name": run.folder.name, "images": int(which)}


def _quick(run: Run, names: list[str], evaluation: Evaluation) -> dict[str, float]:
    """Frechet distance by checkpoint, oldest first. A file beside the run keeps the distances."""
    path = run.folder / "quick.json"
    distances: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}
    for name in names:
        if name not in distances:
            source = of_run(run, name, 0, 1.0, "cpu")
            distances[name] = evaluation.score(source, QUICK).scores["frechet"]
            path.write_text(json.dumps(distances, indent=1) + "\n")
    return distances


def table(data: str) -> str:
    """Markdown, one row a record, then reals and the Gaussian.

    Scores are those of the last checkpoint; the best is in brackets where it is another.
    """
    records = read(data)
    if not records:
        raise SystemExit(f"no record of {data} in {RESULTS}")
    records.sort(key=lambda r: r["last"]["scores"]["frechet"])
    reals, ceiling = records[0]["last"]["floor"], records[0]["last"]["ceiling"]
    large = ceiling > 1000  # distances of other networks than the classifier are thousands
    forms = {"frechet": ",.0f" if large else ".2f", "kernel": ".2g" if large else ".4f"}
    forms |= {"precision": ".3f", "recall": ".3f", "density": ".2f", "coverage": ".3f"}
    if data == "stacked-mnist":
        forms = {"modes": ".0f", "kl_data": ".3f"} | forms
    heads = ["preset", "seed", "kimg", "CPU s", "wall s"]
    heads += ["KL" if key == "kl_data" else key for key in forms]
    rows = [_row(record, forms) for record in records]
    rows.append(["held-out reals", "", "", "", "", *_cells(reals, forms).values()])
    gaussian = {"frechet": format(ceiling, forms["frechet"])}
    cells = [gaussian.get(key, "") for key in forms]
    rows.append(["300-component Gaussian", "", "", "", "", *cells])
    if any("label_accuracy" in record["last"]["scores"] for record in records):
        heads.append("asked and got")
        sources = [record["last"]["scores"] for record in records] + [reals, None]
        for row, scores in zip(rows, sources, strict=True):
            row.append("" if scores is None else _accuracy(scores))
    lines = ["|" + "|".join(f" {c} " if c else " " for c in row) + "|" for row in (heads, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(heads), *lines[1:]])


def _cells(scores: dict[str, float], forms: dict[str, str]) -> dict[str, str]:
    return {key: format(scores[key], form) for key, form in forms.items()}


def _accuracy(scores: dict[str, float]) -> str:
    share = scores.get("label_accuracy")
    return "-" if share is None else format(share, ".1%")


def _row(record: dict[str, Any], forms: dict[str, str]) -> list[str]:
    last, best = record["last"], record["best"]
    cells = _cells(last["scores"], forms)
    if best["images"] != last["images"]:
        distance = format(best["scores"]["frechet"], forms["frechet"])
        cells["frechet"] += f" ({distance} at {best['images'] / 1000:.0f})"
    seconds = (f"{record[name]:.0f}" for name in ("cpu_seconds", "wall_seconds"))
    kimg = f"{record['images'] / 1000:.0f}"
    return [f"`{record['preset']}`", str(record["seed"]), kimg, *seconds, *cells.values()]


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
    options = parser.parse_args()
    if options.what == "train":
        print(train(options.data, options.preset, options.seed))
    elif options.what == "score":
        score(options.data, options.extractor)
    elif options.write:
        write(options.data, PAGE)
    else:
        print(table(options.data))
    return 0


if __name__ == "__main__":
    sys.exit(main())
