"""Whether an exported graph draws the trained generator's pictures: in every batch size, before the bundle is written and after."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ganfast.errors import RunError
from ganfast.export.bundle import Bundle, open_bundle
from ganfast.export.latents import latents, random_classes
from ganfast.export.packages import need
from ganfast.export.parity import GATES, Parity, compare

Draw = Callable[[dict[str, np.ndarray]], np.ndarray]  # inputs of the graph -> pictures
BATCHES = (1, 3, 8, 64)
_PSI = (1.0, 1.0, 1.0, 0.7)


def rows(count: int, latent: int, classes: int, seed: int = 0, psi: Sequence[float] = _PSI) -> dict[str, np.ndarray]:
    """Inputs of the graph for indices 0 .. count - 1 of a seed: z, psi in turn, and labels where there are classes."""
    index = np.arange(count)
    arrays = {"z": latents(seed, index, latent), "psi": np.resize(np.array(psi, np.float32), count)}
    return arrays | ({"labels": random_classes(seed, index, classes)} if classes else {})


def parity(
    model: bytes, precision: str, inputs: dict[str, np.ndarray], truth: np.ndarray, batches: Sequence[int] = BATCHES
) -> tuple[Parity, ...]:  # fmt: skip
    """How far the graph lies from the pictures ``truth`` of ``inputs``, at each batch size.

    ONNX Runtime on the CPU draws it, but bf16, for which it has no operations: torch does.
    """
    name, draw = _on_torch(model) if precision == "bf16" else _on_onnxruntime(model)
    found = []
    for batch in batches:
        parts = [draw({name: array[i : i + batch] for name, array in inputs.items()}) for i in range(0, len(truth), batch)]
        found.append(compare(np.concatenate(parts), truth, name, batch))
    return tuple(found)


def _on_onnxruntime(model: bytes) -> tuple[str, Draw]:
    session = need("onnxruntime")[0].InferenceSession(model, providers=["CPUExecutionProvider"])
    return "onnxruntime-cpu", lambda feed: session.run(None, feed)[0]


def _on_torch(model: bytes) -> tuple[str, Draw]:
    torch = need("torch")[0]
    from ganfast.export.onnx_torch import Program

    program = Program(model, torch.device("cpu"))
    return "torch-cpu", lambda feed: program(**{name: torch.tensor(array) for name, array in feed.items()}).numpy()


def refuse_missed(found: Sequence[Parity], precision: str) -> None:
    """Raises RunError, with the numbers, where the gate of the precision is missed."""
    missed = [reason for each in found if (reason := each.missed(GATES[precision]))]
    if missed:
        raise RunError(f"{precision} misses its gate: {'; '.join(missed)}; export fp32, or another precision")


def verify_bundle(path: Path | str, digest: str | None = None) -> tuple[Bundle, tuple[Parity, ...]]:
    """Check every byte of a bundle, and draw its golden rows one at a time, and all at once.

    Raises:
        InputError: a bundle that was changed, or is none.
        RunError: its pictures are not those that it was exported with.
    """
    bundle = open_bundle(path, digest)
    golden: dict[str, Any] = dict(bundle.golden())
    truth = golden.pop("images")
    found = parity(bundle.model_bytes(), bundle.manifest.precision, golden, truth, sorted({1, 3, len(truth)}))
    refuse_missed(found, bundle.manifest.precision)
    return bundle, found
