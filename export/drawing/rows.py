"""A request to a sampler, checked; and how many pictures go into which batch. NumPy only."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ganfast.errors import InputError
from ganfast.export.bundle.manifest import Manifest
from ganfast.host import free_memory
from ganfast.images import refuse_third_value
from ganfast.latents import check_seed, class_list, latents, picture_index, random_classes

_LARGE = 64 << 20  # bytes; smaller requests do not ask whether so much memory is free

Feed: TypeAlias = Mapping[str, np.ndarray]  # inputs of the graph by name, a row a picture
Labels: TypeAlias = int | str | Iterable[int | str] | None


@dataclass(frozen=True)
class Rows:
    """N pictures to draw: (seed, index) names each for good."""

    latent: int
    seed: int
    index: NDArray[np.int64]  # (N,)
    # Inputs of the graph, a row a picture. Without z, the latents are those of (seed, index).
    arrays: Feed

    def __len__(self) -> int:
        return len(self.index)

    def feed(self, bucket: int) -> dict[str, np.ndarray]:
        """All inputs of a batch; what it has beyond these rows is zeros."""
        feed = dict(self.arrays)
        if "z" not in feed:
            feed["z"] = latents(self.seed, self.index, self.latent)
        if rest := bucket - len(self):
            for name, x in feed.items():
                feed[name] = np.concatenate([x, np.zeros((rest, *x.shape[1:]), x.dtype)])
        return {name: np.ascontiguousarray(x) for name, x in feed.items()}

    def part(self, start: int, stop: int) -> "Rows":
        if stop - start == len(self):
            return self
        cut = slice(start, stop)
        arrays = {name: array[cut] for name, array in self.arrays.items()}
        return Rows(self.latent, self.seed, self.index[cut], arrays)


def ask(
    manifest: Manifest,
    n: int | None,
    indices: Any,
    seed: int,
    first: int,
    labels: Labels,
    psi: Any,
    condition: np.ndarray | None = None,
) -> Rows:
    """The rows of a request.

    Args:
        n: pictures first .. first + n - 1, or None with ``indices``, (N,) integers.
        labels: one class, by number or name, for all; or one for each picture; None draws them as
            (seed, index) fixes them.
        psi: one for all, or one for each picture, 0 to 2.
        condition: what each picture is made from, as of `conditions`.

    Raises:
        InputError: what names no picture, class or psi; more than fits into memory.
    """
    if condition is None:
        _refuse_conditional(manifest)
    if isinstance(n, int | np.integer) and indices is None:
        refuse_huge(manifest, int(n))
    check_seed(seed)
    seed, index = int(seed), _index(n, indices, first)
    classes = chosen_labels(manifest, labels, seed, index)
    arrays = _arrays(classes, psi, len(index))
    if condition is not None:
        arrays["condition"] = condition
    return Rows(manifest.latent, seed, index, arrays)


def _refuse_conditional(manifest: Manifest) -> None:
    if manifest.condition:
        raise InputError(
            f"{manifest.name} makes pictures from others ({(manifest.task or {}).get('kind')}), "
            "not from latents alone: use apply in place of sample"
        )


def conditions(manifest: Manifest, condition: Any) -> np.ndarray:
    """A copy of what pictures are made from, (N, *shape) as ``manifest.condition`` says.

    Raises:
        InputError: the bundle makes pictures from latents alone; another size or type; a mask with
            a value that is neither 0 nor 255; numbers that are not finite.
    """
    given = manifest.condition
    if given is None:
        raise InputError(
            f"{manifest.name} draws from latents alone and takes no condition: use sample"
        )
    shape: tuple[int, ...] = getattr(condition, "shape", ())
    kind = str(getattr(condition, "dtype", type(condition).__name__))
    if kind != given.dtype or len(shape) < 2 or shape[1:] != given.shape or not shape[0]:
        wanted = f"{given.dtype} (N, {', '.join(map(str, given.shape))}), {given.order}"
        raise InputError(
            f"the condition is {kind} {tuple(shape)}; {manifest.name} expects {wanted}"
        )
    if given.masked:
        refuse_third_value(condition[..., -1])
    elif not np.isfinite(condition).all():
        raise InputError("the condition holds numbers that are not finite")
    return np.array(condition)


def rows_of_latents(manifest: Manifest, z: Any, labels: Labels, psi: Any) -> Rows:
    """Rows of latents z (N, latent) in place of those of a seed.

    ``labels`` are needed where there are classes.
    """
    _refuse_conditional(manifest)
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
    classes = chosen_labels(manifest, labels, 0, index)
    arrays = {"z": latent, **_arrays(classes, psi, len(index))}
    return Rows(manifest.latent, 0, index, arrays)


def _arrays(labels: NDArray[np.int64] | None, psi: Any, count: int) -> dict[str, np.ndarray]:
    return ({} if labels is None else {"labels": labels}) | {"psi": _psi(psi, count)}


def refuse_huge(manifest: Manifest, n: int) -> None:
    """Raises InputError where ``n`` pictures would not fit into memory."""
    size = n * (math.prod(manifest.shape) + 3 * 8)  # pixels, index, label, psi
    if size > _LARGE and size > (free := free_memory()):
        raise InputError(
            f"n is {n}: so many pictures take {size / 1e9:,.1f} GB, {free / 1e9:,.1f} GB are free; "
            "take them in parts (Sampler.stream; on the command line --first)"
        )


def refuse_out(manifest: Manifest, rows: Rows, out: Any) -> None:
    """Raises InputError where pictures cannot be written into ``out``."""
    shape = (len(rows), *manifest.shape)
    if out is None or (
        isinstance(out, np.ndarray)
        and out.shape == shape
        and out.dtype == np.uint8
        and out.flags.writeable
    ):
        return
    kind = f"{out.dtype} {out.shape}" if isinstance(out, np.ndarray) else type(out).__name__
    raise InputError(f"out is {kind}; expected a writeable uint8 array {shape}")


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
    if not manifest.classes:
        if labels is not None:
            raise InputError(
                f"{manifest.name} was trained without classes: it cannot draw one on request; "
                "leave labels out"
            )
        return None
    if labels is None:
        return random_classes(seed, index, len(manifest.classes))
    if is_one(labels):
        return np.broadcast_to(np.int64(_number(manifest, labels)), len(index))
    count = len(index)
    # One more than there are pictures, because an iterator may be endless.
    numbers = np.asarray([_number(manifest, x) for x in islice(labels, count + 1)], np.int64)
    if len(numbers) == count:
        return numbers
    total: int | str = len(numbers) if len(numbers) < count else "more"
    if hasattr(labels, "__len__"):
        total = len(labels)
    raise InputError(
        f"labels are {total} for {count} pictures; expected one for all, or one for each"
    )


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
    classes = manifest.classes
    raise InputError(
        f"there is no class {label!r}; {manifest.name} has {len(classes)}: {class_list(classes)}"
    )


def _psi(psi: Any, count: int) -> NDArray[np.float32]:
    if isinstance(psi, int | float) and 0 <= psi <= 2:
        same = np.empty(count, np.float32)
        same.fill(psi)  # in a tenth of the time that np.full takes for one
        return same
    try:
        if np.iscomplexobj(psi):
            raise TypeError
        values = np.array(psi, np.float32)  # a copy: the caller may change its own before we draw
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
    """Batch sizes that draw ``count`` pictures in the least time.

    The last batch may be larger than the number of pictures that are left for it.

    Args:
        cost: seconds of a batch, by bucket.
        exact: batches of any size up to the largest bucket run as they are; else every batch is
            filled up to a bucket.
    """
    largest = max(cost)
    if exact:
        whole, rest = divmod(count, largest)
        return [largest] * whole + [rest] * bool(rest)
    # Far above the largest bucket, the bucket with the cheapest picture draws all but the last
    # stretch. That stretch is planned exactly.
    best = min(cost, key=lambda bucket: (cost[bucket] / bucket, -bucket))
    whole = max(0, (count - 2 * largest) // best)
    rest = count - whole * best
    # By the number of pictures left: least seconds, and minus the bucket to begin with.
    least: list[tuple[float, int]] = [(0.0, 0)]
    for left in range(1, rest + 1):
        least.append(min((cost[b] + least[max(0, left - b)][0], -b) for b in cost))
    parts = [best] * whole
    while rest > 0:
        parts.append(-least[rest][1])
        rest -= parts[-1]
    return sorted(parts, reverse=True)


def prior_cost(buckets: Sequence[int]) -> dict[int, float]:
    """A guess in arbitrary units: a batch costs as much as its pictures and eight more."""
    return {bucket: bucket + 8.0 for bucket in buckets}
