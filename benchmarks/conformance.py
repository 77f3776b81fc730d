"""Asks NVIDIA's compiler about the graphs that the static checker has rules for, and compares the verdicts.

    python benchmarks/conformance.py --python VENV/bin/python
    python benchmarks/conformance.py --python VENV/bin/python --bundle sdk/models/nano-policy

The environment named by --python has tensorrt-rtx-cu13 1.7.1 and onnx; it needs no GPU. Each compilation is a process
of its own, since a native crash must not look like a verdict. With --bundle the graphs of a bundle are compiled
instead, for the two stand-ins of boards. Exit code 1 when compiler, table and checker are not of one mind, or a graph
of the bundle is refused.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.graphs import CASES, STAND_INS

from roboalign.export.graph_check import GraphRules, check_graph
from roboalign.export.targets import all_targets, capability_dtypes

COMPILE = """
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
if not parser.parse_from_file(sys.argv[1]):
    print(json.dumps([False, parser.get_error(0).desc() if parser.num_errors else "not parsed"]))
    raise SystemExit
config = builder.create_builder_config()
config.num_compute_capabilities = 1
assert config.set_compute_capability(getattr(trt.ComputeCapability, "SM" + sys.argv[2].replace(".", "")), 0)
plan = builder.build_serialized_network(network, config)
print(json.dumps([plan is not None, "" if plan is not None else " ".join(log.lines)[:300]]))
"""


def compile_graph(python: str, path: Path, capability: str) -> tuple[bool, str]:
    """Returns whether the compiler takes a graph, and what it says when it does not."""
    command = [python, "-c", COMPILE, str(path), capability]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode != 0:
        raise RuntimeError(f"the compiler died with {done.returncode} on {path.name}: {done.stderr[-300:]}")
    verdict, message = json.loads(done.stdout.splitlines()[-1])
    return bool(verdict), str(message)


def compile_bundle(python: str, bundle: Path) -> int:
    """Prints what the compiler says to each graph of a bundle for each board's stand-in; returns the exit code."""
    num_refused = 0
    stand_ins = sorted({target.stand_in for target in all_targets().values() if target.stand_in})
    for path in sorted(bundle.glob("*.onnx")):
        for capability in stand_ins:
            start_s = time.monotonic()
            verdict, message = compile_graph(python, path, capability)
            num_refused += not verdict
            seconds = time.monotonic() - start_s
            print(
                f"{bundle.name}/{path.name:14} sm {capability:5} {'compiles' if verdict else message} {seconds:.1f} s"
            )
    return 1 if num_refused else 0


def main() -> int:
    """Prints a row for each graph; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", required=True, help="Python of an environment with tensorrt-rtx-cu13")
    parser.add_argument("--bundle", type=Path, help="compile the graphs of this bundle instead")
    options = parser.parse_args()
    if options.bundle is not None:
        return compile_bundle(options.python, options.bundle)
    num_wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        for name, case in CASES.items():
            path = Path(folder) / "case.onnx"
            path.write_bytes(case.build().SerializeToString())
            asked = [compile_graph(options.python, path, capability) for capability in STAND_INS]
            checked = tuple(
                not any(
                    finding.is_error
                    for finding in check_graph(
                        case.build(),
                        GraphRules(name=capability, dtypes=capability_dtypes(capability), max_opset=24),
                    )
                )
                for capability in STAND_INS
            )
            compiled = tuple(verdict for verdict, _ in asked)
            is_right = compiled == case.compiles == checked
            num_wrong += not is_right
            words = " ".join("yes" if verdict else "no " for verdict in compiled)
            print(f"{name:30} {words}  {'agrees' if is_right else f'TABLE {case.compiles} CHECKER {checked}'}")
            for _, message in asked[:1]:
                print(f"{'':32}{message[:150]}" if message else "", end="\n" if message else "")
    print(
        f"{len(CASES) - num_wrong} of {len(CASES)} graphs: compiler, table and checker agree for {', '.join(STAND_INS)}"
    )
    return 1 if num_wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
