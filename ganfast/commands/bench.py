"""ganfast bench: measurements."""

from ganfast.commands.parsing import meant
from ganfast.errors import InputError

HELP = """ganfast bench: how fast, here.

  ganfast bench sample digits.bundle        latencies of a bundle on every back end that runs here

Each has --help.
"""


def bench(args: list[str]) -> None:
    from ganfast.commands.bench_sample import sample

    commands = {"sample": sample}
    if not args or args[0] in ("-h", "--help"):
        print(HELP, end="")
        return
    if args[0] not in commands:
        raise InputError(f"unknown benchmark {args[0]!r}{meant(args[0], commands)}; see ganfast bench --help")
    commands[args[0]](args[1:])
