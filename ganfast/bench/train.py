"""`ganfast bench train`: the GAN iteration by every variant, proven equal, then timed in turns."""

import copy
import gc
import math
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ganfast.bench import calibrate, records
from ganfast.bench.plain import Phase, Plain, captured, clip_weights, placed
from ganfast.bench.problem import Problem
from ganfast.bench.setting import Setting
from ganfast.bench.timing import HostClock, interleaved, warm_up
from ganfast.device import prepared
from ganfast.engine import draw, make_critic_step, make_generator_step
from ganfast.engine.check import full_float32
from ganfast.errors import InputError, RunError
from ganfast.flops import FlopCount

PHASES = ("critic", "generator")
SEEDS = 8  # in some batches a value rounds across a kink in one variant and not in another, which is no error of either
EXACT = 1e-4  # relative error of the whole gradient in fp32 on at least one seed: a wrong gradient has it on none


class Prepared(Protocol):
    """A variant ready to run. Every phase is a callable on static buffers: draw, gradients, Adam, and what follows it."""

    phases: dict[str, Phase]

    def load(self, seed: int) -> None:
        """Initial weights and inputs of a seed, Adam's moments 0, all in place."""

    def gradients(self, phase: str) -> list[np.ndarray]:
        """What Adam was given by the first call of a phase after `load`."""

    def wait(self) -> None: ...


class TorchPrepared:
    """Networks, Adam and inputs of a torch variant, loaded in place, so that a captured graph sees them."""

    def __init__(self, problem: Problem, made: Any) -> None:
        self._problem, self._made, self.phases = problem, made, made.phases

    @torch.no_grad()
    def load(self, seed: int) -> None:
        made, fresh = self._made, self._problem.networks(seed)
        for net, new in zip((made.generator, made.critic, made.average), (*fresh, fresh[0]), strict=True):
            net.load_state_dict(new.state_dict())
        inputs = placed(self._problem.inputs(seed), self._problem.device, torch.contiguous_format)
        for name, value in vars(inputs).items():
            if isinstance(value, Tensor):
                getattr(made.inputs, name).copy_(value)
        for optimizer in (made.adam_generator, made.adam_critic):
            for state in optimizer.state.values():
                for value in state.values():
                    value.zero_()

    def gradients(self, phase: str) -> list[np.ndarray]:
        adam = getattr(self._made, f"adam_{phase}")
        scale = 1 / (1 - self._problem.config.optim.beta1)
        return [(adam.state[p]["exp_avg"] * scale).cpu().double().numpy() for p in getattr(self._made, phase).parameters()]

    def wait(self) -> None:
        if self._problem.device.type == "cuda":
            torch.cuda.synchronize()


class Ours:
    """The iteration of `ganfast train` on static inputs: steps of its engines, fused Adam, moving average."""

    def __init__(self, problem: Problem, engine: str = "auto", compile: bool = False, graph: bool = False) -> None:
        c, device = problem.config, problem.device
        nets = (prepared(net, device) for net in problem.networks(0))
        self.problem = problem
        self.generator, self.critic = nets
        self.average = copy.deepcopy(self.generator).requires_grad_(False)
        self.inputs = placed(problem.inputs(0), device, torch.channels_last)
        how: dict[str, Any] = {"betas": (c.optim.beta1, c.optim.beta2), "fused": True, "capturable": graph}
        self.adam_generator = torch.optim.Adam(self.generator.parameters(), c.optim.lr_generator, **how)
        self.adam_critic = torch.optim.Adam(self.critic.parameters(), c.optim.lr_critic, **how)
        self.critic_step = make_critic_step(self.critic, c.loss, c.penalty, problem.autocast, engine, compile, check=False)  # type: ignore[arg-type]
        self.generator_step = make_generator_step(self.generator, self.critic, c.loss, problem.autocast, compile)
        self.phases: dict[str, Phase] = {"critic": self.critic_phase, "generator": self.generator_phase}
        if graph:
            self.phases = {name: captured(phase) for name, phase in self.phases.items()}

    def critic_phase(self) -> None:
        problem, x = self.problem, self.inputs
        with torch.no_grad(), torch.autocast(problem.device.type, problem.autocast, enabled=problem.autocast is not None):
            fake = draw(self.generator, x.z, x.labels)
        self.critic_step(x.real, fake, x.labels, eps=x.eps, noise=x.noise)
        self.adam_critic.step()
        clip_weights(self.critic, problem.config.loss.clip)

    def generator_phase(self) -> None:
        self.generator_step(self.inputs.z, self.inputs.labels, self.inputs.real)
        self.adam_generator.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.generator.parameters()), 1e-3)


def _xla(problem: Problem) -> Prepared:
    from ganfast.bench.xla import Xla

    return Xla(problem)


