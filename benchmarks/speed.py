"""Speed to a fixed quality: seconds from a training's start until its average reaches a goal.

python benchmarks/speed.py mnist          # Frechet distance by the committed classifier
python benchmarks/speed.py stacked-mnist  # 1000 modes, KL to the data <= 0.1, of 26,000 pictures
python benchmarks/speed.py mnist --kimg 2 --count 200 --reals 500 --width 8 --no-record  # quick

The config is the recipe in quality.py. The clock starts before the networks are built, so that
compiling and capturing count. It stands still while pictures are scored: that is measurement. Data
is packed before. Needs torch, numpy, PyYAML and safetensors only; `$GANFAST_DATA` names the folder
with mnist/.
"""

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from measure import record
from quality import recipe

from ganfast import configfile
from ganfast.config import Config
from ganfast.data import Pack
from ganfast.data.pack import open_data
from ganfast.device import find_device, set_libraries
from ganfast.engine import make_critic_step, make_drawing, make_generator_step
from ganfast.evaluate.extractor import Extractor
from ganfast.evaluate.extractors import find_extractor
from ganfast.evaluate.scores import ClassScores, Frechet
from ganfast.evaluate.sources import Generated, classes_like
from ganfast.presets import preset_config
from ganfast.training.ema import reestimate_batchnorm
from ganfast.training.loop import train_loop
from ganfast.training.plan import Plan, make_plan
from ganfast.training.state import State

CHUNK = 1000


@dataclass(frozen=True)
class Goal:
    """A quality, and what usually gets there."""

    preset: str
    count: int  # pictures drawn for each look
    reached: Callable[[dict[str, float]], bool]
    text: str


def _stacked(scores: dict[str, float]) -> bool:
    return scores["modes"] == 1000 and scores["kl_data"] <= 0.1


GOALS = {
    "mnist": Goal("dcgan", 10_000, lambda s: s["frechet"] <= 0.2, "Frechet distance at most 0.2"),
    "stacked-mnist": Goal("rpgan", 26_000, _stacked, "1000 modes, KL at most 0.1"),
}


class Judge:
    """Scores of a generator against a set's training pictures."""

    def __init__(self, pack: Pack, extractor: Extractor, count: int, reals: int) -> None:
        self.pack, self.extractor, self.count = pack, extractor, count
        self.frechet = Frechet(extractor.dim, torch.device("cpu"))
        scores, reals = ClassScores(len(pack.info.classes)), min(reals, len(pack.images))
        for start in range(0, reals, CHUNK):
            images = np.asarray(pack.images[np.arange(start, min(start + CHUNK, reals))])
            answer = extractor(np.ascontiguousarray(images.transpose(0, 2, 3, 1)))
            self.frechet.reference(answer.features.cpu())
            scores.add(answer.logits, None)
        self.classes = scores.counts

    def __call__(self, plan: Plan) -> dict[str, float]:
        c, info = plan.config, self.pack.info
        classes = info.classes if c.conditional != "no" else ()
        average, shape = plan.state.average, (info.size, info.size, info.channels)
        reestimate_batchnorm(average, c.seed, c.net.latent, len(classes))
        source = Generated(average, c.net.latent, shape, classes, 0, 1.0)
        scores = ClassScores(len(info.classes))
        for start in range(0, self.count, CHUNK):
            stop = min(start + CHUNK, self.count)
            labels = classes_like(self.classes, 0, start, stop) if classes else None
            answer = self.extractor(source.pictures(start, stop, labels))
            self.frechet.add(answer.features.cpu())
            scores.add(answer.logits, labels)
        return {"frechet": self.frechet.distance()} | scores.scores(self.classes)


