"""Preparing a Qwen model for TensorRT Edge-LLM: with stand-ins for its tools, and with the tools themselves on request.

ROBOALIGN_EDGE_LLM_PYTHON=edge/bin/python pytest --also edge_llm tests/export/test_edge_llm.py
"""

import json
import os
import stat
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file
from tests.trainer.tiny_qwen import backbone as tiny_qwen

from roboalign.export.edge_llm import CHAT_TEMPLATE, EdgeLlmConfig, prepare
from roboalign.sdk.bundle import EDGE_LLM_NAME, policy_spec_from_json
from roboalign.sdk.errors import BackendError, BundleError, CheckFailed, ConfigError
from roboalign.sdk.fast import FastCodec
from roboalign.sdk.types import COMMANDED_STATE_NAMES
from roboalign.trainer.checkpoint import CheckpointMeta, save_checkpoint

TOOLS = ("tensorrt-edgellm-quantize", "tensorrt-edgellm-export")

TOOL = """#!{python}
# Stands in for a tool of TensorRT Edge-LLM: notes its arguments, and writes what the real one was seen to write.
import json, pathlib, shutil, sys
folder = pathlib.Path(__file__).parent
with (folder / "calls").open("a") as calls:
    calls.write(json.dumps([pathlib.Path(sys.argv[0]).name, *sys.argv[1:]]) + "\\n")
behaviour = json.loads((folder / "behaviour.json").read_text())
if behaviour.get("says"):
    print(behaviour["says"], file=sys.stderr)
    sys.exit(1)
if "quantize" in sys.argv[0]:
    given = dict(zip(sys.argv[2::2], sys.argv[3::2]))
    shutil.copytree(given["--model_dir"], given["--output_dir"])
    config = pathlib.Path(given["--output_dir"], "config.json")
    content = json.loads(config.read_text())
    if not behaviour.get("is_idle"):
        content["quantization_config"] = {{"quant_algo": given["--quantization"]}}
    config.write_text(json.dumps(content))
else:
    source, out = map(pathlib.Path, sys.argv[1:])
    rows = json.loads((source / "config.json").read_text())["text_config"]["vocab_size"]
    for part in behaviour.get("parts", ["llm", "visual"]):
        (out / part).mkdir(parents=True)
        (out / part / "model.onnx").touch()
    (out / "llm" / "config.json").write_text(json.dumps({{"vocab_size": rows - behaviour.get("lost_rows", 0)}}))
"""

PYTHON = """#!/bin/sh
echo {version}
"""


