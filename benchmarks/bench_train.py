"""Phases of a training iteration under pytest-benchmark, by the code of `ganfast bench train`.

pytest benchmarks/bench_train.py --benchmark-only [--benchmark-json FILE]

Groups are preset and phase, names variants.
"""

from functools import lru_cache

import pytest

from ganfast.bench.problem import Problem
from ganfast.bench.setting import Setting
from ganfast.bench.timing import synchronised_now
from ganfast.bench.variants import PROVEN, VARIANTS, Prepared, first_calls, prove


@lru_cache(maxsize=1)
def prepared(preset: str, variant: str) -> Prepared:
    """Proven equal to the reference before it is timed."""
    problem = Problem(Setting(preset))
    steps = VARIANTS[variant].prepare(problem)
    first_calls(steps, synchronised_now)
    prove(problem, steps)
    return steps


@pytest.mark.benchmark(timer=synchronised_now)
@pytest.mark.parametrize("phase", PROVEN)
@pytest.mark.parametrize("variant", ["naive", "tuned", "jax", "ganfast"])
@pytest.mark.parametrize("preset", ["wgan-gp", "r1", "rpgan", "dcgan"])
def bench_train(benchmark, preset, variant, phase):
    if variant == "jax":
        pytest.importorskip("jax")
    steps = prepared(preset, variant)

    def run() -> None:
        steps.phases[phase]()
        steps.wait()

    benchmark.group = f"{preset} {phase}"
    benchmark.pedantic(run, rounds=15, warmup_rounds=2)
