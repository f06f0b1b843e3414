"""ganfast eval."""

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ganfast.commands.parsing import parser_for
from ganfast.errors import InputError


def evaluate(args: list[str]) -> None:
    parser = parser_for(
        "ganfast eval",
        "Score runs, folders of pictures or bundles against a data set, side by side",
    )
    parser.add_argument(
        "sources",
        nargs="+",
        help="run directories, folders, zips or arrays of pictures, or bundles",
    )
    parser.add_argument(
        "--data", default="", help="reference pictures; default what the first run was trained on"
    )
    parser.add_argument(
        "--data-root",
        default=None,
        help="where names are looked up first; default $GANFAST_DATA, then the cache",
    )
    parser.add_argument(
        "--size", type=int, default=0, help="side of the pictures; 0 = the run's, or the data's own"
    )
    parser.add_argument(
        "--attributes",
        nargs="*",
        default=[],
        help="celeba: attributes whose combinations are the classes",
    )
    parser.add_argument(
        "-n",
        type=int,
        default=10_000,
        help="pictures drawn from each source (default 10000; at most half of an undivided set)",
    )
    parser.add_argument(
        "--checkpoint",
        default="",
        help="of a run, by images shown; default the newest; 'all' scores each",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the pictures drawn (default 0)")
    parser.add_argument(
        "--psi",
        type=float,
        nargs="+",
        default=[1.0],
        help="truncation; several are scored side by side",
    )
    parser.add_argument(
        "--no-ema", action="store_true", help="the generator as trained, not its moving average"
    )
    parser.add_argument(
        "--extractor",
        default="auto",
        help="auto, mnist, local, or a file: SqueezeNet .npz, FID Inception .pth, TorchScript .pt, .onnx",
    )
    parser.add_argument("--sha256", default="", help="what the extractor file's hash must be")
    parser.add_argument(
        "--preprocessing",
        default="",
        help="of a .pt or .onnx: size=299,channels=3,mean=127.5,std=127.5,bgr=no",
    )
    parser.add_argument(
        "--need-labels", action="store_true", help="refuse to go on without scores of classes"
    )
    parser.add_argument(
        "--json",
        default="",
        metavar="FILE",
        help="also write every result; - prints it instead of the table",
    )
    parser.add_argument(
        "--sheet",
        default="",
        metavar="FILE.png",
        help="also write the first 64 pictures of the first source",
    )
    parser.add_argument(
        "--copies",
        default="",
        metavar="FILE.png",
        help="also write fakes beside their nearest real, closest first",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    given = parser.parse_args(args)
    for path in (given.sheet, given.copies):
        if path and not path.lower().endswith(".png"):
            raise InputError(f"{path}: a sheet is written as FILE.png")
    for path in (given.sheet, given.copies, given.json if given.json != "-" else ""):
        if path:
            _make_folder_of(Path(path))
    results = _results(given)

    from ganfast.evaluate.report import table
    from ganfast.images import comfortable_scale, grid, save_png

    text = json.dumps([result.to_json() for result in results], indent=1, allow_nan=False)
    print(text if given.json == "-" else table(results))
    if given.json and given.json != "-":
        Path(given.json).write_text(text + "\n")
    for path, pictures, columns in (
        (given.sheet, results[0].sheet, 8),
        (given.copies, results[0].copies, 8),
    ):
        if path:
            save_png(grid(pictures, columns), path, comfortable_scale(pictures.shape[1]))


def _make_folder_of(path: Path) -> None:
    """Before anything is computed. Raises InputError where a file cannot be written there."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from error
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise InputError(
            f"{path} cannot be written: it is a folder, or lies in one that may not be written"
        )


def _results(given: Any) -> list[Any]:
    from ganfast.data.progress import progress_bar
    from ganfast.device import find_device
    from ganfast.evaluate.evaluation import Evaluation, open_reference
    from ganfast.evaluate.extractors import find_extractor
    from ganfast.evaluate.names import numbered
    from ganfast.runs.run import Run

    runs = {
        source: Run.open(source)
        for source in given.sources
        if (Path(source) / "config.yaml").exists()
    }
    first = next(iter(runs.values()), None)
    data, size, attributes, root, channels = (
        given.data,
        given.size,
        given.attributes,
        given.data_root,
        0,
    )
    if first and not data:
        data, attributes = first.config.data, attributes or list(first.config.attributes)
        root = root or first.config.data_root or None
    if not data:
        raise InputError("no run among the sources says what to compare with: give --data")
    if first:
        size, channels = size or first.data["size"], first.data["channels"]
    device = find_device(given.device)
    with progress_bar() as progress:
        pack, held_out = open_reference(
            data, size, channels, attributes, root, bool(first and first.config.skip_corrupt)
        )
        if given.need_labels and pack.labels is None:
            raise InputError(
                f"{pack.info.name} has no classes, which scores of labels need: sub-folders, or --attributes for CelebA"
            )
        opened = _opened(given, runs, pack.info)
        extractor = find_extractor(
            given.extractor, pack, device, given.sha256, given.preprocessing, progress
        )
    if given.need_labels and not extractor.judges_labels:
        raise InputError(
            f"extractor {extractor.name} names no classes of {pack.info.name}, which scores of labels need: leave it out"
        )
    evaluation = Evaluation(pack, held_out, extractor, given.n)
    fakes = (
        f
        for source in given.sources
        for f in (_of_run(runs[source], given) if source in runs else opened[source])
    )
    results = [evaluation.score(f) for f in fakes]
    return [
        replace(result, name=name)
        for result, name in zip(results, numbered([r.name for r in results]), strict=True)
    ]


def _opened(given: Any, runs: dict[str, Any], info: Any) -> dict[str, list[Any]]:
    """Bundles and pictures on disk. What cannot be compared, runs included, is refused here: before anything is computed."""
    from ganfast.evaluate.evaluation import other_shape

    opened = {source: _open(source, given, info) for source in given.sources if source not in runs}
    for source in given.sources:
        if run := runs.get(source):
            run.find("" if given.checkpoint == "all" else given.checkpoint)
            shape, classes, size = (
                (run.data["size"], run.data["size"], run.data["channels"]),
                run.classes,
                0,
            )
        else:
            shape, classes, stored = (
                opened[source][0].shape,
                opened[source][0].classes,
                opened[source][0].count,
            )
            size = info.size if stored else 0 if runs else shape[0]  # that makes them equal
        if problem := other_shape(source, shape, info):
            raise InputError(
                problem
                + (
                    f": give --size {size}"
                    if size and not given.size and shape[2] == info.channels
                    else ""
                )
            )
        if given.need_labels and classes != info.classes:
            found = "other classes than" if classes else "no labels with the classes of"
            raise InputError(
                f"{source} has {found} {info.name}, which scores of labels need: leave --need-labels out"
            )
    return opened


def _of_run(run: Any, given: Any) -> Iterator[Any]:
    """Its checkpoints, one at a time: a long run has many."""
    from ganfast.runs import checkpoint as checkpoints
    from ganfast.runs.source import of_run

    every = [path.name for path in checkpoints.listed(run.checkpoint_folder)]
    for which in every if given.checkpoint == "all" else [given.checkpoint]:
        for psi in given.psi:
            yield _with_psi(
                of_run(run, which, given.seed, psi, given.device, not given.no_ema), given
            )


def _open(source: str, given: Any, info: Any) -> list[Any]:
    """A bundle, once for each psi, or pictures on disk."""
    from ganfast.data import open_data, recognise
    from ganfast.evaluate.sources import Stored
    from ganfast.export.drawing.source import BundleFakes

    if (Path(source) / "manifest.json").exists() and (Path(source) / "model.onnx").exists():
        return [_with_psi(BundleFakes(Path(source), given.seed, psi), given) for psi in given.psi]
    sizeless = recognise(source, given.data_root).kind in ("folder", "celeba")
    size = given.size or (info.size if sizeless else 0)
    return [
        Stored(
            source,
            open_data(source, size=size, channels=info.channels, root=given.data_root),
            given.seed,
        )
    ]


def _with_psi(fakes: Any, given: Any) -> Any:
    fakes.name += f" psi {fakes.psi:g}" if len(given.psi) > 1 else ""
    return fakes
