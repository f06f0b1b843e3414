"""`ganfast sample`: pictures of a run or a bundle as a sheet, as separate files or as arrays."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ganfast import disk
from ganfast.config import require_run
from ganfast.errors import InputError
from ganfast.export.bundle.bundle import is_bundle
from ganfast.export.drawing.source import BundleSource
from ganfast.images import Pictures, comfortable_scale, grid, save_png
from ganfast.latents import latents, picture_index

if TYPE_CHECKING:  # a bundle is drawn without torch
    from ganfast.runs.run import Run

    Source: TypeAlias = Run | BundleSource

_STEPS = 9  # pictures of a row along a direction; the middle one is not moved


@dataclass(frozen=True)
class Request:
    """What to draw and where to write it; the flags of `ganfast sample`."""

    run: str  # or a bundle
    n: int = 64  # pictures; rows with interpolate
    seed: int = 0
    first: int = 0
    labels: str = ""
    balanced: bool = False
    psi: float = 1.0
    interpolate: int = 0  # pictures a row; 0 = off
    direction: int = 0  # number of a latent direction to walk along; 0 = off
    strength: float = 3.0  # how far to either side, in standard deviations of z
    out: str = ""
    grid: str = ""
    columns: int = 0  # 0 = square, or one a class
    checkpoint: str = ""
    device: str = "auto"
    backend: str = "auto"  # of a bundle
    digest: str | None = None  # of a bundle
    strict: bool = False  # of a bundle: refuse where the first back end cannot be used


def sample_to_files(request: Request) -> list[Path]:
    """Draw and write; returns the files, or the folder of separate PNGs.

    Raises:
        InputError: a run, class, psi or place that cannot be used.
    """
    with opened(request) as run:
        return _sample(run, request)


@contextmanager
def opened(request: Request) -> "Iterator[Run | BundleSource]":
    """The run or the bundle of a request.

    Raises:
        InputError: it is neither, or a flag of the request goes with the other.
    """
    run = _opened(request)
    try:
        yield run
    finally:
        if isinstance(run, BundleSource):
            run.close()


def _opened(request: Request) -> "Run | BundleSource":
    if is_bundle(request.run):
        if request.checkpoint:
            raise InputError(
                f"{request.run} is a bundle, which holds one checkpoint; leave --checkpoint out"
            )
        return BundleSource(
            request.run, request.device, request.backend, request.digest, request.strict
        )
    if request.digest is not None or request.backend != "auto" or request.strict:
        raise InputError(
            f"--digest, --backend and --strict go with a bundle, and {request.run} is none; "
            "leave them out"
        )
    require_run(request.run)
    from ganfast.runs.run import Run

    return Run.open(request.run)


def _check_places(request: Request) -> None:
    if request.columns < 0:
        raise InputError(f"columns is {request.columns}; expected 1 or more, or 0 to choose")
    for path in (request.out, request.grid):
        if path and Path(path).suffix.lower() in (".jpg", ".jpeg", ".gif", ".webp", ".bmp"):
            raise InputError(
                f"{path}: sheets are written as .png, arrays as .npz, "
                "and a folder gets one PNG a picture"
            )
    if request.grid and Path(request.grid).suffix.lower() != ".png":
        raise InputError(f"grid is {request.grid}; a sheet is written as FILE.png")


def _sample(run: "Source", request: Request) -> list[Path]:
    labels = parse_labels(run, request)
    _check_places(request)
    try:
        if request.direction:
            return _write(run, request, *_along(run, request, labels), _STEPS)
        if request.interpolate:
            return _write(run, request, *_interpolated(run, request, labels), request.interpolate)
        drawn = (request.n, request.seed, labels, request.psi, request.first)
        pictures, chosen = run.sample_labelled(*drawn, request.checkpoint, request.device)
        names = len(run.classes)
        columns = request.columns or (len(labels) if labels and 1 < len(labels) <= 16 else 0)
        if request.balanced and not request.columns and 1 < names <= 16:
            columns = names
        return _write(run, request, pictures, chosen, columns)
    except OSError as error:
        raise InputError(
            f"{error.filename or request.out} cannot be written: {error.strerror or error}"
        ) from error
    except MemoryError as error:
        raise InputError(
            f"n is {request.n}: so many pictures do not fit into memory; "
            "draw them in parts with --first"
        ) from error


def class_number(word: str, names: Sequence[str]) -> int | None:
    """The class that a word means, by name or number; None for a word that is neither."""
    by_name = {name.lower(): number for number, name in enumerate(names)}
    if word.lower() in by_name:  # a name first: classes may be called "7" at another number
        return by_name[word.lower()]
    if not names or not all(name.isdecimal() for name in names):
        return int(word) if word.isdecimal() else None
    # names that are numbers may not count from 0: then a number is a name
    return {name.lstrip("0"): k for k, name in enumerate(names)}.get(word.lstrip("0"))


def parse_labels(run: "Source", request: Request) -> list[int] | None:
    """Class numbers from "3", "0,1,2" or names; None for classes at random."""
    if request.labels and request.balanced:
        raise InputError("give --labels or --balanced, not both")
    if request.balanced:
        if not run.classes:
            raise InputError(
                f"{run.folder} was trained without classes, so there is nothing to balance; "
                "leave --balanced out"
            )
        return list(range(len(run.classes)))
    if not request.labels:
        return None
    labels = []
    for word in request.labels.split(","):
        word = word.strip()
        number = class_number(word, run.classes)
        if number is not None:
            labels.append(number)
        elif run.classes:
            raise InputError(f"there is no class {word!r}; {run.folder} has {run.class_list()}")
        else:
            raise InputError(
                f"{run.folder} was trained without classes: it cannot draw {word!r} on request; "
                "leave --labels out"
            )
    return labels


def between(
    start: NDArray[np.float32], end: NDArray[np.float32], steps: int
) -> NDArray[np.float32]:
    """Latents (steps, dim) cos(a) start + sin(a) end on the quarter circle, both ends included.

    Unlike a straight line it keeps the length that normal latents have, so that no picture on the
    way is blander than its ends.
    """
    angle = np.linspace(0, np.pi / 2, steps)[:, None]
    return (np.cos(angle) * start + np.sin(angle) * end).astype(np.float32)


def _interpolated(
    run: "Source", request: Request, labels: list[int] | None
) -> tuple[Pictures, np.ndarray | None]:
    if request.interpolate < 2:
        raise InputError(f"interpolate is {request.interpolate}; expected 2 or more pictures a row")
    picture_index(request.n, request.seed, request.first)
    index = np.arange(request.first, request.first + request.n + 1)
    ends, steps = latents(request.seed, index, run.latent), request.interpolate
    z = np.concatenate([between(ends[row], ends[row + 1], steps) for row in range(request.n)])
    chosen = run.labels_of(index[:-1], request.seed, labels)
    rows = None if chosen is None else chosen.repeat(steps)
    return run.draw(z, rows, request.psi, request.checkpoint, request.device), rows


def _along(
    run: "Source", request: Request, labels: list[int] | None
) -> tuple[Pictures, np.ndarray | None]:
    """Rows of pictures z + t direction, t from -strength to strength; the middle one is z's own."""
    if isinstance(run, BundleSource):
        raise InputError(
            f"{request.run} is a bundle, whose weights no direction is read from; give the run"
        )
    if request.interpolate:
        raise InputError("give --direction or --interpolate, not both")
    index = picture_index(request.n, request.seed, request.first)
    directions = run.directions(request.checkpoint, request.device)
    if not 1 <= request.direction <= len(directions):
        raise InputError(
            f"direction is {request.direction}; the generator of {run.folder} has directions 1 "
            f"(the strongest) to {len(directions)}"
        )
    if not np.isfinite(request.strength):
        raise InputError(f"strength is {request.strength}; expected a finite number, usually 3")
    steps = np.linspace(-request.strength, request.strength, _STEPS, dtype=np.float32)[:, None]
    walk = steps * directions[request.direction - 1]
    z = np.concatenate([row + walk for row in latents(request.seed, index, run.latent)])
    chosen = run.labels_of(index, request.seed, labels)
    rows = None if chosen is None else chosen.repeat(_STEPS)
    return run.draw(z, rows, request.psi, request.checkpoint, request.device), rows


