"""ganfast bench: measurements that can be cited."""

from pathlib import Path

import ganfast
from ganfast.commands.bench.setting import setting_flags, setting_of, use_threads
from ganfast.commands.parsing import meant, parser_for
from ganfast.errors import InputError, RunError

HELP = """ganfast bench: how fast, compared with what, and how far from the limit. See docs/guides/benchmark.md.

  ganfast bench train --preset wgan-gp --data mnist          naive, tuned, JAX and ganfast side by side, proven equal first
  ganfast bench train --all-presets --out benchmarks/results/   every preset; stops and goes on where it stopped
  ganfast bench train --preset r1 --sweep batch=16,32,64,128    how cost grows with work: batch, width or size
  ganfast bench kernels --out results/                       kernels, cold and hot, against a measured copy
  ganfast bench sample digits.bundle                         latencies of a bundle on every back end that runs here
  ganfast bench compare OLD.json NEW.json                    ratios with confidence intervals; exit 1 on a regression
  ganfast bench compare --base main --preset wgan-gp         this checkout against a commit, interleaved
  ganfast bench report benchmarks/results/*-train.jsonl  a Markdown table

All but sample need a checkout of ganfast, of which its package holds no benchmarks/. Each has --help.
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
    parser.add_argument("--all-presets", action="store_true", help="every preset on --data")
    parser.add_argument(
        "--variants",
        default="",
        help="comma-separated, or all; default naive,tuned,jax,ganfast (all on a GPU)",
    )
    parser.add_argument(
        "--sweep", default="", metavar="batch=16,32", help="several batches, widths or sizes"
    )
    parser.add_argument(
        "--out",
        default="",
        help="folder for dated JSON records; what it has of this code is not repeated",
    )
    parser.add_argument("--again", action="store_true", help="measure what --out already holds")
    given = parser.parse_args(args)
    if given.name and given.all_presets:
        raise InputError(f"--all-presets measures {given.name} too; give one of them")
    given.preset = given.name or given.preset
    setting = setting_of(given)
    from dataclasses import replace

    from ganfast.presets import PRESETS

    settings = (
        [replace(setting, preset=name) for name in PRESETS] if given.all_presets else [setting]
    )
    if given.all_presets and given.data == "celeba":
        raise InputError(
            "--all-presets measures --data digits or mnist; give celeba one preset at a time"
        )
    use_threads(given.threads)
    import torch

    from ganfast.bench import train
    from ganfast.bench.variants import DEFAULT, VARIANTS
    from ganfast.log import say

    if given.sweep:
        name, _, values = given.sweep.partition("=")
        if not all(word.isdecimal() and int(word) for word in values.split(",")):
            raise InputError(
                f"sweep is {given.sweep!r}; expected batch=16,32,64, width=... or size=..."
            )
        settings = [
            each
            for one in settings
            for each in train.swept(one, name, [int(word) for word in values.split(",")])
        ]
    chosen = tuple(given.variants.split(",")) if given.variants else DEFAULT
    if given.variants == "all" or (
        not given.variants and torch.cuda.is_available() and given.device != "cpu"
    ):
        chosen = tuple(VARIANTS)
    wrong = [name for name in chosen if name not in VARIANTS]
    if wrong:
        raise InputError(f"variant {wrong[0]!r} is unknown{meant(wrong[0], VARIANTS)}")
    found = train.run(
        settings,
        train.Plan(chosen, given.rounds),
        Path(given.out) if given.out else None,
        given.again,
        say,
    )
    print(train.overview(found))


def _compare(args: list[str]) -> None:
    parser = parser_for(
        "ganfast bench compare",
        "Ratios of times, new over old, with 99% intervals; exit code 1 on a regression",
    )
    parser.add_argument("records", nargs="*", help="OLD.json NEW.json")
    parser.add_argument(
        "--base",
        default="",
        metavar="REV",
        help="measure this checkout against a commit instead, interleaved",
    )
    parser.add_argument(
        "--starts", type=int, default=5, help="fresh processes of either side (default 5)"
    )
    setting_flags(parser)
    given = parser.parse_args(args)
    from ganfast.bench import compare
    from ganfast.log import say

    if given.base:
        if given.records:
            raise InputError("give two records or --base REV, not both")
        if given.starts < 3:
            raise InputError(
                f"starts is {given.starts}; expected 3 or more: fewer give no interval"
            )
        found = compare.with_base(
            given.base, setting_of(given), given.starts, given.rounds, given.threads
        )
    elif len(given.records) == 2:
        from ganfast.bench.records import read

        both = [read(Path(name)) for name in given.records]
        for name, record in zip(given.records, both, strict=True):
            if record["noise"]["noisy"]:
                say(
                    f"{name} is flagged noisy: samples {record['noise']['spread']:.0%} apart, halves {record['noise']['drift']:.0%}"
                )
        found = compare.of_records(*both)
    else:
        raise InputError(f"{len(given.records)} records; expected two, or --base REV")
    print(compare.table(found))
    slower = [key for key, ratio in found.items() if ratio.verdict == "slower"]
    if slower:
        raise RunError(
            f"slower beyond noise: {', '.join(' '.join(filter(None, key)) for key in slower)}"
        )


def _report(args: list[str]) -> None:
    parser = parser_for("ganfast bench report", "A Markdown table of records")
    parser.add_argument("records", nargs="+", help="files that ganfast bench wrote, or campaigns")
    given = parser.parse_args(args)
    from ganfast.bench.records import read_all
    from ganfast.bench.report import markdown

    print(markdown([record for name in given.records for record in read_all(Path(name))]))
