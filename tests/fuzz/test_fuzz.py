"""Readers under inputs that nobody meant.

They are mutated by hypothesis here, by a coverage-guided fuzzer in `accept` and `full`.

GANFAST_FUZZ_SECONDS sets how long each target is fuzzed in `make accept-full`, 600 by default.
"""

import gzip
import os
import resource
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ganfast import configfile
from ganfast.data import open_data
from ganfast.errors import InputError
from tests.fuzz.targets import SEEDS, TARGETS, in_memory, refused
from tests.fuzz.watch import Outside, only_inside

pytestmark = pytest.mark.filterwarnings("ignore")  # Pillow's, of files cut short
ROOT = Path(__file__).parents[2]
MOST = 512 << 20  # bytes by which one process may grow while it reads small inputs

edits = st.lists(
    st.tuples(
        st.sampled_from(["set", "cut", "insert", "repeat", "truncate"]),
        st.floats(0, 1, exclude_max=True),
        st.binary(max_size=8),
    ),
    max_size=4,
)


def edited(data: bytes, changes) -> bytes:
    for kind, where, more in changes:
        at = int(where * len(data))
        if kind == "truncate":
            data = data[:at]
        elif kind == "cut":
            data = data[:at] + data[at + len(more) :]
        elif kind == "insert":
            data = data[:at] + more + data[at:]
        elif kind == "repeat":
            data = data[:at] + data[max(0, at - 40) : at] * (1 + len(more)) + data[at:]
        else:
            data = data[:at] + more + data[at + len(more) :]
    return data


@pytest.mark.parametrize("name", TARGETS)
def test_a_mutated_input_is_read_or_refused_in_one_sentence(name):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    @settings(
        max_examples=40,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.sampled_from(SEEDS[name]), edits)
    def check(seed, changes):
        with tempfile.TemporaryDirectory(dir=in_memory()) as top:
            place = Path(top) / "target"
            place.mkdir()
            with only_inside(place):
                refused(TARGETS[name], edited(seed, changes), place)

    check()
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MOST


@pytest.mark.parametrize("name", TARGETS)
def test_honest_inputs_are_read(name, tmp_path):
    """Else nothing behind the first check is ever reached."""
    errors = []
    for number, seed in enumerate(SEEDS[name]):
        (tmp_path / str(number)).mkdir()
        errors.append(refused(TARGETS[name], seed, tmp_path / str(number)))
    assert None in errors, errors


def test_a_write_outside_is_seen(tmp_path):
    (tmp_path / "in").mkdir()
    with only_inside(tmp_path / "in"):
        (tmp_path / "in" / "file").write_text("")
        for attempt in (
            lambda: (tmp_path / "file").write_text(""),
            lambda: (tmp_path / "folder").mkdir(),
            lambda: (tmp_path / "in" / "file").rename(tmp_path / "in" / ".." / "file"),
            lambda: subprocess.run(["true"]),
        ):
            with pytest.raises(Outside):
                attempt()
    (tmp_path / "file").write_text("")


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join(f'*{a}' for _ in range(9))}]\n"
    for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (LAUGHS, r"line 2 has the alias \*a: write the value out"),
        ("a: &a {b: *a}", "has the alias"),
        ("size: 2001-13-99", "is not YAML: month must be in 1..12"),
        ("seed: " + "9" * 5000, "is not YAML: Exceeds the limit"),
        ("[" * 1500, "is not YAML: maximum recursion depth"),
        ("size: " + "x" * 5000, r"size in .* is '.{60,90}'; expected a whole number"),
    ],
    ids=["laughs", "itself", "date", "digits", "deep", "long"],
)
def test_a_config_that_is_a_trap_is_refused_in_a_sentence(text, sentence, tmp_path):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(InputError, match=sentence) as caught:
        configfile.read(tmp_path / "config.yaml")
    assert len(str(caught.value)) < 600


def test_a_gzip_bomb_costs_no_more_memory_than_a_header_allows(tmp_path):
    """300 MB in 300 kB: what is behind the values that the header announces is not unpacked."""
    header = b"\0\0\x08\x03" + (2).to_bytes(4, "big") + (8).to_bytes(4, "big") * 2
    labels = b"\0\0\x08\x01" + (2).to_bytes(4, "big") + b"\0\1"
    with gzip.open(tmp_path / "train-images-idx3-ubyte.gz", "wb", compresslevel=1) as file:
        file.write(header)
        for _ in range(300):
            file.write(bytes(1 << 20))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(labels)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match="announces 2x8x8 = 128 values and holds more"):
        open_data(str(tmp_path), cache=tmp_path / "cache")
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 64 << 20


SECONDS = [pytest.param(3, marks=pytest.mark.accept), pytest.param(0, marks=pytest.mark.full)]


@pytest.mark.parametrize("seconds", SECONDS, ids=["briefly", "long"])
@pytest.mark.parametrize("name", TARGETS)
def test_fuzzed(name, seconds, tmp_path):
    if not find_spec("atheris"):
        pytest.skip(
            "atheris is not installed: it exists for Linux and macOS and a few versions of Python "
            "(pip install atheris)"
        )
    seconds = seconds or int(os.environ.get("GANFAST_FUZZ_SECONDS", "600"))
    command = [sys.executable, "-m", "tests.fuzz.run", name, "--seconds", str(seconds)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=seconds + 300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "Done " in done.stderr, "it did not fuzz at all"
