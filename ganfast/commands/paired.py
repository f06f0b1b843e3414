"""ganfast eval of conditional runs."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ganfast.errors import InputError

if TYPE_CHECKING:
    from ganfast.evaluate.paired import PairedResult
    from ganfast.images import Pictures
    from ganfast.runs.run import Run


def paired_results(
    arguments: Any, runs: dict[str, "Run"]
) -> tuple[list["PairedResult"], "Pictures"]:
    """Baseline, conditional runs and floor, and a sheet of the first run's.

    Raises:
        InputError: sources that are no such runs, or of other pictures or tasks than the first.
    """
    from ganfast.data.pack import open_data
    from ganfast.data.progress import progress_bar
    from ganfast.device import find_device
    from ganfast.evaluate.extractors import find_extractor
    from ganfast.evaluate.names import numbered
    from ganfast.evaluate.paired import PairedEvaluation
    from ganfast.evaluate.pairs import Pairs
    from ganfast.runs.source import of_run
    from ganfast.tasks import task_of

    first = _alike(arguments, runs)
    c, data, device = first.config, first.data, find_device(arguments.device)
    task = task_of(c, data["size"], data["channels"])
    assert task is not None
    how = c.data_options() | {"rules": data["rules"]}
    how |= {"root": arguments.data_root} if arguments.data_root else {}
    with progress_bar() as progress:
        pack = open_data(c.data, size=data["size"], channels=data["channels"], **how)
        pairs = Pairs.of(task, c, pack, device, arguments.n)
        given = arguments.sha256, arguments.preprocessing, progress
        extractor = find_extractor(arguments.extractor, pack, device, *given)
    evaluation, results, sheet = PairedEvaluation(pairs, extractor), [], None
    for source in arguments.sources:
        for psi in arguments.psi:
            averaged = not arguments.no_ema
            which = arguments.checkpoint, arguments.seed, psi, arguments.device, averaged
            made = of_run(runs[source], *which)
            name = made.name + (f" psi {psi:g}" if len(arguments.psi) > 1 else "")
            results.append(evaluation.run(name, made.net, made.latent, made.seed, psi))
            if sheet is None:
                sheet = pairs.sheet(made.net, made.latent, made.seed, psi)
    assert sheet is not None
    names = numbered([result.name for result in results])
    named = [replace(result, name=name) for result, name in zip(results, names, strict=True)]
    return [evaluation.baseline(), *named, evaluation.floor()], sheet


def _alike(arguments: Any, runs: dict[str, "Run"]) -> "Run":
    """The first of runs that can stand side by side."""
    if arguments.data or arguments.copies or arguments.checkpoint == "all":
        raise InputError(
            f"{arguments.sources[0]} makes pictures from others, and is scored on those that it "
            "held out: leave --data, --copies and --checkpoint all out"
        )
    first = runs[arguments.sources[0]]
    for source in arguments.sources:
        run = runs.get(source)
        same = run and all(
            part(run) == part(first)
            for part in (
                lambda r: r.config.task,
                lambda r: r.data["source_hash"],
                lambda r: (r.data["size"], r.data["channels"], r.config.conditional),
                lambda r: r.config.seed,
            )
        )
        if not same:
            raise InputError(
                f"{source} is no run of the task, pictures and seed of {first.folder}, and so is "
                "not scored on the same held-out pictures: score it by itself"
            )
    return first
