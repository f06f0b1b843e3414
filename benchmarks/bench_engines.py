"""Critic steps by every engine, interleaved, after their gradients were found equal; memory in processes of their own.

python benchmarks/bench_engines.py [SETTING ...]      # ratios over the reference, written to results/
python benchmarks/bench_engines.py --memory           # peak resident memory
pytest benchmarks/bench_engines.py --benchmark-only
"""

import copy
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from measure import interleaved, record
from torch import Tensor, nn

from ganfast.config import Config
from ganfast.engine import CriticStep, make_critic_step
from ganfast.engine.check import relative_error
from ganfast.flops import FlopCount
from ganfast.models import NetSpec, build_critic
from ganfast.presets import PRESETS, preset_config

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PENALISED = [name for name in PRESETS if preset_config(name, "mnist").penalty.active]
SETTINGS: dict[str, tuple[str, int, int, int, bool]] = {  # preset, side, width, batch, classes
    "wgan-gp-32-w64-b64": ("wgan-gp", 32, 64, 64, False),
    **{f"{name}-28": (name, 28, 32, 32, True) for name in PENALISED},
    **{f"{name}-16": (name, 16, 32, 32, True) for name in PENALISED},
    "hinge-28": ("hinge", 28, 32, 32, True),
}
VARIANTS: dict[str, dict[str, Any]] = {
    "reference": {"engine": "reference"},
    "reference-contiguous": {"engine": "reference"},  # the other layout of weights and activations
    "autograd": {"engine": "autograd", "compile": False},
    "explicit": {"engine": "explicit", "compile": False},
}
COMPILED: dict[str, dict[str, Any]] = {
    "autograd-compiled": {"engine": "autograd", "compile": True},
    "explicit-compiled": {"engine": "explicit", "compile": True},
}
BF16: dict[str, dict[str, Any]] = {
    "reference-bf16": {"engine": "reference", "autocast": torch.bfloat16},
    "explicit-bf16": {"engine": "explicit", "compile": False, "autocast": torch.bfloat16},
}
COMPARED = ("wgan-gp-32-w64-b64", "wgan-gp-28", "r1-28")  # also compiled, and in bf16


def critic_and_inputs(setting: str, seed: int = 0) -> tuple[nn.Module, Config, dict[str, Tensor]]:
    """The preset's critic at its initial weights, and a batch of noise: speed does not depend on what pictures show."""
    preset, side, width, batch, labelled = SETTINGS[setting]
    config = preset_config(preset, "mnist")
    how = ("auxiliary" if config.conditional == "auxiliary" else "projection") if labelled else "no"
    config = replace(config, net=replace(config.net, width=width), batch=batch)
    torch.manual_seed(seed)
    critic = build_critic(NetSpec.of(config, side, 1, 10, how)).to(DEVICE)
    given = {name: torch.rand(batch, 1, side, side, device=DEVICE) * 2 - 1 for name in ("real", "fake")}
    given |= {"eps": torch.rand(batch, device=DEVICE), "noise": torch.rand(batch, 1, side, side, device=DEVICE)}
    if labelled:
        given["real_labels"] = torch.arange(batch, device=DEVICE) % 10
    return critic, config, given


def steps(setting: str, variants: dict[str, dict[str, Any]], seed: int = 0) -> tuple[dict[str, CriticStep], dict[str, Tensor]]:
    critic, config, given = critic_and_inputs(setting, seed)
    made = {}
    for name, flags in variants.items():
        layout = torch.contiguous_format if "contiguous" in name else torch.channels_last
        mine = copy.deepcopy(critic).to(memory_format=layout)
        made[name] = make_critic_step(mine, config.loss, config.penalty, check=False, **flags)
    return made, given


