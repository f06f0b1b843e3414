"""`load_sampler`: pictures from a bundle, inside another program.

Needs NumPy and one of ONNX Runtime, TensorRT and torch. Picture (seed, index) is the same, within
the bundle's gate, in a batch of any size, on every thread and on every back end.
"""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np

from ganfast.errors import InputError, RunError
from ganfast.export.bundle.bundle import Bundle, open_bundle
from ganfast.export.bundle.manifest import Manifest
from ganfast.export.drawing.choice import check_golden, open_backend, refuse_other
from ganfast.export.drawing.lanes import Lane, LaneBackend, Pictures
from ganfast.export.drawing.latency import bucket_costs, percentiles
from ganfast.export.drawing.rows import (
    Labels,
    Rows,
    ask,
    conditions,
    is_one,
    plan,
    refuse_out,
    rows_of_latents,
)
from ganfast.export.drawing.tiles import in_tiles
from ganfast.latents import picture_range

logger = logging.getLogger("ganfast")

_REMEMBERED = 4096  # seconds of the latest requests, which `Sampler.stats` summarises
_thread = threading.local()  # .works_for: the mark of the sampler whose thread this is


def load_sampler(
    path: Path | str,
    device: str = "auto",
    backend: str = "auto",
    digest: str | None = None,
    strict: bool = False,
    threads: int = 0,
) -> "Sampler":
    """Open a bundle for drawing.

    Every byte is checked before anything is deserialised. Then the back end draws the bundle's
    golden rows, and is refused where they differ by more than the precision's gate. Engines come
    first, then ONNX Runtime, then torch. Each refusal is logged with its reason.

    Args:
        path: the bundle's directory.
        device: auto (a GPU where one can be used), cpu, cuda or cuda:1.
        backend: auto, tensorrt, rtx, onnxruntime or torch.
        digest: "sha256:..." as `ganfast export` printed it; another bundle is refused.
        strict: refuse instead of falling back to the next back end.
        threads: of the CPU; 0 = all that this process may use.

    Raises:
        InputError: no bundle, or a changed one; a device or back end that cannot be used; pictures
            that are not the golden ones.
    """
    bundle = open_bundle(path, digest)
    opened, refused = open_backend(bundle, device, backend, strict, threads)
    return Sampler(bundle, opened, refused)


