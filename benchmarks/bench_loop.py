"""What the training loop adds to its bare steps.

Data, random draws, schedule and log, against fixed tensors in a for loop.

python benchmarks/bench_loop.py     # interleaved ratio for each setting, written to results/
pytest benchmarks/bench_loop.py --benchmark-only
"""

import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from measure import interleaved, record

from ganfast.engine import make_critic_step, make_drawing, make_generator_step
from ganfast.presets import preset_config
from ganfast.runs.logfile import RunLog
from ganfast.training.loop import train_loop
from ganfast.training.plan import Plan, make_plan

SETTINGS = {  # preset, side
    "wgan-gp-16": ("wgan-gp", 16),
    "wgan-gp-28": ("wgan-gp", 28),
    "dcgan-28": ("dcgan", 28),
    "r1-28": ("r1", 28),
    "dragan-28": ("dragan", 28),
}
# Generator steps a round: as many as the feed draws for at a time, so that none is left unused.
STEPS = 64


def prepare(preset: str, side: int, folder: Path) -> Plan:
    """A plan over random pictures: speed does not depend on what they show."""
    pictures = np.random.default_rng(0).integers(0, 256, (4096, side, side), dtype=np.uint8)
    np.save(folder / "noise.npy", pictures)
    config = preset_config(preset, "mnist" if side == 28 else "digits")
    return make_plan(replace(config, data=str(folder / "noise.npy"), kimg=1e9))


def steps_of(plan: Plan) -> tuple[Any, Any, Any]:
    """Critic step, generator step, and what draws fakes."""
    c, state, dtype = plan.config, plan.state, plan.autocast
    critic_step = make_critic_step(state.critic, c.loss, c.penalty, dtype)
    generator_step = make_generator_step(state.generator, state.critic, c.loss, dtype)
    return critic_step, generator_step, make_drawing(state.generator, dtype)


def images_of(plan: Plan) -> int:
    """Reals shown by a generator step with its critic steps."""
    return plan.config.batch * plan.config.optim.critic_steps


def bare(plan: Plan) -> Callable[[], None]:
    """Steps with their optimizers and the average, on tensors made beforehand."""
    c, state = plan.config, plan.state
    critic_step, generator_step, drawing = steps_of(plan)
    real, _ = plan.data.batch(0, c.batch)
    z = torch.randn(c.batch, c.net.latent, device=plan.device)
    eps, noise = torch.rand(c.batch, device=plan.device), torch.rand_like(real)
    decay = torch.tensor(0.99, dtype=torch.float64, device=plan.device)

    def run() -> None:
        for _ in range(STEPS):
            for _ in range(c.optim.critic_steps):
                critic_step(real, drawing(z, None), eps=eps, noise=noise)
                state.optimizer_critic.move(limit=c.loss.clip)
            generator_step(z)
            state.optimizer_generator.move(decay=decay)

    return run


def whole(plan: Plan, folder: Path) -> Callable[[], None]:
    """The loop that `ganfast train` runs, with its log, but no sample grids or checkpoints."""
    c, state = plan.config, plan.state
    critic_step, generator_step, drawing = steps_of(plan)
    log = RunLog(folder, state.images, 1e12, tensorboard=True)
    images = images_of(plan)

    def on_step(now: Any, critic: Any, generator: Any) -> None:
        if now.images // images % c.log.every == 0:
            stats = {f"critic/{name}": value for name, value in critic.items()}
            stats |= {f"generator/{name}": value for name, value in generator.items()}
            log.step(now.images, stats)

    def run() -> None:
        end = state.images + STEPS * images
        steps = critic_step, generator_step
        train_loop(state, plan.data, c, *steps, lambda: state.images >= end, on_step, drawing)

    return run


def measure(name: str, rounds: int) -> None:
    """Speed of the loop as a share of the bare steps' (median of ratios), written to results/."""
    preset, side = SETTINGS[name]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        plan = prepare(preset, side, folder)
        seconds = interleaved({"bare": bare(plan), "loop": whole(plan, folder)}, rounds)
    c, images = plan.config, STEPS * images_of(plan)
    pairs = [b / w for b, w in zip(seconds["bare"], seconds["loop"], strict=True)]
    low, ratio, high = np.percentile(pairs, (20, 50, 80))
    conditions = {
        "preset": preset,
        "size": side,
        "batch": c.batch,
        "width": c.net.width,
        "precision": c.precision,
        "rounds": rounds,
        "images_per_round": images,
    }
    path = record(f"loop-{name}", conditions, seconds, loop_speed_over_bare=float(ratio))
    rate = images / float(np.median(seconds["loop"]))
    share = f"{ratio:.3f} of the bare steps' speed ({low:.3f} to {high:.3f})"
    print(f"{name}: loop at {share}, {rate:,.0f} img/s -> {path.name}")


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("variant", ["bare", "loop"])
def bench_loop(benchmark, tmp_path, name, variant):
    preset, side = SETTINGS[name]
    plan = prepare(preset, side, tmp_path)
    run = bare(plan) if variant == "bare" else whole(plan, tmp_path)
    benchmark.group = name
    benchmark.extra_info["images_per_round"] = STEPS * images_of(plan)
    benchmark.pedantic(run, rounds=2, warmup_rounds=1)


if __name__ == "__main__":
    for setting in sys.argv[1:] or SETTINGS:
        measure(setting, rounds=8)
