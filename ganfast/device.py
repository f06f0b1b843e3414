"""Where a run computes and in which number format: "auto" made definite.

Also what a process asks of CUDA: the switches of its libraries, and the capture of a graph.
"""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ganfast.config import Config
from ganfast.errors import InputError


def find_device(name: str) -> torch.device:
    """ "auto" is the first GPU, or the CPU where there is none. Of several processes that torchrun
    started on a machine, each has a GPU of its own.

    Raises:
        InputError: not a device, or not on this machine.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"device is {name!r}; expected auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device is {name!r}; ganfast runs on cpu and cuda")
    if device.type == "cuda":
        if device.index is None:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if device.index >= count:
            raise InputError(
                f"device is '{device}', but torch {torch.__version__} sees {count} CUDA devices "
                "here; use cpu or auto"
            )
        # `torch.cuda.synchronize()` and its like wait for the current device: make it this one.
        torch.cuda.set_device(device.index)
    return device  # with its index, as tensors there name it


def resolved(config: Config, device: torch.device) -> Config:
    """The config with width and precision fixed: the run's mathematics depends on both."""
    on_gpu = device.type == "cuda"
    precision = config.precision
    if precision == "auto":
        has_bf16 = on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
        precision = "bf16" if has_bf16 else "fp32"
    from ganfast.models import cpu_width  # here: models stand above devices

    width = config.net.width or (64 if on_gpu else cpu_width(config.model))
    net = replace(config.net, width=width)
    return replace(config, precision=precision, net=net)


def autocast_of(config: Config) -> torch.dtype | None:
    """The type that the networks compute in; None for float32."""
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.precision)


def prepared(net: nn.Module, device: torch.device) -> nn.Module:
    """On its device, weights of convolutions channels last: the layout of cuDNN and oneDNN."""
    return net.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def set_libraries(device: torch.device, precision: str) -> None:
    """Set cuDNN's and cuBLAS' switches for this process; `ganfast train` and benchmarks alike.

    fp32 means fp32. The other precisions let products and convolutions of float32 round their
    factors to TF32, which keeps more bits than bf16. cuDNN times its algorithms at the first call
    of each shape and keeps the fastest, because the shapes of a training stay. Another run may find
    another one the fastest, so two runs on a GPU differ in bits.
    `torch.use_deterministic_algorithms(True)`, called before, keeps cuDNN from timing. On a CPU
    nothing is set.
    """
    if device.type != "cuda":
        return
    tf32 = precision != "fp32"
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = not torch.are_deterministic_algorithms_enabled()


@contextmanager
def capturing(graph: torch.cuda.CUDAGraph, pool: Any = None, stream: Any = None) -> Iterator[None]:
    """Record what is launched inside into a CUDA graph, undisturbed by the rest of the process.

    Garbage is collected before, and not inside: a collection may free an older graph or event,
    which ends a capture. What other threads ask of CUDA ends it neither ("thread_local").

    Args:
        graph: what is recorded into.
        pool: `torch.cuda.graph_pool_handle()` of graphs that share memory; None = its own.
        stream: where it is recorded; None = a side stream of torch's.

    Raises:
        RuntimeError: what a capture forbids was launched.
    """
    gc.collect()
    collects = gc.isenabled()
    gc.disable()
    try:
        with torch.cuda.graph(graph, pool, stream, capture_error_mode="thread_local"):
            yield
    finally:
        if collects:
            gc.enable()
