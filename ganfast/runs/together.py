"""One run on several ranks: what they compare at the start, and where they agree while they train.

Rank 0 alone locks the directory, packs, writes, judges and scores. The others follow its word, and
whatever only one rank knows (a signal, a slower engine) becomes known to all.
"""

import hashlib
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import ganfast
from ganfast.config import Config
from ganfast.engine import CriticStep
from ganfast.errors import InputError, RunError
from ganfast.fields import flatten
from ganfast.models.members import has_batch_norm
from ganfast.runs import resume
from ganfast.runs.identity import history
from ganfast.runs.run import Run
from ganfast.runs.writer import Due, Writer
from ganfast.training.plan import PackingProgress, Plan, make_plan
from ganfast.training.ranks import Ranks
from ganfast.training.state import State

_AGREE = 5.0  # seconds, at most, until a signal to one rank is known to all
# Fields that say where a rank finds things, or may differ between machines.
_OWN = ("device", "data", "data_root")


def plan_together(
    ranks: Ranks, config: Config, progress: PackingProgress | None, parent: str | Path
) -> Plan:
    """`make_plan` on every rank. The first rank of each machine packs, and the others wait.

    Raises:
        InputError: configs, pictures or code differ; says how. Or the batch has no equal parts.
    """
    if ranks.local:
        ranks.every(None)
    plan = make_plan(config, progress if ranks.first else None, parent)
    if ranks.together and not ranks.local:
        if not ranks.first:  # another machine's: rank 0 reads its own beside the first steps
            plan.pack.verify()
        ranks.every(None)
    if ranks.together:
        _insist_alike(ranks, _facts(plan))
    try:
        ranks.rows(plan.config)
    except InputError:
        _leave_to_the_first(ranks, 2)
        raise
    return plan


def begin(ranks: Ranks, plan: Plan) -> Plan:
    """Bring each rank to where rank 0 stands.

    Raises:
        InputError: first weights differ; says how.
    """
    if not ranks.together:
        return plan
    images, computed = ranks.every((plan.state.images, plan.computed))[0]
    if images:
        plan.state.images = images
        ranks.copy_first(plan.state)
    else:
        _insist_alike(ranks, {"weights": weights_hash(plan.state)})
    return replace(plan, computed=computed)


def record(run: Run, plan: Plan, ranks: Ranks) -> None:
    """Have the history say by how many ranks a run goes on, where it was another number before."""
    facts: dict[str, Any] = {"ranks": ranks.size, "accumulate": plan.config.accumulate}
    before = [event for event in history(run.folder) if event.get("event") == "ranks"]
    last = before[-1] if before else {"ranks": 1, "accumulate": 1}
    if any(last.get(name) != value for name, value in facts.items()):
        if has_batch_norm(plan.state.generator) or has_batch_norm(plan.state.critic):
            whole = plan.config.sync_batchnorm and plan.config.accumulate == 1
            facts["batch_norm"] = "of the batch" if whole else "of each part"
        resume.remember(run.folder, "ranks", images=plan.state.images, **facts)


