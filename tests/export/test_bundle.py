"""Bundles on disk, without torch or ONNX: whole or absent, bytes checked, a sentence for faults."""

import json
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load as load_safetensors

from ganfast import disk
from ganfast.cli import main
from ganfast.errors import InputError, RunError
from ganfast.export.bundle.bundle import Bundle, exclusive, golden_file, open_bundle, write_bundle
from ganfast.export.bundle.manifest import GOLDEN, MANIFEST, MODEL, Manifest
from ganfast.export.bundle.tensors import read_tensors, write_tensors
from ganfast.export.engines.cache import EngineCache
from tests.programs import python


def manifest(**changes) -> Manifest:
    plain = Manifest(
        name="tiny",
        latent=3,
        classes=("a", "b"),
        size=4,
        channels=3,
        precision="fp32",
        buckets=(1, 8),
        crop="centre square",
        golden={"seed": 0, "count": 2},
        engines={"k1": {"target": "rtx"}},
        ganfast="0.1.0",
    )
    return replace(plain, **changes)


def files(seed: int = 0) -> dict[str, bytes]:
    random = np.random.default_rng(seed)
    golden = golden_file(
        {
            "z": random.standard_normal((2, 3)).astype(np.float32),
            "labels": np.arange(2),
            "psi": np.ones(2, np.float32),
        },
        random.integers(0, 255, (2, 4, 4, 3), dtype=np.uint8),
    )
    model = b"\x12\x8d\x03" + random.bytes(397)  # an ONNX file that names its producer only
    return {MODEL: model, GOLDEN: golden, "engines/k1": random.bytes(300)}


@pytest.fixture
def bundle(tmp_path) -> Bundle:
    return write_bundle(tmp_path / "b", manifest(), files())


# What was written is what is read


def test_a_bundle_comes_back_as_it_was_written(bundle):
    again = open_bundle(bundle.folder)
    assert again.manifest == bundle.manifest
    assert {path: again.read(path) for path in again.manifest.files} == files()
    assert again.engine("k1") == files()["engines/k1"]
    golden = again.golden()
    assert golden["labels"].tolist() == [0, 1]
    assert golden["images"].shape == (2, 4, 4, 3)


