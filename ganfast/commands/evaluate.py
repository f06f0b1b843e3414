"""ganfast eval."""

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ganfast.commands.augment import usefulness
from ganfast.commands.parsing import ATTRIBUTES, DATA_ROOT, DEVICE, TRANSPOSE, Parser, parser_for
from ganfast.errors import InputError

_OF_USEFULNESS = {"sources", "augment", "data", "data_root", "n", "checkpoint", "seed", "psi"}
_OF_USEFULNESS |= {"no_ema", "json", "device"}
_OF_PAIRED = _OF_USEFULNESS - {"augment", "data"}
_OF_PAIRED |= {"extractor", "sha256", "preprocessing", "sheet"}


def evaluate(args: list[str]) -> None:
    parser = _parser()
    arguments = parser.parse_args(args)
    sheets = {"sheet": arguments.sheet, "copies": arguments.copies}
    json_file = "" if arguments.json == "-" else arguments.json
    for path in filter(None, sheets.values()):
        if not path.lower().endswith(".png"):
            raise InputError(f"{path}: a sheet is written as FILE.png")
    for path in filter(None, (*sheets.values(), json_file)):
        _make_folder_of(Path(path))
    given = {name for name, value in vars(arguments).items() if value != parser.get_default(name)}
    if arguments.augment:
        usefulness(arguments, sorted(given - _OF_USEFULNESS))
        return
    runs = _runs(arguments)
    if any(run.config.task.kind != "none" for run in runs.values()):
        _paired(arguments, runs, json_file, sorted(given - _OF_PAIRED))
        return
    results = _results(arguments, runs)

    from ganfast.evaluate.report import table
    from ganfast.images import comfortable_scale, grid, save_png

    text = json.dumps([result.to_json() for result in results], indent=1, allow_nan=False)
    if json_file:
        Path(json_file).write_text(text + "\n")
    for name, path in sheets.items():
        if path:
            pictures = getattr(results[0], name)
            save_png(grid(pictures, columns=8), path, comfortable_scale(pictures.shape[1]))
    print(text if arguments.json == "-" else table(results))


def _runs(arguments: Any) -> dict[str, Any]:
    """The runs among the sources."""
    from ganfast.runs.run import Run

    found = [source for source in arguments.sources if (Path(source) / "config.yaml").exists()]
    return {source: Run.open(source) for source in found}


def _paired(arguments: Any, runs: dict[str, Any], json_file: str, unused: list[str]) -> None:
    """The scores of conditional runs."""
    from ganfast.commands.paired import paired_results
    from ganfast.evaluate.paired import paired_table
    from ganfast.images import comfortable_scale, save_png

    results, sheet = paired_results(arguments, runs, unused)
    text = json.dumps([result.to_json() for result in results], indent=1)
    if json_file:
        Path(json_file).write_text(text + "\n")
    if arguments.sheet:
        scale = comfortable_scale(next(iter(runs.values())).data["size"])
        save_png(sheet, arguments.sheet, scale)
    print(text if arguments.json == "-" else paired_table(results))


def _parser() -> Parser:
    parser = parser_for(
        "ganfast eval",
        "Score runs, folders of pictures or bundles against a data set, side by side",
    )
    what = "run directories, folders, zips or arrays of pictures, or bundles"
    parser.add_argument("sources", nargs="+", help=what)
    parser.flag("--data", "", "reference pictures; default what the first run was trained on")
    parser.flag("--data-root", None, DATA_ROOT)
    parser.flag("--size", 0, "side of the pictures; 0 = the run's, or the data's own")
    parser.flag("--attributes", [], ATTRIBUTES, nargs="*")
    parser.flag("--transpose", False, TRANSPOSE)
    parser.flag(
        "-n",
        10_000,
        "pictures drawn from each source (default 10000; at most half of an undivided set)",
    )
    parser.flag(
        "--checkpoint", "", "of a run, by images shown; default the newest; 'all' scores each"
    )
    parser.flag("--seed", 0, "of the pictures drawn (default 0)")
    parser.flag(
        "--psi", [1.0], "truncation; several are scored side by side", nargs="+", type=float
    )
    parser.flag("--no-ema", False, "the generator as trained, not its moving average")
    parser.flag(
        "--extractor",
        "auto",
        "auto, mnist, local, or a file: "
        "SqueezeNet .npz, FID Inception .pth, TorchScript .pt, .onnx",
    )
    parser.flag("--sha256", "", "what the extractor file's hash must be")
    parser.flag(
        "--preprocessing", "", "of a .pt or .onnx: size=299,channels=3,mean=127.5,std=127.5,bgr=no"
    )
    parser.flag("--need-labels", False, "refuse to go on without scores of classes")
    parser.flag(
        "--json", "", "also write every result; - prints it instead of the table", metavar="FILE"
    )
    what = "also write the first 64 pictures of the first source"
    parser.flag("--sheet", "", what, metavar="FILE.png")
    what = "also write fakes beside their nearest real, closest first"
    parser.flag("--copies", "", what, metavar="FILE.png")
    what = (
        "instead: what a classifier learns from a run's pictures, beside or without the real ones"
    )
    parser.flag("--augment", False, what)
    parser.flag("--device", "auto", DEVICE)
    return parser


