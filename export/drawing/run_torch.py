"""Back end on torch. On a GPU: CUDA graphs, static buffers, a pinned ring. On a CPU: eager.

This back end and `onnx_torch` stay although ONNX Runtime comes before them. Torch alone draws on a
GPU without onnxruntime-gpu and TensorRT, and hands its pictures to torch without a copy.
"""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ganfast.device import capturing
from ganfast.errors import InputError, RunError
from ganfast.export.bundle.manifest import Manifest
from ganfast.export.drawing.lanes import HostLane, Lane, Pictures, copied
from ganfast.export.drawing.onnx_torch import Program
from ganfast.export.drawing.rows import Feed, Rows
from ganfast.kernels.latents import latents

# Torch's thread count belongs to the process: two samplers at once would put back each other's.
_thread_count = threading.Lock()
# On a GPU: the copies of one lane run beside the kernels of the other, and a lane draws a batch
# while its last one is copied out.
_LANES, _DEPTH = 2, 2


class TorchBackend:
    """Runs the bundle's graph with torch operations."""

    def __init__(
        self,
        model: bytes,
        manifest: Manifest,
        device: str = "cpu",
        threads: int = 0,
        static: bool = False,
    ) -> None:
        """``static``: buckets and buffers as on a GPU, for tests on a CPU."""
        self.device, self.manifest = torch.device(device), manifest
        self._cuda = self.device.type == "cuda"
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if self._cuda and self.device.index >= count:
            raise InputError(
                f"torch {torch.__version__} sees no {device} here; use device cpu, "
                "or backend onnxruntime"
            )
        self.name = f"torch-{self.device.type}"
        self._static = static or self._cuda
        self.exact, self.lanes = not self._static, _LANES if self._static else 1
        self._threads = threads
        self.capturing = threading.Lock()  # `settings` are those of the whole process
        self.program = Program(model, self.device)

    def run(self, feed: Feed) -> Pictures:
        inputs = {name: torch.from_numpy(np.array(value)) for name, value in feed.items()}
        with self.settings():
            images = self.program(**{name: x.to(self.device) for name, x in inputs.items()})
        pictures: Pictures = images.cpu().contiguous().numpy()
        return pictures

    @contextmanager
    def settings(self) -> Iterator[None]:
        """Inside, float32 is float32 unless the bundle asks for tf32, and ``threads`` is kept."""
        tf32 = self.manifest.precision == "tf32"
        with ExitStack() as stack:
            if self._cuda:
                stack.enter_context(
                    torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=tf32)
                )
                before = torch.backends.cuda.matmul.allow_tf32
                torch.backends.cuda.matmul.allow_tf32 = tf32
                stack.callback(setattr, torch.backends.cuda.matmul, "allow_tf32", before)
            elif self._threads:
                stack.enter_context(_thread_count)
                stack.callback(torch.set_num_threads, torch.get_num_threads())
                torch.set_num_threads(self._threads)
            yield

    def lane(self) -> Lane:
        return _StaticLane(self) if self._static else HostLane(self.run, self.exact)

    def ways(self) -> list[Lane]:
        return [self.lane()]

    def refit(self, model: bytes) -> None:
        if self._cuda:
            torch.cuda.synchronize(self.device)
        self.program.refit(model)

    def close(self) -> None:
        del self.program


