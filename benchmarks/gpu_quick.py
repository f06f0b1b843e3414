"""`make gpu-quick`: whether ganfast works on this NVIDIA GPU, and how fast, in five minutes.

make gpu-quick            # results also in runs/gpu-quick; OUT=folder puts them elsewhere
make gpu-quick LIMIT=600  # more time, for a slow network

It ends with a text of at most 40 lines to paste into an issue. Packages that the back ends of the
sampler need and that are not here are installed into a folder that is removed at the end. Exit code
2 where there is no GPU, 1 where something ran and failed.
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import gpu_run
from gpu_run import ROOT, Deadline, Outcome, Part, Session

RESULTS = ROOT / "runs" / "gpu-quick"
_LINES, _COLUMNS = 40, 110
_KIMG = 20.0
_BATCHES = (1, 64)
# What each back end needs from the package index.
_PACKAGES = {"onnxruntime": ("onnx", "onnxscript", "onnxruntime-gpu"), "tensorrt": ("tensorrt",)}


# Parts: each runs in a process of its own, so that one that crashes leaves the next.


def kernels(run: Deadline, tiny: bool) -> Outcome:
    size = ["to_uint8", "--device", "cpu"] if tiny else []
    bench = ("bench", "kernels", "--no-compile", "--rounds", "5")
    return run("-m", "ganfast", *bench, "--out", str(run.records), *size)


def training(run: Deadline, tiny: bool) -> Outcome:
    return _own(run, tiny, "training")


def versus(run: Deadline, tiny: bool) -> Outcome:
    return run("benchmarks/gpu_parts.py", "versus", *["--tiny"] * tiny)


def onnxruntime(run: Deadline, tiny: bool) -> Outcome:
    return _back_end(run, tiny, "onnxruntime")


def tensorrt(run: Deadline, tiny: bool) -> Outcome:
    return _back_end(run, tiny, "tensorrt")


def _own(run: Deadline, tiny: bool, *arguments: str) -> Outcome:
    work = str(run.records / "work")
    return run("benchmarks/gpu_quick.py", "--child", *arguments, "--work", work, *["--tiny"] * tiny)


def _back_end(run: Deadline, tiny: bool, name: str) -> Outcome:
    """Install what is missing, then export the trained generator and draw by this back end."""
    missing = [package for package in _PACKAGES[name] if not _installed(package)]
    if tiny:
        return _own(run, tiny, name) if name == "onnxruntime" else Outcome("skipped", "on a CPU")
    if missing:
        # In front of what is there: NumPy stays the one that torch was tested with.
        pins = run.records / "pins.txt"
        pins.write_text(f"numpy=={metadata.version('numpy')}\n")
        site = str(run.records / "work" / "site")
        pip = ("-m", "pip", "install", "-q", "--disable-pip-version-check", "--target", site)
        if run(*pip, "--constraint", str(pins), *missing).word != "passed":
            return Outcome("skipped", f"{', '.join(missing)} could not be installed")
    return _own(run, tiny, name)


def _installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


PARTS = {
    "kernels": Part(50, kernels),
    "training": Part(40, training),
    "versus": Part(60, versus),
    "onnxruntime": Part(75, onnxruntime),
    "tensorrt": Part(75, tensorrt),
}


# What the processes of the parts do.


def train_captured(work: Path, tiny: bool) -> None:
    """A training in the best precision that the GPU has, its phases captured."""
    import numpy as np
    from gpu_train import generated
    from measure import record

    from ganfast.config import LogConfig
    from ganfast.device import find_device, resolved
    from ganfast.presets import preset_config
    from ganfast.runs.train import train

    work.mkdir(parents=True, exist_ok=True)
    data = work / "mnist-like.npz"  # by this name presets take MNIST's settings
    np.savez(data, **generated(1000 if tiny else 20_000))
    config = preset_config("wgan-gp", str(data))
    config = replace(
        config,
        kimg=0.5 if tiny else _KIMG,
        device="cpu" if tiny else "cuda",
        compile="off",
        cuda_graphs="off" if tiny else "on",
        out=str(work / "run"),
        log=LogConfig(every=5, tensorboard=False),
    )
    config = resolved(config, find_device(config.device))
    began = time.monotonic()
    run = train(config)
    seconds = time.monotonic() - began
    spread = float(run.sample(64, seed=1).std())
    if not spread > 1:
        raise SystemExit(f"pictures are flat: {spread:.2g} grey levels; expected more than 1")
    result = {"precision": config.precision, "kimg": config.kimg, "spread": spread}
    print(record("training-wgan-gp", {"captured": not tiny}, {"whole": [seconds]}, result=result))


def draw(work: Path, backend: str, tiny: bool) -> None:
    """Export the trained generator; latencies of requests to one back end.

    The sampler itself compares the back end's pictures with the bundle's golden ones.
    """
    sys.path.insert(0, str(work / "site"))
    from measure import record

    from ganfast.export import export_bundle
    from ganfast.export.drawing.bench_sample import measure

    target = ("tensorrt",) if backend == "tensorrt" else ()
    out, device = work / f"{backend}.bundle", "cpu" if tiny else "cuda"
    bundle = export_bundle(work / "run", out, buckets=_BATCHES, targets=target)
    table, _ = measure(bundle, [backend], device, 0, 0.1 if tiny else 1.0, (1,), _BATCHES)
    rows = {f"batch {row['batch']}": [row["p50"]] for row in table["rows"]}
    (name,) = {row["back_end"] for row in table["rows"]}
    print(record(f"sample-{backend}", {"device": device}, rows, back_end=name))


# The text


def text_of(
    records: Sequence[Mapping[str, Any]], ended: Mapping[str, tuple[Outcome, float]]
) -> str:
    """At most 40 lines of 110 characters."""
    by = {record["name"].partition("-")[0]: record for record in records}
    lines = [*_machine(records), *_kernels(by.get("kernels")), *_training(by.get("training"))]
    lines += _iterations(by.get("train"))
    for record in (record for record in records if record["kind"] == "sample"):
        times = {m["variant"]: m["summary"]["median"] * 1e3 for m in record["measurements"]}
        cells = ", ".join(f"{name} {ms:.3f} ms" for name, ms in times.items())
        lines.append(f"sampler by {record['derived']['back_end']}, a request: {cells}")
    for name, (outcome, seconds) in ended.items():
        if outcome.word != "passed":
            begin, why = f"{name}: {outcome.word} after {seconds:.0f} s, ", outcome.why
            left = _COLUMNS - len(begin)  # the end of a long reason tells most
            lines.append(begin + (why if len(why) <= left else f"...{why[3 - left :]}"))
    for record in records:
        lines += [f"{name}: {why}" for name, why in record["failed"].items()]
    lines = [line if len(line) <= _COLUMNS else f"{line[: _COLUMNS - 3]}..." for line in lines]
    if len(lines) > _LINES:
        lines = [*lines[: _LINES - 1], f"and {len(lines) - _LINES + 1} lines more"]
    return "\n".join(lines) + "\n"


def _machine(records: Sequence[Mapping[str, Any]]) -> list[str]:
    if not records:
        return ["ganfast gpu-quick: nothing was measured"]
    e = records[0]["environment"]
    versions = [f"torch {e['torch']}", f"CUDA {e['cuda']}", f"cuDNN {e['cudnn']}"]
    versions += [f"driver {e['driver']}", f"triton {e['triton']}", f"Python {e['python']}"]
    when = records[0]["utc"][:10]
    return [
        f"ganfast {e['ganfast']} gpu-quick, commit {e['commit']}, {when}",
        f"{e['gpu']}, {', '.join(versions)}",
    ]


def _kernels(record: Mapping[str, Any] | None) -> list[str]:
    """A line a kernel: the share of a copy's rate and the ratio to eager, cold cache."""
    if record is None:
        return []
    cases: dict[str, dict[str, Any]] = {}
    for m in record["measurements"]:
        if m["phase"] == "cold":
            cases.setdefault(m["case"], {})[m["variant"]] = m
    lines = [f"kernels: {len(cases)} cases agree with their definitions"]
    for kernel in dict.fromkeys(case.split()[0] for case in cases):
        both = [v for case, v in cases.items() if case.split()[0] == kernel and "triton" in v]
        if both:
            ratio = [
                v["eager"]["summary"]["median"] / v["triton"]["summary"]["median"] for v in both
            ]
            share = [v["triton"]["share_of_copy"] for v in both]
            lines.append(
                f"  {kernel:18}{min(ratio):6.2f} to {max(ratio):.2f}x eager, "
                f"{min(share):.0%} to {max(share):.0%} of a copy's rate"
            )
    return lines


