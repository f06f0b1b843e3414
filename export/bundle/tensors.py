"""Arrays in the safetensors format, read with NumPy alone: a sampler may have nothing else.

Format: 8 bytes little-endian length of the header, the header (JSON: name -> dtype, shape,
data_offsets), the data.
"""

import json
from typing import Any

import numpy as np

_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "I32": "<i4",
    "U8": "|u1",
    "BOOL": "|b1",
}
_NAMES = {value: name for name, value in _DTYPES.items()}
_LONGEST_HEADER = 1 << 20  # bytes; a header of a few arrays has some hundred


def read_tensors(data: bytes) -> dict[str, np.ndarray]:
    """Arrays by name; views of ``data``, read-only.

    Raises:
        ValueError: not this format, or arrays that do not lie inside ``data``.
    """
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or not 2 <= length <= min(len(data) - 8, _LONGEST_HEADER):
        raise ValueError("not a safetensors file: its header has no sensible length")
    body, arrays = memoryview(data)[8 + length :], {}
    try:
        header: dict[str, Any] = json.loads(data[8 : 8 + length])
        for name, facts in header.items():
            if name != "__metadata__":
                arrays[name] = _array(name, facts, body)
    except (KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(
            f"not a safetensors file: its header is no table of arrays ({error!r})"
        ) from error
    return arrays


def _array(name: str, facts: dict[str, Any], body: memoryview) -> np.ndarray:
    dtype, (start, end) = np.dtype(_DTYPES[facts["dtype"]]), facts["data_offsets"]
    shape = tuple(int(n) for n in facts["shape"])
    if not 0 <= start <= end <= len(body) or min(shape, default=0) < 0:
        raise ValueError(f"{name} lies outside of the file")
    return np.frombuffer(body[start:end], dtype).reshape(shape)


def write_tensors(arrays: dict[str, np.ndarray]) -> bytes:
    """The file's bytes: equal for equal arrays in equal order."""
    header: dict[str, Any] = {}
    parts, offset = [], 0
    for name, array in arrays.items():
        part = np.ascontiguousarray(array).tobytes()
        header[name] = {
            "dtype": _NAMES[array.dtype.newbyteorder("<").str],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + len(part)],
        }
        parts.append(part)
        offset += len(part)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *parts])