class Environment:
    """A folder that looks like an environment with the package in it."""

    def __init__(self, folder: Path, version: str = "0.11.0") -> None:
        self.folder = folder
        folder.mkdir()
        self._write("python", PYTHON.format(version=version))
        for tool in TOOLS:
            self._write(tool, TOOL.format(python=sys.executable))
        self.behave()

    @property
    def python(self) -> Path:
        return self.folder / "python"

    @property
    def calls(self) -> list[list[str]]:
        file = self.folder / "calls"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def behave(self, **behaviour: object) -> None:
        (self.folder / "behaviour.json").write_text(json.dumps(behaviour))

    def _write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of stage sft of a random Qwen2.5-VL, in float32 as training leaves it."""
    steps = np.random.default_rng(0).normal(size=(100, 4, 5)).astype(np.float32).cumsum(axis=1)
    codec = FastCodec.fit(steps * 0.01, rate_hz=10.0, vocab_size=64)
    member = tiny_qwen("qwen2_5_vl", num_actions=codec.vocab_size)
    meta = CheckpointMeta(
        stage="sft", recipe="tiny", notes={"thought_budget": 20}, camera="desk", state_names=COMMANDED_STATE_NAMES
    )
    out = tmp_path_factory.mktemp("runs") / "sft-qwen"
    save_checkpoint(out, model=member.model, processor=member.processor, codec=codec, meta=meta)
    return out


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(tmp_path / "bin")


@pytest.fixture
def config(run: Path, environment: Environment, tmp_path: Path) -> EdgeLlmConfig:
    return EdgeLlmConfig(run=run, out=tmp_path / "out", python=environment.python, target="agx-orin-64gb")


def quiet(line: str) -> None:
    pass


def test_the_folder_holds_what_the_server_and_the_backend_read(config: EdgeLlmConfig, environment: Environment) -> None:
    lines: list[str] = []
    out = prepare(config, say=lines.append)
    assert {path.name for path in out.iterdir()} == {"model", "onnx", "tokenizer.json", "fast.json", EDGE_LLM_NAME}
    assert (out / "model" / "chat_template.jinja").read_text() == CHAT_TEMPLATE
    record = json.loads((out / EDGE_LLM_NAME).read_text())
    spec = policy_spec_from_json(record["policy"], "it")
    assert (spec.prompt.form, spec.max_thought_tokens, spec.has_head, spec.has_actions) == ("qwen", 20, False, True)
    assert (spec.camera_names, spec.state_names) == (("desk",), COMMANDED_STATE_NAMES)
    assert lines[-1].strip().startswith(f"tensorrt-edgellm-serve {out}/model --served-model-name {record['name']}")
    assert "--host 127.0.0.1" in lines[-1]
    ((tool, source, target),) = environment.calls
    assert (tool, Path(source).name, Path(target).name) == ("tensorrt-edgellm-export", "model", "onnx.tmp")


def test_weights_and_action_rows_become_float16_and_nothing_else(config: EdgeLlmConfig, run: Path) -> None:
    out = prepare(replace(config, has_onnx=False), say=quiet)
    before, after = load_file(run / "model.safetensors"), load_file(out / "model" / "model.safetensors")
    assert set(before) == set(after)
    assert {weight.dtype for weight in after.values()} == {torch.float16}
    assert all(torch.equal(weight.half(), after[name]) for name, weight in before.items())
    written = json.loads((out / "model" / "config.json").read_text())
    assert written["text_config"]["dtype"] == written["dtype"] == "float16"


def test_a_weight_beyond_float16_is_refused_by_name(config: EdgeLlmConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("roboalign.export.edge_llm._LARGEST_FLOAT16", 0.01)
    with pytest.raises(BundleError, match=r"weight .*model\.\S+ holds [\d.]+, which float16 cannot"):
        prepare(config, say=quiet)


@pytest.mark.parametrize(("precision", "kind"), [("int4", "int4_awq"), ("int8", "int8_sq")])
def test_quantising_is_asked_of_its_own_tool(
    config: EdgeLlmConfig, environment: Environment, precision: str, kind: str
) -> None:
    out = prepare(replace(config, precision=precision, device="cpu"), say=quiet)
    call = environment.calls[0]
    assert call[:2] == ["tensorrt-edgellm-quantize", "llm"]
    assert dict(zip(call[2::2], call[3::2], strict=True)) == {
        "--model_dir": str(out.with_name("out.partial") / "merged"),
        "--output_dir": str(out.with_name("out.partial") / "model.tmp"),
        "--quantization": kind,
        "--device": "cpu",
    }
    assert (out / "model" / "chat_template.jinja").is_file()
    assert not (out / "merged").exists()


def test_a_tool_that_quantised_nothing_is_an_error(config: EdgeLlmConfig, environment: Environment) -> None:
    environment.behave(is_idle=True)
    with pytest.raises(CheckFailed, match="is done and states no quantisation"):
        prepare(replace(config, precision="int4"), say=quiet)
    assert not config.out.exists()


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [({"parts": ["llm"]}, r"wrote no visual/model\.onnx"), ({"lost_rows": 64}, r"wrote \d+ rows of the vocabulary")],
)
def test_an_export_without_vision_or_action_rows_is_an_error(
    config: EdgeLlmConfig, environment: Environment, behaviour: dict[str, object], message: str
) -> None:
    environment.behave(**behaviour)
    with pytest.raises(CheckFailed, match=message):
        prepare(config, say=quiet)


def test_what_was_interrupted_goes_on_and_other_inputs_start_anew(
    config: EdgeLlmConfig, environment: Environment
) -> None:
    config = replace(config, precision="int4")
    environment.behave(parts=["llm"])
    with pytest.raises(CheckFailed):
        prepare(config, say=quiet)
    environment.behave()
    lines: list[str] = []
    prepare(config, say=lines.append)
    assert {"checkpoint: done before", "quantise: done before", "export: writing onnx"} <= set(lines)
    assert [call[0] for call in environment.calls] == [TOOLS[0], TOOLS[1], TOOLS[1]]
    environment.behave(says="RuntimeError: no")
    with pytest.raises(BackendError):
        prepare(replace(config, precision="int8"), say=lines.append)
    assert lines[-1] == "quantise: writing model"


@pytest.mark.parametrize(
    ("says", "message"),
    [
        (
            "Traceback\n  File x\nModuleNotFoundError: No module named 'modelopt'",
            r"ModuleNotFoundError: No module named 'modelopt'; install the extra there",
        ),
        ("RuntimeError: Found no NVIDIA driver on your system\nbye", r"Found no NVIDIA driver.*; quantise where a GPU"),
        (
            "TorchExportError: Failed to export\n\n<class 'TypeError'>: FP16Linear expects float16 input\n\n(Refer)",
            r"failed: <class 'TypeError'>: FP16Linear expects float16 input; see all of it with: ",
        ),
        ("  something odd  ", "failed: something odd; see all of it with: "),
    ],
)
def test_a_failure_is_one_line_with_the_cause(
    config: EdgeLlmConfig, environment: Environment, says: str, message: str
) -> None:
    environment.behave(says=says)
    with pytest.raises(BackendError, match=message) as caught:
        prepare(config, say=quiet)
    assert "\n" not in str(caught.value)
    assert not config.out.exists()


def test_another_version_or_no_environment_is_refused_first(config: EdgeLlmConfig, tmp_path: Path) -> None:
    older = Environment(tmp_path / "older", version="0.6.1")
    with pytest.raises(BackendError, match=r"has tensorrt-edgellm 0\.6\.1, expected 0\.11; install there: pip"):
        prepare(replace(config, python=older.python), say=quiet)
    with pytest.raises(BackendError, match=r"cannot be started.*make an environment"):
        prepare(replace(config, python=tmp_path / "nowhere" / "python"), say=quiet)
    assert not config.out.with_name("out.partial").exists()


def test_a_folder_that_is_something_else_is_never_replaced(config: EdgeLlmConfig) -> None:
    """It was moved aside and removed when the tools had done their work."""
    config.out.mkdir()
    (config.out / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="was not prepared for TensorRT Edge-LLM, so it is left alone"):
        prepare(config, say=quiet)
    assert (config.out / "thesis.txt").is_file()
    (config.out / "thesis.txt").rename(config.out / EDGE_LLM_NAME)
    assert (prepare(replace(config, has_onnx=False), say=quiet) / "model").is_dir()  # an older one of ours is replaced


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"jetpack": "6.2"}, r"JetPack 7\.2 and later, found agx-orin-64gb with JetPack 6\.2; let a workstation think"),
        ({"target": "cpu"}, "found cpu with JetPack none"),
        ({"precision": "fp8"}, "the plan is refused: fp8 does not run on Jetson AGX Orin"),
    ],
)
def test_a_board_without_it_is_refused_with_what_is_used_instead(
    config: EdgeLlmConfig, change: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        prepare(replace(config, **change), say=quiet)  # type: ignore[arg-type]


def test_a_model_of_ours_is_refused(config: EdgeLlmConfig, make_run: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"holds a roboalign_nano model .*qwen2_5_vl and qwen3_vl"):
        prepare(replace(config, run=make_run(tmp_path / "head-nano")), say=quiet)


@pytest.mark.edge_llm
def test_its_own_exporter_takes_the_checkpoint(config: EdgeLlmConfig) -> None:
    """Graphs of language and vision, from the real package on a CPU; its plug-ins run on a board only."""
    python = os.environ.get("ROBOALIGN_EDGE_LLM_PYTHON")
    if python is None:
        pytest.fail("name the Python of an environment with tensorrt-edgellm[tools] in ROBOALIGN_EDGE_LLM_PYTHON")
    out = prepare(replace(config, python=Path(python)), say=quiet)
    rows = json.loads((out / "model" / "config.json").read_text())["text_config"]["vocab_size"]
    language = onnx.load(out / "onnx" / "llm" / "model.onnx", load_external_data=False)
    vision = onnx.load(out / "onnx" / "visual" / "model.onnx", load_external_data=False)
    assert {node.domain for graph in (language, vision) for node in graph.graph.node} >= {"trt_edgellm"}
    (logits,) = [value for value in language.graph.output if value.name == "logits"]
    assert logits.type.tensor_type.shape.dim[-1].dim_value == rows
    assert (out / "onnx" / "llm" / "chat_template.jinja").read_text() == CHAT_TEMPLATE
