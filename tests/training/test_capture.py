"""What surrounds a CUDA graph where there is no GPU: collector, mode, streams, switches."""

import gc
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ganfast.bench import train as bench_train
from ganfast.bench.setting import Setting
from ganfast.device import capturing, set_libraries
from ganfast.export.drawing.rows import ask
from ganfast.export.drawing.run_torch import TorchBackend
from ganfast.runs import train as run_train
from ganfast.training.phases import Phase, exchanged, is_recording
from tests.small_runs import tiny

CUDA = torch.device("cuda")


@pytest.fixture
def captures(monkeypatch):
    """What `torch.cuda.graph` is given, and whether garbage may be collected inside."""
    made = []

    @contextmanager
    def graph(graph, pool=None, stream=None, **options):
        made.append({"pool": pool, "stream": stream, "collects": gc.isenabled()} | options)
        yield

    monkeypatch.setattr(torch.cuda, "graph", graph)
    return made


@pytest.mark.parametrize("before", [True, pytest.param(False, marks=pytest.mark.accept)])
@pytest.mark.parametrize("fails", [True, False])
def test_no_garbage_is_collected_in_a_capture_and_the_collector_is_left_as_it_was(
    captures, before, fails
):
    was = gc.isenabled()
    (gc.enable if before else gc.disable)()
    try:
        expected = pytest.raises(RuntimeError, match="illegal") if fails else nullcontext()
        with expected, capturing(None, "a pool", "a stream"):
            if fails:
                raise RuntimeError("an illegal call")
        assert gc.isenabled() == before
    finally:
        (gc.enable if was else gc.disable)()
    assert captures == [
        {
            "pool": "a pool",
            "stream": "a stream",
            "collects": False,
            "capture_error_mode": "thread_local",
        }
    ]


def test_what_is_garbage_before_a_capture_is_freed_before_it(captures, monkeypatch):
    freed = []

    class Old:
        def __del__(self):
            freed.append(len(captures))

    gc.collect()
    old = Old()
    old.itself = old  # as the phases of an older training are
    del old
    with capturing(None):
        pass
    assert freed == [0]


@pytest.fixture
def graphs(captures, monkeypatch):
    """What a phase asks of its `Graphs` and of torch, where there is no GPU."""
    generator = SimpleNamespace(graphsafe_set_state=lambda _: None, clone_state=lambda: None)
    stream = SimpleNamespace(device_index=0)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: None))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: None)
    monkeypatch.setattr(torch.cuda, "default_generators", [generator])
    reasons = []
    return SimpleNamespace(
        active=True,
        apart=False,
        device=CUDA,
        pool="the pool",
        side="the side stream",
        reasons=reasons,
        give_up=lambda name, error: reasons.append(f"{name}: {error}"),
    )


def test_a_phase_is_captured_so_and_a_broken_one_leaves_the_collector(captures, graphs):
    whole = Phase("critic", dict, graphs)
    whole._capture()
    assert len(whole._record) == 1
    broken = Phase("generator", lambda: 1 / 0, graphs)
    broken._capture()
    assert broken._record == []
    assert graphs.reasons == ["generator: division by zero"]
    assert gc.isenabled()
    for capture in captures:
        assert capture["capture_error_mode"] == "thread_local"
        assert (capture["pool"], capture["stream"]) == ("the pool", "the side stream")
        assert not capture["collects"]


@pytest.mark.parametrize("refused", [False, True])
def test_what_ranks_exchange_is_in_the_graph_or_between_two_where_a_capture_refuses_it(
    captures, graphs, refused
):
    order, inside = [], []

    def exchange():
        if refused and gc.isenabled() is False:  # inside a capture
            raise RuntimeError("NCCL operations are not captured here")
        order.append("exchange")

    def step():
        order.append("gradients")
        exchanged(exchange)
        inside.append(is_recording())
        order.append("move")
        return {}

    phase = Phase("critic", step, graphs)
    phase._capture()
    assert (graphs.reasons, graphs.apart) == ([], refused)
    assert inside[-1]
    assert not is_recording()
    before = len(order)
    phase()
    # Between two graphs a replay exchanges by itself; inside one it is the graph that does.
    assert order[before:] == ["exchange"] * refused
    assert [type(part).__name__ for part in phase._record] == (
        ["SimpleNamespace", "Exchange", "SimpleNamespace"] if refused else ["SimpleNamespace"]
    )
    assert len(captures) == (3 if refused else 1)