class Together:
    """Behind every step of every rank: what `Writer` does on rank 0, and what the others do then.

    ``stopped`` has the signal that all ranks stop for. A process alone stops for its own at once;
    ranks agree when something is due by the counter, and every few seconds.
    """

    def __init__(
        self, ranks: Ranks, plan: Plan, writer: Writer | None, received: list[int]
    ) -> None:
        """``writer``: rank 0's; ``received``: signals of this process."""
        self.ranks, self.plan, self.due, self._writer = ranks, plan, Due(plan.config), writer
        self._received = received
        self.stopped: list[int] = [] if ranks.together else received
        self._pace = 1  # steps between two agreements, at most
        self._step, self._time = self.due.step(plan.state.images), time.monotonic()  # of the last

    def on_step(
        self, state: State, critic: dict[str, Tensor], generator: dict[str, Tensor]
    ) -> None:
        ranks, due, images = self.ranks, self.due, state.images
        if not ranks.together:
            self._write(state, critic, generator)
            return
        line, save = due.line(images, critic), due.save(images) or due.score(images)
        work = line or save or due.look(images) or due.sample(images)
        if not work and due.step(images) % self._pace:
            self._write(state, critic, generator)
            return
        # First the hosts meet: if one is gone, none waits for its device.
        self._agree(images)
        if save:
            self._compare(state)
        if line:
            critic, generator = ranks.statistics(critic), ranks.statistics(generator)
        self._write(state, critic, generator)
        went_back = self._writer is not None and self._writer.restored_at == images
        if work and ranks.most(float(went_back), patient=True)[0]:
            ranks.copy_first(state)

    def finish(self) -> None:
        """`Writer.finish`; the others wait for it."""
        if self.ranks.together:
            self._compare(self.plan.state)
        if self._writer is not None:
            self._writer.finish()
        if self.ranks.together:
            self.ranks.most(0.0, patient=True)

    def _write(self, *step: Any) -> None:
        if self._writer is not None:
            self._writer.on_step(*step)

    def _agree(self, images: int) -> None:
        now, step = time.monotonic(), self.due.step(images)
        # Since the last one there were fewer steps than the pace where a line or a grid was due.
        seconds = max(now - self._time, 1e-9) / max(1, step - self._step)
        wanted = min(self.plan.config.log.every, max(1, int(_AGREE / seconds)))
        own = self._received[0] if self._received else 0
        signal, slow = self.ranks.most(own, -wanted)
        if signal and not self.stopped:
            self.stopped.append(int(signal))
        self._pace, self._step, self._time = int(-slow), step, now

    def _compare(self, state: State) -> None:
        if difference := _difference(self.ranks, {"weights": weights_hash(state)}):
            _leave_to_the_first(self.ranks, 1)
            raise RunError(
                f"{difference}, at {state.images / 1000:g} kimg, which is not saved: one of the "
                "devices computes wrongly, or its network is no function of seed and pictures"
            )


def share_engine(ranks: Ranks, critic: CriticStep) -> None:
    """Let all ranks take the slowest engine that the start-up check of one of them leaves."""
    if ranks.together:
        critic.slowest = lambda own: ranks.most(own, patient=True)[0]


def weights_hash(state: State) -> str:
    """Of weights, average and moments, which are the same bits on every rank."""
    digest = hashlib.sha256()
    for optimizer in state.optimizers().values():
        for tensor in optimizer.flat_tensors():
            digest.update(tensor.cpu().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:12]


def _facts(plan: Plan) -> dict[str, Any]:
    """What all ranks must have alike, but for weights."""
    facts = {k: v for k, v in flatten(plan.config).items() if k not in _OWN}
    info = plan.pack.info
    facts["the pack of pictures"] = (info.pictures_hash or info.source_hash)[:12]
    facts["the code of ganfast"] = f"{ganfast.__version__} {_code_hash()}"
    facts["torch"] = torch.__version__
    return facts


def _insist_alike(ranks: Ranks, facts: Mapping[str, Any]) -> None:
    if difference := _difference(ranks, facts):
        _leave_to_the_first(ranks, 2)
        raise InputError(f"{difference}; every rank must have the same")


def _difference(ranks: Ranks, facts: Mapping[str, Any]) -> str:
    """What the first rank that differs has otherwise than rank 0, as a sentence; "" = nothing."""
    first, *others = ranks.every(dict(facts))
    for rank, said in enumerate(others, start=1):
        names = [name for name in first if said.get(name) != first[name]]
        if names:
            pairs = [f"{n} is {said.get(n)!r} and not {first[n]!r}" for n in names[:5]]
            return f"rank {rank} differs from rank 0: {', '.join(pairs)}"
    return ""


def _leave_to_the_first(ranks: Ranks, code: int) -> None:
    """Every rank has found the same: only rank 0 says it."""
    if not ranks.first:
        raise SystemExit(code)


def _code_hash() -> str:
    digest = hashlib.sha256()
    for folder, below, files in os.walk(Path(ganfast.__file__).parent, followlinks=True):
        below.sort()
        for name in sorted(files):
            if name.endswith(".py"):
                digest.update(Path(folder, name).read_bytes())
    return digest.hexdigest()[:12]
