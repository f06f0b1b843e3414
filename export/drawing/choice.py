"""Which back end draws a bundle here: engine, then ONNX Runtime, then torch.

The order is fixed, so that a program draws with the same back end after every start. Each back end
that cannot be used has its reason in the log.
"""

import logging
from typing import TYPE_CHECKING

import numpy as np

from ganfast.errors import InputError, RunError
from ganfast.export.bundle.bundle import Bundle
from ganfast.export.bundle.manifest import tasks_differ
from ganfast.export.bundle.parity import GATES, compare
from ganfast.export.drawing.lanes import LaneBackend
from ganfast.export.drawing.latency import bucket_costs
from ganfast.export.drawing.rows import Rows, plan

if TYPE_CHECKING:
    from ganfast.export.engines.cuda import Cuda

logger = logging.getLogger("ganfast")

BACKENDS = ("auto", "tensorrt", "rtx", "onnxruntime", "torch")


def open_backend(
    bundle: Bundle, device: str, backend: str, strict: bool, threads: int
) -> tuple[LaneBackend, list[str]]:
    """The first back end that opens and draws the golden rows, and why those before it did not.

    Raises:
        InputError: none does; the first does not and ``strict``; no such device or back end.
    """
    if backend not in BACKENDS:
        raise InputError(f"backend is {backend!r}; expected one of {', '.join(BACKENDS)}")
    if threads < 0:
        raise InputError(f"threads is {threads}; expected 1 or more, or 0 for all")
    cuda = _cuda(device)
    refused: list[str] = []
    for name in _candidates(bundle, backend, device, cuda):
        try:
            opened = _open(name, bundle, cuda, device, threads)
            try:
                check_golden(bundle, opened)
            except BaseException:
                opened.close()
                raise
            for reason in refused:
                logger.warning("%s; drawing with %s instead", reason, name)
            return opened, refused
        except Exception as error:  # a library may raise anything; the next back end may work
            kind = "" if isinstance(error, InputError | RunError) else f"{type(error).__name__}: "
            refused.append(f"{name}: {kind}{' '.join(str(error).split())}")
            if strict:
                break
    raise InputError(f"{bundle.folder} cannot be drawn here: {'; '.join(refused)}")


def check_golden(bundle: Bundle, backend: LaneBackend) -> None:
    """Raises InputError where any lane of a back end does not draw the bundle's golden rows."""
    inputs, m = bundle.golden(), bundle.manifest
    images = inputs.pop("images")
    count = len(images)
    rows = Rows(m.latent, 0, np.arange(count), inputs)
    parts = plan(count, bucket_costs(bundle, backend.name), backend.exact)
    for lane in backend.ways():
        drawn, start = np.empty_like(images), 0
        for bucket in parts:
            lane.launch(rows.part(start, start + bucket), bucket)
            lane.collect(drawn[start : start + bucket])
            start += bucket
        missed = compare(drawn, images, backend.name).missed(GATES[m.precision])
        if missed:
            raise InputError(
                f"{bundle.folder} is not to be trusted here: golden samples differ: {missed}; "
                "export again"
            )


def refuse_other(old: Bundle, new: Bundle) -> None:
    """Raises InputError where a sampler of ``old`` cannot take the weights of ``new``."""
    alike = "latent", "classes", "size", "channels", "condition", "task", "precision", "buckets"
    for name in alike:
        before, after = getattr(old.manifest, name), getattr(new.manifest, name)
        if tasks_differ(before, after) if name == "task" else before != after:
            raise InputError(
                f"{new.folder} has {name} {after}, the sampler {before}; load it with load_sampler"
            )
    if new.manifest.precision == "int8":
        raise InputError(
            "the scales of an int8 graph belong to its weights: it cannot be refitted; "
            "load the new bundle with load_sampler"
        )


def _cuda(device: str) -> "Cuda | None":
    """The GPU that ``device`` names; with auto the first one, or None."""
    kind, colon, number = device.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (
        colon and (kind != "cuda" or not number.isdecimal())
    ):
        raise InputError(f"device is {device!r}; expected auto, cpu, cuda or cuda:N")
    if kind == "cpu":
        return None
    from ganfast.export.engines.cuda import Cuda

    try:
        return Cuda.open(int(number or 0))
    except InputError:
        if kind == "cuda":
            raise
        return None


def _candidates(bundle: Bundle, backend: str, device: str, cuda: "Cuda | None") -> list[str]:
    flavours = sorted(
        {str(facts.get("flavour")) for facts in bundle.manifest.engines.values()}, reverse=True
    )
    on_gpu = ["onnxruntime-cuda", "torch-cuda"] if cuda else []
    on_cpu = ["onnxruntime-cpu", "torch-cpu"] if device in ("auto", "cpu") else []
    if backend == "auto":
        return [*(flavours if cuda else []), *on_gpu, *on_cpu]
    if backend in ("tensorrt", "rtx"):
        return [backend]
    return [name for name in (*on_gpu, *on_cpu) if name.startswith(backend)]


def _open(name: str, bundle: Bundle, cuda: "Cuda | None", device: str, threads: int) -> LaneBackend:
    if name in ("tensorrt", "rtx"):
        return _open_engine(name, bundle, cuda)
    number = int(device.partition(":")[2] or 0)
    if name.startswith("onnxruntime"):
        from ganfast.export.drawing.run_onnxruntime import OnnxRuntimeCpu, OnnxRuntimeCuda

        if name.endswith("cuda"):
            return OnnxRuntimeCuda(bundle.model_bytes(), bundle.manifest, number)
        return OnnxRuntimeCpu(bundle.model_bytes(), threads)
    try:
        from ganfast.export.drawing.run_torch import TorchBackend
    except ImportError as error:
        raise InputError(f"torch cannot be imported here: {error}; pip install torch") from error
    where = f"cuda:{number}" if name.endswith("cuda") else "cpu"
    return TorchBackend(bundle.model_bytes(), bundle.manifest, where, threads)


def _open_engine(name: str, bundle: Bundle, cuda: "Cuda | None") -> LaneBackend:
    from ganfast.export.drawing.run_tensorrt import TensorRT
    from ganfast.export.engines.engines import find_engine

    engines = {
        key: facts for key, facts in bundle.manifest.engines.items() if facts.get("flavour") == name
    }
    if cuda is None:
        raise InputError("there is no GPU here that could run an engine")
    key, flavour = find_engine(engines, name, cuda.gpu)
    return TensorRT(flavour, bundle.engine(key), bundle.manifest, cuda)
