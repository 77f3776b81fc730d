"""What `read_bundle` refuses, and that each refusal says what was found and what to do."""

import json
from pathlib import Path

import pytest

from roboalign.sdk.bundle import (
    FORMAT_VERSION,
    MANIFEST_NAME,
    SHIPPED_BUNDLES,
    Manifest,
    PolicySpec,
    Thresholds,
    file_record,
    find_bundle,
    read_bundle,
    require_robot,
    shipped_bundle_path,
    write_manifest,
)
from roboalign.sdk.bundle_check import sealed_text
from roboalign.sdk.errors import BundleError, ConfigError
from roboalign.sdk.prompt import PromptFormat
from roboalign.sdk.types import ACTION_NAMES, STATE_NAMES


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "weights.bin").write_bytes(b"0123456789")
    policy = PolicySpec(
        horizon=8,
        rate_hz=10.0,
        camera_names=("front",),
        image_size_px=96,
        state_names=STATE_NAMES,
        action_names=ACTION_NAMES,
        action_low=(-0.04, -0.04, -0.04, -0.2, 0.0),
        action_high=(0.04, 0.04, 0.04, 0.2, 1.0),
        prompt=PromptFormat(),
        max_prompt_tokens=80,
        max_thought_tokens=48,
        max_tokens=173,
        hidden_size=160,
        has_head=True,
    )
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        roboalign_version="0.1.0",
        source_commit="unknown",
        name="test",
        model="nano",
        tokenizer_sha256="0",
        codec_hash="0",
        target="cpu",
        built=True,
        next_command="",
        precision="fp16",
        stage="sft",
        parents=(),
        policy=policy,
        graphs={},
        files={"weights.bin": file_record(tmp_path / "weights.bin")},
    )
    write_manifest(tmp_path, manifest)
    return tmp_path


def edit(folder: Path, **changes: object) -> None:
    """Changes the manifest as somebody would who seals it again."""
    path = folder / MANIFEST_NAME
    path.write_text(sealed_text({**json.loads(path.read_text()), **changes}))


def test_what_was_written_is_read_back(folder):
    before = read_bundle(folder).manifest
    write_manifest(folder, before)
    assert read_bundle(folder).manifest == before
    assert before.policy.prompt == PromptFormat()
    assert before.parity is None


def test_a_manifest_of_the_first_format_is_read(folder):
    """It named no robot and no thresholds, carried no digest of itself, and left out the first form of prompts."""
    path = folder / MANIFEST_NAME
    content = {**json.loads(path.read_text()), "format_version": 1}
    for name in ("manifest_sha256", "robot", "thresholds", "arithmetic"):
        del content[name]
    del content["policy"]["prompt"]["form"]
    path.write_text(json.dumps(content))
    manifest = read_bundle(folder).manifest
    assert (manifest.format_version, manifest.robot, manifest.thresholds) == (1, None, None)
    require_robot(manifest, ("anything",), folder)
    path.write_text(json.dumps({**content, "robot": None}))
    with pytest.raises(BundleError, match=r"unknown fields \['robot'\]"):
        read_bundle(folder)


def test_a_change_that_is_not_sealed_is_found(folder):
    path = folder / MANIFEST_NAME
    path.write_text(path.read_text().replace('"rate_hz": 10.0', '"rate_hz": 12.0'))
    with pytest.raises(BundleError, match="altered: its content does not have the digest"):
        read_bundle(folder)


@pytest.mark.parametrize("name", [MANIFEST_NAME, "weights.bin"])
def test_a_link_is_refused_though_its_content_is_right(folder, tmp_path, name):
    outside = tmp_path.with_name(f"{tmp_path.name}-outside")
    (folder / name).rename(outside)
    (folder / name).symlink_to(outside)
    with pytest.raises(BundleError, match=r"is a link.*cp -rL"):
        read_bundle(folder)


@pytest.mark.parametrize("share", [0.0, -0.1, 1.5])
def test_thresholds_are_shares(share):
    with pytest.raises(ConfigError, match=r"Thresholds\.part_error is .*, expected a share above 0"):
        Thresholds(action_error=1e-4, part_error=share, same_tokens=0.9, success_loss=0.1)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(BundleError, match=r"no bundle at .*nowhere"):
        read_bundle(tmp_path / "nowhere")


def test_a_folder_without_a_manifest_is_not_a_bundle(tmp_path):
    with pytest.raises(BundleError, match="is not a bundle"):
        read_bundle(tmp_path)


