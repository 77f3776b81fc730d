"""A stub of the documented Python API of TensorRT; an "engine" is the ONNX file, which onnxruntime runs.

It has what 10.3, 10.13, 10.16 and 11.4 share, and what each has lost: `TENSORRT_STUB_VERSION` says which one it is. It
refuses weak typing, operator sets that the version does not read, types that are mixed, addresses that were not set or
lie in no live device memory, an engine of another version or GPU, and recording before a first run. It says nothing
about kernels, speed or memory.
"""

import ctypes
import json
import os
import time
from enum import Enum
from pathlib import Path

import cudart_stub
import numpy as np

cudart_stub.install()

__version__ = os.environ.get("TENSORRT_STUB_VERSION", "10.3.0")
_RELEASE = tuple(int(part) for part in __version__.split(".")[:2])
_FAULT = os.environ.get("TENSORRT_STUB_FAULT", "")
"""What goes wrong: `refuse`, `crash FILE` or `hang FILE` while building, `wrong NAME` for an output when running."""

_MAGIC = b"stub engine\n"
_NEWEST_OPSET = {(10, 3): 20, (10, 13): 24, (10, 16): 24, (11, 4): 24}[_RELEASE]

DataType = Enum("DataType", "FLOAT HALF INT8 INT32 BOOL UINT8 FP8 BF16 INT64 INT4")
TensorIOMode = Enum("TensorIOMode", "NONE INPUT OUTPUT")
MemoryPoolType = Enum("MemoryPoolType", "WORKSPACE DLA_MANAGED_SRAM")
_DTYPES = {
    1: (DataType.FLOAT, np.float32),
    10: (DataType.HALF, np.float16),
    7: (DataType.INT64, np.int64),
    6: (DataType.INT32, np.int32),
    9: (DataType.BOOL, np.bool_),
}

_WEAK = {"FP16": 0, "INT8": 1, "BF16": 2, "FP8": 3, "OBEY_PRECISION_CONSTRAINTS": 4, "PREFER_PRECISION_CONSTRAINTS": 5}
BuilderFlag = Enum("BuilderFlag", {**({} if _RELEASE >= (11, 0) else _WEAK), "TF32": 10, "STRIP_PLAN": 11})


class NetworkDefinitionCreationFlag(int, Enum):
    EXPLICIT_BATCH = 0
    STRONGLY_TYPED = 1


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def __init__(self):
        self._is_made = True

    def _error(self, text):
        assert self._is_made, "ILogger.__init__ was not called"
        self.log(ILogger.ERROR, text)


class Builder:
    def __init__(self, log):
        self._log = log

    def create_network(self, flags=0):
        # Weak typing is gone in 11; before, it would pick types by itself, which nothing here may ask for.
        assert _RELEASE >= (11, 0) or flags & (1 << int(NetworkDefinitionCreationFlag.STRONGLY_TYPED)), "weakly typed"
        return _Network()

    def create_builder_config(self):
        return _Config()

    def build_serialized_network(self, network, config):
        if network.model is None:
            self._log._error("the network is empty")
            return None
        if _FAULT == "refuse":
            self._log._error("Could not find any implementation for node")
            return None
        head = {"version": __version__, "capability": _capability(), "tf32": config.is_tf32}
        return _HostMemory(_MAGIC + json.dumps(head).encode() + b"\n" + network.model.SerializeToString())


class _HostMemory(bytearray):
    """Memory that can be written to a file, and that is no `bytes`."""

    nbytes = property(len)


class _Network:
    model = None


class _Config:
    is_tf32 = True

    def set_flag(self, flag):
        assert isinstance(flag, BuilderFlag)
        assert flag.name not in _WEAK, f"{flag.name} asks for weak typing in a strongly typed network"

    def clear_flag(self, flag):
        if flag is BuilderFlag.TF32:
            self.is_tf32 = False

    def set_memory_pool_limit(self, pool, size):
        assert isinstance(pool, MemoryPoolType)
        assert size > 0


class _ParserError:
    def __init__(self, text):
        self._text = text

    def desc(self):
        return self._text


