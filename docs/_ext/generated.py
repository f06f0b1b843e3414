"""Reference pages from the code, made when the site is built.

`<!-- generated: NAME -->` in a page becomes what the function NAME below returns.
"""

import ast
import io
import os
import re
import tokenize
from contextlib import redirect_stdout
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from ganfast import config as module
from ganfast.cli import COMMANDS, HELP, main
from ganfast.config import Config
from ganfast.fields import Schedule, flatten
from ganfast.presets import PRESETS, preset_config


def config() -> str:
    """A table of fields for `Config` and each group in it."""
    groups = [("", Config), *((f.name, f.type) for f in fields(Config) if is_dataclass(f.type))]
    return "\n\n".join(_table(name, group) for name, group in groups)


def _table(prefix: str, group: Any) -> str:
    explained, hints = comments(group), get_type_hints(group)
    lines = [f"## {prefix or 'The run'}", "", _plain(group.__doc__), ""]
    lines += ["| flag | default | values | meaning |", "|---|---|---|---|"]
    for field in fields(group):
        if not is_dataclass(field.type):
            flag = "--" + ".".join(filter(None, (prefix, field.name))).replace("_", "-")
            values, meaning = _values(hints[field.name]), _plain(explained[field.name])
            cells = f"`{flag}`", f"`{field.default!r}`", values, meaning
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _plain(text: str) -> str:
    """Prose of the code, in which <, |, * and $ mean themselves."""
    lines = (line.strip() for line in text.strip().splitlines())
    return re.sub(r"([<>|*$])", r"\\\1", "\n".join(lines))


def _values(hint: Any) -> str:
    choices = get_args(hint)
    if choices and all(isinstance(choice, str) for choice in choices):
        return ", ".join(choices)
    if hint == float | Schedule:
        return "float or schedule"
    return "words" if choices else hint.__name__


def comments(group: Any) -> dict[str, str]:
    """What the source says of each field: the comment behind it, or the comments above it."""
    source = Path(module.__file__).read_text()
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    behind = {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}
    lines = source.splitlines()
    (body,) = (n.body for n in ast.parse(source).body if getattr(n, "name", "") == group.__name__)
    explained = {}
    for node in body:
        if isinstance(node, ast.AnnAssign):
            first = node.lineno
            while lines[first - 2].lstrip().startswith("#"):
                first -= 1
            spoken = [behind[n] for n in range(first, (node.end_lineno or 0) + 1) if n in behind]
            explained[ast.unparse(node.target)] = " ".join(spoken)
    return explained


def presets() -> str:
    """For each preset and kind of data, what differs from the defaults of `Config`."""
    defaults, parts = flatten(Config()), []
    for name, preset in PRESETS.items():
        parts.append(f"## {name}\n\n{preset.line} ({preset.paper}).\n")
        for data in ("digits", "mnist", "celeba", "photos"):
            values = flatten(preset_config(name, data))
            changed = {k: v for k, v in values.items() if v != defaults[k]}
            shown = [f"`{k}` {v}" for k, v in changed.items() if k not in ("preset", "data")]
            parts.append(f"- on `{data}`: {', '.join(shown)}")
        parts.append("")
    return "\n".join(parts)


def commands() -> str:
    """The --help of every command."""
    parts = [f"```text\n{HELP}```"]
    for command in COMMANDS:
        shown = _help(command)
        parts.append(f"## ganfast {command}\n\n```text\n{shown}```")
        subs = dict.fromkeys(re.findall(rf"^  ganfast {command} (\w+) ", shown, re.MULTILINE))
        if not shown.startswith("usage:"):
            for sub in subs:
                parts.append(f"### ganfast {command} {sub}\n\n```text\n{_help(command, sub)}```")
    return "\n\n".join(parts)


def _help(*words: str) -> str:
    os.environ |= {"COLUMNS": "100", "NO_COLOR": "1"}
    out = io.StringIO()
    with redirect_stdout(out):
        main([*words, "--help"])
    return out.getvalue()


def setup(app: Any) -> dict[str, bool]:
    def fill(_: Any, __: str, source: list[str]) -> None:
        source[0] = re.sub(r"<!-- generated: (\w+) -->", lambda m: globals()[m[1]](), source[0])

    def plain(_: Any, __: str, ___: str, ____: Any, _____: Any, lines: list[str]) -> None:
        """Docstrings are plain text: |g| is a norm there, and * a product, no markup."""
        for number, line in enumerate(lines):
            parts = re.split("(`+[^`]+`+)", line)
            parts[::2] = [re.sub(r"([|*])", r"\\\1", text) for text in parts[::2]]
            lines[number] = "".join(parts)

    app.connect("source-read", fill)
    app.connect("autodoc-process-docstring", plain, priority=400)
    return {"parallel_read_safe": True}
