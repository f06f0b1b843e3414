"""Fuzz one reader, guided by coverage.

It must raise ganfast's own errors only, write into its folder only, and keep a limit of memory.

A failure ends it and leaves the input, which the same command replays.

python -m tests.fuzz.run zipped --seconds 600
python -m tests.fuzz.run zipped --replay crash-0123...
"""

import argparse
import importlib
import logging
import resource
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

import atheris

GUIDING = [
    "ganfast.data",
    "ganfast.configfile",
    "ganfast.runs.checkpoint",
    "ganfast.export",
    "safetensors",
    "zipfile",
    "yaml",
]
# What only these targets import.
LATER = {"checkpoint": "ganfast.runs.checkpoint", "bundle": "ganfast.export.bundle.bundle"}

with atheris.instrument_imports(include=GUIDING):
    from tests.fuzz.targets import SEEDS, TARGETS, in_memory, refused
    from tests.fuzz.watch import only_inside

# MB, with torch and libFuzzer's own. libFuzzer looks at the peak of the process, which begins as
# that of the process that started it.
MEMORY = 2048 + resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
LONGEST = 30  # seconds for one input


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--corpus", type=Path, help="folder where inputs that reach new code are kept"
    )
    parser.add_argument("--replay", type=Path, help="one input, in place of fuzzing")
    options = parser.parse_args()
    if options.target in LATER:
        with atheris.instrument_imports(include=GUIDING):
            importlib.import_module(LATER[options.target])
    warnings.simplefilter("ignore")
    logging.disable()
    with tempfile.TemporaryDirectory(dir=in_memory()) as top:
        place = Path(top) / "target"

        def once(data: bytes) -> None:
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            with only_inside(place):
                refused(TARGETS[options.target], data, place)

        if options.replay:
            once(options.replay.read_bytes())
            return
        for seed in SEEDS[options.target]:
            once(seed)
        corpus = options.corpus or Path(top) / "corpus"
        corpus.mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(SEEDS[options.target]):
            (corpus / f"seed-{number}").write_bytes(seed)
        limits = [
            f"-max_total_time={options.seconds}",
            f"-rss_limit_mb={MEMORY}",
            f"-timeout={LONGEST}",
            f"-seed={options.seed}",
        ]
        atheris.Setup(
            [sys.argv[0], *limits, "-max_len=4000", "-print_final_stats=1", str(corpus)], once
        )
        atheris.Fuzz()


if __name__ == "__main__":
    main()
