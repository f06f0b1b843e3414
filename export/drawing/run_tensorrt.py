"""Back end on a TensorRT engine: a context, buffers and a CUDA graph for every bucket.

It never ran on a GPU yet.

A bucket's graph copies inputs in, runs the engine and copies pictures out, all at fixed addresses:
one launch a batch. Contexts share one arena, because one batch runs at a time.
"""

import ctypes
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np

from ganfast.errors import InputError, RunError
from ganfast.export.bundle.manifest import Manifest
from ganfast.export.drawing.dlpack import DevicePictures
from ganfast.export.drawing.lanes import Pictures, copied
from ganfast.export.drawing.rows import Rows
from ganfast.export.engines.cuda import Cuda
from ganfast.export.engines.vendor import Context, Engine, Flavour

logger = logging.getLogger("ganfast")


class TensorRT:
    """Both a `LaneBackend` and its only `Lane`: the caller runs one batch at a time."""

    exact, lanes, depth = False, 1, 1

    def __init__(self, flavour: Flavour, plan: bytes, manifest: Manifest, cuda: Cuda) -> None:
        self.name, self._manifest, self._cuda = flavour.name, manifest, cuda
        cuda.use()
        self._engine = Engine(flavour, plan)
        self._undo: list[Callable[[], None]] = []
        profiles = {self._engine.batch_of(i): i for i in range(self._engine.profiles)}
        if missing := set(manifest.buckets) - set(profiles):
            raise InputError(
                f"the engine has no batch of {sorted(missing)}, which the manifest tells of; "
                "export again"
            )
        self._stream = cuda.stream()
        self._undo.append(lambda: cuda.drop_stream(self._stream))
        try:
            self._arena = self._take(max(1, self._engine.arena_bytes))
            self._buckets = {size: _Bucket(self, size, profiles[size]) for size in manifest.buckets}
        except BaseException:
            self.close()
            raise
        self._launched: list[tuple[int, int]] = []  # bucket, pictures

    def lane(self) -> "TensorRT":
        self._launched.clear()
        return self

    def ways(self) -> list["TensorRT"]:
        return [self.lane()]

    def launch(self, rows: Rows, bucket: int) -> None:
        self._cuda.use()
        slot = self._buckets[bucket]
        for name, value in rows.feed(bucket).items():
            slot.host[name][...] = value
        slot.start()
        self._launched.append((bucket, len(rows)))

    def collect(self, out: Pictures | None = None) -> Pictures:
        bucket, count = self._launched.pop()
        self._cuda.wait(self._stream)
        return copied(self._buckets[bucket].host["images"][:count], out)

    def on_device(self, rows: Rows, parts: list[int]) -> DevicePictures:
        shape = (len(rows), *self._manifest.shape)
        picture = int(np.prod(self._manifest.shape))  # bytes
        self._cuda.use()
        address, start = self._cuda.allocate(len(rows) * picture), 0
        pictures = DevicePictures(
            address, shape, self._cuda.index, lambda: self._cuda.free(address)
        )
        for bucket in parts:
            stop = min(start + bucket, len(rows))
            self.launch(rows.part(start, stop), bucket)
            self._launched.pop()
            to, images = address + start * picture, self._buckets[bucket].device["images"]
            self._cuda.copy(to, images, (stop - start) * picture, self._stream)
            self._cuda.wait(self._stream)  # before the next part's inputs overwrite this one's
            start = stop
        return pictures

    def refit(self, model: bytes) -> None:
        self._cuda.use()
        self._cuda.wait(self._stream)
        self._engine.refit(model)
        for slot in self._buckets.values():  # a captured graph may hold the old weights
            slot.capture()

    def close(self) -> None:
        self._cuda.use()
        self._buckets = {}
        for undo in reversed(self._undo):
            undo()
        self._undo = []

    def _take(self, size: int) -> int:
        address = self._cuda.allocate(size)
        self._undo.append(lambda: self._cuda.free(address))
        return address

    def _take_host(self, size: int) -> int:
        address = self._cuda.allocate_host(size)
        self._undo.append(lambda: self._cuda.free_host(address))
        return address


class _Bucket:
    """Buffers, context and graph of one batch size."""

    def __init__(self, owner: TensorRT, size: int, profile: int) -> None:
        self._owner, m = owner, owner._manifest
        arrays = {each.name: each.zeros(size) for each in (*m.inputs, *m.outputs)}
        if set(arrays) != {*owner._engine.inputs, *owner._engine.outputs}:
            raise InputError(
                f"the engine has {owner._engine.inputs} and {owner._engine.outputs}; "
                f"expected {sorted(arrays)}"
            )
        self.host: dict[str, np.ndarray] = {}
        self.device: dict[str, int] = {}
        self._pinned: dict[str, int] = {}
        for name, zeros in arrays.items():
            count = zeros.nbytes
            self._pinned[name], self.device[name] = owner._take_host(count), owner._take(count)
            memory: Any = (ctypes.c_uint8 * count).from_address(self._pinned[name])
            self.host[name] = np.frombuffer(memory, zeros.dtype).reshape(zeros.shape)
            self.host[name][...] = 0
        self._context: Context = owner._engine.context(
            profile, owner._arena, self.device, owner._stream
        )
        self._graph = 0
        owner._undo.append(self._drop)
        self.capture()

    def start(self) -> None:
        if self._graph:
            self._owner._cuda.launch(self._graph, self._owner._stream)
        else:
            self._enqueue()

    def capture(self) -> None:
        """Run once, because engines allocate late, then capture.

        An engine that cannot be captured is enqueued for every batch.
        """
        cuda, stream = self._owner._cuda, self._owner._stream
        self._drop()
        self._enqueue()
        cuda.wait(stream)
        if not self._context.capturable(stream):
            logger.warning(
                "%s: no CUDA graph, the engine cannot be captured; every batch is enqueued",
                self._owner.name,
            )
            return
        cuda.begin_capture(stream)
        try:
            self._enqueue()
        except RunError as error:
            logger.warning(
                "%s: no CUDA graph (%s); every batch is enqueued", self._owner.name, error
            )
            # An invalidated capture has no graph, but only its end frees the stream.
            with suppress(RunError):
                cuda.drop_graph(cuda.end_capture(stream))
            return
        self._graph = cuda.end_capture(stream)

    def _enqueue(self) -> None:
        cuda, stream = self._owner._cuda, self._owner._stream
        for name in self._owner._engine.inputs:
            cuda.copy_in(self.device[name], self._pinned[name], self.host[name].nbytes, stream)
        self._context.enqueue(stream)
        cuda.copy_out(
            self._pinned["images"], self.device["images"], self.host["images"].nbytes, stream
        )

    def _drop(self) -> None:
        if self._graph:
            self._owner._cuda.drop_graph(self._graph)
            self._graph = 0
