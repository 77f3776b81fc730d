"""How a backend is found by name."""

from importlib.metadata import EntryPoint

import pytest

from roboalign.sdk import backends
from roboalign.sdk.backends import backend_names, find_backend
from roboalign.sdk.backends.onnx import OnnxBackend
from roboalign.sdk.errors import BackendError, ConfigError


def offer(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    point = EntryPoint(name=name, value=value, group=backends.ENTRY_POINT_GROUP)
    monkeypatch.setattr(backends, "entry_points", lambda group: [point])


def test_those_of_this_project_are_found_without_metadata(monkeypatch):
    monkeypatch.setattr(backends, "entry_points", lambda group: [])
    assert backend_names() == ("onnx", "tensorrt", "torch")
    assert find_backend("onnx") is OnnxBackend


def test_a_package_may_bring_another(monkeypatch):
    offer(monkeypatch, "mine", "roboalign.sdk.backends.onnx:OnnxBackend")
    assert backend_names() == ("mine", "onnx", "tensorrt", "torch")
    assert find_backend("mine") is OnnxBackend


def test_one_that_cannot_be_imported_says_why(monkeypatch):
    offer(monkeypatch, "mine", "not_installed_anywhere:Backend")
    with pytest.raises(BackendError, match=r"'mine' \(not_installed_anywhere:Backend\) cannot be imported"):
        find_backend("mine")


def test_an_unknown_one_lists_the_choices():
    with pytest.raises(ConfigError, match="choose one of auto, onnx, tensorrt, torch"):
        find_backend("cuda")
