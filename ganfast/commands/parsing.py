"""What commands parse with: argparse and tyro, whose complaints become one sentence."""

import argparse
import io
import re
from contextlib import redirect_stderr
from difflib import get_close_matches
from functools import partial
from itertools import dropwhile, takewhile
from typing import Any, TypeVar

from ganfast.errors import InputError

T = TypeVar("T")

# What --help says of flags that several commands have.
DATA_ROOT = "where names are looked up first; default $GANFAST_DATA, then the cache"
ATTRIBUTES = "celeba: attributes whose combinations are the classes"
TRANSPOSE = "make rows of the pictures columns: EMNIST is stored lying"
DEVICE = "auto, cpu, cuda, cuda:1"


class Parser(argparse.ArgumentParser):
    def flag(self, name: str, default: Any, help: str, **options: Any) -> None:
        """An option whose type is that of its default; False makes a switch."""
        if default is False:
            self.add_argument(name, action="store_true", help=help)
            return
        if isinstance(default, int | float):
            options.setdefault("type", type(default))
        self.add_argument(name, default=default, help=help, **options)

    def error(self, message: str) -> Any:
        raise InputError(f"{message} (see {self.prog} --help)")


def parser_for(prog: str, description: str) -> Parser:
    return Parser(prog=prog, description=description, allow_abbrev=False)


def meant(word: str, known: Any) -> str:
    close = get_close_matches(word, list(known), 1, cutoff=0.5)
    return f": did you mean {close[0]}?" if close else f": expected one of {', '.join(known)}"


def overlaid(base: T, args: list[str], prog: str, description: str) -> T:
    """A dataclass with flags laid over it by tyro, whose boxed errors become one sentence."""
    import tyro

    output = io.StringIO()
    known = tyro.constructors.ConstructorRegistry()
    known.primitive_rule(_scheduled)
    cli = partial(
        tyro.cli, prog=prog, description=description, use_underscores=False, registry=known
    )
    try:
        with redirect_stderr(output):
            return cli(type(base), args=args, default=base)
    except SystemExit as leave:
        if leave.code:
            raise InputError(_one_sentence(output.getvalue(), prog)) from None
        raise


def _scheduled(info: Any) -> Any:
    """How tyro reads and shows a field that may have a schedule."""
    from tyro.constructors import PrimitiveConstructorSpec

    from ganfast.configfile import scheduled
    from ganfast.fields import Schedule

    if info.type != float | Schedule:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="FLOAT|SCHEDULE",
        instance_from_str=lambda words: scheduled(words[0]),
        is_instance=lambda value: isinstance(value, int | float | Schedule),
        str_from_instance=lambda value: [str(value)],
    )


def _one_sentence(box: str, prog: str) -> str:
    """tyro's message before its first rule, and its proposals, without the frame around them.

    The frame is made of box-drawing characters, or of ASCII where the terminal has no others.
    """
    rows = [row.strip(" │") for row in box.splitlines()]
    rows = [row for row in rows if row][1:]  # the first is a title
    body = list(dropwhile(_is_rule, rows))
    text = " ".join(takewhile(lambda row: not _is_rule(row), body)).rstrip(".")
    for pattern, sentence in _REWORDED.items():
        text = re.sub(pattern, sentence, text)
    lead = r"(?:Perhaps you meant|Arguments similar to \S+)"
    proposals = re.findall(rf"{lead}: (--[\w.-]+)", " ".join(rows))
    hint = f"; did you mean {', '.join(proposals)}?" if proposals else ""
    return f"{text}{hint} (see {prog} --help)"


_REWORDED = {  # of tyro's messages, in this order
    r"^Error parsing \w+: ": "",
    r"^Error parsing --\S+: (?=.*; expected)": "",
    r"^Error parsing (\S+): .*int\(\) with base 10: (.*)$": r"\1 is \2; expected a whole number",
    r"^Error parsing (\S+): could not convert string to float: (.*)$": (
        r"\1 is \2; expected a number"
    ),
    r"^Missing value for argument '(\S+)'.*$": r"\1 needs a value",
}


def _is_rule(row: str) -> bool:
    return set(row) <= set("─-╰╯")
