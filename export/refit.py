"""`refit_bundle`: the graph of a bundle with the weights of another checkpoint.

Needs torch, onnx and onnxruntime.
"""

import logging
from dataclasses import MISSING, fields
from pathlib import Path

import numpy as np

from ganfast.errors import InputError
from ganfast.export.bundle.bundle import Bundle, open_bundle, refuse_occupied
from ganfast.export.bundle.manifest import Manifest, tasks_differ
from ganfast.export.exporter import manifest_of, write_compared
from ganfast.export.graph.deploy import deployable
from ganfast.export.graph.packages import need
from ganfast.models import NetSpec
from ganfast.runs.run import Run

# Of fields that an older bundle does not tell of.
_LATER = {f.name: f.default for f in fields(NetSpec) if f.default is not MISSING} | {"given": []}
logger = logging.getLogger("ganfast")


def refit_bundle(
    bundle: Path | str,
    run: Run | Path | str,
    out: Path | str,
    checkpoint: str = "",
    overwrite: bool = False,
) -> Bundle:
    """Write a bundle with the graph, name, precision and buckets of another, and a run's weights.

    Golden rows, parity and hashes are new. Engines hold weights of their own and are left out.

    Args:
        bundle: directory of a bundle; it is left as it is. Not int8.
        run: or its directory.
        out: directory of the new bundle.
        checkpoint: "" is the newest.
        overwrite: replace a bundle at ``out``.

    Raises:
        InputError: no bundle, no run, no checkpoint, int8, another architecture, a place that is
            taken.
        RunError: the pictures differ from the run's by more than the precision's gate allows;
            nothing is written.
    """
    old, run, out = open_bundle(bundle), run if isinstance(run, Run) else Run.open(run), Path(out)
    path = run.find(checkpoint)
    draft = manifest_of(run, path, old.manifest.name, old.manifest.precision, old.manifest.buckets)
    _refuse_other(old, run, draft)
    refuse_occupied(out, overwrite)
    onnx = need("onnx", "onnxruntime")[0]
    m = old.manifest
    module = deployable(run.generator(str(path), "cpu"), m.inputs)
    weights = {name: value.numpy() for name, value in module.generator.state_dict().items()}
    model = onnx.load_model_from_string(old.model_bytes())
    places = {tensor.name: tensor for tensor in model.graph.initializer}
    wrong = [
        name
        for name, value in weights.items()
        if name not in places or list(places[name].dims) != list(value.shape)
    ]
    if wrong:
        raise InputError(
            f"the graph of {old.folder} has no weight {wrong[0]!r} of the shape that {path} has; "
            "export it instead"
        )
    for name, value in weights.items():
        dtype = onnx.helper.tensor_dtype_to_np_dtype(places[name].data_type)
        array = np.ascontiguousarray(value.astype(dtype))
        places[name].CopyFrom(onnx.numpy_helper.from_array(array, name))
    if m.engines:
        logger.warning(
            "the engines of %s hold its old weights: the new bundle has none; build them again",
            old.folder,
        )
    given = old.golden().get("condition")
    return write_compared(model, draft, run, path, out, overwrite, given=given)


def _refuse_other(old: Bundle, run: Run, draft: Manifest) -> None:
    m = old.manifest
    if m.precision == "int8":
        raise InputError(
            f"{old.folder} is int8, whose scales belong to its weights: "
            f"export {run.folder} with --precision int8 instead"
        )
    for name in ("latent", "size", "channels", "classes", "condition", "task"):
        before, after = getattr(m, name), getattr(draft, name)
        if tasks_differ(before, after) if name == "task" else before != after:
            raise InputError(
                f"{run.folder} has {name} {after}, the bundle {before}; export it instead"
            )
    theirs, ours = draft.network, m.network and _LATER | m.network
    if theirs != ours:
        theirs, ours = theirs or {}, ours or {}
        differing = sorted(k for k in {**theirs, **ours} if theirs.get(k) != ours.get(k))
        raise InputError(
            f"{run.folder} has another network than {old.folder} ({', '.join(differing)}); "
            "export it instead"
        )
