"""A cost model: operations, bytes and launches of a phase, counted, and what a GPU or this machine makes of them.

Each operation takes a launch, and the longer of its bytes at the rate of an elementwise pass and its FLOPs at the rate of a product
or convolution; operations follow each other. Several GPUs share the batch and add up the critic's or the generator's gradients
in a ring: 2 (n - 1) / n of their bytes pass each link (Patarasu and Yuan 2009, doi:10.1016/j.jpdc.2008.09.002). Nothing overlaps.
"""

from dataclasses import dataclass, replace
from math import inf, prod

import torch

from ganfast.bench import calibrate
from ganfast.bench.operations import Operation, OperationCount
from ganfast.bench.ours import Ours
from ganfast.bench.problem import Problem
from ganfast.bench.records import Record, make, measurement
from ganfast.bench.setting import Setting
from ganfast.bench.stats import summary
from ganfast.bench.timing import STEADY_SAMPLE, Clock, HostClock, ProcessorClock, interleaved, warm_up
from ganfast.data.resident import ResidentData
from ganfast.errors import InputError
from ganfast.feed import Feed

BOUNDS = ("launch", "memory", "matrix", "network")


@dataclass(frozen=True)
class Machine:
    """What one device does in a second, at what launches cost, and how fast gradients travel."""

    name: str
    matrix_flops: float  # products
    convolution_flops: float
    pass_bytes_per_s: float  # read and written by an operation that does little else
    launch_s: float  # of an operation of a training step
    plain_launch_s: float  # of one without autograd
    plain_bytes_per_s: float  # of a pass by one: what is drawn ahead is small and soon read again
    numpy_launch_s: float  # of NumPy's, of which a CPU makes random words
    numpy_bytes_per_s: float  # of a pass by one, over a chunk that stays in the caches
    lanes: int  # of a vector or matrix unit: convolutions compute on whole multiples of channels
    network_bytes_per_s: float = 0.0  # of one device, in one direction; 0 = it is alone
    source: str = ""


# Data-sheet figures, dense: bf16 and fp32 (without TF32) TFLOP/s, memory TB/s, link GB/s in one direction.
_GPUS: dict[str, tuple[str, float, float, float, float, str]] = {
    "h100": ("H100 SXM", 989, 67, 3.35, 450, "NVIDIA H100 Tensor Core GPU data sheet"),
    "h200": ("H200 SXM", 989, 67, 4.8, 450, "NVIDIA H200 Tensor Core GPU data sheet"),
    "b200": ("B200, one of an HGX", 2250, 75, 7.7, 900, "NVIDIA HGX B200 specifications"),
    "a100": ("A100 80 GB SXM", 312, 19.5, 2.04, 300, "NVIDIA A100 Tensor Core GPU data sheet"),
    "l40s": ("L40S, PCIe", 362, 91.6, 0.864, 32, "NVIDIA L40S data sheet"),
    "4090": ("GeForce RTX 4090, PCIe", 165, 82.6, 1.008, 32, "NVIDIA Ada GPU architecture white paper, appendix A"),
}
# Assumed of every GPU, as none was measured: what shares of those figures well-fed operations reach, and what one costs at least,
# replayed from a CUDA graph or launched by the host.
_PRODUCTS, _CONVOLUTIONS, _COPIES, _LINKS = 0.7, 0.4, 0.85, 0.7
_REPLAYED_S, _LAUNCHED_S = 2e-6, 8e-6
_HOP_S = 3e-6  # from one GPU to the next
GPUS = tuple(_GPUS)


def gpu(name: str, precision: str = "bf16", captured: bool = True) -> Machine:
    """A GPU from its data sheet.

    Raises:
        InputError: not in the table.
    """
    if name not in _GPUS:
        raise InputError(f"gpu is {name!r}; expected one of {', '.join(GPUS)}, or here for this machine, measured now")
    title, bf16, fp32, memory, link, source = _GPUS[name]
    flops = 1e12 * (bf16 if precision == "bf16" else fp32)
    launch = _REPLAYED_S if captured else _LAUNCHED_S
    return Machine(
        title, _PRODUCTS * flops, _CONVOLUTIONS * flops, _COPIES * memory * 1e12, launch, launch, _COPIES * memory * 1e12, 0.0, inf,
        8, _LINKS * link * 1e9, source,
    )  # fmt: skip


def here(setting: Setting) -> Machine:
    """This machine at its best in the precision of a setting, by a calibration of a few seconds."""
    problem = Problem(setting)
    return _machine(str(problem.device), calibrate.peaks(problem.device, problem.autocast or torch.float32, HostClock()))


