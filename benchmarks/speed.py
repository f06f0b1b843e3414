"""Speed to a fixed quality: seconds from the start of a training until its averaged generator reaches a goal.

python benchmarks/speed.py mnist                       # Frechet distance of the committed classifier's features
python benchmarks/speed.py stacked-mnist               # 1000 modes and a KL to the data of at most 0.1, of 26,000 pictures
python benchmarks/speed.py mnist --kimg 2 --count 200 --reals 500 --device cpu --width 8 --no-record   # the code, in seconds

The config is the recipe in quality.py. The clock starts before the networks are built, so that compiling and capturing
count, and stands still while pictures are scored: that is measurement. Data is packed before. Needs torch, numpy, PyYAML and
safetensors only; `$GANFAST_DATA` names the folder with mnist/.
"""

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from measure import record
from quality import recipe

from ganfast import configfile
from ganfast.config import Config
from ganfast.data import Pack
from ganfast.data.pack import open_data
from ganfast.device import find_device
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


GOALS = {
    "mnist": Goal("dcgan", 10_000, lambda s: s["frechet"] <= 0.2, "Frechet distance at most 0.2"),
    "stacked-mnist": Goal(
        "rpgan",
        26_000,
        lambda s: s["modes"] == 1000 and s["kl_data"] <= 0.1,
        "1000 modes, KL at most 0.1",
    ),
}


class Judge:
    """Scores of a generator against a set's training pictures."""

    def __init__(self, pack: Pack, extractor: Extractor, count: int, reals: int) -> None:
        self.pack, self.extractor, self.count = pack, extractor, count
        self.frechet = Frechet(extractor.dim, torch.device("cpu"))
        found = ClassScores(len(pack.info.classes))
        for start in range(0, min(reals, len(pack.images)), CHUNK):
            rows = np.arange(start, min(start + CHUNK, reals, len(pack.images)))
            seen = extractor(
                np.ascontiguousarray(np.asarray(pack.images[rows]).transpose(0, 2, 3, 1))
            )
            self.frechet.reference(seen.features.cpu())
            found.add(seen.logits, None)
        self.classes = found.counts

    def __call__(self, plan: Plan) -> dict[str, float]:
        c, info = plan.config, self.pack.info
        classes = info.classes if c.conditional != "no" else ()
        reestimate_batchnorm(plan.state.average, c.seed, c.net.latent, len(classes))
        source = Generated(
            plan.state.average, c.net.latent, (info.size, info.size, info.channels), classes, 0, 1.0
        )
        found = ClassScores(len(info.classes))
        for start in range(0, self.count, CHUNK):
            stop = min(start + CHUNK, self.count)
            asked = classes_like(self.classes, 0, start, stop) if classes else None
            seen = self.extractor(source.pictures(start, stop, asked))
            self.frechet.add(seen.features.cpu())
            found.add(seen.logits, asked)
        return {"frechet": self.frechet.distance()} | found.scores(self.classes)


def run(config: Config, goal: Goal, judge: Judge, looks: int, limit: float) -> dict[str, object]:
    """Train until the goal is reached, the config's end or ``limit`` seconds, looking so often; the clock stops while it looks."""
    every, history = max(1.0, config.kimg * 1000 / looks), []
    began, looked = time.monotonic(), 0.0
    plan = make_plan(config)

    def seconds() -> float:
        if plan.device.type == "cuda":
            torch.cuda.synchronize()
        return time.monotonic() - began - looked

    def on_step(state: State, critic: object, generator: object) -> None:
        nonlocal looked
        if (
            state.images // every
            == (state.images - config.batch * config.optim.critic_steps) // every
        ):
            return
        trained, before = seconds(), time.monotonic()
        scores = judge(plan)
        history.append(
            {
                "images": state.images,
                "seconds": round(trained, 3),
                **scores,
                "reached": goal.reached(scores),
            }
        )
        print(
            ", ".join(
                f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}"
                for k, v in history[-1].items()
            ),
            flush=True,
        )
        looked += time.monotonic() - before

    def stop() -> bool:
        return bool(history and history[-1]["reached"]) or time.monotonic() - began > limit

    c, state = plan.config, plan.state
    twins = state.optimizer_generator.computing, state.optimizer_critic.computing
    critic_step = make_critic_step(
        state.critic, c.loss, c.penalty, plan.autocast, c.engine, plan.compile, computing=twins[1]
    )
    generator_step = make_generator_step(
        state.generator, state.critic, c.loss, plan.autocast, plan.compile, twins
    )
    drawing = make_drawing(state.generator, plan.autocast, plan.compile, twins[0])
    train_loop(state, plan.data, c, critic_step, generator_step, stop, on_step, drawing)
    reached = next((line for line in history if line["reached"]), None)
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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", choices=GOALS)
    parser.add_argument("--preset", default="", help="a recipe of the set; default the goal's")
    parser.add_argument(
        "--kimg", type=float, default=0.0, help="thousand images at most; 0 = the recipe's"
    )
    parser.add_argument("--width", type=int, default=0, help="of the networks; 0 = the recipe's")
    parser.add_argument("--batch", type=int, default=0, help="0 = the recipe's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument(
        "--count", type=int, default=0, help="pictures drawn for each look; 0 = the goal's"
    )
    parser.add_argument(
        "--reals", type=int, default=60_000, help="training pictures they are compared with"
    )
    parser.add_argument(
        "--looks", type=int, default=20, help="times in a whole run at which pictures are scored"
    )
    parser.add_argument(
        "--limit", type=float, default=600.0, help="seconds, scoring included, after which it ends"
    )
    parser.add_argument("--no-record", action="store_true", help="write no record into results/")
    given = parser.parse_args(arguments)
    goal = GOALS[given.data]
    config = configured(given, given.preset or goal.preset)
    pack = open_data(given.data)
    judge = Judge(
        pack,
        find_extractor("auto", pack, find_device(given.device)),
        given.count or goal.count,
        given.reals,
    )
    found = run(config, goal, judge, given.looks, given.limit)
    print(
        f"{given.data} {config.preset}: {goal.text}: "
        + (f"{found['seconds']:.1f} s" if found["reached"] else "not reached")
    )
    if not given.no_record:
        conditions = {
            "data": given.data,
            "reals": given.reals,
            "config": dataclasses.asdict(config),
        }
        record(f"speed-{given.data}-{config.preset}", conditions, {}, result=found)
    return 0 if found["reached"] else 1


def configured(given: argparse.Namespace, preset: str) -> Config:
    """The recipe with what was given on the command line."""
    changes = recipe(given.data, preset)
    config = configfile.overlay(preset_config(preset, given.data), changes, "the recipe")
    config = replace(config, seed=given.seed, device=given.device, precision=given.precision)
    config = replace(config, kimg=given.kimg or config.kimg, batch=given.batch or config.batch)
    return replace(config, net=replace(config.net, width=given.width or config.net.width))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
