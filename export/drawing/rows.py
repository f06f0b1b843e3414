"""What is asked of a sampler, checked; and how many pictures go into which batch. NumPy only."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ganfast.errors import InputError
from ganfast.export.bundle.manifest import Manifest
from ganfast.latents import check_seed, class_list, latents, picture_index, random_classes

_LARGE = 64 << 20  # bytes, from which on it is asked whether they are free

Labels: TypeAlias = int | str | Iterable[int | str] | None


@dataclass(frozen=True)
class Rows:
    """N pictures to draw: (seed, index) names each for good."""

    latent: int
    seed: int
    index: NDArray[np.int64]  # (N,)
    labels: NDArray[np.int64] | None  # (N,); None for a generator without classes
    psi: NDArray[np.float32]  # (N,)
    given: NDArray[np.float32] | None = (
        None  # latents (N, latent) in place of those of (seed, index)
    )

    def __len__(self) -> int:
        return len(self.index)

    def z(self) -> NDArray[np.float32]:
        """Latents (N, latent), before psi."""
        return latents(self.seed, self.index, self.latent) if self.given is None else self.given

    def part(self, start: int, stop: int) -> "Rows":
        if stop - start == len(self):
            return self
        cut = slice(start, stop)
        labels, given = (None if x is None else x[cut] for x in (self.labels, self.given))
        return Rows(self.latent, self.seed, self.index[cut], labels, self.psi[cut], given)  # type: ignore[arg-type]


def ask(
    manifest: Manifest, n: int | None, indices: Any, seed: int, first: int, labels: Labels, psi: Any
) -> Rows:
    """The rows of a request.

    Args:
        n: pictures first .. first + n - 1, or None with ``indices``, (N,) integers.
        labels: one class, by number or name, for all; or one for each picture; None draws them as (seed, index) fixes them.
        psi: one for all, or one for each picture, 0 to 2.

    Raises:
        InputError: what names no picture, class or psi.
    """
    check_seed(seed)
    index = _index(n, indices, first)
    return Rows(
        manifest.latent,
        int(seed),
        index,
        chosen_labels(manifest, labels, int(seed), index),
        _psi(psi, len(index)),
    )


def given(manifest: Manifest, z: Any, labels: Labels, psi: Any) -> Rows:
    """Rows of latents z (N, latent) in place of those of a seed; labels are needed where there are classes."""
    try:
        if np.iscomplexobj(z):
            raise TypeError
        latent = np.ascontiguousarray(z, np.float32)
        if (
            latent.ndim != 2
            or latent.shape[1] != manifest.latent
            or not len(latent)
            or not np.isfinite(latent).all()
        ):
            raise ValueError(f"{latent.shape}")
    except (TypeError, ValueError) as error:
        raise InputError(
            f"z is {_short(z)}; expected finite numbers (N, {manifest.latent})"
        ) from error
    index = np.arange(len(latent))
    if manifest.classes and labels is None:
        raise InputError(f"{manifest.name} draws classes: give labels with z")
    return Rows(
        manifest.latent,
        0,
        index,
        chosen_labels(manifest, labels, 0, index),
        _psi(psi, len(index)),
        latent,
    )


def refuse_huge(manifest: Manifest, n: int) -> None:
    """Raises InputError where ``n`` pictures would not fit into memory."""
    size = n * (math.prod(manifest.shape) + 3 * 8)  # pixels, index, label, psi
    if size > _LARGE and size > (free := _free_memory()):
        raise InputError(
            f"n is {n}: so many pictures take {size / 1e9:,.1f} GB, {free / 1e9:,.1f} GB are free; take them in parts "
            "(Sampler.stream; on the command line --first)"
        )


def _free_memory() -> int:
    """Bytes that can be taken without swapping; on systems that do not say, a large number."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * int(
            next(line.split()[1] for line in lines if line.startswith("MemAvailable:"))
        )
    except (OSError, StopIteration, ValueError, IndexError):
        return 1 << 40


def _index(n: Any, indices: Any, first: Any) -> NDArray[np.int64]:
    if (n is None) == (indices is None):
        raise InputError("give n, how many pictures, or indices, which ones; one of the two")
    if indices is None:
        return picture_index(n, 0, first)
    if first:
        raise InputError(f"first is {first}; it goes with n, not with indices")
    try:
        index = np.asarray(indices)
        if (
            index.ndim != 1
            or not len(index)
            or index.dtype.kind not in "iu"
            or index.min() < 0
            or index.max() >= 2**63
        ):
            raise ValueError(f"{index.dtype} {index.shape}")
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(
            f"indices are {_short(indices)}; expected one or more integers, 0 or more, below 2**63"
        ) from error
    return index.astype(np.int64)


