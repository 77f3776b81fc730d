"""Estimates and refusals, from files alone."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny

from roboalign.sdk.bundle import shipped_base_path
from roboalign.sdk.errors import BundleError, ConfigError, DataError
from roboalign.trainer import refusals
from roboalign.trainer.checkpoint import CheckpointMeta, load_checkpoint, save_checkpoint, trained_for
from roboalign.trainer.estimate import count_parameters, estimate_stage
from roboalign.trainer.plan import plan_stage
from roboalign.trainer.recipes import recipe
from roboalign.trainer.refusals import check_codec_range, check_start, find_refusals

TABLE = tiny.frames(8)
CODEC = tiny.codec_of(TABLE)
BASE = shipped_base_path()
NAMES = ["dx_m", "dy_m", "dz_m", "dyaw_rad", "gripper_open"]


@pytest.fixture(scope="module")
def sft(tmp_path_factory) -> Path:
    member = tiny.backbone(CODEC)
    out = tmp_path_factory.mktemp("checkpoints") / "sft"
    with trained_for("panda"):
        meta = CheckpointMeta(stage="sft", recipe="tiny")
        save_checkpoint(out, model=member.model, processor=member.processor, meta=meta, codec=CODEC)
    return out


def dataset(folder: Path, **changes) -> Path:
    """Writes the description of a dataset; nothing here reads more than that."""
    codec_names = changes.pop("names", NAMES)
    state = {"dtype": "float32", "shape": [5], "names": ["x_m", "y_m", "z_m", "yaw_rad", "gripper_width_m"]}
    features = {
        "observation.state": state,
        "action": {"dtype": "float32", "shape": [len(codec_names)], "names": codec_names},
        "observation.images.front": {"dtype": "image", "shape": [96, 96, 3], "names": ["height", "width", "channels"]},
    }
    for name in ("timestamp", "frame_index", "episode_index", "index", "task_index"):
        features[name] = {"dtype": "int64", "shape": [1], "names": None}
    info = {
        "codebase_version": "v3.0",
        "robot_type": "panda",
        "fps": 10,
        "total_episodes": 4,
        "total_frames": 200,
        "features": features,
    }
    (folder / "meta").mkdir(parents=True)
    (folder / "meta" / "info.json").write_text(json.dumps(info | changes))
    return folder


def align_config(data: Path, sft: Path, tmp_path: Path):
    return recipe("nano").align_config(data=data, sft=sft, out=tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"robot_type": "so101"}, "recorded with the robot so101, the checkpoint was trained for panda"),
        ({"fps": 30}, r"recorded at 30 Hz, the checkpoint's actions are of 10 Hz"),
        ({"names": [*NAMES, "droll_rad"]}, r"has the actions .*droll_rad, the checkpoint's codec has dx_m, dy_m"),
    ],
)
def test_data_of_another_kind_than_the_checkpoint_is_refused_with_both(sft, tmp_path, changes, message) -> None:
    config = align_config(dataset(tmp_path / "data", **changes), sft, tmp_path)
    with pytest.raises(DataError, match=message):
        check_start("align", config)


def test_data_of_the_same_kind_starts(sft, tmp_path) -> None:
    config = align_config(dataset(tmp_path / "data"), sft, tmp_path)
    check_start("align", config)
    assert find_refusals("align", config) == []


def test_a_base_of_one_robot_may_become_anothers(tmp_path) -> None:
    data = dataset(tmp_path / "data", robot_type="so101")
    check_start("sft", recipe("nano").sft_config(data=data, base=BASE, out=tmp_path / "out"))


def test_the_rate_of_the_settings_counts_where_there_is_no_codec_yet(tmp_path) -> None:
    data = dataset(tmp_path / "data", fps=5)
    with pytest.raises(DataError, match="recorded at 5 Hz, the settings say 10 Hz"):
        check_start("sft", replace(recipe("nano").sft_config(data=data, base=BASE, out=tmp_path / "out"), rate_hz=10.0))


def test_a_codec_of_another_size_than_the_tokenizer_is_refused(sft, tmp_path) -> None:
    other = tmp_path / "sft"
    other.mkdir()
    for file in sft.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    codec = json.loads((other / "fast.json").read_text())
    codec["config"]["merges"] = codec["config"]["merges"][:-3]
    (other / "fast.json").write_text(json.dumps(codec))
    message = (
        rf"the tokenizer has {CODEC.vocab_size} action tokens, the codec \(fast\.json\) has {CODEC.vocab_size - 3}"
    )
    with pytest.raises(BundleError, match=message):
        check_start("align", align_config(tmp_path / "none", other, tmp_path))


def test_a_full_disk_is_seen_before_the_first_step(sft, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(refusals, "free_disk_bytes", lambda _folder: 1000)
    with pytest.raises(DataError, match=r"needs about 0\.0 GB beside .* and 0\.0 GB are free; free some space"):
        check_start("align", align_config(tmp_path / "none", sft, tmp_path))


def test_a_stage_does_not_replace_what_it_starts_from(sft, tmp_path) -> None:
    config = replace(align_config(tmp_path / "none", sft, tmp_path), out=sft)
    with pytest.raises(ConfigError, match="the checkpoint that the stage starts from"):
        check_start("align", config)


def test_actions_of_another_robot_do_not_fit_the_codec() -> None:
    check_codec_range(CODEC, TABLE.chunks, where=Path("data"))
    with pytest.raises(DataError, match=r"of the values of dx_m in data \(.*\) lie outside of .*codec was fitted on"):
        check_codec_range(CODEC, 20 * TABLE.chunks + np.float32(0.5), where=Path("data"))


def test_the_robot_is_written_into_the_checkpoint(sft) -> None:
    assert load_checkpoint(sft).meta.robot == "panda"


def test_parameters_are_counted_from_the_header(sft) -> None:
    model = load_checkpoint(sft).load_model()
    assert count_parameters(sft) == sum(p.numel() for p in model.parameters())
    assert count_parameters(sft.parent) is None


def test_the_sizes_of_a_model_to_be_made_are_those_of_the_shipped_one(tmp_path) -> None:
    config = recipe("nano").base_config(data=tmp_path, out=tmp_path / "out")
    assert estimate_stage("base", config).parameters == pytest.approx(count_parameters(BASE), rel=0.05)


def test_the_time_of_the_shipped_base_is_what_it_took(tmp_path) -> None:
    config = recipe("nano").base_config(data=tmp_path, out=tmp_path / "out")
    assert estimate_stage("base", config).cpu_s == pytest.approx(load_checkpoint(BASE).meta.cpu_s, rel=0.1)


def test_an_interrupted_run_has_less_to_do(tmp_path) -> None:
    config = recipe("nano").base_config(data=tmp_path, out=tmp_path / "out")
    state = tmp_path / "out.partial" / "state"
    state.mkdir(parents=True)
    (state / "state.json").write_text(json.dumps({"step": config.fit.steps // 4}))
    whole = estimate_stage("base", replace(config, out=tmp_path / "other"))
    rest = estimate_stage("base", config)
    assert (rest.done_share, rest.cpu_s) == (0.25, pytest.approx(0.75 * whole.cpu_s))


@pytest.mark.parametrize("stage", ["base", "sft", "align", "head"])
def test_a_plan_fits_a_terminal_and_writes_nothing(stage, sft, tmp_path) -> None:
    data, out, nano = dataset(tmp_path / "data"), tmp_path / "out", recipe("nano")
    config = {
        "base": lambda: nano.base_config(data=data, out=out),
        "sft": lambda: nano.sft_config(data=data, base=BASE, out=out),
        "align": lambda: nano.align_config(data=data, sft=sft, out=out),
        "head": lambda: nano.head_config(data=data, backbone=sft, out=out),
    }[stage]()
    plan = plan_stage(stage, config)
    text = "\n".join(plan.lines()).replace(str(tmp_path), "").replace(str(sft), "").replace(str(BASE), "")
    assert max(len(line) for line in text.splitlines()) <= 80
    assert re.search(r"data +data: 4 episodes, 200 frames, panda, 10 Hz", text)
    assert "memory, estimated" in text
    assert plan.refusals == ()
    assert {path.name for path in tmp_path.iterdir()} == {"data"}


def test_a_plan_names_all_that_would_be_refused(sft, tmp_path) -> None:
    config = recipe("nano").head_config(data=tmp_path / "none", backbone=BASE, out=tmp_path / "out")
    plan = plan_stage("head", config)
    assert len(plan.refusals) == 2
    assert "there is no dataset folder" in plan.refusals[0]
    assert "is a base checkpoint, expected sft or align" in plan.refusals[1]