def _make_folder_of(path: Path) -> None:
    """Make the folder of an output file, before hours of computing.

    Raises:
        InputError: a file cannot be written there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from error
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise InputError(
            f"{path} cannot be written: it is a folder, or lies in one that may not be written"
        )


def _results(arguments: Any, runs: dict[str, Any]) -> list[Any]:
    from ganfast.data.progress import progress_bar
    from ganfast.device import find_device
    from ganfast.evaluate.evaluation import Evaluation, open_reference
    from ganfast.evaluate.extractors import find_extractor
    from ganfast.evaluate.names import numbered

    first = next(iter(runs.values()), None)
    data, size, channels = arguments.data, arguments.size, 0
    flags = {"attributes": arguments.attributes, "root": arguments.data_root}
    flags |= {"transpose": arguments.transpose}
    how: dict[str, Any] = {"skip_corrupt": first.config.skip_corrupt} if first else {}
    if first and not data:
        data, how = first.config.data, first.config.data_options() | {"rules": first.data["rules"]}
    how |= {name: value for name, value in flags.items() if value}
    if not data:
        raise InputError("no run among the sources says what to compare with: give --data")
    if first:
        size, channels = size or first.data["size"], first.data["channels"]
    device = find_device(arguments.device)
    with progress_bar() as progress:
        pack, held_out = open_reference(data, size, channels, **how)
        if arguments.need_labels and pack.labels is None:
            raise InputError(
                f"{pack.info.name} has no classes, which scores of labels need: "
                "sub-folders, or --attributes for CelebA"
            )
        opened = _opened(arguments, runs, pack.info)
        extractor = find_extractor(
            arguments.extractor, pack, device, arguments.sha256, arguments.preprocessing, progress
        )
    if arguments.need_labels and not extractor.judges_labels:
        raise InputError(
            f"extractor {extractor.name} names no classes of {pack.info.name}, "
            "which scores of labels need: leave it out"
        )
    evaluation = Evaluation(pack, held_out, extractor, arguments.n)
    results = []
    for source in arguments.sources:
        fakes = _of_run(runs[source], arguments) if source in runs else opened[source]
        results += [evaluation.score(fake) for fake in fakes]
    names = numbered([result.name for result in results])
    return [replace(result, name=name) for result, name in zip(results, names, strict=True)]


def _opened(arguments: Any, runs: dict[str, Any], info: Any) -> dict[str, list[Any]]:
    """Bundles and pictures on disk.

    Raises:
        InputError: a source, runs included, cannot be compared. Nothing has been computed yet.
    """
    from ganfast.evaluate.evaluation import other_shape

    opened = {
        source: _open(source, arguments, info) for source in arguments.sources if source not in runs
    }
    for source in arguments.sources:
        size = 0  # the --size that would make the shapes equal; 0 = there is none
        if run := runs.get(source):
            run.find("" if arguments.checkpoint == "all" else arguments.checkpoint)
            shape = run.data["size"], run.data["size"], run.data["channels"]
            classes = run.classes
        else:
            fakes = opened[source][0]
            shape, classes = fakes.shape, fakes.classes
            size = info.size if fakes.count else 0 if runs else shape[0]
        if problem := other_shape(source, shape, info):
            if size and not arguments.size and shape[2] == info.channels:
                problem += f": give --size {size}"
            raise InputError(problem)
        if arguments.need_labels and classes != info.classes:
            other = "other classes than" if classes else "no labels with the classes of"
            raise InputError(
                f"{source} has {other} {info.name}, which scores of labels need: "
                "leave --need-labels out"
            )
    return opened


def _of_run(run: Any, arguments: Any) -> Iterator[Any]:
    """The checkpoints of a run, opened one at a time: a long run has many."""
    from ganfast.runs import checkpoint as checkpoints
    from ganfast.runs.source import of_run

    names = [arguments.checkpoint]
    if names == ["all"]:
        names = [path.name for path in checkpoints.listed(run.checkpoint_folder)]
    averaged = not arguments.no_ema
    for name in names:
        for psi in arguments.psi:
            fakes = of_run(run, name, arguments.seed, psi, arguments.device, averaged)
            yield _with_psi(fakes, arguments)


def _open(source: str, arguments: Any, info: Any) -> list[Any]:
    """A bundle, once for each psi, or pictures on disk."""
    from ganfast.data import open_data, recognise
    from ganfast.evaluate.sources import Stored
    from ganfast.export.drawing.source import BundleFakes

    if (Path(source) / "manifest.json").exists() and (Path(source) / "model.onnx").exists():
        return [
            _with_psi(BundleFakes(Path(source), arguments.seed, psi), arguments)
            for psi in arguments.psi
        ]
    sizeless = recognise(source, arguments.data_root).kind in ("folder", "celeba")
    size = arguments.size or (info.size if sizeless else 0)
    pack = open_data(source, size=size, channels=info.channels, root=arguments.data_root)
    return [Stored(source, pack, arguments.seed)]


def _with_psi(fakes: Any, arguments: Any) -> Any:
    fakes.name += f" psi {fakes.psi:g}" if len(arguments.psi) > 1 else ""
    return fakes