def _plain(**flags: bool) -> Callable[[Problem], Prepared]:
    return lambda problem: TorchPrepared(problem, Plain(problem, **flags))


def _ours(**flags: Any) -> Callable[[Problem], Prepared]:
    return lambda problem: TorchPrepared(problem, Ours(problem, **flags))


@dataclass(frozen=True)
class Variant:
    """One way to compute the iteration."""

    what: str
    prepare: Callable[[Problem], Prepared]
    baseline: bool
    gpu: bool = False  # only there


VARIANTS: dict[str, Variant] = {
    "naive": Variant("fp32, contiguous, three forward passes, Adam as torch makes it", _plain(tuned=False), True),
    "tuned": Variant("the precision asked for, channels last, merged loss rows, fused Adam", _plain(), True),
    "compiled": Variant("tuned, under torch.compile with its second derivatives", _plain(compile=True), True),
    "tuned-graph": Variant("tuned, each phase captured in a CUDA graph", _plain(graph=True), True, gpu=True),
    "compiled-graph": Variant("compiled, captured", _plain(compile=True, graph=True), True, gpu=True),
    "jax": Variant("jax.jit of each phase, NHWC, buffers donated", _xla, True),
    "ganfast": Variant("what ganfast train runs: the engine that auto takes", _ours(), False),
    "ganfast-compiled": Variant("the same with --compile", _ours(compile=True), False),
    "ganfast-graph": Variant("the same, captured", _ours(graph=True), False, gpu=True),
    "ganfast-compiled-graph": Variant("compiled and captured", _ours(compile=True, graph=True), False, gpu=True),
    "ganfast-autograd-compiled": Variant("engine autograd, compiled", _ours(engine="autograd", compile=True), False),
}
DEFAULT = ("naive", "tuned", "jax", "ganfast")


def exact_gradients(problem: Problem, seed: int, dtype: torch.dtype = torch.float64) -> dict[str, list[np.ndarray]]:
    """Of both phases by the definition, in ``dtype`` on the CPU."""
    c, x = problem.config, problem.inputs(seed)
    found = {}
    for phase in PHASES:
        generator, critic = (net.to(dtype) for net in problem.networks(seed))
        real, z, eps, noise = (None if t is None else t.to(dtype) for t in (x.real, x.z, x.eps, x.noise))
        if phase == "critic":
            with torch.no_grad():
                fake = draw(generator, z, x.labels)  # type: ignore[arg-type]
            step = make_critic_step(critic, c.loss, c.penalty, engine="reference", check=False)
            step(real, fake, x.labels, eps=eps, noise=noise)  # type: ignore[arg-type]
        else:
            make_generator_step(generator, critic, c.loss)(z, x.labels, real)
        net = critic if phase == "critic" else generator
        found[phase] = [p.grad.double().numpy().copy() for p in net.parameters() if p.grad is not None]
    return found


def distance(found: Sequence[np.ndarray], exact: Sequence[np.ndarray]) -> float:
    """|found - exact| / |exact| of all gradients as one vector."""
    gap = sum(float(np.square(f - e).sum()) for f, e in zip(found, exact, strict=True))
    return math.sqrt(gap / sum(float(np.square(e).sum()) for e in exact))


def prove(problem: Problem, variant: Prepared) -> dict[str, float]:
    """Errors of both phases against float64, of the very callables that are timed.

    Raises:
        RunError: a gradient is wrong on every seed.
    """
    allowed = EXACT if problem.autocast is None else 0.1
    errors = dict.fromkeys(PHASES, math.inf)
    with full_float32() if problem.autocast is None else nullcontext():
        for seed in range(SEEDS):
            exact = exact_gradients(problem, seed)
            for phase in PHASES:
                if errors[phase] > allowed:
                    variant.load(seed)
                    variant.phases[phase]()
                    variant.wait()
                    errors[phase] = min(errors[phase], distance(variant.gradients(phase), exact[phase]))
            if max(errors.values()) <= allowed:
                return errors
    worst = max(errors, key=lambda phase: errors[phase])
    raise RunError(f"gradients of the {worst} are {errors[worst]:.2g} off float64 on each of {SEEDS} seeds, {allowed:g} allowed")


@dataclass(frozen=True)
class Plan:
    """How to measure."""

    variants: tuple[str, ...] = DEFAULT
    rounds: int = 30
    rest_s: float = 0.004  # between variants: OpenMP's threads spin for about as long after their work