class OnnxParser:
    def __init__(self, network, log):
        self._network = network
        self._errors = []

    @property
    def num_errors(self):
        return len(self._errors)

    def get_error(self, index):
        return self._errors[index]

    def parse_from_file(self, path):
        import onnx

        if f"crash {Path(path).name}" == _FAULT:
            os.abort()
        if f"hang {Path(path).name}" == _FAULT:
            time.sleep(120)
        try:
            model = onnx.load(path)
            onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
        except Exception as err:  # noqa: BLE001 - whatever it is, the parser refuses
            self._errors.append(_ParserError(f"cannot read {path}: {str(err).splitlines()[0]}"))
            return False
        for opset in model.opset_import:
            if opset.domain not in ("", "ai.onnx"):
                self._errors.append(_ParserError(f"Plugin not found: {opset.domain}"))
            elif opset.version > _NEWEST_OPSET:
                self._errors.append(_ParserError(f"opset {opset.version} is newer than {_NEWEST_OPSET}"))
        self._network.model = model
        return not self._errors


class Runtime:
    def __init__(self, log):
        self._log = log
        if not cudart_stub.INSTALLED or cudart_stub.INSTALLED[0].capability == "none":
            log._error("CUDA initialization failure with error: 35")

    def deserialize_cuda_engine(self, content):
        head, _, model = content.removeprefix(_MAGIC).partition(b"\n")
        if not content.startswith(_MAGIC):
            self._log._error("magicTag does not match")
            return None
        built = json.loads(head)
        for what, here in (("version", __version__), ("capability", _capability())):
            if built[what] != here:
                self._log._error(f"the engine was built for {what} {built[what]}, this is {here}")
                return None
        return _Engine(model)


class _Engine:
    def __init__(self, content):
        import onnx
        import onnxruntime

        model = onnx.load_model_from_string(content)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        self._tensors = {}
        for mode, values in ((TensorIOMode.INPUT, model.graph.input), (TensorIOMode.OUTPUT, model.graph.output)):
            for value in values:
                kind = value.type.tensor_type
                shape = tuple(dimension.dim_value for dimension in kind.shape.dim)
                self._tensors[value.name] = (mode, *_DTYPES[kind.elem_type], shape)

    num_io_tensors = property(lambda self: len(self._tensors))

    def get_tensor_name(self, index):
        return list(self._tensors)[index]

    def get_tensor_mode(self, name):
        return self._tensors[name][0]

    def get_tensor_dtype(self, name):
        return self._tensors[name][1]

    def get_tensor_shape(self, name):
        return self._tensors[name][3]

    if _RELEASE < (11, 0):
        device_memory_size = 0

    def create_execution_context(self):
        return _Context(self)


class _Context:
    def __init__(self, engine):
        self._engine = engine
        self._addresses = {}
        self._has_run = False

    def set_tensor_address(self, name, address):
        if name not in self._engine._tensors or not isinstance(address, int) or address % 4:
            return False
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream_handle):
        cuda = cudart_stub.INSTALLED[0]
        if set(self._addresses) != set(self._engine._tensors):
            return False
        stream = cuda.handle(stream_handle)
        if stream.recording is not None and not self._has_run:
            return False  # kernels are loaded in the first run, which cannot be recorded
        self._has_run = True
        stream.put(lambda: self._run(cuda))
        return True

    def _run(self, cuda):
        feed, found = {}, {}
        for name, (mode, _, dtype, shape) in self._engine._tensors.items():
            size = int(np.prod(shape)) * np.dtype(dtype).itemsize
            place = cuda.at(self._addresses[name], size, "device")
            view = np.frombuffer((ctypes.c_char * size).from_address(place), dtype).reshape(shape)
            if mode is TensorIOMode.INPUT:
                feed[name] = view
            else:
                found[name] = view
        for name, value in zip(found, self._engine.session.run(list(found), feed), strict=True):
            found[name][...] = -value if f"wrong {name}" == _FAULT else value


def _capability():
    return cudart_stub.INSTALLED[0].capability if cudart_stub.INSTALLED else cudart_stub.CudartStub().capability
