"""What ganfast is meant to reach on a GPU (an H200), judged from records: what holds, what does not, and what is not known."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal, NamedTuple

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
_LARGE = (
    2 * 64e6
)  # least bytes of an activation over a tensor of 64 MB: it is read, and one like it written


class Row(NamedTuple):
    """One target."""

    target: str
    outcome: Outcome
    said: str  # the figure; where there is none, why

    def __str__(self) -> str:
        return f"{self.outcome:14}{self.target}: {self.said}"


def judged(found: Sequence[Record], why: Mapping[str, str]) -> list[Row]:
    """Every target, then what failed in a record.

    Args:
        found: records of one run on a GPU.
        why: by part of the run (kernels, bench, phases, sampler, speed), why there is no record of what it measures.
    """
    mnist, celeba, large = (
        _train(found, "wgan-gp", *shape) for shape in ((28, 64, 64), (64, 64, 128), (64, 128, 512))
    )
    both = _train(found, "rpgan", 64, 64, 128)
    kernels, sampler = _named(found, "kernels-cuda"), _named(found, "sampler-gpu")
    grey, faces = (
        "wgan-gp iteration, MNIST, batch 64, width 64",
        "wgan-gp iteration, CelebA-64, batch 128, width 64",
    )

    def row(
        part: str, target: str, record: Record | None, judge: Callable[[Record], Judged]
    ) -> Row:
        if record is None:
            return Row(target, "not measured", why.get(part, "there is no record of it"))
        return Row(target, *judge(record))

    rows = [
        row(
            "kernels",
            f"{kernel} at least 1.0x torch.compile, cold cache",
            kernels,
            partial(_kernel, kernel=kernel),
        )
        for kernel in KERNELS
    ]
    share = "at least 70% of a copy's rate"
    rows.append(
        row(
            "kernels",
            f"bias_act {share} above 64 MB",
            kernels,
            partial(_bandwidth, wanted=BIAS_ACT, above=_LARGE),
        )
    )
    for shape in ("4096x3x64x64", "512x3x256x256"):
        case = f"gradient_penalty {shape}"
        rows.append(row("kernels", f"{case} {share}", kernels, partial(_bandwidth, wanted=(case,))))
    for target, record, rivals, least in (
        (f"{grey}: at least 4x naive eager", mnist, ("naive",), 4.0),
        (f"{grey}: at least 4x tuned eager", mnist, ("tuned",), 4.0),
        (f"{grey}: at least 1.3x the best captured autograd", mnist, CAPTURED, 1.3),
        (f"{grey}: at least 1.3x JAX", mnist, ("jax",), 1.3),
        (f"{faces}: at least 5x naive eager", celeba, ("naive",), 5.0),
        (
            f"{faces}: at least 1.3x the best of compiled, captured and JAX",
            celeba,
            ("compiled", *CAPTURED, "jax"),
            1.3,
        ),
        (f"{faces}: at least 1.3x JAX", celeba, ("jax",), 1.3),
    ):
        rows.append(row("bench", target, record, partial(_faster, rivals=rivals, least=least)))
    rows += [
        row(
            "phases",
            "critic phase, CelebA-64, batch 512, width 128: at least 40% of the matrix peak",
            large,
            _matrix_share,
        ),
        row("bench", "the device idles less than 5% of a replayed phase, MNIST", mnist, _idle),
        row("bench", "the device idles less than 5% of a replayed phase, CelebA-64", celeba, _idle),
        row(
            "bench",
            "WGAN-GP's critic step at most 1.8x the one without penalty",
            celeba,
            partial(_penalty_cost, most=1.8),
        ),
        row(
            "phases",
            "R1 + R2's critic step at most 1.45x the one without penalty",
            both,
            partial(_penalty_cost, most=1.45),
        ),
    ]
    for target, ratio in (
        (
            "batch 1: at most 100 us of GPU time",
            partial(_ratio, key="GPU time of batch 1, us", most=100.0),
        ),
        (
            "batch 1: at least 2x eager",
            partial(_ratio, key="auto over the faster layout of eager, batch 1", least=2.0),
        ),
        (
            "batch 512: at least 40% of the roof",
            partial(_ratio, key="share of the roof", least=0.4),
        ),
    ):
        rows.append(row("sampler", f"sampler, {target}", sampler, ratio))
    for data in ("mnist", "stacked-mnist"):
        reached = next((r for r in found if r["name"].startswith(f"speed-{data}-")), None)
        rows.append(row("speed", f"{data} to its quality", reached, _reached))
    return rows + [
        Row(
            f"{r['name']}: {name}",
            "does not hold" if name in failures(r) else "not measured",
            reason,
        )
        for r in found
        for name, reason in r.get("failed", {}).items()
    ]


def failures(record: Record) -> dict[str, str]:
    """What ran and failed, a crash or a proof; not what could not run here for want of a package."""
    return {
        k: v
        for k, v in record.get("failed", {}).items()
        if not (k == "jax" and v.startswith("InputError"))
    }


def _named(found: Sequence[Record], name: str) -> Record | None:
    return next((r for r in found if r["name"] == name), None)


def _train(
    found: Sequence[Record], preset: str, size: int, width: int, batch: int
) -> Record | None:
    wanted = {"preset": preset, "size": size, "width": width, "batch": batch, "device": "cuda"}
    return next(
        (r for r in found if r["kind"] == "train" and wanted.items() <= r["conditions"].items()),
        None,
    )


def _verdict(holds: bool, said: str, missing: Mapping[str, str]) -> Judged:
    """What is missing can still make a target be missed, never be met."""
    without = "".join(f"; without {name} ({reason})" for name, reason in missing.items())
    return (
        "not measured" if holds and missing else "holds" if holds else "does not hold"
    ), said + without


def _missing(record: Record, name: str) -> str:
    return record.get("failed", {}).get(name) or (
        _STOPPED if record.get("partial") else "not among what was measured"
    )


def _kernel(record: Record, kernel: str) -> Judged:
    by = keyed(record)
    cases = {case for case, _, _ in by if _is(case, kernel)}
    missing = {
        name: reason for name, reason in record.get("failed", {}).items() if _is(name, kernel)
    }
    ratios = {}
    for case in sorted(cases):
        times = [by.get((case, "cold", name)) for name in ("compile", "triton")]
        if times[0] and times[1]:
            ratios[case] = times[0]["summary"]["median"] / times[1]["summary"]["median"]
        else:
            missing[case] = "triton or torch.compile was not measured"
    if record.get("partial"):
        missing["the rest"] = _STOPPED
    if not ratios:
        return "not measured", "; ".join(
            f"{k}: {v}" for k, v in missing.items()
        ) or "not among what was measured"
    mean = math.exp(sum(map(math.log, ratios.values())) / len(ratios))
    slowest = min(ratios, key=lambda case: ratios[case])
    said = f"{mean:.2f}x, geometric mean of {len(ratios)}; least {ratios[slowest]:.2f}x, {slowest.partition(' ')[2]}"
    return _verdict(mean >= 1, said, missing)


def _is(case: str, wanted: str) -> bool:
    return wanted in (case, case.split()[0])


def _bandwidth(record: Record, wanted: Sequence[str], above: float = 0.0) -> Judged:
    """``wanted``: kernels, or single cases; ``above``: only those that must move more bytes."""
    shares: dict[str, float] = {}
    missing: dict[str, str] = {}
    for one in wanted:
        cold = [
            m for m in record["measurements"] if (m["phase"], m["variant"]) == ("cold", "triton")
        ]
        found = {
            m["case"]: m["share_of_copy"]
            for m in cold
            if _is(m["case"], one) and m["least_bytes"] > above
        }
        failed = {case: reason for case, reason in record["failed"].items() if _is(case, one)}
        missing |= failed if found or failed else {one: _missing(record, one)}
        shares |= found
    if not shares:
        return "not measured", "; ".join(f"{name}: {reason}" for name, reason in missing.items())
    least = min(shares, key=lambda case: shares[case])
    return _verdict(shares[least] >= 0.7, f"{shares[least]:.0%}, {least}", missing)


def _faster(record: Record, rivals: Sequence[str], least: float) -> Judged:
    ours, rival = fastest(record, OURS), fastest(record, rivals)
    measured = {m["variant"] for m in record["measurements"] if m["phase"] == "iteration"}
    missing = {name: _missing(record, name) for name in rivals if name not in measured}
    if ours is None or rival is None:
        missing = missing if rival is None else {name: _missing(record, name) for name in OURS}
        return "not measured", "; ".join(f"{name}: {reason}" for name, reason in missing.items())
    ratio = rival["summary"]["median"] / ours["summary"]["median"]
    return _verdict(
        ratio >= least, f"{ratio:.2f}x {rival['variant']}, by {ours['variant']}", missing
    )


def _matrix_share(record: Record) -> Judged:
    """FLOPs are counted where nothing is compiled; the fastest variant does the same work."""
    critic, counted = fastest(record, OURS, "critic"), keyed(record).get(("", "critic", "ganfast"))
    if critic is None or counted is None or "flops" not in counted:
        return "not measured", _missing(record, "ganfast")
    share = counted["flops"] / critic["summary"]["median"] / record["calibration"]["matrix_flops"]
    return _verdict(share >= 0.4, f"{share:.0%}, by {critic['variant']}", {})


def _idle(record: Record) -> Judged:
    best = fastest(record, GRAPHS, "critic")
    if best is None:
        return "not measured", "; ".join(f"{name}: {_missing(record, name)}" for name in GRAPHS)
    by = keyed(record)
    idle = {
        p: m["idle_share"]
        for p in ("critic", "generator")
        if (m := by.get(("", p, best["variant"]))) and "idle_share" in m
    }
    missing = {p: _STOPPED for p in ("critic", "generator") if p not in idle}
    if not idle:
        return "not measured", _STOPPED
    said = ", ".join(f"{phase} {share:.1%}" for phase, share in idle.items())
    return _verdict(max(idle.values()) < 0.05, f"{said}, of {best['variant']}", missing)


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
    said = f"{result['goal']}, " + (
        f"in {result['seconds']:.1f} s" if result["reached"] else "not reached"
    )
    return _verdict(result["reached"], said, {})
