"""What no bundle may hold in its graph, found before a runtime or the package onnx reads it.

Weights in other files would be read from where the process runs, past all hashes. A graph within a
graph is what Loop, Scan and If are made of: a hash says who wrote a file, not that drawing ends.
"""

from collections.abc import Iterator

from ganfast.errors import InputError

# Fields of onnx.proto3 that hold messages, by the message that they are in: number -> message.
_WITHIN = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {
        5: "tensor",
        6: "subgraph",
        10: "tensor",
        11: "subgraph",
        22: "sparse",
        23: "sparse",
    },
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "external", 14: "location"},
}
_EXTERNAL = 1  # of TensorProto.data_location


def refuse_unbounded(model: bytes, where: str) -> None:
    """Raise InputError for an ONNX file with external data, a graph within its graph, or damage."""
    try:
        problem = _problem(memoryview(model), "model")
    except (IndexError, ValueError) as error:
        raise InputError(f"{where} is not ONNX: {error}; do not use it") from error
    if problem:
        raise InputError(f"{where} {problem}; do not use it")


def _problem(message: memoryview, kind: str) -> str:
    for number, value in _fields(message):
        inner = _WITHIN[kind].get(number, "")
        if inner == "external" or (inner == "location" and value == _EXTERNAL):
            return "keeps weights in another file, which no hash covers"
        if inner == "subgraph":
            return (
                "has a graph within its graph, as Loop, Scan and If do, which may run without end"
            )
        if inner in _WITHIN:
            if not isinstance(value, memoryview):
                raise ValueError(f"field {number} of a {kind} is no message")
            if problem := _problem(value, inner):
                return problem
    return ""


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """Field numbers and values, as protobuf lays them out (protobuf.dev, Encoding)."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        if key >> 32:  # runtimes drop the upper bits, and would read another field than this one
            raise ValueError(f"a field before byte {at} has a number that is too large")
        form = key & 7
        if form == 0:
            value, at = _varint(message, at)
            yield key >> 3, value & 0xFFFFFFFF  # as much of it as an enum keeps
            continue
        length = {1: 8, 5: 4}.get(form, -1)
        if form == 2:
            length, at = _varint(message, at)
        if length < 0 or at + length > len(message):
            raise ValueError(f"a field at byte {at} has no end")
        yield key >> 3, message[at : at + length]
        at += length


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, the lowest first, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        byte = message[at]
        value, at = value | (byte & 127) << shift, at + 1
        if byte < 128:
            return value, at
    raise ValueError(f"a number at byte {at} has no end")
