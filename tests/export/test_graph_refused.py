"""A bundle's graph has no weights in other files and no graph within it; junk is no ONNX."""

import onnx
import pytest
from onnx import TensorProto, helper

from ganfast.errors import InputError
from ganfast.export.bundle.graph import refuse_unbounded
from tests.small_bundle import small_model

FLOAT, BOOL = TensorProto.FLOAT, TensorProto.BOOL


def within(op):
    """A node of ``op`` whose bodies are graphs."""
    value = helper.make_tensor_value_info("y", FLOAT, [1])
    body = helper.make_graph([], "body", [], [value])
    names = ("then_branch", "else_branch") if op == "If" else ("body",)
    return helper.make_node(op, ["c"], ["y"], **dict.fromkeys(names, body))


def model_of(*nodes, weights=(), functions=()):
    graph = helper.make_graph(list(nodes), "g", [], [], list(weights))
    return helper.make_model(graph, functions=list(functions))


def outside(raw_data=None):
    tensor = TensorProto(name="w", data_type=FLOAT, dims=[1], raw_data=raw_data or b"")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="secret.bin")
    return tensor


def constant(tensor):
    return helper.make_node("Constant", [], ["w"], value=tensor)


IN_FUNCTION = helper.make_function("own", "f", [], ["y"], [within("Loop")], [])
REFUSED = {
    "loop": (model_of(within("Loop")), "a graph within its graph"),
    "scan": (model_of(within("Scan")), "a graph within its graph"),
    "if": (model_of(within("If")), "a graph within its graph"),
    "function": (model_of(functions=[IN_FUNCTION]), "a graph within its graph"),
    "weight": (model_of(weights=[outside()]), "another file"),
    "constant": (model_of(constant(outside())), "another file"),
    "late weight": (model_of(weights=[TensorProto(name="a"), outside(b"1234")]), "another file"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_leads_out_of_the_graph_is_refused(name):
    model, problem = REFUSED[name]
    with pytest.raises(InputError, match=f"{problem}.*do not use it"):
        refuse_unbounded(model.SerializeToString(), "model.onnx")


def varint(value):
    groups = [value >> shift & 127 for shift in range(0, max(1, value.bit_length()), 7)]
    return bytes([group | 128 for group in groups[:-1]] + groups[-1:])


def message(number, content, upper=0):
    """A field that holds a message; ``upper`` is added to the bits of its tag above the 32nd."""
    return varint(number << 3 | 2 | upper << 32) + varint(len(content)) + content


@pytest.mark.parametrize("upper", [0, 1])
def test_a_graph_within_cannot_hide_behind_the_upper_bits_of_its_tag(upper):
    """ONNX Runtime drops these bits, and would run the graph."""
    node = message(5, message(6, b"", upper))
    with pytest.raises(InputError, match="do not use it"):
        refuse_unbounded(message(7, message(1, node)), "model.onnx")


@pytest.mark.parametrize("upper", [0, 1])
def test_nor_can_a_place_outside_behind_the_upper_bits_of_its_value(upper):
    elsewhere = varint(14 << 3) + varint(1 | upper << 32)
    with pytest.raises(InputError, match="another file"):
        refuse_unbounded(message(7, message(5, elsewhere)), "model.onnx")


def test_what_a_generator_is_made_of_is_not():
    refuse_unbounded(small_model(), "model.onnx")
    refuse_unbounded(b"", "model.onnx")
    inside = TensorProto(name="w", data_type=FLOAT, dims=[1], raw_data=b"1234")
    inside.data_location = TensorProto.DEFAULT
    refuse_unbounded(model_of(constant(inside), weights=[inside]).SerializeToString(), "m")


def test_no_damage_hides_a_loop():
    """Where bytes are cut off or flipped, the reader refuses, or onnx too reads no loop there."""
    data = REFUSED["loop"][0].SerializeToString()
    for changed in (
        *(data[:end] for end in range(len(data))),
        *(
            data[:i] + bytes([data[i] ^ bit]) + data[i + 1 :]
            for i in range(len(data))
            for bit in (1, 8, 128)
        ),
    ):
        try:
            refuse_unbounded(changed, "model.onnx")
        except InputError:
            continue
        try:
            nodes = onnx.load_model_from_string(changed).graph.node
        except Exception:
            continue  # onnx itself reads nothing
        assert not any(a.HasField("g") or a.graphs for node in nodes for a in node.attribute)
