"""`export_bundle`: from a run to a bundle whose pictures were compared with the run's own.

Needs torch, onnx and onnxruntime.
"""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch

import ganfast
from ganfast.configfile import to_yaml
from ganfast.data import open_data
from ganfast.data.source import cache_dir
from ganfast.errors import InputError
from ganfast.evaluate.pairs import Pairs
from ganfast.export.bundle.bundle import Bundle, golden_file, refuse_occupied, write_bundle
from ganfast.export.bundle.manifest import (
    GOLDEN,
    MODEL,
    PRECISIONS,
    Manifest,
    check_buckets,
    condition_input,
)
from ganfast.export.drawing.rows import conditions as checked_conditions
from ganfast.export.engines.cache import EngineCache
from ganfast.export.engines.engines import BuiltEngine, build_engines, parse_target
from ganfast.export.engines.vendor import Build, load_flavour
from ganfast.export.graph.deploy import deployable
from ganfast.export.graph.lint import TARGETS, lint
from ganfast.export.graph.packages import need
from ganfast.export.graph.precision import to_precision
from ganfast.export.graph.to_onnx import to_bytes, to_onnx
from ganfast.export.verify import PSI, parity, refuse_missed, rows
from ganfast.kernels.to_uint8 import to_uint8
from ganfast.runs.identity import other_pictures
from ganfast.runs.run import Run
from ganfast.tasks import task_of

if TYPE_CHECKING:
    import onnx

logger = logging.getLogger("ganfast")
Complaints: TypeAlias = dict[str, list[str]]  # target -> why it cannot take the graph

_GOLDEN_ROWS, _COMPARED, _CALIBRATED = 8, 64, 256
_CALIBRATION_SEED = 1  # the comparison has seed 0: int8 is judged on latents it never saw
_WIDEST = 2.0  # psi; without it in the calibration, int8 cuts values off and loses up to 12 dB
# int8 loses most at the end of the range, so its golden rows reach it; other precisions keep PSI.
_GOLDEN_PSI_INT8 = (1.0, 1.0, 1.0, 0.7, 1.0, 1.0, _WIDEST, _WIDEST)
# One in sixteen: more would widen the steps further, and these cost psi 1 some 3 dB.
_CALIBRATION_PSI = (*(1.0, 1.0, 1.0, 0.7) * 3, 1.0, 1.0, 1.0, _WIDEST)


def export_bundle(
    run: Run | Path | str,
    out: Path | str,
    precision: str = "fp32",
    buckets: Sequence[int] = (1, 8, 64),
    checkpoint: str = "",
    name: str = "",
    overwrite: bool = False,
    targets: Sequence[str] = (),
    cache: Path | str | None = None,
    conditions: np.ndarray | None = None,
    tell: Callable[[str], None] = logger.info,
) -> Bundle:
    """Export the averaged generator of a run as ONNX, and write it as a bundle.

    The graph's pictures are compared with the run's own first.

    Args:
        run: or its directory.
        precision: fp32, tf32, fp16, bf16 or int8.
        buckets: batch sizes that a sampler is to be fast at, ascending.
        checkpoint: "" is the newest.
        name: for titles; "" is that of the run's directory.
        overwrite: replace a bundle at ``out``.
        targets: engines to put into it besides the graph: "rtx:8.6,8.9" for GPUs of these compute
            capabilities, "tensorrt" or "rtx" for the GPU here. "onnx", the graph, is always there.
        cache: folder of engines that were built before; None: engines/ in ganfast's own cache.
        conditions: uint8 (M, h, w, k), from which the compared pictures of a conditional run are
            made, and those that int8 is calibrated by; None takes those of held-out pictures.
        tell: gets a line for each engine: taken from the cache, or built and why.

    Raises:
        InputError: no run, no checkpoint, a generator or precision that cannot be exported, a place
            that is taken, an engine's library is missing or cannot take the graph.
        RunError: the exported pictures differ by more than the precision's gate allows; nothing is
            written.
    """
    run, out = run if isinstance(run, Run) else Run.open(run), Path(out)
    check_buckets(tuple(buckets))
    if precision not in PRECISIONS:
        raise InputError(f"precision is {precision!r}; expected one of {', '.join(PRECISIONS)}")
    parsed_targets = [parse_target(target) for target in targets if target != "onnx"]
    for flavour, _ in parsed_targets:
        load_flavour(flavour)  # raises before anything is computed
    refuse_occupied(out, overwrite)
    need("onnx", "onnxscript", "onnxruntime")
    path, name = run.find(checkpoint), name or run.folder.name
    draft = manifest_of(run, path, name, precision, tuple(buckets))
    given = held_out(run) if conditions is None else checked_conditions(draft, conditions)
    facts: dict[str, Any] = {"name": name, "precision": precision, "classes": list(run.classes)}
    plain = to_onnx(deployable(run.generator(str(path), "cpu"), draft.inputs), facts)
    # Others than those compared, where more are held out.
    others = None if given is None else np.roll(given, -_COMPARED, 0)
    calibration = rows(draft, _CALIBRATED, _CALIBRATION_SEED, _CALIBRATION_PSI, others)
    model = to_precision(plain, precision, calibration)
    engine_cache = EngineCache(cache or cache_dir() / "engines")

    def engines(data: bytes, complaints: Complaints) -> list[BuiltEngine]:
        return [
            engine
            for target in parsed_targets
            for engine in _built(target, data, complaints, draft, engine_cache, tell)
        ]

    return write_compared(model, draft, run, path, out, overwrite, engines, given)


