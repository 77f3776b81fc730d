"""Rewriting a float32 graph to float16: which type every value gets, what is refused, and that values stay in range."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from roboalign.export.graph_check import GraphRules, check_graph
from roboalign.export.half import WIDE_OPERATORS, compute_in_half
from roboalign.export.half_range import measure_range
from roboalign.export.parity import BARS, check_parity
from roboalign.export.weights import stored_tensors
from roboalign.sdk.bundle import TensorSpec, file_record, read_bundle, write_manifest
from roboalign.sdk.bundle_check import SEAL_NAME, sealed_text
from roboalign.sdk.errors import BundleError, CheckFailed
from roboalign.sdk.policy import Policy

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16
WEIGHT = (np.random.default_rng(0).standard_normal((4, 4)) * 0.5).astype(np.float32)


def node(op: str, inputs: Sequence[str], output: str, **more: object) -> onnx.NodeProto:
    return helper.make_node(op, list(inputs), [output], name=f"the_{output}", **more)


def rewritten(
    nodes: Sequence[onnx.NodeProto],
    constants: dict[str, object] | None = None,
    *,
    given: str = "float16",
    wanted: str = "float16",
) -> onnx.ModelProto:
    """A graph of one input x and one output y, [2, 4], with the weight w, after it was rewritten and checked."""
    values = {"w": WEIGHT, **{k: np.asarray(v, np.float32) for k, v in (constants or {}).items()}}
    graph = helper.make_graph(
        list(nodes),
        "case",
        [helper.make_tensor_value_info("x", FLOAT, [2, 4])],
        [helper.make_tensor_value_info("y", FLOAT, [2, 4])],
        initializer=[numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True)

    def spec(name: str, dtype: str) -> TensorSpec:
        return TensorSpec(name=name, shape=(2, 4), dtype=dtype, unit="none")

    compute_in_half(model.graph, [spec("x", given)], [spec("y", wanted)], weights=frozenset({"w"}))
    for tensor in model.graph.initializer:
        if tensor.name == "w":
            tensor.CopyFrom(numpy_helper.from_array(WEIGHT.astype(np.float16), "w"))
    onnx.checker.check_model(model, full_check=True)
    rules = GraphRules(name="a board", dtypes=("fp32", "fp16"), max_opset=20)
    assert check_graph(model, rules) == []
    return model


def types(model: onnx.ModelProto) -> dict[str, int]:
    graph = onnx.shape_inference.infer_shapes(model).graph
    return {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.output, *graph.value_info)}


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def test_a_product_takes_the_weight_as_it_is_stored() -> None:
    model = rewritten([node("MatMul", ["x", "w"], "y")])
    assert [one.op_type for one in model.graph.node] == ["MatMul"]
    assert types(model) == {"x": HALF, "y": HALF}


def test_inputs_and_outputs_keep_the_type_that_they_are_described_with() -> None:
    model = rewritten([node("MatMul", ["x", "w"], "y")], given="float32", wanted="float32")
    assert [one.op_type for one in model.graph.node] == ["Cast", "MatMul", "Cast"]
    assert (types(model)["x"], types(model)["y"]) == (FLOAT, FLOAT)


def test_what_starts_and_ends_wide_stays_wide() -> None:
    """An Euler step, the scale of a state: rounded once, in the product, and nowhere else."""
    nodes = [node("MatMul", ["x", "w"], "v"), node("Div", ["v", "four"], "d"), node("Add", ["x", "d"], "y")]
    model = rewritten(nodes, {"four": 4}, given="float32", wanted="float32")
    assert types(model)["y"] == FLOAT
    x = np.full((2, 4), 1.00001, np.float32)
    assert not np.array_equal(run(model, x), run(model, np.ones((2, 4), np.float32)))


def test_the_root_of_a_mean_of_squares_survives_values_whose_squares_overflow() -> None:
    nodes = [
        node("Pow", ["x", "two"], "squares"),
        node("ReduceMean", ["squares"], "mean", keepdims=1),
        node("Add", ["mean", "epsilon"], "sum"),
        node("Sqrt", ["sum"], "root"),
        node("Reciprocal", ["root"], "scale"),
        node("Mul", ["x", "scale"], "normed"),
        node("MatMul", ["normed", "w"], "y"),
    ]
    model = rewritten(nodes, {"two": 2, "epsilon": 1e-6})
    assert [types(model)[name] for name in ("squares", "mean", "root", "scale", "y")] == [FLOAT] * 4 + [HALF]
    x = np.array([[1000, -500, 300, 2], [0, 0, 0, 0]], np.float16)
    root = np.sqrt((x.astype(np.float32) ** 2).mean() + 1e-6)
    assert np.allclose(run(model, x), x.astype(np.float32) / root @ WEIGHT, atol=2e-3)


def test_angles_are_wide_and_what_comes_of_them_is_not() -> None:
    nodes = [node("Cos", ["x"], "c"), node("MatMul", ["c", "w"], "v"), node("Mul", ["c", "v"], "y")]
    model = rewritten(nodes, given="float32")
    (cosine,) = [one for one in model.graph.node if one.op_type == "Cos"]
    assert (cosine.input[0], types(model)["x"], types(model)["c"]) == ("x", FLOAT, HALF)


def test_a_truth_value_does_not_widen_and_a_count_does() -> None:
    for of, kind in ((TensorProto.BOOL, HALF), (TensorProto.INT64, FLOAT)):
        nodes = [
            node("MatMul", ["x", "w"], "v"),
            node("Cast", ["v"], "i", to=of),
            node("Cast", ["i"], "f", to=FLOAT),
            node("Add", ["f", "v"], "y"),
        ]
        assert types(rewritten(nodes, wanted="float32" if kind == FLOAT else "float16"))["f"] == kind


def test_the_lowest_number_of_a_mask_stays_the_lowest() -> None:
    nodes = [
        node("MatMul", ["x", "w"], "v"),
        node("Less", ["v", "zero"], "low"),
        node("Where", ["low", "lowest", "v"], "filled"),
        node("Softmax", ["filled"], "y"),
    ]
    model = rewritten(nodes, {"zero": 0, "lowest": np.finfo(np.float32).min})
    x = np.array([[1, -1, 1, -1], [-1, 1, -1, 1]], np.float16)
    scores = x.astype(np.float32) @ WEIGHT
    assert np.array_equal(run(model, x) == 0, scores < 0)


@pytest.mark.parametrize(("value", "shown"), [(70000.0, r"7e\+04"), (1e-9, "1e-09")])
def test_a_constant_that_does_not_fit_is_an_error_with_its_name(value: float, shown: str) -> None:
    nodes = [node("MatMul", ["x", "w"], "v"), node("Mul", ["v", "factor"], "y")]
    with pytest.raises(CheckFailed, match=f"constant factor is {shown}, which float16 cannot hold"):
        rewritten(nodes, {"factor": value})


def test_an_operator_whose_type_nobody_settled_is_an_error_with_its_name() -> None:
    with pytest.raises(CheckFailed, match="no type is settled for Tan 'the_y' in half precision"):
        rewritten([node("Tan", ["x"], "y")])


def test_every_wide_operator_says_why() -> None:
    assert all(len(reason) > 5 for reason in WIDE_OPERATORS.values())


def _copy(source: Path, folder: Path) -> Path:
    folder.mkdir()
    for path in source.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def _sign(folder: Path) -> None:
    """Makes the manifest agree with files that were changed on purpose."""
    content = json.loads((folder / "manifest.json").read_text())
    del content[SEAL_NAME]
    for name in content["files"]:
        content["files"][name] = dataclasses.asdict(file_record(folder / name))
    (folder / "manifest.json").write_text(sealed_text(content))


def test_a_value_that_leaves_half_precision_is_named(half_export, observations, tmp_path) -> None:
    folder = _copy(half_export[0], tmp_path / "loud")
    path = folder / "model.safetensors"
    stored = stored_tensors(path)["model.language_model.layers.0.mlp.up_proj.weight"]
    content = bytearray(path.read_bytes())
    weight = np.frombuffer(content, np.float16, stored.num_bytes // 2, stored.offset)
    weight *= np.float16(4000)
    path.write_bytes(content)
    _sign(folder)
    with pytest.raises(CheckFailed, match=r"values up to 65504, and \w+ '\w+' of prefill\.onnx reaches"):
        measure_range(folder, observations[:1])


def test_watching_changes_no_answer_and_finds_what_is_largest(half_export, observations) -> None:
    found = measure_range(half_export[0], observations)
    assert found.largest == read_bundle(half_export[0]).manifest.parity.largest_half
    assert "onnx" in found.where


def test_half_precision_fails_the_bar_of_full_precision(half_export, observations) -> None:
    with pytest.raises(CheckFailed, match="parity failed"):
        check_parity(half_export[0], observations, bar=BARS["float32"], inputs="noise")


def test_a_wrong_graph_fails_the_bar_of_half_precision_too(half_export, observations, tmp_path) -> None:
    folder = _copy(half_export[0], tmp_path / "wrong")
    graph = onnx.load(folder / "flow.onnx", load_external_data=False)
    next(one for one in graph.graph.node if one.op_type == "Sin").op_type = "Cos"
    onnx.save(graph, folder / "flow.onnx")
    _sign(folder)
    with pytest.raises(CheckFailed, match="actions differ from PyTorch's by"):
        check_parity(folder, observations, bar=BARS["float16"], inputs="noise")


def test_a_step_without_keys_and_values_is_refused(half_export, tmp_path) -> None:
    """It once ended in a StopIteration."""
    folder = _copy(half_export[0], tmp_path / "without")
    manifest = read_bundle(folder).manifest
    step = manifest.graphs["step"]
    inputs = tuple(tensor for tensor in step.inputs if tensor.name != "kv")
    write_manifest(folder, replace(manifest, graphs={**manifest.graphs, "step": replace(step, inputs=inputs)}))
    with pytest.raises(BundleError, match=r"graph 'step' .* which this version does not know how to run"):
        Policy.load(folder)


def test_a_manifest_whose_types_are_not_those_of_the_graph_is_refused(half_export, tmp_path) -> None:
    folder = _copy(half_export[0], tmp_path / "typed")
    manifest = read_bundle(folder).manifest
    step = manifest.graphs["step"]
    inputs = tuple(replace(tensor, dtype="float32") if tensor.name == "kv" else tensor for tensor in step.inputs)
    write_manifest(folder, replace(manifest, graphs={**manifest.graphs, "step": replace(step, inputs=inputs)}))
    with pytest.raises(BundleError, match="other inputs or outputs than its manifest says"):
        Policy.load(folder)
