"""Packs: made once, found again, rebuilt when damaged, never seen half written."""

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ganfast import locks
from ganfast.data import open_data
from ganfast.data.build import BATCH
from ganfast.data.manifest import IMAGES, LABELS, MANIFEST, PackInfo, load_pack, verify_pack
from ganfast.data.pack import pack_preview
from ganfast.data.source import RULES
from ganfast.errors import InputError, RunError

COUNT = 2 * BATCH + 5  # the last batch of the thread pool is a short one
IMAGES_IN = np.random.default_rng(0).integers(0, 256, (COUNT, 9, 9, 3), dtype=np.uint8)
LABELS_IN = np.array([0, 1, 1, 3] * COUNT)[:COUNT]  # class 2 has no pictures
CLASSES_IN = np.array([0, 1, 1, 2] * COUNT)[:COUNT]  # so 3 is the third class


@pytest.fixture
def source(tmp_path):
    np.savez(tmp_path / "set.npz", images=IMAGES_IN, labels=LABELS_IN)
    return tmp_path / "set.npz"


def only_pack(cache):
    (folder,) = (cache / "packs").iterdir()  # a left-over temporary folder would fail here
    return folder


def test_a_pack_is_the_source_as_a_read_only_memory_map(source, tmp_path):
    pack = open_data(str(source), cache=tmp_path)
    np.testing.assert_array_equal(pack.images, IMAGES_IN.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(pack.labels, CLASSES_IN)
    assert isinstance(pack.images, np.memmap)
    assert pack.images.dtype == np.uint8
    assert pack.labels.dtype == np.int64
    assert not pack.images.flags.writeable
    assert not pack.labels.flags.writeable
    assert pack.info.classes == ("0", "1", "3")


def test_the_folder_holds_what_the_manifest_says(source, tmp_path):
    info = open_data(str(source), cache=tmp_path).info
    folder = only_pack(tmp_path)
    assert folder.name.startswith("set-9x9x3-")
    assert sorted(p.name for p in folder.iterdir()) == sorted([IMAGES, LABELS, MANIFEST])
    manifest = json.loads((folder / MANIFEST).read_text())
    assert manifest["schema"] == 1
    assert len(info.pictures_hash) == 64  # which the hashes in the manifest say
    stored = asdict(replace(info, pictures_hash=""))
    assert manifest["info"] | {"pictures_hash": ""} == json.loads(json.dumps(stored))
    assert verify_pack(folder) == info
    assert info == PackInfo(
        name="set",
        kind="arrays",
        recognised=f"NumPy array in {source} (133 pictures 9x9 colour, 3 classes: 0, 1, 3)",
        count=COUNT,
        channels=3,
        size=9,
        classes=("0", "1", "3"),
        flip=False,
        split="all",
        attributes=(),
        preparation="9x9 colour, as stored",
        source_hash=info.source_hash,
        rules=RULES,
        pictures_hash=info.pictures_hash,
    )


def test_a_cached_pack_is_used_without_reading_the_source_again(source, tmp_path):
    calls = []
    for _ in range(2):
        open_data(str(source), cache=tmp_path, progress=lambda *call: calls.append(call))
    assert calls[0] == ("packing set", 0, COUNT)
    # In order, and from one packing only.
    assert [done for _, done, _ in calls] == [0, BATCH, 2 * BATCH, COUNT]


def test_a_moved_source_is_the_same_pack_with_its_new_place_in_words(source, tmp_path):
    open_data(str(source), cache=tmp_path)
    (tmp_path / "elsewhere").mkdir()
    moved = source.rename(tmp_path / "elsewhere" / "set.npz")
    assert str(moved) in open_data(str(moved), cache=tmp_path).info.recognised
    only_pack(tmp_path)


def test_another_request_or_another_content_is_another_pack(source, tmp_path):
    requests = [{}, {"size": 8}, {"channels": 1}]
    shapes = [
        open_data(str(source), cache=tmp_path, **request).images.shape[1:] for request in requests
    ]
    assert shapes == [(3, 9, 9), (3, 8, 8), (1, 9, 9)]
    np.savez(source, images=255 - IMAGES_IN)
    assert open_data(str(source), cache=tmp_path).labels is None
    assert len(list((tmp_path / "packs").iterdir())) == 4


def test_a_picture_replaced_in_a_folder_makes_another_pack(tmp_path):
    from PIL import Image

    (tmp_path / "set").mkdir()
    for value in (10, 20):
        Image.new("L", (8, 8), value).save(tmp_path / "set" / "a.png")
        # The same size in bytes: the time has to tell.
        os.utime(tmp_path / "set" / "a.png", ns=(0, value))
        assert set(open_data(str(tmp_path / "set"), cache=tmp_path).images.ravel()) == {value}


def test_the_channels_that_a_run_records_are_those_of_its_pack(tmp_path):
    from PIL import Image

    (tmp_path / "set").mkdir()
    Image.new("RGB", (8, 8), (1, 2, 3)).save(tmp_path / "set" / "a.png")
    for channels in (0, 3):
        open_data(str(tmp_path / "set"), cache=tmp_path, channels=channels)
    only_pack(tmp_path)
    assert open_data(str(tmp_path / "set"), cache=tmp_path, channels=1).info.channels == 1


def edit_manifest(folder, change):
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


DAMAGES = {
    "short images": lambda f: os.truncate(f / IMAGES, (f / IMAGES).stat().st_size - 1),
    "long images": lambda f: os.truncate(f / IMAGES, (f / IMAGES).stat().st_size + 1),
    "no images": lambda f: (f / IMAGES).unlink(),
    "no labels": lambda f: (f / LABELS).unlink(),
    "no manifest": lambda f: (f / MANIFEST).unlink(),
    "half a manifest": lambda f: os.truncate(f / MANIFEST, 99),
    "manifest is a list": lambda f: (f / MANIFEST).write_text("[]"),
    "newer schema": lambda f: edit_manifest(f, lambda m: m.update(schema=2)),
    "unknown field": lambda f: edit_manifest(f, lambda m: m["info"].update(colour="blue")),
    "other count": lambda f: edit_manifest(f, lambda m: m["info"].update(count=COUNT - 1)),
    "too few classes": lambda f: edit_manifest(f, lambda m: m["info"].update(classes=["0", "1"])),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_pack_is_made_again_with_one_warning(source, tmp_path, damage):
    open_data(str(source), cache=tmp_path)
    folder = only_pack(tmp_path)
    damage(folder)
    with pytest.warns(RuntimeWarning, match="is damaged.*packing again") as caught:
        pack = open_data(str(source), cache=tmp_path)
    assert len(caught) == 1
    np.testing.assert_array_equal(pack.images, IMAGES_IN.transpose(0, 3, 1, 2))
    assert verify_pack(only_pack(tmp_path)) == pack.info


def change_one_pixel(folder):
    """By one grey level, the last of all."""
    with open(folder / IMAGES, "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(bytes([IMAGES_IN[-1, -1, -1, -1] ^ 1]))


def test_verify_sees_one_changed_pixel(source, tmp_path):
    open_data(str(source), cache=tmp_path)
    folder = only_pack(tmp_path)
    change_one_pixel(folder)
    load_pack(folder)  # too small a change for a quick look
    with pytest.raises(InputError, match=r"images\.npy"):
        verify_pack(folder)


@pytest.mark.parametrize("file", [IMAGES, LABELS])
def test_any_flipped_bit_of_a_pack_is_seen_and_packed_again(source, tmp_path, file):
    good = open_data(str(source), cache=tmp_path)
    path = only_pack(tmp_path) / file
    data = path.read_bytes()
    for position in (0, 9, 127, 128, len(data) // 2, len(data) - 8, len(data) - 1):
        changed = bytearray(data)
        changed[position] ^= 1
        path.write_bytes(changed)
        with pytest.raises(InputError):
            verify_pack(path.parent)
    with pytest.warns(RuntimeWarning, match="packing again"):
        again = open_data(str(source), cache=tmp_path)
    assert path.read_bytes() == data
    assert again.info == good.info


def test_what_is_mapped_is_verified_though_another_pack_took_its_place(source, tmp_path):
    open_data(str(source), cache=tmp_path)
    folder = only_pack(tmp_path)
    change_one_pixel(folder)
    mapped = open_data(str(source), cache=tmp_path, verify=False)
    with pytest.warns(RuntimeWarning, match="packing again"):
        open_data(str(source), cache=tmp_path)
    verify_pack(folder)
    with pytest.raises(InputError, match=r"images\.npy"):
        mapped.verify()


def test_the_same_pictures_of_other_files_have_the_same_hash(tmp_path):
    infos = []
    for name, images in (("a", IMAGES_IN), ("b", IMAGES_IN), ("c", 255 - IMAGES_IN)):
        np.savez_compressed(tmp_path / f"{name}.npz", images=images, comment=name)
        infos.append(open_data(str(tmp_path / f"{name}.npz"), cache=tmp_path).info)
    assert len({info.source_hash for info in infos}) == 3
    assert infos[0].pictures_hash == infos[1].pictures_hash != infos[2].pictures_hash


@settings(max_examples=60, deadline=None)
@given(
    position=st.integers(0, 127),
    value=st.integers(0, 255),
    file=st.sampled_from([IMAGES, LABELS, MANIFEST]),
)
def test_any_changed_byte_at_the_start_of_a_file_is_harmless_or_refused(
    tmp_path_factory, position, value, file
):
    cache = tmp_path_factory.getbasetemp() / "fuzzed"
    if not cache.exists():
        cache.mkdir()
        np.savez(cache / "set.npz", images=IMAGES_IN[:3], labels=LABELS_IN[:3])
    open_data(str(cache / "set.npz"), cache=cache)
    path = only_pack(cache) / file
    good = path.read_bytes()
    path.write_bytes(good[:position] + bytes([value]) + good[position + 1 :])
    try:
        pack = load_pack(path.parent)
    except InputError:
        pass
    else:
        assert pack.images.shape == (3, 3, 9, 9)
    finally:
        path.write_bytes(good)


@pytest.mark.parametrize("error", [KeyboardInterrupt, InputError, MemoryError])
def test_an_interrupted_packing_leaves_nothing(source, tmp_path, error):
    def stop(what, done, total):
        if done:
            raise error("stop")

    with pytest.raises(error):
        open_data(str(source), cache=tmp_path, progress=stop)
    assert list((tmp_path / "packs").iterdir()) == []


def test_what_a_killed_process_left_is_swept_after_a_day(source, tmp_path):
    for name, age in ((".old.partial", 2 * 86400), (".new.partial", 60)):
        (tmp_path / "packs" / name).mkdir(parents=True)
        stamp = (tmp_path / "packs").stat().st_mtime - age
        os.utime(tmp_path / "packs" / name, (stamp, stamp))
    open_data(str(source), cache=tmp_path)
    # It may still be at work.
    assert [p.name for p in (tmp_path / "packs").glob(".*")] == [".new.partial"]


def test_who_packs_at_the_same_time_gets_the_same_pack(source, tmp_path):
    packs, packed = [], []

    def work():
        packs.append(
            open_data(
                str(source),
                cache=tmp_path,
                progress=lambda what, done, total: done or packed.append(what),
            )
        )

    threads = [threading.Thread(target=work) for _ in range(4)]
    with locks.locked(
        lock_of(source, tmp_path), "the pack"
    ):  # all want to begin before the first one can
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        assert packs == packed == []
    for thread in threads:
        thread.join()
    assert len(packs) == 4
    assert len(packed) == 1, "one packs, three wait and find it done"
    assert all(pack.info == packs[0].info for pack in packs)
    assert [p.name for p in (tmp_path / "packs").iterdir()] == [only_pack(tmp_path).name]
    verify_pack(only_pack(tmp_path))


def lock_of(source, cache) -> Path:
    """The lock of a pack that is not there yet."""
    open_data(str(source), cache=cache)
    pack = only_pack(cache)
    shutil.rmtree(pack)
    return pack.with_name(f".{pack.name}.lock")


def test_who_packs_what_another_process_packs_says_whose_it_is_and_waits(source, tmp_path, caplog):
    code = (
        "import sys; from pathlib import Path; from ganfast.locks import locked\n"
        "with locked(Path(sys.argv[1]), 'it'): print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(lock_of(source, tmp_path))]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        # The kernel lets go for it: the file it leaves holds nobody up.
        threading.Timer(0.3, other.kill).start()
        assert open_data(str(source), cache=tmp_path).info.count == COUNT
    assert f"is in use by process {other.pid} on " in caplog.text
    assert caplog.text.count("waiting for it") == 1


def test_a_process_killed_while_packing_leaves_no_pack_to_be_seen(source, tmp_path):
    code = (
        "import os, sys; from ganfast.data import open_data;"
        "open_data(sys.argv[1], cache=sys.argv[2],"
        " progress=lambda what, done, total: done and os._exit(9))"
    )
    assert subprocess.run([sys.executable, "-c", code, str(source), str(tmp_path)]).returncode == 9
    assert [
        p.name for p in (tmp_path / "packs").iterdir() if not p.name.endswith((".partial", ".lock"))
    ] == []
    assert open_data(str(source), cache=tmp_path).info.count == COUNT


def test_a_cache_that_cannot_be_written_says_which_variable_moves_it(source, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(
        InputError, match=r"file.*cannot be written: .*free some space, or .*GANFAST_CACHE"
    ):
        open_data(str(source), cache=tmp_path / "file")


def test_a_full_disk_is_an_error_and_leaves_nothing(source, tmp_path, monkeypatch):
    def full(descriptor, offset, length):
        assert length > IMAGES_IN.size
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(
        InputError,
        match="cannot be written: No space left on device; free some space, or .*GANFAST_CACHE",
    ):
        open_data(str(source), cache=tmp_path)
    assert list((tmp_path / "packs").iterdir()) == []


def test_a_disk_that_fails_is_not_the_users_fault(source, tmp_path, monkeypatch):
    def broken(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "posix_fallocate", broken)
    with pytest.raises(RunError, match="cannot be written: Input/output error"):
        open_data(str(source), cache=tmp_path)


def test_a_preview_takes_every_class_in_turn_and_is_repeatable(source, tmp_path):
    pack = open_data(str(source), cache=tmp_path)
    preview = pack_preview(pack, 8)
    assert preview.shape == (8, 9, 9, 3)
    assert preview.dtype == np.uint8
    positions = [
        int(np.flatnonzero((picture == IMAGES_IN).all((1, 2, 3)))[0]) for picture in preview
    ]
    assert sorted(LABELS_IN[positions].tolist()) == LABELS_IN[positions].tolist()
    assert np.bincount(LABELS_IN[positions]).tolist() == [3, 3, 0, 2]
    np.testing.assert_array_equal(preview, pack_preview(pack, 8))
    assert (preview != pack_preview(pack, 8, seed=1)).any()
    assert len(pack_preview(pack, 10**6)) == COUNT
    with pytest.raises(InputError, match="count is 0"):
        pack_preview(pack, 0)
