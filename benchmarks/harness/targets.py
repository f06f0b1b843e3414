"""What ganfast is meant to reach on a GPU (an H200), judged from records.

A target holds, does not hold, or is not measured.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, Literal, NamedTuple

from ganfast.bench.records import Record, keyed
from ganfast.bench.train import fastest
from ganfast.bench.variants import VARIANTS
from ganfast.commands.bench.kernels import KERNELS

Outcome = Literal["holds", "does not hold", "not measured"]
Judged = tuple[Outcome, str]
OURS = tuple(name for name, variant in VARIANTS.items() if not variant.baseline)
GRAPHS = tuple(name for name in OURS if name.endswith("-graph"))
CAPTURED = ("tuned-graph", "compiled-graph")
BIAS_ACT = tuple(kernel for kernel in KERNELS if kernel.startswith("bias_act"))
_STOPPED = "the measurement was stopped before it"
_ABSENT = "not among what was measured"
# Least bytes of an activation over a tensor of 64 MB: it is read, and one like it written.
_LARGE = 2 * 64e6


class Row(NamedTuple):
    """A target with its verdict."""

    target: str
    outcome: Outcome
    figure: str  # where there is none, why

    def __str__(self) -> str:
        return f"{self.outcome:14}{self.target}: {self.figure}"


class Target(NamedTuple):
    part: str  # of `make gpu`, which makes the record
    text: str
    pick: Callable[[Record], bool]  # whether a record is the one that this target is about
    judge: Callable[[Record], Judged]


def judged(records: Sequence[Record], why: Mapping[str, str]) -> list[Row]:
    """Every target, then the failures that the records list.

    Args:
        records: those of one run on a GPU.
        why: the reason by part of the run why the part has no record.
    """
    rows = []
    for target in TARGETS:
        # A setting may have been measured twice, with some variants first.
        about = [record for record in records if target.pick(record)]
        record = max(about, key=lambda record: len(record["measurements"]), default=None)
        absent: Judged = "not measured", why.get(target.part, "there is no record of it")
        rows.append(Row(target.text, *(absent if record is None else target.judge(record))))
    for record in records:
        wrong = failures(record)
        for name, reason in record.get("failed", {}).items():
            outcome: Outcome = "does not hold" if name in wrong else "not measured"
            rows.append(Row(f"{record['name']}: {name}", outcome, reason))
    return rows


def failures(record: Record) -> dict[str, str]:
    """Crashes and proofs that failed. A JAX that is not installed is no failure."""
    return {
        name: reason
        for name, reason in record.get("failed", {}).items()
        if not (name == "jax" and reason.startswith("InputError"))
    }


def _unknown(missing: Mapping[str, str]) -> Judged:
    reasons = "; ".join(f"{name}: {reason}" for name, reason in missing.items())
    return "not measured", reasons or _ABSENT


def _verdict(holds: bool, figure: str, missing: Mapping[str, str]) -> Judged:
    """A missing measurement can still make a target fail. It cannot make one hold."""
    without = "".join(f"; without {name} ({reason})" for name, reason in missing.items())
    if not holds:
        return "does not hold", figure + without
    return "not measured" if missing else "holds", figure + without


def _missing(record: Record, name: str) -> str:
    reason = record.get("failed", {}).get(name)
    return reason or (_STOPPED if record.get("partial") else _ABSENT)


def _is(case: str, kernel_or_case: str) -> bool:
    return kernel_or_case in (case, case.split()[0])


def _kernel(record: Record, kernel: str) -> Judged:
    """The geometric mean of torch.compile over triton, cold cache."""
    by, failed = keyed(record), record.get("failed", {})
    missing = {case: reason for case, reason in failed.items() if _is(case, kernel)}
    ratios = {}
    for case in sorted({case for case, _, _ in by if _is(case, kernel)}):
        compiled, triton = (by.get((case, "cold", name)) for name in ("compile", "triton"))
        if compiled and triton:
            ratios[case] = compiled["summary"]["median"] / triton["summary"]["median"]
        else:
            missing[case] = "triton or torch.compile was not measured"
    if record.get("partial"):
        missing["the rest"] = _STOPPED
    if not ratios:
        return _unknown(missing)
    mean = math.exp(sum(map(math.log, ratios.values())) / len(ratios))
    slowest = min(ratios, key=lambda case: ratios[case])
    least = f"least {ratios[slowest]:.2f}x, {slowest.partition(' ')[2]}"
    figure = f"{mean:.2f}x, geometric mean of {len(ratios)}; {least}"
    return _verdict(mean >= 1, figure, missing)


def _bandwidth(record: Record, names: Sequence[str], above: float = 0.0) -> Judged:
    """``names``: kernels, or single cases; ``above``: only those that must move more bytes."""
    shares: dict[str, float] = {}
    missing: dict[str, str] = {}
    for name in names:
        measured = {
            m["case"]: m["share_of_copy"]
            for m in record["measurements"]
            if (m["phase"], m["variant"]) == ("cold", "triton")
            and _is(m["case"], name)
            and m["least_bytes"] > above
        }
        failed = {case: reason for case, reason in record["failed"].items() if _is(case, name)}
        missing |= failed if measured or failed else {name: _missing(record, name)}
        shares |= measured
    if not shares:
        return _unknown(missing)
    least = min(shares, key=lambda case: shares[case])
    return _verdict(shares[least] >= 0.7, f"{shares[least]:.0%}, {least}", missing)


def _faster(record: Record, rivals: Sequence[str], least: float) -> Judged:
    ours, rival = fastest(record, OURS), fastest(record, rivals)
    measured = {m["variant"] for m in record["measurements"] if m["phase"] == "iteration"}
    missing = {name: _missing(record, name) for name in rivals if name not in measured}
    if rival is None:
        return _unknown(missing)
    if ours is None:
        return _unknown({name: _missing(record, name) for name in OURS})
    ratio = rival["summary"]["median"] / ours["summary"]["median"]
    figure = f"{ratio:.2f}x {rival['variant']}, by {ours['variant']}"
    return _verdict(ratio >= least, figure, missing)


def _matrix_share(record: Record) -> Judged:
    """FLOPs are counted where nothing is compiled; the fastest variant does the same work."""
    critic, counted = fastest(record, OURS, "critic"), keyed(record).get(("", "critic", "ganfast"))
    if critic is None or counted is None or "flops" not in counted:
        return "not measured", _missing(record, "ganfast")
    share = counted["flops"] / critic["summary"]["median"] / record["calibration"]["matrix_flops"]
    return _verdict(share >= 0.4, f"{share:.0%}, by {critic['variant']}", {})


def _gpu_time(record: Record, most: float) -> Judged:
    """Seconds in which the device was busy with one replayed critic phase: gaps do not count."""
    best = fastest(record, GRAPHS, "critic")
    if best is None:
        return _unknown({name: _missing(record, name) for name in GRAPHS})
    if "busy_s" not in best:
        return "not measured", best.get("profiler", _STOPPED)
    busy, launches = best["busy_s"], best["launches"]
    figure = f"{busy * 1e6:,.0f} us in {launches} launches, of {best['variant']}"
    return _verdict(busy <= most, figure, {})


def _penalty_cost(record: Record, most: float) -> Judged:
    step = fastest(record, OURS, "critic")
    without = step and keyed(record).get(("", "critic without penalty", step["variant"]))
    if not step or not without:
        return "not measured", _missing(record, "critic without penalty")
    ratio = step["summary"]["median"] / without["summary"]["median"]
    return _verdict(ratio <= most, f"{ratio:.2f}x, of {step['variant']}", {})


def _ratio(record: Record, key: str, least: float = -math.inf, most: float = math.inf) -> Judged:
    value = record["derived"]["ratios"].get(key)
    if value is None:
        return "not measured", f"the record has no {key!r}"
    return _verdict(least <= value <= most, f"{value:.3g}", {})


def _reached(record: Record) -> Judged:
    result = record["derived"]["result"]
    if result["reached"] is None:
        return "not measured", result["goal"]
    end = f"in {result['seconds']:.1f} s" if result["reached"] else "not reached"
    return _verdict(result["reached"], f"{result['goal']}, {end}", {})


def _named(pattern: str) -> Callable[[Record], bool]:
    return lambda record: fnmatchcase(record["name"], pattern)


def _train(preset: str, size: int, width: int, batch: int) -> Callable[[Record], bool]:
    setting = {"preset": preset, "size": size, "width": width, "batch": batch, "device": "cuda"}
    return lambda r: r["kind"] == "train" and setting.items() <= r["conditions"].items()


_KERNELS, _SAMPLER = _named("kernels-cuda"), _named("sampler-gpu")
_MNIST, _CELEBA = _train("wgan-gp", 28, 64, 64), _train("wgan-gp", 64, 64, 128)
_LARGE_CRITIC, _BOTH = _train("wgan-gp", 64, 128, 512), _train("rpgan", 64, 64, 128)

_COLD = "at least 1.0x torch.compile, cold cache"
_COPY = "at least 70% of a copy's rate"
_LARGE_PICTURES = [f"gradient_penalty {shape}" for shape in ("4096x3x64x64", "512x3x256x256")]
_GREY = "wgan-gp iteration, MNIST, batch 64, width 64: at least"
_FACES = "wgan-gp iteration, CelebA-64, batch 128, width 64: at least"
_REPLAYED = "GPU time of wgan-gp's replayed critic phase"
_STEP = "critic step at most"
_CRITIC = "critic phase, CelebA-64, batch 512, width 128: at least 40% of the matrix peak"
_WITHOUT = "the one without penalty"
_RIVALS = ("compiled", *CAPTURED, "jax")
_LARGE_BIAS_ACT = partial(_bandwidth, names=BIAS_ACT, above=_LARGE)
_COST_OF_ONE, _COST_OF_BOTH = (partial(_penalty_cost, most=most) for most in (1.8, 1.45))

# What each row asks for: the part of `make gpu`, the sentence, the record, the judge.
_ITERATIONS: tuple[tuple[str, Callable[[Record], bool], tuple[str, ...], float], ...] = (
    (f"{_GREY} 4x naive eager", _MNIST, ("naive",), 4.0),
    (f"{_GREY} 4x tuned eager", _MNIST, ("tuned",), 4.0),
    (f"{_GREY} 1.3x the best captured autograd", _MNIST, CAPTURED, 1.3),
    (f"{_GREY} 1.3x JAX", _MNIST, ("jax",), 1.3),
    (f"{_FACES} 5x naive eager", _CELEBA, ("naive",), 5.0),
    (f"{_FACES} 1.3x the best of compiled, captured and JAX", _CELEBA, _RIVALS, 1.3),
    (f"{_FACES} 1.3x JAX", _CELEBA, ("jax",), 1.3),
)
# Estimated from launches, bytes and FLOPs. No share of idle time is asked for: kernels of 2 us have
# gaps of about 1 us between them in any graph.
_GPU_TIMES: tuple[tuple[str, Callable[[Record], bool], float], ...] = (
    (f"{_REPLAYED}, MNIST, batch 64: at most 150 us", _MNIST, 150e-6),
    (f"{_REPLAYED}, CelebA-64, batch 128: at most 1300 us", _CELEBA, 1300e-6),
)
_SAMPLES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("batch 1: at most 100 us of GPU time", "GPU time of batch 1, us", {"most": 100.0}),
    ("batch 1: at least 2x eager", "auto over the faster layout of eager, batch 1", {"least": 2.0}),
    ("batch 512: at least 40% of the roof", "share of the roof", {"least": 0.4}),
)
TARGETS = (
    *(
        Target("kernels", f"{kernel} {_COLD}", _KERNELS, partial(_kernel, kernel=kernel))
        for kernel in KERNELS
    ),
    Target("kernels", f"bias_act {_COPY} above 64 MB", _KERNELS, _LARGE_BIAS_ACT),
    *(
        Target("kernels", f"{case} {_COPY}", _KERNELS, partial(_bandwidth, names=(case,)))
        for case in _LARGE_PICTURES
    ),
    *(
        Target("bench", text, pick, partial(_faster, rivals=rivals, least=least))
        for text, pick, rivals, least in _ITERATIONS
    ),
    Target("large", _CRITIC, _LARGE_CRITIC, _matrix_share),
    *(
        Target("bench", text, pick, partial(_gpu_time, most=most))
        for text, pick, most in _GPU_TIMES
    ),
    Target("bench", f"WGAN-GP's {_STEP} 1.8x {_WITHOUT}", _CELEBA, _COST_OF_ONE),
    Target("rest", f"R1 + R2's {_STEP} 1.45x {_WITHOUT}", _BOTH, _COST_OF_BOTH),
    *(
        Target("rest", f"sampler, {text}", _SAMPLER, partial(_ratio, key=key, **bound))
        for text, key, bound in _SAMPLES
    ),
    *(
        Target("rest", f"{data} to its quality", _named(f"speed-{data}-*"), _reached)
        for data in ("mnist", "stacked-mnist")
    ),
    Target("train", "discs to their quality", _named("resume-wgan-gp-cuda"), _reached),
)
