"""ganfast augment."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ganfast.commands.parsing import DEVICE, parser_for
from ganfast.errors import InputError

if TYPE_CHECKING:
    from ganfast.data.labelled import Named
    from ganfast.sampling import Request, Source

_CHUNK = 1024  # pictures in memory at a time
_SEEDS = 3  # classifiers of each kind
_MOST = 1_000_000  # pictures a class: more is a slip of the finger, and fills a disk


def augment(args: list[str]) -> None:
    parser = parser_for(
        "ganfast augment",
        "Draw a labelled set that other programs train on: a folder for each class, labels.csv, "
        "and set.json, which says what it was drawn from. (The transforms that a critic sees are "
        "`ganfast train --augment`.)",
    )
    parser.add_argument("run", help="run directory, or bundle, that draws classes on request")
    parser.flag("--per-class", 500, "pictures of each class (default 500)")
    parser.flag("--seed", 0, "names the stream of latents (default 0)")
    parser.flag("--first", 0, "index of the first picture (default 0)")
    parser.flag("--psi", 1.0, "truncation: 1 as trained, less is more typical; 0 to 2")
    parser.flag("--out", "", "the folder, which must not exist (default RUN-set beside it)")
    parser.flag("--checkpoint", "", "of a run, as for `ganfast sample`; default the newest")
    parser.flag("--device", "auto", DEVICE)
    parser.flag("--backend", "auto", "of a bundle, as for `ganfast sample`")
    arguments = vars(parser.parse_args(args))
    count, out = arguments.pop("per_class"), arguments.pop("out")
    if not 1 <= count <= _MOST:
        raise InputError(f"per-class is {count}; expected 1 to {_MOST:,} pictures of each class")

    from ganfast.data.labelled import write_set
    from ganfast.latents import picture_range
    from ganfast.log import tell
    from ganfast.sampling import Request, opened

    request = Request(**arguments)
    folder = Path(request.run).resolve()
    place = Path(out) if out else folder.with_name(f"{folder.name}-set")
    request, origin = _traced(request)
    with opened(request) as run:
        if not run.classes:
            raise InputError(
                f"{run.folder} was trained without classes, and a labelled set needs some: train "
                "on data that has classes (sub-folders), with --conditional auto"
            )
        n, first = picture_range(count * len(run.classes), request.seed, request.first)
        facts = origin | {"seed": request.seed, "first": first, "psi": request.psi}
        write_set(place, run.classes, _pictures(run, request, n), facts)
    tell(place)


def _pictures(run: "Source", request: "Request", n: int) -> "Iterator[Named]":
    """Picture i is of class i modulo the number of classes, as with `ganfast sample --balanced`."""
    where = request.checkpoint, request.device
    for start in range(0, n, _CHUNK):
        count, first = min(_CHUNK, n - start), request.first + start
        every = [*range(len(run.classes))]
        drawn = run.sample_labelled(count, request.seed, every, request.psi, first, *where)
        for i, (picture, label) in enumerate(zip(*drawn, strict=True)):
            yield f"seed{request.seed}_{first + i:06d}.png", int(label), picture


def _traced(request: "Request") -> tuple["Request", dict[str, Any]]:
    """The request with its source fixed, as a run may train on, and what tells that source."""
    from ganfast import __version__
    from ganfast.export.bundle.bundle import is_bundle, open_bundle

    made = {"ganfast": __version__, "source": request.run}
    if is_bundle(request.run):
        manifest = open_bundle(request.run).manifest
        origin = {"checkpoint": manifest.training.get("images"), "bundle": manifest.digest}
        return replace(request, digest=manifest.digest), made | origin
    from ganfast.data.manifest import sha256_of
    from ganfast.runs.run import Run

    path = Run.open(request.run).find(request.checkpoint)
    origin = {"checkpoint": path.name, "weights": sha256_of(path / "ema.safetensors")}
    return replace(request, checkpoint=str(path)), made | origin


def usefulness(arguments: Any, unused: list[str]) -> None:
    """`ganfast eval RUN --augment`: what classifiers learn from pictures of the run.

    Args:
        unused: flags that were given and say nothing here.
    """
    if unused:
        raise InputError(f"{', '.join(unused)} cannot be given with --augment: leave them out")
    if len(arguments.sources) != 1 or len(arguments.psi) != 1:
        raise InputError("--augment compares one run at one psi: call it for each of them")
    from ganfast.data.progress import progress_bar
    from ganfast.evaluate.synthetic import COLUMNS, table
    from ganfast.runs.run import Run
    from ganfast.runs.teaching import comparison_of

    a = arguments
    where = {"data": a.data, "root": a.data_root}
    drawn = a.n, a.seed, a.psi[0], a.checkpoint, a.device, not a.no_ema
    with progress_bar() as progress:
        comparison, facts = comparison_of(Run.open(a.sources[0]), *drawn, **where)
        results = [comparison.accuracies(seed, progress) for seed in range(_SEEDS)]
    protocol = comparison.protocol | facts
    text = json.dumps({"protocol": protocol, "columns": COLUMNS, "accuracies": results}, indent=1)
    if a.json and a.json != "-":
        Path(a.json).write_text(text + "\n")
    print(text if a.json == "-" else table(results) + "\n" + _note(protocol))


def _note(protocol: dict[str, Any]) -> str:
    """What a reader must know to judge the accuracies."""
    counts = protocol["real_of_each_class"]
    rare = [counts[k] for k in protocol["rarest_third"]]
    return (
        f"accuracy in percent, mean and range of {_SEEDS} seeds, on test pictures "
        f"({protocol['tests']}); {protocol['steps']} steps each; rarest third: {len(rare)} of "
        f"{len(counts)} classes, with {min(rare):,} to {max(rare):,} real pictures"
    )
