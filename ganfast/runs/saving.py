"""What a training state consists of, a copy of it on the host, and the thread that writes that copy while training goes on.

The functions here are the only ones that know which tensors a `State` is made of. Restoring copies into them and replaces none:
optimizers, flat buffers and captured graphs go by their addresses.
"""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ganfast.errors import InputError, RunError, cannot_write
from ganfast.log import logger
from ganfast.loop import State
from ganfast.runs import checkpoint as checkpoints
from ganfast.runs.checkpoint import Contents

RETRY_AFTER = (1.0, 5.0)  # seconds after which a failed write of a run is tried again; then the run ends
T = TypeVar("T")
Finish = Callable[[dict[str, Tensor]], None]  # completes the tensors of the average on the host, in place


def contents_of(state: State) -> dict[str, dict[str, Tensor]]:
    """Every tensor that another step depends on, as it lies in the state: part -> name -> tensor."""
    return {
        "generator": dict(state.generator.state_dict()),
        "critic": dict(state.critic.state_dict()),
        "ema": dict(state.average.state_dict()),
        "optimizer_generator": optimizer_tensors(state.optimizer_generator),
        "optimizer_critic": optimizer_tensors(state.optimizer_critic),
    }


def restore(state: State, contents: Contents, images: int, where: str) -> None:
    """Copy contents into the tensors of a state.

    Raises:
        InputError: the contents of ``where`` are those of other networks.
    """
    for part, module in (("generator", state.generator), ("critic", state.critic), ("ema", state.average)):
        load_module(module, contents[part], f"{where} holds another {part}")
    for part, optimizer in (("generator", state.optimizer_generator), ("critic", state.optimizer_critic)):
        restore_optimizer(optimizer, contents[f"optimizer_{part}"], f"{where}/optimizer_{part}.safetensors")
    state.images = images


def load_module(module: nn.Module, tensors: Mapping[str, Tensor], another: str) -> None:
    """Copy weights and statistics into a network; InputError that begins with ``another`` where they do not fit."""
    try:
        module.load_state_dict(dict(tensors))
    except RuntimeError as error:
        detail = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise InputError(f"{another} than this config makes: {detail}") from error


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Adam's moments and step counts by "<index of the parameter>.<exp_avg|exp_avg_sq|step>"."""
    state = optimizer.state_dict()["state"]
    return {f"{index}.{name}": value for index, entry in state.items() for name, value in entry.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], where: str) -> None:
    """Copy moments and step counts into an optimizer; those of a parameter that has none become zeros."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    entries: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        if int(index) >= len(parameters) or (name != "step" and value.shape != parameters[int(index)].shape):
            raise InputError(f"{where} belongs to other networks than this config makes: {key} has shape {tuple(value.shape)}")
        entries.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": entries})


class Copy:
    """A state as it was. The memory is used again for the next copy.

    Args:
        on_host: keep it on the host, page-locked where the state lies on a GPU; else where the state lies.
    """

    def __init__(self, on_host: bool) -> None:
        self._on_host = on_host
        self.images = -1  # nothing held yet
        self.contents: dict[str, dict[str, Tensor]] = {}

    @torch.no_grad()
    def take(self, state: State) -> None:
        """Copy the state; returns when a copy for the host is there."""
        before, self.contents, to_host = self.contents, {}, False
        for part, tensors in contents_of(state).items():
            held = before.get(part, {})
            copies = self.contents[part] = {}
            for name, tensor in tensors.items():
                copy, crosses = held.get(name), tensor.is_cuda and self._on_host
                if copy is None:
                    device = "cpu" if self._on_host else tensor.device
                    copy = torch.empty(tensor.shape, dtype=tensor.dtype, device=device, pin_memory=crosses)
                copies[name] = copy.copy_(tensor, non_blocking=True)
                to_host = to_host or crosses
        if to_host:
            torch.cuda.synchronize()
        self.images = state.images


class Saver:
    """Writes checkpoints in a thread. Training waits for the copy to the host, and for the write before where that is not done.

    Args:
        folder: of the checkpoints.
        keep: how many of the latest stay; 0 = all.
        finish: called in the thread with the host copy of the average, before it is written.
        flush_log: called in the thread before the checkpoint gets its name: the log must not end before the state does.
        trained_as: what every checkpoint says of the run that it belongs to.
    """

    def __init__(
        self, folder: Path, keep: int, finish: Finish | None, flush_log: Callable[[], None], trained_as: Mapping[str, Any]
    ) -> None:  # fmt: skip
        self.folder, self.keep, self._finish, self._flush_log, self._trained_as = folder, keep, finish, flush_log, trained_as
        self.last = Copy(on_host=True)  # the state of the last checkpoint, or that training began with
        self._thread = ThreadPoolExecutor(1, "ganfast-save")  # Python waits for it before it exits
        self._pending: Future[None] | None = None

    def remember(self, state: State) -> None:
        """Hold a copy of a state that need not be written."""
        self.flush()
        self.last.take(state)

    def save(self, state: State, log_lines: int, then: Callable[[Path], None] | None = None) -> None:
        """Copy the state and have it written; ``then`` is called in the thread with the checkpoint, before old ones are removed.

        Raises:
            InputError: the write before this one failed for want of space or permission.
            RunError: it failed otherwise.
        """
        self.remember(state)
        self._pending = self._thread.submit(self._write, log_lines, then)

    def poll(self) -> None:
        """Raises as `save` does once a write has failed. Waits for nothing."""
        if self._pending and self._pending.done():
            self.flush()

    def flush(self) -> None:
        """Wait until everything is on disk; raises as `save` does if it is not."""
        pending, self._pending = self._pending, None
        if pending:
            try:
                pending.result()
            except OSError as error:
                way_out = f"the ones before are whole: mend that, and `ganfast train --out {self.folder.parent}` goes on"
                raise cannot_write(f"the checkpoint at {self.last.images / 1000:g} kimg", error, way_out) from error

    def close(self) -> None:
        """Wait for the thread and let it go; a failure is said, not raised."""
        try:
            self.flush()
        except (InputError, RunError) as error:
            logger.warning("%s", error)
        self._thread.shutdown()

    def _write(self, log_lines: int, then: Callable[[Path], None] | None) -> None:
        if self._finish:
            self._finish(self.last.contents["ema"])
        last = self.last

        def write() -> Path:
            self._flush_log()
            return checkpoints.write(self.folder, last.images, last.contents, log_lines, self._trained_as)

        written = insist(f"the checkpoint at {last.images / 1000:g} kimg", write)
        tidy(self.folder, self.keep, then and partial(then, written))


def insist(what: str, write: Callable[[], T]) -> T:
    """What ``write`` returns; after an OSError it is tried again, as often as `RETRY_AFTER` has pauses. The last one is raised."""
    for pause in RETRY_AFTER:
        try:
            return write()
        except OSError as error:
            logger.warning("%s: %s; trying again", what, error)
            time.sleep(pause)
    return write()


def tidy(folder: Path, keep: int, first: Callable[[], None] | None = None) -> None:
    """Remove old checkpoints and what is left half-written; that something cannot be is said, not raised, and then all stay.

    Args:
        first: called before; what it raises is taken likewise.
    """
    try:
        if first:
            first()
        checkpoints.prune(folder, keep)
    except OSError as error:
        logger.warning("old checkpoints stay in %s: %s", folder, error)
