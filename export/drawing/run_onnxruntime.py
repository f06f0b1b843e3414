"""Back ends on ONNX Runtime: the CPU; and CUDA with bound buffers and one CUDA graph a bucket.

The back end for CUDA never ran on a GPU.
"""

import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from ganfast.errors import InputError
from ganfast.export.bundle.manifest import Manifest
from ganfast.export.drawing.lanes import HostLane, Pictures, copied
from ganfast.export.drawing.rows import Feed, Rows
from ganfast.export.session import cpu_session, make_session, need_onnxruntime
from ganfast.host import usable_threads

# Pictures a thread, from which on threads draw batches of their own: two threads that share a batch
# lose up to a fifth of their time.
_SPLIT = 8


class OnnxRuntimeCpu:
    """Threads share a small batch that comes alone, and draw a part of a large batch each.

    Beside other requests, a small one keeps to its own thread: that wastes less time.
    """

    name, exact = "onnxruntime-cpu", True

    def __init__(self, model: bytes, threads: int = 0) -> None:
        self.threads = threads or usable_threads()
        self.lanes = max(2, self.threads)
        self._pool: ThreadPoolExecutor | None = None
        if self.threads > 1:
            self._pool = ThreadPoolExecutor(self.threads - 1, "ganfast-onnxruntime")
        self._counting, self._requests = threading.Lock(), 0
        self._open(model)

    def _open(self, model: bytes) -> None:
        together = cpu_session(model, self.threads)
        alone = together if self._pool is None else cpu_session(model, 1)
        self._together, self._alone = together, alone  # both or, where one cannot be made, neither

    def run(self, feed: Feed) -> Pictures:
        with self._counting:
            self._requests += 1
            by_itself = self._requests == 1
        try:
            return self._draw(feed, by_itself)
        finally:
            with self._counting:
                self._requests -= 1

    def _draw(self, feed: Feed, by_itself: bool) -> Pictures:
        count = len(feed["z"])
        if self._pool is None or count < _SPLIT * self.threads:
            return self._run(self._together if by_itself else self._alone, feed)
        edges = [round(count * i / self.threads) for i in range(self.threads + 1)]
        parts = [{name: array[a:b] for name, array in feed.items()} for a, b in pairwise(edges)]
        others: list[Future[Pictures]] = []
        try:
            # While the program ends no thread takes more work: this thread draws the rest.
            with suppress(RuntimeError):
                for part in parts[1:]:
                    others.append(self._pool.submit(self._run, self._alone, part))
            own = [self._run(self._alone, part) for part in (parts[0], *parts[1 + len(others) :])]
            return np.concatenate([own[0], *(future.result() for future in others), *own[1:]])
        except BaseException:
            wait(others)  # the request is not over before its parts are
            raise

    @staticmethod
    def _run(session: Any, feed: Feed) -> Pictures:
        pictures: Pictures = session.run(["images"], feed)[0]
        return pictures

    def lane(self) -> HostLane:
        return HostLane(self.run, self.exact)

    def ways(self) -> list[HostLane]:
        return [
            HostLane(partial(self._draw, by_itself=by_itself), self.exact)
            for by_itself in ([True, False] if self._pool else [True])
        ]

    def refit(self, model: bytes) -> None:
        self._open(model)  # takes as long as exchanging initializers, and checks the graph

    def close(self) -> None:
        if self._pool:
            self._pool.shutdown()
        del self._together, self._alone


