"""int8 products are exact integers on every processor, whatever kernels ONNX Runtime has for it."""

import numpy as np
import pytest

# ruff: noqa: E402  what follows needs onnx
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper

from ganfast.errors import InputError
from ganfast.export import session
from ganfast.export.drawing.run_onnxruntime import OnnxRuntimeCpu

KINDS = ("MatMul", "Gemm", "Conv")


def product(kind: str, terms: int = 64) -> bytes:
    """A graph that outputs the product of ``terms`` values and weights, between Q/DQ pairs.

    Weights are 127 steps of 1/127; the output's step is terms / 127, so 127 steps are the largest.
    """
    tensor = numpy_helper.from_array
    weight = np.full((1, terms, 1, 1) if kind == "Conv" else (terms, 1), 127, np.int8)
    numbers = [
        tensor(np.float32(1 / 127), "step"),
        tensor(np.int8(0), "zero"),
        tensor(np.float32(terms / 127), "wide"),
        tensor(weight, "w"),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "step", "zero"], ["x8"]),
        helper.make_node("DequantizeLinear", ["x8", "step", "zero"], ["x32"]),
        helper.make_node("DequantizeLinear", ["w", "step", "zero"], ["w32"]),
        helper.make_node(kind, ["x32", "w32"], ["y32"]),
        helper.make_node("QuantizeLinear", ["y32", "wide", "zero"], ["y8"]),
        helper.make_node("DequantizeLinear", ["y8", "wide", "zero"], ["y"]),
    ]
    sides = [1, 1] if kind == "Conv" else []
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", channels, *sides])
        for name, channels in (("x", terms), ("y", 1))
    ]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], numbers)
    opset = [helper.make_opsetid("", 18)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)


def exact(steps: np.ndarray) -> int:
    """The product in steps of the output, from integers: the weights are 127, the scales cancel."""
    total = int(np.sum(steps.astype(np.int64) * 127))
    return round(total / 127 / len(steps))


def in_16_bits(steps: np.ndarray) -> int:
    """As x86 without VNNI computes it: unsigned bytes, pairs of products cut off at 32767."""
    shifted = steps.astype(np.int64) + 128  # what makes int8 a byte without sign
    pairs = np.minimum(shifted.reshape(-1, 2).sum(1) * 127, 32767)
    total = int(pairs.sum()) - 128 * 127 * len(steps)
    return round(total / 127 / len(steps))


def values(steps: np.ndarray, kind: str) -> np.ndarray:
    x = (steps / 127).astype(np.float32)[None]
    return x[..., None, None] if kind == "Conv" else x


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_products_of_the_samplers_sessions_equal_integer_arithmetic(kind, threads):
    backend = OnnxRuntimeCpu(product(kind), threads)
    random = np.random.default_rng(0)
    rows = [np.full(64, 127), np.full(64, -127), random.integers(-127, 128, 64)]
    for steps in rows:
        for each in {backend._together, backend._alone}:
            (y,) = each.run(None, {"x": values(steps, kind)})
            assert round(y.item() * 127 / 64) == exact(steps)
    backend.close()


def test_16_bits_would_cut_the_products_off():
    """So the test above fails where the session computes in 16 bits: the probe's 64 becomes 0.5."""
    largest = np.full(64, 127)
    assert exact(largest) == 127
    assert in_16_bits(largest) == 1
    assert in_16_bits(largest) * 64 / 127 == pytest.approx(0.504, abs=1e-3)
    # Small bytes do not overflow: the model is right where nothing is cut off.
    small = np.full(64, -100)
    assert in_16_bits(small) == exact(small) == -100


def test_the_probe_is_the_graph_that_it_says_it_is():
    assert product("MatMul") == session._PROBE
    assert len(session._PROBE) < 500
    assert session._PROBE_ANSWER == 64.0


# What the probe answers by default, in the exact kernels, in float32 -> what is taken, and said.
ANSWERS = {
    "exact": ([64.0], {}, ""),
    "overflows": ([0.5, 64.0], {"session.x64quantprecision": "1"}, "exact kernels"),
    "overflows there too": ([0.5, 0.5, 64.0], session.AS_FLOAT, "float32 products"),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_a_processor_whose_products_overflow_takes_the_next_way_and_says_so_once(
    case, monkeypatch, caplog
):
    answers, entries, sentence = list(ANSWERS[case][0]), *ANSWERS[case][1:]
    monkeypatch.setattr(session, "_probe", lambda entries: answers.pop(0))
    opened = []
    monkeypatch.setattr(session, "make_session", lambda *args: opened.append(args[3]))
    session._exact_int8.cache_clear()
    try:
        for _ in range(2):
            session.cpu_session(product("Conv"), 1)
        session.cpu_session(b"a graph of float32", 1)
        session.cpu_session(product("Conv"), 1, as_float=True)
    finally:
        session._exact_int8.cache_clear()
    assert opened == [entries, entries, {}, session.AS_FLOAT]
    assert len(caplog.records) == bool(sentence)
    assert sentence in caplog.text


def test_a_processor_without_any_exact_way_is_refused(monkeypatch):
    monkeypatch.setattr(session, "_probe", lambda entries: 0.5)
    session._exact_int8.cache_clear()
    with pytest.raises(InputError, match=r"a product of 64 is 0\.5; use fp32"):
        session.cpu_session(product("Gemm"), 1)
    session._exact_int8.cache_clear()


def test_float32_products_are_those_of_the_quantised_values():
    """The second row of parity: 0.3 and half a step more are one int8 value: equal products."""
    graph = session.cpu_session(product("MatMul"), 1, as_float=True)
    step = 38 / 127
    near, same = (np.full((1, 64), step + part / 127, np.float32) for part in (0.0, 0.4))
    assert graph.run(None, {"x": near})[0] == graph.run(None, {"x": same})[0]
    assert graph.run(None, {"x": near})[0].item() == pytest.approx(64 * step, rel=1e-6)
