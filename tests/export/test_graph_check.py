"""The static checker against what NVIDIA's compiler said to the same graphs, and against the graphs that we write."""

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper
from tests.graphs import CASES, STAND_INS, Case

from roboalign.export import all_targets, find_target
from roboalign.export.graph_check import COSTLY_OPERATORS, REFUSED_OPERATORS, GraphRules, check_graph, rules_of
from roboalign.export.plan import find_place, plan_export
from roboalign.export.shapes import run_size
from roboalign.export.targets import capability_dtypes
from roboalign.sdk.bundle import read_bundle, shipped_bundle_path

NOWHERE = Path("/nowhere")


def rules(capability: str, max_opset: int = 24) -> GraphRules:
    return GraphRules(name=f"sm {capability}", dtypes=capability_dtypes(capability), max_opset=max_opset)


def errors(model: onnx.ModelProto, of: GraphRules) -> list[str]:
    return [finding.rule for finding in check_graph(model, of) if finding.is_error]


@pytest.mark.parametrize(("index", "capability"), list(enumerate(STAND_INS)), ids=STAND_INS)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_the_verdict_is_that_of_the_compiler_and_by_the_rule_that_is_meant(
    case: Case, index: int, capability: str
) -> None:
    found = errors(case.build(), rules(capability))
    assert (not found) == case.compiles[index]
    if found:
        assert case.rule in found


@pytest.mark.parametrize("case", [case for case in CASES.values() if case.rule and all(case.compiles)])
def test_what_compiles_and_is_documented_otherwise_gets_a_note(case: Case) -> None:
    assert case.rule in {finding.rule for finding in check_graph(case.build(), rules("8.6")) if not finding.is_error}


@pytest.mark.parametrize("name", ["fp16", "bf16", "int8 weights and activations", "int4 in blocks of 128"])
def test_a_plain_graph_gets_no_note_either(name: str) -> None:
    assert check_graph(CASES[name].build(), rules("8.6")) == []


def test_a_type_that_only_thor_has_is_refused_for_orin_by_name() -> None:
    (finding,) = check_graph(CASES["fp8"].build(), rules(find_target("agx-orin-64gb").capability or ""))
    assert finding.message == "fp8, and sm 8.7 has fp32, fp16, bf16, int8, int4"


def test_every_operator_of_the_list_is_refused() -> None:
    for operator in sorted(REFUSED_OPERATORS):
        node = helper.make_node(operator, ["x"], ["y", "z", "v"], name="it")
        model = helper.make_model(helper.make_graph([node], "g", [], []), opset_imports=[helper.make_opsetid("", 20)])
        assert "operator" in errors(model, rules("12.0")), operator


def test_a_graph_that_is_none_is_an_error() -> None:
    node = helper.make_node("DynamicQuantizeLinear", ["x"], ["y"])
    model = helper.make_model(helper.make_graph([node], "g", [], []), opset_imports=[helper.make_opsetid("", 20)])
    assert "graph" in errors(model, rules("12.0"))


def test_no_operator_is_both_refused_and_taken() -> None:
    assert not REFUSED_OPERATORS & COSTLY_OPERATORS


@pytest.mark.parametrize(("limit", "found"), [(20, ["opset"]), (21, [])])
def test_int4_is_refused_where_its_operator_set_is_not_read(limit: int, found: list[str]) -> None:
    assert errors(CASES["int4 in blocks of 128"].build(), rules("8.7", max_opset=limit)) == found


def test_int4_under_the_operator_set_that_has_it_is_refused() -> None:
    model = CASES["int4 in blocks of 128"].build()
    model.opset_import[0].version = 20
    assert "opset" in errors(model, rules("8.7"))


def test_int8_blocks_under_the_operator_set_that_has_them_are_refused() -> None:
    model = CASES["int8 weights in blocks of 32"].build()
    model.opset_import[0].version = 20
    assert errors(model, rules("8.7")) == ["opset"]


def test_weights_that_are_not_there_are_found(tmp_path: Path) -> None:
    model = CASES["fp16"].build()
    (weight,) = model.graph.initializer
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="model.safetensors")
    (finding,) = check_graph(model, rules("8.7"), folder=tmp_path)
    assert (finding.rule, finding.where, finding.is_error) == ("data", "model.safetensors", True)
    (tmp_path / "model.safetensors").touch()
    assert check_graph(model, rules("8.7"), folder=tmp_path) == []


def test_onnxruntime_takes_its_own_operators_and_zero_points() -> None:
    of = GraphRules(name="cpu", dtypes=find_target("cpu").dtypes, max_opset=21, is_tensorrt=False)
    for name in ("MatMulNBits", "dynamic quantisation", "uint8 with a zero point"):
        assert errors(CASES[name].build(), of) == []
    assert errors(CASES["a custom operator"].build(), of) == ["domain"]
    assert errors(CASES["fp8"].build(), of) == ["type"]


@pytest.mark.parametrize("target", ["jetson", "host", *(name for name in all_targets() if name != "host")])
def test_a_file_format_that_the_oldest_onnxruntime_does_not_read_is_refused_for_every_machine(target: str) -> None:
    place = find_place(target, root=NOWHERE, query_gpu=lambda: "NVIDIA A100, 8.0, 40960")
    of = rules_of(plan_export(run_size(shipped_bundle_path()), place, "fp16"))
    model = CASES["fp16"].build()
    model.ir_version = of.max_ir
    assert errors(model, of) == []
    model.ir_version += 1
    (finding,) = check_graph(model, of)
    assert (finding.rule, finding.is_error) == ("IR", True)
    assert finding.message == "ONNX IR version 12, and onnxruntime 1.23, the last for Python 3.10, reads up to 11"


@pytest.mark.parametrize("target", ["jetson", "cpu", "agx-thor"])
def test_the_graphs_that_we_ship_are_free_of_errors(target: str) -> None:
    folder = shipped_bundle_path()
    of = rules_of(plan_export(run_size(folder), find_place(target, root=NOWHERE), "fp16"))
    portable = ("prefill", "step", "flow")
    graphs = read_bundle(folder).manifest.graphs
    assert {*portable} < {*graphs}
    for spec in (graphs[role] for role in (graphs if target == "cpu" else portable)):
        model = onnx.load(folder / spec.file, load_external_data=False)
        assert check_graph(model, of, folder=folder) == []


def test_a_portable_plan_allows_what_all_boards_take() -> None:
    of = rules_of(plan_export(run_size(shipped_bundle_path()), find_place("jetson", root=NOWHERE), "fp16"))
    assert of == GraphRules(name="jetson", dtypes=("fp32", "fp16", "bf16", "int8", "int4"), max_opset=20)


def test_a_plan_for_a_cpu_has_the_rules_of_onnxruntime() -> None:
    of = rules_of(plan_export(run_size(shipped_bundle_path()), find_place("cpu"), "fp16"))
    assert (of.is_tensorrt, of.max_opset) == (False, 21)
