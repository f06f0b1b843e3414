"""From a deployable module to one ONNX file.

The batch has any size, weights have the names of the state dict, equal weights give equal bytes.
"""

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

import ganfast
from ganfast.errors import InputError
from ganfast.export.bundle.manifest import MAX_BUCKET
from ganfast.export.graph.deploy import Deployable
from ganfast.export.graph.packages import need, quiet

if TYPE_CHECKING:
    import onnx

OPSET = 20
_PREFIX = "generator."  # of a weight's name in Deployable


def to_onnx(module: Deployable, facts: Mapping[str, Any]) -> "onnx.ModelProto":
    """Export.

    Args:
        module: as `ganfast.export.graph.deploy.deployable` makes it.
        facts: JSON values for the file's own metadata.

    Raises:
        InputError: the module does something that a graph with a batch of any size cannot.
    """
    onnx = need("onnx", "onnxscript")[0]
    with _distinct_weights(module) as real:
        model = _exported(module)
        kept = {tensor.name for tensor in model.graph.initializer}
        if not {_plain_name(name) for name in real} <= kept:
            real.clear()  # the exporter computed weights from others: it needs the real ones
    if not real:
        model = _exported(module)
    _fill(model, {_plain_name(name): value for name, value in real.items()})
    model.producer_name, model.producer_version = "ganfast", ganfast.__version__
    onnx.helper.set_model_props(
        model, {f"ganfast.{key}": json.dumps(value) for key, value in facts.items()}
    )
    return checked(model)


def checked(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """The model with the types and shapes of all its values, as ONNX's checker accepts it.

    Raises:
        InputError: it is not valid.
    """
    onnx = need("onnx")[0]
    try:
        del model.graph.value_info[:]
        inferred = onnx.shape_inference.infer_shapes(
            model, check_type=True, strict_mode=True, data_prop=True
        )
        onnx.checker.check_model(inferred, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"the exported graph is not valid ONNX: {reason}") from error
    return inferred


def to_bytes(model: "onnx.ModelProto") -> bytes:
    """The file; equal bytes for equal models."""
    return bytes(model.SerializeToString(deterministic=True))


def _exported(module: Deployable) -> "onnx.ModelProto":
    inputs = tuple(torch.from_numpy(each.zeros(2)) for each in module.inputs)
    batch = torch.export.Dim("N", min=1, max=MAX_BUCKET)
    shapes = (tuple({0: batch} for _ in inputs),)
    try:
        # The exporter recommends packages that nobody needs here.
        with quiet("torch.onnx"), warnings.catch_warnings(action="ignore"):
            program = torch.onnx.export(
                module,
                inputs,
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=shapes,
                external_data=False,
                optimize=True,
                input_names=[each.name for each in module.inputs],
                output_names=["images"],
                verbose=False,
            )
    except Exception as error:  # tracing runs a user's code, which may raise anything
        raise InputError(f"the generator cannot be exported: {_reason(error)}") from error
    assert program is not None
    return _tidy(program.model_proto)


def _reason(error: BaseException) -> str:
    """The innermost cause in one line, without the exporter's advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error)
    kind = type(error).__name__
    in_words = "Constraints violated" in text or "Not all values of" in text
    if in_words or "ConstraintViolation" in kind:
        return (
            "it does not take a batch of any size (a convolution with groups = batch, or a reshape "
            "to a fixed number of rows); a modulated convolution is exported as: "
            "scale the channels of its input, convolve, scale those of its output"
        )
    first = next((line.strip() for line in text.splitlines() if line.strip()), kind)
    return f"{kind}: {first}"


def _tidy(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """Names of weights as in the state dict, and no paths or stack traces of this machine."""
    graph = model.graph
    taken = {value.name for value in (*graph.input, *graph.output)}
    taken |= {name for node in graph.node for name in node.output}
    new = {t.name: _plain_name(t.name) for t in graph.initializer}
    clash = sorted(name for old, name in new.items() if old != name and name in taken)
    if clash:
        raise InputError(
            f"the generator calls a weight {clash[0]!r}, a name of the exported graph; "
            "give it another name"
        )
    for node in graph.node:
        node.input[:] = [new.get(name, name) for name in node.input]
        node.ClearField("doc_string")
        del node.metadata_props[:]
        node.name = f"{node.op_type}_{node.output[0]}"
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.name = new.get(value.name, value.name)
        value.ClearField("doc_string")
        del value.metadata_props[:]
    for part in (model, graph):
        part.ClearField("doc_string")
        del part.metadata_props[:]
    graph.name = "generator"
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "N"
    return model


def _plain_name(name: str) -> str:
    return name.removeprefix(_PREFIX)


@contextmanager
def _distinct_weights(module: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Inside, weights that are constant, or equal to others, hold other numbers.

    Yields the real values of those weights by name. The exporter drops zeros and merges equals:
    without this, the graph of one checkpoint would not be that of the next.
    """
    real: dict[str, Tensor] = {}
    seen: set[tuple[Any, ...]] = set()
    random = torch.Generator().manual_seed(0)
    state = {k: value for k, value in module.state_dict().items() if value.is_floating_point()}
    for name, value in state.items():
        content = (tuple(value.shape), value.numpy().tobytes())
        if content in seen or (value == value.flatten()[0]).all():
            real[name] = value.clone()
            value.copy_(torch.randn(value.shape, generator=random))
        seen.add(content)
    originals = dict(real)
    try:
        yield real
    finally:
        for name, value in originals.items():
            state[name].copy_(value)


def _fill(model: "onnx.ModelProto", values: Mapping[str, Tensor]) -> None:
    from onnx import numpy_helper

    for tensor in model.graph.initializer:
        if tensor.name in values:
            array = np.ascontiguousarray(values[tensor.name].numpy())
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
