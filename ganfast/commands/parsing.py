"""What commands parse with: argparse and tyro, whose complaints become one sentence."""

import argparse
import io
import re
from contextlib import redirect_stderr
from difflib import get_close_matches
from itertools import dropwhile, takewhile
from typing import Any, TypeVar

from ganfast.errors import InputError

T = TypeVar("T")


class Parser(argparse.ArgumentParser):
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

    said = io.StringIO()
    try:
        with redirect_stderr(said):
            return tyro.cli(
                type(base),
                prog=prog,
                args=args,
                description=description,
                use_underscores=False,
                default=base,
            )
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
    text = re.sub(
        r"^Error parsing (\S+): .*int\(\) with base 10: (.*)$",
        r"\1 is \2; expected a whole number",
        text,
    )
    text = re.sub(
        r"^Error parsing (\S+): could not convert string to float: (.*)$",
        r"\1 is \2; expected a number",
        text,
    )
    text = re.sub(r"^Missing value for argument '(\S+)'.*$", r"\1 needs a value", text)
    proposals = re.findall(
        r"(?:Perhaps you meant|Arguments similar to \S+): (--[\w.-]+)", " ".join(rows)
    )
    hint = f"; did you mean {', '.join(proposals)}?" if proposals else ""
    return f"{text}{hint} (see {prog} --help)"


def _is_rule(row: str) -> bool:
    return set(row) <= set("─-╰╯")
