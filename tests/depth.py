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
