"""Verification repeats parity from the bundle alone, and nothing that was not measured passes."""

import json
import shutil
import socket
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from roboalign.cli.main import main
from roboalign.export import ExportConfig, VerifyConfig, export, read_receipt, receipt_table, verify
from roboalign.export import verification as module
from roboalign.export.receipt import ClosedLoop, Receipt, write_receipt
from roboalign.export.vectors import (
    PARTS,
    VECTORS_NAME,
    Vectors,
    action_difference,
    answer_vectors,
    compare_vectors,
    draw_noise,
)
from roboalign.sdk.backends.in_place import InPlaceBackend
from roboalign.sdk.backends.onnx import OnnxBackend
from roboalign.sdk.bundle import Manifest, file_record, read_bundle, shipped_bundle_path, write_manifest
from roboalign.sdk.errors import BundleError, CheckFailed, ConfigError, DataError
from roboalign.sdk.policy import Policy
from roboalign.sdk.types import COMMANDED_STATE_NAMES, FloatArray

ROOT = Path(__file__).resolve().parents[2]


def parity(bundle: Path, tmp_path: Path, **more: object) -> tuple[Receipt, list[str]]:
    said: list[str] = []
    config = VerifyConfig(bundle=bundle, out=tmp_path / "out.json", **{"episodes": 0, **more})
    receipt, path = verify(config, say=said.append)
    assert read_receipt(path) == receipt
    return receipt, said


def sealed_copy(bundle: Path, folder: Path, **changes: object) -> Path:
    """A copy whose manifest is changed and whose digests are right; call it again after changing a file."""
    if not folder.exists():
        shutil.copytree(bundle, folder)
    manifest: Manifest = read_bundle(bundle).manifest
    files = {name: file_record(folder / name) for name in manifest.files if (folder / name).exists()}
    write_manifest(folder, replace(manifest, **{"files": files, **changes}))
    return folder


def with_other_vectors(bundle: Path, folder: Path, **changes: object) -> Path:
    sealed_copy(bundle, folder)
    replace(Vectors.load(bundle / VECTORS_NAME), **changes).save(folder / VECTORS_NAME)
    return sealed_copy(bundle, folder)


def some_loop(**changes: object) -> ClosedLoop:
    figures = {"num_episodes": 60, "num_successes": 50, "num_reference_successes": 50, "difference": 0.0}
    pair = {"num_only_bundle": 0, "num_only_reference": 0, "interval_low": -0.06, "interval_high": 0.06}
    return ClosedLoop(**{"reference": "torch", "robot": "panda", "tasks": ("place",), **figures, **pair, **changes})


def test_an_export_keeps_what_pytorch_answered_and_how_far_every_part_is_from_it(bundle: Path) -> None:
    manifest = read_bundle(bundle).manifest
    record = manifest.parity
    assert record is not None
    assert set(record.part_errors) == {*PARTS, "portable", "window16", "window48"}
    assert 0.0 < max(record.part_errors.values()) < 1e-4
    assert set(record.field_errors) == set(manifest.policy.action_names)
    assert manifest.files[VECTORS_NAME].num_bytes < 2**20
    assert manifest.robot is not None
    assert manifest.robot.name == "panda"


def as_numbers(path: Path, out: Path) -> Path:
    """Writes vectors as earlier versions did, with pictures as numbers."""
    images = np.stack([seen.images["front"] for seen in Vectors.load(path).observations])
    with safe_open(path, "numpy") as file:
        text = json.loads(file.metadata()["roboalign.parity"])
        stored = {name: file.get_tensor(name) for name in file.keys() if not name.startswith("png.")}  # noqa: SIM118
    del text["png_bytes"]
    save_file({**stored, "image.front": images}, out, metadata={"roboalign.parity": json.dumps(text)})
    return out


