"""Compiles graphs with TensorRT-RTX, NVIDIA's parser and compiler for its desktop GPUs, which needs no GPU to compile.

It stands in for the TensorRT of a board: parser, strong typing and data types are the same, kernels are not. A graph
that it refuses will hardly build on the board; one that it takes may still not. Each graph is compiled in a process of
its own, so that a native crash is an error and never a verdict. Engines are thrown away: they are for another GPU.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from roboalign.export.plan import ExportPlan
from roboalign.export.targets import find_target
from roboalign.sdk.errors import BackendError, ConfigError, missing_extra

__all__ = ["Compiled", "compile_graph", "compiler_version", "stand_ins"]

TIMEOUT_S = 1800
"""A graph of seven billion parameters takes minutes; more than this is a hang."""

_VERSION = "import tensorrt_rtx; print(tensorrt_rtx.__version__)"

_COMPILE = """
import json, sys
import tensorrt_rtx as trt
class Log(trt.ILogger):
    def __init__(self):
        trt.ILogger.__init__(self)
        self.lines = []
    def log(self, severity, text):
        if severity <= trt.ILogger.ERROR:
            self.lines.append(text)
log = Log()
builder = trt.Builder(log)
network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
parser = trt.OnnxParser(network, log)
if parser.parse_from_file(sys.argv[1]):
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    capability = getattr(trt.ComputeCapability, "SM" + sys.argv[2].replace(".", ""))
    assert config.set_compute_capability(capability, 0), "the compiler does not know this compute capability"
    is_taken = builder.build_serialized_network(network, config) is not None
    message = "" if is_taken else " ".join(log.lines)
else:
    is_taken = False
    message = parser.get_error(0).desc() if parser.num_errors else " ".join(log.lines)
print(json.dumps([is_taken, message]))
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Compiled:
    """The compiler's verdict about one graph."""

    capability: str
    """Compute capability it was compiled for."""
    is_taken: bool
    """Whether there was an engine."""
    message: str
    """Why not, in the compiler's words; empty when there was one."""


def stand_ins(plan: ExportPlan) -> tuple[str, ...]:
    """Returns the compute capabilities that stand in for the boards of a plan; no board is a ConfigError."""
    found = {find_target(board.target).stand_in for board in plan.boards}
    names = tuple(sorted(name for name in found if name is not None))
    if not names:
        raise ConfigError(f"--check rtx is for boards; for {plan.target} nothing is compiled")
    return names


def compiler_version(python: str = sys.executable) -> str:
    """Returns the version of TensorRT-RTX in an environment; BackendError when there is none."""
    done = subprocess.run([python, "-c", _VERSION], capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        raise missing_extra("tensorrt-rtx-cu13", "trt-check", "--check rtx")
    return done.stdout.strip()


def compile_graph(
    path: Path, capability: str, *, python: str = sys.executable, timeout_s: float = TIMEOUT_S
) -> Compiled:
    """Returns what the compiler says to a graph.

    Args:
        path: the ONNX file, beside its weights.
        capability: compute capability, e.g. `8.6`.
        python: of the environment that has the compiler.
        timeout_s: after which there is no verdict.

    Raises:
        BackendError: the compiler crashed, hung, or answered something else.
    """
    command = [python, "-c", _COMPILE, str(path), capability]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
    except subprocess.TimeoutExpired as err:
        raise BackendError(f"TensorRT-RTX gave no verdict about {path.name} within {timeout_s:g} s") from err
    try:
        is_taken, message = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError) as err:
        last = (done.stderr.strip().splitlines() or [""])[-1]
        raise BackendError(
            f"TensorRT-RTX died on {path.name} for {capability} (exit code {done.returncode}): {last[:200]}"
        ) from err
    return Compiled(capability=capability, is_taken=bool(is_taken), message=str(message)[:300])