def run(config: Config, goal: Goal, judge: Judge, looks: int, limit: float) -> dict[str, Any]:
    """Train until the goal, the config's end or ``limit`` seconds. The clock stops at looks."""
    every, shown = max(1.0, config.kimg * 1000 / looks), config.batch * config.optim.critic_steps
    history: list[dict[str, Any]] = []
    began, looked = time.monotonic(), 0.0
    plan = make_plan(config)
    set_libraries(plan.device, plan.config.precision)

    def seconds() -> float:
        if plan.device.type == "cuda":
            torch.cuda.synchronize()
        return time.monotonic() - began - looked

    def on_step(state: State, critic: object, generator: object) -> None:
        nonlocal looked
        if state.images // every == (state.images - shown) // every:
            return
        trained, before = seconds(), time.monotonic()
        scores = judge(plan)
        look = {"images": state.images, "seconds": round(trained, 3)} | scores
        history.append(look | {"reached": goal.reached(scores)})
        cells = (f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in look.items())
        print(", ".join(cells), flush=True)
        looked += time.monotonic() - before

    def stop() -> bool:
        return bool(history and history[-1]["reached"]) or time.monotonic() - began > limit

    c, state, dtype = plan.config, plan.state, plan.autocast
    twins = state.optimizer_generator.computing, state.optimizer_critic.computing
    nets = state.generator, state.critic
    options = {"engine": c.engine, "compile": plan.compile, "computing": twins[1]}
    critic_step = make_critic_step(state.critic, c.loss, c.penalty, dtype, **options)
    generator_step = make_generator_step(*nets, c.loss, dtype, plan.compile, twins)
    drawing = make_drawing(state.generator, dtype, plan.compile, twins[0])
    train_loop(state, plan.data, c, critic_step, generator_step, stop, on_step, drawing)
    reached = next((look for look in history if look["reached"]), None)
    return {
        "goal": goal.text,
        "reached": reached is not None,
        "seconds": reached["seconds"] if reached else None,
        "images": reached["images"] if reached else None,
        "trained_seconds": round(seconds(), 3),
        "scoring_seconds": round(looked, 3),
        "engine": str(critic_step.choice),
        "history": history,
    }


def main(arguments: list[str]) -> int:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    add = parser.add_argument
    add("data", choices=GOALS)
    add("--preset", default="", help="a recipe of the set; default the goal's")
    add("--kimg", type=float, default=0.0, help="thousand images at most; 0 = the recipe's")
    add("--width", type=int, default=0, help="of the networks; 0 = the recipe's")
    add("--batch", type=int, default=0, help="0 = the recipe's")
    add("--seed", type=int, default=0)
    add("--device", default="auto")
    add("--precision", default="auto")
    add("--count", type=int, default=0, help="pictures drawn for each look; 0 = the goal's")
    add("--reals", type=int, default=60_000, help="training pictures they are compared with")
    add("--looks", type=int, default=20, help="scorings in a whole run")
    add("--limit", type=float, default=600.0, help="seconds to the end, scoring included")
    add("--no-record", action="store_true", help="write no record into results/")
    options = parser.parse_args(arguments)
    goal = GOALS[options.data]
    config = configured(options, options.preset or goal.preset)
    pack = open_data(options.data)
    extractor = find_extractor("auto", pack, find_device(options.device))
    judge = Judge(pack, extractor, options.count or goal.count, options.reals)
    result = run(config, goal, judge, options.looks, options.limit)
    end = f"{result['seconds']:.1f} s" if result["reached"] else "not reached"
    print(f"{options.data} {config.preset}: {goal.text}: {end}")
    if not options.no_record:
        conditions = {"data": options.data, "reals": options.reals}
        conditions["config"] = dataclasses.asdict(config)
        record(f"speed-{options.data}-{config.preset}", conditions, {}, result=result)
    return 0 if result["reached"] else 1


def configured(options: argparse.Namespace, preset: str) -> Config:
    """The recipe with the options of the command line."""
    changes, o = recipe(options.data, preset), options
    config = configfile.overlay(preset_config(preset, o.data), changes, "the recipe")
    config = replace(config, seed=o.seed, device=o.device, precision=o.precision)
    config = replace(config, kimg=o.kimg or config.kimg, batch=o.batch or config.batch)
    return replace(config, net=replace(config.net, width=o.width or config.net.width))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
