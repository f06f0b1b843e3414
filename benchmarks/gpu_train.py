"""A short wgan-gp training, its seconds to a quality, and its resume from what was saved.

python benchmarks/gpu_train.py   # on the GPU; --device cpu --kimg 2 --width 8 tries the script

Its last checkpoint is removed before it is taken up again. It learns pictures made here, of MNIST's
size: an un-installed checkout may lack what reads MNIST or the embedded digits.
"""

import argparse
import importlib.util
import json
import math
import os
import shutil
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import record

from ganfast.config import Config, LogConfig, ScoreConfig
from ganfast.presets import preset_config
from ganfast.runs import checkpoint as checkpoints
from ganfast.runs import resume
from ganfast.runs.train import train
from ganfast.tensors import Contents
from ganfast.training.plan import make_plan
from ganfast.training.state import contents_of, restore

# Of the training: the rest is so short that sums in another order have no time to grow.
_SAVED = 0.95
_GAP = 1.0  # grey levels on average; Adam begun anew is tens
# Frechet distance by the committed MNIST classifier, of 2,000 pictures. On a CPU, width 16, this
# training was at 14.4, 6.8, 3.8, 2.1, 1.5 and 1.2 after 5, 10, ..., 30 kimg.
_QUALITY = 3.0
_LOOK = 5.0  # kimg from one scoring to the next


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


def differing(contents: Contents, saved: Contents) -> list[str]:
    """Tensors that are not to the bit what was saved, or that only one side has."""
    sides = [
        {f"{part}.{name}": x.cpu() for part, xs in side.items() for name, x in xs.items()}
        for side in (contents, saved)
    ]
    both = sides[0].keys() & sides[1].keys()
    alone = sides[0].keys() ^ sides[1].keys()
    return sorted(alone | {name for name in both if not torch.equal(*(s[name] for s in sides))})


def to_quality(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """When the average was first good enough, of a log; scoring and saving do not count.

    None for images and seconds where it never was; for all where nothing was scored.
    """
    curve, shown, seconds = [], 0, 0.0
    for line in lines:
        if "images_per_second" in line:  # that since the line before
            seconds += (line["images"] - shown) / line["images_per_second"]
            shown = line["images"]
        if "score/frechet" in line:
            curve.append([line["images"], seconds, float(line["score/frechet"])])
    reached = [(images, s) for images, s, frechet in curve if frechet <= _QUALITY]
    images, seconds = reached[0] if reached else (None, math.nan)
    goal = f"Frechet distance at most {_QUALITY:g}"
    return {
        "goal": goal if curve else "not scored, torchmetrics is missing",
        "reached": bool(reached) if curve else None,
        "images": images,
        "seconds": seconds if reached else None,
        "curve": curve,  # images, seconds, distance
    }


def resumed(config: Config) -> tuple[list[str], dict[str, Any]]:
    """Train, take the last checkpoint away, resume; what is wrong, and the figures."""
    began = time.monotonic()
    whole = train(config)
    seconds = time.monotonic() - began
    before, log = whole.sample(256, seed=1).astype(int), whole.folder / "log.jsonl"
    lines = log.read_text().splitlines()
    shutil.rmtree(checkpoints.listed(whole.checkpoint_folder)[-1])
    at, saved = checkpoints.read(checkpoints.listed(whole.checkpoint_folder)[-1])
    plan, newest = make_plan(config), resume.find(whole, "")
    assert newest is not None
    path, facts, contents = newest
    restore(plan.state, contents, facts.images, str(path))
    wrong = [f"{name} is restored as another" for name in differing(contents_of(plan.state), saved)]
    moments = [value for name, value in saved["optimizer_critic"].items() if "exp_avg" in name]
    if not any(bool(value.any()) for value in moments):
        wrong.append("Adam's moments were saved as zeros")
    began = time.monotonic()
    after = train(config).sample(256, seed=1).astype(int)
    count = at.log_lines or 0
    if not count or log.read_text().splitlines()[:count] != lines[:count]:
        wrong.append(f"the {count} log lines up to the checkpoint changed")
    gap = float(np.abs(before - after).mean())
    if not gap < _GAP:
        wrong.append(
            f"pictures differ by {gap:.3f} grey levels on average; expected less than {_GAP:g}"
        )
    engine = json.loads((whole.folder / "engine.json").read_text())
    if engine["engine"] != "explicit":
        wrong.append(f"the critic step was not computed by the explicit engine: {engine}")
    figures = {
        "gap": gap,
        **to_quality([json.loads(line) for line in lines]),
        "resumed_at": at.images,
        "whole_seconds": seconds,
        "resumed_seconds": time.monotonic() - began,
        "engine": engine,
    }
    return wrong, figures


def main(arguments: list[str]) -> int:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument(
        "--device", default="cuda", help="a record of a CPU is kept for make gpu-rehearsal only"
    )
    parser.add_argument("--kimg", type=float, default=60.0)
    parser.add_argument("--width", type=int, default=0, help="of the networks; 0 = the preset's")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        data = Path(temporary) / "mnist-like.npz"  # by this name presets take MNIST's settings
        np.savez(data, **generated(20_000))
        config = preset_config("wgan-gp", str(data))
        net = replace(config.net, width=options.width)
        log = LogConfig(every=5, save_kimg=_SAVED * options.kimg, tensorboard=False)
        score = ScoreConfig()
        if importlib.util.find_spec("torchmetrics"):
            score = ScoreConfig(every_kimg=_LOOK, extractor="mnist")
        config = replace(config, kimg=options.kimg, device=options.device, net=net, log=log)
        # Compiling would take longer than all of the training.
        config = replace(config, score=score, compile="off")
        wrong, figures = resumed(replace(config, out=f"{temporary}/run"))
    gap = f"pictures of the resumed run differ by {figures['gap']:.3f} grey levels"
    print(f"{options.kimg:g} kimg in {figures['whole_seconds']:.0f} s; {gap}")
    end = f"after {figures['seconds']:.1f} s of training" if figures["reached"] else "not reached"
    print(f"{figures['goal']}: {end}")
    for sentence in wrong[:10]:
        print(sentence)
    if options.device != "cpu" or "GANFAST_RECORDS" in os.environ:
        conditions = {"preset": "wgan-gp", "data": "made here"} | vars(options)
        seconds = {"whole": [figures["whole_seconds"]], "resumed": [figures["resumed_seconds"]]}
        result = figures | {"wrong": wrong}
        print(record(f"resume-wgan-gp-{options.device}", conditions, seconds, result=result))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
