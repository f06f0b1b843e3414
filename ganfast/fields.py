"""What a field of a config may be: a value that is checked, or a schedule of values."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal, TypeVar, get_args, get_type_hints

from ganfast.errors import InputError

T = TypeVar("T")

Shape = Literal["cosine", "linear"]


class Checked:
    """Refuses values outside a field's `Literal`, and what `check` finds wrong."""

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            choices, value = get_args(hint), getattr(self, name)
            if choices and all(isinstance(c, str) for c in choices) and value not in choices:
                raise InputError(f"{name} is {value!r}; expected one of {', '.join(choices)}")
            if isinstance(value, float) and not math.isfinite(value):
                raise InputError(f"{name} is {value}; expected a finite number")
            if isinstance(value, int) and not -(2**63) <= value < 2**63:
                raise InputError(f"{name} is {value}; expected less than 2**63")
            if isinstance(value, str) and "\0" in value:
                raise InputError(f"{name} is {value!r}; expected no null byte")
        self.check()

    def check(self) -> None:
        """Raises InputError for values that cannot be used."""

    def _at_least(self, least: float, *names: str) -> None:
        for name in names:
            if min(ends(getattr(self, name))) < least:
                raise InputError(f"{name} is {getattr(self, name)}; expected {least:g} or more")


@dataclass(frozen=True)
class Schedule(Checked):
    """A value that moves from ``first`` to ``last``, as the image counter goes on, and then stays.

    In YAML and in flags it is one word, such as 2e-4,5e-5 or 2e-4,5e-5,20000,linear.
    """

    first: float
    last: float
    over_kimg: float = 0.0  # thousand real images that the move takes; 0 = the whole run
    shape: Shape = "cosine"  # half a cosine, which is flat at both ends, or a straight line

    def check(self) -> None:
        self._at_least(0, "over_kimg")

    def __str__(self) -> str:
        # As floats, which is what `parse` makes: a run is told from another by this word.
        first, last, over = map(float, (self.first, self.last, self.over_kimg))
        words = [f"{first!r},{last!r}"]
        if over or self.shape != "cosine":
            words.append(repr(over))
        return ",".join([*words, *([self.shape] if self.shape != "cosine" else [])])

    def __format__(self, how: str) -> str:
        """``how`` formats both ends."""
        return f"{self.first:{how}} to {self.last:{how}}"

    @staticmethod
    def parse(word: str) -> "Schedule":
        """The schedule that a word says.

        Raises:
            ValueError: a part is no number.
            InputError: too many parts, values that cannot be used, or a decimal comma (0,0002).
        """
        first, last, *more = word.split(",")
        if re.match(r"0\d", last.strip()):
            decimal = ".".join([first, last])
            raise InputError(f"{word!r} has a decimal comma: write {decimal} with a point")
        if len(more) > 2:
            raise InputError(f"{word!r} has {len(more) + 2} parts; expected first,last,kimg,shape")
        over, *shape = more or ["0"]
        return Schedule(float(first), float(last), float(over), *shape)  # type: ignore[arg-type]


def ends(value: "float | Schedule") -> tuple[float, float]:
    """First and last value of a field that may have a schedule."""
    return (value.first, value.last) if isinstance(value, Schedule) else (value, value)


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """{"optim.beta1": 0.0, ...} of a config dataclass; a schedule as its word."""
    flat: dict[str, Any] = {}
    for item in fields(config):
        name, value = prefix + item.name, getattr(config, item.name)
        if isinstance(value, Schedule):
            value = str(value)
        flat |= flatten(value, f"{name}.") if is_group(value) else {name: value}
    return flat


def is_group(value: Any) -> bool:
    """Whether a field's value is a group of fields. A schedule is one value."""
    return is_dataclass(value) and not isinstance(value, Schedule)


def parts_of(batch: int, accumulate: int, ranks: int = 1) -> int:
    """Pictures in each of the equal parts of a batch, which each rank computes ``accumulate`` of.

    Raises:
        InputError: there are none; one picture has no batch statistics, and no neighbour.
    """
    parts = ranks * accumulate
    if parts > 1 and (batch % parts or batch // parts < 2):
        least = 2 * parts
        nearest = max(least, round(batch / parts) * parts)
        whose = f"of {ranks} ranks " if ranks > 1 else ""
        raise InputError(
            f"batch is {batch}, and accumulate {accumulate} {whose}makes {parts} parts of it, "
            f"which must be equal and of 2 pictures or more; give a multiple of {parts} from "
            f"{least} on, such as {nearest}"
        )
    return batch // parts


def row_of(table: Mapping[str, T], kind: str, what: str, where: str) -> T:
    """The row of a kind; InputError where only a `Literal` of the config names the kind."""
    if kind not in table:
        raise InputError(f"{what} {kind!r} has no row in {where}; there: {', '.join(table)}")
    return table[kind]
