"""ganfast eval."""

import json
from pathlib import Path
from typing import Any

from ganfast.commands.parsing import parser_for
from ganfast.errors import InputError


def evaluate(args: list[str]) -> None:
    parser = parser_for("ganfast eval", "Score runs, folders of pictures or bundles against a data set, side by side")
    parser.add_argument("sources", nargs="+", help="run directories, folders, zips or arrays of pictures, or bundles")
    parser.add_argument("--data", default="", help="reference pictures; default what the first run was trained on")
    parser.add_argument("--data-root", default=None, help="where names are looked up first; default $GANFAST_DATA, then the cache")
    parser.add_argument("--size", type=int, default=0, help="side of the pictures; 0 = the run's, or the data's own")
    parser.add_argument("--attributes", nargs="*", default=[], help="celeba: attributes whose combinations are the classes")
    parser.add_argument(
        "-n",
        type=int,
        default=10_000,
        help="pictures drawn from each source (default 10000; at most half of an undivided set)",
    )
    parser.add_argument("--checkpoint", default="", help="of a run, by images shown; default the newest; 'all' scores each")
    parser.add_argument("--seed", type=int, default=0, help="of the pictures drawn (default 0)")
    parser.add_argument("--psi", type=float, nargs="+", default=[1.0], help="truncation; several are scored side by side")
    parser.add_argument("--no-ema", action="store_true", help="the generator as trained, not its moving average")
    parser.add_argument(
        "--extractor",
        default="auto",
        help="auto, mnist, local, or a file: SqueezeNet .npz, FID Inception .pth, TorchScript .pt, .onnx",
    )
    parser.add_argument("--sha256", default="", help="what the extractor file's hash must be")
    parser.add_argument("--preprocessing", default="", help="of a .pt or .onnx: size=299,channels=3,mean=127.5,std=127.5,bgr=no")
    parser.add_argument("--need-labels", action="store_true", help="refuse to go on without scores of classes")
    parser.add_argument("--json", default="", metavar="FILE", help="also write every result; - prints it instead of the table")
    parser.add_argument("--sheet", default="", metavar="FILE.png", help="also write the first 64 pictures of the first source")
    parser.add_argument(
        "--copies", default="", metavar="FILE.png", help="also write fakes beside their nearest real, closest first"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    given = parser.parse_args(args)
    for path in (given.sheet, given.copies):
        if path and not path.lower().endswith(".png"):
            raise InputError(f"{path}: a sheet is written as FILE.png")
    results = _results(given)

    from ganfast.evaluate.report import table
    from ganfast.images import comfortable_scale, grid, save_png

    records = [result.to_json() for result in results]
    if given.json and given.json != "-":
        Path(given.json).write_text(json.dumps(records, indent=1) + "\n")
    print(json.dumps(records, indent=1) if given.json == "-" else table(results))
    for path, pictures, columns in ((given.sheet, results[0].sheet, 8), (given.copies, results[0].copies, 8)):
        if path:
            save_png(grid(pictures, columns), path, comfortable_scale(pictures.shape[1]))


def _results(given: Any) -> list[Any]:
    from ganfast.data.progress import progress_bar
    from ganfast.device import find_device
    from ganfast.evaluate.evaluation import Evaluation, open_reference
    from ganfast.evaluate.extractors import find_extractor
    from ganfast.run import Run

    runs = {source: Run.open(source) for source in given.sources if (Path(source) / "config.yaml").exists()}
    first = next(iter(runs.values()), None)
    data, size, attributes, root, channels = given.data, given.size, given.attributes, given.data_root, 0
    if first and not data:
        data, attributes = first.config.data, attributes or list(first.config.attributes)
        root = root or first.config.data_root or None
    if not data:
        raise InputError("no run among the sources says what to compare with: give --data")
    if first:
        size, channels = size or first.data["size"], first.data["channels"]
    device = find_device(given.device)
    with progress_bar() as progress:
        pack, held_out = open_reference(data, size, channels, attributes, root, bool(first and first.config.skip_corrupt))
        if given.need_labels and pack.labels is None:
            raise InputError(
                f"{pack.info.name} has no classes, which scores of labels need: sub-folders, or --attributes for CelebA"
            )
        extractor = find_extractor(given.extractor, pack, device, given.sha256, given.preprocessing, progress)
    if given.need_labels and not extractor.judges_labels:
        raise InputError(
            f"extractor {extractor.name} names no classes of {pack.info.name}, which scores of labels need: leave it out"
        )
    evaluation = Evaluation(pack, held_out, extractor, given.n)
    return [evaluation.score(source) for source in _opened(given, runs, pack.info)]


def _opened(given: Any, runs: dict[str, Any], info: Any) -> Any:
    from ganfast import checkpoint as checkpoints
    from ganfast.data import open_data
    from ganfast.evaluate.sources import Bundle, Stored, of_run

    for source in given.sources:
        if source in runs:
            run = runs[source]
            listed = [p.name for p in checkpoints.listed(run.checkpoint_folder)]
            for which in listed if given.checkpoint == "all" else [given.checkpoint]:
                for psi in given.psi:
                    made = of_run(run, which, given.seed, psi, given.device, not given.no_ema)
                    made.name += f" psi {psi:g}" if len(given.psi) > 1 else ""
                    yield made
        elif (Path(source) / "manifest.json").exists() and (Path(source) / "model.onnx").exists():
            for psi in given.psi:
                yield Bundle(Path(source), given.seed, psi)
        else:
            pack = open_data(source, size=given.size, channels=info.channels, root=given.data_root)
            yield Stored(source, pack, given.seed)
