"""Parts of `make gpu` that measure phases of trainings, each command in this one process.

python benchmarks/gpu_parts.py smoke|bench|large|penalties|variants|versus ... [--tiny]

`--tiny` is for a CPU: small networks, variants that need no GPU. Records go where those of the
other scripts do.
"""

import argparse
import importlib.util
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace

from measure import RESULTS

from ganfast.bench import records, train
from ganfast.bench.activity import activity_of
from ganfast.bench.problem import Problem
from ganfast.bench.setting import Setting
from ganfast.bench.timing import HostClock, sample
from ganfast.bench.variants import VARIANTS
from ganfast.device import set_libraries

MNIST = Setting("wgan-gp", "mnist", batch=64, width=64)
CELEBA = Setting("wgan-gp", "celeba", batch=128, width=64)
LARGE = Setting("wgan-gp", "celeba", batch=512, width=128)
JAX = ("jax",) * bool(importlib.util.find_spec("jax"))
QUICK = ("tuned-graph", "ganfast-graph")
REPLAYS = 100


def _fitted(setting: Setting, tiny: bool) -> Setting:
    return replace(setting, batch=4, width=4, size=16, device="cpu") if tiny else setting


def _measure(settings: Sequence[Setting], variants: Sequence[str], rounds: int, tiny: bool) -> None:
    """Settings one after the other; one that fails does not keep the next from its turn."""
    names = dict.fromkeys(name.removesuffix("-graph") if tiny else name for name in variants)
    kept = tuple(name for name in names if not (tiny and "compiled" in name))
    plan = train.Plan(kept, 5 if tiny else rounds, profile=True)
    for setting in settings:
        try:
            train.run([_fitted(setting, tiny)], plan, RESULTS, True, _say)
        except Exception as error:
            name = f"{setting.preset} {setting.data}, batch {setting.batch}"
            _failed(f"{name}: {records.reason(error)}")
            traceback.print_exc()


def _say(text: str) -> None:
    print(text, flush=True)


def _failed(text: str) -> None:
    failed.append(text)
    _say(text)


failed: list[str] = []


def smoke(tiny: bool) -> None:
    """Seconds of a hundred calls of each phase, captured; un-captured where that fails."""
    problem = Problem(_fitted(MNIST, tiny))
    set_libraries(problem.device, problem.config.precision)
    record = records.make("smoke", f"smoke-{train.name_of(problem)}", {}, [])
    keep, clock, why = records.keeper(RESULTS), HostClock(), dict[str, str]()
    for name in ("ganfast",) if tiny else ("ganfast-graph", "ganfast"):
        measured = []
        try:
            variant = VARIANTS[name].prepare(problem)
            for phase, run in variant.phases.items():
                first = sample(run, 1, clock)
                seconds = sample(run, 10 if tiny else REPLAYS, clock)
                one = records.measurement(phase, name, [seconds], first_call_s=first)
                measured.append(one | activity_of(run, clock.wait, one, problem.device))
                keep(records.updated(record, measured, why))
        except Exception as error:
            why[name] = records.reason(error)
            traceback.print_exc()
            keep(records.updated(record, measured, why))
        else:
            break
    records.write(records.updated(record, measured, why), RESULTS)
    if why:
        _failed(f"smoke: {why}")


def bench(tiny: bool) -> None:
    """First what needs no compiler, so that a stop finds figures of both sizes."""
    _measure((MNIST, CELEBA), QUICK, 12, tiny)
    if not tiny:
        _measure((MNIST, CELEBA), (*QUICK, "ganfast-compiled-graph", *JAX), 12, tiny)


def large(tiny: bool) -> None:
    """A batch and a width that fill the GPU. FLOPs are counted where nothing is captured."""
    ours = ("ganfast", "ganfast-graph")
    _measure((LARGE,), ours, 8, tiny)
    if not tiny:
        _measure((LARGE,), (*ours, "ganfast-compiled-graph"), 8, tiny)


def penalties(tiny: bool) -> None:
    """What penalties on reals, and on both sides, cost."""
    settings = [replace(CELEBA, preset=preset) for preset in ("rpgan", "r1")]
    _measure(settings, ("tuned-graph", "ganfast", "ganfast-graph"), 12, tiny)


def variants(tiny: bool) -> None:
    """Every variant at both sizes."""
    _measure((MNIST, CELEBA), [name for name in VARIANTS if name != "jax" or JAX], 20, tiny)


def versus(tiny: bool) -> None:
    """Against tuned eager, for `make gpu-quick`."""
    _measure((MNIST,), ("tuned", *QUICK), 12, tiny)


COMMANDS: dict[str, Callable[[bool], None]] = {
    command.__name__: command for command in (smoke, bench, large, penalties, variants, versus)
}


def main(arguments: list[str]) -> int:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("commands", nargs="+", choices=COMMANDS)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args(arguments)
    for name in options.commands:
        COMMANDS[name](options.tiny)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