def _built(
    target: tuple[str, tuple[str, ...]],
    data: bytes,
    complaints: Complaints,
    draft: Manifest,
    cache: EngineCache,
    tell: Callable[[str], None],
) -> list[BuiltEngine]:
    """The engines of one target, library and compute capabilities, for the ONNX file ``data``."""
    flavour, capabilities = target
    version = load_flavour(flavour).version
    linted = "rtx" if flavour == "rtx" else f"tensorrt-{version.partition('.')[0]}"
    if reasons := complaints.get(linted):
        raise InputError(f"{flavour} {version} cannot take the graph: {reasons[0]}")
    refit = flavour == "tensorrt" and draft.precision != "int8"
    build = Build(draft.buckets, tf32=draft.precision == "tf32", refit=refit)
    engines = build_engines(data, flavour, build, capabilities, cache)
    for engine in engines:
        place = engine.facts["gpu"] or engine.facts["capability"]
        origin = f"built, {engine.built}" if engine.built else "from the cache"
        tell(f"engine {engine.key[:8]}, {flavour} for {place}: {origin}")
    return engines


def write_compared(
    model: "onnx.ModelProto",
    draft: Manifest,
    run: Run,
    path: Path,
    out: Path,
    overwrite: bool,
    engines: Callable[[bytes, Complaints], list[BuiltEngine]] = lambda data, complaints: [],
    given: np.ndarray | None = None,
) -> Bundle:
    """Compare a graph with the generator of the checkpoint ``path``, and write it as a bundle.

    Args:
        draft: of `manifest_of`; the comparison is entered here.
        engines: builds engines from the file, given the lint of every target; called once the file
            has passed the gate.
        given: conditions to compare by, in turn; None without a task.

    Raises:
        InputError: ONNX Runtime cannot take the graph; whatever ``engines`` raises.
        RunError: its pictures differ by more than the precision's gate allows; nothing is written.
    """
    precision = draft.precision
    findings = {target: lint(model, target) for target in TARGETS}
    for finding in findings["onnxruntime-cpu"]:
        if finding.rule.id != "bf16-on-cpu":  # torch checks a bf16 export
            raise InputError(
                f"ONNX Runtime, which checks what is exported, cannot take it: {finding}"
            )
    complaints = {target: list(map(str, findings[target])) for target in TARGETS}
    inputs = rows(draft, _COMPARED, given=given)
    widest = rows(draft, _COMPARED, psi=[_WIDEST], given=given)
    golden_psi = _GOLDEN_PSI_INT8 if precision == "int8" else PSI
    golden = rows(draft, _GOLDEN_ROWS, psi=golden_psi, given=given)
    truth, truth_of_widest, truth_of_golden = (
        run.draw(
            feed["z"] * feed["psi"][:, None],
            feed.get("labels"),
            1.0,
            str(path),
            "cpu",
            **{name: feed[name] for name in feed if name == "condition"},
        )
        for feed in (inputs, widest, golden)
    )
    data = to_bytes(model)
    distances = (
        *parity(data, precision, inputs, truth),
        *parity(data, precision, widest, truth_of_widest, [_COMPARED], f" with psi {_WIDEST:g}"),
    )
    refuse_missed(distances, precision)
    built = engines(data, complaints)
    facts = {engine.key: engine.facts for engine in built}
    manifest = dataclasses.replace(draft, parity=distances, lint=complaints, engines=facts)
    plans = {f"engines/{engine.key}": engine.plan for engine in built}
    files = {MODEL: data, GOLDEN: golden_file(golden, truth_of_golden), **plans}
    return write_bundle(out, manifest, files, overwrite)


