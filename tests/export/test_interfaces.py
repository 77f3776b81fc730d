"""What goes in and out of each graph is frozen: engines that were built on a board, and runtimes, count on it.

After a change on purpose: `pytest tests/export/test_interfaces.py --write-golden`, and read the difference. A change of
names or layout needs a new `FORMAT_VERSION`, so that an older runtime says what it met.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest
from tests.qwen_runs import write_qwen_run

from roboalign.export.graph_set import graph_maker
from roboalign.sdk.bundle import TensorSpec, read_bundle
from roboalign.trainer.backend import TorchBackend

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "graphs"

Sides = Mapping[str, tuple[Iterable[TensorSpec], Iterable[TensorSpec]]]


def table(graphs: Sides) -> str:
    lines = []
    for role, sides in sorted(graphs.items()):
        for side, tensors in zip(("in", "out"), sides, strict=True):
            for one in tensors:
                fields = f": {' '.join(one.fields)}" if one.fields else ""
                lines.append(f"{role} {side} {one.name} {one.dtype}{list(one.shape)} ({one.unit}){fields}")
    return "\n".join(lines) + "\n"


def compare(name: str, found: str, request: pytest.FixtureRequest) -> None:
    path = GOLDEN / f"{name}.txt"
    if request.config.getoption("--write-golden"):
        path.write_text(found, encoding="ascii")
    assert found == path.read_text(encoding="ascii")


def test_graphs_of_a_nano_policy_for_boards(
    half_export: tuple[Path, list[str]], request: pytest.FixtureRequest
) -> None:
    graphs = read_bundle(half_export[0]).manifest.graphs
    compare("nano-board", table({role: (spec.inputs, spec.outputs) for role, spec in graphs.items()}), request)


@pytest.mark.parametrize("version", ["qwen2_5_vl", "qwen3_vl"])
def test_graphs_of_a_qwen_policy(version: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """As they are described; `write_graph` compares the description with the file that it wrote."""
    backend = TorchBackend.open(write_qwen_run(tmp_path / "head-qwen", version))
    assert backend.head is not None
    model = backend.backbone.model
    parts = graph_maker(version)(model, backend.spec, backend.head.config.layer)
    found = {role: ([spec for spec, _ in part.inputs], part.outputs) for role, part in parts.items()}
    compare(version, table(found), request)
