"""What the next steps need: pictures, latents, epsilons and rates, in tensors that stay in place.

All of it is a function of (seed, image counter). One draw serves several generator steps, so that
its launches are shared.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ganfast.augment import DRAWN
from ganfast.config import Config
from ganfast.data.resident import ResidentData
from ganfast.latents import Purpose
from ganfast.losses import loss_of
from ganfast.penalties import drawn_numbers
from ganfast.random import noise, normal, uniform
from ganfast.tasks import task_of
from ganfast.training.schedules import scheduled_values

_LEAST, _MOST = 8, 64  # generator steps that one draw serves
# Bytes of the tables, above `_LEAST` steps. On a CPU, what is drawn stays in its caches.
_BYTES = 2**19


@dataclass
class CriticFeed:
    """One critic step."""

    real: Tensor  # (N, C, H, W) in [-1, 1]
    labels: Tensor | None  # int64 (N,), only where classes are learnt
    z: Tensor  # (N, latent)
    eps: Tensor | None  # (N,) in [0, 1), for penalties whose points need it (WGAN-GP)
    noise: Tensor | None  # like real in [0, 1), for penalties whose points need it (DRAGAN)
    rate: Tensor  # learning rate, float64 0-d
    beta2: Tensor | None  # of Adam, float64 0-d, where it has a schedule
    # what the penalty has of its full weight, float64 0-d, where it has a schedule
    penalty_share: Tensor | None
    # what transforms are made from, (2 or 3, N, 10): of reals, fakes, and points of the penalty
    uniforms: Tensor | None
    augment_p: Tensor | None  # float64 0-d, where it has a schedule
    given: Tensor | None = None  # conditions (N, k, h, w) of the reals, of a task
    shown: Tensor | None = None  # what the critic is shown of them, (N, K, H, W)


@dataclass
class GeneratorFeed:
    """One generator step."""

    # the reals last shown to the critic, for a loss that pairs, and with a task
    real: Tensor | None
    labels: Tensor | None  # classes of these reals
    z: Tensor
    rate: Tensor
    decay: Tensor  # what stays of the moving average, float64 0-d
    beta2: Tensor | None
    uniforms: Tensor | None  # (2, N, 10): of the fakes, and of the reals as the critic saw them
    augment_p: Tensor | None
    given: Tensor | None = None  # as of `CriticFeed`
    shown: Tensor | None = None


class Feed:
    """Serves one step after another from tables of the next `ahead` generator steps.

    The tables of a critic's turn lie side by side in one row of 64-bit words, so that one copy
    serves the turn.
    """

    def __init__(self, config: Config, data: ResidentData) -> None:
        c, self.config, self.data, device = config, config, data, data.device
        self.task = task_of(c, c.size, c.channels)
        self.step_images = c.optim.critic_steps * c.batch
        bytes_of_step = 4 * self.step_images * c.net.latent
        self.ahead = min(_MOST, max(_LEAST, _BYTES // bytes_of_step))
        self._drawn = range(0)  # on the host: image counters of all steps in the tables
        self._first = torch.zeros((), dtype=torch.int64, device=device)
        self._offsets = torch.arange(self.ahead * self.step_images, device=device)
        # Which turn comes next, counted on the device: a captured phase goes through the tables by
        # itself.
        self._turn = torch.zeros(1, dtype=torch.int64, device=device)
        self._scheduled = list(scheduled_values(c, torch.zeros(0, dtype=torch.int64)))
        columns = {
            "image": (torch.int64, 1),
            "scheduled": (torch.float64, len(self._scheduled)),
            "position": (torch.int64, c.batch),
            "z": (torch.float32, c.batch * c.net.latent),
            "z_generator": (torch.float32, c.batch * c.net.latent),  # in a step's last turn
        }
        if c.conditional != "no":
            columns["labels"] = torch.int64, c.batch
        if data.flip:
            columns["mirrored"] = torch.bool, c.batch
        if drawn_numbers(c.penalty) == "eps":
            columns["eps"] = torch.float32, c.batch
        # Batches with transforms of their own: the generator's fakes, the critic's reals and fakes,
        # and points.
        self._transformed = 3 + bool(drawn_numbers(c.penalty)) if c.augmented else 0
        if self._transformed:
            columns["uniforms"] = torch.float32, c.batch * self._transformed * DRAWN
        turns = self.ahead * c.optim.critic_steps
        # One row more in front, so that the row of the last turn has the number of the next one.
        self._columns_of, words = _layout(columns)
        self._last = torch.zeros(1 + turns, words, dtype=torch.int64, device=device)
        self._next = self._last[1:]
        self._columns = self._columns_of(self._next)

    def due(self, images: int) -> bool:
        """Whether the tables lack the step from ``images`` on, so that they must be drawn."""
        return images not in self._drawn

    def set(self, images: int) -> None:
        """Let the tables start at ``images``; `draw` must follow."""
        c, turns = self.config, self.config.optim.critic_steps
        self._first.fill_(images)
        self.rewind()
        self._drawn = range(images, images + self.ahead * self.step_images, self.step_images)
        # They are computed on the host: a GPU would launch thirty kernels for them.
        values = torch.stack(list(scheduled_values(c, torch.tensor(self._drawn)).values()), dim=1)
        self._columns["scheduled"].copy_(values.repeat_interleave(turns, 0))

    def rewind(self) -> None:
        """Begin the tables again."""
        self._turn.zero_()

    def draw(self) -> None:
        """Fill the tables from their first step on."""
        c, tables, index = self.config, self._columns, self._first + self._offsets
        turns = index.view(-1, c.batch)
        tables["image"].copy_(turns[:, :1])
        position = self.data.positions(index)
        tables["position"].copy_(position.view_as(turns))
        if "labels" in tables:
            labels = self.data.labels_at(position)
            assert labels is not None
            tables["labels"].copy_(labels.view_as(turns))
        if "mirrored" in tables:
            self.data.mirrored(index, tables["mirrored"].unsqueeze(2))
        latents = [tables[name].unflatten(1, (c.batch, -1)) for name in ("z", "z_generator")]
        normal(c.seed, Purpose.CRITIC_LATENT, index, c.net.latent, latents[0])
        if "eps" in tables:
            uniform(c.seed, Purpose.EPSILON, index, 1, tables["eps"].unsqueeze(2))
        if "uniforms" in tables:
            drawn = noise(c.seed, Purpose.AUGMENT, index, self._transformed * DRAWN)
            # a batch's behind each other
            by_batch = drawn.view(len(turns), c.batch, self._transformed, DRAWN).transpose(1, 2)
            tables["uniforms"].view(by_batch.shape).copy_(by_batch)
        # A generator step counts as the last of its critic's turns.
        every = slice(c.optim.critic_steps - 1, None, c.optim.critic_steps)
        last = turns[every].flatten()
        normal(c.seed, Purpose.GENERATOR_LATENT, last, c.net.latent, latents[1][every])

    def critic(self) -> CriticFeed:
        """For the next critic step."""
        c, now = self.config, self._row(self._next)
        self._turn.add_(1)
        real, z = self._pictures(now), now["z"].view(c.batch, c.net.latent)
        noise, values = self._noise(real, now["image"]), self._values(now)
        given, shown = self._conditions(real, now)
        return CriticFeed(
            *(real, now.get("labels"), z, now.get("eps"), noise),
            rate=values["critic"],
            beta2=values.get("beta2"),
            penalty_share=values.get("penalty_share"),
            uniforms=self._uniforms(now, slice(1, None)),
            augment_p=values.get("augment_p"),
            given=given,
            shown=shown,
        )

    def skip(self) -> None:
        """Pass over a critic step."""
        self._turn.add_(1)

    def generator(self) -> GeneratorFeed:
        """For the next generator step, behind its last critic step."""
        c, now = self.config, self._row(self._last)
        z = now["z_generator"].view(c.batch, c.net.latent)
        real = self._pictures(now) if loss_of(c.loss).pairs or self.task else None
        values, (given, shown) = self._values(now), self._conditions(real, now)
        return GeneratorFeed(
            *(real, now.get("labels"), z),
            rate=values["generator"],
            decay=values["decay"],
            beta2=values.get("beta2"),
            uniforms=self._uniforms(now, slice(0, 2)),
            augment_p=values.get("augment_p"),
            given=given,
            shown=shown,
        )

    def _values(self, now: dict[str, Tensor]) -> dict[str, Tensor]:
        return dict(zip(self._scheduled, now["scheduled"].unbind(), strict=True))

    def _row(self, table: Tensor) -> dict[str, Tensor]:
        """The columns of one turn, by a number that the host does not wait for."""
        columns = self._columns_of(table.index_select(0, self._turn))
        return {name: column[0] for name, column in columns.items()}

    def _pictures(self, now: dict[str, Tensor]) -> Tensor:
        return self.data.pictures(now["position"], now.get("mirrored"))

    def _conditions(
        self, real: Tensor | None, now: dict[str, Tensor]
    ) -> tuple[Tensor | None, Tensor | None]:
        """What the task makes of a turn's reals, and what the critic is shown of it."""
        if self.task is None or real is None:
            return None, None
        index = now["image"] + self._offsets[: self.config.batch]
        given = self.task.derive(real, index, self.config.seed)
        return given, self.task.show(given)

    def _uniforms(self, now: dict[str, Tensor], batches: slice) -> Tensor | None:
        if "uniforms" not in now:
            return None
        return now["uniforms"].view(self._transformed, self.config.batch, DRAWN)[batches]

    def _noise(self, real: Tensor, image: Tensor) -> Tensor | None:
        c = self.config
        if drawn_numbers(c.penalty) != "noise":
            return None
        index = image + self._offsets[: c.batch]
        return noise(c.seed, Purpose.NOISE, index, real[0].numel()).view(real.shape)


def _layout(
    columns: dict[str, tuple[torch.dtype, int]],
) -> tuple[Callable[[Tensor], dict[str, Tensor]], int]:
    """How columns share a row of 64-bit words: what names them in a table int64 (rows, words), each
    (rows, numbers) of its type, and how many words there are."""
    words = [-(-count * kind.itemsize // 8) for kind, count in columns.values()]

    def named(table: Tensor) -> dict[str, Tensor]:
        parts = zip(table.split(words, 1), columns.items(), strict=True)
        return {name: part.view(kind)[:, :count] for part, (name, (kind, count)) in parts}

    return named, sum(words)
