"""The folder that an identification leaves, and what can be done with it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tests.sdk.sysid.arms import make_recording

from roboalign.cli.main import main
from roboalign.sdk.errors import ConfigError, DataError
from roboalign.sdk.randomization import DomainRandomization, DomainSample, Each, Uniform, preset, read_hidden
from roboalign.sdk.sysid import SysidResult, fit_recording, write_outputs

VALUES = np.array(
    [[20.0, 21.0, 22.0, 23.0, 24.0], [0.8] * 5, [0.7, 0.8, 0.9, 0.6, 0.5], [0.004] * 5, [0.001] * 5],
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sysid") / "arm"
    write_outputs(out, fit_recording(make_recording(VALUES, seconds=12.0, noise_rad=0.001)), base="mild")
    return out


def test_the_folder_holds_what_it_promises(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["randomization.toml", "report.html", "sysid.json"]
    page = (folder / "report.html").read_text()
    assert page.count("<svg") == 15
    assert "shoulder_pan" in page
    assert "http" not in page


def test_the_randomisation_is_drawn_inside_the_intervals_joint_by_joint(folder: Path) -> None:
    result = SysidResult.from_json(json.loads((folder / "sysid.json").read_text()))
    found = DomainRandomization.load(folder / "randomization.toml")
    assert found.camera_pose == preset("mild").camera_pose
    for seed in range(20):
        sample = found.sample(seed)
        for joint, (delay, scale) in enumerate(
            zip(result.joints["delay_ms"], result.joints["speed_scale"], strict=True)
        ):
            drawn_ms = sample.delay.bus_ms + sample.delay.joint_ms[joint]
            assert delay.low - 1e-3 <= drawn_ms <= delay.high + 1e-3
            assert scale.low - 1e-6 <= sample.rate_limit.speed_scale[joint] <= scale.high + 1e-6


def test_the_sample_of_the_result_is_a_hidden_arm_of_its_own(folder: Path, tmp_path: Path) -> None:
    content = json.loads((folder / "sysid.json").read_text())
    (tmp_path / "arm.json").write_text(json.dumps(content["sample"]))
    sample = read_hidden(tmp_path / "arm.json")
    assert sample == DomainSample.from_json(content["sample"])
    total = [sample.delay.bus_ms + extra for extra in sample.delay.joint_ms[:5]]
    np.testing.assert_allclose(total, VALUES[0], atol=2.0)


def test_a_damaged_result_is_refused() -> None:
    with pytest.raises(DataError, match="format None, this version reads 1"):
        SysidResult.from_json({})
    with pytest.raises(DataError, match="damaged"):
        SysidResult.from_json({"format": 1})


def test_a_hidden_arm_is_a_sample_or_a_randomisation_with_a_seed(tmp_path: Path) -> None:
    assert read_hidden("strong", 3) == preset("strong").sample(3)
    path = tmp_path / "arm.json"
    path.write_text(json.dumps(preset("strong").sample(3).to_json()))
    assert read_hidden(path) == preset("strong").sample(3)
    with pytest.raises(ConfigError, match="is one drawn sample, a seed of 4 has nothing to choose"):
        read_hidden(path, 4)
    with pytest.raises(ConfigError, match="strong is a randomisation; give the seed"):
        read_hidden("strong")
    path.write_text(json.dumps({**preset("strong").sample(3).to_json(), "delay": {"bus_ms": 900.0}}))
    with pytest.raises(ConfigError, match=r"arm\.json: delay.bus_ms is .* possible is 0 to 300 ms"):
        read_hidden(path)


def test_a_range_for_every_joint_draws_each_value_from_its_own() -> None:
    ranges = tuple(Uniform(float(slot), slot + 0.5) for slot in range(8))
    changed = preset("off", {"damping": {"joint_nm_s_rad": {"each": [{"uniform": [r.low, r.high]} for r in ranges]}}})
    assert changed.damping.joint_nm_s_rad == Each(ranges)
    assert DomainRandomization.from_json(changed.to_json()) == changed
    drawn = changed.sample(11).damping.joint_nm_s_rad
    assert [int(value) for value in drawn] == list(range(8))
    with pytest.raises(ConfigError, match="holds 2 ranges, one for each joint, expected 8 of them"):
        preset("off", {"damping": {"joint_nm_s_rad": {"each": [0.1, 0.2]}}})
    with pytest.raises(ConfigError, match="expected no of them"):
        preset("off", {"delay": {"bus_ms": {"each": [0.1] * 8}}})
    with pytest.raises(ConfigError, match="possible is 0 to 20"):
        preset("off", {"damping": {"joint_nm_s_rad": {"each": [99.0] * 8}}})
    with pytest.raises(ConfigError, match="expected one range for every value"):
        preset("off", {"damping": {"joint_nm_s_rad": {"each": [{"each": [1.0]}]}}})


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give exactly one of --robot FILE, --hidden FILE and --from RECORDING"),
        (["--hidden", "strong", "--from", "x"], "give exactly one of"),
        (["--hidden", "strong"], "give the seed that draws the hidden arm"),
        (["--hidden", "strnog", "--hidden-seed", "1"], "strong"),
        (["--from", "nowhere"], "cannot read the recording nowhere"),
        (["--from", "x", "--preset", "milt"], "mild"),
        (["--hidden", "strong", "--hidden-seed", "1", "--arm", "so110"], "so101"),
    ],
)
def test_wrong_arguments_are_named_and_leave_nothing(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sysid", "--out", str(tmp_path / "out"), *arguments]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_simulated_arm_is_identified_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["--hidden", "strong", "--hidden-seed", "2", "--seconds", "6", "--preset", "off", "--json"]
    assert main(["sysid", "--out", str(out), *arguments]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert json.loads((out / "sysid.json").read_text()) == printed["sysid"]
    assert printed["sysid"]["provenance"]["is_whole_arm_simulated"] is True
    hidden = preset("strong").sample(2)
    delays = [item["value"] for item in printed["sysid"]["joints"]["delay_ms"]["estimates"]]
    wanted = [hidden.delay.bus_ms + extra for extra in hidden.delay.joint_ms[:5]]
    np.testing.assert_allclose(delays, wanted, atol=4.0)
    age = printed["sysid"]["whole"]["frame_age_steps"]
    assert age["low"] <= hidden.frame_age.steps <= age["high"]
    assert age["high"] - age["low"] <= 1
    assert main(["sysid", "--out", str(tmp_path / "again"), "--from", str(out), "--preset", "off"]) == 0
    again = json.loads((tmp_path / "again" / "sysid.json").read_text())
    assert [item["value"] for item in again["joints"]["delay_ms"]["estimates"]] == pytest.approx(delays, abs=2.0)
