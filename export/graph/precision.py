"""The float32 graph in another number format. Precision lives in the graph: TensorRT 11 has no flags for it.

Inputs and the tail stay float32 in every precision; weights keep their names in fp16 and bf16. What loses most stays float32 too:
statistics of norms, and in bf16 the last tanh. bf16 leaves out transposed convolutions as well, for which no target has a kernel.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from ganfast.errors import InputError
from ganfast.export.graph.packages import need
from ganfast.export.graph.to_onnx import checked, to_bytes

if TYPE_CHECKING:
    import onnx

_FLOAT32_OPS = {
    "InstanceNormalization",
    "LayerNormalization",
    "GroupNormalization",
    "ReduceMean",
    "Resize",
}
BF16_OPSET = 22  # the first whose convolutions take bfloat16


def to_precision(
    model: "onnx.ModelProto", precision: str, calibration: Mapping[str, np.ndarray]
) -> "onnx.ModelProto":
    """The graph in a precision of `ganfast.export.bundle.manifest.PRECISIONS`.

    Args:
        model: float32, as `ganfast.export.graph.to_onnx.to_onnx` makes it; left as it is.
        calibration: inputs (z, labels, psi) that int8 takes its ranges from.
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
    """Everything between the scaled latent and the tail in a half type: a Cast wherever a value crosses over."""
    onnx = need("onnx")[0]
    graph, single = model.graph, onnx.TensorProto.FLOAT
    weights = {t.name: t for t in graph.initializer if t.data_type == single}
    floats = {
        v.name for v in (*graph.input, *graph.value_info) if v.type.tensor_type.elem_type == single
    } | set(weights)
    outside = _outside(graph)
    wide = {
        node.output[0] for node in graph.node if node.op_type in keep or node.output[0] in outside
    }
    type_of = {v.name: single for v in graph.input if v.name in floats}
    uses: dict[str, set[int]] = {}
    nodes: list[Any] = []
    casts: dict[tuple[str, int], str] = {}
    for node in graph.node:
        wanted = single if node.output[0] in wide else half
        for place, name in enumerate(node.input):
            if name in weights:
                uses.setdefault(name, set()).add(wanted)
            elif name in floats and type_of[name] != wanted:
                if (name, wanted) not in casts:
                    casts[name, wanted] = f"{name}_{'single' if wanted == single else 'half'}"
                    nodes.append(
                        onnx.helper.make_node(
                            "Cast", [name], [casts[name, wanted]], casts[name, wanted], to=wanted
                        )
                    )
                node.input[place] = casts[name, wanted]
        nodes.append(node)
        type_of |= {name: wanted for name in node.output if name in floats}
    for name, types in uses.items():
        if types == {half}:
            values = onnx.numpy_helper.to_array(weights[name])
            dtype = onnx.helper.tensor_dtype_to_np_dtype(half)
            weights[name].CopyFrom(onnx.numpy_helper.from_array(values.astype(dtype), name))
        elif half in types:
            cast = f"{name}_half"
            nodes.insert(0, onnx.helper.make_node("Cast", [name], [cast], cast, to=half))
            for node in nodes[1:]:
                if node.output[0] not in wide and node.op_type != "Cast":
                    node.input[:] = [cast if given == name else given for given in node.input]
    del graph.node[:]
    graph.node.extend(nodes)
    return model


def _outside(graph: "onnx.GraphProto") -> set[str]:
    """Values of the tail, and the latent times psi: float32 in every precision."""
    made = {name: node for node in graph.node for name in node.output}
    outside, pending = set(), [output.name for output in graph.output]
    while pending:  # back from the pictures to the channels-last transpose
        node = made.get(pending.pop())
        if node is not None:
            outside.update(node.output)
            pending += [] if node.op_type == "Transpose" else node.input
    reached = {"z", "psi"}
    for node in graph.node:
        if node.op_type in ("Unsqueeze", "Mul") and set(node.input) & reached and "psi" in reached:
            if node.op_type == "Mul" and not ({"z"} & set(node.input)):
                continue
            outside.update(node.output)
            reached.update(node.output if node.op_type == "Unsqueeze" else ())
    return outside


class _Rows:
    """Calibration inputs in batches, as ONNX Runtime's quantiser asks for them."""

    def __init__(self, rows: Mapping[str, np.ndarray], batch: int = 32) -> None:
        count = len(rows["z"])
        self._batches: Iterator[dict[str, np.ndarray]] = iter(
            [
                {name: array[start : start + batch] for name, array in rows.items()}
                for start in range(0, count, batch)
            ]
        )

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._batches, None)


def _int8(model: "onnx.ModelProto", calibration: Mapping[str, np.ndarray]) -> "onnx.ModelProto":
    """Convolutions between Q/DQ pairs: symmetric, weights a channel, biases in float32 (TensorRT refuses int32 ones).

    The first projection and the last convolution, whose error nothing hides, stay float32.
    """
    import tempfile
    from pathlib import Path

    quantization = need("onnxruntime.quantization", "onnxruntime")[0]
    onnx = need("onnx")[0]
    layers = [
        node
        for node in model.graph.node
        if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul")
    ]
    if len(layers) < 3:
        raise InputError(
            f"int8 needs a generator with layers between its first and its last; this one has {len(layers)} in all"
        )
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
        source.write_bytes(to_bytes(model))
        with _without_advice():
            quantization.quantize_static(
                source,
                target,
                _reader(quantization, calibration),
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=True,
                activation_type=quantization.QuantType.QInt8,
                weight_type=quantization.QuantType.QInt8,
                op_types_to_quantize=["Conv", "ConvTranspose", "Gemm", "MatMul"],
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


@contextmanager
def _without_advice() -> Iterator[None]:
    """The quantiser warns, through the root logger, of a step that is for graphs without shapes; these have them."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(before)


def _reader(quantization: Any, rows: Mapping[str, np.ndarray]) -> Any:
    return type("Reader", (_Rows, quantization.CalibrationDataReader), {})(rows)
