"""A run's generator as a source of pictures that a classifier learns from."""

from typing import Any

from ganfast.data.resident import ResidentData
from ganfast.device import find_device
from ganfast.errors import InputError
from ganfast.evaluate.evaluation import open_reference
from ganfast.evaluate.synthetic import Comparison, unseen
from ganfast.runs.identity import other_pictures
from ganfast.runs.run import Run
from ganfast.runs.source import of_run


def comparison_of(
    run: Run,
    count: int = 10_000,
    seed: int = 0,
    psi: float = 1.0,
    checkpoint: str = "",
    device: str = "auto",
    ema: bool = True,
    **where: Any,
) -> tuple[Comparison, dict[str, Any]]:
    """The comparison of classifiers, and what it depends on.

    The real pictures are those that the run was trained on, its long tail included.

    Args:
        count: pictures drawn for each classifier.
        seed, psi, checkpoint, device, ema: of what is drawn, as of `of_run`.
        where: `data` and `root`, where the pictures lie now.

    Raises:
        InputError: a run without classes, pictures that are not those of the run, or no test
            pictures.
    """
    if run.config.task.kind != "none":
        raise InputError(
            f"{run.folder} makes pictures from others ({run.config.task.kind}), and a set is drawn "
            "from latents and classes: give a run of such a preset"
        )
    if not run.classes:
        raise InputError(
            f"{run.folder} was trained without classes, so what it draws has no labels to learn: "
            "train on data that has classes (sub-folders), with --conditional auto"
        )
    config, where = run.config, {name: value for name, value in where.items() if value}
    data = where.pop("data", config.data)
    how = config.data_options() | {"rules": run.data["rules"]} | where
    pack, test = open_reference(data, run.data["size"], run.data["channels"], **how)
    if other_pictures(run.data, vars(pack.info)):
        raise InputError(
            f"{run.folder} was trained on other pictures than {data} has, and only its own can be "
            "compared with: say where they lie with --data"
        )
    c, target = config, find_device(device)
    reals = ResidentData(pack, target, c.seed, balanced=True, imbalance=c.imbalance)
    tests, drawn = unseen(pack, test, reals), of_run(run, checkpoint, seed, psi, device, ema)
    flip = pack.info.flip if c.flip == "auto" else c.flip == "on"
    comparison = Comparison(reals, tests, drawn.pictures, count, flip)
    facts = {"run": str(run.folder), "data": pack.info.name, "source_hash": pack.info.source_hash}
    return comparison, facts | {"imbalance": c.imbalance, "drawn": drawn.facts}
