"""The command line: parse, call the library, turn errors into one sentence and an exit code.

Exit codes: 0 done, 1 failed while running, 2 bad input, 130 and 143 ended by Ctrl-C and SIGTERM after saving.
Nothing here imports torch before a command needs it.
"""

import argparse
import io
import json
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from dataclasses import replace
from difflib import get_close_matches
from itertools import dropwhile, takewhile
from pathlib import Path
from typing import Any, TypeVar

from ganfast.errors import InputError, RunError

HELP = """ganfast: train generative adversarial networks fast, and draw from them.

  ganfast train                                   train wgan-gp on embedded handwritten digits
  ganfast train wgan-gp --data mnist              any preset on any data: mnist, celeba, a folder, a zip, an array
  ganfast train --out runs/wgan-gp-mnist          go on with a run
  ganfast sample runs/wgan-gp-digits -n 64 --seed 7 --psi 0.7 --out grid.png

commands:
  train     train or resume a run             ganfast train [PRESET] --help
  sample    draw pictures from a run          ganfast sample --help
  presets   the recipes, and one in full      ganfast presets, ganfast presets show wgan-gp --data mnist
  engines   how the critic is computed        ganfast engines wgan-gp --data mnist
  data      info, pack, preview, fetch        ganfast data --help
  env       versions and devices              ganfast env, ganfast env --json
"""

_DATA_HELP = """ganfast data: look at, prepare and fetch pictures.

  ganfast data info mnist                         what it is recognised as
  ganfast data pack celeba --size 64              prepare now what training would prepare on first use
  ganfast data preview faces.zip --out look.png   a sheet of pictures as training will see them
  ganfast data fetch mnist                        download, with checksums

options: ganfast data info|pack|preview|fetch --help
"""

