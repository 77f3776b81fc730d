import json

import pytest
import tiny
import torch

from roboalign.sdk.errors import BundleError, ConfigError
from roboalign.sdk.types import COMMANDED_STATE_NAMES, STATE_NAMES
from roboalign.trainer.backend import TorchBackend
from roboalign.trainer.checkpoint import (
    META_FILE,
    CheckpointMeta,
    load_checkpoint,
    partial_dir,
    save_checkpoint,
    trained_for,
)

TABLE = tiny.frames(8)
CODEC = tiny.codec_of(TABLE)
META = CheckpointMeta(stage="sft", recipe="tiny", seeds={"fit": 3}, metrics={"loss": 0.5}, data_hash="abc")


@pytest.fixture(scope="module")
def member():
    return tiny.backbone(CODEC)


@pytest.fixture
def saved(member, tmp_path):
    path = tmp_path / "sft-tiny"
    return save_checkpoint(path, model=member.model, processor=member.processor, meta=META, codec=CODEC)


def test_a_checkpoint_is_a_folder_of_plain_files(saved) -> None:
    names = {path.name for path in saved.path.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json", "fast.json"} <= names
    assert names == {*saved.meta.files, META_FILE}
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl", ".pth"))]


def test_what_is_loaded_is_what_was_saved(saved, member) -> None:
    again = load_checkpoint(saved.path, expect_stage="sft")
    assert again.meta.seeds == {"fit": 3}
    assert again.sha256 == saved.sha256
    loaded = again.load_model().state_dict()
    for name, tensor in member.model.state_dict().items():
        assert torch.equal(loaded[name], tensor), name
    assert again.load_codec().encode(TABLE.chunks[0]) == CODEC.encode(TABLE.chunks[0])
    assert len(again.load_processor().tokenizer) == len(member.tokenizer)
    assert again.meta.versions["torch"] == torch.__version__


def test_robot_and_camera_of_the_data_are_kept_and_asked_for(member, tmp_path) -> None:
    """A bundle trained on a camera called desk asked the robot for one called front."""
    with trained_for("so101", "desk"):
        made = save_checkpoint(tmp_path / "sft", model=member.model, processor=member.processor, meta=META, codec=CODEC)
    assert (made.meta.robot, made.meta.camera) == ("so101", "desk")
    assert TorchBackend.open(made.path).spec.camera_names == ("desk",)


def test_the_state_of_the_data_is_kept_and_asked_for(member, tmp_path) -> None:
    with trained_for("so101", state_names=COMMANDED_STATE_NAMES):
        save_checkpoint(tmp_path / "sft", model=member.model, processor=member.processor, meta=META, codec=CODEC)
    again = load_checkpoint(tmp_path / "sft")
    assert again.meta.states == COMMANDED_STATE_NAMES
    assert TorchBackend.open(again.path).spec.state_names == COMMANDED_STATE_NAMES


def test_without_a_word_the_camera_is_the_front_one(saved) -> None:
    assert saved.meta.camera is None
    assert load_checkpoint(saved.path).meta.states == STATE_NAMES
    assert TorchBackend.open(saved.path).spec.camera_names == ("front",)


def test_half_precision_halves_the_file_and_leaves_the_model_alone(member, tmp_path) -> None:
    sizes = {}
    for dtype in ("fp32", "fp16"):
        save_checkpoint(
            tmp_path / dtype, model=member.model, processor=member.processor, meta=META, codec=CODEC, dtype=dtype
        )
        sizes[dtype] = (tmp_path / dtype / "model.safetensors").stat().st_size
    assert sizes["fp16"] < 0.6 * sizes["fp32"]
    assert member.model.dtype == torch.float32
    half = load_checkpoint(tmp_path / "fp16").load_model()
    assert half.dtype == torch.float32
    assert half.lm_head.weight.data_ptr() == half.get_input_embeddings().weight.data_ptr()


def test_a_missing_folder_is_one_plain_line(tmp_path) -> None:
    with pytest.raises(BundleError, match="no checkpoint folder at") as caught:
        load_checkpoint(tmp_path / "nothing")
    assert "\n" not in str(caught.value)


def test_a_partial_run_is_mentioned(tmp_path) -> None:
    partial_dir(tmp_path / "sft").mkdir()
    with pytest.raises(BundleError, match="partial run is there"):
        load_checkpoint(tmp_path / "sft")


def test_another_stage_is_refused(saved) -> None:
    with pytest.raises(BundleError, match="is a sft checkpoint, expected base or align"):
        load_checkpoint(saved.path, expect_stage=("base", "align"))


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path) -> None:
    with pytest.raises(BundleError, match=r"has no roboalign\.json"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "fast.json"])
