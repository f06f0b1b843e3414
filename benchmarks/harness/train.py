"""`ganfast bench train`: the GAN iteration by every variant, proven equal, then timed in turns."""

import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ganfast.bench import calibrate, records
from ganfast.bench.activity import device_activity
from ganfast.bench.memory import peak_bytes
from ganfast.bench.problem import Problem
from ganfast.bench.setting import Setting
from ganfast.bench.timing import STEADY_SAMPLE, HostClock, interleaved, warm_up
from ganfast.bench.variants import DEFAULT, VARIANTS, Prepared, first_calls, prove
from ganfast.engine.compiled import graphs
from ganfast.errors import InputError, RunError
from ganfast.flops import FlopCount

PHASES = (
    "draw",
    "critic",
    "generator",
    "critic without penalty",
)  # in the order in which a stop loses least


@dataclass(frozen=True)
class Plan:
    """How to measure."""

    variants: tuple[str, ...] = DEFAULT
    rounds: int = 30
    memory: bool = False  # peak memory on a CPU too, every variant in a process of its own
    rest_s: float = (
        0.004  # between variants: OpenMP's threads spin for about as long after their work
    )


def measure(
    setting: Setting,
    plan: Plan,
    said: Callable[[str], None] = lambda _: None,
    keep: Callable[[records.Record], object] = lambda _: None,
) -> records.Record:
    """Prove, warm up and time every variant of a setting; one that cannot run is listed with its reason.

    Args:
        said: is told what a person should know.
        keep: is given the record as it stands after every variant and every phase.
    """
    problem = Problem(setting)
    on_gpu = problem.device.type == "cuda"
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = (
        problem.autocast is not None
    )
    record = records.make("train", name_of(problem), _conditions(problem, plan), []) | {"ahead": {}}
    measured: list[dict[str, Any]] = []
    failed: dict[str, str] = {}

    def so_far() -> records.Record:
        return records.updated(
            record, [*measured, *iterations(measured, problem, record["ahead"])], failed
        )

    made: dict[str, Prepared] = {}
    facts: dict[str, dict[str, Any]] = {}
    for name in plan.variants:
        if VARIANTS[name].gpu and not on_gpu:
            failed[name] = "needs an NVIDIA GPU"
            said(f"  {name}: {failed[name]}")
            continue
        try:
            made[name], facts[name] = _prepared(problem, name, plan.memory)
        except Exception as error:  # a variant that cannot run is a result too
            failed[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            said(f"  {name}: {failed[name]}")
        keep(so_far())
    if not made:
        raise RunError(
            f"nothing was measured: {'; '.join(f'{name}: {why}' for name, why in failed.items())}"
        )
    record["ahead"] = {name: variant.ahead for name, variant in made.items()}
    clock = HostClock(*(variant.wait for variant in made.values()))
    peaks = calibrate.peaks(problem.device, problem.autocast or torch.float32, clock)
    made_loop = calibrate.calibration_loop(problem.device)
    loops: list[float] = []
    record["calibration"] = peaks | {"loop_s": loops}
    for phase in PHASES:
        runs = {
            name: variant.phases[phase] for name, variant in made.items() if phase in variant.phases
        }
        runs |= {"calibration": made_loop}
        warm = {name: warm_up(run, clock, STEADY_SAMPLE) for name, run in runs.items()}
        rounds = plan.rounds if phase != "draw" else min(10, plan.rounds)  # once in many iterations
        samples = interleaved(
            runs, rounds, clock, warm, compilations, lambda: time.sleep(plan.rest_s)
        )
        loops += samples.pop("calibration")
        for name, seconds in samples.items():
            one = _measured(phase, name, seconds, warm[name].calls, facts[name], peaks)
            if on_gpu:
                one |= device_activity(runs[name], made[name].wait, one["summary"]["median"])
            measured.append(one)
        keep(so_far())
    return so_far()


def _conditions(problem: Problem, plan: Plan) -> dict[str, Any]:
    c = problem.config
    return {
        **problem.setting.asdict(),
        "size": c.size,
        "channels": c.channels,
        "classes": problem.classes,
        "width": c.net.width,
        "batch": c.batch,
        "latent": c.net.latent,
        "precision": c.precision,
        "device": problem.device.type,
        "critic_steps": c.optim.critic_steps,
        "threads": torch.get_num_threads(),
        "rest_s": plan.rest_s,
        "images": problem.images,
        "load_1min": round(_load(), 2),
        "proof": "without dropout" if c.net.critic_dropout else "of the timed callables",
    }


def _prepared(problem: Problem, name: str, memory: bool) -> tuple[Prepared, dict[str, Any]]:
    """The variant, proven, and what is known of it before it is timed."""
    gc.collect()
    on_gpu = problem.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    began = time.perf_counter()
    variant = VARIANTS[name].prepare(problem)
    first = first_calls(variant, time.perf_counter)
    facts: dict[str, Any] = {"first_call_s": first, "prepare_s": time.perf_counter() - began}
    if on_gpu and name != "jax":  # XLA has an allocator of its own
        for run in variant.phases.values():  # once more: in the first calls Adam had no state yet
            run()
        variant.wait()
        facts["peak_bytes"] = (
            torch.cuda.max_memory_allocated() - before
        )  # ahead of the proof, whose float64 lies there too
    elif memory and not on_gpu:
        facts["peak_bytes"] = peak_bytes(problem.setting, name)
    if problem.config.net.critic_dropout:
        proof = Problem(problem.setting, proof=True)
        without = VARIANTS[name].prepare(proof)
        first_calls(without, time.perf_counter)
        facts["error"] = prove(proof, without)
    else:
        facts["error"] = prove(problem, variant)
    variant.load(0)
    facts["flops"] = _flops(variant, name)
    return variant, facts


def _flops(variant: Any, name: str) -> dict[str, float]:
    """Executed by a call of each phase: by the counter where nothing is compiled, by XLA's own count; else not known."""
    if hasattr(variant, "flops"):
        return variant.flops()
    if not VARIANTS[name].counted:
        return {}
    found = {}
    for phase, run in variant.phases.items():
        with FlopCount() as count:
            run()
        found[phase] = float(count.total)
    return found


def _measured(
    phase: str,
    name: str,
    seconds: list[float],
    calls: int,
    facts: dict[str, Any],
    peaks: dict[str, float],
) -> dict[str, Any]:
    more: dict[str, Any] = {
        "calls_per_sample": calls,
        "error": facts["error"].get(phase),
        "first_call_s": facts["first_call_s"][phase],
        "prepare_s": facts["prepare_s"],
    }
    if "peak_bytes" in facts:
        more["peak_bytes"] = facts["peak_bytes"]
    flops = facts["flops"].get(phase)
    if flops:
        rate = flops / float(np.median(seconds))
        more |= {
            "flops": flops,
            "flops_per_s": rate,
            "share_of_matrix_peak": rate / peaks["matrix_flops"],
        }
    return records.measurement(phase, name, seconds, **more)


def iterations(
    measured: list[dict[str, Any]], problem: Problem, ahead: dict[str, int]
) -> Iterator[dict[str, Any]]:
    """A generator step with its critic steps and its share of what is drawn ahead, from samples of the phases, round by round."""
    steps = problem.config.optim.critic_steps
    by = {(m["phase"], m["variant"]): m for m in measured}
    for (phase, name), critic in by.items():
        if phase == "critic" and ("generator", name) in by:
            drawing = by.get(("draw", name))
            share = drawing["summary"]["median"] / ahead[name] if drawing else 0.0
            pairs = zip(critic["samples"], by["generator", name]["samples"], strict=True)
            seconds = [steps * c + g + share for c, g in pairs]
            rate = problem.images / float(np.median(seconds))
            yield records.measurement(
                "iteration", name, seconds, images_per_s=rate, seconds_per_kimg=1000 / rate
            )


def compilations() -> int:
    """Graphs that torch.compile and ganfast's own recording have made so far in this process."""
    from torch._dynamo.utils import counters

    return (
        int(counters["stats"]["unique_graphs"])
        + int(counters["inductor"]["fxgraph_cache_miss"])
        + graphs.total()
    )


def name_of(problem: Problem) -> str:
    c = problem.config
    where = (
        f"cpu-t{torch.get_num_threads()}" if problem.device.type == "cpu" else problem.device.type
    )
    classes = f"-c{problem.classes}" if problem.setting.classes >= 0 else ""
    return f"train-{c.preset}-{c.size}x{c.channels}{classes}-w{c.net.width}-b{c.batch}-{c.precision}-{where}"


def _load() -> float:
    import os

    return os.getloadavg()[0] if hasattr(os, "getloadavg") else math.nan


def fastest(
    record: records.Record, names: Sequence[str], phase: str = "iteration"
) -> dict[str, Any] | None:
    """The measurement with the least median among variants; None where none was measured."""
    found = [m for m in record["measurements"] if m["phase"] == phase and m["variant"] in names]
    return min(found, key=lambda m: m["summary"]["median"], default=None)


def speed_over(rival: dict[str, Any], one: dict[str, Any]) -> float:
    """How many times as fast ``one`` is: the median of the rounds, in each of which both took their turn."""
    return float(np.median([a / b for a, b in zip(rival["samples"], one["samples"], strict=False)]))


def table(record: records.Record) -> str:
    """Medians with percentiles, and ratios over naive, tuned and JAX, of one setting."""
    lines = [
        f"{record['name']}: {record['conditions']['threads']} threads{', NOISY' if record['noise']['noisy'] else ''}"
    ]
    by = records.keyed(record)
    for phase in (*PHASES, "iteration"):
        for (_, where, name), m in by.items():
            if where != phase:
                continue
            s = m["summary"]
            row = f"  {phase:24}{name:26}{s['median'] * 1e3:10.3f} ms [{s['p20'] * 1e3:.3f}, {s['p80'] * 1e3:.3f}]"
            for base in ("naive", "tuned", "jax"):
                other = by.get(("", phase, base))
                if other is not None:
                    row += f" {speed_over(other, m):6.2f}x {base}"
            if "images_per_s" in m:
                row += f"  {m['images_per_s']:,.0f} img/s"
            if "share_of_matrix_peak" in m:
                row += f"  {m['share_of_matrix_peak']:.0%} of the matrix peak"
            lines.append(row)
    return "\n".join(lines)


def run(
    settings: Sequence[Setting],
    plan: Plan,
    out: Path | None,
    again: bool,
    said: Callable[[str], None],
) -> list[records.Record]:
    """Measure settings, each written as soon as it is measured; what ``out`` already holds of this code is not measured again."""
    done = {} if out is None or again else _done(settings, out, plan, said)
    found: list[records.Record] = []
    spent: list[float] = []
    for i, setting in enumerate(settings):
        name = name_of(Problem(setting))
        record = done.get(name)
        if record is None:
            left = sum(name_of(Problem(s)) not in done for s in settings[i:])
            said(
                f"{name} ({i + 1} of {len(settings)})"
                + (f", about {np.mean(spent) * left / 60:.0f} min to go" if spent else "")
            )
            began = time.monotonic()
            record = measure(setting, plan, said, records.keeper(out))
            spent.append(time.monotonic() - began)
            if out is not None:
                said(f"wrote {records.write(record, out)} after {spent[-1]:.0f} s")
        else:
            said(f"{name} ({i + 1} of {len(settings)}): measured before with this code")
        found.append(record)
        said(table(record))
    return found


def _done(
    settings: Sequence[Setting], folder: Path, plan: Plan, said: Callable[[str], None]
) -> dict[str, records.Record]:
    """Records by name that this code and these versions made of the same settings with the same plan."""
    from ganfast.environment import environment

    problems = [Problem(setting) for setting in settings]
    wanted = {name_of(problem): records.lasting(_conditions(problem, plan)) for problem in problems}
    here, found = environment(), {}
    for path in sorted(folder.glob("*-train-*.json")):
        try:
            old = records.read(path)
        except InputError as error:
            said(f"{error}: passed over")
            continue
        names = {m["variant"] for m in old["measurements"]} | set(old["failed"])
        rounds = max((len(m["samples"]) for m in old["measurements"]), default=0)
        versions = all(old["environment"].get(k) == here[k] for k in ("torch", "jax", "cpu", "gpu"))
        whole = not old.get("partial") and rounds >= plan.rounds and names >= set(plan.variants)
        if plan.memory:
            whole = whole and all(
                "peak_bytes" in m for m in old["measurements"] if m["phase"] == "critic"
            )
        same = records.lasting(old["conditions"]) == wanted.get(old["name"])
        if whole and same and versions and old.get("code") == records.code():
            found[old["name"]] = old
    return found


def swept(setting: Setting, name: str, values: Sequence[int]) -> list[Setting]:
    """The setting at several batches, widths or sides."""
    if name not in ("batch", "width", "size"):
        raise InputError(
            f"sweep is over {name!r}; expected batch, width or size, as --sweep batch=16,32,64"
        )
    return [replace(setting, **{name: value}) for value in values]  # type: ignore[arg-type]


def overview(found: Sequence[records.Record]) -> str:
    """One line a setting: the best of ganfast against the best of each rival, whole iteration, as Markdown."""
    lines = [
        "| setting | ganfast img/s | over naive | over tuned | over JAX | noisy |",
        "|---|---|---|---|---|---|",
    ]
    ours = [name for name, v in VARIANTS.items() if not v.baseline]
    for record in found:
        best = fastest(record, ours)
        if best is None:
            continue
        cells = [record["name"].removeprefix("train-"), f"{best['images_per_s']:,.0f}"]
        for family in (
            ("naive",),
            ("tuned", "tuned-graph", "compiled", "compiled-graph"),
            ("jax",),
        ):
            rival = fastest(record, family)
            cells.append("-" if rival is None else f"{speed_over(rival, best):.2f}x")
        lines.append(f"| {' | '.join(cells)} | {'yes' if record['noise']['noisy'] else 'no'} |")
    return "\n".join(lines)