def test_a_file_is_not_a_bundle(folder):
    with pytest.raises(BundleError, match="is a file, expected a bundle"):
        read_bundle(folder / "weights.bin")


@pytest.mark.parametrize(
    ("stage", "hint"), [("head", "roboalign export"), ("sft", "no action head"), ("base", "roboalign train")]
)
def test_a_checkpoint_is_named_with_its_stage_and_what_to_type(tmp_path, stage, hint):
    (tmp_path / "roboalign.json").write_text(json.dumps({"stage": stage}))
    with pytest.raises(BundleError, match=f"stage '{stage}', not a bundle.*{hint}"):
        read_bundle(tmp_path)


def test_an_altered_file_is_named(folder):
    (folder / "weights.bin").write_bytes(b"0123456780")
    with pytest.raises(BundleError, match=r"altered: weights.bin has sha256"):
        read_bundle(folder)


def test_a_truncated_file_is_named_with_both_lengths(folder):
    (folder / "weights.bin").write_bytes(b"01234")
    with pytest.raises(BundleError, match=r"weights\.bin has 5 bytes, expected 10"):
        read_bundle(folder)


def test_an_absent_file_is_named(folder):
    (folder / "weights.bin").unlink()
    with pytest.raises(BundleError, match=r"incomplete: weights.bin is missing"):
        read_bundle(folder)


def test_a_truncated_manifest_is_named(folder):
    path = folder / MANIFEST_NAME
    path.write_text(path.read_text()[:200])
    with pytest.raises(BundleError, match="truncated"):
        read_bundle(folder)


def test_a_newer_format_is_refused_by_name_with_both_versions(folder):
    edit(folder, format_version=FORMAT_VERSION + 6, roboalign_version="9.9")
    message = rf"format version {FORMAT_VERSION + 6} \(by roboalign 9\.9\).*up to version {FORMAT_VERSION}"
    with pytest.raises(BundleError, match=message):
        read_bundle(folder)


def test_bundles_of_version_2_are_read_as_they_are(folder):
    edit(folder, format_version=2)
    assert read_bundle(folder).manifest.format_version == 2


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"built": "yes"}, "manifest.built is 'yes', expected bool"),
        ({"extra": 1}, r"unknown fields \['extra'\]"),
        ({"parents": [3]}, r"manifest.parents\[0\] is 3, expected str"),
    ],
)
def test_an_edited_manifest_names_the_field(folder, changes, where):
    edit(folder, **changes)
    with pytest.raises(BundleError, match=where):
        read_bundle(folder)


def test_an_action_field_without_a_range_is_refused(folder):
    """Errors are shares of the range: of none, they once were no numbers."""
    policy = json.loads((folder / MANIFEST_NAME).read_text())["policy"]
    edit(folder, policy={**policy, "action_low": policy["action_high"]})
    with pytest.raises(BundleError, match=r"acts by dx_m from 0\.04 to 0\.04, expected an upper limit above"):
        read_bundle(folder)


def test_arithmetic_that_nobody_knows_is_refused(folder):
    """Its bar of parity was looked up by name, on the board, after the engines were built."""
    edit(folder, arithmetic="float8")
    with pytest.raises(
        BundleError, match="its graphs compute in 'float8', expected one of float32, float16, int8, fp8"
    ):
        read_bundle(folder)


def test_a_file_outside_of_the_bundle_is_refused(folder):
    edit(folder, files={"../secret": {"sha256": "0", "num_bytes": 1}})
    with pytest.raises(BundleError, match="lies outside"):
        read_bundle(folder)


def test_a_file_that_the_manifest_does_not_list_is_not_handed_out(folder):
    with pytest.raises(BundleError, match=r"has no file 'other\.onnx'; it lists weights\.bin"):
        read_bundle(folder).file("other.onnx")


@pytest.mark.parametrize("name", SHIPPED_BUNDLES)
def test_a_shipped_bundle_is_whole_and_found_by_its_name(name):
    folder = find_bundle(name)
    assert folder == shipped_bundle_path(name)
    assert read_bundle(folder).manifest.policy.has_head


def test_a_folder_comes_before_a_shipped_bundle_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / SHIPPED_BUNDLES[1]).mkdir()
    assert find_bundle(SHIPPED_BUNDLES[1]) == Path(SHIPPED_BUNDLES[1])


def test_an_installation_without_a_bundle_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr("roboalign.sdk.bundle.resources.files", lambda package: tmp_path)
    with pytest.raises(BundleError, match="no shipped bundle"):
        shipped_bundle_path()