def test_arrays_are_those_that_the_safetensors_library_reads():
    arrays = {
        "b": np.arange(6, dtype=np.float32).reshape(2, 3),
        "a": np.array([1, -2]),
        "c": np.zeros((0, 4), np.uint8),
    }
    data = write_tensors(arrays)
    for read in (load_safetensors(data), read_tensors(data)):
        assert set(read) == set(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(read[name], array)
            assert read[name].dtype == array.dtype


def test_the_digest_names_the_content(bundle, tmp_path):
    same = write_bundle(tmp_path / "same", manifest(), files())
    assert same.manifest.digest == bundle.manifest.digest
    assert bundle.manifest.digest == json.loads((bundle.folder / MANIFEST).read_text())["digest"]
    for other in (
        write_bundle(tmp_path / "name", manifest(name="other"), files()),
        write_bundle(tmp_path / "weights", manifest(), files(seed=1)),
    ):
        assert other.manifest.digest != bundle.manifest.digest
        with pytest.raises(InputError, match="another bundle, or a changed one"):
            open_bundle(other.folder, digest=bundle.manifest.digest)
    open_bundle(same.folder, digest=bundle.manifest.digest)


# What is refused


@pytest.mark.parametrize("seed", range(4))
def test_any_changed_byte_is_refused(bundle, seed):
    random = np.random.default_rng(seed)
    for path in (MANIFEST, *bundle.manifest.files):
        whole = (bundle.folder / path).read_bytes()
        for position in random.integers(0, len(whole), 50):
            changed = bytearray(whole)
            changed[position] ^= 1 << int(random.integers(8))
            (bundle.folder / path).write_bytes(changed)
            with pytest.raises(InputError):
                open_bundle(bundle.folder)
        (bundle.folder / path).write_bytes(whole)
    open_bundle(bundle.folder)


@pytest.mark.parametrize(
    "number", ["1e999", "-1e999", "9" * 400 + "e9", "NaN", "[" * 3000 + "]" * 3000]
)
def test_numbers_that_json_can_say_and_nobody_wrote_are_refused(bundle, number):
    """As a coverage-guided fuzzer found: they can be read and not written."""
    path = bundle.folder / MANIFEST
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"latent": ', b'"more": ' + number.encode() + b', "latent": '))
    assert path.read_bytes() != data
    with pytest.raises(InputError, match="was changed after the export|is damaged"):
        open_bundle(bundle.folder)


@pytest.mark.parametrize("path", [MODEL, GOLDEN, "engines/k1", MANIFEST])
def test_missing_cut_and_lengthened_files_are_refused(bundle, path):
    file = bundle.folder / path
    whole = file.read_bytes()
    for content in (whole[:-1], whole + b" ", b"", None):
        file.unlink() if content is None else file.write_bytes(content)
        with pytest.raises(InputError, match=r"not a bundle|damaged|changed|copy the bundle again"):
            open_bundle(bundle.folder)


def rewritten(bundle: Bundle, digest: bool = True, **changes) -> None:
    """manifest.json with other values and a digest that fits them."""
    import hashlib

    plain = json.loads((bundle.folder / MANIFEST).read_text()) | changes
    plain.pop("digest")
    text = (json.dumps(plain, indent=1, sort_keys=True) + "\n").encode()
    plain["digest"] = f"sha256:{hashlib.sha256(text).hexdigest()}"
    (bundle.folder / MANIFEST).write_bytes(
        (json.dumps(plain, indent=1, sort_keys=True) + "\n").encode()
    )


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"schema": 3}, "schema 3; this version of ganfast reads up to 2: install a newer ganfast"),
        ({"schema": "x"}, "schema 'x'; expected 1 to 2"),
        ({"schema": True}, "schema True; expected 1 to 2"),
        ({"output": {"kind": "text"}}, "a generator of text; this version of ganfast draws pict"),
        ({"condition": {"dtype": "uint8", "shape": [4, 4, 4], "order": "RGB"}}, "no manifest of"),
        ({"condition": {"dtype": "int8", "shape": [4, 4, 3], "order": "RGB"}}, "no manifest of"),
        ({"precision": "fp4"}, "precision 'fp4'; expected one of fp32, tf32, fp16, bf16, int8"),
        ({"buckets": [8, 1]}, "expected ascending batch sizes"),
        ({"buckets": []}, "expected ascending batch sizes"),
        ({"latent": 0}, "no manifest of ganfast"),
        ({"classes": [1]}, "no manifest of ganfast"),
        ({"size": "4"}, "no manifest of ganfast"),
        ({"channels": 1}, "inputs and outputs are not those"),
        ({"more": 1}, "inputs and outputs are not those"),
        ({"files": {}}, "names no"),
        ({"golden": {}}, "no manifest of ganfast"),
        ({"engines": {"k1": []}}, "no manifest of ganfast"),
        ({"engines": {"k1": None}}, "no manifest of ganfast"),
        ({"engines": []}, "no manifest of ganfast"),
        ({"parity": [{}]}, "no manifest of ganfast"),
    ],
    ids=str,
)
def test_manifests_that_cannot_be_are_refused(bundle, changes, sentence):
    rewritten(bundle, **changes)
    with pytest.raises(InputError, match=sentence):
        open_bundle(bundle.folder)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "a\ud800",
        *r"../secret /etc/passwd engines/../../secret a\b C:x ./model.onnx a//b .".split(),
    ],
)
def test_paths_that_leave_the_bundle_are_refused(bundle, path):
    facts = json.loads((bundle.folder / MANIFEST).read_text())["files"]
    rewritten(bundle, files=facts | {path: facts[MODEL]})
    with pytest.raises(InputError, match="not a plain path inside the bundle"):
        open_bundle(bundle.folder)


def test_engine_keys_that_leave_the_bundle_are_refused(bundle):
    rewritten(bundle, engines={"../../secret": {}})
    with pytest.raises(InputError, match="not a plain path inside the bundle"):
        open_bundle(bundle.folder)


def test_links_that_leave_the_bundle_are_refused_though_the_bytes_are_right(bundle, tmp_path):
    (bundle.folder / MODEL).rename(tmp_path / "elsewhere")
    (bundle.folder / MODEL).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="leads out of the bundle"):
        open_bundle(bundle.folder)