def _training(record: Mapping[str, Any] | None) -> list[str]:
    if record is None:
        return []
    result, how = record["derived"]["result"], record["conditions"]["captured"]
    seconds = record["measurements"][0]["summary"]["median"]
    captured = "captured" if how else "not captured"
    return [
        f"training: wgan-gp in {result['precision']}, {captured}, {result['kimg']:g} kimg "
        f"in {seconds:.1f} s with start and samples"
    ]


def _iterations(record: Mapping[str, Any] | None) -> list[str]:
    if record is None:
        return []
    c = record["conditions"]
    lines = [f"{c['preset']} {c['size']}x{c['size']}x{c['channels']}, batch {c['batch']}, width "]
    lines[0] += f"{c['width']}, {c['precision']}; an iteration, median"
    rows = [m for m in record["measurements"] if m["phase"] == "iteration"]
    medians = {m["variant"]: m["summary"]["median"] for m in rows}
    for name, median in medians.items():
        over = f", {medians['tuned'] / median:.2f}x tuned eager" if "tuned" in medians else ""
        lines.append(f"  {name:18}{median * 1e3:9.3f} ms{over}")
    return lines


class Quick(Session):
    """Its summary is the text."""

    def summary(self, records: Sequence[Mapping[str, Any]]) -> str:
        from ganfast.bench.targets import failures

        self._failed = any(failures(record) for record in records)
        return text_of(records, self.ended)


def main(arguments: list[str]) -> int:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("limit", nargs="?", default="", help="seconds in all; default 300")
    parser.add_argument("--tiny", action="store_true", help="what a CPU can do")
    parser.add_argument("--child", choices=["training", *_PACKAGES], help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    o = parser.parse_args(arguments)
    if o.child == "training":
        train_captured(o.work, o.tiny)
        return 0
    if o.child:
        draw(o.work, o.child, o.tiny)
        return 0
    limit = gpu_run.seconds_of(o.limit, PARTS)
    title = gpu_run.machine(o.tiny)
    out = gpu_run.writable(os.environ.get("OUT") or str(RESULTS))
    signal.signal(signal.SIGTERM, gpu_run.end_by_sigterm)
    session = Quick(out, PARTS, limit, title, o.tiny)
    print(f"{title}; at most {limit:.0f} s", flush=True)
    code = session.run()
    print(f"The text above is in {out / 'summary.txt'}: paste it into an issue, please.")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
