"""ganfast bench: measurements that can be cited."""

from dataclasses import replace
from pathlib import Path

import ganfast
from ganfast.commands.bench.setting import setting_flags, setting_of, use_threads
from ganfast.commands.parsing import meant, parser_for
from ganfast.errors import InputError, RunError
from ganfast.presets import FROM_LATENTS

HELP = """ganfast bench: how fast, compared with what, and how far from the limit.
See docs/guides/benchmark.md.

  ganfast bench train --preset wgan-gp --data mnist
      naive, tuned, JAX and ganfast side by side, proven equal first
  ganfast bench train --all-presets --out benchmarks/results/
      every preset; a second call goes on where the first stopped
  ganfast bench train --preset r1 --sweep batch=16,32,64,128
      how cost grows with work: batch, width or size
  ganfast bench kernels --out results/
      kernels, cold and hot, against a measured copy
  ganfast bench sample digits.bundle
      latencies of a bundle on every back end that runs here
  ganfast bench compare OLD.json NEW.json
      ratios with confidence intervals; exit 1 on a regression
  ganfast bench compare --base main --preset wgan-gp
      this checkout against a commit, interleaved
  ganfast bench report benchmarks/results/*-train.jsonl
      a Markdown table

All but sample need a checkout of ganfast: the package holds no benchmarks/. Each has --help.
"""


def bench(args: list[str]) -> None:
    from ganfast.commands.bench.kernels import kernels
    from ganfast.commands.bench.sample import sample

    commands = {
        "train": _train,
        "kernels": kernels,
        "sample": sample,
        "compare": _compare,
        "report": _report,
    }
    if not args or args[0] in ("-h", "--help"):
        print(HELP, end="")
        return
    if args[0] not in commands:
        raise InputError(
            f"unknown benchmark {args[0]!r}{meant(args[0], commands)}; see ganfast bench --help"
        )
    if args[0] != "sample" and not (Path(ganfast.__file__).parent / "bench" / "stats.py").exists():
        raise InputError(
            f"`ganfast bench {args[0]}` needs the folder benchmarks/ of a checkout, which this "
            "installation does not have; clone ganfast and run it there"
        )
    commands[args[0]](args[1:])


def _train(args: list[str]) -> None:
    parser = parser_for(
        "ganfast bench train",
        "Critic, generator and whole iteration by every variant, proven equal, timed in turns",
    )
    parser.add_argument("name", nargs="?", default="", metavar="PRESET", help="as --preset")
    setting_flags(parser)
    parser.flag("--all-presets", False, "every preset on --data")
    parser.flag(
        "--variants", "", "comma-separated, or all; default naive,tuned,jax,ganfast (all on a GPU)"
    )
    parser.flag("--sweep", "", "several batches, widths or sizes", metavar="batch=16,32")
    parser.flag(
        "--out", "", "folder for dated JSON records; what it has of this code is not repeated"
    )
    parser.flag("--again", False, "measure what --out already holds")
    arguments = parser.parse_args(args)
    if arguments.name and arguments.all_presets:
        raise InputError(f"--all-presets measures {arguments.name} too; give one of them")
    arguments.preset = arguments.name or arguments.preset
    settings = [setting_of(arguments)]
    if arguments.all_presets:
        settings = [replace(settings[0], preset=name) for name in FROM_LATENTS]
    if arguments.all_presets and arguments.data == "celeba":
        raise InputError(
            "--all-presets measures --data digits or mnist; give celeba one preset at a time"
        )
    use_threads(arguments.threads)
    import torch

    from ganfast.bench import train
    from ganfast.bench.variants import DEFAULT, VARIANTS
    from ganfast.log import say

    if arguments.sweep:
        name, _, values = arguments.sweep.partition("=")
        if not all(word.isdecimal() and int(word) for word in values.split(",")):
            raise InputError(
                f"sweep is {arguments.sweep!r}; expected batch=16,32,64, width=... or size=..."
            )
        numbers = [int(word) for word in values.split(",")]
        settings = [swept for base in settings for swept in train.swept(base, name, numbers)]
    on_gpu = torch.cuda.is_available() and arguments.device != "cpu"
    variants = tuple(arguments.variants.split(",")) if arguments.variants else DEFAULT
    if arguments.variants == "all" or (not arguments.variants and on_gpu):
        variants = tuple(VARIANTS)
    wrong = [name for name in variants if name not in VARIANTS]
    if wrong:
        raise InputError(f"variant {wrong[0]!r} is unknown{meant(wrong[0], VARIANTS)}")
    plan = train.Plan(variants, arguments.rounds)
    out = Path(arguments.out) if arguments.out else None
    print(train.overview(train.run(settings, plan, out, arguments.again, say)))


def _compare(args: list[str]) -> None:
    parser = parser_for(
        "ganfast bench compare",
        "Ratios of times, new over old, with 99% intervals; exit code 1 on a regression",
    )
    parser.add_argument("records", nargs="*", help="OLD.json NEW.json")
    parser.flag(
        "--base", "", "measure this checkout against a commit instead, interleaved", metavar="REV"
    )
    parser.flag("--starts", 5, "fresh processes of either side (default 5)")
    setting_flags(parser)
    arguments = parser.parse_args(args)
    from ganfast.bench import compare
    from ganfast.log import say

    if arguments.base:
        if arguments.records:
            raise InputError("give two records or --base REV, not both")
        if arguments.starts < 3:
            raise InputError(
                f"starts is {arguments.starts}; expected 3 or more: fewer give no interval"
            )
        counts = (arguments.starts, arguments.rounds, arguments.threads)
        ratios = compare.with_base(arguments.base, setting_of(arguments), *counts)
    elif len(arguments.records) == 2:
        from ganfast.bench.records import read

        both = [read(Path(name)) for name in arguments.records]
        for name, record in zip(arguments.records, both, strict=True):
            noise = record["noise"]
            if noise["noisy"]:
                say(
                    f"{name} is flagged noisy: samples {noise['spread']:.0%} apart, "
                    f"halves {noise['drift']:.0%}"
                )
        ratios = compare.of_records(*both)
    else:
        raise InputError(f"{len(arguments.records)} records; expected two, or --base REV")
    print(compare.table(ratios))
    slower = [key for key, ratio in ratios.items() if ratio.verdict == "slower"]
    if slower:
        names = (" ".join(filter(None, key)) for key in slower)
        raise RunError(f"slower beyond noise: {', '.join(names)}")


def _report(args: list[str]) -> None:
    parser = parser_for("ganfast bench report", "A Markdown table of records")
    parser.add_argument("records", nargs="+", help="files that ganfast bench wrote, or campaigns")
    arguments = parser.parse_args(args)
    from ganfast.bench.records import read_all
    from ganfast.bench.report import markdown

    print(markdown([record for name in arguments.records for record in read_all(Path(name))]))