def measure(setting: Setting, plan: Plan, said: Callable[[str], None] = lambda _: None) -> records.Record:
    """Prove, warm up and time every variant of a setting; one that cannot run is listed with its reason."""
    problem = Problem(setting)
    on_gpu = problem.device.type == "cuda"
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = problem.autocast is not None
    made: dict[str, Prepared] = {}
    failed: dict[str, str] = {}
    facts: dict[str, dict[str, Any]] = {}
    for name in plan.variants:
        if name not in VARIANTS:
            raise InputError(f"variant is {name!r}; expected some of {', '.join(VARIANTS)}")
        if VARIANTS[name].gpu and not on_gpu:
            failed[name] = "needs an NVIDIA GPU"
            continue
        try:
            made[name], facts[name] = _prepared(problem, name)
        except Exception as error:  # a variant that cannot run is a result too
            failed[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            said(f"  {name}: {failed[name]}")
    clock = HostClock(*(variant.wait for variant in made.values()))
    peaks = calibrate.peaks(problem.device, problem.autocast or torch.float32, clock)
    made_loop = calibrate.calibration_loop(problem.device)
    measured, loops = [], []
    for phase in PHASES:
        runs = {name: variant.phases[phase] for name, variant in made.items()} | {"calibration": made_loop}
        warm = {name: warm_up(run, clock) for name, run in runs.items()}
        samples = interleaved(runs, plan.rounds, clock, warm, compilations, lambda: time.sleep(plan.rest_s))
        loops += samples.pop("calibration")
        measured += [_measured(phase, name, seconds, warm[name].calls, facts[name], peaks) for name, seconds in samples.items()]
    measured += _iterations(measured, problem)
    c = problem.config
    conditions = {
        **setting.asdict(), "size": c.size, "channels": c.channels, "classes": problem.classes, "width": c.net.width,
        "batch": c.batch, "latent": c.net.latent, "precision": c.precision, "device": problem.device.type,
        "critic_steps": c.optim.critic_steps, "threads": torch.get_num_threads(), "rest_s": plan.rest_s, "images": problem.images,
        "load_1min": round(_load(), 2), "proof": "without dropout" if c.net.critic_dropout else "of the timed callables",
    }  # fmt: skip
    return records.make("train", name_of(problem), conditions, measured, peaks | {"loop_s": loops}, failed)


def _prepared(problem: Problem, name: str) -> tuple[Prepared, dict[str, Any]]:
    """The variant, proven, and what is known of it before it is timed."""
    gc.collect()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if problem.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    variant = VARIANTS[name].prepare(problem)
    first = {}
    for phase, run in variant.phases.items():
        start = time.perf_counter()
        run()
        variant.wait()
        first[phase] = time.perf_counter() - start
    prepared_s = time.perf_counter() - began
    if problem.config.net.critic_dropout:
        proof = Problem(problem.setting, proof=True)
        errors = prove(proof, _ready(VARIANTS[name].prepare(proof)))
    else:
        errors = prove(problem, variant)
    variant.load(0)
    facts: dict[str, Any] = {"error": errors, "first_call_s": first, "prepare_s": prepared_s}
    if problem.device.type == "cuda":
        facts["peak_bytes"] = torch.cuda.max_memory_allocated()
    else:
        facts["resident_bytes_added"] = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    facts["flops"] = _flops(variant, name)
    return variant, facts


def _ready(variant: Prepared) -> Prepared:
    for run in variant.phases.values():  # Adam makes its state when it first steps
        run()
    variant.wait()
    return variant


def _flops(variant: Any, name: str) -> dict[str, float]:
    """Executed by a call of each phase: by the counter where nothing is compiled, by XLA's own count; else not known."""
    if hasattr(variant, "flops"):
        return variant.flops()
    if "compiled" in name or "graph" in name:
        return {}
    found = {}
    for phase, run in variant.phases.items():
        with FlopCount() as count:
            run()
        found[phase] = float(count.total)
    return found


def _measured(
    phase: str, name: str, seconds: list[float], calls: int, facts: dict[str, Any], peaks: dict[str, float]
) -> dict[str, Any]:
    more: dict[str, Any] = {
        "calls_per_sample": calls, "error": facts["error"][phase], "first_call_s": facts["first_call_s"][phase],
        "prepare_s": facts["prepare_s"],
    }  # fmt: skip
    more |= {key: facts[key] for key in ("peak_bytes", "resident_bytes_added") if key in facts}
    flops = facts["flops"].get(phase)
    if flops:
        rate = flops / float(np.median(seconds))
        more |= {"flops": flops, "flops_per_s": rate, "share_of_matrix_peak": rate / peaks["matrix_flops"]}
    return records.measurement(phase, name, seconds, **more)


def _iterations(measured: list[dict[str, Any]], problem: Problem) -> Iterator[dict[str, Any]]:
    """A generator step with its critic steps, from the samples of its phases, round by round."""
    steps = problem.config.optim.critic_steps
    by = {(m["phase"], m["variant"]): m for m in measured}
    for (phase, name), critic in by.items():
        if phase == "critic":
            pairs = zip(critic["samples"], by["generator", name]["samples"], strict=False)
            seconds = [steps * c + g for c, g in pairs]
            rate = problem.images / float(np.median(seconds))
            yield records.measurement("iteration", name, seconds, images_per_s=rate, seconds_per_kimg=1000 / rate)


def compilations() -> int:
    """Graphs that torch.compile and ganfast's own recording have made so far in this process."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"]) + int(counters["inductor"]["fxgraph_cache_miss"])


def name_of(problem: Problem) -> str:
    c = problem.config
    return f"train-{c.preset}-{c.size}x{c.channels}-w{c.net.width}-b{c.batch}-{c.precision}-{problem.device.type}"


def _load() -> float:
    import os

    return os.getloadavg()[0] if hasattr(os, "getloadavg") else math.nan


def fastest(record: records.Record, names: Sequence[str], phase: str = "iteration") -> dict[str, Any] | None:
    """The measurement with the least median among variants; None where none was measured."""
    found = [m for m in record["measurements"] if m["phase"] == phase and m["variant"] in names]
    return min(found, key=lambda m: m["summary"]["median"], default=None)


def table(record: records.Record) -> str:
    """Medians with percentiles, and ratios over naive, tuned and JAX, of one setting."""
    lines = [f"{record['name']}: {record['conditions']['threads']} threads{', NOISY' if record['noise']['noisy'] else ''}"]
    by = records.keyed(record)
    for phase in (*PHASES, "iteration"):
        for (_, where, name), m in by.items():
            if where != phase:
                continue
            s = m["summary"]
            row = f"  {phase:10}{name:26}{s['median'] * 1e3:10.3f} ms [{s['p20'] * 1e3:.3f}, {s['p80'] * 1e3:.3f}]"
            for base in ("naive", "tuned", "jax"):
                other = by.get(("", phase, base))
                if other is not None:
                    pairs = np.array(other["samples"]) / np.array(m["samples"][: len(other["samples"])])
                    row += f" {np.median(pairs):6.2f}x {base}"
            if "images_per_s" in m:
                row += f"  {m['images_per_s']:,.0f} img/s"
            if "share_of_matrix_peak" in m:
                row += f"  {m['share_of_matrix_peak']:.0%} of the matrix peak"
            lines.append(row)
    return "\n".join(lines)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """torch's threads; XLA reads its own when it starts, see the command."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run(
    settings: Sequence[Setting], plan: Plan, out: Path | None, again: bool, said: Callable[[str], None]
) -> list[records.Record]:
    """Measure settings, each written as soon as it is measured; what ``out`` already holds of this commit is not measured again."""
    from ganfast.environment import environment

    done = {}
    if out is not None and not again:
        commit = environment()["commit"]
        for path in sorted(out.glob("*-train-*.json")):
            old = records.read(path)
            if old["environment"].get("commit") == commit and "dirty" not in str(commit):
                done[old["name"], old["conditions"].get("threads")] = old
    found = []
    for setting in settings:
        name = name_of(Problem(setting))
        record = done.get((name, torch.get_num_threads()))
        if record is None:
            record = measure(setting, plan, said)
            if out is not None:
                said(f"wrote {records.write(record, out)}")
        found.append(record)
        said(table(record))
    return found


