"""Weights as codes: what is read back is what was rounded, and rounding is as good as it says."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch_file

from roboalign.sdk.errors import BundleError, ConfigError
from roboalign.sdk.quantized import (
    BLOCKS,
    METADATA_KEY,
    QuantizedLayout,
    block_of,
    dequantize,
    layouts_to_metadata,
    pack_codes,
    quantize_channels,
    quantize_matrix,
    read_codes,
    read_weights,
)

BLOCK = BLOCKS[0]
RNG = np.random.default_rng(0)


def write(path, weight, bits, **extra):
    codes, scales, layout = quantize_matrix(weight, bits)
    tensors = {"w": pack_codes(codes, bits), "w.scale": scales, "b": np.arange(3, dtype=np.float16), **extra}
    save_file(tensors, path, metadata=layouts_to_metadata({"w": layout}))
    return dequantize(codes, scales, layout)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", [(64, 6), (48, 5), (16, 3)])
def test_what_is_read_is_what_was_rounded_transposed(tmp_path, bits, shape):
    weight = RNG.normal(size=shape).astype(np.float32)
    decoded = write(tmp_path / "w.safetensors", weight, bits)
    found = read_weights(tmp_path / "w.safetensors")
    assert found["w"].dtype == np.float32
    assert np.array_equal(found["w"], decoded.T)
    assert found["b"].tolist() == [0.0, 1.0, 2.0]
    # Half a step of the block's scale, or what was cut off its ends.
    assert np.abs(decoded - weight).max() < np.abs(weight).max() * (0.45 if bits == 4 else 0.03)


@pytest.mark.parametrize(("num_inputs", "block"), [(160, 32), (432, 16), (16, 16)])
def test_blocks_are_whole_where_they_can_be(num_inputs, block):
    assert block_of(num_inputs) == block
    _, scales, layout = quantize_matrix(np.ones((num_inputs, 2), np.float32), 4)
    assert (layout.block, len(scales)) == (block, num_inputs // block)


def test_a_matrix_without_whole_blocks_is_refused():
    assert block_of(45) is None
    with pytest.raises(ConfigError, match="45 inputs has no whole blocks, expected a multiple of 16"):
        quantize_matrix(np.ones((45, 2), np.float32), 4)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_step_is_as_small_as_the_block_allows(bits):
    """On an even grid nothing is lost: the codes are the numbers themselves."""
    highest = 2 ** (bits - 1) - 1
    grid = np.tile(np.arange(-highest, highest + 1, dtype=np.float32), 1 + BLOCK // highest)[: 2 * BLOCK, None] / 8
    grid[[0, BLOCK]] = highest / 8  # each block has the largest value
    codes, scales, layout = quantize_matrix(grid, bits)
    assert scales.tolist() == [[0.125], [0.125]]
    assert np.array_equal(dequantize(codes, scales, layout), grid)


def test_a_scale_that_cuts_one_outlier_off_wins_when_that_costs_less():
    block = np.full((BLOCK, 1), 0.4, np.float32)
    block[0] = 4.0
    found = dequantize(*quantize_matrix(block, 4))
    plain = 4.0 / 7
    naive = np.clip(np.rint(block / plain), -8, 7) * plain
    assert ((found - block) ** 2).sum() < ((naive - block) ** 2).sum() * 0.7


def test_channels_have_scales_of_their_own():
    kernel = RNG.normal(size=(4, 3, 3, 3)).astype(np.float32) * np.array([1, 10, 100, 0])[:, None, None, None]
    codes, scales = quantize_channels(kernel.astype(np.float32), 8)
    assert (codes.shape, scales.shape) == (kernel.shape, (4,))
    decoded = dequantize(codes, scales, QuantizedLayout(bits=8, shape=kernel.shape, block=0))
    largest = np.abs(kernel).reshape(4, -1).max(axis=1)
    assert (np.abs(decoded - kernel).reshape(4, -1).max(axis=1) <= largest * 0.006).all()
    assert not decoded[3].any()


def test_onnx_packs_four_bits_alike():
    codes = RNG.integers(-8, 8, size=(5, 3)).astype(np.int8)
    tensor = onnx.helper.make_tensor("t", TensorProto.INT4, codes.shape, codes.reshape(-1))
    packed = pack_codes(codes, 4)
    assert onnx.numpy_helper.from_array(packed).raw_data == tensor.raw_data or bytes(tensor.int32_data) == bytes(packed)
    raw = TensorProto(name="t", data_type=TensorProto.INT4, dims=codes.shape, raw_data=packed.tobytes())
    assert np.array_equal(onnx.numpy_helper.to_array(raw).astype(np.int8), codes)


def test_a_file_without_codes_is_left_to_others(tmp_path):
    save_file({"w": np.ones(3, np.float16)}, tmp_path / "w.safetensors")
    assert read_weights(tmp_path / "w.safetensors") is None


@pytest.mark.parametrize(
    "metadata",
    [
        "not json",
        '{"w": {"bits": 3, "shape": [16, 2], "block": 32}}',
        '{"w": {"bits": 4, "shape": [999, 2], "block": 32}}',
        '{"w": {"bits": 8, "shape": [16, 2], "block": 32}}',
        '{"missing": {"bits": 4, "shape": [16, 2], "block": 32}}',
        '{"w": {"bits": 4}}',
        "[]",
    ],
)
def test_metadata_that_does_not_fit_is_refused_with_the_file(tmp_path, metadata):
    codes, scales, _ = quantize_matrix(np.ones((16, 2), np.float32), 4)
    path = tmp_path / "w.safetensors"
    save_file({"w": pack_codes(codes, 4), "w.scale": scales}, path, metadata={METADATA_KEY: metadata})
    with pytest.raises(BundleError, match=r"w\.safetensors are damaged"):
        read_weights(path)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        # Each of these was decoded to other weights, or to no numbers, without a word.
        ({"w.scale": np.full((2, 2), np.nan, np.float16)}, "finite"),
        ({"w.scale": np.ones((3, 2), np.float16)}, r"\[2, 2\]"),
        ({"w.scale": np.ones((2, 1), np.float16)}, r"\[2, 2\]"),
        ({"w.scale": np.ones((2, 2), np.float64)}, "float16"),
        ({"w": np.zeros(65, np.uint8)}, r"uint8\[64\]"),
        ({"w": np.full(64, -1, np.int8)}, r"uint8\[64\]"),
    ],
)
def test_codes_and_scales_that_do_not_fit_the_layout_are_refused(tmp_path, changes, what):
    codes, scales, layout = quantize_matrix(np.ones((64, 2), np.float32), 4)
    path = tmp_path / "w.safetensors"
    tensors = {"w": pack_codes(codes, 4), "w.scale": scales} | changes
    save_file(tensors, path, metadata=layouts_to_metadata({"w": layout}))
    with pytest.raises(BundleError, match=rf"are damaged \(w.*{what}"):
        read_weights(path)


@pytest.mark.parametrize(
    "layout",
    [
        {"shape": (64, 2), "block": 1},
        {"shape": (64, 2), "block": -32},
        {"shape": (48, 2), "block": 32},
        {"shape": (-64, -2), "block": 32},
        {"shape": (64, 2, 1), "block": 32},
        {"shape": (), "block": 0},
    ],
)
def test_a_layout_that_cannot_be_is_refused(tmp_path, layout):
    codes, scales, _ = quantize_matrix(np.ones((64, 2), np.float32), 4)
    path = tmp_path / "w.safetensors"
    metadata = layouts_to_metadata({"w": QuantizedLayout(bits=4, **layout)})
    save_file({"w": pack_codes(codes, 4), "w.scale": scales}, path, metadata=metadata)
    with pytest.raises(BundleError, match=r"w has .* codes of 4 bits in blocks of .*, which cannot be"):
        read_weights(path)


def test_a_truncated_file_is_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    write(path, np.ones((48, 2), np.float32), 8)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(BundleError, match="damaged"):
        read_weights(path)


def test_a_file_without_codes_is_not_looked_into(tmp_path) -> None:
    """It may hold what numpy has no type for."""
    save_torch_file({"w": torch.ones(2, 3, dtype=torch.bfloat16)}, tmp_path / "w.safetensors")
    assert read_weights(tmp_path / "w.safetensors") is None
    assert read_codes(tmp_path / "w.safetensors") == {}
