"""`ganfast bench train`: the GAN iteration by every variant, proven equal, then timed in turns."""

import gc
import math
import os
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ganfast.bench import calibrate, records
from ganfast.bench.activity import activity_of
from ganfast.bench.problem import Problem
from ganfast.bench.setting import Setting
from ganfast.bench.timing import STEADY_SAMPLE, HostClock, interleaved, untimed, warm_up
from ganfast.bench.variants import DEFAULT, VARIANTS, Prepared, first_calls, prove
from ganfast.device import set_libraries
from ganfast.engine.compiled import graphs
from ganfast.errors import InputError, RunError
from ganfast.flops import FlopCount

# In the order in which a stop loses least.
PHASES = ("draw", "critic", "generator", "critic without penalty")
REST = 0.004  # seconds between variants: OpenMP's threads spin for about as long after their work
Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """How to measure."""

    variants: tuple[str, ...] = DEFAULT
    rounds: int = 30
    profile: bool = False  # on a CPU, too


def measure(
    setting: Setting,
    plan: Plan,
    say: Say = lambda _: None,
    keep: Callable[[records.Record], object] = lambda _: None,
) -> records.Record:
    """Prove, warm up and time every variant of a setting; one that cannot run gets its reason.

    Args:
        say: is told what a person should know.
        keep: is given the record as it stands after every variant and every phase.
    """
    problem = Problem(setting)
    set_libraries(problem.device, problem.config.precision)
    record = records.make("train", name_of(problem), _conditions(problem), []) | {"ahead": {}}
    measured: list[dict[str, Any]] = []
    failed: dict[str, str] = {}

    def so_far() -> records.Record:
        whole = iterations(measured, problem, record["ahead"])
        return records.updated(record, [*measured, *whole], failed)

    variants: dict[str, Prepared] = {}
    facts: dict[str, dict[str, Any]] = {}
    for name in plan.variants:
        if VARIANTS[name].gpu and problem.device.type != "cuda":
            failed[name] = "needs an NVIDIA GPU"
        else:
            try:
                variants[name], facts[name] = _prepared(problem, name)
            except Exception as error:  # a variant that cannot run is a result too
                failed[name] = records.reason(error)
                if not isinstance(error, InputError) or error.__cause__:
                    traceback.print_exc()
        if name in failed:
            say(f"  {name}: {failed[name]}")
        keep(so_far())
    if not variants:
        reasons = "; ".join(f"{name}: {why}" for name, why in failed.items())
        raise RunError(f"nothing was measured: {reasons}")
    record["ahead"] = {name: variant.ahead for name, variant in variants.items()}
    clock = HostClock(*(variant.wait for variant in variants.values()))
    peaks = calibrate.peaks(problem.device, problem.autocast or torch.float32, clock)
    loop, loops = calibrate.calibration_loop(problem.device), list[float]()
    record["calibration"] = peaks | {"loop_s": loops}
    for phase in PHASES:
        runs = {name: v.phases[phase] for name, v in variants.items() if phase in v.phases}
        runs["calibration"] = loop
        warm = {name: warm_up(run, clock, STEADY_SAMPLE) for name, run in runs.items()}
        rounds = plan.rounds if phase != "draw" else min(10, plan.rounds)  # once in many iterations
        rest = partial(time.sleep, REST)
        samples = interleaved(runs, rounds, clock, warm, compilations, rest)
        loops += samples.pop("calibration")
        for name, seconds in samples.items():
            more = _facts_of(phase, facts[name], float(np.median(seconds)), peaks)
            more["calls_per_sample"] = warm[name].calls
            one = records.measurement(phase, name, seconds, **more)
            if problem.device.type == "cuda" or plan.profile:
                one |= activity_of(runs[name], variants[name].wait, one, problem.device)
            measured.append(one)
        keep(so_far())
    return so_far()


def _conditions(problem: Problem) -> dict[str, Any]:
    c = problem.config
    return {
        **problem.setting.asdict(),
        **{name: getattr(c, name) for name in ("size", "channels", "batch", "precision")},
        "classes": problem.classes,
        "width": c.net.width,
        "latent": c.net.latent,
        "device": problem.device.type,
        "critic_steps": c.optim.critic_steps,
        "threads": torch.get_num_threads(),
        "rest_s": REST,
        "images": problem.images,
        "load_1min": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else math.nan,
        "proof": "without dropout" if c.net.critic_dropout else "of the timed callables",
    }


