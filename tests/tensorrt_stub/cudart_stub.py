"""A stub of libcudart on host memory. It is strict where a GPU is: nothing on a stream happens before it is waited for,
every address must lie in live memory of the right kind, and a recording takes nothing that allocates or waits."""

# ruff: noqa: N802 - the names are CUDA's

import ctypes
import os
from collections.abc import Callable

__all__ = ["INSTALLED", "CudartStub", "install", "uninstall"]

HOST_TO_DEVICE, DEVICE_TO_HOST, DEVICE_TO_DEVICE = 1, 2, 3
INVALID, MISUSE, CAPTURE = 1, 700, 900
NAMES = {
    INVALID: "invalid argument",
    MISUSE: "illegal memory access",
    CAPTURE: "operation not permitted when capturing",
}

INSTALLED: list["CudartStub"] = []
"""The library that was opened last; TensorRT's stub runs on its memory."""


class Refused(Exception):
    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Stream:
    def __init__(self) -> None:
        self.waiting: list[Callable[[], None]] = []
        self.recording: list[Callable[[], None]] | None = None

    def put(self, work: Callable[[], None]) -> None:
        (self.waiting if self.recording is None else self.recording).append(work)


class CudartStub:
    """Functions take what ctypes would give them, and answer with CUDA's error codes."""

    def __init__(self) -> None:
        self.capability = os.environ.get("TENSORRT_STUB_CAPABILITY", "8.7")
        self.memory: dict[str, dict[int, ctypes.Array]] = {"device": {}, "host": {}}
        self.streams: dict[int, Stream] = {}
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.counts: dict[str, int] = {}
        self.refuses_capture = bool(os.environ.get("TENSORRT_STUB_REFUSES_CAPTURE"))
        self._handle = 100
        self.broken = 0
        self.cudaGetErrorString = _Described()

    def __getattr__(self, name: str) -> Callable[..., int]:
        try:
            function = object.__getattribute__(self, f"_{name}")
        except AttributeError:
            raise AttributeError(f"libcudart has no function {name!r}") from None

        def call(*args: object) -> int:
            self.counts[name] = self.counts.get(name, 0) + 1
            if self.broken:
                return self.broken
            try:
                function(*args)
            except Refused as refused:
                return refused.code
            return 0

        return call

    def at(self, address: int, num_bytes: int, kind: str) -> int:
        """Returns an address when that much live memory of a kind lies there."""
        for start, block in self.memory[kind].items():
            if start <= address and address + num_bytes <= start + len(block):
                return address
        raise Refused(MISUSE)

    def handle(self, stream: object) -> Stream:
        value = getattr(stream, "value", stream)
        if value not in self.streams:
            raise Refused(INVALID)
        return self.streams[value]

    def _new(self) -> int:
        self._handle += 1
        return self._handle

    def _not_recording(self) -> None:
        if any(stream.recording is not None for stream in self.streams.values()):
            raise Refused(CAPTURE)

    def _cudaGetDeviceCount(self, count) -> None:
        count._obj.value = 0 if self.capability == "none" else 1

    def _cudaSetDevice(self, device) -> None:
        assert device.value == 0

    def _cudaDeviceGetAttribute(self, value, attribute, device) -> None:
        value._obj.value = int(self.capability.split(".")[{75: 0, 76: 1}[attribute.value]])

    def _cudaMalloc(self, address, size) -> None:
        address._obj.value = self._allocate("device", size.value)

    def _cudaHostAlloc(self, address, size, flags) -> None:
        address._obj.value = self._allocate("host", size.value)

    def _allocate(self, kind: str, size: int) -> int:
        self._not_recording()
        block = ctypes.create_string_buffer(b"\xa5" * size, size)  # never zero by accident
        self.memory[kind][ctypes.addressof(block)] = block
        return ctypes.addressof(block)

    def _cudaFree(self, address) -> None:
        self._release("device", address.value)

    def _cudaFreeHost(self, address) -> None:
        self._release("host", address.value)

    def _release(self, kind: str, address: int) -> None:
        self._not_recording()
        if self.memory[kind].pop(address, None) is None:
            raise Refused(INVALID)

    def _cudaStreamCreateWithFlags(self, stream, flags) -> None:
        stream._obj.value = self._new()
        self.streams[stream._obj.value] = Stream()

    def _cudaStreamDestroy(self, stream) -> None:
        self.handle(stream)
        del self.streams[stream.value]

    def _cudaStreamSynchronize(self, stream) -> None:
        found = self.handle(stream)
        self._not_recording()
        while found.waiting:
            found.waiting.pop(0)()

    def _cudaMemcpyAsync(self, target, source, size, kind, stream) -> None:
        sides = {HOST_TO_DEVICE: ("device", "host"), DEVICE_TO_HOST: ("host", "device")}
        into, out = sides.get(kind.value, ("device", "device"))
        self._move(stream, (target.value, into), (source.value, out), [(0, 0, size.value)])

    def _cudaMemcpy2DAsync(self, target, into, source, out, width, height, kind, stream) -> None:
        if kind.value != DEVICE_TO_DEVICE or width.value > min(into.value, out.value):
            raise Refused(INVALID)
        pieces = [(row * into.value, row * out.value, width.value) for row in range(height.value)]
        self._move(stream, (target.value, "device"), (source.value, "device"), pieces)

    def _move(self, stream, target: tuple[int, str], source: tuple[int, str], pieces: list) -> None:
        def work() -> None:
            for into, out, size in pieces:
                place = self.at(target[0] + into, size, target[1]), self.at(source[0] + out, size, source[1])
                ctypes.memmove(*place, size)

        for into, out, size in pieces:
            self.at(target[0] + into, size, target[1])
            self.at(source[0] + out, size, source[1])
        self.handle(stream).put(work)

    def _cudaMemsetAsync(self, address, value, size, stream) -> None:
        place, byte, count = self.at(address.value, size.value, "device"), value.value, size.value
        self.handle(stream).put(lambda: (self.at(place, count, "device"), ctypes.memset(place, byte, count))[0])

    def _cudaStreamBeginCapture(self, stream, mode) -> None:
        found = self.handle(stream)
        if found.recording is not None or self.refuses_capture:
            raise Refused(CAPTURE)
        found.recording = []

    def _cudaStreamEndCapture(self, stream, graph) -> None:
        found = self.handle(stream)
        if found.recording is None:
            raise Refused(INVALID)
        graph._obj.value = self._new()
        self.graphs[graph._obj.value], found.recording = found.recording, None

    def _cudaGraphInstantiateWithFlags(self, run, graph, flags) -> None:
        run._obj.value = self._new()
        self.graphs[run._obj.value] = list(self.graphs[graph.value])

    def _cudaGraphDestroy(self, graph) -> None:
        del self.graphs[graph.value]

    def _cudaGraphExecDestroy(self, run) -> None:
        del self.graphs[run.value]

    def _cudaGraphLaunch(self, run, stream) -> None:
        if run.value not in self.graphs:
            raise Refused(INVALID)
        for work in self.graphs[run.value]:
            self.handle(stream).put(work)


class _Described:
    """A function that takes the attributes which ctypes' functions have."""

    def __call__(self, code: ctypes.c_int) -> bytes:
        return NAMES.get(code.value, "unknown error").encode()


_REAL = ctypes.CDLL


def _open(name: object, *args: object, **kwargs: object) -> object:
    if "libcudart" not in str(name):
        return _REAL(name, *args, **kwargs)
    if os.environ.get("TENSORRT_STUB_CAPABILITY") == "no library":
        raise OSError(f"{name}: cannot open shared object file")
    INSTALLED[:] = [CudartStub()]
    return INSTALLED[0]


def install() -> None:
    """From now on opening libcudart opens the stub."""
    ctypes.CDLL = _open


def uninstall() -> None:
    ctypes.CDLL = _REAL
