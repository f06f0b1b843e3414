"""ganfast apply."""

from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from ganfast.commands.parsing import DEVICE, parser_for
from ganfast.errors import InputError

if TYPE_CHECKING:
    from ganfast.export.drawing.source import BundleSource
    from ganfast.images import Pictures
    from ganfast.runs.run import Run

_CHUNK = 64  # pictures in memory at a time


def apply(args: list[str]) -> None:
    parser = parser_for(
        "ganfast apply",
        "Make pictures from pictures by a run or a bundle that has a task: larger, filled, sharper",
    )
    parser.add_argument("run", help="run directory, or bundle")
    parser.add_argument("pictures", help="a folder or zip of pictures, or one picture")
    parser.flag("--out", "", "folder that gets a PNG of the same name for each", metavar="FOLDER")
    what = "pictures of the same names, white = known and black = hole; or one for all"
    parser.flag("--mask", "", what, metavar="FOLDER")
    parser.flag("--variants", 1, "answers to each picture, each from a latent of its own")
    parser.flag("--psi", 1.0, "truncation: 1 as trained, 0 the one answer; 0 to 2")
    parser.flag("--tiles", False, "of a bundle: larger pictures, in tiles that overlap")
    parser.flag("--seed", 0, "names the stream of latents (default 0)")
    parser.flag("--first", 0, "index of the first picture (default 0)")
    parser.flag("--labels", "", "classes by number or name, used in turn; default: at random")
    parser.flag("--checkpoint", "", "by images shown; default the newest")
    parser.flag("--device", "auto", DEVICE)
    parser.flag("--backend", "auto", "of a bundle: auto, tensorrt, rtx, onnxruntime, torch")
    parser.flag("--digest", None, "of a bundle: sha256:..., another is refused")
    parser.flag("--strict", False, "of a bundle: refuse where its first back end cannot be used")
    arguments = vars(parser.parse_args(args))
    own = {name: arguments.pop(name) for name in ("pictures", "mask", "variants", "tiles")}
    if not arguments["out"]:
        raise InputError("give --out, the folder that gets the pictures")
    if own["variants"] < 1:
        raise InputError(f"variants is {own['variants']}; expected 1 or more")
    from ganfast.log import tell
    from ganfast.sampling import Request, opened

    request = Request(**arguments)
    with opened(request) as run:
        count = _apply(run, request, **own)
    tell(f"{request.out}: {count} pictures")


