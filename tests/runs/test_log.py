"""The log has whole lines, none twice after a resume; progress reads well without a terminal."""

import builtins
import errno
import json
import logging
import math
import os
import sys
import threading

import pytest
import torch

from ganfast import disk
from ganfast.runs import logfile
from ganfast.runs.logfile import JsonLines, Progress, RunLog, read_log


def written(path, counts):
    lines = JsonLines(path, 0)
    for images in counts:
        lines.write({"images": images, "loss": images / 7})
    lines.close()


def images(path) -> list[int]:
    return [record["images"] for record in read_log(path)]


def test_reopening_drops_the_lines_of_steps_that_will_be_done_again(tmp_path):
    path = tmp_path / "log.jsonl"
    written(path, [100, 200, 300, 400])
    before = path.read_text().splitlines()
    JsonLines(path, 250).close()
    assert path.read_text().splitlines() == before[:2]
    lines = JsonLines(path, 200)  # the line at the counter itself is of a step that is done
    lines.write({"images": 300})
    lines.close()
    assert images(path) == [100, 200, 300]
    assert list(tmp_path.iterdir()) == [path], "nothing else stays behind"


def test_reopening_at_a_position_keeps_that_many_lines_and_writes_none_twice(tmp_path):
    path = tmp_path / "log.jsonl"
    lines = JsonLines(path, 0, 0)
    for counter in (100, 200, 300):
        assert lines.position() == counter // 100 - 1
        lines.write({"images": counter, "seconds": 10.0**counter})
    lines.close()
    whole = path.read_text().splitlines()
    path.write_text(path.read_text()[:-1])  # the last line break was lost
    lines = JsonLines(path, 300, 3)
    assert lines.position() == 3
    lines.write({"images": 400})
    lines.close()
    assert path.read_text().splitlines()[:3] == whole
    lines = JsonLines(path, 400, 2)
    assert lines.position() == 2
    lines.close()
    assert path.read_text().splitlines() == whole[:2]


@pytest.mark.parametrize(
    "cut", ["", "{", '{"images": 30', '{"loss": 3}', "[]", "null", '{"images": "many"}']
)
def test_a_cut_off_last_line_is_dropped_and_never_glued_to_the_next(tmp_path, cut):
    path = tmp_path / "log.jsonl"
    written(path, [100, 200])
    with path.open("a") as file:
        file.write(cut)
    assert [
        record["images"]
        for record in read_log(path)
        if isinstance(record, dict) and "images" in record
    ][:2] == [100, 200]
    lines = JsonLines(path, 200)
    lines.write({"images": 300})
    lines.close()
    assert [json.loads(line)["images"] for line in path.read_text().splitlines()] == [100, 200, 300]


def test_a_log_that_is_not_there_is_empty(tmp_path):
    assert read_log(tmp_path / "log.jsonl") == []


def test_a_line_is_on_disk_as_soon_as_it_is_written(tmp_path):
    lines = JsonLines(tmp_path / "log.jsonl", 0)
    lines.write({"images": 1})
    assert images(tmp_path / "log.jsonl") == [1], "a killed process would have lost it"
    lines.close()


