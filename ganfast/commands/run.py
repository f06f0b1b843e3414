"""ganfast run: check."""

import json

from ganfast.commands.parsing import meant, parser_for
from ganfast.config import require_run
from ganfast.errors import InputError, RunError

HELP = """ganfast run: look at a run directory. Nothing in it is changed.

  ganfast run check runs/digits           every byte of every checkpoint, the log, who trains it
                                          now, what can be resumed
  ganfast run check runs/digits --json    the same as one JSON object

exit codes: 0 sound, 1 damaged (it says what can still be resumed), 2 not a run
"""


def run(args: list[str]) -> None:
    if not args or args[0] in ("-h", "--help"):
        print(HELP, end="")
        return
    if args[0] != "check":
        raise InputError(
            f"unknown command run {args[0]!r}{meant(args[0], ['check'])}; see ganfast run --help"
        )
    parser = parser_for(
        "ganfast run check",
        "Verify a run directory and say what can be resumed; see ganfast run --help",
    )
    parser.add_argument("run", help="run directory")
    parser.flag("--json", False, "as one JSON object")
    arguments = parser.parse_args(args[1:])
    require_run(arguments.run)
    from ganfast.runs.check import check_run

    report = check_run(arguments.run)
    print(json.dumps(report.to_json(), indent=1) if arguments.json else report.describe())
    if problems := report.problems:
        more = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise RunError(f"{arguments.run} is damaged: {problems[0]}{more}; {report.way_out()}")
