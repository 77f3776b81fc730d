"""A bundle on a robot: what does not fit is refused before anything opens; limits, the question, parking."""

import dataclasses
import signal
import threading

import numpy as np
import pytest
from tests.drivers.arm.rig import write_files
from tests.drivers.setup_bench import Person
from tests.drivers.test_teleop import PacedArm

from roboalign.drivers.arm.files import CameraFile, write_robot_file
from roboalign.drivers.setup.run import check_fit, describe_limits, run_file, run_on_robot
from roboalign.sdk.bundle import find_bundle, read_bundle
from roboalign.sdk.control.session import SessionConfig
from roboalign.sdk.errors import BundleError, CheckFailed, ConfigError, RobotError
from roboalign.sdk.serving.remote import RemotePolicy
from roboalign.sdk.serving.server import PolicyServer, ServerConfig
from roboalign.sdk.sim.panda import panda_spec
from roboalign.sdk.sim.so101 import so101_spec
from roboalign.sdk.types import COMMANDED_STATE_NAMES, ActionChunk

SPEC = read_bundle(find_bundle("nano-so101")).manifest.policy


class Lifts:
    """A policy that lifts, and does what else it is told at one chunk."""

    def __init__(self, at_chunk=lambda number: None):
        self.spec = SPEC
        self.count = 0
        self.at_chunk = at_chunk

    def reset(self):
        self.count = 0

    def act(self, observation):
        self.at_chunk(self.count)
        self.count += 1
        up = np.tile(np.array((0, 0, 0.002, 0, 1), np.float32), (4, 1))
        return ActionChunk(actions=up, rate_hz=SPEC.rate_hz, source="flow", thought="up")

    def close(self):
        pass


class Watched(PacedArm):
    """Notes the order of what it is told."""

    def __init__(self):
        super().__init__()
        self.told = []

    def connect(self, **more):
        self.told.append("connect")
        self.inner.connect(**more)

    def park(self):
        self.told.append("park")

    def disconnect(self):
        self.told.append("disconnect")
        self.inner.disconnect()


@pytest.fixture
def arm():
    return Watched()


def run(arm, policy, person, **more):
    return run_on_robot(arm, policy, "lift", person, **{"max_ticks": 8, "clock": arm.clock, **more})


def test_it_asks_runs_parks_and_disconnects(arm):
    person = Person(["yes"])
    report = run(arm, Lifts(), person)
    assert (report.ticks, report.stopped_by) == (8, "max_ticks")
    assert arm.told == ["connect", "park", "disconnect"]
    assert any("shoulder_pan" in line and "deg/s" in line for line in person.said)
    assert "The arm will move" in person.asked[0]


def test_without_a_yes_nothing_is_opened(arm):
    with pytest.raises(CheckFailed, match="nothing has moved"):
        run(arm, Lifts(), Person(["perhaps"]))
    assert arm.told == []


def test_who_is_sure_is_not_asked_but_sees_the_limits(arm):
    person = Person([])
    run(arm, Lifts(), person, is_sure=True)
    assert person.said[0].startswith(arm.spec.name)


