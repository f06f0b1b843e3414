"""Quality of recipes: train each of `recipes/<data>/<preset>.yaml` from fixed seeds, score its checkpoints, record both.

python benchmarks/quality.py train mnist wgan-gp --seed 0      # runs/quality/mnist/wgan-gp-0, resumed if it is there
python benchmarks/quality.py score mnist wgan-gp --seed 0      # results/quality/mnist-wgan-gp-0.json
python benchmarks/quality.py table mnist                       # the README's table, from the records

Every row is given the same processor time of one thread: recipes name the thousand images that fit into it. What a row took is
recorded, wall clock and processor seconds, with the other conditions.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RUNS = Path(os.environ.get("GANFAST_QUALITY_RUNS", "runs/quality"))


def train(data: str, preset: str, seed: int) -> Path:
    """The run of a recipe, trained to its end; what that cost is added to cost.json."""
    folder = RUNS / data / f"{preset}-{seed}"
    recipe = HERE / "recipes" / data / f"{preset}.yaml"
    command = ["train", "--config", str(recipe), "--seed", str(seed), "--out", str(folder), "--quiet"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent)}
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run([sys.executable, "-m", "ganfast", *command], env=environment, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    record = folder / "cost.json"
    cost: dict[str, Any] = json.loads(record.read_text()) if record.exists() else {"cpu_seconds": 0.0, "wall_seconds": 0.0}
    cost["cpu_seconds"] += after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    cost["wall_seconds"] += time.monotonic() - began
    record.write_text(json.dumps(cost, indent=1) + "\n")
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["train"])
    parser.add_argument("data")
    parser.add_argument("preset")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print(train(given.data, given.preset, given.seed))
    return 0


if __name__ == "__main__":
    sys.exit(main())