def swept(setting: Setting, name: str, values: Sequence[int]) -> list[Setting]:
    """The setting at several batches, widths or sides."""
    if name not in ("batch", "width", "size"):
        raise InputError(f"sweep is over {name!r}; expected batch, width or size, as --sweep batch=16,32,64")
    return [replace(setting, **{name: value}) for value in values]  # type: ignore[arg-type]


def overview(found: Sequence[records.Record]) -> str:
    """One line a setting: the best of ganfast against the best of each rival, whole iteration, as Markdown."""
    lines = ["| setting | ganfast img/s | over naive | over tuned | over JAX | noisy |", "|---|---|---|---|---|---|"]
    ours = [name for name, v in VARIANTS.items() if not v.baseline]
    for record in found:
        best = fastest(record, ours)
        if best is None:
            continue
        cells = [record["name"].removeprefix("train-"), f"{best['images_per_s']:,.0f}"]
        for family in (("naive",), ("tuned", "tuned-graph", "compiled", "compiled-graph"), ("jax",)):
            rival = fastest(record, family)
            cells.append("-" if rival is None else f"{rival['summary']['median'] / best['summary']['median']:.2f}x")
        lines.append(f"| {' | '.join(cells)} | {'yes' if record['noise']['noisy'] else 'no'} |")
    return "\n".join(lines)
