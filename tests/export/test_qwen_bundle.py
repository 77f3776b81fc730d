"""Tiny random Qwen-VL models as bundles: patches and positions as transformers makes them; parity can fail."""

import json
import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from PIL import Image
from tests.bundles import some_observations
from tests.qwen_runs import write_qwen_run
from tests.stub_board import stub_board
from tests.trainer.tiny_qwen import backbone
from transformers import Qwen2VLImageProcessorPil

from roboalign.export import ExportConfig, export
from roboalign.export.build import build
from roboalign.export.parity import BARS, check_parity
from roboalign.sdk.backends import feeds
from roboalign.sdk.bundle import read_bundle
from roboalign.sdk.errors import BundleError, CheckFailed, ConfigError, DataError
from roboalign.sdk.evaluation.episodes import run_episode
from roboalign.sdk.patches import PatchFormat, axis_positions, resize_picture
from roboalign.sdk.policy import Policy
from roboalign.sdk.sim.env import SimEnv
from roboalign.sdk.sim.seeds import train_seed

logging.getLogger("torch.__trace").propagate = False  # pytest would format 100,000 records of it

FORMAT = PatchFormat(
    rows=6, columns=8, patch_px=14, merge=2, frames=2, mean=(0.5,) * 3, std=(0.25,) * 3, image_token_id=7
)


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3)).astype(np.uint8)


