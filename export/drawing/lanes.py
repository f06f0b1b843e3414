"""The interface of sampler and back end: lanes, each of which draws one request at a time."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ganfast.export.drawing.rows import Feed, Rows

Pictures = NDArray[np.uint8]


class Lane(Protocol):
    """Buffers and a queue of work of their own; used by one thread at a time."""

    depth: int  # batches that may be launched before the first is collected

    def launch(self, rows: Rows, bucket: int) -> None:
        """Start drawing rows in a batch of ``bucket`` pictures, len(rows) <= bucket."""
        ...

    def collect(self, out: Pictures | None = None) -> Pictures:
        """Wait for the batch launched first: its pictures (len(rows), H, W, C).

        They lie in ``out``, or else in memory of their own.
        """
        ...

    def on_device(self, rows: Rows, parts: list[int]) -> Any:
        """All rows drawn into memory of the device: uint8 (N, H, W, C) with ``__dlpack__``."""
        ...


class LaneBackend(Protocol):
    """One engine on one device, which a sampler can drive."""

    name: str  # onnxruntime-cpu, onnxruntime-cuda, tensorrt, rtx, torch-cpu or torch-cuda
    exact: bool  # draws a batch of any size as it is; else batches are filled up to a bucket
    lanes: int  # requests that it draws at once

    def lane(self) -> Lane: ...

    def ways(self) -> Sequence[Lane]:
        """A lane for each way in which it may draw a request: all of them have to be checked.

        ONNX Runtime, for one, draws a lone request with another session than one beside others.
        """
        ...

    def refit(self, model: bytes) -> None:
        """Take the weights of another ONNX file of the same graph; called while no lane is busy."""
        ...

    def close(self) -> None: ...


class HostLane:
    """Lane of a back end that takes and returns NumPy arrays, from any thread.

    ``run`` draws the inputs of the graph by name. ``exact`` is `LaneBackend.exact`.
    """

    depth = 1

    def __init__(self, run: Callable[[Feed], Pictures], exact: bool) -> None:
        self.run, self._exact = run, exact
        self._batches: deque[Pictures] = deque()

    def launch(self, rows: Rows, bucket: int) -> None:
        pictures = self.run(rows.feed(len(rows) if self._exact else bucket))
        self._batches.append(pictures if len(pictures) == len(rows) else pictures[: len(rows)])

    def collect(self, out: Pictures | None = None) -> Pictures:
        pictures = self._batches.popleft()
        return pictures if out is None else copied(pictures, out)

    def on_device(self, rows: Rows, parts: list[int]) -> Pictures:
        batches, start = [], 0
        for bucket in parts:
            self.launch(rows.part(start, start + bucket), bucket)
            batches.append(self._batches.popleft())
            start += bucket
        return np.concatenate(batches)  # the host is the device; NumPy's arrays have __dlpack__


def copied(pictures: Pictures, out: Pictures | None) -> Pictures:
    """A lane's pictures in ``out`` or in memory of their own: its next batch overwrites its own."""
    if out is None:
        return pictures.copy()
    out[...] = pictures
    return out
