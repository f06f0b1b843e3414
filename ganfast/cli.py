"""The command line: parse, call the library, turn errors into one sentence and an exit code.

Exit codes: 0 done, 1 failed while running, 2 bad input; 129, 130 and 143 ended by SIGHUP, Ctrl-C
and SIGTERM after saving. Nothing here imports torch before a command needs it.
"""

import io
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module

from ganfast.commands.parsing import meant
from ganfast.errors import InputError, RunError, is_mendable, is_out_of_memory
from ganfast.log import abandon, say

HELP = """ganfast: train generative adversarial networks fast, and draw from them.

  ganfast train                                   train wgan-gp on embedded handwritten digits
  ganfast train wgan-gp --data mnist              any preset, any data: mnist, celeba, folder, zip
  ganfast train --out runs/wgan-gp-mnist          go on with a run
  ganfast sample runs/wgan-gp-digits -n 64 --seed 7 --psi 0.7 --out grid.png

commands:
  train     train or resume a run           ganfast train [PRESET] --help
  run       check a run directory           ganfast run check RUN
  sample    draw from a run or a bundle     ganfast sample --help
  augment   a labelled set from classes     ganfast augment RUN --per-class 500 --out set/
  apply     pictures made from others       ganfast apply digits.bundle small/ --out large/
  eval      scores of runs or pictures      ganfast eval RUN --data mnist
  judge     what a run's critic says        ganfast judge RUN photos/ --maps maps/
  plot      curves of runs as PNG or SVG    ganfast plot RUN RUN --out curves.png
  export    a run's generator as a bundle   ganfast export RUN --out digits.bundle --precision fp16
  refit     a bundle with other weights     ganfast refit digits.bundle --from RUN --out new.bundle
  verify    a bundle's bytes and pictures   ganfast verify digits.bundle
  inspect   what a bundle says of itself    ganfast inspect digits.bundle
  lint      what a target cannot run        ganfast lint digits.bundle --target rtx
  presets   the recipes, and one in full    ganfast presets show wgan-gp --data mnist
  engines   how the critic is computed      ganfast engines wgan-gp --data mnist
  data      info, pack, preview, fetch      ganfast data --help
  bench     measurements that can be cited  ganfast bench --help
  env       versions and devices            ganfast env, ganfast env --json
"""


# Where a command lives: module:function, imported only to run it.
COMMANDS = {
    "train": "ganfast.commands.train:train",
    "sample": "ganfast.commands.sample:sample",
    "augment": "ganfast.commands.augment:augment",
    "apply": "ganfast.commands.apply:apply",
    "eval": "ganfast.commands.evaluate:evaluate",
    "judge": "ganfast.commands.judge:judge",
    "plot": "ganfast.commands.plot:plot",
    "export": "ganfast.commands.export:export",
    "refit": "ganfast.commands.export:refit",
    "verify": "ganfast.commands.export:verify",
    "inspect": "ganfast.commands.export:inspect",
    "lint": "ganfast.commands.export:lint",
    "bench": "ganfast.commands.bench:bench",
    "presets": "ganfast.commands.presets:presets",
    "engines": "ganfast.commands.train:engines",
    "data": "ganfast.commands.data:data",
    "run": "ganfast.commands.run:run",
    "env": "ganfast.commands.env:env",
}


# Modules that may be missing, by the package to install, where a checkout is run uninstalled.
PACKAGES = {
    "PIL": "Pillow",
    "yaml": "PyYAML",
    "sklearn": "scikit-learn",
    "torch": "torch",
    "numpy": "numpy",
    "safetensors": "safetensors",
    "tyro": "tyro",
    "rich": "rich",
    "tensorboard": "tensorboard",
    "torchmetrics": "torchmetrics",
    "matplotlib": "matplotlib",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code."""
    _prepare_streams()
    code = _run(list(sys.argv[1:] if argv is None else argv))
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:  # Python would fail on it when it exits
        abandon(sys.stdout)
        if not isinstance(error, BrokenPipeError):  # `ganfast presets | head`
            return _fail(f"standard output cannot be written: {error.strerror}", code or 2)
    return code


def _prepare_streams() -> None:
    """Let whatever is printed be printable, and no file take the place of a closed stream."""
    # A library that writes to stderr by its number would write into that file.
    while (handle := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(handle)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with suppress(OSError):  # its reader left already
                stream.reconfigure(errors="backslashreplace")


def _run(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if args[0] == "--version":
        from ganfast import __version__

        print(__version__)
        return 0
    try:
        if args[0] not in COMMANDS:
            raise InputError(
                f"unknown command {args[0]!r}{meant(args[0], COMMANDS)}; see ganfast --help"
            )
        module, function = COMMANDS[args[0]].split(":")
        command: Callable[[list[str]], None] = getattr(import_module(module), function)
        command(args[1:])
    except InputError as error:
        return _fail(error, 2)
    except RunError as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        return 130
    except SystemExit as leave:
        return leave.code if isinstance(leave.code, int) else 0
    except BrokenPipeError:  # of standard output, which `main` deals with
        return 0
    except ModuleNotFoundError as error:
        package = PACKAGES.get((error.name or "").partition(".")[0])
        if not package:
            raise
        message = f"`ganfast {args[0]}` needs {package}, which is not installed"
        return _fail(f"{message}: pip install {package}", 2)
    except OSError as error:  # a full disk, a folder that may not be written
        message = f"{error.filename or args[0]}: {error.strerror or error}"
        if is_mendable(error):
            return _fail(f"{message}; mend that, or choose another place", 2)
        return _fail(message, 1)
    except Exception as error:
        if not is_out_of_memory(error):
            raise  # a bug of ganfast
        return _fail(f"{args[0]} does not fit into memory: {str(error)[:200] or 'none is left'}", 2)
    return 0


def _fail(error: Exception | str, code: int) -> int:
    """Print one sentence, control characters escaped: file names from elsewhere may hold some."""
    words = " ".join(str(error).split())
    sentence = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in words)
    say(f"ganfast: {sentence}")
    return code
