"""One training by one process, by one rank, and by two ranks where two GPUs are there.

python benchmarks/gpu_ranks.py   # --tiny tries the script on a CPU, with two processes

One rank shows whether a sum of NCCL is captured: `apart` in the record is true where it stands
between graphs instead. It shows no more. Two show images a second beside one GPU's at the same
batch on each, and that the weights are those of one GPU up to rounding.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_train import generated
from measure import record
from safetensors.torch import load_file

from ganfast import configfile
from ganfast.presets import preset_config
from ganfast.runs import checkpoint as checkpoints
from ganfast.runs.logfile import read_log
from ganfast.runs.train import train
from ganfast.training.phases import APART

_STEPS = 20  # after which weights are compared: rounding has little time to grow
_GAP = (
    1e-2  # relative, L2, of the critic's weights in float32; rows of another rank are 0.1 or more
)
_LONG = 40.0  # kimg whose speed is taken
_EFFICIENCY = 0.85  # of two GPUs beside one: a target, not a proof


def trained(out: Path, data: Path, ranks: int, batch: int, kimg: float, tiny: bool) -> Path:
    """A run in a process of its own; ``ranks``: 0 = without torchrun."""
    fields = {"batch": batch, "kimg": kimg, "out": str(out), "precision": "fp32", "compile": "off"}
    net: dict[str, Any] = {"generator_norm": "layer"}
    # "on" refuses to go on where a phase cannot be captured, even without its sum.
    where = {"device": "cpu"} if tiny else {"device": "cuda", "cuda_graphs": "on"}
    net |= {"width": 4} if tiny else {}
    groups = {"net": net, "log": {"every": 5, "tensorboard": False}}
    file = out.with_suffix(".yaml")
    configfile.write(preset_config("r1", str(data), **fields, **where, **groups), file)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    # Not by the command line: tyro may not be there.
    command = [sys.executable, *torchrun * bool(ranks), __file__, "--train", str(file)]
    said = []
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as run:
        assert run.stderr is not None
        for line in run.stderr:  # told at once, as whoever started this may end it
            sys.stderr.write(line)
            said.append(line)
    if run.returncode:
        raise subprocess.CalledProcessError(run.returncode, command)
    (out / "said.txt").write_text("".join(said))
    return out


def gap(one: Path, other: Path) -> float:
    """Of the critics' weights at the end, relative, L2."""
    nets = [
        load_file(checkpoints.listed(run / "checkpoints")[-1] / "critic.safetensors")
        for run in (one, other)
    ]
    flat = [torch.cat([net[name].flatten() for name in sorted(net)]) for net in nets]
    return float((flat[0] - flat[1]).norm() / flat[0].norm())


def speed(run: Path) -> float:
    """Images a second of the later half of a log."""
    rates = [line["images_per_second"] for line in read_log(run / "log.jsonl")]
    return statistics.median(rates[len(rates) // 2 :])


def main(arguments: list[str]) -> int:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--tiny", action="store_true", help="two processes on a CPU")
    parser.add_argument("--train", help="train this config, as one rank or alone")
    options = parser.parse_args(arguments)
    if options.train:
        train(configfile.read(Path(options.train)), quiet=True)
        return 0
    batch, tiny = (8, True) if options.tiny else (128, False)
    two = tiny or torch.cuda.device_count() > 1
    few = _STEPS * batch / 1000
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = folder / "mnist-like.npz"
        np.savez(data, **generated(2_000))
        one = trained(folder / "one", data, 0, batch, few, tiny)
        gaps: dict[str, float] = {}
        apart: dict[str, bool] = {}
        for n in (2,) if tiny else (1, 2)[: 1 + two]:
            run = trained(folder / f"{n}", data, n, batch, few, tiny)
            gaps[f"{n} of {batch // n}"] = gap(one, run)
            apart[f"{n}"] = APART in (run / "said.txt").read_text()
        fast = {"1": one, "2": folder / "2"}
        if not tiny:
            fast = {"1": trained(folder / "fast-1", data, 0, batch, _LONG, tiny)}
        if two and not tiny:
            fast["2"] = trained(folder / "fast-2", data, 2, 2 * batch, _LONG, tiny)
        rates = {n: speed(run) for n, run in fast.items()}
    told = [f"ranks {n}: weights {g:.2g} off one process's" for n, g in gaps.items()]
    wrong = [text for text, g in zip(told, gaps.values(), strict=True) if not g <= _GAP]
    print("\n".join(told))
    print("images a second by ranks:", ", ".join(f"{n}: {rate:,.0f}" for n, rate in rates.items()))
    if not two:
        print("one GPU: how two share a batch was not measured")
    efficiency = rates["2"] / rates["1"] / 2 if two else None
    if "GANFAST_RECORDS" in os.environ or not tiny:
        conditions = {"preset": "r1", "data": "made here", "batch": batch, "tiny": tiny}
        seconds = {f"a thousand images by {n}": [1000 / rate] for n, rate in rates.items()}
        goal = f"efficiency of two at least {_EFFICIENCY:g}"
        result = {"gaps": gaps, "efficiency": efficiency, "goal": goal, "wrong": wrong}
        result["apart"] = apart
        print(record("ranks", conditions, seconds, result=result))
    print("\n".join(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
