"""What `ganfast lint` says of TensorRT-RTX, and its builder, on a small graph each; no GPU."""

import ast

import numpy as np
import pytest

from ganfast.errors import InputError, RunError

# ruff: noqa: E402  what follows needs onnx
onnx = pytest.importorskip("onnx")
pytest.importorskip("tensorrt_rtx")

from ganfast.export.engines.vendor import Build, build_plan, load_flavour
from ganfast.export.graph.lint import RULES, lint

T = onnx.TensorProto


def nodes(text):
    """Nodes as "Op input ... -> output attribute=value ..."; "." is no input."""
    for line in text.split("; "):
        (op, *inputs), (output, *attributes) = map(str.split, line.split(" -> "))
        inputs = [name.strip(".") for name in inputs]
        attributes = dict(attribute.split("=") for attribute in attributes)
        attributes = {name: ast.literal_eval(value) for name, value in attributes.items()}
        yield onnx.helper.make_node(op, inputs, [output], **attributes)


def weight(name, *values_or_shape, dtype=np.float32):
    """Random numbers of a shape; an array as it is."""
    (first, *_), random = values_or_shape, np.random.default_rng(0)
    values = first if isinstance(first, np.ndarray) else random.normal(0, 3, values_or_shape)
    if dtype == "bfloat16":
        return onnx.helper.make_tensor(name, T.BFLOAT16, values.shape, values.ravel())
    return onnx.numpy_helper.from_array(values.astype(dtype), name)


def graph(text, *weights, opset=20, batch="N", out=T.FLOAT, given=T.FLOAT):
    """x (N, 2, 4, 4), float32 unless given, -> y."""
    value = onnx.helper.make_tensor_value_info
    inputs = [value("x", given, [batch, 2, 4, 4])]
    outputs = [value("y", out, [batch, None, None, None])]
    made = onnx.helper.make_graph(list(nodes(text)), "g", inputs, outputs, list(weights))
    opsets = [onnx.helper.make_opsetid("", opset), onnx.helper.make_opsetid("own", 1)]
    return onnx.helper.make_model(made, opset_imports=opsets, ir_version=10)


def in_half(kind, op, *shape):
    """A convolution in a half type."""
    name = "bfloat16" if kind == T.BFLOAT16 else np.float16
    text = f"Cast x -> h to={kind}; {op}; Cast c -> y to={T.FLOAT}"
    return graph(text, weight("w", *shape, dtype=name), opset=22)


def quantised(bias):
    """A convolution between Q/DQ pairs; ``bias``: dequantised from int32, or float32."""
    zero, scale = np.array(0, np.int8), np.array(0.1)
    weights = [
        weight("w", 3, 2, 3, 3, dtype=np.int8),
        weight("z", zero, dtype=np.int8),
        weight("s", scale),
        weight("b", 3, dtype=np.int32 if bias == T.INT32 else np.float32),
    ]
    text = "QuantizeLinear x s z -> q; DequantizeLinear q s z -> d; DequantizeLinear w s z -> wd"
    ending = "DequantizeLinear b s -> bd; Conv d wd bd -> y"
    return graph(f"{text}; {ending if bias == T.INT32 else 'Conv d wd b -> y'}", *weights)


def modulated(a_kernel_each):
    """Kernels scaled by the mean of a picture (one convolution of N groups), or of all pictures."""
    if not a_kernel_each:
        text = "ReduceMean x -> m axes=[0,1,2,3]; Mul w m -> k; Conv x k -> y"
        return graph(text, weight("w", 3, 2, 3, 3), opset=17)
    sizes = {"one": [1, -1, 4, 4], "axis": [1], "kernels": [-1, 2, 3, 3], "back": [-1, 3, 2, 2]}
    shapes = [weight(name, np.array(v), dtype=np.int64) for name, v in sizes.items()]
    text = (
        "Reshape x one -> wide; ReduceMean x -> m axes=[1,2,3]; Unsqueeze m axis -> mm; "
        "Mul w mm -> k5; Reshape k5 kernels -> k; Conv wide k -> c group=2; Reshape c back -> y"
    )
    return graph(text, weight("w", 1, 3, 2, 3, 3), *shapes, opset=17)


