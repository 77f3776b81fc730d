"""What `roboalign info` says, that it fits a terminal, and that it needs no framework."""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from roboalign.cli.main import main
from roboalign.export.info import _weights, info_lines, read_info
from roboalign.export.rounding import QUANTIZED_BITS, quantizable, round_layers
from roboalign.export.weights import write_weights
from roboalign.sdk.bundle import SHIPPED_BUNDLES, read_bundle
from roboalign.sdk.errors import BundleError


@pytest.mark.parametrize("name", [None, *SHIPPED_BUNDLES])
def test_a_bundle_is_described_in_80_columns(bundle: Path, name: str | None) -> None:
    info = read_info(bundle if name is None else Path(name))
    lines = info_lines(info)
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    policy = info.manifest.policy
    for word in (*policy.action_names, *policy.state_names, *policy.camera_names, *info.manifest.files):
        assert word in text
    for low in policy.action_low:
        assert f"{low:.4g}" in text
    assert f"up to {policy.max_thought_tokens} tokens" in text
    assert f"{policy.image_size_px} x {policy.image_size_px}" in text


def test_robot_parity_and_plan_are_said(bundle: Path) -> None:
    lines = info_lines(read_info(bundle))
    assert any(line.startswith("robot       panda; statistics ") for line in lines)
    assert any("by field: dx_m " in line for line in lines)
    assert any(line.startswith("plan        cpu: fits, ") for line in lines)
    assert any(line.startswith("weights     fp16; 0% of ") for line in lines)


def test_a_refused_board_is_said_with_its_reason(bundle: Path, tmp_path: Path) -> None:
    from tests.export.test_verify import sealed_copy

    folder = sealed_copy(bundle, tmp_path / "mine")
    plan = json.loads((folder / "plan.json").read_text())
    plan["plan"]["boards"][0]["refusals"] = [{"kind": "type", "reason": "it lacks fp8"}]
    (folder / "plan.json").write_text(json.dumps(plan))
    assert read_info(sealed_copy(bundle, folder)).boards[0].startswith("cpu: it lacks fp8, ")


@pytest.mark.parametrize(("precision", "bits"), [("int4", 4 + 16 / 32), ("int8", 8 + 16 / 32)])
def test_bytes_of_codes_count_their_scales(tmp_path: Path, precision: str, bits: float) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(128, 64), torch.nn.LayerNorm(64), torch.nn.Conv2d(32, 64, 2))
    codes = round_layers(quantizable(module), QUANTIZED_BITS[precision])
    write_weights(module, tmp_path / "model.safetensors", precision, codes=codes)
    found = _weights(tmp_path / "model.safetensors")
    matrix, kernel = 128 * 64, 32 * 64 * 4
    assert (found.num_matrix, found.num_coded) == (matrix, matrix + kernel)
    assert found.num_weights == matrix + kernel + 4 * 64
    assert found.matrix_bytes == matrix * bits / 8


def test_the_page_holds_everything_and_loads_nothing(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bundle.html"
    assert main(["info", str(bundle), "--html", str(out)]) == 0
    page = out.read_text()
    manifest = read_bundle(bundle).manifest
    for record in manifest.files.values():
        assert record.sha256 in page
    assert not [word for word in ("http", "<script", "src=", "@import", str(tmp_path)) if word in page]
    assert "page: " in capsys.readouterr().err


def test_json_holds_the_manifest_and_the_sizes(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(bundle), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["result"]
    assert found["manifest"] == json.loads(json.dumps(asdict(read_bundle(bundle).manifest)))
    assert found["num_bytes"] == sum(path.stat().st_size for path in bundle.iterdir() if path.name != "manifest.json")


def test_parity_of_float16_does_not_say_that_every_token_is_the_same(bundle: Path, tmp_path: Path) -> None:
    from tests.export.test_verify import sealed_copy

    record = read_bundle(bundle).manifest.parity
    assert record is not None
    folder = sealed_copy(bundle, tmp_path / "mine", parity=replace(record, equal_tokens=0.9751))
    text = " ".join(" ".join(info_lines(read_info(folder))).split())
    assert f"97.51% of {record.num_tokens} greedy tokens identical" in text


@pytest.mark.parametrize("text", ['{"plan": {"boards": [{}]}}', "[]", "not json"])
def test_a_plan_of_another_form_is_one_line(bundle: Path, tmp_path: Path, text: str) -> None:
    from tests.export.test_verify import sealed_copy

    folder = sealed_copy(bundle, tmp_path / "mine")
    (folder / "plan.json").write_text(text)
    sealed_copy(bundle, folder)
    with pytest.raises(BundleError, match="described in another way than this version knows"):
        read_info(folder)


def test_nothing_is_said_about_a_bundle_that_is_altered(bundle: Path, tmp_path: Path) -> None:
    from tests.export.test_verify import sealed_copy

    folder = sealed_copy(bundle, tmp_path / "mine", policy=replace(read_bundle(bundle).manifest.policy, horizon=0))
    with pytest.raises(BundleError, match=r"policy\.horizon is 0, expected more than 0"):
        read_info(folder)


def test_it_needs_no_framework(bundle: Path) -> None:
    code = (
        "import sys\nfrom roboalign.cli.main import main\n"
        f"assert main(['info', {str(bundle)!r}]) == 0\n"
        "names = ('torch', 'onnx', 'onnxruntime', 'safetensors', 'transformers', 'pybullet')\n"
        "print([name for name in names if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