def test_pictures_are_kept_without_loss_in_a_tenth_of_their_bytes(tmp_path: Path) -> None:
    """Also those of a file of an earlier version, which holds them as numbers."""
    earlier = as_numbers(shipped_bundle_path() / VECTORS_NAME, tmp_path / "old.safetensors")
    old = Vectors.load(earlier)
    old.save(tmp_path / "new.safetensors")
    new = Vectors.load(tmp_path / "new.safetensors")
    pictures = [seen.images["front"] for seen in old.observations]
    assert all(np.array_equal(one, seen.images["front"]) for one, seen in zip(pictures, new.observations, strict=True))
    assert len({picture.tobytes() for picture in pictures}) == len(pictures)
    assert [seen.instruction for seen in new.observations] == [seen.instruction for seen in old.observations]
    saved = earlier.stat().st_size - (tmp_path / "new.safetensors").stat().st_size
    assert saved > 0.85 * sum(picture.nbytes for picture in pictures)


def test_a_bundle_that_acts_from_where_the_tool_was_sent_keeps_where_that_was(make_run, observations, tmp_path) -> None:
    run = make_run(tmp_path / "head", state_names=COMMANDED_STATE_NAMES)
    sent = [replace(seen, commanded=seen.state[:4] + 0.05) for seen in observations]
    late = export(ExportConfig(run=run, out=tmp_path / "late"), observations=sent, say=lambda line: None)
    assert read_bundle(late).manifest.policy.state_names == COMMANDED_STATE_NAMES
    kept = Vectors.load(late / VECTORS_NAME).observations
    assert {seen.commanded.tobytes() for seen in kept} <= {seen.commanded.tobytes() for seen in sent}
    receipt, _ = parity(late, tmp_path)
    assert receipt.parity.same_tokens == 1.0
    with pytest.raises(DataError, match="does not say where"), Policy.load(late) as policy:
        policy.act(observations[0])


def header_of(width: int, height: int) -> bytes:
    """A PNG that states a size and ends: what follows is never read when the size is refused."""
    fields = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    chunk = b"IHDR" + fields
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", len(fields)) + chunk + struct.pack(">I", zlib.crc32(chunk))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda png: png[:-1], "pictures take"),
        (
            lambda png: header_of(30_000, 30_000) + png[33:],
            "a picture cannot be read: Image size",
        ),  # Pillow's own limit
        (lambda png: header_of(8_192, 8_193) + png[33:], r"a picture of \(8192, 8193\) is among them"),
        (lambda png: png[:12] + b"IEND" + png[16:], "cannot identify image file"),
        (lambda png: png[:41] + b"\0" * 8 + png[49:], "broken PNG file|broken data stream|unrecognized data stream"),
        (lambda png: png[:24] + b"\x10\0" + png[26:], "a picture cannot be read|expected uint8|cannot identify"),
    ],
)
def test_pictures_that_are_none_are_no_vectors(tmp_path: Path, spoil: Callable[[bytes], bytes], message: str) -> None:
    path = tmp_path / "vectors.safetensors"
    Vectors.load(shipped_bundle_path() / VECTORS_NAME).save(path)
    with safe_open(path, "numpy") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    spoilt = np.frombuffer(spoil(tensors["png.front"].tobytes()), np.uint8)
    save_file({**tensors, "png.front": spoilt}, path, metadata=metadata)
    with pytest.raises(BundleError, match=f"holds no parity vectors .*({message})"):
        Vectors.load(path)


@pytest.mark.parametrize("text", ["[]", '{"instructions": 3}', "[" * 100_000, "{}", "7"])
def test_text_of_another_shape_is_no_vectors(tmp_path: Path, text: str) -> None:
    path = tmp_path / "vectors.safetensors"
    save_file({"state": np.zeros((1, 5), np.float32)}, path, metadata={"roboalign.parity": text})
    with pytest.raises(BundleError, match="holds no parity vectors"):
        Vectors.load(path)


