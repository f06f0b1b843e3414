"""The thread that writes a copy of the training state while training goes on."""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from ganfast.errors import InputError, RunError, cannot_write
from ganfast.log import logger
from ganfast.runs import checkpoint as checkpoints
from ganfast.training.state import Copy, State

RETRY_AFTER = (1.0, 5.0)  # seconds until a failed write is tried again; then the run ends
T = TypeVar("T")
Finish = Callable[[dict[str, Tensor]], None]  # completes the average on the host, in place


class Saver:
    """Writes checkpoints in a thread.

    Training waits for the copy to the host only, and for the previous write if it is still running.

    Args:
        folder: of the checkpoints.
        keep: how many of the latest stay; 0 = all.
        finish: called in the thread with the host copy of the average, before it is written.
        flush_log: called in the thread before the checkpoint gets its name: the log must not end
            before the state does.
        trained_as: what every checkpoint says of the run that it belongs to.
        computed: how the steps are computed, when a checkpoint is written.
    """

    def __init__(
        self,
        folder: Path,
        keep: int,
        finish: Finish | None,
        flush_log: Callable[[], None],
        trained_as: Mapping[str, Any],
        computed: Callable[[], Mapping[str, Any]],
    ) -> None:
        self.folder, self.keep, self._trained_as = folder, keep, trained_as
        self._computed = computed
        self._finish, self._flush_log = finish, flush_log
        self.last = Copy(on_host=True)  # the state of the last checkpoint, or the first state
        self._thread = ThreadPoolExecutor(1, "ganfast-save")  # Python waits for it before it exits
        self._pending: Future[None] | None = None

    def remember(self, state: State) -> None:
        """Hold a copy of a state that need not be written."""
        self.flush()
        self.last.take(state)

    def save(
        self, state: State, log_lines: int, then: Callable[[Path], None] | None = None
    ) -> None:
        """Copy the state and have it written.

        ``then`` is called in the thread with the checkpoint, before old ones are removed.

        Raises:
            InputError: the write before this one failed for want of space or permission.
            RunError: it failed otherwise.
        """
        self.remember(state)
        self._pending = self._thread.submit(self._write, log_lines, then)

    def poll(self) -> None:
        """Raise as `save` does once a write has failed. Waits for nothing."""
        if self._pending and self._pending.done():
            self.flush()

    def flush(self) -> None:
        """Wait until everything is on disk; raises as `save` does if it is not."""
        pending, self._pending = self._pending, None
        if pending:
            try:
                pending.result()
            except OSError as error:
                go_on = f"`ganfast train --out {self.folder.parent}` goes on"
                way_out = f"the ones before are whole: mend that, and {go_on}"
                raise cannot_write(self._name, error, way_out) from error

    def close(self) -> None:
        """Wait for the thread and end it; a failure becomes a warning."""
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
            return checkpoints.write(
                self.folder,
                last.images,
                last.contents,
                log_lines,
                self._trained_as,
                self._computed(),
            )

        checkpoint = insist(self._name, write)
        tidy(self.folder, self.keep, then and partial(then, checkpoint))

    @property
    def _name(self) -> str:
        return f"the checkpoint at {self.last.images / 1000:g} kimg"


def insist(what: str, write: Callable[[], T]) -> T:
    """What ``write`` returns; an OSError is raised when `RETRY_AFTER` has no more pauses."""
    for pause in RETRY_AFTER:
        try:
            return write()
        except OSError as error:
            logger.warning("%s: %s; trying again", what, error)
            time.sleep(pause)
    return write()


def tidy(folder: Path, keep: int, first: Callable[[], None] | None = None) -> None:
    """Call ``first``, then remove old checkpoints and half-written files.

    After an OSError, which becomes a warning, whatever is left stays.
    """
    try:
        if first:
            first()
        checkpoints.prune(folder, keep)
    except OSError as error:
        logger.warning("old checkpoints stay in %s: %s", folder, error)
