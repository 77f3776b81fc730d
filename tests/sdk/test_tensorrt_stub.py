"""What the stub of TensorRT and CUDA refuses, so that code which passes on it has not merely been let through."""

import ctypes
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tests.stub_board import BOARDS, stub_board

from roboalign.sdk.backends.cuda_runtime import Cuda
from roboalign.sdk.backends.tensorrt_engine import EngineReader, collecting_log
from roboalign.sdk.bundle import GraphSpec, TensorSpec
from roboalign.sdk.errors import BackendError


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    with stub_board(monkeypatch):
        yield import_module("tensorrt")


SPEC = GraphSpec(
    file="double.onnx",
    opset=20,
    inputs=(TensorSpec(name="x", shape=(2, 4), dtype="float32", unit=""),),
    outputs=(TensorSpec(name="y", shape=(2, 4), dtype="float32", unit=""),),
)


def graph(folder: Path, *, opset: int = 20, domain: str = "", types: tuple[int, int] = (1, 1)) -> Path:
    """`y = x + x`, or what a case makes of it."""
    other = helper.make_tensor("other", types[1], [2, 4], np.ones(8))
    value = [helper.make_tensor_value_info(name, types[0], [2, 4]) for name in ("x", "y")]
    node = helper.make_node("Add", ["x", "other"], ["y"], domain=domain)
    imports = [helper.make_opsetid("", opset)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    model = helper.make_model(
        helper.make_graph([node], "g", value[:1], value[1:], [other]), opset_imports=imports, ir_version=9
    )
    path = folder / "double.onnx"
    onnx.save(model, path)
    return path


def compiled(trt: ModuleType, path: Path) -> bytes:
    log = collecting_log(trt)
    network = trt.Builder(log).create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    assert trt.OnnxParser(network, log).parse_from_file(str(path))
    return bytes(trt.Builder(log).build_serialized_network(network, trt.Builder(log).create_builder_config()))


@pytest.mark.parametrize("version", BOARDS)
def test_weak_typing_is_gone_in_11_and_refused_before(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with stub_board(monkeypatch, version):
        trt = import_module("tensorrt")
        builder = trt.Builder(collecting_log(trt))
        is_newest = version.startswith("11.")
        assert hasattr(trt.BuilderFlag, "FP16") is not is_newest
        assert hasattr(trt._Engine, "device_memory_size") is not is_newest
        if is_newest:
            builder.create_network()  # always strongly typed
            return
        with pytest.raises(AssertionError, match="weak"):
            builder.create_network()
        with pytest.raises(AssertionError, match="weak"):
            builder.create_builder_config().set_flag(trt.BuilderFlag.FP16)


@pytest.mark.parametrize(
    ("version", "case", "reason"),
    [
        ("10.3.0", {"opset": 21}, "opset 21 is newer than 20"),
        ("10.13.3", {"opset": 21}, None),
        ("10.3.0", {"domain": "com.microsoft"}, "Plugin not found: com.microsoft"),
        ("11.4.1", {"types": (TensorProto.FLOAT, TensorProto.FLOAT16)}, "cannot read"),
    ],
)
def test_the_parser_refuses(version: str, case: dict, reason: str | None, tmp_path: Path, monkeypatch) -> None:
    with stub_board(monkeypatch, version):
        trt = import_module("tensorrt")
        log = collecting_log(trt)
        parser = trt.OnnxParser(trt._Network(), log)
        assert parser.parse_from_file(str(graph(tmp_path, **case))) is (reason is None)
        if reason is not None:
            assert reason in parser.get_error(0).desc()


@pytest.mark.parametrize("change", [{"VERSION": "10.16.2"}, {"CAPABILITY": "8.9"}])
def test_an_engine_of_another_version_or_gpu_is_refused(change: dict, tmp_path: Path, monkeypatch) -> None:
    with stub_board(monkeypatch):
        content = compiled(import_module("tensorrt"), graph(tmp_path))
    with stub_board(monkeypatch, **change):
        trt = import_module("tensorrt")
        Cuda.open()
        with pytest.raises(BackendError, match="the engine was built for"):
            EngineReader(trt).read(content, SPEC, "double.engine")
        with pytest.raises(BackendError, match="magicTag does not match"):
            EngineReader(trt).read(b"something else", SPEC, "double.engine")


def test_a_run_needs_every_address_and_a_recording_a_first_run(trt: ModuleType, tmp_path: Path) -> None:
    cuda = Cuda.open()
    engine = EngineReader(trt).read(compiled(trt, graph(tmp_path)), SPEC, "double.engine")
    engine.bind({"x": cuda.allocate(32)})
    with pytest.raises(BackendError, match=r"TensorRT failed to run double\.engine"):
        engine.enqueue(cuda.stream)
    engine.bind({"y": cuda.allocate(32)})
    with pytest.raises(BackendError, match="failed to run"):
        cuda.capture(lambda: engine.enqueue(cuda.stream))
    engine.enqueue(cuda.stream)
    cuda.capture(lambda: engine.enqueue(cuda.stream))
    with pytest.raises(BackendError, match="refuses the address of 'z'"):
        engine.bind({"z": 64})


def test_nothing_runs_on_memory_that_was_freed(trt: ModuleType, tmp_path: Path) -> None:
    cuda = Cuda.open()
    engine = EngineReader(trt).read(compiled(trt, graph(tmp_path)), SPEC, "double.engine")
    addresses = {"x": cuda.allocate(32), "y": cuda.allocate(32)}
    engine.bind(addresses)
    engine.enqueue(cuda.stream)
    cuda.synchronize()
    cuda._ask("cudaFree", ctypes.c_void_p(addresses["x"]))
    engine.enqueue(cuda.stream)
    with pytest.raises(BackendError, match="illegal memory access"):
        cuda.synchronize()


def test_a_copy_stays_within_its_memory(trt: ModuleType) -> None:
    cuda = Cuda.open()
    device, host = cuda.allocate(32), cuda.pin((16,), np.float32)
    with pytest.raises(BackendError, match="cudaMemcpyAsync failed with CUDA error 700"):
        cuda.upload(device, host)
    with pytest.raises(BackendError, match="cudaMemcpy2DAsync failed"):
        cuda.copy_rows((device, 16), (device, 16), 8, 3)
    with pytest.raises(BackendError, match="cudaMemcpyAsync failed with CUDA error 700"):
        cuda.upload(device, np.zeros(2, np.float32))  # not pinned


def test_a_recording_takes_nothing_that_allocates_or_waits(trt: ModuleType) -> None:
    cuda = Cuda.open()
    for work in (lambda: cuda.allocate(8), cuda.synchronize):
        with pytest.raises(BackendError, match="operation not permitted when capturing"):
            cuda.capture(work)
    cuda.allocate(8)  # the recording that failed has ended


def test_the_real_library_has_every_function_that_is_called() -> None:
    """Its driver is not needed for that; on a machine without the library there is nothing to compare with."""
    for name in ("libcudart.so.13", "libcudart.so.12"):
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        stub = import_module("tests.tensorrt_stub.cudart_stub").CudartStub
        called = {"cudaGetErrorString", *(one[1:] for one in vars(stub) if one.startswith("_cuda"))}
        assert len(called) == 20
        assert [one for one in sorted(called) if not hasattr(library, one)] == []
        return
    pytest.skip("no libcudart of CUDA 12 or 13 on this machine")
