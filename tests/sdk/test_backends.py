"""How a backend is found by name."""

from importlib.metadata import EntryPoint

import onnxruntime
import pytest

from roboalign.sdk import Policy, backends
from roboalign.sdk.backends import backend_names, find_backend
from roboalign.sdk.backends.onnx import OnnxBackend
from roboalign.sdk.errors import BackendError, ConfigError


def offer(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    point = EntryPoint(name=name, value=value, group=backends.ENTRY_POINT_GROUP)
    monkeypatch.setattr(backends, "entry_points", lambda group: [point])


OWN = ("cpu", "edge-llm", "onnx", "onnx-cuda", "onnx-tensorrt", "tensorrt", "torch")
ON_GPU = {"onnx-cuda": "CUDAExecutionProvider", "onnx-tensorrt": "TensorrtExecutionProvider"}


def test_those_of_this_project_are_found_without_metadata(monkeypatch):
    monkeypatch.setattr(backends, "entry_points", lambda group: [])
    assert backend_names() == OWN
    assert find_backend("onnx") is find_backend("cpu") is OnnxBackend


def test_a_package_may_bring_another(monkeypatch):
    offer(monkeypatch, "mine", "roboalign.sdk.backends.onnx:OnnxBackend")
    assert backend_names() == tuple(sorted(["mine", *OWN]))
    assert find_backend("mine") is OnnxBackend


def test_one_that_cannot_be_imported_says_why(monkeypatch):
    offer(monkeypatch, "mine", "not_installed_anywhere:Backend")
    with pytest.raises(BackendError, match=r"'mine' \(not_installed_anywhere:Backend\) cannot be imported"):
        find_backend("mine")


def test_an_unknown_one_lists_the_choices():
    with pytest.raises(
        ConfigError, match="choose one of auto, cpu, edge-llm, onnx, onnx-cuda, onnx-tensorrt, tensorrt, torch"
    ):
        find_backend("cuda")


@pytest.mark.parametrize(("name", "provider"), ON_GPU.items())
def test_a_gpu_that_this_onnxruntime_cannot_use_is_an_error(name, provider):
    with pytest.raises(BackendError, match=f"{provider} was asked for .*this build has .*CPUExecutionProvider"):
        Policy.load(backend=name)


@pytest.mark.parametrize(("name", "provider"), ON_GPU.items())
@pytest.mark.filterwarnings("ignore:Specified provider .* is not in available provider names:UserWarning")
def test_a_session_that_went_on_with_the_cpu_is_an_error(name, provider, monkeypatch):
    """What onnxruntime does by itself where the libraries of CUDA cannot be loaded: a line in its log, and the CPU."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [provider, "CPUExecutionProvider"])
    with pytest.raises(BackendError, match=f"{provider} was asked for .*what became active is CPUExecutionProvider"):
        Policy.load(backend=name)


def test_the_cpu_by_name_is_the_cpu():
    with Policy.load(backend="cpu") as policy:
        assert policy.spec.horizon > 0
