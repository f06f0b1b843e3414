"""How deep a crossing of parameters goes: all values in `make test`, all pairs in `make accept`."""

from itertools import product

import pytest

from ganfast.presets import PRESETS

# Dropout and batch norms; a class head; clipped weights; points between reals and fakes; two
# judgements in a step.
DIFFERENT = ("gan", "acgan", "wgan", "wgan-gp", "rpgan")
EACH_PRESET = [
    pytest.param(preset, marks=() if preset in DIFFERENT else pytest.mark.accept)
    for preset in PRESETS
]


def in_turn(*axes) -> list:
    """All combinations of the axes, for one `pytest.mark.parametrize`, most of them for `accept`.

    An axis is a list of values, or of tuples where several arguments move together. For
    `make test` every axis takes its values in turn, row by row, from the beginning again where it
    ends, until the longest is through: each value is tested once at least.
    """
    axes = [list(axis) for axis in axes]
    rows = {tuple(i % len(axis) for axis in axes) for i in range(max(map(len, axes)))}
    cases = []
    for places in product(*(range(len(axis)) for axis in axes)):
        values = []
        for axis, place in zip(axes, places, strict=True):
            value = axis[place]
            values += value if isinstance(value, tuple) else (value,)
        marks = () if places in rows else pytest.mark.accept
        name = "-".join(str(getattr(value, "__name__", value)) for value in values)
        cases.append(pytest.param(*values, marks=marks, id=name))
    return cases


def thinned(*axes, shallow=lambda *values: False) -> list:
    """All combinations of the axes: those that are ``shallow`` for `make test`, one in four of the
    others for `make accept`, and the rest for `make accept-full`.

    In `make accept` any two values of two axes meet, as their places add up to a multiple of four
    with some value of a third axis.
    """
    axes, cases = [list(axis) for axis in axes], []
    for places in product(*(range(len(axis)) for axis in axes)):
        values = [axis[place] for axis, place in zip(axes, places, strict=True)]
        marks = [pytest.mark.accept, *([pytest.mark.full] if sum(places) % 4 else [])]
        cases.append(pytest.param(*values, marks=() if shallow(*values) else marks))
    return cases
