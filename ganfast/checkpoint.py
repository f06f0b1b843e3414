"""The state of a run on disk: safetensors and JSON in a directory that appears whole or not at all.

    checkpoints/000012800/   named by real images shown
        generator, critic, ema, optimizer_generator, optimizer_critic   .safetensors
        state.json

Nothing random is stored: every draw is a function of the seed and the image counter (`ganfast.random`).
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import ganfast
from ganfast.errors import InputError

SCHEMA = 1


def save(folder: Path, images: int, modules: Mapping[str, nn.Module], optimizers: Mapping[str, torch.optim.Optimizer]) -> Path:
    """Write ``folder/<images, 9 digits>``, beside it first and then renamed, so that a half-written one is never seen.

    Returns:
        The checkpoint's directory. One that is there already is kept: the same counter means the same state.
    """
    target = folder / f"{images:09d}"
    if target.exists():
        return target
    beside = folder / f".{target.name}.part"
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    for name, module in modules.items():
        _save_tensors(beside / f"{name}.safetensors", module.state_dict())
    for name, optimizer in optimizers.items():
        _save_tensors(beside / f"optimizer_{name}.safetensors", _optimizer_tensors(optimizer))
    state = {"schema": SCHEMA, "images": images, "ganfast": ganfast.__version__, "torch": str(torch.__version__)}
    (beside / "state.json").write_text(json.dumps(state, indent=1) + "\n")
    for path in [*beside.iterdir(), beside]:
        sync(path)
    beside.rename(target)
    sync(folder)
    return target


def load(checkpoint: Path, modules: Mapping[str, nn.Module], optimizers: Mapping[str, torch.optim.Optimizer] | None = None) -> int:
    """Fill modules and optimizers from a checkpoint directory.

    Returns:
        Real images shown when it was written.

    Raises:
        InputError: not a checkpoint of this version, or of other networks.
    """
    images = read_images(checkpoint)
    for name, module in modules.items():
        tensors = _load_tensors(checkpoint / f"{name}.safetensors")
        try:
            module.load_state_dict(tensors)
        except RuntimeError as error:
            detail = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
            raise InputError(f"{checkpoint} holds another {name} than this config makes: {detail}") from error
    for name, optimizer in (optimizers or {}).items():
        path = checkpoint / f"optimizer_{name}.safetensors"
        tensors = _load_tensors(path)
        _check_optimizer(path, [p for group in optimizer.param_groups for p in group["params"]], tensors)
        _fill_optimizer(optimizer, tensors)
    return images


def read_images(checkpoint: Path) -> int:
    """Real images shown when a checkpoint was written; InputError if it is none."""
    try:
        state: dict[str, Any] = json.loads((checkpoint / "state.json").read_text())
        schema, images = state["schema"], int(state["images"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{checkpoint} is not a checkpoint of ganfast: state.json is missing or damaged ({error})") from error
    if schema != SCHEMA:
        raise InputError(f"{checkpoint} has schema {schema}; this version reads schema {SCHEMA}")
    return images


def listed(folder: Path) -> list[Path]:
    """Checkpoint directories below ``folder``, oldest first."""
    found = (p for p in folder.glob("[0-9]*") if p.name.isdecimal() and (p / "state.json").exists())
    return sorted(found, key=lambda p: int(p.name))  # not by text: 10**9 images have ten digits


def prune(folder: Path, keep: int) -> None:
    """Remove all but the last ``keep`` checkpoints; 0 removes none."""
    for old in listed(folder)[:-keep] if keep else []:
        beside = folder / f".{old.name}.part"  # gone at once: a crash half-way leaves no half checkpoint
        shutil.rmtree(beside, ignore_errors=True)
        old.rename(beside)
        shutil.rmtree(beside)


def sync(path: Path) -> None:
    """Make a file or directory survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {f"{index}.{name}": value for index, entry in state.items() for name, value in entry.items()}


def _fill_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    whole = optimizer.state_dict()
    whole["state"] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        like = parameters[int(index)]
        if value.shape == like.shape:  # fused Adam walks memory: moments must lie in it as their parameter does
            value = torch.empty_like(like).copy_(value)
        whole["state"].setdefault(int(index), {})[name] = value
    optimizer.load_state_dict(whole)


def _check_optimizer(path: Path, parameters: list[Tensor], tensors: dict[str, Tensor]) -> None:
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        if int(index) >= len(parameters) or (name != "step" and value.shape != parameters[int(index)].shape):
            raise InputError(f"{path} belongs to other networks than this config makes: {key} has shape {tuple(value.shape)}")


def _save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    # Clones: weights that a network ties are stored under each of their names, which safetensors refuses to share.
    save_file({name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}, path)


def _load_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    except Exception as error:  # safetensors raises its own type for damaged headers
        if type(error).__name__ == "SafetensorError":
            raise InputError(f"{path} is damaged: {error}") from error
        raise