class Sampler:
    """Draws pictures, for any number of threads. Close it, or use it in a ``with`` statement."""

    def __init__(self, bundle: Bundle, backend: LaneBackend, refused: list[str]) -> None:
        self.bundle, self.backend_name, self.refused = bundle, backend.name, refused
        self._backend = backend
        self._cost = bucket_costs(bundle, backend.name)
        self._plans: dict[int, list[int]] = {}
        self._lanes: SimpleQueue[Lane | None] = SimpleQueue()  # None in place of one: it is closed
        for _ in range(backend.lanes):
            self._lanes.put(backend.lane())
        self._mark = object()  # a thread that held the sampler itself would keep it alive
        self._workers = ThreadPoolExecutor(
            backend.lanes, "ganfast-sampler", setattr, (_thread, "works_for", self._mark)
        )
        self._closing = self._closed = False
        self._process = os.getpid()
        self._refitting = threading.Lock()
        self._counting = threading.Lock()
        self._requests = self._pictures = self._drawn = 0
        self._seconds: deque[float] = deque(maxlen=_REMEMBERED)

    def __reduce__(self) -> Any:
        raise TypeError(
            f"the sampler of {self.bundle.folder} cannot be pickled, as its threads and sessions "
            "belong to this process; load it anew, with load_sampler, in the process that draws"
        )

    @property
    def manifest(self) -> Manifest:
        """Classes, size, colour order, precision and the rest of the bundle's own description."""
        return self.bundle.manifest

    def sample(
        self,
        n: int | None = None,
        seed: int = 0,
        labels: Labels = None,
        psi: Any = 1.0,
        *,
        indices: Any = None,
        first: int = 0,
        out: Pictures | None = None,
        on_device: bool = False,
    ) -> Any:
        """Draw pictures.

        Args:
            n: how many, > 0: those of indices first .. first + n - 1; or give ``indices``.
            seed: names the stream of latents, 0 <= seed < 2**64.
            labels: a class by number or name for all, or one for each picture; None draws them, as
                (seed, index) fixes them.
            psi: 0 to 2, the factor of z, one for all or one for each picture. 1 is as trained, less
                is more typical and less varied, 0 is one picture.
            indices: which pictures, (N,) integers >= 0.
            out: uint8 (N, H, W, C) to write into.
            on_device: leave them where they were drawn. The result has ``__dlpack__``
                (``torch.from_dlpack(result)``).

        Returns:
            uint8 (N, H, W, C), NumPy unless ``on_device``.

        Raises:
            InputError: what names no picture; more than fits into memory.
            RunError: the sampler is closed, or its device failed.
        """
        rows = ask(self.manifest, n, indices, seed, first, labels, psi)
        if on_device:
            if out is not None:
                raise InputError("out is memory of the host; give out or on_device, not both")
            return self._on_lane(self._left_there, rows, None, time.perf_counter())
        return self._now(rows, out)

    def draw(self, z: Any, labels: Labels = None, psi: Any = 1.0) -> Pictures:
        """`sample` for latents of your own, z (N, latent), standard normal.

        ``labels`` are needed where there are classes.
        """
        return self._now(rows_of_latents(self.manifest, z, labels, psi), None)

    def submit(
        self,
        n: int | None = None,
        seed: int = 0,
        labels: Labels = None,
        psi: Any = 1.0,
        *,
        indices: Any = None,
        first: int = 0,
        out: Pictures | None = None,
    ) -> "Future[Pictures]":
        """`sample` on a thread of the sampler; arguments are checked at once."""
        return self._later(ask(self.manifest, n, indices, seed, first, labels, psi), out)

    def apply(
        self,
        condition: Any,
        seed: int = 0,
        first: int = 0,
        psi: Any = 1.0,
        labels: Labels = None,
        *,
        out: Pictures | None = None,
    ) -> Pictures:
        """Draw pictures made from others: picture i has the latent (seed, first + i).

        Args:
            condition: (N, *shape) as ``manifest.condition`` says: uint8 (N, h, w, k), with a mask
                behind a picture's channels where the task has one, 255 = known and 0 = hole.
            seed, first, psi, labels, out: as of `sample`; psi 0 = one answer to each condition.

        Raises:
            InputError: a condition of another size or type, a mask with a third value, a bundle
                without conditions; and as `sample`, also a RunError.
        """
        return self._now(self._made(condition, None, seed, first, labels, psi), out)

    def submit_apply(
        self,
        condition: Any,
        seed: int = 0,
        first: int = 0,
        psi: Any = 1.0,
        labels: Labels = None,
        *,
        out: Pictures | None = None,
    ) -> "Future[Pictures]":
        """`apply` on a thread of the sampler; arguments are checked at once."""
        return self._later(self._made(condition, None, seed, first, labels, psi), out)

    def apply_tiles(
        self,
        picture: Pictures,
        overlap: int | None = None,
        seed: int = 0,
        first: int = 0,
        psi: float = 1.0,
        labels: int | str | None = None,
    ) -> Pictures:
        """`apply` to one larger picture (h, w, k), in tiles of one latent: `tiles.in_tiles`."""

        def draw(tiles: Pictures) -> Pictures:
            latent = np.full(len(tiles), first)
            return self._now(self._made(tiles, latent, seed, 0, labels, psi), None)

        given = self.manifest.condition
        return in_tiles(draw, picture, given.shape if given else (), overlap)

    def _made(
        self, condition: Any, indices: Any, seed: int, first: int, labels: Labels, psi: Any
    ) -> Rows:
        given = conditions(self.manifest, condition)
        n = len(given) if indices is None else None
        return ask(self.manifest, n, indices, seed, first, labels, psi, given)

    def _now(self, rows: Rows, out: Pictures | None) -> Any:
        refuse_out(self.manifest, rows, out)
        return self._on_lane(self._draw, rows, out, time.perf_counter())

    def _later(self, rows: Rows, out: Pictures | None) -> "Future[Pictures]":
        refuse_out(self.manifest, rows, out)
        self._refuse_forked()
        request = self._draw, rows, out, time.perf_counter()
        try:
            return self._workers.submit(self._on_lane, *request)
        except RuntimeError as error:
            if self._closing:
                raise self._is_closed() from error
        future: Future[Pictures] = Future()  # the program is ending: no thread takes more work
        try:
            future.set_result(self._on_lane(*request))
        except Exception as error:
            future.set_exception(error)
        return future

    def stream(
        self,
        n: int,
        seed: int = 0,
        labels: int | str | None = None,
        psi: float = 1.0,
        *,
        first: int = 0,
        chunk: int = 0,
    ) -> Iterator[Pictures]:
        """The pictures of ``sample(n, ...)`` in parts of ``chunk``, for any large n.

        One part is drawn ahead. A ``chunk`` of 0 is the largest bucket.
        """
        n, first = picture_range(n, seed, first)
        if not isinstance(chunk, int | np.integer) or chunk < 0:
            raise InputError(
                f"chunk is {chunk!r}; expected how many pictures a part has, 1 or more, "
                "or 0 to choose"
            )
        for name, value in (("labels", labels), ("psi", psi)):
            if not is_one(value):
                raise InputError(
                    f"{name} of a stream are one for all its pictures; draw them with sample, "
                    "in parts of your own"
                )
        size = int(chunk) or max(self.manifest.buckets)
        ahead = self.submit(min(size, n), seed, labels, psi, first=first)

        def parts(ahead: "Future[Pictures]") -> Iterator[Pictures]:
            for start in range(size, n, size):
                count = min(size, n - start)
                following = self.submit(count, seed, labels, psi, first=first + start)
                yield ahead.result()
                ahead = following
            yield ahead.result()

        return parts(ahead)

    def refit(self, source: Path | str, digest: str | None = None) -> None:
        """Take the weights of another bundle, between two requests; its golden rows decide.

        Its pictures, latents, classes, precision and buckets must be alike. For an engine and for
        torch its graph must be alike too. ONNX Runtime takes any graph, because it loads it anew.

        Raises:
            InputError: a bundle of other pictures or inputs, or weights that do not fit the graph;
                int8, whose scales belong to its weights; golden rows that differ. The sampler then
                has its old weights again, as after any other error.
        """
        bundle = open_bundle(source, digest)
        refuse_other(self.bundle, bundle)
        with self._refitting, self._every_lane():
            try:
                self._backend.refit(bundle.model_bytes())
                check_golden(bundle, self._backend)
                self.bundle = bundle
            except BaseException:  # Ctrl-C too
                self._backend.refit(self.bundle.model_bytes())
                raise

    @property
    def stats(self) -> dict[str, Any]:
        """Requests, pictures, filling, seconds of requests, and why other back ends were refused.

        The percentiles are those of the last few thousand requests, the wait for a lane included.
        """
        with self._counting:
            seconds = list(self._seconds)
            counts = {
                "back_end": self.backend_name,
                "requests": self._requests,
                "pictures": self._pictures,
                "filling": self._drawn - self._pictures,
            }
        return counts | {
            "seconds": percentiles(seconds) if seconds else {},
            "refused": list(self.refused),
            "lanes": self._backend.lanes,
        }

    def close(self) -> None:
        """Finish the submitted requests and free all resources; more calls do nothing.

        Raises:
            RunError: called by a callback of one of its own futures, for which it would have to
                wait; it stays open.
        """
        if getattr(_thread, "works_for", None) is self._mark:
            raise RunError(
                "a sampler cannot be closed by a callback of its own future; "
                "close it on another thread"
            )
        if os.getpid() != self._process:
            return  # forked: everything belongs to the other process
        self._closing = True
        self._workers.shutdown(wait=True)  # without the lock: a callback may be refitting
        with self._refitting:
            if self._closed:
                return
            with self._every_lane():
                self._closed = True
            self._backend.close()

    def __enter__(self) -> "Sampler":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take(self) -> Lane:
        self._refuse_forked()
        lane = self._lanes.get()
        if lane is None:
            self._lanes.put(None)  # the next thread that waits has to wake up too
            raise self._is_closed()
        return lane

    def _is_closed(self) -> RunError:
        return RunError(f"the sampler of {self.bundle.folder} is closed; load it again")

    def _refuse_forked(self) -> None:
        if os.getpid() != self._process:
            raise RunError(
                f"the sampler of {self.bundle.folder} was loaded before this process was forked "
                "from another, where its threads stayed; load it here"
            )

    @contextmanager
    def _every_lane(self) -> Iterator[None]:
        """Inside, nothing is being drawn."""
        held: list[Lane] = []
        try:
            while len(held) < self._backend.lanes:
                held.append(self._take())
            yield
        finally:
            for _ in held:
                self._lanes.put(None if self._closed else self._backend.lane())

    def _on_lane(
        self,
        draw: Callable[[Lane, Rows, Pictures | None], Any],
        rows: Rows,
        out: Pictures | None,
        began: float,
    ) -> Any:
        """The result of ``draw`` on a lane that nobody else uses meanwhile; counted in `stats`."""
        lane = self._take()
        try:
            pictures = draw(lane, rows, out)
        except BaseException as error:
            # The old lane goes, and with it any batch that was launched and not collected.
            lane = self._backend.lane()
            if isinstance(error, Exception) and not isinstance(error, InputError | RunError):
                raise RunError(
                    f"{self.backend_name} failed to draw: {' '.join(str(error).split())}"
                ) from error
            raise
        finally:
            self._lanes.put(lane)
        with self._counting:
            self._requests += 1
            self._pictures += len(rows)
            self._drawn += len(rows) if self._backend.exact else sum(self._plan(len(rows)))
            self._seconds.append(time.perf_counter() - began)
        return pictures

    def _left_there(self, lane: Lane, rows: Rows, _: Pictures | None) -> Any:
        return lane.on_device(rows, self._plan(len(rows)))

    def _draw(self, lane: Lane, rows: Rows, out: Pictures | None) -> Pictures:
        parts = self._plan(len(rows))
        if len(parts) == 1:
            lane.launch(rows, parts[0])
            return lane.collect(out)
        if out is None:
            out = np.empty((len(rows), *self.manifest.shape), np.uint8)
        waiting: deque[tuple[int, int]] = deque()
        start = 0
        for bucket in parts:
            if len(waiting) == lane.depth:
                lane.collect(out[slice(*waiting.popleft())])
            stop = min(start + bucket, len(rows))
            lane.launch(rows.part(start, stop), bucket)
            waiting.append((start, stop))
            start = stop
        for place in waiting:
            lane.collect(out[slice(*place)])
        return out

    def _plan(self, count: int) -> list[int]:
        parts = self._plans.get(count)
        if parts is None:
            parts = plan(count, self._cost, self._backend.exact)
            if count <= 4 * max(self._cost):
                self._plans[count] = parts
        return parts