def _prepared(problem: Problem, name: str) -> tuple[Prepared, dict[str, Any]]:
    """The variant, proven, and what is known of it before it is timed."""
    on_gpu = problem.device.type == "cuda"
    gc.collect()
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
        # Read before the proof, whose float64 lies on the GPU too.
        facts["peak_bytes"] = torch.cuda.max_memory_allocated() - before
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
    """Of a call of each phase: XLA's own count, or a count of what is not compiled.

    Without the zeros that convolutions of few channels may be padded with.
    """
    if hasattr(variant, "flops"):
        return variant.flops()
    counts = {}
    for phase, run in variant.phases.items() if VARIANTS[name].counted else ():
        with untimed(), FlopCount() as count:
            run()
        counts[phase] = float(count.total)
    return counts


def _facts_of(
    phase: str, facts: Mapping[str, Any], median: float, peaks: Mapping[str, float]
) -> dict[str, Any]:
    """What a measurement of one phase tells besides its seconds."""
    more: dict[str, Any] = {
        "error": facts["error"].get(phase),
        "first_call_s": facts["first_call_s"][phase],
        "prepare_s": facts["prepare_s"],
    }
    if "peak_bytes" in facts:
        more["peak_bytes"] = facts["peak_bytes"]
    if flops := facts["flops"].get(phase):
        rate = flops / median
        share = rate / peaks["matrix_flops"]
        more |= {"flops": flops, "flops_per_s": rate, "share_of_matrix_peak": share}
    return more


def iterations(
    measured: list[dict[str, Any]], problem: Problem, ahead: dict[str, int]
) -> Iterator[dict[str, Any]]:
    """A generator step, its critic steps, and its share of a draw: sums of phases, by rounds."""
    steps = problem.config.optim.critic_steps
    by = {(m["phase"], m["variant"]): m for m in measured}
    for (phase, name), critic in by.items():
        if phase == "critic" and ("generator", name) in by:
            drawing = by.get(("draw", name))
            share = drawing["summary"]["median"] / ahead[name] if drawing else 0.0
            pairs = zip(critic["samples"], by["generator", name]["samples"], strict=True)
            seconds = [steps * c + g + share for c, g in pairs]
            rate = problem.images / float(np.median(seconds))
            more: dict[str, Any] = {"images_per_s": rate, "seconds_per_kimg": 1000 / rate}
            yield records.measurement("iteration", name, seconds, **more)


def compilations() -> int:
    """Graphs made so far in this process by torch.compile and by ganfast's own recording."""
    from torch._dynamo.utils import counters

    unique, missed = counters["stats"]["unique_graphs"], counters["inductor"]["fxgraph_cache_miss"]
    return int(unique) + int(missed) + graphs.total()


def name_of(problem: Problem) -> str:
    c, device = problem.config, problem.device.type
    where = f"cpu-t{torch.get_num_threads()}" if device == "cpu" else device
    classes = f"-c{problem.classes}" if problem.setting.classes >= 0 else ""
    shape = f"{c.size}x{c.channels}{classes}-w{c.net.width}-b{c.batch}"
    return f"train-{c.preset}-{shape}-{c.precision}-{where}"


def fastest(
    record: records.Record, names: Sequence[str], phase: str = "iteration"
) -> dict[str, Any] | None:
    """The measurement with the least median among variants; None where none was measured."""
    rows = [m for m in record["measurements"] if m["phase"] == phase and m["variant"] in names]
    return min(rows, key=lambda m: m["summary"]["median"], default=None)


def speed_over(rival: dict[str, Any], one: dict[str, Any]) -> float:
    """How many times as fast ``one`` is: the median over rounds, in each of which both ran."""
    return float(np.median([a / b for a, b in zip(rival["samples"], one["samples"], strict=False)]))


