"""Fixtures that every test may use, and the rule that data which is there is used."""

import os
import signal
from pathlib import Path

import pytest

from tests.budget import Meter

_VARIABLE = "GANFAST_TEST_DATA"


def pytest_configure(config):
    if os.environ.get("GANFAST_METER"):
        config.pluginmanager.register(Meter())


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with mnist/, celeba/ and celeba-half/, named by GANFAST_TEST_DATA."""
    folder = os.environ.get(_VARIABLE)
    if not folder:
        pytest.skip(
            f"{_VARIABLE} is not set: it names a folder with mnist/, celeba/ and celeba-half/"
        )
    return Path(folder)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Tests neither see nor fill the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GANFAST_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("GANFAST_DATA", raising=False)
        yield


@pytest.fixture(params=["recorded", pytest.param("inductor", marks=pytest.mark.accept)])
def compiler(request, monkeypatch):
    """What makes a program of a recorded graph: inductor, or nobody.

    Inductor takes ten seconds a graph and more. `make test` runs most graphs as they were
    recorded, which shows what ganfast itself does: what is recorded, when it is recorded anew, and
    what becomes of the results. `make accept` compiles the graphs.
    """
    if request.param == "recorded":
        monkeypatch.setattr("torch._inductor.compile", lambda graph, _: graph)
    return request.param


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    from tests.small_runs import few_digits

    return few_digits(tmp_path_factory.mktemp("data") / "few.npz")


@pytest.fixture
def run_tiny(data, tmp_path):
    """Train a tiny run into ``tmp_path / name`` and return it."""
    from ganfast.runs.train import train
    from tests.small_runs import tiny

    def run(preset: str = "dcgan", name: str = "run", **changes):
        return train(tiny(preset, data, tmp_path / name, **changes), quiet=True)

    return run


@pytest.fixture
def stop_at(monkeypatch):
    """Send this process a signal when that many images are shown, as a scheduler would."""
    from ganfast.runs import writer

    def arm(images: int, number: int = signal.SIGTERM) -> None:
        on_step = writer.Writer.on_step

        def hooked(self, state, *stats):
            on_step(self, state, *stats)
            if state.images == images:
                signal.raise_signal(number)

        monkeypatch.setattr(writer.Writer, "on_step", hooked)

    return arm


# Data tests, told by the reports, which also reach a process that only hands out work.
_skipped: list[str] = []


def pytest_collection_modifyitems(items):
    for item in items:
        if "real_data" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.data)


def pytest_runtest_logreport(report):
    if report.skipped and not hasattr(report, "wasxfail") and "data" in report.keywords:
        _skipped.append(report.nodeid)


def pytest_sessionfinish(session):
    if os.environ.get(_VARIABLE) and _skipped:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter):
    if os.environ.get(_VARIABLE) and _skipped:
        terminalreporter.section("data tests skipped although the data is there", red=True)
        for name in _skipped:
            terminalreporter.write_line(name)
