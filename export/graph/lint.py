"""What a target cannot take of an ONNX graph, without any GPU: rules with reason and remedy."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ganfast.export.graph.packages import need

if TYPE_CHECKING:
    import onnx

_ORT, _TRT = ("onnxruntime-cpu", "onnxruntime-cuda"), ("tensorrt-10", "tensorrt-11", "rtx")
TARGETS = (*_ORT, *_TRT)
_RANDOM = {"Bernoulli", "Multinomial", "RandomNormal", "RandomUniform"}
_RANDOM |= {"RandomNormalLike", "RandomUniformLike"}
_UINT8, _INT32, _DOUBLE, _BF16 = 2, 6, 11, 16  # onnx.TensorProto


@dataclass(frozen=True)
class Rule:
    """A pattern in a graph that some targets refuse, or compute wrongly."""

    id: str
    targets: tuple[str, ...]
    reason: str
    remedy: str
    find: Callable[["_Graph"], Iterator[str]]  # names of the nodes or values that break it


@dataclass(frozen=True)
class Finding:
    """One place that breaks a rule."""

    rule: Rule
    where: str

    def __str__(self) -> str:
        return f"{self.rule.id}: {self.where}: {self.rule.reason}; {self.rule.remedy}"


class _Graph:
    def __init__(self, model: "onnx.ModelProto") -> None:
        model = _inferred(model)
        self.model, self.nodes = model, list(model.graph.node)
        self.weights = {tensor.name: tensor for tensor in model.graph.initializer}
        values = (*model.graph.input, *model.graph.value_info, *model.graph.output)
        self.types = {v.name: v.type.tensor_type.elem_type for v in values}
        self.types |= {name: tensor.data_type for name, tensor in self.weights.items()}
        self.shapes = {v.name: v.type.tensor_type.shape.dim for v in values}
        self.made = {name: node for node in self.nodes for name in node.output}

    def attribute(self, node: "onnx.NodeProto", name: str) -> int:
        return next((int(a.i) for a in node.attribute if a.name == name), 0)

    def constant(self, name: str) -> bool:
        """A weight, or one behind casts and dequantisation."""
        node = self.made.get(name)
        return name in self.weights or (
            node is not None
            and node.op_type in ("Cast", "Identity", "DequantizeLinear", "Constant", "Transpose")
            and all(map(self.constant, node.input[:1]))
        )

    def types_of(self, node: "onnx.NodeProto") -> set[int]:
        return {self.types.get(name, 0) for name in (*node.input, *node.output)}


def _inferred(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """With the types and shapes of inner values, which files from elsewhere often lack."""
    onnx = need("onnx")[0]
    try:
        return onnx.shape_inference.infer_shapes(model)
    except onnx.shape_inference.InferenceError:
        return model


def _nodes(breaks: Callable[[_Graph, Any], bool]) -> Callable[[_Graph], Iterator[str]]:
    return lambda g: (node.name for node in g.nodes if breaks(g, node))


def _uint8(g: _Graph) -> Iterator[str]:
    ends = {value.name for value in g.model.graph.output}
    for node in g.nodes:
        inside = {name for name in node.output if g.types.get(name) == _UINT8}
        if inside and (node.op_type != "Cast" or not inside <= ends):
            yield node.name


def _uncast(g: _Graph) -> Iterator[str]:
    given = {value.name for value in g.model.graph.input if g.types[value.name] == _UINT8}
    return (n.name for n in g.nodes if n.op_type != "Cast" and given & set(n.input))


def _modulated(g: _Graph) -> Iterator[str]:
    for node in g.nodes:
        if node.op_type in ("Conv", "ConvTranspose") and not g.constant(node.input[1]):
            channels = next(iter(g.shapes.get(node.input[1], ())), None)
            if channels is None or not channels.dim_value:
                yield node.name


def _opset(g: _Graph) -> Iterator[str]:
    for opset in g.model.opset_import:
        if opset.domain in ("", "ai.onnx") and not 17 <= opset.version <= 22:
            yield f"opset {opset.version}"


def _domain(g: _Graph) -> Iterator[str]:
    for node in g.nodes:
        if node.domain not in ("", "ai.onnx"):
            yield f"{node.name} of {node.domain}"


def _fixed_batch(g: _Graph) -> Iterator[str]:
    for value in (*g.model.graph.input, *g.model.graph.output):
        dims = value.type.tensor_type.shape.dim
        if not dims or not dims[0].dim_param:
            yield value.name


def _external(g: _Graph) -> Iterator[str]:
    return (name for name, tensor in g.weights.items() if tensor.data_location == 1)


RULES = (
    Rule(
        "random-op",
        TARGETS,
        "draws other numbers at each run",
        "make the noise an input or a constant",
        _nodes(lambda g, node: node.op_type in _RANDOM),
    ),
    Rule(
        "antialiased-resize",
        _TRT,
        "is not supported",
        "write it as a convolution with a fixed kernel",
        _nodes(lambda g, node: node.op_type == "Resize" and bool(g.attribute(node, "antialias"))),
    ),
    Rule(
        "bf16-transposed-convolution",
        TARGETS,
        "has no bfloat16 form",
        "export fp16, or resize and convolve",
        _nodes(lambda g, node: node.op_type == "ConvTranspose" and _BF16 in g.types_of(node)),
    ),
    Rule(
        "bf16-on-cpu",
        ("onnxruntime-cpu",),
        "has no bfloat16 implementation",
        "export fp32 for a CPU",
        _nodes(lambda g, node: node.op_type != "Cast" and _BF16 in g.types_of(node)),
    ),
    Rule(
        "uint8-inside",
        _TRT,
        "uint8 is taken at the end of a graph only",
        "cast to uint8 as the very last step",
        _uint8,
    ),
    Rule(
        "uint8-input-not-cast",
        _TRT,
        "takes a uint8 input, which only a cast may do",
        "cast the input to float32 first of all",
        _uncast,
    ),
    Rule(
        "modulated-convolution",
        _TRT,
        "has as many kernels as there are pictures",
        "scale the channels of the input, convolve, scale those of the output",
        _modulated,
    ),
    Rule(
        "int8-bias",
        _TRT,
        "dequantises an int32 bias",
        "keep biases float32 when quantising",
        _nodes(
            lambda g, node: (
                node.op_type == "DequantizeLinear" and g.types.get(node.input[0]) == _INT32
            )
        ),
    ),
    Rule(
        "opset", TARGETS, "is outside of what was tried, 17 to 22", "export with opset 20", _opset
    ),
    Rule("custom-op", TARGETS, "is no operation of ONNX", "export plain operations", _domain),
    Rule(
        "fixed-batch",
        TARGETS,
        "has a fixed number of rows",
        "export with a symbolic first dimension",
        _fixed_batch,
    ),
    Rule(
        "float64",
        _TRT,
        "asks for float64, but is computed in float32",
        "cast to float32",
        _nodes(lambda g, node: _DOUBLE in g.types_of(node)),
    ),
    Rule("external-data", TARGETS, "lies in another file", "store the weights inside", _external),
)


def lint(model: "onnx.ModelProto", target: str) -> list[Finding]:
    """What a target of `TARGETS` cannot take of a model; [] where it can take it."""
    graph = _Graph(model)
    return [
        Finding(rule, where)
        for rule in RULES
        if target in rule.targets
        for where in rule.find(graph)
    ]