T = TypeVar("T")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    commands: dict[str, Callable[[list[str]], None]] = {
        "train": _train, "sample": _sample, "presets": _presets, "engines": _engines, "data": _data, "env": _env,
    }  # fmt: skip
    if not args or args[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if args[0] == "--version":
        from ganfast import __version__

        print(__version__)
        return 0
    try:
        if args[0] not in commands:
            raise InputError(f"unknown command {args[0]!r}{_meant(args[0], commands)}; see ganfast --help")
        commands[args[0]](args[1:])
    except InputError as error:
        return _fail(error, 2)
    except RunError as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        return 130
    except SystemExit as leave:
        return leave.code if isinstance(leave.code, int) else 0
    except BrokenPipeError:  # `ganfast presets | head`
        sys.stderr.close()
        return 0
    except OSError as error:  # a full disk, a folder that may not be written
        return _fail(RunError(f"{error.filename or args[0]}: {error.strerror or error}"), 1)
    return 0


def _fail(error: Exception, code: int) -> int:
    print(f"ganfast: {' '.join(str(error).split())}", file=sys.stderr)
    return code


def _meant(word: str, known: Any) -> str:
    close = get_close_matches(word, list(known), 1, cutoff=0.5)
    return f": did you mean {close[0]}?" if close else f": expected one of {', '.join(known)}"


def _parse(base: T, args: list[str], prog: str, description: str) -> T:
    """A dataclass with flags laid over it by tyro, whose boxed errors become one sentence."""
    import tyro

    said = io.StringIO()
    try:
        with redirect_stderr(said):
            return tyro.cli(type(base), prog=prog, args=args, description=description, use_underscores=False, default=base)
    except SystemExit as leave:
        if leave.code:
            raise InputError(_one_sentence(said.getvalue(), prog)) from None
        raise


def _one_sentence(box: str, prog: str) -> str:
    """tyro's message without its frame, which is drawn or ASCII: what stands before the first rule, and what it proposes."""
    rows = [row.strip(" │") for row in box.splitlines()]
    rows = [row for row in rows if row][1:]  # the first is a title
    body = list(dropwhile(_is_rule, rows))
    text = " ".join(takewhile(lambda row: not _is_rule(row), body)).rstrip(".")
    text = re.sub(r"^Error parsing \w+: ", "", text)
    text = re.sub(r"^Error parsing (\S+): .*int\(\) with base 10: (.*)$", r"\1 is \2; expected a whole number", text)
    text = re.sub(r"^Error parsing (\S+): could not convert string to float: (.*)$", r"\1 is \2; expected a number", text)
    text = re.sub(r"^Missing value for argument '(\S+)'.*$", r"\1 needs a value", text)
    proposals = re.findall(r"(?:Perhaps you meant|Arguments similar to \S+): (--[\w.-]+)", " ".join(rows))
    hint = f"; did you mean {', '.join(proposals)}?" if proposals else ""
    return f"{text}{hint} (see {prog} --help)"


def _is_rule(row: str) -> bool:
    return set(row) <= set("─-╰╯")


def _train(args: list[str]) -> None:
    config, found = _configured(args, "train", "Train", _TRAIN_FLAGS, ("--dry-run", "--quiet"))
    if found.dry_run:
        from ganfast.plan import dry_run_report, make_plan

        print(dry_run_report(make_plan(config)))
        return
    from ganfast.training import Interrupted, train

    try:
        train(config, quiet=found.quiet)
    except Interrupted as interrupted:
        raise SystemExit(interrupted.exit_code) from None


def _engines(args: list[str]) -> None:
    config, _ = _configured(args, "engines", "How the critic's gradients are computed in", "Nothing is trained.", ())
    from ganfast.engine_report import engines_report
    from ganfast.plan import make_plan

    print(engines_report(make_plan(config)))


_TRAIN_FLAGS = "Also: --dry-run (print the resolved config and what it costs), --quiet. An existing run directory is resumed."


def _configured(args: list[str], command: str, verb: str, closing: str, switches: tuple[str, ...]) -> tuple[Any, Any]:
    """The config that preset, file and flags make, and the command's own switches, which belong to no config."""
    from ganfast.config import Config
    from ganfast.presets import PRESETS

    early = _Parser(prog=f"ganfast {command}", add_help=False, allow_abbrev=False)
    for flag in ("--preset", "--config", "--data", "--out"):
        early.add_argument(flag)
    for switch in switches:
        early.add_argument(switch, action="store_true")
    preset = args.pop(0) if args and not args[0].startswith("-") else None
    found, _ = early.parse_known_args(args)
    if preset and found.preset not in (None, preset):
        raise InputError(f"two presets, {preset} and --preset {found.preset}: give one")
    preset = preset or found.preset
    out = found.out
    if preset and preset not in PRESETS and (Path(preset) / "config.yaml").exists():  # ganfast train runs/digits
        preset, out = None, preset
    rest = _without(args, ("--preset", "--config"), switches)
    base = _base_config(preset, found.config, found.data, out)
    if out:
        base = replace(base, out=out)

    description = (
        f"{verb} preset {base.preset} on {base.data}: the defaults below are its values. --config FILE (YAML) gives values "
        f"between preset and flags. {closing}"
    )
    config: Config = _parse(base, rest, f"ganfast {command} {base.preset}", description)
    return config, found


def _base_config(preset: str | None, file: str | None, data: str | None, out: str | None) -> Any:
    """Preset, then config file; a run that is there already, of that preset on that data, is its own base."""
    from ganfast import configfile
    from ganfast.config import run_folder
    from ganfast.presets import preset_config

    if file:
        mapping = configfile.read_mapping(Path(file))
        name = preset or str(mapping.pop("preset", "wgan-gp"))
        mapping.pop("preset", None)
        base = preset_config(name, data or str(mapping.get("data", "digits")))
        return configfile.overlay(base, mapping, file)
    if preset is None and out and (Path(out) / "config.yaml").exists():
        return configfile.read(Path(out) / "config.yaml")
    base = preset_config(preset or "wgan-gp", data or "digits")
    there = run_folder(replace(base, out=out or "")) / "config.yaml"
    if there.exists():  # its values, should the preset's have changed since
        run = configfile.read(there)
        if (run.preset, run.data) == (base.preset, base.data):
            return run
    return base


def _without(args: list[str], valued: tuple[str, ...], switches: tuple[str, ...]) -> list[str]:
    kept, skip = [], False
    for arg in args:
        if skip or arg in valued:
            skip = not skip
        elif arg not in switches and not arg.startswith(tuple(f"{flag}=" for flag in valued)):
            kept.append(arg)
    return kept


def _sample(args: list[str]) -> None:
    parser = _parser(
        "ganfast sample", "Draw pictures from a run. Picture (seed, index) is the same however many are drawn with it."
    )
    parser.add_argument("run", help="run directory")
    parser.add_argument("-n", type=int, default=64, help="how many pictures; with --interpolate how many rows (default 64)")
    parser.add_argument("--seed", type=int, default=0, help="names the stream of latents (default 0)")
    parser.add_argument("--first", type=int, default=0, help="index of the first picture (default 0)")
    parser.add_argument("--labels", default="", help="classes by number or name, used in turn: 3 or 0,1,2; default: at random")
    parser.add_argument("--balanced", action="store_true", help="every class equally often, in turn")
    parser.add_argument(
        "--psi", type=float, default=1.0, help="truncation: 1 as trained, less is more typical, 0 one picture; 0 to 2"
    )
    parser.add_argument(
        "--interpolate", type=int, default=0, metavar="STEPS", help="rows of STEPS pictures from one latent to the next"
    )
    parser.add_argument(
        "--out",
        default="",
        help="FILE.png: one sheet; FILE.npz: arrays; else a folder of PNGs (default a sheet in the run)",
    )
    parser.add_argument("--grid", default="", metavar="FILE.png", help="also write one sheet")
    parser.add_argument("--columns", type=int, default=0, help="of a sheet; default square, or one a class")
    parser.add_argument("--checkpoint", default="", help="by images shown, as its directory is named; default the newest")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    given = parser.parse_args(args)
    from ganfast.sampling import Request, sample_to_files

    for path in sample_to_files(Request(**vars(given))):
        print(path)


def _presets(args: list[str]) -> None:
    from ganfast.presets import PRESETS, preset_config

    if args and args[0] == "show":
        from ganfast.configfile import to_yaml

        parser = _parser("ganfast presets show", "A preset in full, as a config file")
        parser.add_argument("preset")
        parser.add_argument("--data", default="digits", help="the data set it is for")
        given = parser.parse_args(args[1:])
        print(to_yaml(preset_config(given.preset, given.data)), end="")
        return
    _parser("ganfast presets", "List the presets; `ganfast presets show NAME` prints one as YAML").parse_args(args)
    for preset in PRESETS.values():
        print(f"{preset.name:9}{preset.line:55}{preset.paper}")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise InputError(f"{message} (see {self.prog} --help)")


def _parser(prog: str, description: str) -> _Parser:
    return _Parser(prog=prog, description=description, allow_abbrev=False)


def _data(args: list[str]) -> None:
    verbs = ("info", "pack", "preview", "fetch")
    if not args or args[0] in ("-h", "--help"):
        print(_DATA_HELP, end="")
        return
    verb = args[0]
    if verb not in verbs:
        raise InputError(f"unknown command data {verb!r}{_meant(verb, verbs)}")
    parser = _parser(f"ganfast data {verb}", "See ganfast data --help for examples")
    parser.add_argument("data", help="name or path")
    parser.add_argument("--data-root", default=None, help="where names are looked up first; default $GANFAST_DATA, then the cache")
    if verb != "fetch":
        parser.add_argument("--size", type=int, default=0, help="side in pixels; 0 = the data's own")
        parser.add_argument("--channels", type=int, default=0, help="1 grey, 3 colour, 0 the data's own")
        parser.add_argument("--attributes", nargs="*", default=[], help="celeba: attributes whose combinations are the classes")
        parser.add_argument("--split", default="train", help="train, test, val or all")
    if verb == "preview":
        parser.add_argument("--out", default="preview.png", help="PNG to write")
        parser.add_argument("-n", type=int, default=64, help="pictures on the sheet")
    given = parser.parse_args(args[1:])
    from ganfast.data.progress import progress_bar

    if verb == "fetch":
        from ganfast.data.fetch import fetch

        with progress_bar() as progress:
            print(fetch(given.data, root=given.data_root, progress=progress))
        return
    from ganfast.data import open_data, recognise

    if verb == "info" and not (given.size or given.channels or given.attributes):
        print(recognise(given.data, given.data_root).describe(given.split))
        return
    with progress_bar() as progress:
        pack = open_data(
            given.data, size=given.size, channels=given.channels, attributes=given.attributes, split=given.split,
            root=given.data_root, progress=progress,
        )  # fmt: skip
    if verb == "preview":
        from ganfast.data.pack import pack_preview
        from ganfast.images import comfortable_scale, grid, save_png

        sheet = grid(pack_preview(pack, given.n))
        try:
            save_png(sheet, given.out, comfortable_scale(pack.info.size))
        except OSError as error:
            raise InputError(f"{given.out} cannot be written: {error.strerror or error}") from error
        print(given.out)
        return
    info = pack.info
    print(info.recognised)
    print(f"{info.count:,} pictures {info.size}x{info.size}x{info.channels}, {info.preparation}")
    if pack.labels is not None:
        import numpy as np

        counts = np.bincount(np.asarray(pack.labels), minlength=len(info.classes))
        print(
            "classes: " + ", ".join(f"{i} = {name} ({n:,})" for i, (name, n) in enumerate(zip(info.classes, counts, strict=True)))
        )


def _env(args: list[str]) -> None:
    parser = _parser("ganfast env", "Versions and devices: what a bug report or a benchmark record needs")
    parser.add_argument("--json", action="store_true", help="as one JSON object")
    given = parser.parse_args(args)
    from ganfast.environment import environment

    facts = environment()
    if given.json:
        print(json.dumps(facts, indent=1))
        return
    for name, value in facts.items():
        print(f"{name:16}{value if value is not None else '-'}")
