"""What a sampler asks of a back end: lanes, each of which draws one request at a time."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ganfast.export.drawing.rows import Rows


class Backend(Protocol):
    """One engine on one device. The graph's inputs are z, labels (where there are classes) and psi, its output is images."""

    name: (
        str  # "onnxruntime-cpu", "onnxruntime-cuda", "tensorrt", "rtx" or "torch-cpu", "torch-cuda"
    )

    def run(
        self, z: NDArray[np.float32], labels: NDArray[np.int64] | None, psi: NDArray[np.float32]
    ) -> NDArray[np.uint8]:  # pictures (B, H, W, C)
        """Draw z (B, latent), labels (B,) or None for a bundle without classes, psi (B,)."""
        ...


Pictures = NDArray[np.uint8]


class Lane(Protocol):
    """Buffers and a queue of work of their own; used by one thread at a time."""

    depth: int  # batches that may be launched before the first is collected

    def launch(self, rows: Rows, bucket: int) -> None:
        """Start drawing rows in a batch of ``bucket`` pictures, len(rows) <= bucket."""
        ...

    def collect(self, out: Pictures | None = None) -> Pictures:
        """Wait for the batch launched first: its pictures (len(rows), H, W, C), in ``out`` or else in memory of their own."""
        ...

    def on_device(self, rows: Rows, parts: list[int]) -> Any:
        """All rows drawn into memory of the device: an object with ``__dlpack__``, uint8 (N, H, W, C)."""
        ...


class LaneBackend(Backend, Protocol):
    """A back end that a sampler can drive."""

    exact: bool  # draws a batch of any size as it is; else batches are filled up to a bucket
    lanes: int  # requests that it draws at once

    def lane(self) -> Lane: ...

    def ways(self) -> Sequence[Lane]:
        """A lane for each way in which it may draw a request, as load and other requests decide: what has to be checked."""
        ...

    def refit(self, model: bytes) -> None:
        """Take the weights of another ONNX file of the same graph; called while no lane is busy."""
        ...

    def close(self) -> None: ...


class HostLane:
    """Lane of a back end that takes and gives NumPy arrays, from any thread.

    ``run`` is `Backend.run` or one of the ways it goes, ``exact`` what `LaneBackend.exact` says.
    """

    depth = 1

    def __init__(self, run: Callable[..., Pictures], exact: bool) -> None:
        self._run, self._exact = run, exact
        self._drawn: deque[Pictures] = deque()

    def launch(self, rows: Rows, bucket: int) -> None:
        z, labels, psi = filled(rows, len(rows) if self._exact else bucket)
        drawn = self._run(z, labels, psi)
        self._drawn.append(drawn if len(drawn) == len(rows) else drawn[: len(rows)])

    def collect(self, out: Pictures | None = None) -> Pictures:
        drawn = self._drawn.popleft()
        return drawn if out is None else copied(drawn, out)

    def on_device(self, rows: Rows, parts: list[int]) -> Pictures:
        drawn, start = [], 0
        for bucket in parts:
            self.launch(rows.part(start, start + bucket), bucket)
            drawn.append(self._drawn.popleft())
            start += bucket
        return np.concatenate(drawn)  # the host is the device, and NumPy's arrays have __dlpack__


def copied(pictures: Pictures, out: Pictures | None) -> Pictures:
    """A lane's own pictures, which its next batch overwrites, in ``out`` or in memory of their own."""
    if out is None:
        return pictures.copy()
    out[...] = pictures
    return out


def filled(
    rows: Rows, bucket: int
) -> tuple[NDArray[np.float32], NDArray[np.int64] | None, NDArray[np.float32]]:
    """z, labels, psi of a full batch: what is left of the bucket draws the latent 0."""
    z, labels, psi, n = rows.z(), rows.labels, rows.psi, len(rows)
    if n == bucket:
        return z, None if labels is None else np.ascontiguousarray(labels), psi
    full = np.zeros((bucket, rows.latent), np.float32)
    full[:n] = z
    psis = np.zeros(bucket, np.float32)
    psis[:n] = psi
    chosen = None
    if labels is not None:
        chosen = np.zeros(bucket, np.int64)
        chosen[:n] = labels
    return full, chosen, psis
