"""The float32 graph in another number format: TensorRT 11 has no flags for precision.

Inputs and the tail stay float32 in every precision, and so does a condition up to the first layer;
weights keep their names in fp16 and bf16. The operations that lose most stay float32 too:
statistics of norms, and in bf16 the last tanh. In bf16 transposed convolutions also stay float32,
because no target has a kernel for them.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ganfast.errors import InputError
from ganfast.export.graph.packages import need, quiet
from ganfast.export.graph.to_onnx import checked, to_bytes

if TYPE_CHECKING:
    import onnx

_NORMS = {"InstanceNormalization", "LayerNormalization", "GroupNormalization"}
_FLOAT32_OPS = {*_NORMS, "ReduceMean", "Resize"}
_INT8_OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
BF16_OPSET = 22  # the first whose convolutions take bfloat16


def to_precision(
    model: "onnx.ModelProto", precision: str, calibration: Mapping[str, np.ndarray]
) -> "onnx.ModelProto":
    """The graph in a precision of `ganfast.export.bundle.manifest.PRECISIONS`.

    Args:
        model: float32, as `ganfast.export.graph.to_onnx.to_onnx` makes it; left as it is.
        calibration: inputs that int8 takes its ranges from.
    """
    if precision in ("fp32", "tf32"):
        return model
    if precision == "int8":
        return _int8(model, calibration)
    onnx = need("onnx")[0]
    new = onnx.ModelProto()
    new.CopyFrom(model)
    if precision == "bf16":
        new = onnx.version_converter.convert_version(new, BF16_OPSET)
    half = onnx.TensorProto.FLOAT16 if precision == "fp16" else onnx.TensorProto.BFLOAT16
    keep = _FLOAT32_OPS | ({"Tanh", "ConvTranspose"} if precision == "bf16" else set())
    return checked(_cast(new, half, keep))


def _cast(model: "onnx.ModelProto", half: int, keep: set[str]) -> "onnx.ModelProto":
    """All between the scaled latent and the tail in a half type; a Cast where a value crosses."""
    onnx = need("onnx")[0]
    graph, single = model.graph, onnx.TensorProto.FLOAT
    weights = {t.name: t for t in graph.initializer if t.data_type == single}
    values = (*graph.input, *graph.value_info)
    floats = {v.name for v in values if v.type.tensor_type.elem_type == single} | set(weights)
    wide = _outside(graph) | {node.output[0] for node in graph.node if node.op_type in keep}
    type_of = {v.name: single for v in graph.input if v.name in floats}
    uses: dict[str, set[int]] = {}
    nodes: list[Any] = []
    casts: dict[tuple[str, int], str] = {}
    for node in graph.node:
        dtype = single if node.output[0] in wide else half
        for place, name in enumerate(node.input):
            if name in weights:
                uses.setdefault(name, set()).add(dtype)
            elif name in floats and type_of[name] != dtype:
                if (name, dtype) not in casts:
                    cast = casts[name, dtype] = f"{name}_{'single' if dtype == single else 'half'}"
                    nodes.append(onnx.helper.make_node("Cast", [name], [cast], cast, to=dtype))
                node.input[place] = casts[name, dtype]
        nodes.append(node)
        type_of |= {name: dtype for name in node.output if name in floats}
    for name, types in uses.items():
        if types == {half}:
            array = onnx.numpy_helper.to_array(weights[name])
            array = array.astype(onnx.helper.tensor_dtype_to_np_dtype(half))
            weights[name].CopyFrom(onnx.numpy_helper.from_array(array, name))
        elif half in types:
            cast = f"{name}_half"
            nodes.insert(0, onnx.helper.make_node("Cast", [name], [cast], cast, to=half))
            for node in nodes[1:]:
                if node.output[0] not in wide and node.op_type != "Cast":
                    node.input[:] = [cast if source == name else source for source in node.input]
    del graph.node[:]
    graph.node.extend(nodes)
    return model


def _outside(graph: "onnx.GraphProto") -> set[str]:
    """Values of the tail, the latent times psi, and conditions: float32 in every precision."""
    made = {name: node for node in graph.node for name in node.output}
    outside, pending = set(), [output.name for output in graph.output]
    while pending:  # back from the pictures to the channels-last transpose
        node = made.get(pending.pop())
        if node is not None:
            outside.update(node.output)
            pending += [] if node.op_type == "Transpose" else node.input
    given = {"condition"}  # made of the condition alone, before any layer: known pixels stay exact
    for node in graph.node:
        rows = {name for name in node.input if name in made or name == "condition"}
        if rows and rows <= given and node.op_type not in _INT8_OPS:
            given.update(node.output)
    outside |= given
    reached = {"z", "psi"}
    for node in graph.node:
        if node.op_type in ("Unsqueeze", "Mul") and set(node.input) & reached and "psi" in reached:
            if node.op_type == "Mul" and not ({"z"} & set(node.input)):
                continue
            outside.update(node.output)
            reached.update(node.output if node.op_type == "Unsqueeze" else ())
    return outside


def _int8(model: "onnx.ModelProto", calibration: Mapping[str, np.ndarray]) -> "onnx.ModelProto":
    """Convolutions between Q/DQ pairs: symmetric, with one scale for each channel of the weights.

    Biases stay float32, because TensorRT refuses int32 biases. So do the first projection and the
    last convolution, whose error nothing hides.
    """
    quantization = need("onnxruntime.quantization", "onnxruntime")[0]
    onnx = need("onnx")[0]
    layers = [node for node in model.graph.node if node.op_type in _INT8_OPS]
    if len(layers) < 3:
        raise InputError(
            "int8 needs a generator with layers between its first and its last; "
            f"this one has {len(layers)} in all"
        )
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
        source.write_bytes(to_bytes(model))
        with quiet():  # the quantiser's warning is about graphs without shapes
            quantization.quantize_static(
                source,
                target,
                _reader(quantization, calibration),
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=True,
                activation_type=quantization.QuantType.QInt8,
                weight_type=quantization.QuantType.QInt8,
                op_types_to_quantize=list(_INT8_OPS),
                nodes_to_exclude=[layers[0].name, layers[-1].name],
                extra_options={
                    "ActivationSymmetric": True,
                    "WeightSymmetric": True,
                    "QuantizeBias": False,
                },
            )
        new = onnx.load_model(str(target))
    new.producer_name, new.producer_version = model.producer_name, model.producer_version
    return checked(new)


def _reader(quantization: Any, rows: Mapping[str, np.ndarray], batch: int = 32) -> Any:
    """Calibration inputs in batches, as ONNX Runtime's quantiser reads them."""
    batches = (
        {name: array[start : start + batch] for name, array in rows.items()}
        for start in range(0, len(rows["z"]), batch)
    )

    class Reader(quantization.CalibrationDataReader):
        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(batches, None)

    return Reader()