@pytest.fixture
def ctrl_c():
    """Python's own handler of Ctrl-C; a process that was started in the background ignores the signal instead."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_parks_and_a_second_one_does_not_cut_it_short(arm):
    def interrupt(number):
        if number == 1:
            raise KeyboardInterrupt

    def park():
        arm.told.append("park begins")
        signal.raise_signal(signal.SIGINT)
        arm.told.append("park ends")

    arm.park = park
    person = Person([])
    with pytest.raises(KeyboardInterrupt):
        run(arm, Lifts(interrupt), person, is_sure=True)
    assert arm.told == ["connect", "park begins", "park ends", "disconnect"]
    assert any("parking first" in line for line in person.said)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_an_arm_that_cannot_park_is_still_disconnected(arm):
    def park():
        raise RobotError("servo 3 is overloaded")

    arm.park = park
    person = Person([])
    run(arm, Lifts(), person, is_sure=True)
    assert arm.told == ["connect", "disconnect"]
    assert "not parked: servo 3 is overloaded" in person.said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"camera_names": ("wrist",)}, "it lacks front and the bundle does not know wrist"),
        ({"camera_names": ("front", "wrist")}, "the bundle does not know wrist"),
        ({"image_size_px": 128}, "write size_px = 96 under"),
        ({"control_rate_hz": 30.0}, "write control_rate_hz = 10 in the robot file"),
        ({"state_names": ("a",)}, "the robot a"),
    ],
)
def test_a_robot_that_does_not_fit_is_refused_by_name(arm, change, message):
    spec = dataclasses.replace(arm.spec, **change)
    with pytest.raises(ConfigError, match=message):
        check_fit(spec, SPEC)


def test_a_policy_that_acts_from_where_the_tool_was_sent_fits(arm):
    check_fit(arm.spec, dataclasses.replace(SPEC, state_names=COMMANDED_STATE_NAMES))


@pytest.mark.parametrize(
    ("bundle", "make_spec", "box"),
    [
        ("nano-policy", so101_spec, r"x 0\.30 to 0\.94, .* the tool of so101 goes to x 0\.1"),
        ("nano-so101", panda_spec, r"x 0\.05 to 0\.37, .* the tool of panda goes to x 0\.30 to 0\.70"),
    ],
)
def test_a_bundle_of_another_arm_is_refused_in_one_line(bundle, make_spec, box):
    """Cameras, fields and rate of our two arms are the same, so a Panda's policy steered an SO-101."""
    spec = dataclasses.replace(make_spec(), image_size_px=96)
    with pytest.raises(ConfigError, match=rf"{box}.* another arm; name a bundle") as refusal:
        check_fit(spec, read_bundle(find_bundle(bundle)).manifest.policy, bundle)
    assert "\n" not in str(refusal.value)
    own = "nano-so101" if bundle == "nano-policy" else "nano-policy"
    check_fit(spec, read_bundle(find_bundle(own)).manifest.policy, own)


def test_run_refuses_the_bundle_of_another_arm_before_it_opens_anything(tmp_path):
    pytest.importorskip("onnxruntime")
    robot = write_files(tmp_path, cameras={"front": CameraFile(device=f"file:{tmp_path}/desk.png")})
    write_robot_file(tmp_path / "robot.json", robot)
    person = Person([])
    with pytest.raises(BundleError, match=r"nano-policy is for the robot panda, and this is so101"):
        run_file(tmp_path / "robot.json", "nano-policy", "lift", person, config=SessionConfig(seconds=1.0))
    assert (person.said, person.asked) == (["loading the policy in a process of its own"], [])


@pytest.fixture
def served():
    """A server of policies that lift: `Lifts`, with the spec of the SO-101's bundle."""
    server = PolicyServer(Lifts, {"name": "lifts"}, so101_spec(), ServerConfig(port=0)).open()
    thread = threading.Thread(target=server.serve)
    thread.start()
    yield server.url
    server.close()
    thread.join(timeout=10)


def test_a_policy_that_is_served_elsewhere_moves_the_arm(arm, served):
    with RemotePolicy(served) as policy:
        report = run(arm, policy, Person(["yes"]))
    assert (report.ticks, dict(report.hold_reasons)) == (8, {})


def test_run_takes_an_address_and_asks_its_policy_whether_it_fits(tmp_path, served):
    robot = write_files(tmp_path, cameras={"desk": CameraFile(device=f"file:{tmp_path}/desk.png")})
    write_robot_file(tmp_path / "robot.json", robot)
    with pytest.raises(ConfigError, match=rf"{served} .*front"):
        run_file(tmp_path / "robot.json", served, "lift", Person([]), config=SessionConfig(seconds=1.0))
    with pytest.raises(ConfigError, match="chosen where it is served"):
        run_file(tmp_path / "robot.json", served, "lift", Person([]), config=SessionConfig(seconds=1.0), think=False)


def test_a_robot_that_fits_is_accepted(arm):
    check_fit(arm.spec, SPEC)
    assert len(describe_limits(arm.spec)) == 2 + arm.spec.num_joints


def test_a_robot_is_never_given_the_bundle_of_another_arm_by_default(tmp_path):
    with pytest.raises(ConfigError, match="name a bundle, nano-so101 or the folder"):
        run_file(tmp_path / "robot.toml", None, "lift", Person([]), config=SessionConfig(seconds=1.0))
