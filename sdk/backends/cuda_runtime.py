"""CUDA's runtime, as far as one engine's worth of copies needs it: memory, one stream, graphs; ctypes on libcudart.

No package is needed: JetPack brings the library. Every call is checked, and an error names the call and CUDA's reason.
One object owns one stream and everything that was allocated through it, and frees it in `close`. Copies are
asynchronous: a host array may be read or written again only after `synchronize`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from math import prod
from typing import Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from roboalign.sdk.errors import BackendError

__all__ = ["Array", "Cuda"]

Array = NDArray[np.generic]

_LIBRARIES = (
    "/usr/local/cuda/lib64/libcudart.so",
    "libcudart.so.13",
    "libcudart.so.12",
)
"""JetPack's own comes first: 7 has CUDA 13, 6 has CUDA 12, and a newer one than the driver's does not run."""

_HOST_TO_DEVICE, _DEVICE_TO_HOST, _DEVICE_TO_DEVICE = 1, 2, 3

_MAJOR, _MINOR = 75, 76
"""cudaDevAttrComputeCapabilityMajor and -Minor."""

_NON_BLOCKING = 1
_CAPTURE_THREAD_LOCAL = 1
"""Another thread of the program may allocate while this one captures."""


class _Function(Protocol):
    def __call__(self, *args: object) -> int: ...


class Cuda:
    """One stream of the first GPU, and the memory that was asked for through it. Not thread safe."""

    def __init__(self, library: object) -> None:
        self._library = library
        self._device: list[int] = []
        self._pinned: list[int] = []
        self._graphs: list[int] = []
        self._stream = ctypes.c_void_p()
        self._is_open = False

    @classmethod
    def open(cls) -> Cuda:
        """Loads the library and makes a stream; a machine without library or GPU is a BackendError."""
        cuda = cls(_load_library())
        count = ctypes.c_int()
        cuda._call("cudaGetDeviceCount", ctypes.byref(count))
        if count.value < 1:
            raise BackendError("libcudart is here and finds no GPU; run on the board itself, with access to /dev/nv*")
        cuda._call("cudaSetDevice", ctypes.c_int(0))
        cuda._call("cudaStreamCreateWithFlags", ctypes.byref(cuda._stream), ctypes.c_uint(_NON_BLOCKING))
        cuda._is_open = True
        return cuda

    @property
    def stream(self) -> int:
        """Handle of the stream."""
        return self._stream.value or 0

    def capability(self) -> str:
        """Returns the GPU's compute capability, e.g. `8.7`."""
        found = []
        for attribute in (_MAJOR, _MINOR):
            value = ctypes.c_int()
            self._call("cudaDeviceGetAttribute", ctypes.byref(value), ctypes.c_int(attribute), ctypes.c_int(0))
            found.append(value.value)
        return f"{found[0]}.{found[1]}"

    def allocate(self, num_bytes: int) -> int:
        """Returns the address of zeroed memory on the device."""
        address = ctypes.c_void_p()
        self._call("cudaMalloc", ctypes.byref(address), ctypes.c_size_t(num_bytes))
        assert address.value is not None
        self._device.append(address.value)
        self.fill_zero(address.value, num_bytes)
        return address.value

    def pin(self, shape: Sequence[int], dtype: DTypeLike) -> Array:
        """Returns a zeroed array on page-locked host memory, which copies run from and to without another copy.

        It is freed in `close`: nothing may look at it after that.
        """
        kind = np.dtype(dtype)
        num_bytes = prod(shape) * kind.itemsize
        address = ctypes.c_void_p()
        self._call("cudaHostAlloc", ctypes.byref(address), ctypes.c_size_t(num_bytes), ctypes.c_uint(0))
        assert address.value is not None
        self._pinned.append(address.value)
        content = (ctypes.c_uint8 * num_bytes).from_address(address.value)
        array: Array = np.ctypeslib.as_array(content).view(kind).reshape(tuple(shape))
        array[...] = 0
        return array

    def upload(self, address: int, array: Array) -> None:
        """Copies a pinned array to the device."""
        self._copy(address, array.ctypes.data, array.nbytes, _HOST_TO_DEVICE)

    def download(self, array: Array, address: int) -> None:
        """Copies from the device into a pinned array."""
        self._copy(array.ctypes.data, address, array.nbytes, _DEVICE_TO_HOST)

    def copy(self, target: int, source: int, num_bytes: int) -> None:
        """Copies within the device."""
        self._copy(target, source, num_bytes, _DEVICE_TO_DEVICE)

    def copy_rows(self, target: tuple[int, int], source: tuple[int, int], width: int, height: int) -> None:
        """Copies `height` pieces of `width` bytes within the device; either side is (address, bytes between pieces)."""
        self._call(
            "cudaMemcpy2DAsync",
            ctypes.c_void_p(target[0]),
            ctypes.c_size_t(target[1]),
            ctypes.c_void_p(source[0]),
            ctypes.c_size_t(source[1]),
            ctypes.c_size_t(width),
            ctypes.c_size_t(height),
            ctypes.c_int(_DEVICE_TO_DEVICE),
            self._stream,
        )

    def fill_zero(self, address: int, num_bytes: int) -> None:
        """Zeroes memory on the device."""
        self._call(
            "cudaMemsetAsync", ctypes.c_void_p(address), ctypes.c_int(0), ctypes.c_size_t(num_bytes), self._stream
        )

    def synchronize(self) -> None:
        """Waits for everything that was asked for."""
        self._call("cudaStreamSynchronize", self._stream)

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Records what `work` puts on the stream and returns the call that puts all of it there at once.

        Raises:
            BackendError: something in it cannot be recorded.
        """
        graph, run = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cudaStreamBeginCapture", self._stream, ctypes.c_int(_CAPTURE_THREAD_LOCAL))
        try:
            work()
        except BaseException:
            # Ends the recording, whose own error says less than the first one.
            self._ask("cudaStreamEndCapture", self._stream, ctypes.byref(graph))
            raise
        self._call("cudaStreamEndCapture", self._stream, ctypes.byref(graph))
        try:
            self._call("cudaGraphInstantiateWithFlags", ctypes.byref(run), graph, ctypes.c_ulonglong(0))
        finally:
            self._call("cudaGraphDestroy", graph)
        assert run.value is not None
        self._graphs.append(run.value)
        return lambda: self._call("cudaGraphLaunch", run, self._stream)

    def close(self) -> None:
        """Waits, then frees graphs, memory and stream; may be called twice."""
        if not self._is_open:
            return
        self._is_open = False
        self._ask("cudaStreamSynchronize", self._stream)  # a failed GPU must not keep the rest from being freed
        for name, addresses in (
            ("cudaGraphExecDestroy", self._graphs),
            ("cudaFree", self._device),
            ("cudaFreeHost", self._pinned),
        ):
            for address in addresses:
                self._ask(name, ctypes.c_void_p(address))
            addresses.clear()
        self._ask("cudaStreamDestroy", self._stream)

    def _copy(self, target: int, source: int, num_bytes: int, kind: int) -> None:
        self._call(
            "cudaMemcpyAsync",
            ctypes.c_void_p(target),
            ctypes.c_void_p(source),
            ctypes.c_size_t(num_bytes),
            ctypes.c_int(kind),
            self._stream,
        )

    def _ask(self, name: str, *args: object) -> int:
        function: _Function = getattr(self._library, name)
        return function(*args)

    def _call(self, name: str, *args: object) -> None:
        code = self._ask(name, *args)
        if code != 0:
            describe = getattr(self._library, "cudaGetErrorString")  # noqa: B009 - of the library, not of Python
            describe.restype = ctypes.c_char_p
            raise BackendError(f"{name} failed with CUDA error {code}: {_text(describe(ctypes.c_int(code)))}")


def _text(message: object) -> str:
    return message.decode(errors="replace") if isinstance(message, bytes) else str(message)


def _load_library() -> object:
    reasons = []
    for name in _LIBRARIES:
        try:
            return ctypes.CDLL(name)
        except OSError as err:
            reasons.append(str(err))
    raise BackendError(
        f"CUDA's runtime was not found ({reasons[0]}); it comes with JetPack: sudo apt install nvidia-jetpack"
    )