def held_out(run: Run) -> np.ndarray | None:
    """Conditions of pictures that a run was never trained on, uint8 (M, h, w, k), 320 of them or
    all; None without a task."""
    c, size, channels = run.config, run.data["size"], run.data["channels"]
    task = task_of(c, size, channels)
    if task is None:
        return None
    how = c.data_options() | {"rules": run.data["rules"]}
    try:
        pack = open_data(c.data, size=size, channels=channels, **how)
    except InputError as error:
        raise InputError(
            f"{run.folder} is exported with conditions of its held-out pictures, which cannot be "
            f"read: {error}"
        ) from error
    if other_pictures(run.data, vars(pack.info)):
        raise InputError(
            f"{run.folder} was trained on other pictures than {c.data} holds now, and is exported "
            "with conditions of those that it held out: put its own back"
        )
    pairs = Pairs.of(task, c, pack, torch.device("cpu"), _COMPARED + _CALIBRATED)
    # A mask is 0 or 1, a picture -1 to 1.
    parts = [torch.cat([x[:, :channels], x[:, channels:] * 2 - 1], 1) for _, x, *_ in pairs]
    return np.concatenate([to_uint8(part).numpy() for part in parts])


def manifest_of(
    run: Run, path: Path, name: str, precision: str, buckets: tuple[int, ...]
) -> Manifest:
    """The manifest of the checkpoint ``path``, without the results of a comparison."""
    training = {
        "preset": run.config.preset,
        "images": int(path.name) if path.name.isdecimal() else 0,
        "config_sha256": hashlib.sha256(to_yaml(run.config).encode()).hexdigest(),
        "data_sha256": run.data["source_hash"],
        "weights_sha256": _sha256(path / "ema.safetensors"),
    }
    packages = need("torch", "onnx", "onnxruntime", "numpy")
    channels, given = run.data["channels"], run.spec().given
    order = ("RGB" if channels == 3 else "grey") + ("+mask" if given[2:] > (channels,) else "")
    return Manifest(
        name=name,
        latent=run.config.net.latent,
        classes=run.classes,
        size=run.data["size"],
        channels=channels,
        precision=precision,
        buckets=buckets,
        crop=str(run.data.get("preparation", "")),
        golden={"seed": 0, "count": _GOLDEN_ROWS},
        network=network(run),
        versions={package.__name__: str(package.__version__) for package in packages},
        training=training,
        ganfast=ganfast.__version__,
        condition=condition_input(given, order) if given else None,
        task=dataclasses.asdict(run.config.task) if given else None,
    )


def network(run: Run) -> dict[str, Any] | None:
    """The manifest's entry about a run's networks, in JSON values; None for a user's own."""
    if ":" in run.config.model:
        return None
    spec: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(run.spec())))
    return spec


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
