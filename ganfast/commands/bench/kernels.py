"""ganfast bench kernels."""

from pathlib import Path

from ganfast.commands.bench.setting import use_threads
from ganfast.commands.parsing import meant, parser_for
from ganfast.errors import InputError, RunError

KERNELS = (
    "bias_act",
    "bias_act_delta",
    "bias_act_tangent",
    "gradient_penalty",
    "to_uint8",
    "latents",
    "adam_ema",
)


def kernels(args: list[str]) -> None:
    parser = parser_for(
        "ganfast bench kernels",
        "Every kernel against eager torch and torch.compile, cold and hot cache, against the bytes that must move at the rate of a "
        "copy. On a CPU, where no kernel runs, their definitions.",
    )
    parser.add_argument(
        "names", nargs="*", metavar="KERNEL", help=f"some of {', '.join(KERNELS)}; default all"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    parser.add_argument("--threads", type=int, default=0, help="of a CPU; 0 = all")
    parser.add_argument(
        "--rounds",
        type=int,
        default=50,
        help="samples of each variant, taken in turns (default 50)",
    )
    parser.add_argument(
        "--no-compile",
        action="store_true",
        help="leave torch.compile out, whose compiling takes minutes on a CPU",
    )
    parser.add_argument("--out", default="", help="folder for the dated JSON record")
    given = parser.parse_args(args)
    wrong = [name for name in given.names if name not in KERNELS]
    if wrong:
        raise InputError(
            f"kernel {wrong[0]!r} is unknown{meant(wrong[0], KERNELS)}; expected some of {', '.join(KERNELS)}"
        )
    if given.rounds < 5 or given.threads < 0:
        raise InputError(
            f"rounds is {given.rounds}, threads {given.threads}; expected 5 or more, and 0 or more"
        )
    use_threads(given.threads)
    from ganfast.bench import kernels as bench
    from ganfast.bench.records import keeper, write
    from ganfast.device import find_device
    from ganfast.log import say

    out = Path(given.out) if given.out else None
    record = bench.measure(
        given.names, find_device(given.device), given.rounds, not given.no_compile, say, keeper(out)
    )
    if out:
        print(f"wrote {write(record, out)}")
    if record["failed"]:
        raise RunError(
            f"{len(record['failed'])} cases failed: {'; '.join(f'{k}: {v}' for k, v in record['failed'].items())}"
        )
