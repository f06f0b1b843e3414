"""ganfast train and ganfast engines, with the config that preset, file and flags make."""

import math
import os
import signal
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from ganfast.commands.parsing import Parser, overlaid
from ganfast.config import Config, run_folder
from ganfast.errors import InputError
from ganfast.fields import parts_of
from ganfast.host import usable_threads
from ganfast.log import say


def train(args: list[str]) -> None:
    began, valued = time.monotonic(), ("--checkpoint", "--fork", "--minutes", "--gpus")
    given = list(args)
    config, options = configured(args, "train", "Train", _FLAGS, _SWITCHES, valued)
    if options.minutes and (options.gpus or "TORCHELASTIC_RUN_ID" in os.environ):
        raise InputError("--minutes plans on one process: give --kimg to several")
    ranks = _ranks(options.gpus, config)
    parent = ""
    for flag, value in (("--fork", options.fork), ("--checkpoint", options.checkpoint)):
        if value == "":
            raise InputError(
                f"{flag} is empty; expected a new directory for --fork, "
                "images shown or best for --checkpoint"
            )
    if options.fork:
        parent, config = str(run_folder(config)), replace(config, out=options.fork)
    if options.minutes:
        config = _planned(config, float(options.minutes), began, options.quiet)
    if options.dry_run:
        from ganfast.runs.resume import beginning
        from ganfast.training.plan import dry_run_report, make_plan

        plan = make_plan(config, parent=parent)
        print(dry_run_report(plan))
        start = beginning(plan, parent, options.checkpoint or "", options.force)
        print(f"# start       {start}")
        return
    if ranks:
        _become_torchrun(ranks, _without(given, ("--gpus",), ()))
    from ganfast.runs.train import Interrupted, train

    try:
        train(config, options.quiet, options.checkpoint or "", parent, options.force)
    except Interrupted as interrupted:
        raise SystemExit(interrupted.exit_code) from None


def _ranks(gpus: str | None, config: Config) -> int:
    """How many ranks --gpus asks for, 0 where it is not given.

    Raises:
        InputError: no number above 0, no such GPUs here, or a batch without so many equal parts.
    """
    if gpus is None:
        return 0
    if not gpus.isdecimal() or not int(gpus):
        raise InputError(f"--gpus is {gpus!r}; expected a whole number above 0")
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise InputError("torchrun started this process already: leave --gpus out")
    count = int(gpus)
    if config.device != "cpu":  # with it, the ranks are processes on the CPU
        import torch

        if count > (here := torch.cuda.device_count()):
            raise InputError(
                f"--gpus is {count}, but torch {torch.__version__} sees {here} CUDA devices here"
            )
    parts_of(config.batch, config.accumulate, count)
    return count


def _become_torchrun(ranks: int, args: list[str]) -> None:
    """Go on as torchrun, which starts the ranks of this machine and ends them together."""
    # torchrun would give each rank one thread, and say so at length.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_threads() // ranks)))
    hang_up = getattr(signal, "SIGHUP", None)  # not on Windows
    if hang_up and signal.getsignal(hang_up) is signal.SIG_IGN:  # `nohup`
        # By the environment, which a torchrun without the option does not read.
        os.environ.setdefault("PET_SIGNALS_TO_HANDLE", "SIGTERM,SIGINT,SIGQUIT")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    here = ["--nproc-per-node", str(ranks), "-m", "ganfast", "train"]
    os.execv(sys.executable, [*torchrun, *here, *args])


def _planned(config: Any, minutes: float, began: float, quiet: bool) -> Any:
    """A run that is there has its plan in its config, whatever the minutes are now."""
    folder = run_folder(config)
    if (folder / "config.yaml").exists():
        if not quiet:
            say(f"{folder} goes on to the {config.kimg:g} kimg of its config: --minutes is ignored")
        return config
    from ganfast.data.progress import progress_bar
    from ganfast.runs.budget import budgeted

    with nullcontext() if quiet else progress_bar() as packing:
        config, why = budgeted(config, minutes, began, packing)
    if not quiet:
        say(why)
    return config


def engines(args: list[str]) -> None:
    config, _ = configured(
        args, "engines", "How the critic's gradients are computed in", "Nothing is trained."
    )
    from ganfast.commands.engine_report import engines_report
    from ganfast.training.plan import make_plan

    print(engines_report(make_plan(config)))


