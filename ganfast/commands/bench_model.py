"""ganfast bench model."""

from dataclasses import replace
from pathlib import Path

from ganfast.commands.bench_setting import setting_flags, setting_of, use_threads
from ganfast.commands.parsing import parser_for
from ganfast.errors import InputError


def model(args: list[str]) -> None:
    parser = parser_for(
        "ganfast bench model",
        "What an iteration should take by its FLOPs, bytes, launches and gradients sent, and what bounds it; --check measures it",
    )
    parser.add_argument("name", nargs="?", default="", metavar="PRESET", help="or --all-presets")
    setting_flags(parser, preset=False)
    parser.add_argument(
        "--all-presets", action="store_true", help="a table: what bounds every preset on --gpu and on --gpus of them"
    )
    parser.add_argument(
        "--gpu", default="h200", help="h100, h200, b200, a100, l40s, 4090 by their data sheets, or here: measured now"
    )
    parser.add_argument("--gpus", type=int, default=1, help="that share the batch (default 1)")
    parser.add_argument("--eager", action="store_true", help="launched by the host, not replayed from CUDA graphs")
    parser.add_argument("--check", action="store_true", help="predict and measure the phases on this machine's CPU")
    parser.add_argument("--out", default="", help="folder for the records of --check")
    given = parser.parse_args(args)
    from ganfast.presets import PRESETS

    if bool(given.name) == given.all_presets:
        raise InputError("give a preset, as in ganfast bench model wgan-gp, or --all-presets")
    if given.out and not given.check:
        raise InputError("--out is for the records of --check; give both, or neither")
    given.preset = given.name or "wgan-gp"
    setting = setting_of(given)
    settings = [replace(setting, preset=name) for name in PRESETS] if given.all_presets else [setting]
    use_threads(given.threads)
    from ganfast.bench import model as costs

    if given.check:
        from ganfast.bench.records import write

        for one in settings:
            record = costs.check(one, given.rounds)
            print(costs.checked(record), flush=True)
            if given.out:
                print(f"wrote {write(record, Path(given.out))}", flush=True)
        return
    if given.gpu == "here":
        machine = costs.here(setting)
    else:
        precision = "bf16" if given.precision == "auto" else given.precision
        settings = [replace(one, precision=precision, width=one.width or 64) for one in settings]
        machine = costs.gpu(given.gpu, precision, not given.eager)
    if given.all_presets:
        print(costs.bounds_table(settings, [(machine, n) for n in sorted({1, given.gpus})]))
    else:
        print(costs.table(costs.count(settings[0], given.gpus, machine.name == "cpu"), machine, given.gpus))
