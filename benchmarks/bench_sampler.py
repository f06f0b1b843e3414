"""The sampler against torch alone: DCGAN-64, width 64, latent 128, fp32; variants take turns.

python benchmarks/bench_sampler.py [--threads N] [--rounds N]   # on a CPU; a record in results/
python benchmarks/bench_sampler.py --gpu                        # on CUDA: torch CUDA graphs against eager, and the roof
python benchmarks/bench_sampler.py --smoke                      # the same code, small, nothing recorded

A baseline begins with latents that are there and ends with uint8 pictures in NumPy, in inference mode. The sampler's own time is a
whole request: checks, latents, drawing, copying.
"""

import argparse
import copy
import logging
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import record, summary, wait
from torch import Tensor, nn

from ganfast.export import load_sampler
from ganfast.export.bundle.bundle import Bundle, golden_file, write_bundle
from ganfast.export.bundle.manifest import GOLDEN, MODEL, Manifest
from ganfast.export.drawing.sampler import Sampler
from ganfast.export.graph.deploy import deployable
from ganfast.export.graph.to_onnx import to_bytes, to_onnx
from ganfast.latents import latents
from ganfast.models import NetSpec, build_generator

SIZE, CHANNELS, LATENT = 64, 3, 128
_CALLS, _UNCOUNTED = (
    20,
    3,
)  # of a turn at batch 1: behind another variant's turn its own weights are not in the caches
_SECONDS, _LEAST = (
    100.0,
    10,
)  # for a batch size, and rounds however long they take: a slow machine is not waited for


def make_bundle(
    folder: Path, width: int, buckets: tuple[int, ...]
) -> tuple[nn.Module, nn.Module, Bundle]:
    """The generator, initial weights; its folded form; the bundle."""
    torch.manual_seed(0)
    generator = (
        build_generator(NetSpec(SIZE, CHANNELS, 0, "no", width, LATENT))
        .eval()
        .requires_grad_(False)
    )
    for module in generator.modules():  # statistics as after training, so that folding them is seen
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
    folded = deployable(generator, LATENT, 0)
    model = to_bytes(to_onnx(folded, LATENT, {"name": "bench"}))
    z = latents(0, np.arange(8), LATENT)
    images = folded(torch.from_numpy(z), torch.ones(8)).numpy()
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
    golden = golden_file(z, None, np.ones(8, np.float32), images)
    return (
        generator,
        folded.generator,
        write_bundle(folder, manifest, {MODEL: model, GOLDEN: golden}, overwrite=True),
    )


def pictures(net: Callable[[Tensor], Tensor], z: Tensor) -> np.ndarray:
    with torch.inference_mode():
        return (
            net(z)
            .permute(0, 2, 3, 1)
            .mul(127.5)
            .add_(127.5)
            .round_()
            .clamp_(0, 255)
            .to(torch.uint8)
            .contiguous()
            .cpu()
            .numpy()
        )