class _StaticLane:
    """Inputs and pictures of each bucket at fixed addresses, as a captured graph needs them."""

    depth = _DEPTH

    def __init__(self, backend: TorchBackend) -> None:
        self._backend = backend
        self._cuda = backend._cuda
        self._stream = torch.cuda.Stream(backend.device) if self._cuda else None
        self._slots = [_Slot(backend) for _ in range(_DEPTH)]
        self._next = 0
        self._launched: deque[tuple[_Slot, int]] = deque()
        with self._on_stream():  # captured now, not during the first request of a user
            self._buckets = {
                bucket: _Captured(backend, bucket, self._stream)
                for bucket in backend.manifest.buckets
            }

    def launch(self, rows: Rows, bucket: int) -> None:
        slot = self._slots[self._next]
        self._next = (self._next + 1) % _DEPTH
        with self._on_stream():
            images = self._draw(slot, rows, bucket)
            slot.images[: len(rows)].copy_(images[: len(rows)], non_blocking=True)
            slot.mark(self._stream)
        self._launched.append((slot, len(rows)))

    def collect(self, out: Pictures | None = None) -> Pictures:
        slot, count = self._launched.popleft()
        slot.wait()
        return copied(slot.images[:count].numpy(), out)

    def on_device(self, rows: Rows, parts: list[int]) -> Tensor:
        shape = (len(rows), *self._backend.manifest.shape)
        result = torch.empty(shape, dtype=torch.uint8, device=self._backend.device)
        if self._stream is not None:
            # The caller's kernels may still use the memory that `result` was given.
            self._stream.wait_stream(torch.cuda.current_stream(self._backend.device))
        start = 0
        for bucket in parts:
            slot = self._slots[0]
            stop = min(start + bucket, len(rows))
            with self._on_stream():
                images = self._draw(slot, rows.part(start, stop), bucket)
                result[start:stop].copy_(images[: stop - start])
                slot.mark(self._stream)
            slot.wait()  # its pinned inputs are copied again by the next part
            start = stop
        return result

    def _draw(self, slot: "_Slot", rows: Rows, bucket: int) -> Tensor:
        captured = self._buckets[bucket]
        n, device = len(rows), self._backend.device
        feed = rows.arrays if self._cuda else rows.feed(n)
        if "z" not in feed:  # drawn on the GPU: only the indices travel there
            slot.index.numpy()[:n] = rows.index
            captured.inputs["z"][:n] = latents(
                rows.seed, 0, slot.index[:n].to(device, non_blocking=True), rows.latent
            )
        for name, value in feed.items():
            slot.inputs[name].numpy()[:n] = value
            captured.inputs[name][:n].copy_(slot.inputs[name][:n], non_blocking=True)
        return captured.replay()

    def _on_stream(self) -> AbstractContextManager[Any]:
        return torch.cuda.stream(self._stream) if self._stream is not None else nullcontext()


class _Slot:
    """Host memory of one batch on its way, pinned where there is a GPU."""

    def __init__(self, backend: TorchBackend) -> None:
        m, most, pin = backend.manifest, max(backend.manifest.buckets), backend._cuda
        zeros = {each.name: torch.from_numpy(each.zeros(most)) for each in m.inputs}
        self.inputs = {name: x.pin_memory() if pin else x for name, x in zeros.items()}
        self.index = torch.zeros(most, dtype=torch.int64, pin_memory=pin)
        self.images = torch.zeros(most, *m.shape, dtype=torch.uint8, pin_memory=pin)
        self._done = torch.cuda.Event() if pin else None

    def mark(self, stream: Any) -> None:
        if self._done is not None:
            self._done.record(stream)

    def wait(self) -> None:
        if self._done is not None:
            self._done.synchronize()


class _Captured:
    """The program of one bucket: a CUDA graph on a GPU, a call on a CPU."""

    def __init__(self, backend: TorchBackend, bucket: int, stream: Any) -> None:
        m, device = backend.manifest, backend.device
        self._backend = backend
        zeros = {each.name: torch.from_numpy(each.zeros(bucket)) for each in m.inputs}
        self.inputs = {name: x.to(device) for name, x in zeros.items()}
        self._graph: Any = None
        if not backend._cuda:
            return
        try:
            with backend.capturing, backend.settings():
                for _ in range(3):  # cuDNN tries its algorithms, allocators settle
                    backend.program(**self.inputs)
                stream.synchronize()
                self._graph = torch.cuda.CUDAGraph()
                with capturing(self._graph, stream=stream):
                    self._images = backend.program(**self.inputs)
        except RuntimeError as error:
            raise RunError(
                f"batch {bucket} could not be captured as a CUDA graph: {error}; "
                "use backend onnxruntime"
            ) from error

    def replay(self) -> Tensor:
        if self._graph is None:
            with self._backend.settings():
                return self._backend.program(**self.inputs)
        self._graph.replay()
        return self._images
