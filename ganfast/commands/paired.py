"""ganfast eval of conditional runs."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ganfast.errors import InputError

if TYPE_CHECKING:
    from ganfast.evaluate.paired import PairedResult
    from ganfast.images import Pictures
    from ganfast.runs.run import Run


def paired_results(
    arguments: Any, runs: dict[str, "Run"], unused: list[str]
) -> tuple[list["PairedResult"], "Pictures"]:
    """Baseline, conditional runs and floor, and a sheet of the first run's.

    Args:
        unused: flags that were given and say nothing here.

    Raises:
        InputError: sources that are no such runs, or of other pictures or tasks than the first; or
            pictures that are not those of the run, or too few.
    """
    from ganfast.data.pack import open_data
    from ganfast.data.progress import progress_bar
    from ganfast.device import find_device
    from ganfast.evaluate.extractors import find_extractor
    from ganfast.evaluate.names import numbered
    from ganfast.evaluate.paired import PairedEvaluation, refuse_few
    from ganfast.evaluate.pairs import Pairs
    from ganfast.runs.identity import other_pictures
    from ganfast.runs.source import of_run
    from ganfast.tasks import task_of

    first = _alike(arguments, runs, unused)
    c, data, device = first.config, first.data, find_device(arguments.device)
    if root := arguments.data_root:  # where the set of the same name lies now
        c = replace(c, data=Path(c.data).name, data_root=root)
    task = task_of(c, data["size"], data["channels"])
    assert task is not None
    how = c.data_options() | {"rules": data["rules"]}
    with progress_bar() as progress:
        pack = open_data(c.data, size=data["size"], channels=data["channels"], **how)
        if other_pictures(data, vars(pack.info)):
            raise InputError(
                f"{first.folder} was trained on other pictures than {c.data} has now, and its "
                "held-out ones are unknown: name the folder of its own with --data-root"
            )
        pairs = Pairs.of(task, c, pack, device, arguments.n)
        refuse_few(pairs, arguments.n)
        # What is held out is new to a classifier, too.
        rows = pairs.trained_on if len(pairs.trained_on) < len(pack.images) else None
        given = arguments.sha256, arguments.preprocessing, progress, rows
        extractor = find_extractor(arguments.extractor, pack, device, *given)
    evaluation, results, sheet = PairedEvaluation(pairs, extractor), [], None
    for source in arguments.sources:
        for psi in arguments.psi:
            averaged = not arguments.no_ema
            which = arguments.checkpoint, arguments.seed, psi, arguments.device, averaged
            made = of_run(runs[source], *which)
            made.name += f" psi {psi:g}" if len(arguments.psi) > 1 else ""
            results.append(evaluation.run(made))
            if sheet is None:
                sheet = pairs.sheet(made.net, made.latent, made.seed, psi)
    assert sheet is not None
    names = numbered([result.name for result in results])
    named = [replace(result, name=name) for result, name in zip(results, names, strict=True)]
    return [evaluation.baseline(), *named, evaluation.floor()], sheet


def _alike(arguments: Any, runs: dict[str, "Run"], unused: list[str]) -> "Run":
    """The first of runs that can stand side by side."""
    first = next(run for run in runs.values() if run.config.task.kind != "none")
    flags = [f"--{name.replace('_', '-')}" for name in unused]
    flags += ["--checkpoint all"] if arguments.checkpoint == "all" else []
    if flags:
        raise InputError(
            f"{first.folder} makes pictures from others, and is scored on those that it held out: "
            f"leave {', '.join(flags)} out"
        )
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
