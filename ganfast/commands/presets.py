"""ganfast presets."""

from ganfast.commands.parsing import parser_for


def presets(args: list[str]) -> None:
    from ganfast.presets import PRESETS, preset_config

    if args and args[0] == "show":
        from ganfast.configfile import to_yaml

        parser = parser_for("ganfast presets show", "A preset in full, as a config file")
        parser.add_argument("preset")
        parser.flag("--data", "digits", "the data set it is for")
        arguments = parser.parse_args(args[1:])
        print(to_yaml(preset_config(arguments.preset, arguments.data)), end="")
        return
    parser_for(
        "ganfast presets", "List the presets; `ganfast presets show NAME` prints one as YAML"
    ).parse_args(args)
    for preset in PRESETS.values():
        print(f"{preset.name:9}{preset.line:55}{preset.paper}")