_SWITCHES = ("--dry-run", "--quiet", "--force")
_FLAGS = (
    "Also: --dry-run (print the resolved config and what it costs), --quiet. "
    "An existing run directory is resumed, at its newest checkpoint or at --checkpoint N "
    "(images shown, or best; later ones are set aside). "
    "--fork NEWDIR begins a new run from there. "
    "What changes the mathematics of a run is refused unless --force. "
    "--minutes M, in the place of --kimg, plans a new run that ends in M minutes. "
    "--gpus N shares every batch among N GPUs of this machine, by torchrun."
)


def configured(
    args: list[str],
    command: str,
    verb: str,
    closing: str,
    switches: tuple[str, ...] = (),
    valued: tuple[str, ...] = (),
) -> tuple[Any, Any]:
    """The config that preset, file and flags make, and the command's own switches and options."""
    from ganfast.presets import PRESETS

    early = Parser(prog=f"ganfast {command}", add_help=False, allow_abbrev=False)
    for flag in ("--preset", "--config", "--data", "--data-root", "--out", *valued):
        early.add_argument(flag)
    for switch in switches:
        early.add_argument(switch, action="store_true")
    preset = args.pop(0) if args and not args[0].startswith("-") else None
    options, _ = early.parse_known_args(args)
    if preset and options.preset not in (None, preset):
        raise InputError(f"two presets, {preset} and --preset {options.preset}: give one")
    preset = preset or options.preset
    out = options.out
    # `ganfast train runs/digits` names a run in the preset's place
    if preset and preset not in PRESETS and (Path(preset) / "config.yaml").exists():
        preset, out = None, preset
    rest = _without(args, ("--preset", "--config", *valued), switches)
    minutes = _minutes(options, rest)
    base = _base_config(preset, options.config, options.data, out, minutes, options.data_root)
    if out:
        base = replace(base, out=out)

    description = (
        f"{verb} preset {base.preset} on {base.data}: the defaults below are its values. "
        f"--config FILE (YAML) gives values between preset and flags. {closing}"
    )
    config: Config = overlaid(base, rest, f"ganfast {command} {base.preset}", description)
    return config, options


def _minutes(options: Any, rest: list[str]) -> float:
    """Of --minutes, 0 where it is not given.

    Raises:
        InputError: no number above 0, or flags beside it that it excludes.
    """
    text = getattr(options, "minutes", None)
    if text is None:
        return 0.0
    try:
        minutes = float(text)
    except ValueError:
        minutes = 0.0
    if not (minutes > 0 and math.isfinite(minutes)):
        raise InputError(f"--minutes is {text!r}; expected a finite number above 0")
    if any(arg == "--kimg" or arg.startswith("--kimg=") for arg in rest):
        raise InputError("--minutes and --kimg both set the length of a run: give one")
    if options.fork:
        raise InputError("--minutes plans a new run, and --fork goes on with one: give --kimg")
    return minutes


def _base_config(
    preset: str | None,
    file: str | None,
    data: str | None,
    out: str | None,
    minutes: float = 0.0,
    root: str | None = None,
) -> Any:
    """Preset, then config file. An existing run of that preset on that data is its own base.

    With ``minutes`` the preset is chosen, where none is given, and the length left to be planned.
    """
    from ganfast import configfile
    from ganfast.presets import budget_config, preset_config

    def start(name: str | None, data: str, root: str | None) -> Any:
        if not minutes:
            return preset_config(name or "wgan-gp", data)
        from ganfast.data.lookup import recognise

        return budget_config(name or "", data, recognise(data, root).looked_at()[0], minutes)

    if file:
        mapping = configfile.read_mapping(Path(file))
        name = preset or mapping.pop("preset", None)
        mapping.pop("preset", None)
        if minutes and mapping.get("kimg"):
            raise InputError(f"--minutes and kimg in {file} both set the length of a run: give one")
        root = root or mapping.get("data_root")
        base = start(name and str(name), data or str(mapping.get("data", "digits")), root)
        return configfile.overlay(base, mapping, file)
    if preset is None and out and (Path(out) / "config.yaml").exists():
        return configfile.read(Path(out) / "config.yaml")
    base = start(preset, data or "digits", root)
    recorded = run_folder(replace(base, out=out or "")) / "config.yaml"
    if recorded.exists():  # a later version's preset may have other values than the run
        from ganfast.data.lookup import absolute

        run = configfile.read(recorded)
        same_data = absolute(run.data, run.data_root) == absolute(base.data, root)
        if run.preset == base.preset and same_data:
            return run
    return base


def _without(args: list[str], valued: tuple[str, ...], switches: tuple[str, ...]) -> list[str]:
    rest, skip = [], False
    for arg in args:
        if skip or arg in valued:
            skip = not skip
        elif arg not in switches and not arg.startswith(tuple(f"{flag}=" for flag in valued)):
            rest.append(arg)
    return rest
