"""Streams that are closed, lost or ASCII, and names that no stream can show."""

import io
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from PIL import Image

from ganfast import disk
from ganfast.cli import main
from ganfast.data.progress import progress_bar
from ganfast.log import Lasting, say, tell
from ganfast.runs.logfile import Progress
from ganfast.runs.train import signals, train
from tests.depth import thinned
from tests.small_runs import tiny

ODD = os.fsdecode(b"r\xc3\xa9sum\xc3\xa9 \xff")  # a name that is no UTF-8
ASCII_CODES = r"r\xe9sum\xe9 \udcff"


@pytest.fixture(scope="module")
def odd_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("streams") / ODD
    train(tiny(out=folder, kimg=0.16), quiet=True)
    return folder


class Lost(io.StringIO):
    """A terminal that went away: writing fails, as it does for its whole life from then on."""

    def write(self, text):
        raise OSError(5, "Input/output error")

    flush = write

    def isatty(self):
        return True


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


STREAMS = {"lost": Lost, "closed": closed, "none": lambda: None}


@pytest.mark.parametrize("stream", STREAMS)
def test_nobody_has_to_be_there_to_be_told(stream, monkeypatch):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, STREAMS[stream]())
    say("a line")
    tell("a line")
    assert Lasting(sys.stderr).write("text") == 4
    progress = Progress(0, 1000.0)
    progress.update(100, 10.0, {"critic/loss": 1.0})
    progress.close()
    with progress_bar() as show:
        show("packing", 1, 2)


def test_letters_that_a_terminal_lacks_are_told_by_their_numbers():
    kept = io.BytesIO()
    stream = io.TextIOWrapper(kept, encoding="ascii")
    Lasting(stream).write("réseau\n")
    assert kept.getvalue() == b"r\\xe9seau\n"


@pytest.mark.parametrize("stream", ["lost", pytest.param("none", marks=pytest.mark.accept)])
def test_a_training_goes_on_without_its_terminal(stream, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", STREAMS[stream]())
    run = train(tiny(out=tmp_path / "run", kimg=0.16))
    assert run.latest().name == "000000160"


def piped(tmp_path, encoding="ascii"):
    """A strict stream of text onto a file."""
    return open(tmp_path / "printed", "w", encoding=encoding, errors="strict")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_what_cannot_be_encoded_is_escaped(encoding, tmp_path, monkeypatch):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, piped(tmp_path, encoding))
    assert main(["run", "check", ODD]) == 2
    sys.stderr.close()
    said = (tmp_path / "printed").read_text(encoding)
    assert said.startswith("ganfast: r")
    assert r"\udcff is not a run directory" in said
    assert (ASCII_CODES in said) == (encoding == "ascii")


def test_names_that_are_no_utf8_work(tmp_path, monkeypatch):
    """Packed, trained, checked, drawn, plotted: by names and classes that no stream can show."""
    for label in ("a", ODD):
        (tmp_path / ODD / label).mkdir(parents=True)
        for number in range(10):
            Image.new("L", (16, 16), number).save(tmp_path / ODD / label / f"{number}.png")
    monkeypatch.setattr(sys, "stdout", piped(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert main(["data", "pack", ODD, "--size", "16"]) == 0
    train(tiny(data=ODD, out="run-" + ODD, kimg=0.16), quiet=True)
    assert main(["run", "check", "run-" + ODD]) == 0
    assert main(["sample", "run-" + ODD, "-n", "2", "--out", ODD + ".png"]) == 0
    assert main(["plot", "run-" + ODD, "--out", ODD + "-curves.png"]) == 0
    sys.stdout.close()
    said = (tmp_path / "printed").read_text()
    assert f"1 = {ASCII_CODES} (10)" in said
    assert said.splitlines()[-1] == f"{ASCII_CODES}-curves.png"
    assert (tmp_path / (ODD + ".png")).exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_disk_loses_what_is_printed_and_says_so(monkeypatch, capsys):
    with open("/dev/full", "w") as one, open("/dev/full", "w") as two:
        monkeypatch.setattr(sys, "stdout", one)
        tell("the name of a result")
        assert main(["plot", "nothing"]) == 2  # for its own reason
        assert "standard output" not in capsys.readouterr().err
        monkeypatch.setattr(sys, "stdout", two)
        assert main(["presets"]) == 2
        assert "standard output cannot be written: No space left" in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs SIGHUP")
def test_a_lost_terminal_saves_and_nohup_goes_on():
    assert threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGHUP)
    try:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with signals() as received:
            signal.raise_signal(signal.SIGHUP)
        assert received == [signal.SIGHUP]
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with signals() as received:
            signal.raise_signal(signal.SIGHUP)
        assert received == []
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_plot_that_fails_leaves_the_picture_that_was_there(
    odd_run, tmp_path, monkeypatch, capsys
):
    (tmp_path / "curves.png").write_bytes(b"OLD")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(disk.calls, "write", full)
    assert main(["plot", str(odd_run), "--out", str(tmp_path / "curves.png")]) == 2
    assert "No space left" in capsys.readouterr().err
    assert (tmp_path / "curves.png").read_bytes() == b"OLD"


# Whole processes. The first of each pair of a locale's variables turns Python's own leniency off.
LOCALES = {
    "ascii": {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    "strict ascii": {"PYTHONIOENCODING": "ascii:strict"},
    "utf-8": {"LC_ALL": "C.UTF-8", "PYTHONIOENCODING": "utf-8:strict"},
}
ENDS = {
    "stdout closed": ">&-",
    "stderr closed": "2>&-",
    "all closed": "<&- >&- 2>&-",
    "no reader": "| true",
    "no reader of either": "2>&1 | true",
    "full": "> /dev/full 2>&1",
}
COMMANDS = {
    "sample": "sample {run} -n 2 --out {new}.png",
    "check": "run check {run}",
    "plot": "plot {run} --out {new}.png",
    "pack": "data pack digits --size 16",
    "preview": "data preview digits --out {new}.png",
    "presets": "presets",
    "wrong": "sample {new}",
    "train": "train dcgan --data digits --kimg 0.16 --batch 16 --net.width 4 --out {new}",
}
MADE = ("sample", "plot", "preview", "train")  # they print names, and a lost name is no failure


@pytest.mark.parametrize(("command", "end", "locale"), thinned(COMMANDS, ENDS, LOCALES))
def test_no_command_ends_by_its_streams(command, end, locale, odd_run, tmp_path):
    run, new = shutil.copytree(odd_run, tmp_path / ODD), tmp_path / ("new " + ODD)
    words = COMMANDS[command].format(run="$RUN", new="$NEW").split()
    line = " ".join(f'"{word}"' for word in words)
    script = f'{{ "$PYTHON" -m ganfast {line}; echo $? > "$CODE"; }} {ENDS[end]}'
    names = {"RUN": str(run), "NEW": str(new), "CODE": str(tmp_path / "code")}
    environment = os.environ | LOCALES[locale] | names | {"PYTHON": sys.executable}
    done = subprocess.run(["sh", "-c", script], env=environment, capture_output=True, timeout=300)
    code = int((tmp_path / "code").read_text())
    assert code == (2 if command == "wrong" or (end == "full" and command not in MADE) else 0)
    assert b"Traceback" not in done.stdout + done.stderr
    if command in MADE:
        made = new if command == "train" else new.with_name(new.name + ".png")
        assert made.exists()
    if command == "train":
        assert sorted((new / "checkpoints").iterdir())[-1].name == "000000160"