def table(record: records.Record) -> str:
    """Medians with percentiles, and ratios over naive, tuned and JAX, of one setting."""
    noisy = ", NOISY" if record["noise"]["noisy"] else ""
    lines = [f"{record['name']}: {record['conditions']['threads']} threads{noisy}"]
    by = records.keyed(record)
    order = (*PHASES, "iteration")
    for (_, phase, name), m in sorted(by.items(), key=lambda item: order.index(item[0][1])):
        low, median, high = (m["summary"][key] * 1e3 for key in ("p20", "median", "p80"))
        row = f"  {phase:24}{name:26}{median:10.3f} ms [{low:.3f}, {high:.3f}]"
        for base in ("naive", "tuned", "jax"):
            if other := by.get(("", phase, base)):
                row += f" {speed_over(other, m):6.2f}x {base}"
        if "images_per_s" in m:
            row += f"  {m['images_per_s']:,.0f} img/s"
        if "share_of_matrix_peak" in m:
            row += f"  {m['share_of_matrix_peak']:.0%} of the matrix peak"
        lines.append(row)
    return "\n".join(lines)


def run(
    settings: Sequence[Setting], plan: Plan, out: Path | None, again: bool, say: Say
) -> list[records.Record]:
    """Measure settings, and write each as soon as it is measured.

    Unless ``again``, a record of this code that ``out`` already holds is taken as it is.
    """
    done = {} if out is None or again else _done(settings, out, plan, say)
    all_records: list[records.Record] = []
    spent: list[float] = []
    for i, setting in enumerate(settings):
        name = name_of(Problem(setting))
        place = f"{name} ({i + 1} of {len(settings)})"
        record = done.get(name)
        if record is None:
            left = sum(name_of(Problem(s)) not in done for s in settings[i:])
            hint = f", about {np.mean(spent) * left / 60:.0f} min to go" if spent else ""
            say(place + hint)
            began = time.monotonic()
            record = measure(setting, plan, say, records.keeper(out))
            spent.append(time.monotonic() - began)
            if out is not None:
                say(f"wrote {records.write(record, out)} after {spent[-1]:.0f} s")
        else:
            say(f"{place}: measured before with this code")
        all_records.append(record)
        say(table(record))
    return all_records


def _done(
    settings: Sequence[Setting], folder: Path, plan: Plan, say: Say
) -> dict[str, records.Record]:
    """Records by name that this code and these versions made of the same settings and plan."""
    from ganfast.environment import environment

    problems = [Problem(setting) for setting in settings]
    conditions = {name_of(p): records.lasting(_conditions(p)) for p in problems}
    here, done = environment(), {}
    for path in sorted(folder.glob("*-train-*.json")):
        try:
            old = records.read(path)
        except InputError as error:
            say(f"{error}: passed over")
            continue
        names = {m["variant"] for m in old["measurements"]} | set(old["failed"])
        rounds = max((len(m["samples"]) for m in old["measurements"]), default=0)
        versions = all(old["environment"].get(k) == here[k] for k in ("torch", "jax", "cpu", "gpu"))
        whole = not old.get("partial") and rounds >= plan.rounds and names >= set(plan.variants)
        same = records.lasting(old["conditions"]) == conditions.get(old["name"])
        if whole and same and versions and old.get("code") == records.code():
            done[old["name"]] = old
    return done


def swept(setting: Setting, name: str, values: Sequence[int]) -> list[Setting]:
    """The setting at several batches, widths or sides."""
    if name not in ("batch", "width", "size"):
        raise InputError(
            f"sweep is over {name!r}; expected batch, width or size, as --sweep batch=16,32,64"
        )
    return [replace(setting, **{name: value}) for value in values]  # type: ignore[arg-type]


def overview(all_records: Sequence[records.Record]) -> str:
    """One line a setting: the best of ganfast against the best of each rival, as Markdown."""
    lines = ["| setting | ganfast img/s | over naive | over tuned | over JAX | noisy |"]
    lines.append("|---|---|---|---|---|---|")
    ours = [name for name, v in VARIANTS.items() if not v.baseline]
    tuned = ("tuned", "tuned-graph", "compiled", "compiled-graph")
    for record in all_records:
        best = fastest(record, ours)
        if best is None:
            continue
        cells = [record["name"].removeprefix("train-"), f"{best['images_per_s']:,.0f}"]
        for family in (("naive",), tuned, ("jax",)):
            rival = fastest(record, family)
            cells.append("-" if rival is None else f"{speed_over(rival, best):.2f}x")
        lines.append(f"| {' | '.join(cells)} | {'yes' if record['noise']['noisy'] else 'no'} |")
    return "\n".join(lines)
