"""Configs as YAML: a run's own record, and `--config` files. They need PyYAML only."""

import reprlib
from collections.abc import Mapping
from dataclasses import fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from ganfast import disk
from ganfast.config import Config
from ganfast.errors import InputError
from ganfast.fields import Schedule, flatten, is_group
from ganfast.outside import plain_file, reading

_EXPECTED = {  # type of a field -> what a message calls it
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    float | Schedule: "a number, or a schedule such as 2e-4,5e-5,20000",
    str: "text",
    tuple[str, ...]: "a list of names",
}


_LONGEST = 1 << 18  # bytes of a config; PyYAML reads so many in three seconds, a real one has 3,000
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80
_shown = _SHORT.repr  # a value, in a message that stays one sentence


class _Loader(yaml.SafeLoader):
    """YAML without aliases, which may hold themselves: a few lines would expand beyond memory."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            line = event.start_mark.line + 1
            raise yaml.YAMLError(f"line {line} has the alias *{event.anchor}: write the value out")
        return super().compose_node(parent, index)


def to_yaml(config: Config) -> str:
    """Every field, in the order of the dataclass."""
    return yaml.safe_dump(_plain(config), sort_keys=False, allow_unicode=True)


def _plain(value: Any) -> Any:
    if is_group(value):
        return {item.name: _plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Schedule):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def write(config: Config, path: Path) -> None:
    """Replace the file ``path``, which is never half written.

    Raises:
        OSError: it could not be written; the old file is untouched.
    """
    disk.replace_file(path, to_yaml(config).encode())


def read_mapping(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        InputError: no file, not YAML, or not a mapping.
    """
    # PyYAML lets Python's own errors through: impossible dates, numbers too long, levels too deep
    with reading(f"config {path}", problem="is not YAML"):
        loaded = yaml.load(plain_file(path, _LONGEST), _Loader)
    if not isinstance(loaded, dict):
        content = "nothing" if loaded is None else f"a {type(loaded).__name__}"
        raise InputError(
            f"config {path} holds {content}; expected fields and values, as in a run's config.yaml"
        )
    return loaded


def overlay(base: Config, changes: Mapping[str, Any], source: str) -> Config:
    """``base`` with the fields that ``changes`` names, nested mappings and dotted names alike.

    Raises:
        InputError: an unknown field (with the closest known one), or a value of the wrong type.
    """
    return _overlay(base, _nested(changes, source), source, "")


def _nested(changes: Mapping[str, Any], source: str) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for key, value in changes.items():
        head, _, rest = str(key).partition(".")
        if rest:
            value = {rest: value}
        if isinstance(value, Mapping):
            before = nested.get(head, {})
            if not isinstance(before, Mapping):
                raise InputError(
                    f"{head} in {source} is {_shown(before)}; expected a group of fields"
                )
            value = {**before, **_nested(value, source)}
        nested[head] = value
    return nested


def _overlay(base: Any, changes: Mapping[str, Any], source: str, prefix: str) -> Any:
    known = {item.name for item in fields(base)}
    new: dict[str, Any] = {}
    for key, value in changes.items():
        if key not in known:
            close = get_close_matches(key, known, 1, cutoff=0.5)
            hint = f"known here: {', '.join(sorted(known))}"
            if close:
                hint = f"did you mean {prefix}{close[0]}?"
            raise InputError(f"unknown field {prefix}{key[:80]} in {source}: {hint}")
        old = getattr(base, key)
        if is_group(old):
            if not isinstance(value, Mapping):
                raise InputError(
                    f"{prefix}{key} in {source} is {_shown(value)}; expected a group of fields"
                )
            new[key] = _overlay(old, value, source, f"{prefix}{key}.")
        else:
            new[key] = _convert(type(base), key, value, source, prefix)
    return replace(base, **new)


def _convert(cls: type, name: str, value: Any, source: str, prefix: str) -> Any:
    hint = get_type_hints(cls)[name]
    choices = get_args(hint) if get_origin(hint) is Literal else ()
    if choices and isinstance(value, bool):  # YAML reads a bare no, off or on as a bool
        words = ("on", "yes") if value else ("off", "no")
        value = next((word for word in words if word in choices), value)
    expected = f"one of {', '.join(choices)}" if choices else _EXPECTED[hint]
    wrong = InputError(f"{prefix}{name} in {source} is {_shown(value)}; expected {expected}")
    # never coerce into or from bool: bool("no") is True and float(True) is 1
    if isinstance(value, bool) != (hint is bool):
        raise wrong
    if value is None or (hint is str and isinstance(value, list | dict)):
        raise wrong
    if hint is int and isinstance(value, float) and not value.is_integer():
        raise wrong
    if choices and value not in choices:
        raise wrong
    if hint == tuple[str, ...]:
        value = [value] if isinstance(value, str) else value
        if not isinstance(value, list | tuple) or not all(isinstance(v, str | int) for v in value):
            raise wrong
        return tuple(map(str, value))
    try:
        if hint == float | Schedule:
            return scheduled(value)
        return hint(value) if isinstance(hint, type) else value  # PyYAML reads 1e-4 as a string
    except InputError:
        raise
    except Exception as error:
        raise wrong from error


def scheduled(value: Any) -> float | Schedule:
    """A number, or the schedule that a word with commas says. Raises ValueError, InputError."""
    return Schedule.parse(value) if isinstance(value, str) and "," in value else float(value)


def read(path: Path) -> Config:
    """The config of a run: the values in the file, and defaults for fields that it leaves out.

    A run whose file does not speak of augmentation is older, and trained without.
    """
    return overlay(Config(augment="off"), read_mapping(path), str(path))


def differences(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """{"optim.beta1": (old, new), ...} of the fields that differ."""
    before, after = flatten(old), flatten(new)
    return {name: (before[name], after[name]) for name in before if before[name] != after[name]}
