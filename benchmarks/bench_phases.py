"""The critic phase (gradients, then Adam) as popular scripts do it, tuned, compiled, captured, and by ganfast's engines.

python benchmarks/bench_phases.py [SETTING ...]   # on CUDA; one record a setting in results/, written as it is measured
python benchmarks/bench_phases.py --smoke         # the same code on a CPU, small, without graphs and compiler, nothing recorded

naive: fp32, three forward passes, contiguous, Adam as torch makes it. tuned: bf16 autocast, channels last, fused Adam.
All of them with cudnn.benchmark.
Gradients are compared in fp32 before anything is timed.
"""

import copy
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from measure import device_times, record, summary
from torch import Tensor, nn

from ganfast.config import LossConfig, PenaltyConfig
from ganfast.engine import make_critic_step
from ganfast.engine.check import full_float32, relative_error
from ganfast.flops import FlopCount
from ganfast.models import NetSpec, build_critic
from ganfast.presets import preset_config

SMOKE = "--smoke" in sys.argv
DEVICE = "cpu" if SMOKE else "cuda"


@dataclass(frozen=True)
class Setting:
    """A critic, its batch and its penalty."""

    size: int
    channels: int
    width: int
    batch: int
    loss: str = "wasserstein"
    penalty: str = "wgan-gp"


SETTINGS = {
    "mnist": Setting(28, 1, 64, 64),
    "celeba": Setting(64, 3, 64, 128),
    "large": Setting(64, 3, 128, 512),
    "celeba-r1": Setting(64, 3, 64, 128, "non-saturating", "r1"),
    "celeba-r1r2": Setting(64, 3, 64, 128, "relativistic", "r1+r2"),
    "celeba-none": Setting(64, 3, 64, 128, "wasserstein", "none"),
}
BF16 = {"autocast": torch.bfloat16}
VARIANTS: dict[str, dict[str, Any]] = {
    "naive": {"engine": "reference", "layout": torch.contiguous_format, "fused": False},
    "tuned": {"engine": "reference", **BF16},
    "tuned-graph": {"engine": "reference", "graph": True, **BF16},
    "autograd-compiled": {"engine": "autograd", "compile": True, **BF16},
    "autograd-compiled-graph": {"engine": "autograd", "compile": True, "graph": True, **BF16},
    "explicit": {"engine": "explicit", **BF16},
    "explicit-graph": {"engine": "explicit", "graph": True, **BF16},
    "explicit-compiled": {"engine": "explicit", "compile": True, **BF16},
    "explicit-compiled-graph": {"engine": "explicit", "compile": True, "graph": True, **BF16},
}


def inputs_of(setting: Setting) -> dict[str, Tensor]:
    batch = 4 if SMOKE else setting.batch
    shape = (batch, setting.channels, setting.size, setting.size)
    return {name: torch.rand(shape, device=DEVICE) * 2 - 1 for name in ("real", "fake")} | {"eps": torch.rand(batch, device=DEVICE)}


def critic_of(setting: Setting) -> nn.Module:
    config = preset_config("wgan-gp", "celeba")
    config = replace(config, net=replace(config.net, width=8 if SMOKE else setting.width))
    torch.manual_seed(0)
    return build_critic(NetSpec.of(config, setting.size, setting.channels, 0, "no")).to(DEVICE)


def phase(
    setting: Setting, given: dict[str, Tensor], engine: str, layout: torch.memory_format = torch.channels_last, fused: bool = True,
    compile: bool = False, graph: bool = False, autocast: torch.dtype | None = None,
) -> Callable[[], object]:  # fmt: skip
    """One critic step with its optimizer, on static inputs; captured where a graph is asked for."""
    critic = critic_of(setting).to(memory_format=layout)
    goal = LossConfig(setting.loss), PenaltyConfig(setting.penalty)  # type: ignore[arg-type]
    step = make_critic_step(critic, *goal, autocast, engine, compile, check=False)  # type: ignore[arg-type]
    adam = torch.optim.Adam(critic.parameters(), 1e-4, (0.0, 0.9), fused=fused, capturable=graph and not SMOKE)

    def run() -> None:
        step(**given)
        adam.step()

    run()  # what fails, fails here
    if SMOKE or not graph:
        return run
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        run()
    return captured.replay


def compare(setting: Setting, given: dict[str, Tensor]) -> None:
    """Engines agree with the reference in fp32, all bits on."""
    with full_float32():
        found = {}
        for engine in ("reference", "autograd", "explicit"):
            critic = copy.deepcopy(critic_of(setting)).to(memory_format=torch.channels_last)
            step = make_critic_step(
                critic, LossConfig(setting.loss), PenaltyConfig(setting.penalty), None, engine, compile=False, check=False  # type: ignore[arg-type]
            )  # fmt: skip
            step(**given)
            found[engine] = step.gradients.views
    for engine in ("autograd", "explicit"):
        error = relative_error(found[engine], found["reference"])
        assert error < 1e-2, (engine, error)  # values rounded across kinks
        print(f"  {engine} is {error:.1e} off the reference in fp32")


def matrix_peak() -> float:
    """The best bf16 product of square matrices, FLOP/s."""
    n = 256 if SMOKE else 8192
    a, b = (torch.randn(n, n, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    return 2 * n**3 / min(device_times({"mm": lambda: a @ b}, 3 if SMOKE else 20, cold=False)["mm"])


def measure(name: str, peak: float) -> bool:
    """Whether every variant ran."""
    setting = SETTINGS[name]
    given = inputs_of(setting)
    print(f"{name}: {setting}", flush=True)
    compare(setting, given)
    forward = FlopCount()
    with forward, torch.no_grad():
        critic_of(setting)(given["real"])
    runs, failed = {}, {}
    for variant, flags in VARIANTS.items():
        if SMOKE and flags.get("compile"):
            continue
        try:
            runs[variant] = phase(setting, given, **flags)
        except Exception as error:  # a variant that cannot run is a result too
            failed[variant] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            print(f"  {variant} failed: {failed[variant]}", flush=True)
    times = device_times(runs, 2 if SMOKE else 60, cold=False)
    medians = {variant: summary(seconds)["median"] for variant, seconds in times.items()}
    flops = {"wgan-gp": 10, "r1": 7, "r1+r2": 8, "none": 6}[setting.penalty] * forward.total
    for variant, median in medians.items():
        print(
            f"  {variant:24}{median * 1e3:9.3f} ms {medians['naive'] / median:6.2f}x naive {medians['tuned'] / median:6.2f}x tuned "
            f"{flops / median / peak:5.1%} of the matrix peak at the explicit count",
            flush=True,
        )
    if not SMOKE:
        record(
            f"phase-{name}", {"setting": vars(setting), "forward_flops": forward.total, "explicit_flops": flops}, times,
            failed=failed, matrix_peak_flops=peak,
        )  # fmt: skip
    return not failed


if __name__ == "__main__":
    if not SMOKE and not torch.cuda.is_available():
        sys.exit("bench_phases needs an NVIDIA GPU: torch sees none (--smoke runs the code on a CPU)")
    torch.backends.cudnn.benchmark = True
    best = matrix_peak()
    print(f"matrix peak {best / 1e12:,.1f} TFLOP/s in bf16")
    ran = [measure(chosen, best) for chosen in [a for a in sys.argv[1:] if not a.startswith("--")] or SETTINGS]
    sys.exit(not all(ran))