def _machine(name: str, rates: dict[str, float]) -> Machine:
    names = "matrix_flops", "convolution_flops", "pass_bytes_per_s", "plain_bytes_per_s", "numpy_bytes_per_s"
    flops, convolutions, passes, plain_passes, numpy = (rates[k] for k in names)
    launch, plain, numpy_launch = (1 / rates[f"{k}launches_per_s"] for k in ("", "plain_", "numpy_"))
    lanes = 8 if name.startswith("cuda") else 16
    return Machine(name, flops, convolutions, passes, launch, plain, plain_passes, numpy_launch, numpy, lanes, source="measured")


@dataclass(frozen=True)
class Work:
    """Of one device's share of an iteration, run by ganfast without compiler."""

    phases: dict[str, list[Operation]]
    ahead: int  # iterations that one draw serves
    gradient_bytes: dict[str, int]  # of each network
    critic_steps: int
    batch: int  # of this device


def count(setting: Setting, gpus: int = 1, numpy: bool = False) -> Work:
    """Count the phases at two small batches on the CPU; every operation grows by as much with every further row.

    ``numpy``: as a CPU runs them, see `OperationCount`.

    Raises:
        InputError: the batch cannot be shared among so many.
    """
    whole = Problem(replace(setting, device="cpu"))
    config, problem = whole.config, replace(setting, device="cpu")
    if gpus < 1 or config.batch % gpus or config.batch < 2 * gpus:
        raise InputError(
            f"gpus is {gpus}; expected a number that divides the batch, {config.batch}, into two or more pictures each"
        )
    batch = config.batch // gpus
    (few, ahead_few), (more, ahead_more) = (_counted(Problem(replace(problem, batch=n)), numpy) for n in (2, 4))
    ahead = Feed(replace(config, batch=batch), ResidentData(whole.pack, whole.device, 0)).ahead
    rows = dict.fromkeys(few, (2, 4, batch)) | {"draw": (2 * ahead_few, 4 * ahead_more, batch * ahead)}
    phases = {name: [_grown(f, m, rows[name]) for f, m in zip(few[name], more[name], strict=True)] for name in few}
    sizes = [4 * sum(p.numel() for p in net.parameters()) for net in whole.networks(0)]
    return Work(phases, ahead, {"generator": sizes[0], "critic": sizes[1]}, config.optim.critic_steps, batch)


def _counted(problem: Problem, numpy: bool) -> tuple[dict[str, list[Operation]], int]:
    ours, found = Ours(problem), {}
    for name, run in ours.phases.items():
        run()  # the first makes what later ones find
        with OperationCount(numpy) as count:
            run()
        found[name] = count.operations
    return found, ours.ahead


def _grown(few: Operation, more: Operation, rows: tuple[int, int, int]) -> Operation:
    first, second, wanted = rows
    share = (wanted - first) / (second - first) if second != first else 0.0
    flops, moved = (f + (m - f) * share for f, m in ((few.flops, more.flops), (few.bytes, more.bytes)))
    return Operation(few.name, flops, moved, few.channels, few.numpy)


