"""Weights are stored once, at the offsets that the graphs are told, and nothing is rounded away in silence."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from roboalign.export.rounding import QUANTIZED_BITS, QuantizedWeight, quantizable, round_layers
from roboalign.export.weights import MAX_INLINE_BYTES, share_weights, write_weights
from roboalign.sdk.errors import CheckFailed, ConfigError


class Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(7, 3)
        self.norm = torch.nn.Parameter(torch.arange(3.0))
        self.out = torch.nn.Linear(3, 7, bias=False)
        self.out.weight = self.embed.weight


def graph_of(**arrays: np.ndarray) -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    return helper.make_model(helper.make_graph([], "g", [], [], initializer=tensors))


@pytest.mark.parametrize(("precision", "dtype"), [("fp16", np.float16), ("fp32", np.float32)])
def test_the_table_points_at_the_stored_values(tmp_path, precision, dtype):
    module, path = Tied(), tmp_path / "model.safetensors"
    entry = write_weights(module, path, precision)["norm"]
    found = np.frombuffer(path.read_bytes(), dtype, count=3, offset=entry.offset)
    assert found.tolist() == [0.0, 1.0, 2.0]


def test_tied_weights_are_stored_once_under_both_names(tmp_path):
    table = write_weights(Tied(), tmp_path / "model.safetensors", "fp16")
    assert table["out.weight"] == table["embed.weight"]
    assert sum(entry.num_bytes for entry in {e.offset: e for e in table.values()}.values()) == (21 + 3) * 2


def test_a_weight_that_overflows_fp16_is_refused(tmp_path):
    module = Tied()
    module.norm.data[0] = 1e6
    with pytest.raises(CheckFailed, match=r"norm does not fit fp16.*--precision fp32"):
        write_weights(module, tmp_path / "model.safetensors", "fp16")
    write_weights(module, tmp_path / "model.safetensors", "fp32")


def test_an_unknown_precision_is_named(tmp_path):
    with pytest.raises(ConfigError, match="'fp8', expected one of fp16, fp32, int4, int8"):
        write_weights(Tied(), tmp_path / "model.safetensors", "fp8")


def test_a_shared_weight_keeps_no_bytes_and_gets_a_cast(tmp_path):
    table = write_weights(Tied(), tmp_path / "model.safetensors", "fp16")
    graph = graph_of(**{"model.norm": np.arange(3, dtype=np.float32), "mask": np.ones(4, np.float32)})
    share_weights(graph, table, "model.")
    weight, mask = graph.graph.initializer
    assert (weight.data_location, weight.data_type) == (TensorProto.EXTERNAL, TensorProto.FLOAT16)
    assert not weight.raw_data
    assert len(mask.raw_data) == 16
    assert [(n.op_type, n.input[0], n.output[0]) for n in graph.graph.node] == [
        ("Cast", "model.norm.fp16", "model.norm")
    ]


def test_a_weight_in_disguise_is_refused(tmp_path):
    table = write_weights(Tied(), tmp_path / "model.safetensors", "fp16")
    with pytest.raises(CheckFailed, match="outside the shared weights"):
        share_weights(graph_of(copy=np.ones(MAX_INLINE_BYTES // 4 + 1, np.float32)), table, "model.")


def test_a_weight_of_another_shape_is_refused(tmp_path):
    table = write_weights(Tied(), tmp_path / "model.safetensors", "fp16")
    with pytest.raises(CheckFailed, match=r"\[4\] in the graph and \[3\]"):
        share_weights(graph_of(**{"model.norm": np.ones(4, np.float32)}), table, "model.")


class Layers(torch.nn.Module):
    """One of everything: tied embedding, linear layers large and small, a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(90, 64)
        self.out = torch.nn.Linear(64, 90, bias=False)
        self.out.weight = self.embed.weight
        self.wide = torch.nn.Linear(64, 72)
        self.small = torch.nn.Linear(8, 8)
        self.odd = torch.nn.Linear(45, 128)  # no whole blocks
        self.conv = torch.nn.Conv2d(16, 32, 3)


def codes_of(module: torch.nn.Module, precision: str) -> dict[str, QuantizedWeight]:
    return round_layers(quantizable(module), QUANTIZED_BITS[precision])


def test_large_layers_become_codes_and_the_rest_stays(tmp_path):
    module = Layers()
    codes = codes_of(module, "int4")
    table = write_weights(module, tmp_path / "model.safetensors", "int4", codes=codes)
    assert {name for name, entry in table.items() if entry.layout} == {"wide.weight", "conv.weight"}
    assert table["wide.weight"].num_bytes == 64 * 72 // 2
    assert (table["wide.weight"].shape, table["wide.weight.scale"].shape) == ((64, 72), (2, 72))
    assert (table["conv.weight"].layout.bits, table["conv.weight.scale"].shape) == (8, (32,))
    del codes["conv.weight"]
    kept = write_weights(module, tmp_path / "kept.safetensors", "int4", codes=codes)
    assert kept["conv.weight"].dtype == TensorProto.FLOAT16


def test_codes_take_the_share_of_half_precision_that_is_promised(tmp_path):
    module, sizes = Layers(), {}
    for precision in ("fp16", "int8", "int4"):
        codes = {} if precision == "fp16" else codes_of(module, precision)
        table = write_weights(module, tmp_path / f"{precision}.safetensors", precision, codes=codes)
        scale = table.get("wide.weight.scale")
        sizes[precision] = table["wide.weight"].num_bytes + (scale.num_bytes if scale else 0)
    assert sizes["int8"] <= 0.55 * sizes["fp16"]
    assert sizes["int4"] <= 0.3 * sizes["fp16"]


def test_codes_of_another_model_are_refused(tmp_path):
    with pytest.raises(CheckFailed, match=r"codes of conv\.weight, and model\.safetensors stores no such weight"):
        write_weights(Tied(), tmp_path / "model.safetensors", "int4", codes=codes_of(Layers(), "int4"))
    assert not (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize("value", [1e6, float("nan")])
def test_codes_are_not_made_of_a_weight_that_does_not_fit(value):
    module = Layers()
    module.wide.weight.data[0, 0] = value
    with pytest.raises(CheckFailed, match=r"wide\.weight does not fit codes.*--precision fp32"):
        codes_of(module, "int4")


def test_a_use_that_cannot_take_codes_is_refused(tmp_path):
    module = Layers()
    table = write_weights(module, tmp_path / "model.safetensors", "int8", codes=codes_of(module, "int8"))
    graph = graph_of(**{"model.wide.weight": np.ones((72, 64), np.float32)})
    graph.graph.node.add(op_type="Add", name="odd", input=["model.wide.weight", "x"], output=["y"])
    with pytest.raises(CheckFailed, match="used by Add odd"):
        share_weights(graph, table, "model.")


@pytest.mark.parametrize("precision", ["fp16", "int4"])
def test_the_same_weights_are_the_same_bytes_every_time(tmp_path, precision):
    """safetensors orders several entries of metadata by chance: an int4 export differed from run to run."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 64))
    contents = set()
    for _ in range(16):
        write_weights(module, tmp_path / "model.safetensors", precision)
        contents.add((tmp_path / "model.safetensors").read_bytes())
    assert len(contents) == 1