def baselines(
    generator: nn.Module, folded: nn.Module, compiled: bool
) -> dict[str, Callable[[Tensor], Tensor]]:
    nets: dict[str, Callable[[Tensor], Tensor]] = {"eager": generator, "folded": folded}
    for name, net in (("eager-channels-last", generator), ("folded-channels-last", folded)):
        nets[name] = copy.deepcopy(net).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if compiled:
        for name in ("folded", "folded-channels-last"):
            nets[f"{name}-compiled"] = torch.compile(nets[name])
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
            z = latents(0, np.arange(batch), LATENT)
            tensor, ones = torch.from_numpy(z), np.ones(batch, np.float32)
            variants: dict[str, Callable[[], Any]] = {
                f"{name}, {batch}": lambda net=net, z=tensor: pictures(net, z)
                for name, net in nets.items()
            }
            variants[f"auto, {batch}"] = lambda n=batch: auto.sample(n)
            variants[f"auto, back end alone, {batch}"] = lambda z=z, ones=ones: auto._backend.run(
                z, None, ones
            )
            variants[f"torch back end, {batch}"] = lambda n=batch: by_torch.sample(n)
            truth = variants[f"eager, {batch}"]().astype(int)
            for name, run in variants.items():  # equality first
                assert np.abs(run().astype(int) - truth).max() <= 1, name
            seconds |= in_turns(
                variants, max(5, rounds // 4), *((_CALLS, _UNCOUNTED) if batch == 1 else (1, 1))
            )
        back_end = auto.backend_name
    first = [] if smoke else first_pictures(folder)
    report = ratios(seconds, batches)
    report |= {
        "back end": back_end,
        "import to first picture, s": statistics.median(first) if first else None,
    }
    for name, value in report.items():
        print(f"{name:60}{value if not isinstance(value, float) else round(value, 5)}")
    if not smoke:
        conditions = {
            "threads": threads,
            "net": "DCGAN-64, width 64, latent 128, fp32",
            "first_pictures": first,
        }
        print(record(f"sampler-cpu-{threads}", conditions, seconds, ratios=report))


def in_turns(
    variants: dict[str, Callable[[], Any]], rounds: int, calls: int, uncounted: int
) -> dict[str, list[float]]:
    """Seconds of every call; variants take turns (A B C, B C A, ...) of ``uncounted`` calls, then ``calls``."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    until, names = time.perf_counter() + _SECONDS, list(variants)
    for done in range(rounds):
        if done >= _LEAST and time.perf_counter() > until:
            break
        for name in names[done % len(names) :] + names[: done % len(names)]:
            run = variants[name]
            for _ in range(uncounted):
                run()
            wait()
            for _ in range(calls):
                began = time.perf_counter()
                run()
                wait()
                seconds[name].append(time.perf_counter() - began)
    return seconds


def ratios(seconds: dict[str, list[float]], batches: tuple[int, ...]) -> dict[str, Any]:
    """Median over median; of a baseline the fastest variant."""
    median = {name: statistics.median(times) for name, times in seconds.items()}
    found: dict[str, Any] = {}
    for b in batches:
        auto = median[f"auto, {b}"]
        plain = min(median[f"eager, {b}"], median[f"eager-channels-last, {b}"])
        tuned = {
            name: value
            for name, value in median.items()
            if name.endswith(f", {b}") and name.startswith(("eager", "folded"))
        }
        best = min(tuned, key=lambda name: tuned[name])
        found |= {
            f"auto, ms, batch {b}": auto * 1e3,
            f"auto over plain eager, batch {b}": median[f"eager, {b}"] / auto,
            f"auto over the faster layout of eager, batch {b}": plain / auto,
            f"auto over folded channels last, batch {b}": median[f"folded-channels-last, {b}"]
            / auto,
            f"auto over {best}, the best of torch": tuned[best] / auto,
            f"sampler beyond its back end, us, batch {b}": (
                auto - median[f"auto, back end alone, {b}"]
            )
            * 1e6,
        }
    return found


def first_pictures(folder: Path) -> list[float]:
    """Seconds from starting Python to the first picture, without torch."""
    code = "import sys; from ganfast.export import load_sampler as s; s(sys.argv[1]).sample(1); assert 'torch' not in sys.modules"
    times = []
    for _ in range(7):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", code, str(folder)], check=True)
        times.append(time.perf_counter() - began)
    return times[1:]


def on_gpu(rounds: int, smoke: bool) -> None:
    """torch CUDA graphs against eager, and against what the GPU could do."""
    device = "cpu" if smoke else "cuda"
    batches = (1, 4) if smoke else (1, 64, 512)
    folder = Path(tempfile.mkdtemp()) / "bench.bundle"
    generator, folded, bundle = make_bundle(folder, 4 if smoke else 64, batches)
    nets = {
        name: net.to(device) for name, net in baselines(generator, folded, compiled=False).items()
    }  # type: ignore[attr-defined]
    sampler = _graph_sampler(bundle, smoke)
    seconds: dict[str, list[float]] = {}
    with sampler:
        for batch in batches:
            z = torch.from_numpy(latents(0, np.arange(batch), LATENT)).to(device)
            variants: dict[str, Callable[[], Any]] = {
                f"{name}, {batch}": lambda net=net, z=z: pictures(net, z)
                for name, net in nets.items()
            }
            variants[f"auto, {batch}"] = lambda n=batch: sampler.sample(n)
            variants[f"auto, back end alone, {batch}"] = lambda n=batch: sampler.sample(
                n, on_device=True
            )
            truth = variants[f"eager, {batch}"]().astype(int)
            gap = np.abs(variants[f"auto, {batch}"]().astype(int) - truth)
            assert gap.max() <= 1, f"batch {batch} differs by {gap.max()} LSB"
            seconds |= in_turns(variants, rounds, _CALLS, _UNCOUNTED)
        replay = {b: _replay_seconds(sampler, b, rounds, smoke) for b in batches}
    report = ratios(seconds, batches) | {
        f"GPU time of batch {b}, us": replay[b] * 1e6 for b in batches
    }
    if not smoke:
        flops, moved = _work(generator.cpu(), bundle, batches[-1])
        rate, copied = _roof()
        roof = max(flops / rate, moved / copied)
        report |= {
            "roof of the largest batch, us": roof * 1e6,
            "share of the roof": roof / replay[batches[-1]],
        }
        print(
            record(
                "sampler-gpu",
                {"net": "DCGAN-64, width 64, latent 128, fp32"},
                seconds,
                ratios=report,
            )
        )
    for name, value in report.items():
        print(f"{name:60}{value if not isinstance(value, float) else round(value, 5)}")


def _graph_sampler(bundle: Bundle, smoke: bool) -> Sampler:
    if not smoke:
        return load_sampler(bundle.folder, "cuda", "torch", strict=True)
    from ganfast.export.drawing.run_torch import TorchBackend

    return Sampler(
        bundle, TorchBackend(bundle.model_bytes(), bundle.manifest, "cpu", 1, static=True), []
    )


def _replay_seconds(sampler: Sampler, batch: int, rounds: int, smoke: bool) -> float:
    """Median time on the GPU of one replay."""
    lane: Any = sampler._lanes.get()
    captured = lane._buckets.get(batch)
    sampler._lanes.put(lane)
    if captured is None or smoke:
        return statistics.median(_timed(lambda: sampler.sample(batch)) for _ in range(rounds))
    from measure import device_times

    return summary(device_times({"replay": captured.replay}, rounds, cold=False)["replay"])[
        "median"
    ]


def _timed(run: Callable[[], Any]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def _work(generator: nn.Module, bundle: Bundle, batch: int) -> tuple[float, float]:
    """FLOPs of a batch, and the least bytes: weights once, every activation written and read once, pictures once; float32."""
    from torch.utils.flop_counter import FlopCounterMode

    activations = 0

    def count(module: nn.Module, given: Any, value: Tensor) -> None:
        nonlocal activations
        activations += value.numel()

    hooks = [
        m.register_forward_hook(count)
        for m in generator.modules()
        if isinstance(m, nn.Linear | nn.ConvTranspose2d)
    ]
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        generator(torch.zeros(1, LATENT))
    for hook in hooks:
        hook.remove()
    weights = sum(p.numel() for p in generator.parameters())
    return float(flops.get_total_flops() * batch), 4.0 * (
        weights + 2 * activations * batch
    ) + SIZE * SIZE * CHANNELS * batch


def _roof() -> tuple[float, float]:
    """Measured here: FLOP/s of a large float32 matrix product without TF32, bytes/s of a copy (read and write)."""
    from measure import device_times

    torch.backends.cuda.matmul.allow_tf32 = False
    a = torch.randn(8192, 8192, device="cuda")
    block = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    times = device_times({"product": lambda: a @ a, "copy": lambda: block.clone()}, 10, cold=False)
    return 2 * 8192**3 / min(times["product"]), 2 * block.numel() / min(times["copy"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--smoke", action="store_true")
    given = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    if given.gpu:
        on_gpu(5 if given.smoke else 100, given.smoke)
    else:
        on_cpu(given.threads, 3 if given.smoke else given.rounds, given.smoke)