class Faults:
    """A disk that, while armed, takes a part of a write, or forgets it when asked to sync."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.armed, write, fsync = "", disk.calls.write, disk.calls.fsync

        def faulty_write(handle, data):
            if self.armed == "write":
                write(handle, data[: len(data) // 2])
                raise OSError(errno.ENOSPC, "made to fail")
            return write(handle, data)

        def faulty_fsync(handle):
            if self.armed == "fsync":
                os.ftruncate(handle, kept[0])
                raise OSError(errno.EIO, "made to fail")
            fsync(handle)
            kept[0] = os.fstat(handle).st_size

        kept = [0]
        patch.setattr(disk.calls, "write", faulty_write)
        patch.setattr(disk.calls, "fsync", faulty_fsync)


def test_a_line_that_could_not_be_written_is_written_whole_with_the_next(
    tmp_path, monkeypatch, caplog
):
    faults, path = Faults(monkeypatch), tmp_path / "log.jsonl"
    lines = JsonLines(path, 0)
    for number, faults.armed in enumerate(("", "write", "write", "", "write")):
        lines.write({"images": number})
    assert caplog.text.count("made to fail") + caplog.text.count("No space") == 2, (
        "said once a failure, not once a line"
    )
    with pytest.raises(OSError, match="made to fail"):
        lines.sync()
    faults.armed = ""
    lines.sync()
    lines.close()
    assert path.read_text() == "".join(f'{{"images": {number}}}\n' for number in range(5))
    assert lines.position() == 5


def test_what_the_system_forgot_when_it_failed_to_keep_it_is_written_again(tmp_path, monkeypatch):
    faults, path = Faults(monkeypatch), tmp_path / "log.jsonl"
    lines = JsonLines(path, 0)
    lines.write({"images": 1})
    lines.sync()
    lines.write({"images": 2})
    faults.armed = "fsync"
    with pytest.raises(OSError, match="made to fail"):
        lines.sync()
    assert images(path) == [1]
    faults.armed = ""
    lines.write({"images": 3})
    lines.sync()
    assert images(path) == [1, 2, 3]
    lines.close()
    lines.close()


def test_a_line_does_not_wait_for_the_disk(tmp_path, monkeypatch):
    lines, inside, done = JsonLines(tmp_path / "log.jsonl", 0), threading.Event(), threading.Event()
    lines.write({"images": 1})
    monkeypatch.setattr(disk.calls, "fsync", lambda handle: (inside.set(), done.wait(60)))
    thread = threading.Thread(target=lines.sync)
    thread.start()
    assert inside.wait(60)
    lines.write({"images": 2})  # would hang
    assert images(tmp_path / "log.jsonl") == [1, 2]
    done.set()
    thread.join()
    lines.write({"images": 3})
    lines.close()
    assert images(tmp_path / "log.jsonl") == [1, 2, 3]


def test_lines_that_are_lost_at_the_end_are_said_to_be(tmp_path, monkeypatch, caplog):
    faults = Faults(monkeypatch)
    lines = JsonLines(tmp_path / "log.jsonl", 0)
    faults.armed = "write"
    lines.write({"images": 1})
    lines.close()
    assert "its lines wait for the next try" in caplog.text
    assert "its last lines are lost" in caplog.text


def test_lines_and_syncs_of_two_threads_do_not_mix(tmp_path):
    lines, done = JsonLines(tmp_path / "log.jsonl", 0), threading.Event()

    def sync():
        while not done.is_set():
            lines.sync()

    thread = threading.Thread(target=sync)
    thread.start()
    for number in range(2000):
        lines.write({"images": number})
    done.set()
    thread.join()
    lines.close()
    assert images(tmp_path / "log.jsonl") == list(range(2000))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_json_has_no_number_for_is_written_as_text(tmp_path, value):
    lines = JsonLines(tmp_path / "log.jsonl", 0)
    lines.write({"images": 1, "loss": value, "fine": 0.1234567890123})
    lines.close()
    record = json.loads((tmp_path / "log.jsonl").read_text(), parse_constant=pytest.fail)
    assert float(record["loss"]) == pytest.approx(value, nan_ok=True)
    assert record["fine"] == 0.123457, "six digits: the rest is noise"


# A run's log


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 1000.0

    monkeypatch.setattr(logfile.time, "monotonic", lambda: Clock.now)
    return Clock


@pytest.fixture
def no_terminal(monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)


def test_a_step_is_recorded_with_its_speed_since_the_last(tmp_path, clock, no_terminal):
    run = RunLog(tmp_path, 500, 10_000, tensorboard=False)
    clock.now += 2
    first = run.step(700, {"critic/loss": torch.tensor(0.5)})
    clock.now += 4
    run.pause(3)  # a sample grid
    second = run.step(800, {"critic/loss": torch.tensor(-0.25)})
    clock.now += 1
    third = run.step(850, {})
    run.close()
    assert (first["seconds"], first["images_per_second"], first["critic/loss"]) == (2, 100, 0.5)
    expected = (6, 100, -0.25)
    assert (second["seconds"], second["images_per_second"], second["critic/loss"]) == expected
    assert third["images_per_second"] == 50, "a pause counts once"
    assert images(tmp_path / "log.jsonl") == [700, 800, 850]


def test_without_a_terminal_there_is_a_plain_line_every_ten_seconds_and_one_at_the_end(
    clock, no_terminal, capsys
):
    progress = Progress(0, 60_000)
    values = {
        "critic/loss": -1.25,
        "critic/wasserstein": 2.5,
        "critic/gradient_norm": 0.98,
        "critic/real_score": 7.0,
    }
    for second in range(1, 25):
        clock.now += 1
        progress.update(second * 1000, 1000.0, values)
    progress.close()
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert [line.split()[0] for line in lines] == ["10.0/60", "20.0/60", "24.0/60"]
    assert lines[0] == "10.0/60 kimg  1,000 img/s  critic -1.25  W 2.5  |grad| 0.98  ETA 0:50"
    assert "\x1b" not in err
    assert "\r" not in err


def test_nothing_is_said_of_a_run_that_made_no_step(no_terminal, capsys):
    Progress(0, 1000).close()
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("terminal", [True, False])
def test_a_quiet_run_shows_no_progress_and_still_writes_its_log(
    terminal, tmp_path, monkeypatch, clock, capsys
):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    run = RunLog(tmp_path, 0, 100, tensorboard=False, quiet=True)
    for count in (10, 20):
        clock.now += 60
        run.step(count, {"critic/loss": torch.tensor(1.0)})
    run.close()
    assert capsys.readouterr() == ("", "")
    assert images(tmp_path / "log.jsonl") == [10, 20]


def test_on_a_terminal_there_is_a_bar_and_it_is_gone_when_closed(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    progress = Progress(0, 1000)
    assert progress.bar is not None
    progress.update(500, 100.0, {"critic/loss": 1.0})
    progress.close()
    assert progress.bar is None
    assert capsys.readouterr().err.rstrip().endswith("0.5/1 kimg  100 img/s  critic 1")


def test_missing_tensorboard_is_said_once_and_the_run_goes_on(
    tmp_path, monkeypatch, caplog, no_terminal
):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("torch.utils.tensorboard"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with caplog.at_level(logging.WARNING, "ganfast"):
        run = RunLog(tmp_path, 0, 100, tensorboard=True)
        for count in (10, 20, 30):
            run.step(count, {"critic/loss": torch.tensor(1.0)})
        run.picture(30, torch.zeros(4, 4, 1, dtype=torch.uint8).numpy())
        run.close()
    said = [record.message for record in caplog.records]
    assert len(said) == 1
    assert "tensorboard is not installed" in said[0]
    assert "pip install" in said[0]
    assert images(tmp_path / "log.jsonl") == [10, 20, 30]
    assert not (tmp_path / "tensorboard").exists()


def test_no_tensorboard_where_none_is_wanted(tmp_path, caplog, no_terminal):
    run = RunLog(tmp_path, 0, 100, tensorboard=False)
    run.picture(0, None)
    run.close()
    assert not (tmp_path / "tensorboard").exists()
    assert not caplog.records


@pytest.mark.parametrize(("module", "heard"), [("tensorboard.writer", 0), ("__main__", 1)])
def test_the_thread_of_tensorboard_leaves_its_errors_to_the_next_call(module, heard, monkeypatch):
    """A full disk ends that thread, and the call that follows raises the error anew."""
    errors = []
    hook = errors.append
    monkeypatch.setattr(threading, "excepthook", hook)
    fails = type("Worker", (threading.Thread,), {"__module__": module, "run": lambda _: 1 / 0})
    with logfile._heard_later():
        worker = fails()
        worker.start()
        worker.join()
    assert len(errors) == heard
    assert threading.excepthook is hook, "the hook of the program around is put back"
