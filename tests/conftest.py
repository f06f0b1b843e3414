"""Fixtures that every test may use, and the rule that data which is there is used."""

import os
from pathlib import Path

import pytest

_VARIABLE = "GANFAST_TEST_DATA"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with mnist/, celeba/ and celeba-half/, named by GANFAST_TEST_DATA."""
    folder = os.environ.get(_VARIABLE)
    if not folder:
        pytest.skip(f"{_VARIABLE} is not set: it names a folder with mnist/, celeba/ and celeba-half/")
    return Path(folder)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Tests neither see nor fill the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GANFAST_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("GANFAST_DATA", raising=False)
        yield


def pytest_configure(config):
    config.stash[_SKIPPED] = []


_SKIPPED = pytest.StashKey[list[str]]()


def pytest_collection_modifyitems(items):
    for item in items:
        if "real_data" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.data)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and item.get_closest_marker("data"):
        item.config.stash[_SKIPPED].append(item.nodeid)
    return report


def pytest_sessionfinish(session):
    if os.environ.get(_VARIABLE) and session.config.stash[_SKIPPED]:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter, config):
    if os.environ.get(_VARIABLE) and config.stash[_SKIPPED]:
        terminalreporter.section("data tests skipped although the data is there", red=True)
        for name in config.stash[_SKIPPED]:
            terminalreporter.write_line(name)
