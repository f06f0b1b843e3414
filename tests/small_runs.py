"""Runs of 320 pictures in networks of width 4, and what two runs have in common."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from ganfast.config import Config, LogConfig, OptimConfig
from ganfast.presets import preset_config
from ganfast.runs import checkpoint as checkpoints
from ganfast.runs.logfile import read_log

# No rate that falls towards the end: a longer run begins like a shorter one.
STEADY = OptimConfig(critic_steps=1)


def few_digits(path: Path) -> str:
    """150 labelled digits: a short run meets them twice, so a second epoch's order counts too."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pictures = np.rint(digits.images[:150] * (255 / 16)).astype(np.uint8).repeat(2, 1).repeat(2, 2)
    np.savez(path, images=pictures, labels=digits.target[:150])
    return str(path)


def tiny(preset: str = "dcgan", data: str = "digits", out: Path | str = "", **changes) -> Config:
    """A run of 20 critic steps of 16 pictures by a preset's mathematics in networks of width 4."""
    config = preset_config(preset, "digits")
    log = LogConfig(every=1, sample_kimg=1, save_kimg=0.08, tensorboard=False)
    small = {
        "kimg": 0.32,
        "batch": 16,
        "size": 16,
        "net": replace(config.net, width=4, latent=8),
        "log": log,
    }
    return replace(config, data=data, out=str(out), **small | changes)


def newest(folder: Path) -> Path:
    return checkpoints.listed(folder / "checkpoints")[-1]


def tensors(checkpoint: Path, part: str) -> dict[str, torch.Tensor]:
    return load_file(checkpoint / f"{part}.safetensors")


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def mathematics(folder: Path) -> list[dict]:
    """The log without what a clock says."""
    return [
        {k: v for k, v in line.items() if k not in ("seconds", "images_per_second")}
        for line in read_log(folder / "log.jsonl")
    ]


def assert_same_run(one: Path, other: Path) -> None:
    """Weights, average, statistics, Adam and every logged number, to the bit."""
    assert newest(one).name == newest(other).name
    first, second = files(newest(one)), files(newest(other))
    assert len(first) == 6
    assert [name for name in first if first[name] != second.get(name)] == []
    assert mathematics(one) == mathematics(other)
    sheet = f"samples/{newest(one).name}.png"
    assert (one / sheet).read_bytes() == (other / sheet).read_bytes()