def test_parity_is_repeated_from_the_bundle_alone_and_the_receipt_names_nobody(bundle: Path, tmp_path: Path) -> None:
    receipt, said = parity(bundle, tmp_path)
    assert (receipt.verdict, receipt.faults, receipt.missing, receipt.closed_loop) == ("parity only", (), (), None)
    assert receipt.parity is not None
    assert receipt.parity.same_tokens == 1.0
    assert set(receipt.parity.fields) == set(read_bundle(bundle).manifest.policy.action_names)
    assert any(line.startswith("actions, largest difference: dx_m ") for line in said)
    text = (tmp_path / "out.json").read_text()
    assert not [word for word in (str(tmp_path), str(Path.home()), socket.gethostname()) if word in text]


def test_the_receipt_lies_beside_the_bundle_and_never_inside(bundle: Path, tmp_path: Path) -> None:
    folder = sealed_copy(bundle, tmp_path / "mine")
    _, path = verify(VerifyConfig(bundle=folder, episodes=0), say=lambda line: None)
    assert path == tmp_path / "mine.receipt.json"
    read_bundle(folder)


@pytest.mark.parametrize("name", ["flow.actions", *PARTS])
def test_an_error_in_any_part_is_found_and_named(bundle: Path, tmp_path: Path, name: str) -> None:
    stored = Vectors.load(bundle / VECTORS_NAME)
    if name == "flow.actions":
        changed = stored.actions.copy()
        changed[3, 2, 1] += 1e-3
        folder = with_other_vectors(bundle, tmp_path / "mine", actions=changed)
    else:
        part = stored.parts[name].copy()
        part.flat[-1] += 0.001 * np.abs(part).max()
        folder = with_other_vectors(bundle, tmp_path / "mine", parts={**stored.parts, name: part})
    receipt, _ = parity(folder, tmp_path)
    assert receipt.verdict == "failed"
    assert [fault.split()[0] for fault in receipt.faults] == [name]


def test_tokens_that_differ_are_counted_and_actions_compared_after_the_same_words(bundle: Path) -> None:
    spec = read_bundle(bundle).manifest.policy
    stored = Vectors.load(bundle / VECTORS_NAME)
    tokens = (stored.tokens[1], *stored.tokens[1:])  # the first one thinks what the second one should
    found = answer_vectors(bundle, "onnx", stored.observations, stored.noise, tokens=tokens)
    errors = compare_vectors(replace(stored, tokens=tokens), found, spec)
    assert errors.same_tokens < 1.0
    with Policy.load(bundle, draft=False) as policy:
        after_those_words = policy.act(stored.observations[0], noise=stored.noise[0], words=tokens[0][1:-1])
    assert np.allclose(found.actions[0], after_those_words.actions, atol=1e-5)  # words read at once, and one by one
    assert not np.allclose(found.actions[0], stored.actions[0], atol=1e-4)
    assert np.allclose(found.actions[1:], stored.actions[1:], atol=1e-5)


def test_noise_that_is_injected_decides(bundle: Path) -> None:
    spec = read_bundle(bundle).manifest.policy
    seen = Vectors.load(bundle / VECTORS_NAME).observations[0]
    noise = draw_noise(2, spec)
    with Policy.load(bundle) as policy:

        def act(index: int) -> FloatArray:
            policy.reset()  # or the second answer would have other last digits: less of its prompt is read
            return policy.act(seen, noise=noise[index]).actions

        first, again, other = act(0), act(0), act(1)
    assert np.array_equal(first, again)
    assert not np.allclose(first, other, atol=1e-3)


