"""Robot files whose arm is simulated."""

import json
import subprocess
import sys

import numpy as np
import pytest

from roboalign.drivers import check_robot, load_robot
from roboalign.drivers.arm.files import read_robot_file
from roboalign.drivers.arm.simulation import SimulatedFile, read_any_robot_file
from roboalign.drivers.doctor import examine
from roboalign.drivers.setup.pilots import ScriptPilot, Wish
from roboalign.drivers.setup.station import StationConfig, record_at_station
from roboalign.sdk.control import FakeClock
from roboalign.sdk.data import LeRobotDataset
from roboalign.sdk.errors import ConfigError
from roboalign.sdk.robot import Robot
from roboalign.sdk.sim import SimEnv


def written(folder, **content):
    path = folder / "robot.json"
    path.write_text(json.dumps({"arm": "sim:so101"} | content), encoding="utf-8")
    return path


def test_its_fields_are_read(tmp_path):
    path = written(tmp_path, simulation={"task": "push", "seed": 4, "camera": "desk", "size_px": 64})
    assert read_any_robot_file(path) == SimulatedFile(arm="so101", task="push", seed=4, camera="desk", size_px=64)


def test_toml_is_read_as_well(tmp_path):
    pytest.importorskip("tomllib")
    path = tmp_path / "robot.toml"
    path.write_text('arm = "sim:panda"\n[simulation]\nseed = 2\n', encoding="utf-8")
    assert read_any_robot_file(path) == SimulatedFile(arm="panda", seed=2)


def test_it_stands_in_front_of_the_scene_of_the_task(tmp_path):
    robot = load_robot(written(tmp_path, simulation={"task": "place", "seed": 4, "camera": "desk"}))
    assert isinstance(robot, Robot)
    assert robot.spec.camera_names == ("desk",)
    env = SimEnv("place", robot="so101")
    env.reset(seed=4)
    for _ in range(2):  # a robot that is connected again stands in front of the same scene
        robot.connect()
        assert robot.world.state_hash() == env.state_hash()
        assert np.array_equal(robot.observe().images["desk"], env.observe().images["front"])
        robot.disconnect()
    env.close()


def test_it_keeps_every_promise_of_a_robot(tmp_path):
    robot = load_robot(written(tmp_path, simulation={"task": "place", "seed": 4}))
    check_robot(robot, sleep=lambda _: None).raise_if_failed()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"arm": "sim:so102"}, "so102"),
        ({"simulation": {"task": "plaice"}}, "plaice"),
        ({"simulation": {"seed": -1}}, "seed is -1"),
        ({"simulation": {"size_px": 4}}, "size_px is 4"),
        ({"simulation": {"sede": 1}}, "sede"),
        ({"port": "/dev/ttyACM0"}, "port"),
        ({"arm": "sim:so101", "simulation": {"task": "spatial/left_of_bowl"}}, "so101"),
    ],
)
def test_what_cannot_be_is_named_with_its_place(tmp_path, content, said):
    path = written(tmp_path, **content)
    with pytest.raises(ConfigError, match=said) as told:
        load_robot(path)
    assert str(path) in str(told.value)


def test_what_needs_servos_says_so(tmp_path):
    with pytest.raises(ConfigError, match="'sim:so101', which has no servos"):
        read_robot_file(written(tmp_path))


def test_the_doctor_has_nothing_to_look_at(tmp_path):
    report = examine(written(tmp_path))
    assert report.is_ok
    assert "the simulated so101" in str(report)


def test_episodes_are_recorded_on_it_scene_by_scene(tmp_path):
    path = written(tmp_path, simulation={"task": "push", "seed": 4, "camera": "desk"})
    move = np.array((0.005, 0, 0, 0, 1), np.float32)
    pilot = ScriptPilot([([move] * 4, Wish.KEEP)] * 2)
    said = []

    class Nobody:
        say = said.append

    report = record_at_station(
        StationConfig(robot_file=path),
        lambda spec: pilot,
        Nobody(),
        out=tmp_path / "data",
        task="unused",
        episodes=2,
        seconds=5.0,
        clock=FakeClock(),
    )
    assert report.is_complete
    dataset = LeRobotDataset(tmp_path / "data")
    assert tuple(dataset.info.cameras) == ("desk",)
    assert [dataset.episode(index).task for index in range(2)] == [
        read_any_robot_file(path).scene(index).instruction for index in range(2)
    ]


def roboalign(*args, cwd):
    command = [sys.executable, "-m", "roboalign", *map(str, args)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL)


def test_run_moves_it_with_the_processes_of_a_robot(tmp_path):
    pytest.importorskip("onnxruntime")
    path = written(tmp_path, simulation={"task": "place", "seed": 3})
    done = roboalign("run", "nano-so101", "--robot", path, "--seconds", "2", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)["report"]
    assert report["ticks"] + report["misses"] >= 20
    assert "Type yes" not in done.stderr
    assert "Traceback" not in done.stderr
