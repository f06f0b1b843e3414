"""Whether an exported graph draws the trained generator's pictures, in every batch size.

Asked before a bundle is written, and by `ganfast verify` after.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ganfast.errors import InputError, RunError
from ganfast.export.bundle.bundle import Bundle, open_bundle
from ganfast.export.bundle.manifest import Manifest
from ganfast.export.bundle.parity import GATES, Parity, compare
from ganfast.export.drawing.rows import Feed, ask
from ganfast.export.graph.packages import need
from ganfast.export.session import cpu_session

Draw = Callable[[Feed], np.ndarray]
BATCHES = (1, 3, 8, 64)
PSI = (1.0, 1.0, 1.0, 0.7)


def rows(
    manifest: Manifest,
    count: int,
    seed: int = 0,
    psi: Sequence[float] = PSI,
    given: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Inputs of the graph for indices 0 .. count - 1 of a seed; ``psi``, conditions in turn."""
    condition = None if given is None else given[np.arange(count) % len(given)]
    return ask(manifest, count, None, seed, 0, None, np.resize(psi, count), condition).feed(count)


def parity(
    model: bytes,
    precision: str,
    inputs: Feed,
    truth: np.ndarray,
    batches: Sequence[int] = BATCHES,
    note: str = "",
) -> tuple[Parity, ...]:
    """How far the graph lies from the pictures ``truth`` of ``inputs``: a row for each batch size.

    ONNX Runtime draws on the CPU, as a sampler does. It has no bf16 operations: torch draws that.
    int8 has one row more, whose products are float32: the graph itself, whatever this processor's
    int8 kernels make of it.

    Args:
        note: stands behind the name of the back end.
    """
    name, draw = _on_torch(model) if precision == "bf16" else _on_onnxruntime(model)
    draws = [(name, draw, batch) for batch in batches]
    if precision == "int8":
        draws.append((*_on_onnxruntime(model, as_float=True), max(batches)))
    rows_of_parity: list[Parity] = []
    for name, draw, batch in draws:
        parts = [
            draw({key: array[i : i + batch] for key, array in inputs.items()})
            for i in range(0, len(truth), batch)
        ]
        rows_of_parity.append(compare(np.concatenate(parts), truth, name + note, batch))
    return tuple(rows_of_parity)


def _on_onnxruntime(model: bytes, as_float: bool = False) -> tuple[str, Draw]:
    session = cpu_session(model, as_float=as_float)
    name = "int8 graph, float32 products" if as_float else "onnxruntime-cpu"

    def draw(feed: Feed) -> np.ndarray:
        try:
            drawn: np.ndarray = session.run(None, dict(feed))[0]
        except Exception as error:  # ONNX Runtime has types of its own
            reason = " ".join(str(error).split())
            raise InputError(f"{name} cannot run the model: {reason}") from error
        return drawn

    return name, draw


def _on_torch(model: bytes) -> tuple[str, Draw]:
    torch = need("torch")[0]
    from ganfast.export.drawing.onnx_torch import Program

    program = Program(model, torch.device("cpu"))
    return "torch-cpu", lambda feed: program(
        **{name: torch.tensor(array) for name, array in feed.items()}
    ).numpy()


def refuse_missed(distances: Sequence[Parity], precision: str) -> None:
    """Raises RunError, with the numbers, where the gate of the precision is missed."""
    missed = [reason for row in distances if (reason := row.missed(GATES[precision]))]
    if missed:
        raise RunError(
            f"{precision} misses its gate: {'; '.join(missed)}; export fp32, or another precision"
        )


def verify_bundle(path: Path | str, digest: str | None = None) -> tuple[Bundle, tuple[Parity, ...]]:
    """Check every byte of a bundle, and draw its golden rows one at a time, and all at once.

    Raises:
        InputError: a bundle that was changed, or is none; ONNX Runtime cannot run its graph.
        RunError: its pictures are not those that it was exported with.
    """
    bundle = open_bundle(path, digest)
    golden: dict[str, Any] = dict(bundle.golden())
    truth = golden.pop("images")
    precision, batches = bundle.manifest.precision, sorted({1, 3, len(truth)})
    distances = parity(bundle.model_bytes(), precision, golden, truth, batches)
    refuse_missed(distances, precision)
    return bundle, distances