def resized(antialias):
    halves = weight("s", np.array([1, 1, 0.5, 0.5]))
    return graph(f"Resize x . s -> y mode='linear' antialias={antialias}", halves)


def external():
    model = graph("Conv x w -> y", weight("w", 3, 2, 3, 3))
    (tensor,) = model.graph.initializer
    tensor.ClearField("raw_data")
    tensor.data_location = T.EXTERNAL
    place = tensor.external_data.add()
    place.key, place.value = "location", "weights.bin"
    return model


UP = "ConvTranspose h w -> c strides=[2,2]"
# By rule, what the builder refuses.
REFUSED = {
    "antialiased-resize": lambda: resized(1),
    "bf16-transposed-convolution": lambda: in_half(T.BFLOAT16, UP, 2, 3, 4, 4),
    "uint8-inside": lambda: graph(
        f"Cast x -> u to={T.UINT8}; Transpose u -> y perm=[0,2,3,1]", out=T.UINT8
    ),
    "uint8-input-not-cast": lambda: graph(
        "DequantizeLinear x s z -> y",
        weight("s", np.array(0.1)),
        weight("z", np.array(0), dtype=np.uint8),
        given=T.UINT8,
    ),
    "modulated-convolution": lambda: modulated(True),
    "int8-bias": lambda: quantised(T.INT32),
    "custom-op": lambda: graph("Warp x -> y domain='own'"),
    "fixed-batch": lambda: graph("Relu x -> y", batch=1),
    "external-data": external,
}
# The builder takes these, lint warns: other numbers at each run, float32 for float64, a new opset.
TAKEN_BUT_WRONG = {
    "random-op": lambda: graph("RandomNormalLike x -> r; Add x r -> y"),
    "float64": lambda: graph(f"Cast x -> d to={T.DOUBLE}; Relu d -> e; Cast e -> y to={T.FLOAT}"),
    "opset": lambda: graph("Relu x -> y", opset=13),
}
# What lies right beside: neither has anything to say.
TAKEN = {
    "a plain graph": lambda: graph("Relu x -> y"),
    "a resize without antialiasing": lambda: resized(0),
    "a convolution in bf16": lambda: in_half(T.BFLOAT16, "Conv h w -> c", 3, 2, 3, 3),
    "a transposed convolution in fp16": lambda: in_half(T.FLOAT16, UP, 2, 3, 4, 4),
    "uint8 at the end": lambda: graph(
        f"Transpose x -> t perm=[0,2,3,1]; Cast t -> y to={T.UINT8}", out=T.UINT8
    ),
    "a uint8 input that is cast": lambda: graph(f"Cast x -> y to={T.FLOAT}", given=T.UINT8),
    "one kernel for all pictures": lambda: modulated(False),
    "a quantised convolution with a float32 bias": lambda: quantised(T.FLOAT),
}


def built(model):
    return build_plan(load_flavour("rtx"), model.SerializeToString(), Build((1, 4)), ["8.6"])[0]


def complaints(model):
    return {finding.rule.id for finding in lint(model, "rtx")}


def test_every_rule_about_rtx_is_tried():
    assert {*REFUSED, *TAKEN_BUT_WRONG} == {rule.id for rule in RULES if "rtx" in rule.targets}


@pytest.mark.parametrize("rule", REFUSED)
def test_the_builder_refuses_what_the_rule_names(rule):
    model = REFUSED[rule]()
    assert complaints(model) == {rule}
    with pytest.raises(
        (InputError, RunError), match="rtx .* (cannot take the graph|built no engine)"
    ):
        built(model)


@pytest.mark.parametrize("rule", TAKEN_BUT_WRONG)
def test_lint_warns_of_what_the_builder_takes_but_gets_wrong(rule):
    model = TAKEN_BUT_WRONG[rule]()
    assert complaints(model) == {rule}
    assert built(model)


@pytest.mark.parametrize("name", TAKEN)
def test_what_lies_beside_a_rule_is_built(name):
    model = TAKEN[name]()
    assert not complaints(model)
    assert built(model)
