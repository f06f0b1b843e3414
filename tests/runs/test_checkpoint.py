"""Checkpoints: a directory is whole or not there, and brings networks and Adam back to the bit."""

import errno
import json
import os
import re
import shutil

import pytest
import torch
from torch import nn

from ganfast import disk
from ganfast.config import OptimConfig
from ganfast.errors import InputError
from ganfast.runs import checkpoint as checkpoints
from ganfast.training.optim import FlatAdam
from ganfast.training.state import load_module, optimizer_tensors, restore_optimizer

PARTS = "generator critic ema optimizer_generator optimizer_critic".split()
FILES = {"state.json", *(f"{part}.safetensors" for part in PARTS)}


def networks(width: int = 5) -> tuple[dict[str, nn.Module], dict[str, torch.optim.Optimizer]]:
    """Convolution, batch norm, spectral norm: weights, statistics and iterations are state."""
    generator = nn.Sequential(
        nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 3, 3)
    )
    critic = nn.Sequential(
        nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, width, 3)),
        nn.Flatten(),
        nn.LazyLinear(1),
    )
    critic(torch.zeros(1, 3, 5, 5))
    modules = {"generator": generator.to(memory_format=torch.channels_last), "critic": critic}
    return modules, {
        name: FlatAdam(module, 1e-2, OptimConfig()) for name, module in modules.items()
    }


def contents(modules, optimizers) -> dict[str, dict[str, torch.Tensor]]:
    """As a host copy holds them: contiguous, each in memory of its own."""
    parts = {name: module.state_dict() for name, module in modules.items()}
    parts |= {"ema": parts["generator"]} | {
        f"optimizer_{name}": optimizer_tensors(adam) for name, adam in optimizers.items()
    }
    as_held = torch.contiguous_format
    return {
        part: {k: v.detach().clone(memory_format=as_held) for k, v in held.items()}
        for part, held in parts.items()
    }


def save(folder, images: int, modules, optimizers):
    return checkpoints.write(folder, images, contents(modules, optimizers), log_lines=7)


def load(checkpoint, modules, optimizers=None) -> int:
    parts = [*modules, *(f"optimizer_{name}" for name in optimizers or {})]
    record, read = checkpoints.read(checkpoint, parts)
    for name, module in modules.items():
        load_module(module, read[name], f"{checkpoint} holds another {name}")
    for name, optimizer in (optimizers or {}).items():
        restore_optimizer(optimizer, read[f"optimizer_{name}"], str(checkpoint))
    return record.images


def step(modules, optimizers, seed: int) -> None:
    """One update of both networks by the same pictures for the same seed."""
    x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    for name, module in modules.items():
        optimizers[name].zero_grad()
        module(x).square().mean().backward()
        optimizers[name].step()


def tensors(modules, optimizers) -> dict[str, torch.Tensor]:
    """Everything that another step depends on."""
    found = {
        f"{name}.{key}": value
        for name, module in modules.items()
        for key, value in module.state_dict().items()
    }
    for name, optimizer in optimizers.items():
        for index, entry in optimizer.state_dict()["state"].items():
            found |= {f"adam {name}.{index}.{key}": value for key, value in entry.items()}
    return {key: value.clone() for key, value in found.items()}


def differing(before, after) -> list[str]:
    assert before.keys() == after.keys()
    return [name for name in before if not torch.equal(before[name], after[name])]


@pytest.fixture
def trained():
    torch.manual_seed(0)
    modules, optimizers = networks()
    for seed in range(3):
        step(modules, optimizers, seed)
    return modules, optimizers


@pytest.fixture
def saved(trained, tmp_path):
    return save(tmp_path, 12800, *trained)


def test_a_checkpoint_is_named_by_its_images_and_holds_one_file_a_part(saved, tmp_path):
    assert saved == tmp_path / "000012800"
    assert {path.name for path in saved.iterdir()} == FILES
    assert checkpoints.read_record(saved).images == 12800
    assert checkpoints.read_record(saved).log_lines == 7
    assert json.loads((saved / "state.json").read_text())["torch"] == torch.__version__


