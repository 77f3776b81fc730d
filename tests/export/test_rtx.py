"""Compiling with TensorRT-RTX: for real where it is installed (--also rtx), else a stub that answers as told."""

import json
import os
import sys
from pathlib import Path

import pytest
from tests.bundles import copy_portable
from tests.graphs import CASES, STAND_INS, Case

from roboalign.export import ExportConfig, bundle_writer, export, find_place, plan_export, run_size
from roboalign.export.rtx import compile_graph, compiler_version, stand_ins
from roboalign.sdk.bundle import IN_PLACE_ROLES, read_bundle, shipped_bundle_path
from roboalign.sdk.errors import BackendError, CheckFailed, ConfigError

RTX_PYTHON = os.environ.get("ROBOALIGN_RTX_PYTHON", sys.executable)
NOWHERE = Path("/nowhere")

STUB = """
import os
__version__ = "0.stub"
class ILogger:
    ERROR = 1
    def __init__(self): pass
class NetworkDefinitionCreationFlag:
    STRONGLY_TYPED = 1
class ComputeCapability:
    SM86, SM120 = 86, 120
class Error:
    def desc(self): return "no such operator"
class OnnxParser:
    num_errors = 1
    def __init__(self, network, log): pass
    def get_error(self, index): return Error()
    def parse_from_file(self, path):
        text = open(path).read()
        if text == "hang":
            import time; time.sleep(60)
        if text == "crash":
            os.abort()
        return text != "unknown"
class Config:
    def set_compute_capability(self, capability, index):
        self.capability = capability
        return True
class Builder:
    def __init__(self, log): self.log = log
    def create_network(self, flags): return object()
    def create_builder_config(self): return Config()
    def build_serialized_network(self, network, config):
        if config.capability == 86 and os.environ.get("STUB_REFUSES"):
            self.log.log(1, "Cannot compile for target(s) sm86")
            return None
        return b"engine"
"""


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A compiler of the documented API that takes or refuses as it is told; returns a folder for graphs."""
    package = tmp_path / "stub" / "tensorrt_rtx"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(STUB)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(package.parent), os.environ.get("PYTHONPATH", "")]))
    return tmp_path


def graph(folder: Path, content: str) -> Path:
    path = folder / "case.onnx"
    path.write_text(content)
    return path


@pytest.mark.rtx
@pytest.mark.parametrize(("index", "capability"), list(enumerate(STAND_INS)), ids=STAND_INS)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_the_compiler_still_says_what_the_table_says(case: Case, index: int, capability: str, tmp_path: Path) -> None:
    path = tmp_path / "case.onnx"
    path.write_bytes(case.build().SerializeToString())
    found = compile_graph(path, capability, python=RTX_PYTHON)
    assert found.is_taken == case.compiles[index], found.message


@pytest.mark.rtx
@pytest.mark.parametrize("bundle", ["nano-policy", "nano-so101"])
def test_the_graphs_that_we_ship_compile_for_every_stand_in(bundle: str) -> None:
    folder = shipped_bundle_path(bundle)
    plan = plan_export(run_size(folder), find_place("jetson", root=NOWHERE), "fp16")
    for path in sorted(folder.glob("*.onnx")):
        for capability in stand_ins(plan):
            assert compile_graph(path, capability, python=RTX_PYTHON).is_taken


@pytest.mark.rtx
def test_graphs_in_half_precision_compile_for_every_stand_in(half_export: tuple[Path, list[str]]) -> None:
    paths = sorted(half_export[0].glob("*.onnx"))
    assert len(paths) == 3
    for path in paths:
        for capability in ("8.6", "12.0"):
            found = compile_graph(path, capability, python=RTX_PYTHON)
            assert found.is_taken, found.message


def test_a_portable_plan_is_compiled_for_orin_and_thor() -> None:
    size = run_size(shipped_bundle_path())
    assert stand_ins(plan_export(size, find_place("jetson", root=NOWHERE), "fp16")) == ("12.0", "8.6")
    assert stand_ins(plan_export(size, find_place("agx-thor"), "fp16")) == ("12.0",)
    with pytest.raises(ConfigError, match="is for boards; for cpu nothing is compiled"):
        stand_ins(plan_export(size, find_place("cpu"), "fp16"))


def test_verdict_and_reason_are_the_compilers(stub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert compile_graph(graph(stub, "fine"), "8.6").is_taken
    unknown = compile_graph(graph(stub, "unknown"), "8.6")
    assert (unknown.is_taken, unknown.message) == (False, "no such operator")
    monkeypatch.setenv("STUB_REFUSES", "1")
    refused = compile_graph(graph(stub, "fine"), "8.6")
    assert (refused.is_taken, refused.message) == (False, "Cannot compile for target(s) sm86")
    assert compile_graph(graph(stub, "fine"), "12.0").is_taken


def test_a_crash_is_an_error_and_no_verdict(stub: Path) -> None:
    with pytest.raises(BackendError, match=r"died on case\.onnx for 8\.6 \(exit code -6\)"):
        compile_graph(graph(stub, "crash"), "8.6")


def test_a_hang_is_an_error_and_no_verdict(stub: Path) -> None:
    with pytest.raises(BackendError, match=r"no verdict about case\.onnx within 2 s"):
        compile_graph(graph(stub, "hang"), "8.6", timeout_s=2)


def test_a_capability_that_the_compiler_lacks_is_an_error(stub: Path) -> None:
    with pytest.raises(BackendError, match="SM87"):
        compile_graph(graph(stub, "fine"), "8.7")


def test_an_environment_without_the_compiler_is_told_what_to_install(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    with pytest.raises(BackendError, match=r"pip install 'roboalign\[trt-check\]'"):
        compiler_version(str(python))


def test_an_unknown_check_is_refused() -> None:
    with pytest.raises(ConfigError, match="'polygraphy', expected one of static, rtx"):
        ExportConfig(check="polygraphy")


def test_export_compiles_every_graph_and_records_it(
    stub: Path, bundle: Path, run: Path, observations: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str]] = []

    def compile_or_note(path: Path, capability: str) -> object:
        asked.append((path.name, capability))
        return compile_graph(graph(stub, "fine"), capability)

    monkeypatch.setattr(bundle_writer, "compile_graph", compile_or_note)
    monkeypatch.setattr(bundle_writer, "write_graphs", lambda *args, **more: copy_portable(bundle, args[3]))
    config = ExportConfig(run=run, target="jetson", check="rtx", out=stub / "out")
    out = export(config, observations=observations, say=lambda line: None, root=stub)
    roles = sorted(set(read_bundle(bundle).manifest.graphs) - set(IN_PLACE_ROLES))
    assert {"flow", "prefill", "step"} <= set(roles)
    assert sorted(asked) == [(f"{role}.onnx", c) for role in roles for c in ("12.0", "8.6")]
    compiled = json.loads((out / "plan.json").read_text())["compiled"]
    assert compiled["compiler"] == "tensorrt-rtx 0.stub"
    assert set(compiled["capabilities"]) == {f"{role}.onnx" for role in roles}
    monkeypatch.setenv("STUB_REFUSES", "1")
    with pytest.raises(CheckFailed, match=r"TensorRT-RTX refuses .*\.onnx for 8\.6: Cannot compile"):
        export(config, observations=observations, say=lambda line: None, root=stub)