def chosen_labels(
    manifest: Manifest, labels: Any, seed: int, index: NDArray[np.int64]
) -> NDArray[np.int64] | None:
    """The class of each picture, int64 (N,), or None for a generator without classes. See `ask`."""
    count = len(manifest.classes)
    if not count:
        if labels is not None:
            raise InputError(
                f"{manifest.name} was trained without classes: it cannot draw one on request; leave labels out"
            )
        return None
    if labels is None:
        return random_classes(seed, index, count)
    one = is_one(labels)
    each_one = [labels] if one else islice(labels, len(index) + 1)  # an iterator may be endless
    numbers = np.asarray([_number(manifest, each) for each in each_one], np.int64)
    if one:
        return np.broadcast_to(numbers, len(index))
    if len(numbers) != len(index):
        given = (
            len(labels)
            if hasattr(labels, "__len__")
            else len(numbers)
            if len(numbers) < len(index)
            else "more"
        )
        raise InputError(
            f"labels are {given} for {len(index)} pictures; expected one for all, or one for each"
        )
    return numbers


def is_one(value: Any) -> bool:
    """Whether a label or psi is one for all pictures."""
    return isinstance(value, str) or not np.iterable(value)


def _number(manifest: Manifest, label: Any) -> int:
    if isinstance(label, str) and label in manifest.classes:
        return manifest.classes.index(label)
    if (
        isinstance(label, int | np.integer)
        and not isinstance(label, bool)
        and 0 <= label < len(manifest.classes)
    ):
        return int(label)
    raise InputError(
        f"there is no class {label!r}; {manifest.name} has {len(manifest.classes)}: {class_list(manifest.classes)}"
    )


def _psi(psi: Any, count: int) -> NDArray[np.float32]:
    if isinstance(psi, int | float) and 0 <= psi <= 2:
        same = np.empty(count, np.float32)
        same.fill(psi)  # in a tenth of the time that np.full takes for one
        return same
    try:
        if np.iscomplexobj(psi):
            raise TypeError
        values = np.array(psi, np.float32)  # a copy: the caller's own may change before it is drawn
    except (TypeError, ValueError, OverflowError):
        values = np.full(1, np.nan, np.float32)
    if values.ndim > 1 or not (np.isfinite(values) & (values >= 0) & (values <= 2)).all():
        raise InputError(
            f"psi is {_short(psi)}; expected 0 (one picture) to 2, where 1 is as trained"
        )
    if values.ndim == 1 and len(values) != count:
        raise InputError(
            f"psi are {len(values)} for {count} pictures; expected one for all, or one for each"
        )
    return np.ascontiguousarray(np.broadcast_to(values, count))


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def plan(count: int, cost: Mapping[int, float], exact: bool = False) -> list[int]:
    """Batch sizes that draw ``count`` pictures in the least time; the last may be larger than what is left.

    Args:
        cost: seconds of a batch, by bucket.
        exact: batches of any size up to the largest bucket run as they are; else every batch is filled up to a bucket.
    """
    largest = max(cost)
    if exact:
        whole, rest = divmod(count, largest)
        return [largest] * whole + [rest] * bool(rest)
    # Far above the largest bucket the cheapest one per picture does all but the last stretch, which is planned exactly.
    best = min(cost, key=lambda bucket: (cost[bucket] / bucket, -bucket))
    whole = max(0, (count - 2 * largest) // best)
    rest = count - whole * best
    least: list[tuple[float, int]] = [
        (0.0, 0)
    ]  # by pictures left: seconds, and the bucket to begin with
    for left in range(1, rest + 1):
        least.append(min((cost[b] + least[max(0, left - b)][0], -b) for b in cost))
    parts = [best] * whole
    while rest > 0:
        parts.append(-least[rest][1])
        rest -= parts[-1]
    return sorted(parts, reverse=True)


def prior_cost(buckets: Sequence[int]) -> dict[int, float]:
    """Where nothing was measured: a batch costs as much as its pictures and eight more, in arbitrary units."""
    return {bucket: bucket + 8.0 for bucket in buckets}