def _write(
    run: "Source",
    request: Request,
    pictures: Pictures,
    labels: NDArray[np.int64] | None,
    columns: int,
) -> list[Path]:
    written = []
    out = Path(request.out) if request.out else None
    sheets = [Path(request.grid)] if request.grid else []
    if out is None and not sheets:
        if isinstance(run, BundleSource):
            sheets = [run.sheet(request.seed)]
        else:
            disk.refuse_link(run.folder / "samples")
            sheets = [run.folder / "samples" / f"seed{request.seed}.png"]
    elif out is not None and out.suffix.lower() == ".png":
        sheets.append(out)
    elif out is not None and out.suffix.lower() == ".npz":
        arrays: dict[str, Any] = {"images": pictures}
        arrays |= {"seed": request.seed, "first": request.first, "psi": request.psi}
        with disk.replacing(out) as file:
            np.savez(file, **arrays if labels is None else arrays | {"labels": labels})
        written.append(out)
    elif out is not None:
        for i, picture in enumerate(pictures):
            label = "" if labels is None else f"_class{labels[i]}"
            steps = _STEPS if request.direction else request.interpolate
            row, step = divmod(i, steps or 1)
            step_name = f"_step{step:03d}" if steps else ""
            name = f"seed{request.seed}_{request.first + row:06d}{step_name}{label}.png"
            save_png(picture, out / name)
        written.append(out)
    for sheet in sheets:
        save_png(grid(pictures, columns), sheet, comfortable_scale(pictures.shape[1]))
    return written + sheets