def _apply(
    run: "Run | BundleSource", request: Any, pictures: str, mask: str, variants: int, tiles: bool
) -> int:
    from ganfast.export.drawing.source import BundleSource
    from ganfast.images import save_png
    from ganfast.sampling import parse_labels

    given, channels = _given(run)
    if not given:
        raise InputError(f"{request.run} draws from latents alone: use `ganfast sample`")
    if len(given) != 3:
        raise InputError(f"{request.run} takes numbers {given}: use Sampler.apply")
    if tiles and not isinstance(run, BundleSource):
        raise InputError(f"--tiles goes with a bundle, and {request.run} is none: export it first")
    labels, out, i = parse_labels(run, request), Path(request.out), request.first
    names, read = _conditions(pictures, mask, given, channels, request.run)
    for source in filter(None, (pictures, mask)):
        place = Path(source).expanduser()
        if out.resolve() in (place.resolve(), place.resolve().parent if place.is_file() else None):
            raise InputError(f"--out {out} is where {source} lies: give a folder of its own")
    chunk = 1 if tiles else max(1, _CHUNK // variants)
    for start in range(0, len(names), chunk):
        some = names[start : start + chunk]
        conditions = [read(name) for name in some for _ in range(variants)]
        if tiles:
            assert isinstance(run, BundleSource)
            # Variants of one picture differ in their latent.
            drawn = [
                run.sampler.apply_tiles(
                    one,
                    seed=request.seed,
                    first=i + k,
                    psi=request.psi,
                    labels=None if labels is None else int(labels[(i + k) % len(labels)]),
                )
                for k, one in enumerate(conditions)
            ]
        else:
            _refuse_sizes(conditions, some, variants, given, tiles)
            more = request.seed, i, request.psi, labels, request.checkpoint, request.device
            drawn = [*run.apply(np.stack(conditions), *more)]
        for k, picture in enumerate(drawn):
            stem, variant = some[k // variants], f"_{k % variants}" if variants > 1 else ""
            save_png(picture, out / f"{stem}{variant}.png")
        i += len(drawn)
    return len(names) * variants


def _given(run: "Run | BundleSource") -> tuple[tuple[int, ...], int]:
    """The shape of a condition, () where there is none; and the channels of a picture."""
    from ganfast.export.drawing.source import BundleSource

    if isinstance(run, BundleSource):
        m = run.sampler.manifest
        return m.condition.shape if m.condition else (), m.channels
    return run.spec().given, run.data["channels"]


def _refuse_sizes(
    conditions: "list[Pictures]", names: list[str], variants: int, given: Any, tiles: bool
) -> None:
    for condition, name in zip(conditions[::variants], names, strict=True):
        if condition.shape != given:
            (h, w), (th, tw) = condition.shape[:2], given[:2]
            larger = ", or --tiles with a bundle" if h >= th and w >= tw else ""
            raise InputError(f"picture {name} is {w}x{h} pixels; expected {tw}x{th}{larger}")


def _conditions(
    pictures: str, mask: str, given: tuple[int, ...], channels: int, source: str
) -> "tuple[list[str], Callable[[str], Pictures]]":
    """Names without their endings, and what reads the condition of one."""
    masked = given[2] > channels
    if mask and not masked:
        raise InputError(f"{source} fills no holes; leave --mask out")
    if masked and not mask:
        raise InputError(f"{source} fills holes: give them as --mask, white = known, black = hole")
    read, names = _reader(pictures, channels)
    if not masked:
        return names, read
    from ganfast.images import refuse_third_value

    read_mask, masks = _reader(mask, 1)
    one = masks[0] if Path(mask).expanduser().is_file() and len(masks) == 1 else None
    if missing := sorted(set(names) - set(masks)) if one is None else []:
        raise InputError(f"{missing[0]} of {pictures} has no mask of its name in {mask}")

    def both(name: str) -> "Pictures":
        picture, known = read(name), read_mask(one or name)
        if picture.shape[:2] != known.shape[:2]:
            sizes = [f"{x.shape[1]}x{x.shape[0]}" for x in (known, picture)]
            raise InputError(f"the mask of {name} is {sizes[0]} pixels, the picture {sizes[1]}")
        refuse_third_value(known, f" of {name}")
        return np.concatenate([picture, known], 2)

    return names, both


def _reader(place: str, channels: int) -> "tuple[Callable[[str], Pictures], list[str]]":
    """What reads a picture as it is, uint8 (h, w, channels), by its name without ending."""
    from ganfast.data.files import PictureFiles, is_picture
    from ganfast.data.pictures import decode

    path = Path(place).expanduser()
    if not path.exists():
        raise InputError(f"{path} does not exist: give a folder or zip of pictures, or a picture")
    if path.is_file() and is_picture(path.name):
        files, inside = [path.name], PictureFiles(path.parent)
    else:
        inside = PictureFiles(path)
        files = inside.names
    named: dict[str, str] = {}
    for name in files:
        stem = str(PurePosixPath(name.replace("\\", "/")).with_suffix(""))
        if named.setdefault(stem, name) != name:
            raise InputError(f"{name} and {named[stem]} in {path} differ by their ending alone")

    def read(stem: str) -> "Pictures":
        name = named[stem]
        image = decode(inside.read(name), f"{name} in {inside.path}")
        image = image.convert("L" if channels == 1 else "RGB")
        return np.asarray(image).reshape(image.height, image.width, channels)

    return read, [*named]
