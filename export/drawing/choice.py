"""Which back end draws a bundle here: engine, then ONNX Runtime, then torch; each refusal with its reason."""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from ganfast.errors import InputError, RunError
from ganfast.export.bundle.bundle import Bundle
from ganfast.export.drawing.lanes import LaneBackend
from ganfast.export.drawing.latency import in_order_of_speed

if TYPE_CHECKING:
    from ganfast.export.engines.cuda import Cuda

logger = logging.getLogger("ganfast")

BACKENDS = ("auto", "tensorrt", "rtx", "onnxruntime", "torch")
Check = Callable[[Bundle, LaneBackend], None]


def open_backend(
    bundle: Bundle, device: str, backend: str, strict: bool, threads: int, check: Check
) -> tuple[LaneBackend, list[str]]:
    """The first back end that opens and passes ``check``, and why those before it did not.

    Raises:
        InputError: none does; the first does not and ``strict``; no such device or back end.
    """
    if backend not in BACKENDS:
        raise InputError(f"backend is {backend!r}; expected one of {', '.join(BACKENDS)}")
    if threads < 0:
        raise InputError(f"threads is {threads}; expected 1 or more, or 0 for all")
    cuda = _cuda(device)
    wanted = _candidates(bundle, backend, device, cuda)
    if backend == "auto":
        from ganfast.export.session import usable_threads

        wanted = in_order_of_speed(
            bundle, wanted, cuda.gpu.name if cuda else "", threads or usable_threads()
        )
    refused: list[str] = []
    for name in wanted:
        try:
            opened = _open(name, bundle, cuda, device, threads)
            try:
                check(bundle, opened)
            except BaseException:
                opened.close()
                raise
            for reason in refused:
                logger.warning("%s; drawing with %s instead", reason, name)
            return opened, refused
        except Exception as error:  # whatever a library raises, the next one may do
            kind = "" if isinstance(error, InputError | RunError) else f"{type(error).__name__}: "
            refused.append(f"{name}: {kind}{' '.join(str(error).split())}")
            if strict:
                break
    raise InputError(f"{bundle.folder} cannot be drawn here: {'; '.join(refused)}")


def _cuda(device: str) -> "Cuda | None":
    """The GPU that was asked for; with auto the first one, or None."""
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
    return TorchBackend(
        bundle.model_bytes(),
        bundle.manifest,
        f"cuda:{number}" if name.endswith("cuda") else "cpu",
        threads,
    )


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
