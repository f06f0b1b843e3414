"""The sampler against torch alone: DCGAN-64, width 64, latent 128, fp32; variants take turns.

python benchmarks/bench_sampler.py [--threads N] [--rounds N]   # on a CPU; a record in results/
python benchmarks/bench_sampler.py --gpu      # CUDA graphs of torch against eager, and the roof
python benchmarks/bench_sampler.py --smoke    # the same code, small, nothing recorded

A baseline begins with latents that are there and ends with uint8 pictures in NumPy, in inference
mode. The sampler's own time is a whole request: checks, latents, drawing, copying.
"""

import argparse
import copy
import logging
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import record, wait
from torch import Tensor, nn

from ganfast.bench.timing import device_times
from ganfast.export import load_sampler
from ganfast.export.bundle.bundle import Bundle, golden_file, write_bundle
from ganfast.export.bundle.manifest import GOLDEN, MODEL, Manifest, graph_inputs
from ganfast.export.drawing.sampler import Sampler
from ganfast.export.graph.deploy import deployable
from ganfast.export.graph.to_onnx import to_bytes, to_onnx
from ganfast.latents import latents
from ganfast.models import NetSpec, build_generator

SIZE, CHANNELS, LATENT = 64, 3, 128
NET = "DCGAN-64, width 64, latent 128, fp32"
# Of a turn at batch 1: behind the turn of another variant, weights are not in the caches.
_CALLS, _UNCOUNTED = 20, 3
# For a batch size, and rounds however long they take: a slow machine is not waited for.
_SECONDS, _LEAST = 100.0, 10
Runs = Mapping[str, Callable[[], Any]]


def make_bundle(
    folder: Path, width: int, buckets: tuple[int, ...]
) -> tuple[nn.Module, nn.Module, Bundle]:
    """The generator, initial weights; its folded form; the bundle."""
    torch.manual_seed(0)
    generator = build_generator(NetSpec(SIZE, CHANNELS, 0, "no", width, LATENT))
    generator.eval().requires_grad_(False)
    for module in generator.modules():  # statistics as after training, so that folding them is seen
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
    folded = deployable(generator, graph_inputs(LATENT, 0))
    z, psi = latents(0, np.arange(8), LATENT), np.ones(8, np.float32)
    images = folded(torch.from_numpy(z), torch.from_numpy(psi)).numpy()
    manifest = Manifest(
        name="bench",
        latent=LATENT,
        classes=(),
        size=SIZE,
        channels=CHANNELS,
        precision="fp32",
        buckets=buckets,
        crop="",
        golden={"seed": 0, "count": 8},
    )
    model = to_bytes(to_onnx(folded, {"name": "bench"}))
    files = {MODEL: model, GOLDEN: golden_file({"z": z, "psi": psi}, images)}
    return generator, folded.generator, write_bundle(folder, manifest, files, overwrite=True)


def pictures(net: Callable[[Tensor], Tensor], z: Tensor) -> np.ndarray:
    with torch.inference_mode():
        grey = net(z).permute(0, 2, 3, 1).mul(127.5).add_(127.5).round_().clamp_(0, 255)
        return grey.to(torch.uint8).contiguous().cpu().numpy()


def baselines(generator: nn.Module, folded: nn.Module, compiled: bool) -> dict[str, nn.Module]:
    nets = {"eager": generator, "folded": folded}
    for name, net in list(nets.items()):
        last = copy.deepcopy(net).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        nets[f"{name}-channels-last"] = last
    if compiled:
        for name in ("folded", "folded-channels-last"):
            nets[f"{name}-compiled"] = torch.compile(nets[name])  # type: ignore[assignment]
    return nets


