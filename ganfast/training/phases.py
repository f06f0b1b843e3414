"""Phases of a step as CUDA graphs: what a phase launches is recorded once and replayed whole.

A phase is a callable of no arguments over tensors that stay where they are. Its first calls are
real steps too, on a side stream, in which libraries choose their algorithms. The next call is
recorded, and later ones replay the record.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from ganfast.device import capturing
from ganfast.engine.walking.trace import CannotTrace, FrontEnd, Trace
from ganfast.errors import InputError
from ganfast.log import logger
from ganfast.models.members import is_known

Stats = dict[str, Tensor]
CudaGraphs = Literal["auto", "on", "off"]
_WARM_UP = 3  # calls; cuDNN and the caching allocator have settled after two
APART = "what ranks exchange stands between CUDA graphs"  # as the warning says it


class Exchange(NamedTuple):
    """What ranks exchange in a phase; `replay` is called as that of a graph is."""

    replay: Callable[[], object]


_cut: Callable[[Exchange], None] | None = None  # ends a graph and begins the next


def exchanged(exchange: Callable[[], object]) -> None:
    """Call ``exchange`` now. In the record of a phase it is a part of the graph, or stands between
    two graphs."""
    if _cut is None:
        exchange()
    else:
        _cut(Exchange(exchange))


def is_recording() -> bool:
    """Whether a phase is being recorded, where nothing is computed."""
    return _cut is not None


@contextmanager
def _cutting(cut: Callable[[Exchange], None] | None) -> Iterator[None]:
    global _cut
    before, _cut = _cut, cut
    try:
        yield
    finally:
        _cut = before


def refuse_graphs(mode: CudaGraphs, device: torch.device, refusal: str = "") -> str:
    """Why phases cannot be captured; "" = they can be tried. InputError where they must be."""
    if device.type != "cuda":
        refusal = f"the device is {device}"
    if mode == "on" and refusal:
        raise InputError(f"cuda_graphs is on, but {refusal}; use auto or off")
    return refusal


class Graphs:
    """What the phases of a training share: whether they are captured, and their graphs' memory.

    Args:
        mode: "on" refuses to train without graphs, "auto" goes on without and says why, "off"
            never captures.
        device: where the phases run.
        refusal: why they cannot be captured whatever they do; "" = they can be tried.

    Raises:
        InputError: "on" where there is a refusal.
    """

    def __init__(self, mode: CudaGraphs, device: torch.device, refusal: str = "") -> None:
        refusal = refuse_graphs(mode, device, refusal)
        self.mode, self.device = mode, device
        self.active = mode != "off" and not refusal
        self.apart = False  # whether what ranks exchange stands between graphs
        if mode == "auto" and refusal and device.type == "cuda":
            self._warn(refusal)
        self.pool = torch.cuda.graph_pool_handle() if self.active else None
        self.side = torch.cuda.Stream(device) if self.active else None

    def give_up(self, phase: str, error: BaseException) -> None:
        """No phase is captured or replayed after one that cannot be; InputError under "on"."""
        # Ending a broken capture raises an error of its own: the first one has the reason.
        while error.__context__ is not None:
            error = error.__context__
        message = " ".join(str(error).split())[:200]
        reason = f"the {phase} phase cannot be captured: {type(error).__name__}: {message}"
        if self.mode == "on":
            raise InputError(f"cuda_graphs is on, but {reason}; use auto or off") from error
        self.active = False
        self._warn(reason)

    def _warn(self, reason: str) -> None:
        logger.warning("training goes on without CUDA graphs: %s", reason)


class Watch:
    """What networks of classes that are neither torch's nor ours read when they are called.

    A replay runs no Python. So a phase is captured anew where what they read has changed, and not
    at all where one keeps state.

    Args:
        calls: networks, and what a phase calls them with, None left out: pictures or latents (N,
            ...), labels (N,), conditions.
        autocast: the type that they compute in; None = float32.
    """

    def __init__(
        self,
        calls: Sequence[tuple[nn.Module, Sequence[Tensor | None]]],
        autocast: torch.dtype | None = None,
    ) -> None:
        # Unlike the critic's step, a replay writes to tensors as often as the forward does.
        self._calls = [
            (FrontEnd(net, autocast, may_write=True), given, type(net).__name__)
            for net, arguments in calls
            if not is_known(net)
            for given in [tuple(x for x in arguments if x is not None)]
        ]

    def __call__(self) -> tuple[Trace, ...]:
        """Equal for as long as nothing changes. Raises CannotTrace."""
        return tuple([front_end(*given)[0] for front_end, given, _ in self._calls])

    def refusal(self) -> str:
        """Why no phase may be captured; "" = nothing speaks against it."""
        for front_end, given, name in self._calls:
            try:
                front_end(*given)
            except CannotTrace as error:
                return f"of {name}: {error}"
        return ""


class Phase:
    """``step`` as it is, or replayed.

    A replay returns tensors that only the next replay of this phase overwrites. Graphs that share a
    pool may use each other's memory, so statistics are copied out of it.
    """

    def __init__(
        self, name: str, step: Callable[[], Stats], graphs: Graphs, watch: Watch | None = None
    ) -> None:
        self.name, self._step, self._graphs, self._watch = name, step, graphs, watch
        self._watched: tuple[Trace, ...] = ()
        self._calls = 0
        self._record: list[torch.cuda.CUDAGraph | Exchange] = []  # what a replay goes through
        self._stats: Stats = {}

    def __call__(self) -> Stats:
        if self._graphs.active and self._watch is not None:
            self._look(self._watch)
        if not self._record and self._graphs.active:
            if self._calls < _WARM_UP:
                self._calls += 1
                return self._aside()
            self._capture()
        if not self._record or not self._graphs.active:
            return self._step()
        for part in self._record:
            part.replay()
        return self._stats

    def _look(self, watch: Watch) -> None:
        """Forget the record where what the networks read has changed."""
        try:
            watched = watch()
        except CannotTrace as error:
            self._graphs.give_up(self.name, error)
            return
        if watched != self._watched:
            self._record, self._calls, self._watched = [], 0, watched

    def _aside(self) -> Stats:
        side, main = self._graphs.side, torch.cuda.current_stream(self._graphs.device)
        assert side is not None
        side.wait_stream(main)
        with torch.cuda.stream(side):
            stats = self._step()
        main.wait_stream(side)
        for value in stats.values():
            value.record_stream(main)
        self._stats = {name: value.clone() for name, value in stats.items()}
        return stats

    def _capture(self) -> None:
        graphs, held = self._graphs, ExitStack()
        record: list[torch.cuda.CUDAGraph | Exchange] = []
        main, exchanges = torch.cuda.current_stream(graphs.device), 0

        def begin() -> None:
            graph = torch.cuda.CUDAGraph()
            held.enter_context(capturing(graph, graphs.pool, graphs.side))
            record.append(graph)

        def cut(exchange: Exchange) -> None:
            nonlocal exchanges
            exchanges += 1
            if not graphs.apart:
                exchange.replay()
                return
            held.close()
            record.append(exchange)
            begin()

        try:
            with held, _cutting(cut):
                begin()
                for name, value in self._step().items():
                    self._stats[name].copy_(value)
        except Exception as error:  # a library, or a user's network, may do what a capture forbids
            # A broken capture leaves its own stream current, and its mark on the generator.
            torch.cuda.set_stream(main)
            random = torch.cuda.default_generators[main.device_index]
            random.graphsafe_set_state(random.clone_state())
            if exchanges and not graphs.apart:
                graphs.apart = True
                detail = " ".join(str(error).split())[:200]
                logger.warning(
                    "%s, as the %s phase is not captured with it: %s", *(APART, self.name, detail)
                )
                self._capture()
                return
            graphs.give_up(self.name, error)
        else:
            self._record = record
