"""One engine of the system's TensorRT: reading it, checking it against the manifest, and running it as a CUDA graph.

Only what TensorRT 10.3, 10.13, 10.16 and 11.4 have in common is used: named tensors, `execute_async_v3`, strong typing.
`tensorrt` is the board's own package, never a dependency: it is imported when an engine is, and not before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from roboalign.sdk.backends.cuda_runtime import Cuda
from roboalign.sdk.bundle import GraphSpec, TensorSpec
from roboalign.sdk.errors import BackendError, BundleError

__all__ = ["Engine", "EngineReader", "collecting_log", "load_tensorrt"]

_TYPES = {"float32": "FLOAT", "float16": "HALF", "int64": "INT64", "int32": "INT32", "bool": "BOOL"}
"""The manifest's types in TensorRT's words."""


def load_tensorrt() -> Any:  # TensorRT ships no types
    """Imports the system's `tensorrt`; a machine without it is a BackendError."""
    try:
        return import_module("tensorrt")
    except ImportError as err:
        raise BackendError(
            f"Python cannot import TensorRT ({err}); JetPack brings it: sudo apt install python3-libnvinfer, and make "
            "the environment with: python3 -m venv --system-site-packages ENV"
        ) from err


class EngineReader:
    """TensorRT's runtime with its log."""

    def __init__(self, trt: Any) -> None:
        self._trt = trt
        self._log = collecting_log(trt)
        self._runtime = trt.Runtime(self._log)
        if self._log.lines:
            # Without a GPU it logs an error and returns an object whose next call ends the process.
            raise BackendError(f"TensorRT's runtime does not start: {' '.join(self._log.lines)}")

    def read(self, content: bytes, spec: GraphSpec, what: str) -> Engine:
        """Returns an engine whose names, types and shapes are those of the manifest.

        Raises:
            BackendError: TensorRT does not take it.
            BundleError: it is the engine of something else.
        """
        self._log.lines.clear()
        engine = self._runtime.deserialize_cuda_engine(content)
        if engine is None:
            raise BackendError(f"TensorRT {self._trt.__version__} refuses {what}: {self._reason()}; build it again")
        _check_tensors(self._trt, engine, spec, what)
        context = engine.create_execution_context()
        if context is None:
            raise BackendError(f"TensorRT cannot make an execution context of {what}: {self._reason()}")
        return Engine(engine, context, what, self._reason)

    def _reason(self) -> str:
        return " ".join(self._log.lines[-3:]) or "it gave no reason"


class Engine:
    """An engine with its execution context. Not thread safe."""

    def __init__(self, engine: Any, context: Any, what: str, reason: Callable[[], str]) -> None:
        self._engine = engine  # has to outlive the context
        self._context = context
        self._what = what
        self._reason = reason

    def bind(self, addresses: Mapping[str, int]) -> None:
        """Says where each tensor lies, once and for all."""
        for name, address in addresses.items():
            if not self._context.set_tensor_address(name, address):
                raise BackendError(f"TensorRT refuses the address of {name!r} of {self._what}: {self._reason()}")

    def enqueue(self, stream: int) -> None:
        """Puts one run on a stream."""
        if not self._context.execute_async_v3(stream):
            raise BackendError(f"TensorRT failed to run {self._what}: {self._reason()}")

    def capture(self, cuda: Cuda, work: Callable[[], None]) -> Callable[[], None]:
        """Runs `work` once, records it, and returns the call that replays the record.

        Shapes and addresses never change, so an engine that cannot be recorded is one that waits for the host inside:
        that is an error and no reason to run it slower.
        """
        # TensorRT prepares kernels in the first run, which cannot be recorded.
        work()
        cuda.synchronize()
        try:
            return cuda.capture(work)
        except BackendError as err:
            raise BackendError(f"{self._what} cannot be recorded as a CUDA graph: {err}") from err


def collecting_log(trt: Any) -> Any:
    """Returns a log for TensorRT that keeps the errors in `lines`."""

    class Log(trt.ILogger):  # type: ignore[misc]  # TensorRT ships no types
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.lines.append(message)

    return Log()


def _check_tensors(trt: Any, engine: Any, spec: GraphSpec, what: str) -> None:
    names = {engine.get_tensor_name(index) for index in range(engine.num_io_tensors)}
    expected = {tensor.name for tensor in (*spec.inputs, *spec.outputs)}
    if names != expected:
        raise BundleError(
            f"{what} has the tensors {', '.join(sorted(names))}, the manifest says {', '.join(sorted(expected))}; "
            "build it again"
        )
    for mode, tensors in ((trt.TensorIOMode.INPUT, spec.inputs), (trt.TensorIOMode.OUTPUT, spec.outputs)):
        for tensor in tensors:
            found = (
                engine.get_tensor_mode(tensor.name),
                engine.get_tensor_dtype(tensor.name),
                tuple(engine.get_tensor_shape(tensor.name)),
            )
            if found != (mode, _dtype(trt, tensor), tensor.shape):
                raise BundleError(
                    f"{what} has {tensor.name!r} as {', '.join(map(str, found))}; the manifest says {mode}, "
                    f"{tensor.dtype}, {tensor.shape}; build it again"
                )


def _dtype(trt: Any, tensor: TensorSpec) -> Any:
    if tensor.dtype not in _TYPES:
        raise BundleError(
            f"tensor {tensor.name!r} is {tensor.dtype}, this version runs {', '.join(_TYPES)}; upgrade roboalign"
        )
    return getattr(trt.DataType, _TYPES[tensor.dtype])
