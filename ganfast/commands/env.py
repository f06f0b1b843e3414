"""ganfast env."""

import json

from ganfast.commands.parsing import parser_for


def env(args: list[str]) -> None:
    parser = parser_for(
        "ganfast env", "Versions and devices: what a bug report or a benchmark record needs"
    )
    parser.flag("--json", False, "as one JSON object")
    arguments = parser.parse_args(args)
    from ganfast.environment import environment

    facts = environment()
    if arguments.json:
        print(json.dumps(facts, indent=1))
        return
    for name, value in facts.items():
        print(f"{name:16}{value if value is not None else '-'}")