def test_pictures_left_on_the_device_wait_for_the_callers_stream(tmp_path, monkeypatch):
    """The caching allocator gives memory that kernels of the caller's stream still use."""
    pytest.importorskip("onnxruntime")
    from tests.small_bundle import small_bundle

    bundle = small_bundle(tmp_path / "bundle")
    backend = TorchBackend(bundle.model_bytes(), bundle.manifest, "cpu", 1, static=True)
    lane, order = backend.lane(), []
    lane._stream = SimpleNamespace(wait_stream=lambda stream: order.append(f"wait for {stream}"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "the caller's")
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    draw = lane._draw
    monkeypatch.setattr(lane, "_draw", lambda *args: order.append("draw") or draw(*args))
    rows = ask(bundle.manifest, 3, None, 7, 0, None, 1.0)
    pictures = lane.on_device(rows, [max(bundle.manifest.buckets)])
    assert order == ["wait for the caller's", "draw"]
    assert pictures.shape == (3, *bundle.manifest.shape)


# The switches of cuDNN and cuBLAS

SWITCHES = {
    torch.backends.cudnn: ("allow_tf32", "benchmark", "benchmark_limit", "deterministic"),
    torch.backends.cuda.matmul: (
        "allow_tf32",
        "allow_bf16_reduced_precision_reduction",
        "allow_fp16_reduced_precision_reduction",
    ),
}


def switches() -> dict[str, object]:
    fields = {f"{m}.{name}": getattr(m, name) for m, names in SWITCHES.items() for name in names}
    return fields | {"deterministic": torch.are_deterministic_algorithms_enabled()}


@pytest.fixture
def restored():
    """The switches are those of the process."""
    before = {(m, name): getattr(m, name) for m, names in SWITCHES.items() for name in names}
    deterministic = torch.are_deterministic_algorithms_enabled()
    yield
    torch.use_deterministic_algorithms(deterministic)
    for (module, name), value in before.items():
        setattr(module, name, value)


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.accept)])
def test_a_benchmark_measures_under_the_switches_that_a_training_has(
    precision, tmp_path, monkeypatch, restored
):
    """Of a GPU that is pretended: every field, as the phases of both find it when they run."""
    found = {"training": [], "benchmark": []}
    place = "training"
    call = Phase.__call__

    def looked(self):
        found[place].append(switches())
        return call(self)

    def pretended(device, precision):
        set_libraries(CUDA, precision)

    monkeypatch.setattr(Phase, "__call__", looked)
    for module in (run_train, bench_train):
        monkeypatch.setattr(module, "set_libraries", pretended)
    np.savez(
        tmp_path / "noise.npz", images=np.random.default_rng(0).integers(0, 256, (40, 16, 16), "u1")
    )
    torch.backends.cudnn.benchmark = False
    run_train.train(
        tiny("wgan-gp", str(tmp_path / "noise.npz"), tmp_path / "run", precision=precision),
        quiet=True,
    )
    place = "benchmark"
    torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = False, True
    monkeypatch.setattr(bench_train, "_flops", lambda *_: {})  # counts, and times nothing
    setting = Setting("wgan-gp", "digits", width=4, batch=4, precision=precision, device="cpu")
    bench_train.measure(setting, bench_train.Plan(("ganfast",), rounds=5))
    assert found["training"]
    assert found["benchmark"]
    (fields,) = {tuple(fields.items()) for side in found.values() for fields in side}
    assert dict(fields) == switches()
    tf32 = precision != "fp32"
    assert torch.backends.cudnn.benchmark
    assert torch.backends.cudnn.allow_tf32 == torch.backends.cuda.matmul.allow_tf32 == tf32


def test_deterministic_algorithms_keep_cudnn_from_timing_and_a_cpu_keeps_everything(restored):
    torch.backends.cudnn.benchmark = True
    torch.use_deterministic_algorithms(True)
    set_libraries(CUDA, "fp32")
    assert not torch.backends.cudnn.benchmark
    before = switches()
    torch.use_deterministic_algorithms(False)
    set_libraries(torch.device("cpu"), "bf16")
    assert switches() == before | {"deterministic": False}
