"""Mistakes in saving, restoring and cutting the log, made on purpose: each has to be found by a check that other tests rely on.

A mutation is one text of one source file replaced; for a short run, the module's functions get the bodies of the edited text.
"""

import inspect
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from ganfast import checkpoint as checkpoints
from ganfast import disk, feed, log, optim, saving
from ganfast.config import LogConfig
from ganfast.training import train
from tests.test_resume import pictures  # noqa: F401  a fixture
from tests.test_training import assert_same_run, files, newest, stop_at, tiny  # noqa: F401  stop_at is a fixture

ROOT = Path(__file__).parents[1]


def mutate(patch: pytest.MonkeyPatch, module: ModuleType, old: str, new: str) -> None:
    """Give the functions and methods of a module the bodies of its edited source: whoever imported them runs these, too."""
    path = Path(module.__file__)
    source = path.read_text()
    assert source.count(old) == 1, f"{path} must hold this text exactly once: {old}"
    edited = ModuleType(module.__name__)
    with pytest.MonkeyPatch.context() as swapped:  # dataclasses look for their module by name
        swapped.setitem(sys.modules, module.__name__, edited)
        exec(compile(source.replace(old, new), str(path), "exec"), edited.__dict__)
    for name, value in vars(edited).items():
        if getattr(value, "__module__", None) == module.__name__:
            pairs = [(value, vars(module)[name])]
            if isinstance(value, type):
                pairs = [(method, vars(vars(module)[name]).get(other)) for other, method in vars(value).items()]
            for method, mine in pairs:
                new_body, there = (inspect.unwrap(f) if callable(f) else f for f in (method, mine))  # below torch.no_grad
                if inspect.isfunction(new_body) and inspect.isfunction(there) and not new_body.__code__.co_freevars:
                    patch.setattr(there, "__code__", new_body.__code__)


