"""Kernels, or on a CPU their definitions, under pytest-benchmark.

pytest benchmarks/bench_kernels.py --benchmark-only [--benchmark-json FILE]

Groups are kernel and shape, names variants. The cases are those of `ganfast bench kernels`.
"""

import pytest
import torch

from ganfast.bench.kernels import cases
from ganfast.bench.timing import synchronised_now

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
VARIANTS = ["triton", "eager", "compile"] if DEVICE.type == "cuda" else ["eager"]
CASES = {case.name: case for case in cases(DEVICE, small=DEVICE.type == "cpu")}


@pytest.mark.benchmark(timer=synchronised_now)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", CASES)
def bench_kernels(benchmark, name, variant):
    run = CASES[name].variants[variant]

    def waited() -> None:
        run()
        synchronised_now()

    benchmark.group = name
    benchmark.pedantic(waited, rounds=30, warmup_rounds=3)
