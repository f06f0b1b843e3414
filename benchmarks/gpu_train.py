"""A short wgan-gp training, its last checkpoint removed, and taken up again: the resumed run begins with what was saved.

python benchmarks/gpu_train.py   # on the GPU; --device cpu --kimg 2 --width 8 tries the script itself

MNIST in $GANFAST_DATA; without it the embedded digits; where what reads those is not installed, pictures made here.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import record

from ganfast.config import Config, LogConfig
from ganfast.presets import preset_config
from ganfast.runs import checkpoint as checkpoints
from ganfast.runs import resume
from ganfast.runs.train import train
from ganfast.tensors import Contents
from ganfast.training.plan import make_plan
from ganfast.training.state import contents_of, restore

_SAVED = 0.95  # of the training: what is left is so short that sums in another order have no time to grow
_GAP = 1.0  # grey levels on average; Adam begun anew is tens


def find_data(folder: Path) -> tuple[str, str]:
    """What to train on, and a sentence about it."""
    if os.environ.get("GANFAST_DATA") and (Path(os.environ["GANFAST_DATA"]) / "mnist").is_dir():
        return "mnist", "MNIST"
    missing = [
        name
        for name, module in (("scikit-learn", "sklearn"), ("Pillow", "PIL"))
        if find_spec(module) is None
    ]
    if not missing:
        return "digits", "the embedded digits: GANFAST_DATA names no folder with mnist/"
    path = folder / "mnist-like.npz"  # a name by which presets take MNIST's batch and rates
    np.savez(path, **generated(60_000))
    return (
        str(path),
        f"pictures made here, of MNIST's size: GANFAST_DATA names no folder with mnist/, {' and '.join(missing)} missing",
    )


def generated(count: int) -> dict[str, np.ndarray]:
    """Discs around a circle, uint8 (count, 28, 28), and which of ten places each is at."""
    random = np.random.default_rng(0)
    labels = np.arange(count) % 10
    angle = 2 * np.pi * labels / 10 + 0.1 * random.standard_normal(count)
    middle = 13.5 + 8 * np.stack([np.sin(angle), np.cos(angle)])
    radius = random.uniform(2, 4, count)
    row, column = ((np.arange(28) - m[:, None]).astype(np.float32) ** 2 for m in middle)
    beyond = row[:, :, None] + column[:, None, :] - radius.astype(np.float32)[:, None, None] ** 2
    pictures = 255 / (1 + np.exp(np.minimum(beyond, 50)))
    return {"images": pictures.astype(np.uint8), "labels": labels}


def differing(found: Contents, saved: Contents) -> list[str]:
    """Tensors that are not to the bit what was saved, or that only one side has."""
    pairs = {
        f"{part}.{name}"
        for contents in (found, saved)
        for part in contents
        for name in contents[part]
    }
    have = [
        {f"{part}.{name}": value.cpu() for part in c for name, value in c[part].items()}
        for c in (found, saved)
    ]
    return sorted(
        k
        for k in pairs
        if not all(k in one for one in have) or not torch.equal(have[0][k], have[1][k])
    )


def resumed(config: Config) -> tuple[list[str], dict[str, Any]]:
    """Train, take the last checkpoint away, resume; what is wrong, and what was seen."""
    began = time.monotonic()
    whole = train(config)
    seconds = time.monotonic() - began
    before, log = whole.sample(256, seed=1).astype(int), whole.folder / "log.jsonl"
    lines = log.read_text().splitlines()
    shutil.rmtree(checkpoints.listed(whole.checkpoint_folder)[-1])
    at, saved = checkpoints.read(checkpoints.listed(whole.checkpoint_folder)[-1])
    moments = [value for name, value in saved["optimizer_critic"].items() if "exp_avg" in name]
    plan, found = make_plan(config), resume.find(whole, "")
    assert found is not None
    restore(plan.state, found[2], found[1].images, str(found[0]))
    wrong = [f"{name} is restored as another" for name in differing(contents_of(plan.state), saved)]
    if not any(bool(value.any()) for value in moments):
        wrong.append("Adam's moments were saved as zeros")
    began = time.monotonic()
    after = train(config).sample(256, seed=1).astype(int)
    kept = at.log_lines or 0
    if not kept or log.read_text().splitlines()[:kept] != lines[:kept]:
        wrong.append(f"the {kept} log lines up to the checkpoint changed")
    gap = float(np.abs(before - after).mean())
    if not gap < _GAP:
        wrong.append(
            f"pictures differ by {gap:.3f} grey levels on average; expected less than {_GAP:g}"
        )
    engine = json.loads((whole.folder / "engine.json").read_text())
    if engine["engine"] != "explicit":
        wrong.append(f"the critic step was not computed by the explicit engine: {engine}")
    seen = {
        "gap": gap,
        "resumed_at": at.images,
        "seconds": seconds,
        "resumed_seconds": time.monotonic() - began,
        "engine": engine,
    }
    return wrong, seen


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--kimg", type=float, default=60.0)
    parser.add_argument("--width", type=int, default=0, help="of the networks; 0 = the preset's")
    parser.add_argument("--no-record", action="store_true", help="write no record into results/")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        data, what = find_data(Path(temporary))
        print(f"training on {what}", flush=True)
        config = preset_config("wgan-gp", data)
        config = replace(
            config,
            kimg=given.kimg,
            device=given.device,
            out=f"{temporary}/run",
            net=replace(config.net, width=given.width),
            log=LogConfig(every=5, save_kimg=_SAVED * given.kimg, tensorboard=False),
        )
        wrong, seen = resumed(config)
    print(
        f"{given.kimg:g} kimg in {seen['seconds']:.0f} s; pictures of the resumed run differ by {seen['gap']:.3f} grey levels"
    )
    for sentence in wrong[:10]:
        print(sentence)
    if not given.no_record:
        conditions = {"preset": "wgan-gp", "data": what, "kimg": given.kimg, "device": given.device}
        seconds = {"whole": [seen["seconds"]], "resumed": [seen["resumed_seconds"]]}
        print(
            record(
                f"resume-wgan-gp-{given.device}",
                conditions,
                seconds,
                result=seen | {"wrong": wrong},
            )
        )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
