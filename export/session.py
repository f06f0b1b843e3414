"""ONNX Runtime sessions: the one place that makes them, so that int8 is exact on every processor.

x86 processors without VNNI add two products of bytes in 16 bits: 2 * 255 * 127 does not fit, and
the sum is cut off without a word. ONNX Runtime has slower kernels that are exact there. A graph of
one product whose value is known tells whether this processor needs them.
"""

import atexit
import base64
import logging
import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ganfast.errors import InputError
from ganfast.host import usable_threads

logger = logging.getLogger("ganfast")

CPU = ("CPUExecutionProvider",)
AS_FLOAT = {"session.disable_quant_qdq": "1"}  # quantised values, products in float32
_SPIN_US = 100  # how long an idle thread stays awake: longer than a gap within one picture
_SPIN_SINCE = (1, 26)  # earlier versions keep idle threads awake until the next request

# A product of 64 values, all 127 steps of 1/127: 1 * 1 * 64. Made in tests/export/test_session.py.
_PROBE = base64.b64decode(
    "CAg6hgMKIwoBeAoEc3RlcAoEemVybxICeDgiDlF1YW50aXplTGluZWFyCicKAng4CgRzdGVwCgR6ZXJvEgN4MzIiEERl"
    "cXVhbnRpemVMaW5lYXIKJgoBdwoEc3RlcAoEemVybxIDdzMyIhBEZXF1YW50aXplTGluZWFyChcKA3gzMgoDdzMyEgN5"
    "MzIiBk1hdE11bAolCgN5MzIKBHdpZGUKBHplcm8SAnk4Ig5RdWFudGl6ZUxpbmVhcgolCgJ5OAoEd2lkZQoEemVybxIB"
    "eSIQRGVxdWFudGl6ZUxpbmVhchIBZyoOEAFCBHN0ZXBKBAQCATwqCxADQgR6ZXJvSgEAKg4QAUIEd2lkZUoEBAIBPypL"
    "CEAIARADQgF3SkB/f39/f39/f39/f39/f39/f39/f39/f39/f39/f39/f39/f39/f39/f39/f39/f39/f39/f39/f39/"
    "f39/f39/WhQKAXgSDwoNCAESCQoDEgFOCgIIQGIUCgF5Eg8KDQgBEgkKAxIBTgoCCAFCBAoAEBI="
)
_PROBE_ANSWER = 64.0


def need_onnxruntime() -> Any:
    """The package; InputError naming it where it is missing."""
    try:
        import onnxruntime
    except ImportError as error:
        how = 'pip install "ganfast[export]", or onnxruntime alone to draw'
        raise InputError(f"this needs onnxruntime: {how}") from error
    _loaded_by()
    return onnxruntime


@cache
def _loaded_by() -> int:
    """The process that loaded ONNX Runtime. A child of it that ends by itself hangs or aborts, even
    where all sessions are closed (1.32 on Linux): it is told before, with the way out."""
    home = os.getpid()

    def warn_as_fork() -> None:
        if os.getpid() != home:
            logger.warning(
                "process %d was forked from one that had loaded ONNX Runtime, and may hang or "
                "abort as it ends: leave it with os._exit, or load samplers after the fork",
                os.getpid(),
            )

    atexit.register(warn_as_fork)
    return home


def cpu_session(model: bytes | Path, threads: int = 0, *, as_float: bool = False) -> Any:
    """An ``InferenceSession`` on the CPU whose int8 products are exact.

    Args:
        model: an ONNX file, or its content.
        threads: that one call uses; 0 = all that this process may use.
        as_float: compute the products of a quantised graph in float32: what the graph says,
            whatever the processor's int8 kernels make of it.

    Raises:
        InputError: ONNX Runtime is missing, or cannot run the model.
    """
    entries = AS_FLOAT if as_float else _exact_int8() if _is_quantised(model) else {}
    return make_session(model, threads or usable_threads(), list(CPU), entries)


def make_session(
    model: bytes | Path, threads: int, providers: list[Any], entries: dict[str, str] | None = None
) -> Any:
    """An ``InferenceSession`` of any provider; ``entries`` are ONNX Runtime's config entries.

    Raises:
        InputError: ONNX Runtime is missing, or cannot run the model.
    """
    ort = need_onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3  # errors only
    spin = threads > 1 and tuple(map(int, ort.__version__.split(".")[:2])) >= _SPIN_SINCE
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin else "0")
    if spin:
        options.add_session_config_entry("session.intra_op.spin_duration_us", str(_SPIN_US))
    for name, value in (entries or {}).items():
        options.add_session_config_entry(name, value)
    source = str(model) if isinstance(model, Path) else model
    try:
        return ort.InferenceSession(source, options, providers=providers)
    except Exception as error:  # ONNX Runtime has types of its own for each kind of damage
        reason = " ".join(str(error).split())
        raise InputError(
            f"ONNX Runtime {ort.__version__} cannot run the model: {reason}"
        ) from error


def _is_quantised(model: bytes | Path) -> bool:
    """An operation's name stands in the file as it is; weights that spell it only cost a probe."""
    return b"DequantizeLinear" in (model.read_bytes() if isinstance(model, Path) else model)


@cache
def _exact_int8() -> dict[str, str]:
    """The config entries with which int8 products are exact here; {} where they are exact anyway.

    Raises:
        InputError: no way of ONNX Runtime is exact here.
    """
    remedies: tuple[tuple[dict[str, str], str], ...] = (
        ({}, ""),
        ({"session.x64quantprecision": "1"}, "ONNX Runtime's exact kernels for such processors"),
        (AS_FLOAT, "float32 products of the quantised values"),
    )
    for entries, remedy in remedies:
        answer = _probe(entries)
        if answer == _PROBE_ANSWER:
            if remedy:
                logger.warning(
                    "int8 products overflow on this processor (no VNNI); "
                    "ganfast takes %s, which are slower",
                    remedy,
                )
            return entries
    raise InputError(
        f"int8 products are wrong on this processor: a product of 64 is {answer:g}; use fp32"
    )


def _probe(entries: dict[str, str]) -> float:
    session = make_session(_PROBE, 1, list(CPU), entries)
    return float(session.run(None, {"x": np.ones((1, 64), np.float32)})[0].item())