def test_a_truncated_file_is_found(saved, name: str) -> None:
    file = saved.path / name
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(BundleError, match=f"{name} is truncated or altered"):
        load_checkpoint(saved.path)


def test_one_changed_byte_is_found(saved) -> None:
    file = saved.path / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(BundleError, match="truncated or altered"):
        load_checkpoint(saved.path)


def test_a_missing_file_is_named(saved) -> None:
    (saved.path / "config.json").unlink()
    with pytest.raises(BundleError, match=r"lacks config\.json"):
        load_checkpoint(saved.path)


def test_a_truncated_description_is_found(saved) -> None:
    file = saved.path / META_FILE
    file.write_text(file.read_text()[:40])
    with pytest.raises(BundleError, match="truncated or altered"):
        load_checkpoint(saved.path)


def test_a_newer_format_is_refused_with_both_versions(saved) -> None:
    file = saved.path / META_FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format_version": 99}))
    with pytest.raises(BundleError, match="has format 99, this version reads up to 1"):
        load_checkpoint(saved.path)


def test_a_checkpoint_without_codec_says_so(member, tmp_path) -> None:
    meta = CheckpointMeta(stage="base", recipe="tiny")
    saved = save_checkpoint(tmp_path / "base", model=member.model, processor=member.processor, meta=meta)
    with pytest.raises(BundleError, match="without an action codec"):
        saved.load_codec()


def test_a_failed_save_leaves_the_old_checkpoint_and_nothing_else(saved, member) -> None:
    class Broken:
        def save(self, directory) -> None:
            (directory / "half").write_text("written")
            raise OSError("disk full")

    before = saved.sha256
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(saved.path, model=member.model, processor=member.processor, meta=META, codec=Broken())
    assert load_checkpoint(saved.path).sha256 == before
    assert [path.name for path in saved.path.parent.iterdir()] == [saved.path.name]


def test_saving_again_replaces_the_checkpoint(saved, member) -> None:
    meta = CheckpointMeta(stage="align", recipe="tiny", parent=saved.path.name, parent_sha256=saved.sha256)
    save_checkpoint(saved.path, model=member.model, processor=member.processor, meta=meta)
    assert load_checkpoint(saved.path).meta.stage == "align"
    assert not (saved.path / "fast.json").exists()


def test_wrong_settings_are_refused_by_name(member, tmp_path) -> None:
    with pytest.raises(ConfigError, match="base, sft, align, head"):
        CheckpointMeta(stage="polish", recipe="tiny")
    with pytest.raises(ConfigError, match="fp32, fp16, bf16"):
        save_checkpoint(tmp_path / "x", model=member.model, processor=member.processor, meta=META, dtype="int8")


def test_weights_in_bf16_are_read_again(member, tmp_path) -> None:
    meta = CheckpointMeta(stage="base", recipe="tiny")
    saved = save_checkpoint(tmp_path / "x", model=member.model, processor=member.processor, meta=meta, dtype="bf16")
    read = saved.load_model().state_dict()
    assert all(torch.equal(read[name], value.bfloat16()) for name, value in member.model.state_dict().items())
