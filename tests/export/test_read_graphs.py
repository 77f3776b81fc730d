"""Graphs that read in place on codes: the numbers that are multiplied, and what comes out."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper
from tests.bundles import tiny_bench_bundle

from roboalign.bench.models import make_prompt
from roboalign.sdk.backends.in_place import CODE_WINDOWS, WINDOWS, InPlaceBackend
from roboalign.sdk.bundle import Bundle, read_bundle
from roboalign.sdk.quantized import read_weights
from roboalign.sdk.types import FloatArray

WORDS = (30, 41, 52, 63, 74, 85)
LAYERS = "model.language_model.layers"


@pytest.fixture(scope="module", params=["int4", "int8"])
def coded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small bundle whose weights are codes."""
    return tiny_bench_bundle(tmp_path_factory.getbasetemp(), request.param)


@pytest.fixture
def loaded(coded: Path, tmp_path: Path) -> list[onnx.GraphProto]:
    """Both graphs that read, a layer each."""
    return [in_memory(coded / f"{part}_codes.onnx", tmp_path).graph for part in ("lower", "upper")]


def in_memory(graph: Path, folder: Path) -> onnx.ModelProto:
    """A graph as onnxruntime has it when it was loaded: everything that is done once was done."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "loaded.onnx")
    onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    return onnx.load(folder / "loaded.onnx", load_external_data=False)


def without_codes_graph(bundle: Bundle) -> Bundle:
    graphs = {role: spec for role, spec in bundle.manifest.graphs.items() if not role.endswith("_codes")}
    return replace(bundle, manifest=replace(bundle.manifest, graphs=graphs))


def logits_of(bundle: Bundle, *, on_codes: bool) -> FloatArray:
    backend = InPlaceBackend(bundle, on_codes=on_codes)
    picture = np.random.default_rng(0).standard_normal((3, 96, 96), dtype=np.float32)
    decoding = backend.prefill(make_prompt(60), picture)
    rows = [decoding.logits.copy()]
    for word in WORDS:
        backend.step(decoding, word)
        rows.append(decoding.logits.copy())
    backend.close()
    return np.stack(rows)


def decoded(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> NDArray[np.float32]:
    """Returns [outputs, inputs] of what a MatMulNBits multiplies."""
    how = {attribute.name: attribute.i for attribute in node.attribute}
    packed, scales = (numpy_helper.to_array(constants[name]) for name in node.input[1:3])
    if how["bits"] == 4:
        packed = np.stack((packed & 15, packed >> 4), axis=-1)
    codes = packed.reshape(how["N"], how["K"]).astype(np.float32) - 2 ** (how["bits"] - 1)
    return codes * np.repeat(scales, how["block_size"], axis=1)


def test_the_weights_on_codes_are_those_of_the_file_side_by_side(coded, loaded) -> None:
    weights = read_weights(coded / "model.safetensors")
    assert weights is not None
    products = []
    for graph in loaded:
        constants = {tensor.name: tensor for tensor in graph.initializer}
        products += [decoded(node, constants) for node in graph.node if node.op_type == "MatMulNBits"]
    parts = [("self_attn.q", "self_attn.k", "self_attn.v"), ("self_attn.o",), ("mlp.gate", "mlp.up"), ("mlp.down",)]
    assert len(products) == 2 * len(parts)
    for index, product in enumerate(products):
        names = [f"{LAYERS}.{index // len(parts)}.{part}_proj.weight" for part in parts[index % len(parts)]]
        assert np.array_equal(product, np.concatenate([weights[name] for name in names]))


def test_nothing_but_the_step_is_left_to_do_for_a_token(loaded) -> None:
    kinds = [node.op_type for graph in loaded for node in graph.node]
    assert not {*kinds} & {"Concat", "Transpose", "Reshape", "BitShift", "BitwiseXor", "DequantizeLinear"}
    assert kinds.count("MatMul") == 1  # the scores


def test_scores_on_codes_differ_by_rounding_activations_alone(coded) -> None:
    """With and without the graph for it, as a bundle of an older version is without."""
    bundle = read_bundle(coded)
    exact = logits_of(bundle, on_codes=False)
    for found in (bundle, without_codes_graph(bundle)):
        rounded = logits_of(found, on_codes=True)
        assert 0.0 < np.abs(rounded - exact).mean() < 0.2 * np.abs(exact).mean()


def test_windows_are_smaller_on_codes(coded) -> None:
    bundle = read_bundle(coded)
    assert [InPlaceBackend(bundle, on_codes=on).windows for on in (True, False)] == [CODE_WINDOWS, WINDOWS]


def test_without_codes_a_layer_has_four_products_and_nothing_else_to_do_with_weights(
    tmp_path_factory, tmp_path
) -> None:
    bundle = tiny_bench_bundle(tmp_path_factory.getbasetemp(), "fp32")
    assert not [role for role in read_bundle(bundle).manifest.graphs if role.endswith("_codes")]
    graphs = [in_memory(bundle / f"{part}.onnx", tmp_path).graph for part in ("lower", "upper")]
    kinds = [node.op_type for graph in graphs for node in graph.node]
    assert kinds.count("MatMul") == 2 * 4 + 1  # and the scores
    assert not {"Concat", "Transpose"} & {*kinds}