def test_networks_and_adam_come_back_to_the_bit_and_go_on_as_if_never_stopped(trained, saved):
    torch.manual_seed(1)
    fresh = networks()
    step(*fresh, seed=99)  # so that Adam has other moments to forget
    assert len(differing(tensors(*trained), tensors(*fresh))) > len(tensors(*trained)) / 2
    assert load(saved, *fresh) == 12800
    assert differing(tensors(*trained), tensors(*fresh)) == []
    for both in (trained, fresh):
        step(*both, seed=7)
    assert differing(tensors(*trained), tensors(*fresh)) == []


def test_adam_that_has_not_stepped_yet_comes_back_so(tmp_path):
    torch.manual_seed(0)
    before, after = networks(), networks()
    load(save(tmp_path, 0, *before), *after)
    for both in (before, after):
        step(*both, seed=7)
    assert differing(tensors(*before), tensors(*after)) == []


def test_networks_alone_can_be_read_from_a_checkpoint(trained, saved):
    modules, _ = networks()
    load(saved, {"generator": modules["generator"]})
    assert (
        differing(
            tensors({"generator": trained[0]["generator"]}, {}),
            tensors({"generator": modules["generator"]}, {}),
        )
        == []
    )


@pytest.mark.parametrize("crash_in", ["write", "rename"])
def test_a_crash_while_saving_leaves_nothing_to_be_seen_and_nothing_in_the_way(
    trained, tmp_path, monkeypatch, crash_in
):
    real, calls = getattr(disk.calls, crash_in), []

    def crash(*given):
        if crash_in == "write" and not calls:  # the first of six files is whole
            calls.append(given)
            return real(*given)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(disk.calls, crash_in, crash)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, 12800, *trained)
    assert checkpoints.listed(tmp_path) == []
    left = list(tmp_path.iterdir())
    assert len(left) == 1, "the crash came before anything was written: this test shows nothing"
    (left[0] / "optimizer_critic.safetensors").write_bytes(b"left over")

    saved = save(tmp_path, 12800, *trained)
    assert checkpoints.listed(tmp_path) == [saved]
    assert list(tmp_path.iterdir()) == [saved]
    fresh = networks()
    load(saved, *fresh)
    assert differing(tensors(*trained), tensors(*fresh)) == []


def test_every_file_reaches_the_disk_before_the_directory_gets_its_name(
    trained, tmp_path, monkeypatch
):
    events, names = [], {}
    opened, fsync, rename = disk.calls.open, disk.calls.fsync, disk.calls.rename

    def noted(path, *given):
        handle = opened(path, *given)
        names[handle] = path.name
        return handle

    monkeypatch.setattr(disk.calls, "open", noted)
    monkeypatch.setattr(
        disk.calls, "fsync", lambda handle: (events.append(names[handle]), fsync(handle))
    )
    monkeypatch.setattr(
        disk.calls, "rename", lambda old, new: (events.append("renamed"), rename(old, new))
    )
    save(tmp_path, 12800, *trained)
    assert set(events[: events.index("renamed")]) > FILES
    assert events[-1] == tmp_path.name, "the name itself is an entry of the folder above"


def test_saving_the_same_counter_again_keeps_what_is_there(trained, saved, tmp_path):
    before = {path.name: path.stat().st_mtime_ns for path in saved.iterdir()}
    assert save(tmp_path, 12800, *trained) == saved
    assert {path.name: path.stat().st_mtime_ns for path in saved.iterdir()} == before


@pytest.mark.parametrize("name", sorted(FILES - {"state.json"}))
@pytest.mark.parametrize("damage", ["missing", "empty", "header", "cut"])
def test_a_damaged_file_is_named(trained, saved, name, damage):
    path = saved / name
    whole = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(
            {"empty": b"", "header": b"\xff" * 64 + whole[64:], "cut": whole[:-1]}[damage]
        )
    with pytest.raises(InputError) as caught:
        checkpoints.read(saved)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "text", [None, "", "{", "[]", "{}", '{"schema": 1}', '{"schema": 1, "images": "many"}']
)
def test_a_directory_without_a_whole_state_is_no_checkpoint(saved, text):
    state = saved / "state.json"
    state.unlink() if text is None else state.write_text(text)
    with pytest.raises(InputError, match=r"000012800 is not a checkpoint.*state\.json"):
        load(saved, *networks())


