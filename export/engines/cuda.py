"""The part of the CUDA driver that TensorRT's run time needs, in ctypes: memory, streams, graphs.

The driver library is there wherever a GPU can be used, and its names do not change. This file
follows NVIDIA's documentation of the driver API; it never ran on a GPU yet.
"""

import ctypes
from typing import Any

from ganfast.errors import InputError, RunError
from ganfast.export.engines.engines import Gpu

_NON_BLOCKING, _THREAD_LOCAL = 1, 1  # CU_STREAM_NON_BLOCKING, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*


class Cuda:
    """A device's primary context, which torch and ONNX Runtime in the same process share.

    Addresses and handles are integers.
    """

    def __init__(self, library: Any, device: int) -> None:
        self._library, self.index = library, device
        self._call("cuInit", 0)
        self._device, self._context = ctypes.c_int(), ctypes.c_void_p()
        self._call("cuDeviceGet", ctypes.byref(self._device), device)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), self._device)
        self.use()

    @staticmethod
    def open(device: int) -> "Cuda":
        """The context of a device; InputError where there is no driver or device."""
        try:
            library = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise InputError(
                "no NVIDIA driver here (libcuda.so.1 does not load); use device cpu, "
                "or name compute capabilities"
            ) from error
        try:
            return Cuda(library, device)
        except RunError as error:
            raise InputError(
                f"CUDA device {device} cannot be used: {error}; use device cpu"
            ) from error

    @property
    def gpu(self) -> Gpu:
        name, numbers = ctypes.create_string_buffer(256), []
        self._call("cuDeviceGetName", name, len(name), self._device)
        for attribute in (_MAJOR, _MINOR):
            value = ctypes.c_int()
            self._call("cuDeviceGetAttribute", ctypes.byref(value), attribute, self._device)
            numbers.append(value.value)
        return Gpu(name.value.decode(), f"{numbers[0]}.{numbers[1]}")

    def use(self) -> None:
        """Make the context current on this thread; every thread needs it once."""
        self._call("cuCtxSetCurrent", self._context)

    def allocate(self, size: int) -> int:
        return self._handle("cuMemAlloc_v2", size)

    def free(self, address: int) -> None:
        self._call("cuMemFree_v2", ctypes.c_uint64(address))

    def allocate_host(self, size: int) -> int:
        """Pinned memory, which copies need to be asynchronous."""
        return self._handle("cuMemAllocHost_v2", size)

    def free_host(self, address: int) -> None:
        self._call("cuMemFreeHost", ctypes.c_void_p(address))

    def copy_in(self, device: int, host: int, size: int, stream: int) -> None:
        to, source = ctypes.c_uint64(device), ctypes.c_void_p(host)
        self._call("cuMemcpyHtoDAsync_v2", to, source, ctypes.c_size_t(size), _stream(stream))

    def copy_out(self, host: int, device: int, size: int, stream: int) -> None:
        to, source = ctypes.c_void_p(host), ctypes.c_uint64(device)
        self._call("cuMemcpyDtoHAsync_v2", to, source, ctypes.c_size_t(size), _stream(stream))

    def copy(self, to: int, source: int, size: int, stream: int) -> None:
        ends = ctypes.c_uint64(to), ctypes.c_uint64(source)
        self._call("cuMemcpyDtoDAsync_v2", *ends, ctypes.c_size_t(size), _stream(stream))

    def stream(self) -> int:
        handle = ctypes.c_void_p()
        self._call("cuStreamCreate", ctypes.byref(handle), _NON_BLOCKING)
        return handle.value or 0

    def wait(self, stream: int) -> None:
        self._call("cuStreamSynchronize", _stream(stream))

    def drop_stream(self, stream: int) -> None:
        self._call("cuStreamDestroy_v2", _stream(stream))

    def begin_capture(self, stream: int) -> None:
        self._call("cuStreamBeginCapture_v2", _stream(stream), _THREAD_LOCAL)

    def end_capture(self, stream: int) -> int:
        """The captured graph, ready to be launched."""
        graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuStreamEndCapture", _stream(stream), ctypes.byref(graph))
        self._call(
            "cuGraphInstantiateWithFlags", ctypes.byref(executable), graph, ctypes.c_uint64(0)
        )
        self._call("cuGraphDestroy", graph)
        return executable.value or 0

    def launch(self, graph: int, stream: int) -> None:
        self._call("cuGraphLaunch", ctypes.c_void_p(graph), _stream(stream))

    def drop_graph(self, graph: int) -> None:
        self._call("cuGraphExecDestroy", ctypes.c_void_p(graph))

    def _handle(self, name: str, size: int) -> int:
        address = ctypes.c_uint64()
        self._call(name, ctypes.byref(address), ctypes.c_size_t(size))
        return address.value

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._library, name)(*arguments)
        if code:
            text = ctypes.c_char_p()
            self._library.cuGetErrorString(code, ctypes.byref(text))
            raise RunError(f"{name} failed with {code} ({(text.value or b'unknown').decode()})")


def _stream(handle: int) -> ctypes.c_void_p:
    return ctypes.c_void_p(handle)