def test_a_part_that_the_backend_cannot_show_is_a_failure(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Opaque:
        """A backend as anybody may write one: it acts, and shows nothing."""

        def __init__(self, inner: OnnxBackend) -> None:
            for name in ("spec", "folder", "prefill", "step", "flow", "close"):
                setattr(self, name, getattr(inner, name))

        @classmethod
        def open(cls, path: Path, *, threads: int) -> "Opaque":
            return cls(OnnxBackend.open(path, threads=threads))

    monkeypatch.setattr("roboalign.export.vectors.find_backend", lambda name: Opaque)
    receipt, _ = parity(bundle, tmp_path)
    assert receipt.verdict == "failed"
    unseen = ("prefill.hidden", "prefill.kv", "step.hidden", "step.kv")
    assert receipt.faults == tuple(f"{name} was not measured" for name in unseen)


def test_windows_that_read_otherwise_than_steps_are_a_failure(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extend = InPlaceBackend.extend
    monkeypatch.setattr(InPlaceBackend, "extend", lambda self, decoding, ids: extend(self, decoding, ids) + 1)
    receipt, _ = parity(bundle, tmp_path)
    assert [fault[:46] for fault in receipt.faults] == ["parity failed: window16 differs from as many s"]


def test_too_few_tokens_alike_is_a_failure(bundle: Path, tmp_path: Path) -> None:
    stored = Vectors.load(bundle / VECTORS_NAME)
    folder = with_other_vectors(bundle, tmp_path / "mine", quick_tokens=((0,) * 40,) * len(stored.quick_tokens))
    receipt, _ = parity(folder, tmp_path)
    assert [fault for fault in receipt.faults if "of the tokens agree, at least 90% must" in fault]


def test_a_bundle_without_vectors_is_incomplete(bundle: Path, tmp_path: Path) -> None:
    folder = sealed_copy(bundle, tmp_path / "mine")
    (folder / VECTORS_NAME).unlink()
    receipt, _ = parity(sealed_copy(bundle, folder), tmp_path)
    assert (receipt.verdict, receipt.parity) == ("incomplete", None)
    assert receipt.missing[0].startswith("parity: the bundle holds no answers of PyTorch; export it again")


def test_without_the_simulator_nothing_is_verified(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None if name == "pybullet" else object())
    receipt, _ = parity(bundle, tmp_path, episodes=60)
    assert receipt.verdict == "incomplete"
    assert receipt.missing == ("closed loop: pybullet is not installed here: pip install 'roboalign[sim]'",)
    assert main(["verify", str(bundle), "--out", str(tmp_path / "again.json")]) == 1
    assert "error: incomplete: closed loop: pybullet is not installed" in capsys.readouterr().err


def test_a_reference_that_solves_nothing_proves_nothing(bundle: Path, tmp_path: Path) -> None:
    """The tiny policy is random, so this plays for real and ends as it must."""
    other = sealed_copy(bundle, tmp_path / "other", name="head-other")
    receipt, said = parity(bundle, tmp_path, episodes=2, reference=other)
    assert receipt.closed_loop is not None
    assert (receipt.closed_loop.num_episodes, receipt.closed_loop.robot) == (2, "panda")
    assert receipt.verdict == "failed"
    assert receipt.faults == ("the reference solved no scene, so the comparison proves nothing",)
    assert any("0 of 2 solved, 0 by the reference (head-other in fp16, onnx)" in line for line in said)


def test_a_loss_must_be_bounded_and_figures_alike_verify(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for loop, verdict in (
        (some_loop(), "verified"),
        (some_loop(num_episodes=10, interval_low=-0.28, interval_high=0.28), "failed"),
        (some_loop(num_successes=40, difference=-0.17, interval_low=-0.28, interval_high=-0.09), "failed"),
    ):
        monkeypatch.setattr(module, "_play", lambda *args, loop=loop: loop)
        receipt, _ = parity(bundle, tmp_path, episodes=60)
        assert receipt.verdict == verdict
        assert all("success may be lower by 28.0 points, at most 10 are accepted" in fault for fault in receipt.faults)


def test_codes_need_a_reference_in_full_weights(bundle: Path, tmp_path: Path) -> None:
    folder = sealed_copy(bundle, tmp_path / "few", precision="int4")
    with pytest.raises(ConfigError, match="would not show what rounding costs; name the bundle in full weights"):
        parity(folder, tmp_path, episodes=60)
    other = replace(read_bundle(bundle).manifest.robot, name="so101")
    with pytest.raises(ConfigError, match="the reference is for the robot so101, the bundle for panda"):
        parity(folder, tmp_path, episodes=60, reference=sealed_copy(bundle, tmp_path / "other", robot=other))


def test_narrow_products_are_played_against_their_weights_which_are_full(bundle: Path, tmp_path: Path) -> None:
    folder = sealed_copy(bundle, tmp_path / "narrow", precision="int8-w8a8")
    module._check_reference(VerifyConfig(bundle=folder), folder, read_bundle(folder).manifest)


def test_a_bundle_is_no_reference_of_itself(bundle: Path, tmp_path: Path) -> None:
    """It once was: nothing differed, and the verdict said verified."""
    for reference in (bundle, sealed_copy(bundle, tmp_path / "copy")):
        with pytest.raises(ConfigError, match="is the bundle itself, so nothing would be compared"):
            parity(bundle, tmp_path, episodes=60, reference=reference)


def test_an_altered_bundle_fails_and_what_is_none_is_named(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = sealed_copy(bundle, tmp_path / "mine")
    (folder / "step.onnx").write_bytes(b"")
    with pytest.raises(CheckFailed, match=r"not verified: .*damaged: step\.onnx"):
        parity(folder, tmp_path)
    assert main(["verify", str(tmp_path / "nowhere"), "--episodes", "0"]) == 2
    assert "no bundle at" in capsys.readouterr().err


def test_the_command_says_parity_alone_and_exits_with_0(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "receipt.json"
    assert main(["verify", str(bundle), "--episodes", "0", "--out", str(out), "--json"]) == 0
    text, err = capsys.readouterr()
    assert json.loads(text)["receipt"] == json.loads(out.read_text())
    assert err.endswith("verdict: parity only\n")


def test_a_receipt_cannot_claim_what_it_does_not_hold(bundle: Path, tmp_path: Path) -> None:
    receipt, _ = parity(bundle, tmp_path)
    write_receipt(replace(receipt, verdict="verified"), tmp_path / "bold.json")
    with pytest.raises(DataError, match="says 'verified' without every measurement"):
        read_receipt(tmp_path / "bold.json")
    (tmp_path / "empty.json").write_text("{}")
    with pytest.raises(DataError, match=r"empty\.json is no receipt"):
        read_receipt(tmp_path / "empty.json")
    write_receipt(replace(receipt, bundle={"name": "mine"}), tmp_path / "silent.json")
    with pytest.raises(DataError, match="does not say the bundle's precision"):
        read_receipt(tmp_path / "silent.json")


def test_the_table_names_the_runtime_that_ran(bundle: Path, tmp_path: Path) -> None:
    receipt, _ = parity(bundle, tmp_path)
    (tmp_path / "out.json").unlink()
    machine = {**receipt.machine, "tensorrt": "10.3.0"}
    write_receipt(replace(receipt, backend="tensorrt", machine=machine), tmp_path / "board.json")
    assert "| tensorrt 10.3.0 |" in receipt_table(tmp_path)


def test_the_table_of_the_docs_is_made_of_the_receipts() -> None:
    table = receipt_table(ROOT / "docs" / "receipts")
    assert table in (ROOT / "docs" / "jetson.md").read_text(encoding="utf-8")
    assert "| verified |" in table


def test_the_difference_of_actions_is_that_of_the_worst_field_and_of_the_asked_share() -> None:
    shares = np.zeros((10, 2, 3), np.float32)
    shares[:, 0, 1] = np.arange(10) / 100
    shares[0, 0, 2] = 0.5
    assert action_difference(shares, 1.0) == pytest.approx(0.5)
    assert action_difference(shares, 0.95) == pytest.approx(0.08, abs=1e-3)  # of field 1; one of twenty strays in 2
    assert action_difference(shares[:0], 1.0) == 0.0
