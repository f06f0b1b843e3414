"""`make test` keeps its budget: `make accept` fails where the last one did not."""

import pytest

from tests.budget import BUDGET, LONGEST, last_measured


@pytest.mark.accept
def test_make_test_stayed_within_its_processor_seconds():
    last = last_measured()
    if last is None:
        pytest.skip("make test has not run on these files: run it first to have its time judged")
    total, longest = round(last["total"]), round(last["longest"])
    assert total <= BUDGET, f"make test took {total} processor seconds; its budget is {BUDGET}"
    assert longest <= LONGEST, f"{last['test']} took {longest} seconds; a test may take {LONGEST}"
