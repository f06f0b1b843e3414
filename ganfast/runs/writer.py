"""What a run writes while it trains: log lines, sample grids, checkpoints."""

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ganfast import disk
from ganfast.config import Config
from ganfast.engine import draw
from ganfast.errors import RunError
from ganfast.evaluate.during import Scorer
from ganfast.evaluate.pairs import Pairs
from ganfast.images import Pictures, comfortable_scale, grid, png
from ganfast.kernels.to_uint8 import to_uint8
from ganfast.latents import latents
from ganfast.log import logger
from ganfast.models.members import has_batch_norm
from ganfast.runs import checkpoint as checkpoints
from ganfast.runs.diagnosis import STILL, Diagnosis, still
from ganfast.runs.identity import mathematics
from ganfast.runs.logfile import RunLog, read_log
from ganfast.runs.run import Run
from ganfast.runs.saving import Finish, Saver, insist
from ganfast.training.ema import reestimate_batchnorm
from ganfast.training.guard import Guard
from ganfast.training.plan import Plan
from ganfast.training.spread import spread
from ganfast.training.state import Copy, State, restore

_SHEET = 64  # pictures in a sample grid, about


class Due:
    """What is to be done behind a step, by the counter alone: the same on every rank."""

    def __init__(self, config: Config) -> None:
        self._config, whole = config, config.kimg * 1000
        self._sample_every = config.log.sample_kimg * 1000 or whole / 20
        self._save_every = config.log.save_kimg * 1000 or whole / 10
        self._step_images = config.batch * config.optim.critic_steps

    def step(self, images: int) -> int:
        return images // self._step_images

    def line(self, images: int, critic: Mapping[str, Tensor]) -> bool:
        """Of the log, for a step with these statistics of the critic."""
        c = self._config
        # A lazy penalty is due in one of ``wait`` steps: the line is of the step that has it, and
        # the counter alone says which that is.
        wait = -(-c.penalty.interval // c.optim.critic_steps) if c.penalty.active and critic else 1
        if images >= c.kimg * 1000:
            return True
        return self.step(images) % c.log.every < wait and ("penalty" in critic or wait == 1)

    def look(self, images: int) -> bool:
        """Of the guard."""
        every = self._config.guard.every
        return bool(every) and self.step(images) % every == 0

    def sample(self, images: int) -> bool:
        return self._crossed(images, self._sample_every)

    def save(self, images: int) -> bool:
        return self._crossed(images, self._save_every)

    def score(self, images: int) -> bool:
        every = self._config.score.every_kimg * 1000
        return bool(every) and self._crossed(images, every)

    def _crossed(self, images: int, every: float) -> bool:
        return images // every != (images - self._step_images) // every


class Writer:
    """Writes log lines, sample grids, and checkpoints of states that the guard passed, when due."""

    def __init__(
        self,
        plan: Plan,
        run: Run,
        log: RunLog,
        scorer: Scorer | None,
        computed: Callable[[], Mapping[str, Any]],
        verdict: Future[None],
    ) -> None:
        """``computed``: how the steps are computed, for the checkpoints. No state is saved before
        the ``verdict`` on the pictures that it was trained on."""
        self._verdict = verdict
        self.plan, self.run, self.log, self.scorer, c = plan, run, log, scorer, plan.config
        self.due = Due(c)
        self.guard, self.tries = Guard(c.guard), 0
        self.good = Copy(on_host=False)  # the state that the guard passed last
        self.problem, self.restored_at = "", -1  # of the last divergence
        finish, trained_as = average_finisher(plan, run), mathematics(run)
        self.saver = Saver(
            run.checkpoint_folder, c.log.keep, finish, log.sync, trained_as, computed
        )
        task = plan.task
        self.pairs = Pairs.of(task, plan.config, plan.pack, plan.device) if task else None
        self.saver.remember(plan.state)
        self.good.take(plan.state)
        self.guard.state_problem(plan.state)  # norms to compare with
        logged = read_log(run.folder / "log.jsonl")
        # The critic rests until then, and is not still.
        begun = max(plan.state.images, int(c.loss.pixel_only_kimg * 1000))
        self.diagnosis, self.begun = Diagnosis(c, logged), begun
        self.told_still = any(STILL in str(record.get("diagnosis")) for record in logged)

    def on_step(
        self, state: State, critic: dict[str, Tensor], generator: dict[str, Tensor]
    ) -> None:
        self.log.progress.tick(state.images)
        self.saver.poll()
        due, images, problem = self.due, state.images, None
        if due.line(images, critic):
            if critic:  # which rests while the generator learns from the distance to reals alone
                generator = generator | {"spread": spread(critic["thumbnails"])}
            named = {f"critic/{n}": value for n, value in critic.items() if n != "thumbnails"}
            named |= {f"generator/{name}": value for name, value in generator.items()}
            record = self.log.step(state.images, named)
            problem = self.guard.statistics_problem(record)
            self._tell(self.diagnosis(record))
        sound = True
        if problem or due.look(images):
            sound = self._hold(problem)
        if due.sample(images):
            self.samples()
        # A state that was only just restored has proved nothing; the last checkpoint is `finish`'s.
        if sound and unfinished(state, self.plan.config):
            scored = self.scorer is not None and due.score(images)
            if scored or due.save(images):
                self.checkpoint(scored)

    def samples(self) -> None:
        """A grid from latents that stay the same throughout the run, classes in columns."""
        path = self.run.folder / "samples" / f"{self.plan.state.images:09d}.png"
        with self._apart():
            sheet = self._sheet()
            save_sheet(sheet, path, self.plan.config.size)
            self.log.picture(self.plan.state.images, sheet)

    def checkpoint(self, scored: bool = False) -> None:
        """Have the state written, unless it has diverged.

        It is scored before, so that a run resumed from it keeps the scores in its log.
        """
        with self._apart():
            self._verdict.result()
            if self._hold(None) and self.plan.state.images != self.saver.last.images:
                self.tries = 0
                keep_best = self._score() if scored else None
                self.saver.save(self.plan.state, self.log.position(), keep_best)

    def _score(self) -> Callable[[Path], None]:
        """Score the average, and log it; the result marks a checkpoint if its score is the best."""
        scorer, images, by = self.scorer, self.plan.state.images, self.plan.config.score.by
        assert scorer is not None
        self._fit_average()
        scores, protocol = scorer(self.plan.state.average, images)
        self.log.scores(images, scores)

        def keep_best(path: Path) -> None:
            if math.isfinite(scores[by]):
                checkpoints.keep_best(path, scores[by], f"{by}: {protocol}", scorer.lower_is_better)

        return keep_best

    def finish(self) -> None:
        """The last grid and the last checkpoint, on disk."""
        state = self.plan.state
        with self._apart():
            self._verdict.result()
            self._hold(None)
            if self.tries > 1 and self.restored_at == state.images:
                raise RunError(
                    f"{self.problem}, the last step, "
                    f"after going back {self.tries - 1} times; {self._way_out()}"
                )
        self.samples()
        with self._apart():
            complete = not unfinished(state, self.plan.config)
            keep_best = self._score() if self.scorer and complete else None
            self.saver.save(state, self.log.position(), keep_best)
        self.saver.flush()

    def close(self) -> None:
        self.saver.close()

    def _hold(self, problem: str | None) -> bool:
        """Whether the state is sound; if not, the last sound state replaces it.

        At the second divergence since a checkpoint, the state that the guard passed last may have
        been ill already: the checkpoint's state replaces it then.

        Raises:
            RunError: the state was replaced as often as the config allows.
        """
        state, images, most = self.plan.state, self.plan.state.images, self.plan.config.guard.tries
        problems = [text for text in (problem, self.guard.state_problem(state)) if text]
        if not problems:
            self.good.take(state)
            self._tell_still()
            return True
        self.problem = "; ".join(problems) + f" at {images / 1000:g} kimg"
        self.tries, self.restored_at = self.tries + 1, images
        if self.tries > most:
            raise RunError(
                f"{self.problem}, after going back {self.tries - 1} times; {self._way_out()}"
            )
        good = self.good
        if self.tries > 1:
            self.saver.flush()  # the thread completes the tensors of what it writes
            good = self.saver.last
        # The counter goes on, because the same pictures would diverge again.
        restore(state, good.contents, images, str(self.run.folder))
        # The next look must not blame the old gradients. In place, as captured phases know them.
        for parameter in (*state.generator.parameters(), *state.critic.parameters()):
            if parameter.grad is not None:
                parameter.grad.zero_()
        self.guard.state_problem(state)  # the norms to compare with are those of this state
        back = f"back to the state of {good.images / 1000:g} kimg, on with the pictures from here"
        logger.warning("%s: %s (%d of %d times)", self.problem, back, self.tries, most)
        return False

    def _tell(self, sentence: str) -> None:
        if sentence:
            logger.warning("%s", sentence)
            self.log.diagnosis(self.plan.state.images, sentence)

    def _tell_still(self) -> None:
        """After a look of the guard: whether a network is where it began."""
        images, names = self.plan.state.images, self.guard.still()
        if names and self.diagnosis.due(images - self.begun) and not self.told_still:
            self.told_still = True
            self._tell(still(names, self.plan.config, images))

    def _way_out(self) -> str:
        lower = "lower --optim.lr-critic or --optim.lr-generator"
        if not checkpoints.listed(self.run.checkpoint_folder):
            return f"there is no checkpoint from before: {lower}, and train into another --out"
        return (
            f"checkpoints in {self.run.checkpoint_folder} are from before; "
            f"with `ganfast train --out {self.run.folder} --fork NEWDIR` a new run begins there: "
            f"{lower}, or train into another --out"
        )

    def _sheet(self) -> Pictures:
        self._fit_average()
        c, device, names = self.plan.config, self.plan.device, self.run.classes
        if self.pairs is not None:
            return self.pairs.sheet(self.plan.state.average, c.net.latent, c.seed)
        columns = sheet_columns(len(names))
        index = torch.arange(columns * (_SHEET // columns))
        z = torch.from_numpy(latents(c.seed, index.numpy(), c.net.latent)).to(device)
        labels = index.to(device) % len(names) if names else None
        with torch.no_grad():
            return grid(to_uint8(draw(self.plan.state.average, z, labels)).cpu().numpy(), columns)

    def _fit_average(self) -> None:
        c = self.plan.config
        reestimate_batchnorm(self.plan.state.average, c.seed, c.net.latent, len(self.run.classes))

    @contextmanager
    def _apart(self) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.log.pause(time.monotonic() - began)


def average_finisher(plan: Plan, run: Run) -> Finish | None:
    """What gives a host copy of the average its batch statistics; None where the net has none.

    It computes on a network of its own, as training goes on meanwhile.
    """
    average = copy.deepcopy(plan.state.average).cpu()
    if not has_batch_norm(average):
        return None

    def finish(tensors: dict[str, Tensor]) -> None:
        average.load_state_dict(tensors)
        reestimate_batchnorm(average, plan.config.seed, plan.config.net.latent, len(run.classes))
        for name, value in average.state_dict().items():
            tensors[name].copy_(value)

    return finish


def save_sheet(sheet: Pictures, path: Path, size: int) -> None:
    """Write a grid of pictures. A training goes on without where Pillow is not installed."""
    try:
        data = png(sheet, comfortable_scale(size))
    except ImportError as error:
        logger.warning("%s is not written: %s; pip install Pillow", path.name, error)
        return

    def write() -> None:
        disk.ensure_directory(path.parent)
        disk.replace_file(path, data)

    insist(path.name, write)


def sheet_columns(classes: int) -> int:
    """Columns of a grid: one a class where they fit side by side, else 8."""
    return classes if 2 < classes <= 16 else 8


def sheet_of_reals(plan: Plan) -> Pictures:
    pictures, _ = plan.data.batch(0, min(_SHEET, len(plan.pack.images)))
    return grid(to_uint8(pictures).cpu().numpy(), 8)


def unfinished(state: State, config: Config) -> bool:
    return state.images < config.kimg * 1000