@pytest.mark.parametrize("path", [MODEL, MANIFEST])
@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (os.mkfifo, "is no regular file"),  # it would be waited for, for ever
        (Path.mkdir, "Is a directory"),
        (lambda path: path.symlink_to(path.name), "leads to itself|symbolic links"),
    ],
    ids=["pipe", "folder", "link to itself"],
)
def test_what_is_no_plain_file_is_refused(bundle, path, make, sentence):
    (bundle.folder / path).unlink()
    make(bundle.folder / path)
    with pytest.raises(InputError, match=sentence):
        open_bundle(bundle.folder)


@pytest.mark.parametrize("path", [MODEL, MANIFEST])
def test_sizes_that_cannot_be_are_refused_unread(bundle, path):
    with (bundle.folder / path).open("ab") as file:
        file.truncate(1 << 40)  # it has holes: nothing is written
    with pytest.raises(InputError, match=r"has 1,099,511,627,776 bytes; expected [\d,]+ at most"):
        open_bundle(bundle.folder)
    with (bundle.folder / "latency.json").open("wb") as file:
        file.truncate(1 << 40)
    assert bundle.latency() == {}


def test_golden_rows_of_another_shape_are_refused(tmp_path):
    bundle = write_bundle(tmp_path / "b", manifest(golden={"seed": 0, "count": 3}), files())
    with pytest.raises(InputError, match="does not hold the rows"):
        open_bundle(bundle.folder).golden()


@pytest.mark.parametrize(
    "data", [b"", b"1234567", b"\xff" * 8 + b"{}", b"\x02" + b"\0" * 7 + b"[]"], ids=repr
)
def test_damaged_tensor_files_raise_value_error(data):
    with pytest.raises((ValueError, AttributeError)):
        read_tensors(data)


def test_not_a_bundle(tmp_path):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path, tmp_path / "nothing", tmp_path / "file"):
        with pytest.raises(InputError, match="is not a bundle"):
            open_bundle(path)


def test_a_file_in_a_bundles_place_is_named(bundle, tmp_path, capsys):
    """What people give: a zip of the bundle, or the ONNX file in it."""
    archive = shutil.make_archive(str(tmp_path / "bundle"), "zip", bundle.folder)
    for path in (archive, str(bundle.folder / MODEL)):
        for command in (["verify", path], ["inspect", path], ["sample", path]):
            assert main(command) == 2
            said = capsys.readouterr().err
            assert f"{path} is not a " in said
            assert "but one file: give the directory that it is of; a zip has to be" in said


# Writing


