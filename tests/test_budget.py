"""`make test` keeps its budget, and meets every value of what `make accept` crosses in full."""

import pytest

from tests.budget import BUDGET, LONGEST, SLOW, last_measured
from tests.depth import in_turn


@pytest.mark.accept
def test_make_test_stayed_within_its_processor_seconds():
    last = last_measured()
    if last is None:
        pytest.skip("make test has not run on these files: run it first to have its time judged")
    total, longest = round(last["total"]), round(last["longest"])
    most, most_of_one = SLOW * BUDGET, SLOW * LONGEST
    assert total <= most, f"make test took {total} processor seconds; at most {most:.0f} pass"
    assert longest <= most_of_one, (
        f"{last['test']} took {longest} s; at most {most_of_one:.0f} pass"
    )


def test_make_test_meets_every_value_of_a_crossing():
    cases = in_turn("ab", [(1, 2), (3, 4)], range(5))
    here = [case.values for case in cases if not case.marks]
    assert (len(cases), len(here)) == (20, 5)
    assert [set(values) for values in zip(*here, strict=True)] == [
        {*"ab"},
        {1, 3},
        {2, 4},
        {*range(5)},
    ]
