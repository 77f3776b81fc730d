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
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.graphs import CASES, STAND_INS

from roboalign.export.graph_check import GraphRules, check_graph
from roboalign.export.rtx import compile_graph
from roboalign.export.targets import all_targets, capability_dtypes


def compile_bundle(python: str, bundle: Path) -> int:
    """Prints what the compiler says to each graph of a bundle for each board's stand-in; returns the exit code."""
    num_refused = 0
    stand_ins = sorted({target.stand_in for target in all_targets().values() if target.stand_in})
    for path in sorted(bundle.glob("*.onnx")):
        for capability in stand_ins:
            start_s = time.monotonic()
            found = compile_graph(path, capability, python=python)
            num_refused += not found.is_taken
            words = "compiles" if found.is_taken else found.message
            print(f"{bundle.name}/{path.name:14} sm {capability:5} {words} {time.monotonic() - start_s:.1f} s")
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
            asked = [compile_graph(path, capability, python=options.python) for capability in STAND_INS]
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
            compiled = tuple(found.is_taken for found in asked)
            is_right = compiled == case.compiles == checked
            num_wrong += not is_right
            words = " ".join("yes" if verdict else "no " for verdict in compiled)
            print(f"{name:30} {words}  {'agrees' if is_right else f'TABLE {case.compiles} CHECKER {checked}'}")
            if asked[0].message:
                print(f"{'':32}{asked[0].message[:150]}")
    print(
        f"{len(CASES) - num_wrong} of {len(CASES)} graphs: compiler, table and checker agree for {', '.join(STAND_INS)}"
    )
    return 1 if num_wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
