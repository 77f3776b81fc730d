"""One program, three worlds: the same file, unchanged, in PyBullet and on virtual servos; a robot file differs.

What the third world, an arm on the desk, adds is the port's name.
"""

import json
from dataclasses import replace

import pytest
from tests.drivers.arm.rig import write_files
from tests.examples.test_examples import run_example, said

from roboalign.drivers.arm.files import CameraFile, write_robot_file
from roboalign.drivers.virtual import VirtualBus, VirtualBusConfig
from roboalign.sdk.sim.so101 import so101_spec

SIMULATED = {"arm": "sim:so101", "simulation": {"task": "place", "seed": 3}}


@pytest.fixture(autouse=True)
def needs_onnxruntime():
    pytest.importorskip("onnxruntime")


def simulated(folder, **changes):
    path = folder / "robot.json"
    path.write_text(json.dumps(SIMULATED | changes), encoding="utf-8")
    return path


def test_it_moves_the_simulated_arm_without_a_question(tmp_path):
    lines = said("one_program", "--robot", simulated(tmp_path), "--seconds", "2", cwd=tmp_path)
    assert lines[0] == 'so101 is told: "put the red block in the blue bowl".'
    assert "red block" in lines[1]
    assert lines[-1].startswith("20 actions, 0 holds")


@pytest.mark.slow
def test_it_moves_the_servos_of_a_virtual_arm_and_parks_them(tmp_path):
    link = tmp_path / "arm"
    file = replace(write_files(tmp_path), port=str(link), cameras={"front": CameraFile(device=f"sim:{link}")})
    write_robot_file(tmp_path / "robot.toml", replace(file, park_after_s=20.0))
    config = VirtualBusConfig(robot="so101", rate_hz=100.0, task="place", seed=3)  # lockstep: a busy machine is slow
    with VirtualBus(link, config) as bus:
        done = run_example("one_program", "--robot", tmp_path / "robot.toml", "--seconds", "2", cwd=tmp_path)
        assert done.returncode == 1
        assert "error: nobody answers" in done.stderr, "it asks before servos move"
        lines = said("one_program", "--robot", tmp_path / "robot.toml", "--seconds", "2", "--yes", cwd=tmp_path)
        state = bus.control.state()
    assert lines[0] == 'so101 is told: "put the red block in the blue bowl".'
    assert lines[-1].startswith("20 actions, 0 holds")
    assert state["has_torque"] == [False] * 6
    assert state["position_rad"][:5] == pytest.approx(so101_spec().park_joint_pos_rad, abs=0.12)


def test_a_policy_of_another_arm_is_refused_in_any_world(tmp_path):
    done = run_example("one_program", "--robot", simulated(tmp_path, arm="sim:panda"), cwd=tmp_path)
    assert done.returncode == 1
    assert "is for the robot so101, and this is panda" in done.stderr
    assert "Traceback" not in done.stderr
