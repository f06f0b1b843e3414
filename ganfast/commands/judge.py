"""ganfast judge."""

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ganfast.commands.parsing import DATA_ROOT, DEVICE, parser_for
from ganfast.errors import InputError

if TYPE_CHECKING:
    from ganfast.runs.critic import Critic

_CHUNK = 256  # pictures in memory at a time
_SHOWN = 20  # rows of the table at either end


def judge(args: list[str]) -> None:
    parser = parser_for(
        "ganfast judge",
        "What the critic of a run says of pictures: score, probability where the loss has one, and "
        "the share of up to 1,000 reals and of 1,000 fakes that score lower",
    )
    parser.add_argument("run", help="run directory")
    parser.add_argument("pictures", help="a folder or zip of pictures, or one picture")
    what = "class by number or name, where the critic judges a picture as one of its class"
    parser.flag("--class", "", what, dest="label")
    parser.flag("--out", "", "also write every row", metavar="FILE.csv")
    what = "also write each picture beside the gradient of its score: grey = no influence, "
    parser.flag("--maps", "", what + "white = brighter would score higher", metavar="FOLDER")
    parser.flag("--data", "", "where the reals lie; default what the run was trained on")
    parser.flag("--data-root", "", DATA_ROOT)
    parser.flag("--checkpoint", "", "by images shown, or best; default the newest")
    parser.flag("--device", "auto", DEVICE)
    arguments = parser.parse_args(args)
    if arguments.out and Path(arguments.out).suffix.lower() != ".csv":
        raise InputError(f"out is {arguments.out}; the rows are written as FILE.csv")

    from ganfast.data.folder import pictures_at
    from ganfast.runs.run import Run

    run = Run.open(arguments.run)
    critic = run.critic(arguments.checkpoint, arguments.device)
    label = None if not arguments.label else _class(arguments.label, run)
    names, read = pictures_at(
        Path(arguments.pictures).expanduser(), run.data["size"], run.data["channels"]
    )
    rows: list[tuple[str, ...]] = []
    for start in range(0, len(names), _CHUNK):
        pictures = read(start, start + _CHUNK)
        judged = critic.judge(pictures, label, arguments.data, arguments.data_root)
        columns = [values for values in judged if values is not None]
        for name, *numbers in zip(names[start:], *columns, strict=False):
            rows.append((name, *(f"{number:.6g}" for number in numbers)))
        if arguments.maps:
            _write_maps(critic, pictures, label, Path(arguments.maps), names[start:])
    titles = [field for field, values in judged._asdict().items() if values is not None]
    _write(arguments.out, ("picture", *titles), rows)


def _class(word: str, run: Any) -> int:
    """The number of a class by its name or number."""
    from ganfast.sampling import class_number

    number = class_number(word, run.classes)
    if number is not None:
        return number
    there = f"there: {run.class_list()}" if run.classes else "it was trained without classes"
    raise InputError(f"{run.folder} has no class {word!r}; {there}")


def _write_maps(
    critic: "Critic", pictures: Any, label: int | None, folder: Path, names: list[str]
) -> None:
    from ganfast.images import comfortable_scale, save_png
    from ganfast.runs.critic import map_sheet

    gradients = critic.gradient(pictures, label)
    for name, picture, gradient in zip(names, pictures, gradients, strict=False):
        sheet = map_sheet(picture, gradient)
        save_png(sheet, folder / f"{name}.png", comfortable_scale(picture.shape[0]))


def _write(out: str, titles: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """All rows as CSV, by name; on the screen those with the highest and lowest scores."""
    if out:
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerows([titles, *rows])
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        Path(out).write_text(text.getvalue(), encoding="utf-8")
    ordered = sorted(rows, key=lambda row: float(row[1]), reverse=True)
    left_out = len(ordered) - 2 * _SHOWN
    if left_out > 0:
        between = f"... {left_out} more"
        middle = (between, *[""] * (len(titles) - 1))
        ordered = [*ordered[:_SHOWN], middle, *ordered[-_SHOWN:]]
    table = [tuple(title.replace("_", " ") for title in titles), *ordered]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for name, *numbers in table:
        cells = [number.rjust(width) for number, width in zip(numbers, widths[1:], strict=True)]
        print("  ".join([name.ljust(widths[0]), *cells]).rstrip())
