"""ganfast bench kernels."""

from pathlib import Path

from ganfast.commands.bench.setting import use_threads
from ganfast.commands.parsing import DEVICE, meant, parser_for
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
        "Every kernel against eager torch and torch.compile, cold and hot cache, against the bytes "
        "that must move at the rate of a copy. On a CPU, where no kernel runs, their definitions.",
    )
    parser.add_argument(
        "names", nargs="*", metavar="KERNEL", help=f"some of {', '.join(KERNELS)}; default all"
    )
    parser.flag("--device", "auto", DEVICE)
    parser.flag("--threads", 0, "of a CPU; 0 = all")
    parser.flag("--rounds", 50, "samples of each variant, taken in turns (default 50)")
    parser.flag(
        "--no-compile", False, "leave torch.compile out, whose compiling takes minutes on a CPU"
    )
    parser.flag("--out", "", "folder for the dated JSON record")
    arguments = parser.parse_args(args)
    wrong = [name for name in arguments.names if name not in KERNELS]
    if wrong:
        raise InputError(
            f"kernel {wrong[0]!r} is unknown{meant(wrong[0], KERNELS)}; "
            f"expected some of {', '.join(KERNELS)}"
        )
    if arguments.rounds < 5 or arguments.threads < 0:
        raise InputError(
            f"rounds is {arguments.rounds}, threads {arguments.threads}; "
            "expected 5 or more, and 0 or more"
        )
    use_threads(arguments.threads)
    from ganfast.bench import kernels as bench
    from ganfast.bench.records import keeper, write
    from ganfast.device import find_device
    from ganfast.log import say

    out = Path(arguments.out) if arguments.out else None
    device, compiled = find_device(arguments.device), not arguments.no_compile
    record = bench.measure(arguments.names, device, arguments.rounds, compiled, say, keeper(out))
    if out:
        print(f"wrote {write(record, out)}")
    if failed := record["failed"]:
        reasons = "; ".join(f"{case}: {reason}" for case, reason in failed.items())
        raise RunError(f"{len(failed)} cases failed: {reasons}")