def test_a_checkpoint_of_a_later_version_says_so(saved):
    state = json.loads((saved / "state.json").read_text())
    facts = {key: value for key, value in state.items() if key != "sha256"} | {
        "schema": checkpoints.SCHEMA + 1
    }
    (saved / "state.json").write_bytes(checkpoints._sealed(facts))
    with pytest.raises(
        InputError,
        match=f"schema {checkpoints.SCHEMA + 1}.*reads schemas 1 to {checkpoints.SCHEMA}.*update",
    ):
        load(saved, *networks())


def test_a_number_of_the_record_that_was_changed_is_seen(saved):
    """The parts have hashes in the record; what the record itself says has only its own."""
    path = saved / "state.json"
    data = path.read_bytes()
    path.write_bytes(re.sub(rb'("log_lines": )\d+', rb"\g<1>6", data))
    assert path.read_bytes() != data
    with pytest.raises(InputError, match="was changed after it was written"):
        load(saved, *networks())


@pytest.mark.parametrize("positions", [12, pytest.param(200, marks=pytest.mark.full)])
@pytest.mark.parametrize("name", sorted(FILES))
def test_a_flipped_byte_anywhere_is_seen_and_the_checkpoint_before_is_used(
    trained, tmp_path, name, positions, caplog
):
    before, after = (save(tmp_path, images, *trained) for images in (10, 20))
    path = after / name
    whole = path.read_bytes()
    random = torch.Generator().manual_seed(0)
    places = {
        0,
        len(whole) - 1,
        *torch.randint(len(whole), (positions,), generator=random).tolist(),
    }
    for place in places:
        changed = bytearray(whole)
        changed[place] ^= 1 << (place % 8)
        path.write_bytes(changed)
        caplog.clear()
        found = checkpoints.newest_whole(tmp_path)
        assert found is not None
        assert found[0] == before, f"byte {place} of {len(whole)}"
        assert str(after) in caplog.text
        assert f"{before}, is used instead" in caplog.text
    path.write_bytes(whole)
    assert checkpoints.newest_whole(tmp_path)[0] == after


def test_where_every_checkpoint_is_damaged_none_is_taken_and_the_way_out_is_named(
    trained, tmp_path
):
    for images in (10, 20):
        (save(tmp_path, images, *trained) / "critic.safetensors").write_bytes(b"")
    with pytest.raises(
        checkpoints.Damaged,
        match=r"every checkpoint in .* is damaged \(.*000000020/critic.*another --out",
    ):
        checkpoints.newest_whole(tmp_path)


OPERATIONS = ("open", "write", "fsync", "close", "rename", "mkdir", "remove_tree")


