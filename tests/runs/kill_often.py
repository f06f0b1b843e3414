"""Trains runs in processes that are killed again and again, and compares each with an unkilled one.

python -m tests.runs.kill_often FOLDER --seed 0 --kills 200 CONFIG.yaml ...

One process imports torch and forks every victim, so that a life costs a fraction of a second. Half
of the victims are killed at a moment, half in a file operation of a save, where a write is half
done. Prints one JSON line a kill, and one at the end.
"""

import argparse
import dataclasses
import json
import os
import random
import signal
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from ganfast import configfile, disk
from ganfast.cli import main
from ganfast.runs import checkpoint as checkpoints
from ganfast.runs.logfile import read_log
from tests.small_runs import (
    assert_same_run,
)  # and all that a training imports, before any victim is forked

OPERATIONS = 90  # about two saves
Death = dict[str, Any]  # how a victim ended, and what was lost with it


def victim(config: Path, out: Path, operation: int = 0) -> int:
    """Fork a `ganfast train`; its pid. ``operation``: dies in that file operation; 0 = never."""
    child = os.fork()
    if child:
        return child
    try:
        if operation:
            _die_in(operation)
        os._exit(main(["train", "--config", str(config), "--out", str(out), "--quiet"]))
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(99)


def _die_in(operation: int) -> None:
    done = 0

    def counted(name: str, real: Any) -> Any:
        def call(*given: Any) -> Any:
            nonlocal done
            done += 1
            if done == operation:
                if name == "write":
                    real(given[0], given[1][: len(given[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*given)

        return call

    for field in dataclasses.fields(disk.Calls):
        setattr(disk.calls, field.name, counted(field.name, getattr(disk.calls, field.name)))


def newest(out: Path) -> int:
    """Images of the newest checkpoint, -1 = none yet. Every listed one must be whole."""
    listed = checkpoints.listed(out / "checkpoints")
    problems = [problem for path in listed if (problem := checkpoints.problem_of(path))]
    assert not problems, problems
    return int(listed[-1].name) if listed else -1


def killed_until_done(
    config: Path, out: Path, draw: random.Random, patience: float, most: int, number: int
) -> list[Death]:
    """Train into ``out``; kill by ``number`` within ``patience`` s or in a save, ``most`` times."""
    deaths: list[Death] = []
    before = -1
    while True:
        spared = len(deaths) >= most
        operation = (
            draw.randint(1, OPERATIONS) if draw.random() < 0.5 and number == signal.SIGKILL else 0
        )
        child = victim(config, out, 0 if spared else operation)
        if not (spared or operation):
            time.sleep(draw.uniform(0, patience))
            os.kill(child, number)  # of one that is done, and not yet waited for, this is nothing
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        if code == 0:
            return deaths
        # Before it listens, a signal just ends it.
        expected = (128 + number, -number) if number != signal.SIGKILL else (-number,)
        assert code in expected, f"a victim ended with {code}"
        now, lines = newest(out), read_log(out / "log.jsonl")
        assert now >= before, f"the newest checkpoint was {before} and is {now}"
        reached = lines[-1]["images"] if lines else 0
        deaths.append(
            {
                "operation": operation,
                "exit": code,
                "reached": reached,
                "newest": now,
                "lost": reached - max(0, now),
            }
        )
        print(json.dumps(deaths[-1]), flush=True)
        before = now


def kill_often(
    configs: list[Path], folder: Path, kills: int, seed: int, number: int = signal.SIGKILL
) -> Counter[str]:
    """Runs of each config in turn until ``kills`` kills; every finished run is compared."""
    draw, counts, whole = random.Random(seed), Counter[str](), {}
    for config in configs:
        began, out = time.monotonic(), folder / f"{config.stem}-whole"
        _, status = os.waitpid(victim(config, out), 0)
        assert status == 0, f"{config} cannot be trained"
        whole[config] = out, time.monotonic() - began
    while counts["kills"] < kills:
        config = configs[counts["runs"] % len(configs)]
        spared, seconds = whole[config]
        out = folder / f"{config.stem}-{counts['runs']}"
        deaths = killed_until_done(
            config, out, draw, 0.6 * seconds, kills - counts["kills"], number
        )
        interval = round(configfile.read(config).log.save_kimg * 1000)
        assert_same_run(spared, out)
        # A save waits for the one before: at most two intervals are ever lost.
        assert all(death["lost"] <= 2 * interval for death in deaths), deaths
        counts.update(
            runs=1, kills=len(deaths), in_a_save=sum(bool(death["operation"]) for death in deaths)
        )
        counts.update(beyond_one_interval=sum(death["lost"] > interval for death in deaths))
        counts["most_lost"] = max([counts["most_lost"], *(death["lost"] for death in deaths)])
    return counts


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("configs", nargs="+", type=Path)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--signal", default="SIGKILL", choices=("SIGKILL", "SIGTERM", "SIGINT"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    found = kill_often(
        asked.configs, asked.folder, asked.kills, asked.seed, signal.Signals[asked.signal]
    )
    print(json.dumps({"seed": asked.seed, "signal": asked.signal, **found}))
