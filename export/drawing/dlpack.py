"""The DLPack protocol in ctypes: device memory handed to torch, CuPy or JAX without a copy.

None of them is needed here. Structures: DLPack 0.8, dlpack.h. It works on host memory too, which is
how it is tested.
"""

import ctypes
from collections.abc import Callable
from typing import Any

CPU, CUDA = 1, 2  # kDLCPU, kDLCUDA
_UINT = 1  # kDLUInt
_NAME = b"dltensor"


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class _Managed(ctypes.Structure):
    pass


_DELETER = ctypes.CFUNCTYPE(None, ctypes.POINTER(_Managed))
_DESTRUCTOR = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_Managed._fields_ = [("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _DELETER)]

_new = ctypes.pythonapi.PyCapsule_New
_new.restype, _new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, _DESTRUCTOR]
_is_valid = ctypes.pythonapi.PyCapsule_IsValid
_is_valid.restype, _is_valid.argtypes = ctypes.c_int, [ctypes.c_void_p, ctypes.c_char_p]
_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_char_p]

# Address of a structure that a consumer has -> what must live until the consumer deletes it.
_alive: dict[int, Any] = {}


class DevicePictures:
    """uint8 (N, H, W, C) in device memory; ``torch.from_dlpack(pictures)`` makes no copy."""

    def __init__(
        self,
        address: int,
        shape: tuple[int, ...],
        index: int,
        free: Callable[[], None],
        kind: int = CUDA,
    ) -> None:
        """``free`` is called once nobody holds the memory any more."""
        self.shape = shape
        self._memory = _Memory(address, free)
        self._index, self._kind = index, kind

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._kind, self._index

    def __dlpack__(self, *, stream: Any = None, **_: Any) -> Any:
        """A capsule. The pictures are complete already, so any stream may read them."""
        shape = (ctypes.c_int64 * len(self.shape))(*self.shape)
        kind, index = self._kind, self._index
        tensor = _Tensor(
            self._memory.address, kind, index, len(self.shape), _UINT, 8, 1, shape, None, 0
        )
        managed = _Managed(tensor, None, _delete)
        at = ctypes.addressof(managed)
        _alive[at] = (managed, shape, self._memory)
        return _new(at, _NAME, _destroy)


class _Memory:
    def __init__(self, address: int, free: Callable[[], None]) -> None:
        self.address, self._free = address, free

    def __del__(self) -> None:
        self._free()


@_DELETER
def _delete(managed: Any) -> None:
    _alive.pop(ctypes.addressof(managed.contents), None)


@_DESTRUCTOR
def _destroy(capsule: int) -> None:
    if _is_valid(capsule, _NAME):  # a consumer would have renamed it
        _alive.pop(_pointer(capsule, _NAME), None)