def on_cpu(threads: int, rounds: int, smoke: bool) -> None:
    torch.set_num_threads(threads)
    batches = (1, 8) if smoke else (1, 64)
    folder = Path(tempfile.mkdtemp()) / "bench.bundle"
    generator, folded, _ = make_bundle(folder, 4 if smoke else 64, batches)
    nets = baselines(generator, folded, compiled=not smoke)
    seconds: dict[str, list[float]] = {}
    with (
        load_sampler(folder, "cpu", threads=threads) as auto,
        load_sampler(folder, "cpu", "torch", threads=threads) as by_torch,
    ):
        for batch in batches:
            z, psi = latents(0, np.arange(batch), LATENT), np.ones(batch, np.float32)
            runs: dict[str, Callable[[], Any]] = {
                "auto": lambda n=batch: auto.sample(n),
                "auto, back end alone": lambda z=z, psi=psi: auto._backend.run(
                    {"z": z, "psi": psi}
                ),
                "torch back end": lambda n=batch: by_torch.sample(n),
            }
            runs = variants(nets, torch.from_numpy(z), runs)
            truth = runs[f"eager, {batch}"]().astype(int)
            for name, run in runs.items():  # equality first
                assert np.abs(run().astype(int) - truth).max() <= 1, name
            calls = (_CALLS, _UNCOUNTED) if batch == 1 else (1, 1)
            seconds |= in_turns(runs, max(5, rounds // 4), *calls)
        back_end = auto.backend_name
    first = [] if smoke else first_pictures(folder)
    report = ratios(seconds, batches) | {"back end": back_end}
    report["import to first picture, s"] = statistics.median(first) if first else None
    show(report)
    if not smoke:
        conditions = {"threads": threads, "net": NET, "first_pictures": first}
        print(record(f"sampler-cpu-{threads}", conditions, seconds, ratios=report))


def variants(nets: Mapping[str, nn.Module], z: Tensor, ours: Runs) -> dict[str, Callable[[], Any]]:
    """Baselines and the sampler's own, by name and batch."""
    runs: dict[str, Callable[[], Any]] = {
        name: lambda net=net: pictures(net, z) for name, net in nets.items()
    }
    return {f"{name}, {len(z)}": run for name, run in (runs | dict(ours)).items()}


def in_turns(runs: Runs, rounds: int, calls: int, uncounted: int) -> dict[str, list[float]]:
    """Seconds of every call; variants take turns: A B C, B C A, and so on.

    A turn is ``uncounted`` calls, then ``calls``.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    until, names = time.perf_counter() + _SECONDS, list(runs)
    for turn in range(rounds):
        if turn >= _LEAST and time.perf_counter() > until:
            break
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            for _ in range(uncounted):
                runs[name]()
            wait()
            seconds[name] += [_timed(runs[name]) for _ in range(calls)]
    return seconds


def _timed(run: Callable[[], Any]) -> float:
    began = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - began


def ratios(seconds: Mapping[str, list[float]], batches: tuple[int, ...]) -> dict[str, Any]:
    """Median over median; of a baseline the fastest variant."""
    median = {name: statistics.median(times) for name, times in seconds.items()}
    report: dict[str, Any] = {}
    for b in batches:
        auto, eager = median[f"auto, {b}"], median[f"eager, {b}"]
        plain = min(eager, median[f"eager-channels-last, {b}"])
        folded = median[f"folded-channels-last, {b}"]
        by_torch = [k for k in median if k.endswith(f", {b}") and k.startswith(("eager", "folded"))]
        best = min(by_torch, key=lambda name: median[name])
        beyond = auto - median[f"auto, back end alone, {b}"]
        report |= {
            f"auto, ms, batch {b}": auto * 1e3,
            f"auto over plain eager, batch {b}": eager / auto,
            f"auto over the faster layout of eager, batch {b}": plain / auto,
            f"auto over folded channels last, batch {b}": folded / auto,
            f"auto over {best}, the best of torch": median[best] / auto,
            f"sampler beyond its back end, us, batch {b}": beyond * 1e6,
        }
    return report


def show(report: Mapping[str, Any]) -> None:
    for name, value in report.items():
        print(f"{name:60}{value if not isinstance(value, float) else round(value, 5)}")


def first_pictures(folder: Path) -> list[float]:
    """Seconds from starting Python to the first picture, without torch."""
    code = (
        "import sys; from ganfast.export import load_sampler; "
        "load_sampler(sys.argv[1]).sample(1); assert 'torch' not in sys.modules"
    )
    command = [sys.executable, "-c", code, str(folder)]
    return [_timed(lambda: subprocess.run(command, check=True)) for _ in range(7)][1:]


def on_gpu(rounds: int, smoke: bool) -> None:
    """CUDA graphs of torch against eager, and against what the GPU could do."""
    device = "cpu" if smoke else "cuda"
    batches = (1, 4) if smoke else (1, 64, 512)
    folder = Path(tempfile.mkdtemp()) / "bench.bundle"
    generator, folded, bundle = make_bundle(folder, 4 if smoke else 64, batches)
    nets = {k: net.to(device) for k, net in baselines(generator, folded, compiled=False).items()}
    seconds: dict[str, list[float]] = {}
    with _graph_sampler(bundle, smoke) as sampler:
        for batch in batches:
            z = torch.from_numpy(latents(0, np.arange(batch), LATENT)).to(device)
            ours: dict[str, Callable[[], Any]] = {
                "auto": lambda n=batch: sampler.sample(n),
                "auto, back end alone": lambda n=batch: sampler.sample(n, on_device=True),
            }
            runs = variants(nets, z, ours)
            truth = runs[f"eager, {batch}"]().astype(int)
            gap = np.abs(runs[f"auto, {batch}"]().astype(int) - truth).max()
            assert gap <= 1, f"batch {batch} differs by {gap} LSB"
            seconds |= in_turns(runs, rounds, _CALLS, _UNCOUNTED)
        replay = {b: _replay_seconds(sampler, b, rounds, smoke) for b in batches}
    report = ratios(seconds, batches)
    report |= {f"GPU time of batch {b}, us": replay[b] * 1e6 for b in batches}
    if not smoke:
        flops, moved = _work(generator.cpu(), batches[-1])
        rate, copied = _roof()
        roof = max(flops / rate, moved / copied)
        report["roof of the largest batch, us"] = roof * 1e6
        report["share of the roof"] = roof / replay[batches[-1]]
        print(record("sampler-gpu", {"net": NET}, seconds, ratios=report))
    show(report)


def _graph_sampler(bundle: Bundle, smoke: bool) -> Sampler:
    if not smoke:
        return load_sampler(bundle.folder, "cuda", "torch", strict=True)
    from ganfast.export.drawing.run_torch import TorchBackend

    backend = TorchBackend(bundle.model_bytes(), bundle.manifest, "cpu", 1, static=True)
    return Sampler(bundle, backend, [])


def _replay_seconds(sampler: Sampler, batch: int, rounds: int, smoke: bool) -> float:
    """Median time on the GPU of one replay."""
    lane: Any = sampler._lanes.get()
    captured = lane._buckets.get(batch)
    sampler._lanes.put(lane)
    if captured is None or smoke:
        return statistics.median(_timed(lambda: sampler.sample(batch)) for _ in range(rounds))
    runs, device = {"replay": captured.replay}, torch.device("cuda")
    return statistics.median(device_times(runs, rounds, cold=False, device=device)["replay"])


def _work(generator: nn.Module, batch: int) -> tuple[float, float]:
    """FLOPs of a batch, and the least bytes in float32.

    Weights move once, every activation is written and read once, pictures are written once.
    """
    from torch.utils.flop_counter import FlopCounterMode

    activations: list[int] = []
    for module in generator.modules():
        if isinstance(module, nn.Linear | nn.ConvTranspose2d):
            module.register_forward_hook(lambda _, __, value: activations.append(value.numel()))
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        generator(torch.zeros(1, LATENT))
    numbers = sum(p.numel() for p in generator.parameters()) + 2 * sum(activations) * batch
    return float(flops.get_total_flops() * batch), 4.0 * numbers + SIZE * SIZE * CHANNELS * batch


def _roof() -> tuple[float, float]:
    """Measured: FLOP/s of a large float32 product without TF32, bytes/s of a copy (both ways)."""
    torch.backends.cuda.matmul.allow_tf32 = False
    a = torch.randn(8192, 8192, device="cuda")
    block = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    runs = {"product": lambda: a @ a, "copy": lambda: block.clone()}
    times = device_times(runs, 10, cold=False, device=a.device)
    return 2 * 8192**3 / min(times["product"]), 2 * block.numel() / min(times["copy"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    if options.gpu:
        on_gpu(5 if options.smoke else 100, options.smoke)
    else:
        on_cpu(options.threads, 3 if options.smoke else options.rounds, options.smoke)