def _matrix_s(operation: Operation, machine: Machine) -> float:
    """Few channels are padded: the gradient of a layer that sees grey pictures takes almost as long as of one that sees 16."""
    if not any(operation.channels):
        return operation.flops / machine.matrix_flops
    padded = prod(-(-c // machine.lanes) * machine.lanes / c for c in operation.channels)
    return operation.flops * padded / machine.convolution_flops


def predicted(
    operations: list[Operation], machine: Machine, gradient_bytes: int = 0, gpus: int = 1, plain: bool = False
) -> dict[str, float]:
    """Seconds of a phase by what bounds them: launch, memory, matrix, network. ``plain``: it trains nothing."""
    seconds = dict.fromkeys(BOUNDS, 0.0)
    launch = machine.plain_launch_s if plain else machine.launch_s
    rate = machine.plain_bytes_per_s if plain else machine.pass_bytes_per_s
    for operation in operations:
        if operation.numpy:
            seconds["launch"] += machine.numpy_launch_s
            seconds["memory"] += operation.bytes / machine.numpy_bytes_per_s
            continue
        memory, matrix = operation.bytes / rate, _matrix_s(operation, machine)
        seconds["launch"] += launch
        seconds["memory" if memory > matrix else "matrix"] += max(memory, matrix)
    if gpus > 1 and gradient_bytes:
        if not machine.network_bytes_per_s:
            raise InputError(f"{machine.name} is alone: give --gpus 1, or a GPU of the table")
        sent = 2 * (gpus - 1) / gpus * gradient_bytes
        seconds["network"] = sent / machine.network_bytes_per_s + 2 * (gpus - 1) * _HOP_S
    return seconds


def iteration(work: Work, machine: Machine, gpus: int = 1) -> dict[str, dict[str, float]]:
    """Seconds by bound of each phase, and of the whole iteration."""
    phases = {
        name: predicted(work.phases[name], machine, work.gradient_bytes.get(name, 0), gpus) for name in ("critic", "generator")
    }
    phases["draw"] = predicted(work.phases["draw"], machine, plain=True)
    times = {"critic": float(work.critic_steps), "generator": 1.0, "draw": 1 / work.ahead}
    phases["iteration"] = {b: sum(times[name] * phases[name][b] for name in times) for b in BOUNDS}
    return phases


def bound(seconds: dict[str, float]) -> str:
    """What takes the largest share."""
    return max(seconds, key=lambda name: seconds[name])


def table(work: Work, machine: Machine, gpus: int) -> str:
    """For a person."""
    lines = [f"{machine.name} ({machine.source}), {gpus} of them, batch {work.batch} each"]
    lines.append(f"{'phase':12}{'ms':>9}{''.join(f'{b:>10}' for b in BOUNDS)}   bound by   FLOPs, bytes, launches")
    phases = iteration(work, machine, gpus)
    for name, seconds in phases.items():
        total = sum(seconds.values())
        row = f"{name:12}{total * 1e3:9.3f}{''.join(f'{seconds[b] / total:10.0%}' for b in BOUNDS)}   {bound(seconds):8}"
        if name in work.phases:
            ops = work.phases[name]
            row += f"   {sum(o.flops for o in ops) / 1e9:.2f} G, {sum(o.bytes for o in ops) / 1e6:,.0f} MB, {len(ops)}"
        lines.append(row)
    images = work.critic_steps * work.batch * gpus / sum(phases["iteration"].values())
    return "\n".join((*lines, f"{images:,.0f} images/s"))


def bounds_table(settings: list[Setting], machines: list[tuple[Machine, int]]) -> str:
    """Markdown: a row a setting, and under each machine what bounds its whole iteration, with the images a second."""
    titles = [f"{n} x {m.name}" for m, n in machines]
    lines = ["| setting | " + " | ".join(titles) + " |", "|---" * (len(titles) + 1) + "|"]
    for setting in settings:
        counted: dict[int, Work] = {}
        cells = []
        for machine, gpus in machines:
            work = counted.setdefault(gpus, counted.get(gpus) or count(setting, gpus))
            seconds = iteration(work, machine, gpus)["iteration"]
            images = work.critic_steps * work.batch * gpus / sum(seconds.values())
            cells.append(f"{bound(seconds)} {seconds[bound(seconds)] / sum(seconds.values()):.0%}, {images:,.0f}")
        c = Problem(replace(setting, device="cpu")).config
        lines.append(f"| `{c.preset}` {c.size}x{c.channels} w{c.net.width} b{c.batch} | {' | '.join(cells)} |")
    return "\n".join(lines)


def check(setting: Setting, rounds: int) -> Record:
    """Predict and measure the phases of ganfast on this CPU; what calibrates takes turns with them.

    With one thread in processor seconds, which other programs disturb least; else on the wall's clock.
    """
    problem = Problem(replace(setting, device="cpu"))
    clock: Clock = ProcessorClock() if torch.get_num_threads() == 1 else HostClock()
    work, ours = count(setting, numpy=True), Ours(problem)
    calibration = calibrate.works(problem.device, problem.autocast or torch.float32)
    runs = ours.phases | {name: run for name, (run, _) in calibration.items()}
    warm = {name: warm_up(run, clock, STEADY_SAMPLE) for name, run in runs.items()}
    seconds = interleaved(runs, rounds, clock, warm)
    rates = {name: amount / summary(seconds.pop(name))["median"] for name, (_, amount) in calibration.items()}
    phases = iteration(work, _machine("cpu", rates))
    measured = []
    for name, samples in seconds.items():
        said = sum(phases[name].values())
        ratio = said / summary(samples)["median"]
        measured.append(measurement(name, "ganfast", samples, predicted_s=said, predicted_over_measured=ratio, by=phases[name]))
    c = problem.config
    conditions = {
        **setting.asdict(), "size": c.size, "channels": c.channels, "width": c.net.width, "batch": c.batch, "device": "cpu",
        "threads": torch.get_num_threads(), "clock": "processor" if isinstance(clock, ProcessorClock) else "wall",
    }  # fmt: skip
    name = f"model-{c.preset}-{c.size}x{c.channels}-w{c.net.width}-b{c.batch}-cpu-t{torch.get_num_threads()}"
    return make("model", name, conditions, measured, rates)


def checked(record: Record) -> str:
    """Of a record of `check`, one line a phase."""
    rows = [record["name"]]
    for m in record["measurements"]:
        said, median = m["predicted_s"], m["summary"]["median"]
        rows.append(
            f"  {m['phase']:10}{said * 1e3:9.3f} ms predicted, {median * 1e3:9.3f} ms measured: "
            f"{m['predicted_over_measured']:.2f}, bound by {bound(m['by'])}"
        )
    return "\n".join(rows)
