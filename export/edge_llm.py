"""Prepares a Qwen model for TensorRT Edge-LLM, NVIDIA's runtime for language models on Jetson.

That package pins its own torch and transformers, so its tools run in another environment, as processes. What is made:

    model/            checkpoint in float16 with the action rows, our tokenizer, and the template of our prompt;
                      quantised where that was asked for
    onnx/             what its exporter writes of it, for its C++ runtime; the server builds from model/ instead
    tokenizer.json, fast.json, edge_llm.json    what `sdk.Policy.load(..., backend="edge-llm")` reads

Each step is done once: an interrupted preparation goes on where it stopped. Engines are built by the server, on the
board. The action head is left out: the server gives no hidden states, so the model acts by action tokens.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from roboalign.export.plan import find_place, plan_export
from roboalign.export.plan_table import plan_lines
from roboalign.export.planner import WITHOUT_EDGE_LLM
from roboalign.export.shapes import run_size
from roboalign.export.targets import PORTABLE
from roboalign.sdk.backends.edge_llm import SERVER_VERSION, serve_command
from roboalign.sdk.bundle import EDGE_LLM_NAME
from roboalign.sdk.errors import BackendError, BundleError, CheckFailed, ConfigError
from roboalign.sdk.fast import FAST_FILE, FastCodec
from roboalign.sdk.types import STATE_NAMES
from roboalign.trainer.backbone import load_processor
from roboalign.trainer.backend import CAMERA, MAX_THOUGHT_TOKENS, codec_spec
from roboalign.trainer.checkpoint import Checkpoint, load_checkpoint
from roboalign.trainer.folders import move_into_place, partial_dir

__all__ = ["CHAT_TEMPLATE", "QUANTIZATION_OF", "EdgeLlmConfig", "prepare"]

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'user' -%}"
    "{{- '<|im_start|>user\n' -}}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'text' -%}{{- part['text'] -}}"
    "{%- else -%}{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}{%- endif -%}"
    "{%- endfor -%}"
    "{{- '<|im_end|>\n<|im_start|>assistant\n' -}}"
    "{%- else -%}{{- message['content'] -}}{%- endif -%}"
    "{%- endfor -%}"
)
"""The prompt of training, form `qwen`: no system turn, and the answer stays open so that it can be continued."""

QUANTIZATION_OF = {"fp16": None, "int4": "int4_awq", "int8": "int8_sq", "fp8": "fp8", "nvfp4": "nvfp4"}
"""Our precisions, by the names of `tensorrt-edgellm-quantize`."""

_MODEL_TYPES = ("qwen2_5_vl", "qwen3_vl")
_COPIED = ("preprocessor_config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json")
_LARGEST_FLOAT16 = 65504.0
_TIMEOUT_S = 6 * 3600
_VERSION = "from importlib.metadata import version; print(version('tensorrt-edgellm'))"


@dataclass(frozen=True, kw_only=True, slots=True)
class EdgeLlmConfig:
    """What to prepare, and with which environment."""

    run: Path
    """Checkpoint of a Qwen model that learnt action tokens (stage sft, align or head)."""
    out: Path
    """Folder to write."""
    python: Path
    """Python of the environment that has tensorrt-edgellm with its extra `tools`."""
    precision: str = "fp16"
    """Weights of the decoder, one of `QUANTIZATION_OF`."""
    device: str = "cuda"
    """Where it quantises: `cuda` or `cpu`."""
    has_onnx: bool = True
    """Whether its exporter writes its graphs too, which proves that it takes the model."""
    port: int = 8000
    """Port on the board at which the server is expected."""
    target: str = PORTABLE
    """Machine, as `export.find_place` takes it."""
    board: str | None = None
    """Which board `jetson` means."""
    jetpack: str | None = None
    """JetPack on it."""

    def __post_init__(self) -> None:
        if self.precision not in QUANTIZATION_OF:
            raise ConfigError(f"precision is {self.precision!r}, expected one of {', '.join(QUANTIZATION_OF)}")
        if self.device not in ("cuda", "cpu"):
            raise ConfigError(f"device is {self.device!r}, expected cuda or cpu")


def _check_plan(config: EdgeLlmConfig, root: Path, say: Callable[[str], None]) -> None:
    """Refuses a place without TensorRT Edge-LLM, and what the plan refuses there."""
    place = find_place(config.target, board=config.board, jetpack=config.jetpack, root=root)
    options = tuple((target, jetpack) for target, jetpack in place.options if jetpack and jetpack.edge_llm)
    if not options:
        found = ", ".join(
            f"{target.name} with JetPack {jetpack.name if jetpack else 'none'}" for target, jetpack in place.options
        )
        raise ConfigError(
            f"TensorRT Edge-LLM {SERVER_VERSION} is for JetPack 7.2 and later, found {found}; {WITHOUT_EDGE_LLM}"
        )
    size = replace(run_size(config.run), has_own_graphs=False)  # it is Edge-LLM that runs it, whatever we could write
    plan = plan_export(size, replace(place, options=options), config.precision)
    if plan.refusals:
        raise ConfigError(f"the plan is refused: {'; '.join(plan.refusals)}")
    for line in plan_lines(plan):
        say(line)


def prepare(config: EdgeLlmConfig, *, say: Callable[[str], None], root: Path = Path("/")) -> Path:
    """Writes the folder and returns it.

    Args:
        config: what to do.
        say: takes each line of progress.
        root: where the files that describe a board are looked for.

    Raises:
        ConfigError: the board has no TensorRT Edge-LLM, the plan refuses the model there, or the folder to write is
            something else.
        BundleError: the run is none of a Qwen model that learnt action tokens.
        BackendError: the environment lacks the package or has another version, or one of its tools failed.
        CheckFailed: a tool said that it was done, and what it was to write is not there.
    """
    if not config.out.name or (config.out.exists() and not (config.out / EDGE_LLM_NAME).is_file()):
        raise ConfigError(
            f"{config.out} exists and was not prepared for TensorRT Edge-LLM, so it is left alone; name another folder "
            "to write to"
        )
    source = load_checkpoint(config.run)
    family = _model_type(config.run)
    if family not in _MODEL_TYPES or FAST_FILE not in source.meta.files:
        raise BundleError(
            f"{config.run} holds a {family} model of stage {source.meta.stage}; TensorRT Edge-LLM is used for "
            f"{' and '.join(_MODEL_TYPES)} models that learnt action tokens (stage sft or later)"
        )
    _check_plan(config, root, say)
    version = _tool_version(config.python)
    work = partial_dir(config.out)
    work.mkdir(parents=True, exist_ok=True)
    steps = _Steps(work, {"source": source.sha256, "precision": config.precision, "edge_llm": version}, say)
    kind = QUANTIZATION_OF[config.precision]
    merged = "model" if kind is None else "merged"
    steps.run("checkpoint", merged, lambda folder: _write_checkpoint(config.run, folder))
    if kind is not None:
        steps.run("quantise", "model", lambda folder: _quantise(config, kind, work / merged, folder))
    if config.has_onnx:
        steps.run("export", "onnx", lambda folder: _export(config, work / "model", folder))
    name = _describe(config, source, version, work)
    shutil.rmtree(work / "merged", ignore_errors=True)
    steps.forget()
    move_into_place(work, config.out)
    say("copy the folder to the board, and start its server there, in its own environment:")
    say(f"  {serve_command(config.out, name, config.port)}")
    return config.out


def _describe(config: EdgeLlmConfig, source: Checkpoint, version: str, work: Path) -> str:
    """Writes what the backend reads beside the model, and returns the name under which it is to be served."""
    name = f"roboalign-{source.sha256[:12]}-{config.precision}"
    for file in ("tokenizer.json", FAST_FILE):
        shutil.copyfile(config.run / file, work / file)
    notes = source.meta.notes
    spec = codec_spec(
        load_processor(config.run).prompt_format,
        FastCodec.load(config.run),
        hidden_size=_hidden_size(config.run),
        max_thought_tokens=int(notes.get("thought_budget", MAX_THOUGHT_TOKENS)),
    )
    meta = source.meta
    spec = replace(spec, camera_names=(meta.camera or CAMERA,), state_names=meta.states or STATE_NAMES)
    record = {
        "name": name,
        "edge_llm": version,
        "precision": config.precision,
        "source_sha256": source.sha256,
        "url": f"http://127.0.0.1:{config.port}",
        "policy": asdict(spec),
    }
    (work / EDGE_LLM_NAME).write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return name


class _Steps:
    """Steps that were done, each with what it was done from, so that an interrupted preparation goes on."""

    def __init__(self, work: Path, inputs: Mapping[str, str], say: Callable[[str], None]) -> None:
        self._work, self._inputs, self._say = work, dict(inputs), say
        self._file = work / "steps.json"
        try:
            known = json.loads(self._file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            known = {}
        self._done: list[str] = known.get("done", []) if known.get("inputs") == self._inputs else []

    def run(self, step: str, name: str, write: Callable[[Path], None]) -> None:
        """Runs a step that writes a folder, unless it is there from the same inputs."""
        folder, temporary = self._work / name, self._work / f"{name}.tmp"
        if step in self._done and folder.is_dir():
            self._say(f"{step}: done before")
            return
        self._say(f"{step}: writing {name}")
        for stale in (folder, temporary):
            shutil.rmtree(stale, ignore_errors=True)
        write(temporary)
        temporary.rename(folder)
        self._done.append(step)
        self._file.write_text(json.dumps({"inputs": self._inputs, "done": self._done}) + "\n", encoding="utf-8")

    def forget(self) -> None:
        """Removes the notes: what they spoke of is finished."""
        self._file.unlink(missing_ok=True)


def _write_checkpoint(run: Path, folder: Path) -> None:
    """The model as the tools want it: float16 (they refuse float32), one file, our template."""
    folder.mkdir(parents=True)
    for name in _COPIED:
        if (run / name).is_file():
            shutil.copyfile(run / name, folder / name)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    for part in (config, config["text_config"], config["vision_config"]):
        part["dtype"] = "float16"
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    weights = {}
    for file in sorted(run.glob("model*.safetensors")):
        with safe_open(file, "pt") as stored:
            for name in stored.keys():  # noqa: SIM118  # a handle, not a mapping
                weights[name] = _as_float16(name, stored.get_tensor(name))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _as_float16(name: str, weight: torch.Tensor) -> torch.Tensor:
    if not weight.is_floating_point():
        raise BundleError(f"weight {name} holds codes of {weight.dtype}; prepare the checkpoint before quantisation")
    largest = float(weight.abs().max()) if weight.numel() else 0.0
    if not largest <= _LARGEST_FLOAT16:
        raise BundleError(f"weight {name} holds {largest:g}, which float16 cannot; TensorRT Edge-LLM computes in it")
    return weight.to(torch.float16).contiguous()


def _quantise(config: EdgeLlmConfig, kind: str, merged: Path, folder: Path) -> None:
    arguments = ["llm", "--model_dir", str(merged), "--output_dir", str(folder), "--quantization", kind]
    _run_tool(config.python, "tensorrt-edgellm-quantize", [*arguments, "--device", config.device])
    written = _read_json(folder / "config.json")
    if "quantization_config" not in written and not (folder / "hf_quant_config.json").is_file():
        raise CheckFailed(f"tensorrt-edgellm-quantize {kind} is done and states no quantisation in {folder}")
    for name in (*_COPIED, "chat_template.jinja"):
        if (merged / name).is_file() and not (folder / name).is_file():
            shutil.copyfile(merged / name, folder / name)


def _export(config: EdgeLlmConfig, model: Path, folder: Path) -> None:
    _run_tool(config.python, "tensorrt-edgellm-export", [str(model), str(folder)])
    missing = [name for name in ("llm/model.onnx", "visual/model.onnx") if not (folder / name).is_file()]
    if missing:
        raise CheckFailed(f"tensorrt-edgellm-export is done and wrote no {' and no '.join(missing)}")
    rows = _read_json(model / "config.json")["text_config"]["vocab_size"]
    found = _read_json(folder / "llm" / "config.json").get("vocab_size")
    if found != rows:
        raise CheckFailed(f"tensorrt-edgellm-export wrote {found} rows of the vocabulary, the model has {rows}")


def _tool_version(python: Path) -> str:
    """Returns the version of the package in an environment; another one than ours is a BackendError."""
    try:
        done = subprocess.run([str(python), "-c", _VERSION], capture_output=True, text=True, timeout=120)
    except (OSError, subprocess.TimeoutExpired) as err:
        raise BackendError(
            f"--edge-llm-python {python} cannot be started ({err}); make an environment for it: "
            f"python3.12 -m venv edge && edge/bin/pip install 'tensorrt-edgellm[tools]=={SERVER_VERSION}.0'"
        ) from err
    found = done.stdout.strip()
    if done.returncode != 0 or not found.startswith(f"{SERVER_VERSION}."):
        raise BackendError(
            f"{python} has tensorrt-edgellm {found or 'not at all'}, expected {SERVER_VERSION}; install there: "
            f"pip install 'tensorrt-edgellm[tools]=={SERVER_VERSION}.0'"
        )
    return found


def _run_tool(python: Path, tool: str, arguments: Sequence[str]) -> None:
    """Runs a tool of the other environment; its failure is one line, with the command that shows the rest."""
    command = [str(python.parent / tool), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as err:
        raise BackendError(f"{tool} of {python.parent} did not run: {err}") from err
    if done.returncode != 0:
        problem = _failure(done.returncode, done.stdout + done.stderr)
        raise BackendError(f"{tool} failed: {problem}; see all of it with: {shlex.join(command)}")


_REMEDIES = (
    (r"No module named '([\w.]+)'", "install the extra there: pip install 'tensorrt-edgellm[tools]'"),
    (r"Could not import module '([\w.]+)'", "torch and torchvision there do not fit each other"),
    (r"NVIDIA driver|CUDA (is not|error|unavailable)|not compiled with CUDA", "quantise where a GPU is, or on the CPU"),
    (r"[Oo]ut of memory|MemoryError", "take a machine with more memory"),
)


def _failure(code: int, output: str) -> str:
    """What went wrong, in the tool's last words, and what to do where that is known."""
    if code < 0:
        return f"it was ended by signal {-code}; most often that is a lack of memory"
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    causes = [line for line in lines if re.match(r"(<class ')?[\w.]*(Error|Exception)\b", line)]
    said = (causes or lines or ["it said nothing"])[-1][:300]
    remedy = next((advice for pattern, advice in _REMEDIES if re.search(pattern, output)), None)
    return said if remedy is None else f"{said}; {remedy}"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise CheckFailed(f"{path} is missing or no JSON ({err})") from err
    return dict(content)


def _model_type(run: Path) -> str:
    return str(json.loads((run / "config.json").read_text(encoding="utf-8")).get("model_type"))


def _hidden_size(run: Path) -> int:
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    return int(config["text_config"]["hidden_size"])
