"""Several processes that train one run, started by torchrun: each computes its rows of every batch.

All randomness is a function of (seed, purpose, image), so that a rank draws what is of its rows
alone. What the ranks exchange is a mean of gradients for each step of a network, and a few numbers
where something is logged, judged or saved. A process that torchrun did not start is rank 0 of 1,
and exchanges nothing.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ganfast.config import Config
from ganfast.device import find_device
from ganfast.errors import InputError, RunError
from ganfast.fields import parts_of
from ganfast.training.phases import exchanged, is_recording
from ganfast.training.state import State, contents_of

_LIMIT = timedelta(seconds=60)  # a rank that lets the others wait for longer is lost
# While rank 0 packs, scores or saves. A rank that ends is noticed at once all the same.
_PATIENCE = timedelta(hours=6)
_BATCH_NORM = nn.modules.batchnorm._BatchNorm


@dataclass(frozen=True)
class Ranks:
    """One of ``size`` processes that train together; ``together`` where torchrun started them."""

    rank: int = 0
    size: int = 1
    local: int = 0  # the number among those of this machine
    together: bool = False
    patient: Any = None  # the group to wait for rank 0 with

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which alone locks, writes and scores."""
        return self.rank == 0

    def rows(self, config: Config) -> slice:
        """The rows of every batch that this rank computes.

        Raises:
            InputError: the batch has no equal parts.
        """
        parts_of(config.batch, config.accumulate, self.size)
        count = config.batch // self.size
        return slice(self.rank * count, (self.rank + 1) * count)

    def mean(self, x: Tensor) -> None:
        """Replace x, of any shape, by its mean over all ranks: in place, the same bits on each."""
        if self.together:
            self._reduce(x, dist.ReduceOp.SUM)
            x.div_(self.size)

    def std(self, x: Tensor) -> Tensor:
        """Standard deviation, 0-d, of the numbers of all ranks, each of which has as many as x."""
        if not self.together:
            return x.std()
        sums = torch.stack([x.sum(dtype=torch.float64), x.double().square().sum()])
        self._reduce(sums, dist.ReduceOp.SUM)
        count = self.size * x.numel()
        variance = (sums[1] - sums[0].square() / count) / (count - 1)
        return variance.clamp_min(0).sqrt().to(x.dtype)

    def statistics(self, stats: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Those of the whole batch from those of each rank's rows.

        Thumbnails (2, N, C, h, w) are put behind each other, of a "..._max" the largest is taken,
        and of all others, 0-d, the mean.
        """
        joined = dict(stats)
        if not self.together:
            return joined
        if "thumbnails" in joined:
            mine = joined["thumbnails"].contiguous()
            every = [torch.empty_like(mine) for _ in range(self.size)]
            self._exchange(partial(dist.all_gather, every, mine))
            joined["thumbnails"] = torch.cat(every, dim=1)
        for largest in (True, False):
            names = [n for n in stats if n.endswith("_max") == largest and n != "thumbnails"]
            if names:
                values = torch.stack([stats[name].double() for name in names])
                if largest:
                    self._reduce(values, dist.ReduceOp.MAX)
                else:
                    self.mean(values)
                joined |= dict(zip(names, values.unbind(), strict=True))
        return joined

    def most(self, *numbers: float, patient: bool = False) -> list[float]:
        """The largest of all ranks' numbers, one by one, through the hosts: no device is waited
        for.

        Args:
            numbers: as many on every rank.
            patient: rank 0 may take hours until it answers.
        """
        values = torch.tensor(numbers, dtype=torch.float64)
        self._reduce(values, dist.ReduceOp.MAX, self.patient if patient else None)
        return values.tolist()

    def every(self, facts: Any) -> list[Any]:
        """What each rank says, in their order; ``facts`` may be anything that pickles."""
        if not self.together:
            return [facts]
        said: list[Any] = [None] * self.size
        self._exchange(partial(dist.all_gather_object, said, facts, group=self.patient))
        return said

    def copy_first(self, state: State) -> None:
        """Make the tensors of a state those of rank 0's, in place."""
        with torch.no_grad():
            for tensors in contents_of(state).values():
                for tensor in tensors.values():
                    whole = tensor.contiguous()
                    self._exchange(partial(dist.broadcast, whole, 0))
                    tensor.copy_(whole)
        for optimizer in state.optimizers().values():
            optimizer.renew()

    def _reduce(self, x: Tensor, by: Any, group: Any = None) -> None:
        self._exchange(partial(dist.all_reduce, x, by, group))

    def _exchange(self, exchange: partial[Any]) -> None:
        """RunError where another rank is gone; its own message says why."""
        try:
            exchanged(exchange)
        except RuntimeError as error:
            if is_recording():
                raise  # a capture forbids it, and the phase is recorded without it
            detail = " ".join(str(error).split())[:120]
            raise RunError(
                f"rank {self.rank} of {self.size} cannot reach the others, one of which ended or "
                f"hangs ({detail}); the same command goes on from the newest checkpoint"
            ) from error


ALONE = Ranks()


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """The ranks that torchrun started, or the one process that this is.

    Args:
        device: of the config; rank 0 on a machine takes its first GPU, and so on.

    Raises:
        InputError: no such device.
    """
    if not (dist.is_available() and dist.is_torchelastic_launched()):
        yield ALONE
        return
    several = int(os.environ.get("LOCAL_WORLD_SIZE", 1)) > 1
    if several and ":" in device:
        raise InputError(
            f"device is {device!r}, which the ranks of a machine cannot share; use cuda or auto"
        )
    on_gpu = find_device(device).type == "cuda"
    if on_gpu:  # seconds until the watch over a rank that hangs in a sum ends it
        os.environ.setdefault("TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC", str(_LIMIT.seconds))
    mine = not dist.is_initialized()  # else by the script that calls
    if mine:
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=_LIMIT)
    try:
        patient = dist.new_group(backend="gloo", timeout=_PATIENCE)
        local = int(os.environ.get("LOCAL_RANK", 0))
        yield Ranks(dist.get_rank(), dist.get_world_size(), local, True, patient)
    finally:
        if mine:
            dist.destroy_process_group()


def synchronise_batch_norm(state: State) -> None:
    """Let the batch norms of networks that train see the whole batch; the average keeps its own.

    Raises:
        InputError: not on a GPU, which torch's layer needs.
    """
    if not state.optimizer_critic.flat.is_cuda:
        raise InputError("sync_batchnorm is on, which needs GPUs: torch has no such layer on a CPU")
    for optimizer, net in (
        (state.optimizer_generator, state.generator),
        (state.optimizer_critic, state.critic),
    ):
        for module in (*net.modules(), *optimizer.computing.modules()):
            if isinstance(module, _BATCH_NORM) and not isinstance(module, nn.SyncBatchNorm):
                # The members are the same but for the group, and views of weights stay where they
                # are.
                module.__class__ = nn.SyncBatchNorm
                module.process_group = None  # type: ignore[assignment]