def measure(setting: str, rounds: int, variants: dict[str, dict[str, Any]]) -> None:
    """Medians and ratios over the faster layout of the reference, written to results/."""
    for seed in range(20):  # in about one batch of eight a value rounds across a kink in some variant, which is no error of it
        made, given = steps(setting, variants, seed)
        errors, flops = compared(setting, seed, made, given)
        if max(error for name, error in errors.items() if "bf16" not in name) < 1e-4:
            break
    else:
        raise AssertionError(f"{setting}: gradients are not equal: {errors}")
    if "explicit-bf16" in errors:
        assert errors["explicit-bf16"] <= 1.5 * errors["reference-bf16"] + 1e-3, errors
    runs: dict[str, Callable[[], object]] = {name: lambda step=step: step(**given) for name, step in made.items()}
    seconds = interleaved(runs, rounds)
    best = min(("reference", "reference-contiguous"), key=lambda name: float(np.median(seconds[name])))
    ratios = {name: float(np.median(np.array(seconds[best]) / np.array(values))) for name, values in seconds.items()}
    preset, side, width, batch, labelled = SETTINGS[setting]
    conditions = {
        "preset": preset, "size": side, "width": width, "batch": batch, "classes": 10 if labelled else 0, "device": DEVICE,
        "precision": "fp32", "rounds": rounds, "faster_reference": best, "threads": torch.get_num_threads(),
    }  # fmt: skip
    path = record(f"engines-{setting}", conditions, seconds, speed_over_reference=ratios, error_to_float64=errors, flops=flops)
    row = ", ".join(f"{name} {ratio:.2f}x" for name, ratio in ratios.items() if name != best)
    print(f"{setting}: {best} {np.median(seconds[best]) * 1e3:.1f} ms; {row} -> {path.name}")


def compared(
    setting: str, seed: int, made: dict[str, CriticStep], given: dict[str, Tensor]
) -> tuple[dict[str, float], dict[str, int]]:
    """Errors of the whole gradients against the reference in float64, and FLOPs of what is not compiled."""
    critic, config, _ = critic_and_inputs(setting, seed)
    exact = make_critic_step(critic.double(), config.loss, config.penalty, engine="reference")
    exact(**{name: x if x.dtype is torch.int64 else x.double() for name, x in given.items()})
    errors, flops = {}, {}
    for name, step in made.items():
        with FlopCount() if not step.choice.compiled else nullcontext() as count:  # a compiled graph runs below the counter
            step(**given)
        errors[name] = relative_error(step.gradients.views, exact.gradients.views)
        if count is not None:
            flops[name] = count.total
    return errors, flops


def peak_memory(setting: str, variant: str) -> float:
    """MB of resident memory that four steps add to a process of their own."""
    command = [sys.executable, __file__, "--one", setting, variant]
    return float(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))


def _one(setting: str, variant: str) -> None:
    made, given = steps(setting, {variant: (VARIANTS | COMPILED | BF16)[variant]})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(4):
        made[variant](**given)
    print(json.dumps((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("setting", ["wgan-gp-28", "r1-28", "rpgan-28", "acgan-28"])
def bench_engines(benchmark, setting, variant):
    made, given = steps(setting, {variant: VARIANTS[variant]})
    benchmark.group = setting
    benchmark.pedantic(lambda: made[variant](**given), rounds=20, warmup_rounds=2)


if __name__ == "__main__":
    asked = sys.argv[1:]
    if asked[:1] == ["--one"]:
        _one(*asked[1:])
    elif asked[:1] == ["--memory"]:
        for name in ("wgan-gp-32-w64-b64", "r1-28", "rpgan-28"):
            found = {variant: [peak_memory(name, variant) for _ in range(3)] for variant in ("reference", "autograd", "explicit")}
            medians = {variant: float(np.median(mb)) for variant, mb in found.items()}
            print(name, {variant: f"{mb:.0f} MB, {mb / medians['reference']:.2f}x" for variant, mb in medians.items()})
            record(f"engine-memory-{name}", {"setting": name, "unit": "MB, not seconds"}, found, over_reference=medians)
    else:
        for name in asked or SETTINGS:
            measure(name, 30, VARIANTS | COMPILED | BF16 if name in COMPARED else VARIANTS)