class OnnxRuntimeCuda:
    """Buffers on the device, bound once; the second call of a bucket replays its CUDA graph."""

    name, exact = "onnxruntime-cuda", False
    lanes = 1  # a session's graphs belong to one thread at a time

    def __init__(
        self, model: bytes, manifest: Manifest, device: int = 0, where: str = "cuda"
    ) -> None:
        """``where``: "cpu" runs the same code without a GPU and without graphs, for tests."""
        providers = need_onnxruntime().get_available_providers()
        if where == "cuda" and "CUDAExecutionProvider" not in providers:
            raise InputError(
                'this ONNX Runtime has no CUDA: pip install "ganfast[gpu]" in place of onnxruntime'
            )
        self.manifest, self.device, self.where = manifest, device, where
        self._open(model)

    def _open(self, model: bytes) -> None:
        self.session = self._on_cuda(model) if self.where == "cuda" else cpu_session(model, 1)
        self._lane = _BoundLane(self)

    def _on_cuda(self, model: bytes) -> Any:
        tf32 = "1" if self.manifest.precision == "tf32" else "0"
        options = {"device_id": str(self.device), "use_tf32": tf32, "enable_cuda_graph": "1"}
        session = make_session(model, 1, [("CUDAExecutionProvider", options)])
        if "CUDAExecutionProvider" not in session.get_providers():
            raise InputError(
                "ONNX Runtime could not start CUDA: its driver or cuDNN do not fit; see its log"
            )
        return session

    def lane(self) -> "_BoundLane":
        self._lane.launched.clear()
        return self._lane

    def ways(self) -> list["_BoundLane"]:
        return [self.lane()]

    def refit(self, model: bytes) -> None:
        self._open(model)

    def close(self) -> None:
        del self._lane, self.session


class _BoundLane:
    depth = 1

    def __init__(self, backend: OnnxRuntimeCuda) -> None:
        self._backend = backend
        # bucket -> inputs, output, binding
        self._bound: dict[int, tuple[dict[str, Any], Any, Any]] = {}
        self.launched: deque[tuple[int, int]] = deque()  # bucket, pictures

    def launch(self, rows: Rows, bucket: int) -> None:
        inputs, _, binding = self._buffers(bucket)
        for name, value in rows.feed(bucket).items():
            inputs[name].update_inplace(value)
        known = bucket in self._backend.manifest.buckets
        self._run(binding, str(bucket) if known and self._backend.where == "cuda" else "-1")
        self.launched.append((bucket, len(rows)))

    def collect(self, out: Pictures | None = None) -> Pictures:
        bucket, count = self.launched.popleft()
        return copied(self._buffers(bucket)[1].numpy()[:count], out)

    def on_device(self, rows: Rows, parts: list[int]) -> Any:
        if len(parts) > 1 or parts[0] != len(rows):
            raise InputError(
                f"{len(rows)} pictures on the device do not fill one bucket of ONNX Runtime; "
                f"ask for one of {', '.join(map(str, self._backend.manifest.buckets))}, "
                "or use backend torch"
            )
        inputs = {name: self._new(value) for name, value in rows.feed(len(rows)).items()}
        images, binding = self._bind(len(rows), inputs)
        # No graph: one would write to the buffers it was captured with, not to these.
        self._run(binding, "-1")
        return images

    def _run(self, binding: Any, graph: str) -> None:
        options = need_onnxruntime().RunOptions()
        options.add_run_config_entry("gpu_graph_id", graph)
        self._backend.session.run_with_iobinding(binding, options)

    def _buffers(self, bucket: int) -> tuple[dict[str, Any], Any, Any]:
        if bucket not in self._bound:
            m = self._backend.manifest
            inputs = {each.name: self._new(each.zeros(bucket)) for each in m.inputs}
            self._bound[bucket] = (inputs, *self._bind(bucket, inputs))
        return self._bound[bucket]

    def _bind(self, bucket: int, inputs: dict[str, Any]) -> tuple[Any, Any]:
        images = self._new(np.zeros((bucket, *self._backend.manifest.shape), np.uint8))
        binding = self._backend.session.io_binding()
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        binding.bind_ortvalue_output("images", images)
        return images, binding

    def _new(self, value: np.ndarray) -> Any:
        value_of = need_onnxruntime().OrtValue.ortvalue_from_numpy
        return value_of(value.copy(), self._backend.where, self._backend.device)