def test_a_fault_at_any_file_operation_of_a_save_leaves_a_checkpoint_that_loads(
    trained, tmp_path, monkeypatch
):
    """The n-th operation fails, for every n, by error or short write; the next save is whole."""
    count = 0

    def saves(at: int, folder, short: bool = False) -> bool:
        """Save the second of two checkpoints with a fault at one operation; was it reached?"""
        nonlocal count
        count = 0
        with monkeypatch.context() as patch:
            for operation in OPERATIONS:
                real = getattr(disk.calls, operation)

                def failing(*given, real=real, operation=operation):
                    nonlocal count
                    count += 1
                    if count == at:
                        if operation == "write" and short:
                            real(given[0], given[1][: len(given[1]) // 2])
                        if operation == "close":
                            real(*given)
                        raise OSError(errno.ENOSPC, "No space left on device")
                    return real(*given)

                patch.setattr(disk.calls, operation, failing)
            try:
                save(folder, 20, *trained)
                checkpoints.prune(folder, 1)
            except OSError:
                return True
        return False

    failed = 0
    for short in (False, True):
        for at in range(1, 1000):
            folder = tmp_path / f"{at}-{short}"
            save(folder, 10, *trained)
            if not saves(at, folder, short):
                break
            failed += 1
            found = checkpoints.newest_whole(folder)
            assert found is not None, f"operation {at}"
            fresh = networks()
            load(found[0], *fresh)
            assert differing(tensors(*trained), tensors(*fresh)) == []
            save(folder, 20, *trained)
            checkpoints.prune(folder, 1)
            assert [path.name for path in checkpoints.listed(folder)] == ["000000020"]
            assert checkpoints.problem_of(folder / "000000020") is None
            shutil.rmtree(folder)
    assert failed > 2 * 4 * len(FILES), "open, write, fsync and close of every file"


def test_the_checkpoint_of_the_best_score_survives_pruning(trained, tmp_path):
    for images, score in ((10, 5.0), (20, 3.0), (30, 4.0)):
        expected = score != 4.0
        assert checkpoints.keep_best(save(tmp_path, images, *trained), score, "kid") == expected
    save(tmp_path, 40, *trained)
    checkpoints.prune(tmp_path, 1)
    assert [path.name for path in checkpoints.listed(tmp_path)] == ["000000020", "000000040"]
    assert checkpoints.best(tmp_path) == tmp_path / "000000020"


def test_networks_of_another_shape_are_refused_by_name(saved):
    with pytest.raises(
        InputError, match="another generator than this config makes: .*size mismatch"
    ):
        load(saved, *networks(width=6))
    with pytest.raises(
        InputError, match="another generator than this config makes: .*(Missing|Unexpected)"
    ):
        load(saved, {"generator": nn.Linear(2, 2)})


def test_listed_goes_by_number_and_sees_what_is_named_like_a_checkpoint(trained, saved, tmp_path):
    # Past 10**9 the names grow longer.
    many = [0, 99_999, 999_999_999, 1_000_000_000, 20_000_000_000]
    for images in reversed(many):
        shutil.copytree(saved, tmp_path / f"{images:09d}")
    (tmp_path / ".000099999.part").mkdir()
    (tmp_path / "000000001").mkdir()  # it lost its state.json, which is damage
    shutil.copytree(saved, tmp_path / "000012800.copy")
    (tmp_path / "7").write_text("a file")
    assert [int(path.name) for path in checkpoints.listed(tmp_path)] == sorted([*many, 1, 12800])
    assert checkpoints.listed(tmp_path / "nowhere") == []


@pytest.mark.parametrize(
    ("keep", "left"),
    [(1, [50]), (3, [30, 40, 50]), (5, [10, 20, 30, 40, 50]), (9, [10, 20, 30, 40, 50])],
)
def test_prune_keeps_the_newest(trained, tmp_path, keep, left):
    for images in (30, 10, 50, 20, 40):
        save(tmp_path, images, *trained)
    checkpoints.prune(tmp_path, keep)
    assert [int(path.name) for path in checkpoints.listed(tmp_path)] == left
    assert len(os.listdir(tmp_path)) == len(left), "nothing else stays behind"


def test_prune_to_zero_keeps_all(trained, tmp_path):
    for images in (10, 20):
        save(tmp_path, images, *trained)
    checkpoints.prune(tmp_path, 0)
    assert len(checkpoints.listed(tmp_path)) == 2


def test_a_crash_while_pruning_leaves_no_half_checkpoint(trained, tmp_path, monkeypatch):
    for images in (10, 20):
        save(tmp_path, images, *trained)

    def crash(folder, **_):
        os.unlink(os.path.join(folder, "critic.safetensors"))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(disk.calls, "remove_tree", crash)
        with pytest.raises(KeyboardInterrupt):
            checkpoints.prune(tmp_path, 1)
    for path in checkpoints.listed(tmp_path):
        load(path, *networks())
    assert [path.name for path in checkpoints.listed(tmp_path)] == ["000000020"]
