"""`make test` has a budget: its processor seconds are counted, printed, kept for `make accept`."""

import hashlib
import json
import resource
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BUDGET = 700  # processor seconds of the whole of `make test`, its child processes included
LONGEST = 30  # processor seconds of one test
# `make accept` fails above this many times both, so that a slow processor alone fails no check.
# Tests before 2026-11-30 took 12 min 9 s on an AMD processor without VNNI, 5 min 2 s on another.
SLOW = 1.5
LAST = ROOT / ".test_seconds.json"
_FOLDERS = ("ganfast", "kernels", "export", "benchmarks", "tests")
_NAME = "processor seconds"


def processor_seconds() -> float:
    """Of this process and of all child processes that have ended."""
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def tree() -> str:
    """A hash of all Python files and of what says how they are tested."""
    files = [ROOT / "Makefile", ROOT / "pyproject.toml"]
    for folder in _FOLDERS:
        files += sorted((ROOT / folder).rglob("*.py"))
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(ROOT)} {path.stat().st_size}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def last_measured() -> dict | None:
    """What the last `make test` took; None if there was none, or if a file has changed since."""
    kept = json.loads(LAST.read_text()) if LAST.exists() else {}
    return kept if kept.get("tree") == tree() else None


_started = pytest.StashKey[float]()


class Meter:
    """A plugin of pytest: counts every test, and the whole run with the start of its workers."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.tree = tree()  # of the files that are tested, however they change meanwhile

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        item.stash[_started] = processor_seconds()
        return (yield)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_makereport(self, item, call):
        if call.when == "teardown":  # its report goes to the process that hands out the tests
            item.user_properties.append((_NAME, processor_seconds() - item.stash[_started]))

    def pytest_runtest_logreport(self, report):
        if report.when == "teardown":
            self.seconds[report.nodeid] = dict(report.user_properties)[_NAME]

    def pytest_terminal_summary(self, terminalreporter):
        """Workers have ended by now: before that, the system does not count them as children."""
        total = processor_seconds()
        test = max(self.seconds, key=self.seconds.__getitem__, default="")
        longest = self.seconds.get(test, 0.0)
        terminalreporter.write_line(
            f"make test took {total:.0f} of {BUDGET} processor seconds; "
            f"its longest test {longest:.0f} of {LONGEST}: {test}",
            red=total > BUDGET or longest > LONGEST,
        )
        kept = {"total": total, "longest": longest, "test": test, "tree": self.tree}
        LAST.write_text(json.dumps(kept))