# What a resumed run shows.
WRONG = {
    "no moments of Adam": (optim, "mine.copy_(entry[name]) if name in entry else mine.zero_()", "mine.zero_()"),
    "moments of the critic only": (
        saving, 'restore_optimizer(optimizer, contents[f"optimizer_{part}"]',
        'part == "critic" and restore_optimizer(optimizer, contents[f"optimizer_{part}"]'),
    "no average": (saving, '("ema", state.average)):', "):"),
    "no weights": (saving, "        module.load_state_dict(dict(tensors))\n", "        pass\n"),
    "no counter": (saving, "    state.images = images\n", "    state.images = 0\n"),
    "random draws from another place": (feed, "        self.clock.fill_(images)\n        self._first.fill_(images)\n",
        "        self.clock.fill_(images - self._begun())\n        self._first.fill_(images - self._begun())\n"),
    "a log that is not cut": (log, "and images_of(line) <= images else rest)", "or True else rest)"),
    "a log cut too short": (log, "number < position)", "number < position - 1)"),
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(pictures, tmp_path_factory) -> Path:  # noqa: F811
    out = tmp_path_factory.mktemp("runs") / "whole"
    train(shortest(pictures, out), quiet=True)
    return out


def shortest(data: str, out: Path):
    """Six steps, saved once after three, ended by an error after four: one line of the log is of a step that is done again."""
    return tiny("dcgan", data, out, kimg=0.096, log=LogConfig(every=1, sample_kimg=9, save_kimg=0.048, tensorboard=False))


def crashed(data: str, out: Path, patch: pytest.MonkeyPatch) -> None:
    from ganfast import training

    on_step = training.Writer.on_step

    def crash(self, state, *stats):
        on_step(self, state, *stats)
        if state.images == 64:
            raise ZeroDivisionError

    with patch.context() as inner:
        inner.setattr(training.Writer, "on_step", crash)
        with pytest.raises(ZeroDivisionError):
            train(shortest(data, out), quiet=True)
    assert newest(out).name == "000000048"


@pytest.mark.parametrize("mistake", [*WRONG, "none"])
def test_a_run_resumed_by_wrong_code_is_not_the_same(mistake, whole, pictures, tmp_path, monkeypatch):  # noqa: F811
    out = tmp_path / "parts"
    crashed(pictures, out, monkeypatch)
    if mistake == "none":
        train(shortest(pictures, out), quiet=True)
        assert_same_run(whole, out)
        return
    with monkeypatch.context() as patch:
        patch.setattr(feed.Feed, "_begun", lambda self: 16, raising=False)
        mutate(patch, *WRONG[mistake])
        train(shortest(pictures, out), quiet=True)
    with pytest.raises(AssertionError):
        assert_same_run(whole, out)


@pytest.fixture
def two(pictures, tmp_path) -> Path:  # noqa: F811
    out = tmp_path / "run"
    train(replace(shortest(pictures, out), kimg=0.096), quiet=True)
    assert len(checkpoints.listed(out / "checkpoints")) == 2
    return out / "checkpoints"


HASHES = {
    "a hash that is not compared": (
        checkpoints, 'if hashlib.sha256(data).hexdigest() != expected["sha256"]:', "if False:", "critic.safetensors"),
    "a record that is not compared": (checkpoints, "    if not sealed:\n", "    if False:\n", "state.json"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", HASHES)
def test_a_changed_byte_is_seen_by_its_hash_alone(mistake, two, monkeypatch):
    *mutation, name = HASHES[mistake]
    path = checkpoints.listed(two)[-1] / name
    data = bytearray(path.read_bytes())
    if name == "state.json":
        data = data.replace(b'"log_lines": 6', b'"log_lines": 5')
    else:
        data[-1] ^= 1
    assert data != path.read_bytes()
    path.write_bytes(data)
    assert checkpoints.newest_whole(two)[0] == checkpoints.listed(two)[0]
    with monkeypatch.context() as patch:
        mutate(patch, *mutation)
        assert checkpoints.newest_whole(two)[0] == checkpoints.listed(two)[1], "nothing but the hash sees it"


ORDER = {
    "a name before the files are on disk": (
        disk, "        calls.fsync(handle)\n    finally:\n        calls.close(handle)\n\n\ndef _write_all",
        "    finally:\n        calls.close(handle)\n\n\ndef _write_all"),
    "a name before the directory is on disk": (
        disk, "    sync(beside)\n    calls.rename(beside, target)\n", "    calls.rename(beside, target)\n    sync(target)\n"),
    "a name that is not on disk": (
        disk, "    calls.rename(beside, target)\n    sync(target.parent)\n", "    calls.rename(beside, target)\n"),
}  # fmt: skip


def synced_before_named(copy_of: Path, out: Path, patch: pytest.MonkeyPatch) -> bool:
    """Whether, writing a checkpoint, every file and its directory reach the disk before the name, and the name after."""
    events: list[str] = []
    names: dict[int, Path] = {}
    opened, fsync, rename = disk.calls.open, disk.calls.fsync, disk.calls.rename

    def noted(path, *given):
        handle = opened(path, *given)
        names[handle] = Path(path)
        return handle

    with patch.context() as inner:
        inner.setattr(disk.calls, "open", noted)
        inner.setattr(disk.calls, "fsync", lambda handle: (events.append(names[handle].name), fsync(handle)))
        inner.setattr(disk.calls, "rename", lambda old, new: (events.append("named"), rename(old, new)))
        record, contents = checkpoints.read(copy_of)
        written = checkpoints.write(out, record.images, contents, record.log_lines or 0)
    at = events.index("named")
    wanted = {path.name for path in written.iterdir()} | {f".{written.name}.part"}
    return wanted <= set(events[:at]) and events[at + 1 :] == [out.name]


@pytest.mark.parametrize("mistake", ORDER)
def test_a_wrong_order_of_syncs_and_renames_is_seen(mistake, two, tmp_path, monkeypatch):
    source = checkpoints.listed(two)[-1]
    assert synced_before_named(source, tmp_path / "right", monkeypatch)
    with monkeypatch.context() as patch:
        mutate(patch, *ORDER[mistake])
        assert not synced_before_named(source, tmp_path / "wrong", monkeypatch)
    assert synced_before_named(source, tmp_path / "again", monkeypatch), "nothing of the mutation stays"