@pytest.mark.parametrize("side", [(96, 84), (480, 448), (64, 196), (7, 300), (300, 7), (96, 96)])
def test_a_square_picture_is_scaled_to_the_last_bit_as_pillow_does(side) -> None:
    found, wanted = side
    image = picture(found, found)
    expected = np.asarray(Image.fromarray(image).resize((wanted, wanted), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(resize_picture(image, wanted, wanted), expected)


@pytest.mark.parametrize("size", [(96, 96), (480, 480), (84, 112), (112, 84), (90, 168), (56, 117)])
@pytest.mark.parametrize("patch", [14, 16])
def test_patches_are_those_of_transformers(size, patch) -> None:
    processor = Qwen2VLImageProcessorPil(patch_size=patch)
    image = picture(*size)
    expected = processor(images=[image], return_tensors="np")
    _, rows, columns = expected["image_grid_thw"][0].tolist()
    mean, std = tuple(processor.image_mean), tuple(processor.image_std)
    fmt = replace(FORMAT, rows=rows, columns=columns, patch_px=patch, mean=mean, std=std)
    np.testing.assert_array_equal(fmt.cut(image), expected["pixel_values"])


@pytest.mark.parametrize("version", ["qwen2_5_vl", "qwen3_vl"])
def test_positions_of_two_pictures_of_two_sizes_are_those_of_transformers(version) -> None:
    member = backbone(version)
    token = member.processor.image_token_id
    ids = [1, 2, *[token] * 12, 3, *[token] * 8, 4, 5, 6]
    grids = [(3, 4), (4, 2)]
    types = (torch.tensor([ids]) == token).long()
    expected, _ = member.model.model.get_rope_index(
        torch.tensor([ids]),
        mm_token_type_ids=types,
        image_grid_thw=torch.tensor([[1, 2 * rows, 2 * columns] for rows, columns in grids]),
    )
    found = axis_positions(ids, token, grids)
    np.testing.assert_array_equal(found, expected[:, 0].numpy())
    assert found.max() + 1 != len(ids)


@pytest.mark.parametrize("ids", [[1, *[7] * 11], [*[7] * 6, 1, *[7] * 6], [1, 2]])
def test_placeholders_that_are_no_picture_are_refused(ids) -> None:
    with pytest.raises(DataError, match="placeholders"):
        axis_positions(ids, 7, [(3, 4)])


@pytest.mark.parametrize("change", [{"rows": 5}, {"merge": 0}, {"std": (0.0, 1.0, 1.0)}, {"mean": (0.5,)}])
def test_patches_that_cannot_be_are_refused(change) -> None:
    with pytest.raises(ConfigError, match="patches"):
        replace(FORMAT, **change)


def test_a_processor_of_other_steps_is_refused() -> None:
    member = backbone("qwen2_5_vl")
    member.processor.image_processor.resample = 2
    with pytest.raises(ConfigError, match=r"the picture processor has .* which is what a robot's runtime does"):
        member.prompt_format = member.prompt_format


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen3_vl"])
def bundle(request, tmp_path_factory) -> Path:
    """A bundle for the CPU; read only."""
    folder = tmp_path_factory.mktemp("qwen")
    run = write_qwen_run(folder / "head-qwen", request.param)
    return export(ExportConfig(run=run, out=folder / "bundle"), observations=some_observations(), say=lambda _l: None)


@pytest.mark.slow
class TestBundle:
    def test_its_parts_agree_with_pytorch(self, bundle) -> None:
        manifest = read_bundle(bundle).manifest
        assert set(manifest.graphs) == {"vision", "prefill", "step", "flow"}
        assert manifest.policy.prompt.patches is not None
        assert manifest.parity.max_action_error < 1e-4
        assert max(manifest.parity.part_errors.values()) < 1e-4

    def test_it_acts_without_torch_and_transformers(self, bundle) -> None:
        code = (
            "import sys, numpy as np; from roboalign import sdk; from roboalign.sdk.types import Observation; "
            "seen = Observation(images={'front': np.full((96, 96, 3), 9, np.uint8)}, "
            "state=np.array([.5, 0, .2, .1, .05], np.float32), joint_pos_rad=np.zeros(7, np.float32), "
            "instruction='put the red block away', time_s=0.0); "
            "policy = sdk.Policy.load(sys.argv[1]); assert policy.act(seen).source == 'flow'; "
            "found = {'torch', 'transformers', 'PIL', 'onnx'} & set(sys.modules); assert not found, found"
        )
        subprocess.run([sys.executable, "-c", code, str(bundle)], check=True)

    def test_it_plays_an_episode(self, bundle) -> None:
        env = SimEnv("mix", max_steps=10)
        try:
            with Policy.load(bundle) as policy:
                found = run_episode(env, policy, seed=train_seed(3), task="push")
        finally:
            env.close()
        assert 0.0 <= found.progress <= 1.0

    def test_another_instruction_and_another_picture_change_the_actions_as_in_pytorch(self, bundle) -> None:
        seen = some_observations()[0]
        others = [seen, replace(seen, instruction="go"), replace(seen, images=some_observations()[1].images)]
        actions = {}
        for backend in ("onnx", "torch"):
            with Policy.load(bundle, backend=backend) as policy:
                actions[backend] = [policy.act(one, noise=np.zeros((8, 5), np.float32)).actions for one in others]
        np.testing.assert_allclose(actions["onnx"], actions["torch"], atol=1e-4)
        assert np.abs(actions["torch"][1] - actions["torch"][0]).max() > 1e-3
        assert np.abs(actions["torch"][2] - actions["torch"][0]).max() > 1e-3

    def test_a_step_at_the_number_of_tokens_fails_parity(self, bundle, monkeypatch) -> None:
        """The trap of three axes, broken on purpose in what the host counts."""
        right = feeds.step_feed
        monkeypatch.setattr(
            "roboalign.sdk.backends.onnx.step_feed",
            lambda spec, token, length, offset: right(spec, token, length, 0),
        )
        with pytest.raises(CheckFailed, match="parity failed"):
            check_parity(bundle, some_observations(), bar=BARS["float32"], inputs="a test")

    def test_patches_in_another_order_fail_parity(self, bundle, monkeypatch) -> None:
        right = PatchFormat.cut
        monkeypatch.setattr(PatchFormat, "cut", lambda self, image: right(self, image.transpose(1, 0, 2)))
        with pytest.raises(CheckFailed, match="parity failed"):
            check_parity(bundle, some_observations(), bar=BARS["float32"], inputs="a test")

    def test_a_missing_graph_is_named(self, bundle) -> None:
        found = read_bundle(bundle)
        graphs = {role: spec for role, spec in found.manifest.graphs.items() if role != "vision"}
        with pytest.raises(BundleError, match="has no 'vision' graph"):
            feeds.check_interfaces(replace(found, manifest=replace(found.manifest, graphs=graphs)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("version", "target", "precision", "parts"),
    [
        ("qwen2_5_vl", "cpu", "int4", {"vision": "int4", "decoder": "int4", "head": "int4"}),
        ("qwen3_vl", "agx-thor", "int8", {"vision": "fp16", "decoder": "int8", "head": "fp16"}),
    ],
)
def test_every_matrix_of_the_decoder_is_codes_and_the_policy_acts(tmp_path, version, target, precision, parts) -> None:
    """At four times the usual widths, since smaller matrices are not worth codes; `export` itself checks parity."""
    run = write_qwen_run(tmp_path / "head-qwen", version, scale=4)
    config = ExportConfig(run=run, target=target, precision=precision, out=tmp_path / "bundle")
    folder = export(config, observations=some_observations(), say=lambda _line: None, root=tmp_path)
    record = json.loads((folder / "quantization.json").read_text())
    assert record["parts"] == parts
    assert 0 < record["together"]["action_error"] < config.max_part_error
    matrices = {
        f"model.model.language_model.layers.{layer}.{name}_proj.weight"
        for layer in range(3)
        for name in (*(f"self_attn.{one}" for one in "qkvo"), *(f"mlp.{one}" for one in ("gate", "up", "down")))
    }
    for role in ("prefill", "step"):
        graph = onnx.load(folder / f"{role}.onnx", load_external_data=False).graph
        types = {tensor.name: tensor.data_type for tensor in graph.initializer}
        decoded = {node.input[0]: node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
        assert {name.removesuffix(".codes") for name in decoded} >= matrices
        assert {types[name] for name in decoded} == {TensorProto.INT4 if precision == "int4" else TensorProto.INT8}
        multiplied = {name for node in graph.node if node.op_type == "MatMul" for name in node.input}
        assert {decoded[f"{name}.codes"] for name in matrices} <= multiplied
    with Policy.load(folder) as policy:
        assert policy.act(some_observations()[0]).source == "flow"


@pytest.mark.slow
def test_widths_of_which_nothing_becomes_codes_are_an_error(tmp_path) -> None:
    run = write_qwen_run(tmp_path / "head-qwen", "qwen2_5_vl")
    config = ExportConfig(run=run, precision="int8", rounding="nearest", out=tmp_path / "bundle")
    with pytest.raises(CheckFailed, match="the decoder has no weight that can be stored as int8; use --precision fp16"):
        export(config, observations=some_observations()[:2], say=lambda _line: None)
    assert not config.out.exists()


@pytest.mark.slow
def test_engines_of_the_stub_act_as_onnxruntime_does(tmp_path, monkeypatch) -> None:
    """The image stays on the device between two engines; building compares every token and action."""
    run = write_qwen_run(tmp_path / "head-qwen", "qwen3_vl")
    config = ExportConfig(run=run, target="jetson", out=tmp_path / "bundle")
    folder = export(config, observations=some_observations(), say=lambda _line: None)
    lines: list[str] = []
    with stub_board(monkeypatch) as board:
        build(folder, say=lines.append, root=board.write(tmp_path / "board"))
    assert any("vision.onnx: built" in line for line in lines)
    assert any(line.startswith("compared: 100.00% of") for line in lines)