def test_only_a_bundle_is_ever_replaced_and_only_when_asked(bundle, tmp_path):
    with pytest.raises(InputError, match="is a bundle already"):
        write_bundle(bundle.folder, manifest(), files(1))
    assert open_bundle(bundle.folder).manifest.digest == bundle.manifest.digest
    new = write_bundle(bundle.folder, manifest(), files(1), overwrite=True)
    assert (
        open_bundle(bundle.folder).manifest.digest == new.manifest.digest != bundle.manifest.digest
    )
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.txt").write_text("x")
    with pytest.raises(InputError, match="exists and is not a bundle"):
        write_bundle(tmp_path / "folder", manifest(), files(), overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b", "folder"], "nothing is left beside"


def test_a_crash_while_writing_leaves_what_was_there(bundle, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(disk.calls, "fsync", fail)
    with pytest.raises(InputError, match="No space left on device"):
        write_bundle(bundle.folder, manifest(), files(1), overwrite=True)
    assert open_bundle(bundle.folder).manifest == bundle.manifest


def test_a_place_is_written_by_one_process_at_a_time(tmp_path):
    out = tmp_path / "b"
    code = (
        "import sys, pathlib; from ganfast.export.bundle.bundle import exclusive\n"
        "with exclusive(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout.readline().strip() == b"held"
    with pytest.raises(RunError, match="another process is writing"):
        write_bundle(out, manifest(), files())
    holder.kill()  # a lock goes with its process
    holder.wait()
    write_bundle(out, manifest(), files())


@pytest.mark.parametrize("exchange", [True, False], ids=["exchanged", "renamed twice"])
def test_readers_see_one_whole_bundle_while_it_is_replaced_again_and_again(
    bundle, exchange, monkeypatch
):
    if not exchange:
        monkeypatch.setattr(disk, "exchange", lambda a, b: False)
    elif not can_exchange(bundle.folder.parent):
        pytest.skip("this file system cannot exchange two directories")
    other = write_bundle(bundle.folder, manifest(), files(1), overwrite=True)
    golden = {each.manifest.digest: each.golden()["images"] for each in (bundle, other)}
    digests = set(golden)
    done = threading.Event()

    def replace_it() -> None:
        for turn in range(60):
            write_bundle(bundle.folder, manifest(), files(turn % 2), overwrite=True)
        done.set()

    writer = threading.Thread(target=replace_it)
    writer.start()
    seen = set()
    while not done.is_set():
        try:
            opened = open_bundle(bundle.folder)
            seen.add(opened.manifest.digest)
            assert np.array_equal(opened.golden()["images"], golden[opened.manifest.digest])
        except InputError as error:  # between two renames there is none for a moment
            assert not exchange
            assert "is not a bundle" in str(error)
    writer.join()
    assert seen == digests
    assert [path.name for path in bundle.folder.parent.iterdir()] == [bundle.folder.name], (
        "nothing is left beside"
    )


def test_golden_rows_are_those_that_were_checked_though_the_bundle_was_replaced(bundle):
    opened = open_bundle(bundle.folder)
    expected = opened.golden()["images"]
    new = write_bundle(bundle.folder, manifest(), files(1), overwrite=True)
    np.testing.assert_array_equal(opened.golden()["images"], expected)
    np.testing.assert_array_equal(
        new.golden()["images"], open_bundle(bundle.folder).golden()["images"]
    )
    assert not np.array_equal(new.golden()["images"], expected)


def can_exchange(folder: Path) -> bool:
    for name in ("one", "two"):
        (folder / name).mkdir()
        (folder / name / name).touch()
    done = disk.exchange(folder / "one", folder / "two")
    assert (folder / "one" / ("two" if done else "one")).exists()
    for name in ("one", "two"):
        shutil.rmtree(folder / name)
    return done


def test_where_the_system_can_exchange_nothing_is_ever_renamed_away(bundle, monkeypatch):
    if not can_exchange(bundle.folder.parent):
        pytest.skip("this file system cannot exchange two directories")

    def fail(*_):
        raise AssertionError("for a moment there would be no bundle")

    monkeypatch.setattr(Path, "rename", fail)
    new = write_bundle(bundle.folder, manifest(), files(1), overwrite=True)
    assert (
        open_bundle(bundle.folder).manifest.digest == new.manifest.digest != bundle.manifest.digest
    )
    assert [path.name for path in bundle.folder.parent.iterdir()] == [bundle.folder.name]


def test_exchange_says_so_where_it_cannot(tmp_path, monkeypatch):
    (tmp_path / "one").mkdir()
    assert not disk.exchange(tmp_path / "one", tmp_path / "nothing")
    assert (tmp_path / "one").exists()
    monkeypatch.setattr("sys.platform", "darwin")
    assert not disk.exchange(tmp_path / "one", tmp_path / "one")


def test_a_kill_between_two_renames_leaves_the_old_bundle_and_says_where(bundle, monkeypatch):
    code = (
        "import os, pathlib, sys; from ganfast import disk; "
        "from ganfast.export.bundle.bundle import open_bundle, write_bundle\n"
        "disk.exchange = lambda a, b: False\n"
        "rename = pathlib.Path.rename\n"
        "def killed(self, to): rename(self, to); os._exit(9)\n"
        "b = open_bundle(sys.argv[1]); f = {path: b.read(path) for path in b.manifest.files}\n"
        "pathlib.Path.rename = killed\n"
        "write_bundle(sys.argv[1], b.manifest, f, overwrite=True)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(bundle.folder)]).returncode == 9
    old = bundle.folder.with_name(".b.old")
    with pytest.raises(
        InputError,
        match=r"b is not a bundle .*; .*\.b\.old is the one from before.*: rename it back",
    ):
        open_bundle(bundle.folder)
    assert open_bundle(old).manifest == bundle.manifest
    unsynced = disk.sync

    def look(path):  # the new one is in place, and only then the old one goes
        assert open_bundle(bundle.folder)
        assert open_bundle(old)
        unsynced(path)

    monkeypatch.setattr(disk, "sync", look)
    write_bundle(bundle.folder, manifest(), files(1))
    assert not old.exists()


def test_a_rename_that_fails_puts_the_old_bundle_back(bundle, monkeypatch):
    monkeypatch.setattr(disk, "exchange", lambda a, b: False)
    rename = Path.rename

    def failing(self, to):
        if self.name.endswith(".part"):
            raise OSError(28, "No space left on device")
        rename(self, to)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(InputError, match="No space left on device"):
        write_bundle(bundle.folder, manifest(), files(1), overwrite=True)
    assert open_bundle(bundle.folder).manifest == bundle.manifest


def test_places_that_cannot_be_renamed_are_refused(bundle, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to("b")
    with pytest.raises(
        InputError, match=r"link is a link, to b; choose --out .*/b, or remove the link"
    ):
        write_bundle(tmp_path / "link", manifest(), files(1), overwrite=True)
    assert open_bundle(bundle.folder).manifest == bundle.manifest
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    for out, instead in ((".", "my.bundle"), ("..", r"\.\./my.bundle")):
        with pytest.raises(InputError, match=f"is no name of its own; .*such as {instead}"):
            write_bundle(out, manifest(), files(1))
    write_bundle(tmp_path / "empty", manifest(), files())
    open_bundle(tmp_path / "empty")


def test_latency_is_kept_beside_the_manifest_and_ignored_where_damaged(bundle):
    assert bundle.latency() == {}
    bundle.write_latency({"cpu": {"1": 0.5}})
    expected = {"cpu": {"1": 0.5}}
    assert open_bundle(bundle.folder, digest=bundle.manifest.digest).latency() == expected
    path = bundle.folder / "latency.json"
    for text in (
        path.read_text().replace("0.5", "0.6"),
        "{",
        "[]",
        "[" * 100_000,
        "Infinity",
        '{"table": 1e999}',
    ):
        path.write_text(text)
        assert bundle.latency() == {}


# Engines built where they run


def test_engine_cache_gives_back_what_it_was_given_and_says_why_not(tmp_path):
    cache = EngineCache(tmp_path / "cache")
    facts = {"onnx": "aa", "version": "11.4", "gpu": "H200"}
    assert cache.get("k", facts) == (None, f"no engine in {tmp_path / 'cache'} yet")
    cache.put("k", b"engine", facts)
    assert cache.get("k", facts) == (b"engine", "")
    data, reason = cache.get("other", facts | {"version": "11.5"})
    assert data is None
    assert "version is 11.5, there 11.4" in reason
    assert "gpu" not in reason
    (tmp_path / "cache" / "k").write_bytes(b"Engine")
    assert "is damaged" in cache.get("k", facts)[1]


def test_engine_cache_drops_what_was_used_longest_ago(tmp_path):
    cache = EngineCache(tmp_path, cap_bytes=250)
    for age, key in enumerate("abc"):
        cache.put(key, bytes(100), {"key": key})
        os.utime(tmp_path / key, (age, age)) if (tmp_path / key).exists() else None
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b", "b.json", "c", "c.json"]
    assert cache.get("b", {"key": "b"})[0] is not None  # used now
    cache.put("d", bytes(100), {"key": "d"})
    assert sorted(p.name for p in tmp_path.glob("?")) == ["b", "d"]
    cache.put("huge", bytes(1000), {"key": "huge"})
    assert [p.name for p in tmp_path.iterdir() if not p.suffix] == ["huge"], (
        "the newest stays, whatever its size"
    )


# Schemas


def test_reading_a_bundle_needs_neither_torch_nor_onnx(bundle):
    code = (
        "import sys; from ganfast.export.bundle.bundle import open_bundle\n"
        f"open_bundle({str(bundle.folder)!r}).golden()\n"
        "print({'torch', 'onnx', 'onnxruntime', 'safetensors'} & set(sys.modules))"
    )
    done = python("-c", code, check=True)
    assert done.stdout.strip() == "set()"


def test_lock_files_do_not_stay(tmp_path):
    with exclusive(tmp_path / "b"):
        assert (tmp_path / ".b.lock").exists()
    assert not list(tmp_path.iterdir())
    shutil.rmtree(tmp_path)
    with exclusive(Path(tmp_path) / "b"):
        pass
