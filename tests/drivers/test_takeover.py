"""A person beside a policy: who has the arm, what the limiter still says, and what is recorded of both."""

import json
import os
import struct
from dataclasses import replace

import numpy as np
import pytest
from tests.drivers.arm.rig import write_files
from tests.drivers.setup_bench import Person
from tests.drivers.test_teleop import PacedArm
from tests.sdk.control.fake_process import Bench

from roboalign.cli.main import main
from roboalign.drivers.arm.files import CameraFile, write_robot_file
from roboalign.drivers.setup.hands import KeyHands, LeaderHands, PadHands, make_hands
from roboalign.drivers.setup.pilots import Wish
from roboalign.drivers.setup.takeover import (
    PERSON,
    TakeoverRobot,
    record_in_simulation,
    record_on_robot,
    record_takeover,
)
from roboalign.drivers.setup.teleop import RecordConfig
from roboalign.drivers.virtual.config import VirtualBusConfig
from roboalign.drivers.virtual.process import VirtualBus
from roboalign.sdk.control.loop_report import RunReport
from roboalign.sdk.control.policy_process import PolicyRecipe
from roboalign.sdk.control.session import SessionConfig
from roboalign.sdk.control.watchdog import Guard
from roboalign.sdk.data import LeRobotDataset, check_dataset
from roboalign.sdk.errors import CameraTimeout, ConfigError, DataError, RobotError
from roboalign.sdk.evaluation import named_policy
from roboalign.sdk.types import Observation

UP = np.array((0, 0, 0.004, 0, 1), np.float32)
AHEAD = np.array((0.003, 0, 0, 0, 1), np.float32)


class ScriptHands:
    """Has the arm in the periods that a text marks with h, and wishes for something after the last one."""

    def __init__(self, script, wish=Wish.KEEP, action=AHEAD):
        self.script, self.last, self._action, self.index = script, wish, action, 0
        self.starts = self.noted = 0
        self.is_open = self.is_closed = False

    def open(self):
        self.is_open = True

    def start(self, observation):
        self.index, self.starts = 0, self.starts + 1

    def action(self, observation):
        mark = self.script[self.index] if self.index < len(self.script) else "."
        self.index += 1
        self.seen = observation
        return self._action if mark == "h" else None

    def took(self, applied):
        self.noted += 1

    def wish(self):
        return self.last if self.index >= len(self.script) else Wish.GO_ON

    def close(self):
        self.is_closed = True


@pytest.fixture
def arm():
    arm = PacedArm()
    arm.connect()
    return arm


def report_of(ticks, stopped_by="until"):
    return RunReport(
        ticks=ticks, misses=0, moved=ticks, reasons={}, notes={}, changes={}, chunks=1, stopped_by=stopped_by
    )


def runner(arm, *, stopped_by="until", fails_at=None, max_ticks=30):
    """Runs a policy that goes up until the person wishes for something, as the real loop does."""

    def run(number, wrap, is_over):
        robot = wrap(arm)
        robot.connect()
        ticks = 0
        while ticks < max_ticks and not is_over():
            if number == fails_at and ticks == 3:
                raise RobotError("servo 3 stopped answering")
            robot.act(UP)
            ticks += 1
        robot.hold()
        return report_of(ticks, stopped_by)

    return run


def record(arm, folder, hands, *, episodes=1, say=lambda line: None, **more):
    config = RecordConfig(out=folder / "data", task="lift it", episodes=episodes)
    return record_takeover(arm.spec, lambda spec: hands, config, runner(arm, **more), say=say)


def test_the_person_acts_in_the_policys_place_and_every_frame_says_so(arm, tmp_path):
    hands, said = ScriptHands("..hhh.."), []
    report = record(arm, tmp_path, hands, say=said.append)
    dataset = LeRobotDataset(tmp_path / "data")
    assert dataset.column("intervention")[:, 0].tolist() == [mark == "h" for mark in "..hhh.."]
    assert (report.record.is_complete, report.frames, report.human_frames) == (True, 7, 3)
    actions = dataset.actions()
    assert (actions[2:5, 0] > 0).all()
    assert (actions[[0, 1, 5, 6], 2] > 0).all()
    assert (actions[[0, 1, 5, 6], 0] == 0).all()
    assert said[:2] == ["you have the arm", "the policy has the arm"]
    assert (hands.noted, hands.is_closed) == (3, True)


def test_the_dataset_is_one_that_lerobot_reads(arm, tmp_path):
    record(arm, tmp_path, ScriptHands("..hh.."))
    info = json.loads((tmp_path / "data" / "meta" / "info.json").read_text())
    assert info["features"]["intervention"] == {"dtype": "bool", "shape": [1], "names": None}
    stats = json.loads((tmp_path / "data" / "meta" / "stats.json").read_text())
    assert stats["intervention"]["mean"] == [pytest.approx(2 / 6)]
    assert LeRobotDataset(tmp_path / "data").episode(0).interventions == (False, False, True, True, False, False)
    found = check_dataset(tmp_path / "data")
    assert not [item for item in found.findings if item.severity == "error"]


def test_the_persons_actions_go_through_the_limiter(arm):
    hands = ScriptHands("h", action=np.array((0.5, 0, 0, 0, 1), np.float32))
    robot = TakeoverRobot(arm, hands, "lift it", lambda line: None)
    applied = robot.act(UP)
    assert applied.requested[0] == 0.5
    assert 0.0 < applied.sent[0] <= arm.spec.max_step_m
    assert applied.reasons[-1] == PERSON
    assert len(applied.reasons) > 1
    assert robot.frames[0][1].reasons == applied.reasons[:-1]


def test_a_hold_is_a_hold_whoever_has_the_arm(arm):
    robot = TakeoverRobot(arm, ScriptHands("hhhh"), "lift it", lambda line: None)
    robot.act(UP)
    arm.clock.advance(0.1)
    before = arm.observe(with_images=False).state
    assert not robot.hold().sent[:4].any()
    assert np.allclose(arm.observe(with_images=False).state, before)
    assert robot.is_human == [True, False]


def test_a_robot_that_cannot_be_seen_holds(arm):
    class Dark(PacedArm):
        def observe(self, instruction="", with_images=True):
            raise DataError("no picture")

    dark = Dark()
    dark.connect()
    robot = TakeoverRobot(dark, ScriptHands("hhhh"), "lift it", lambda line: None)
    assert not robot.act(UP).sent[:4].any()
    assert robot.frames == []


class Failing(PacedArm):
    """An arm of which something does not answer: a camera, or the joints too."""

    failing: str = ""

    def observe(self, instruction="", with_images=True):
        if self.failing == "joints" or (self.failing == "camera" and with_images):
            raise CameraTimeout("camera 'front': its newest picture is 0.90 s old")
        return self.inner.observe(instruction, with_images)


@pytest.mark.parametrize("failing", ["camera", "joints"])
@pytest.mark.parametrize("has_acted", [False, True])
def test_the_person_is_heard_in_every_period_in_which_something_fails(failing, has_acted):
    arm, said = Failing(), []
    robot = TakeoverRobot(arm, hands := ScriptHands("." * has_acted + ".hh.", Wish.QUIT), "lift it", said.append)
    robot.connect()
    if has_acted:
        robot.act(UP)
    arm.failing = failing
    sent = [robot.hold(), robot.act(UP), robot.hold(), robot.act(UP)]
    assert not any(applied.sent[:4].any() for applied in sent)
    assert (hands.starts, hands.index) == (1, 4 + has_acted)
    assert bool(hands.seen.images) is (failing == "joints" and has_acted), "the newest reading that there is"
    assert said == ["you have the arm", "the policy has the arm"]
    assert robot.wish is Wish.QUIT
    assert len(robot.frames) == has_acted


def test_esc_ends_a_run_whose_camera_has_failed(arm):
    """It was heard no more once pictures stayed away: the run went on until it ended by itself."""
    typed = []
    bench = Bench(arm.spec)
    robot = TakeoverRobot(bench.robot, KeyHands(arm.spec, lambda: typed.pop() if typed else ""), "lift it", typed.count)
    bench.guard = Guard(robot)
    see, is_dark = bench.robot.observe, []

    def observe(instruction="", with_images=True):
        if is_dark and with_images:
            raise CameraTimeout("camera 'front' is unplugged")
        return see(instruction, with_images)

    bench.robot.observe = observe
    bench.process.at(1.0, lambda: is_dark.append(True))
    bench.process.at(2.03, lambda: typed.append("\x1b"))
    report = bench.run(60, until=lambda: robot.wish is not Wish.GO_ON)
    bench.close()
    assert report.reasons["stale_camera"] >= 5
    assert (report.stopped_by, report.ticks) == ("until", 22)


def test_hands_that_fail_do_not_keep_the_arm_from_holding(arm):
    class Silent(ScriptHands):
        def action(self, observation):
            raise RobotError("the leader stopped answering")

    robot = TakeoverRobot(arm, Silent("", Wish.QUIT), "lift it", lambda line: None)
    robot.connect()
    assert not robot.hold().sent[:4].any()
    assert robot.wish is Wish.QUIT
    with pytest.raises(RobotError, match="leader stopped"):
        robot.act(UP)


@pytest.mark.parametrize("kind", ["gamepad", "leader"])
def test_a_device_that_is_missing_is_refused_before_anything_moves(kind, arm, tmp_path):
    write_robot_file(tmp_path / "leader.toml", replace(write_files(tmp_path), port=str(tmp_path / "nothing")))
    hands_of = make_hands(kind, leader=tmp_path / "leader.toml", gamepad=tmp_path / "js9")
    config = RecordConfig(out=tmp_path / "data", task="lift it", episodes=1)
    runs = []
    with pytest.raises(RobotError, match=r"js9|nothing"):
        record_takeover(arm.spec, hands_of, config, lambda *given: runs.append(given), say=runs.append)
    assert runs == []
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(("wish", "kept", "is_complete"), [(Wish.KEEP, 2, True), (Wish.QUIT, 0, False)])
def test_the_person_keeps_or_quits(arm, tmp_path, wish, kept, is_complete):
    report = record(arm, tmp_path, ScriptHands(".h.", wish), episodes=2)
    assert (report.record.kept, report.record.is_complete) == (kept, is_complete)


def test_an_episode_that_nobody_wants_is_done_again(arm, tmp_path):
    class Once(ScriptHands):
        def wish(self):
            if self.index >= len(self.script):
                return Wish.DISCARD if self.starts == 1 else Wish.KEEP
            return Wish.GO_ON

    report = record(arm, tmp_path, Once(".h."))
    assert (report.record.kept, report.record.discarded) == (1, 1)
    assert LeRobotDataset(tmp_path / "data").num_episodes == 1


def test_complete_episodes_outlive_an_arm_that_stops_answering(arm, tmp_path):
    with pytest.raises(RobotError, match="servo 3"):
        record(arm, tmp_path, ScriptHands(".hh.."), episodes=3, fails_at=2)
    said = []
    report = record(arm, tmp_path, ScriptHands(".hh.."), episodes=3, say=said.append)
    assert said[0] == "going on after 2 episodes of before"
    assert report.record.is_complete
    assert LeRobotDataset(tmp_path / "data").column("intervention").sum() == 6


def test_a_run_that_ended_by_itself_is_not_kept(arm, tmp_path):
    said = []
    with pytest.raises(RobotError, match="3 episodes in a row were not kept"):
        record(arm, tmp_path, ScriptHands("." * 99), stopped_by="watchdog: gone", max_ticks=5, say=said.append)
    assert said[0] == "episode 0: not kept, the run ended by itself: watchdog: gone"


class Keys:
    """Letters as somebody types them, one text a call."""

    def __init__(self, *texts):
        self.texts = list(texts)

    def __call__(self):
        return self.texts.pop(0) if self.texts else ""


def seen(arm):
    return arm.observe(with_images=False)


def test_a_key_takes_the_arm_and_gives_it_back(arm):
    hands = KeyHands(arm.spec, Keys("wt", "w", "t", "w", "", "tw", "\n"))
    hands.start(seen(arm))  # takes what was typed before
    assert hands.action(seen(arm)) is None
    taken = hands.action(seen(arm))
    assert not taken[:4].any()
    assert hands.action(seen(arm))[0] > 0
    assert not hands.action(seen(arm))[:4].any()
    assert hands.action(seen(arm)) is None
    assert hands.wish() is Wish.GO_ON
    assert hands.action(seen(arm)) is None
    assert hands.wish() is Wish.KEEP


def test_the_gripper_stays_as_it_is_when_the_arm_is_taken(arm):
    closed = seen(arm)
    closed = Observation(
        images={},
        state=np.append(closed.state[:4], np.float32(0.0)),
        joint_pos_rad=closed.joint_pos_rad,
        instruction="",
        time_s=0.0,
    )
    hands = KeyHands(arm.spec, Keys("", " ", "t", " "))
    hands.start(seen(arm))
    assert hands.action(closed) is None  # a space that was typed while the policy had the arm
    assert hands.action(closed)[4] == 0.0
    assert hands.action(closed)[4] == 1.0


def test_the_shoulder_button_takes_the_arm_while_it_is_held(arm, tmp_path):
    device = tmp_path / "js0"
    os.mkfifo(device)
    reading = os.open(device, os.O_RDONLY | os.O_NONBLOCK)
    writing = os.open(device, os.O_WRONLY)
    hands = PadHands(arm.spec, device)

    def send(value, kind, number):
        os.write(writing, struct.pack("<IhBB", 0, value, kind, number))

    hands.open()
    hands.start(seen(arm))
    send(-32767, 2, 1)
    assert hands.action(seen(arm)) is None
    send(1, 1, 4)
    assert hands.action(seen(arm))[0] > 0
    send(0, 1, 4)
    assert hands.action(seen(arm)) is None
    send(1, 1, 7)
    hands.action(seen(arm))
    assert hands.wish() is Wish.KEEP
    hands.close()
    os.close(writing)
    os.close(reading)


class FakeLeader:
    """A leader arm that is where a list says."""

    def __init__(self, places):
        self.places = list(places)
        self.is_closed = False

    def open(self):
        pass

    def start(self, observation):
        pass

    def read_place(self):
        return self.places.pop(0)

    def wish(self):
        return Wish.GO_ON

    def close(self):
        self.is_closed = True


def test_a_leader_that_is_moved_takes_the_arm_and_does_not_make_it_leap(arm):
    rest = np.array((0.3, 0.1, 0.2, 0.0, 0.03), np.float32)
    lifted, higher = rest + np.float32((0, 0, 0.012, 0, 0)), rest + np.float32((0, 0, 0.02, 0, 0))
    places = [rest, rest + np.float32(0.001), lifted, higher, None, *[higher] * 20]
    hands = LeaderHands(arm.spec, FakeLeader(places))
    hands.start(seen(arm))
    assert hands.action(seen(arm)) is None
    assert hands.action(seen(arm)) is None  # a tremor
    first = hands.action(seen(arm))
    assert np.abs(first[:4]).max() < 1e-6  # from where it is, whatever the leader's own pose
    hands.took(arm.act(first))
    second = hands.action(seen(arm))
    assert second[2] == pytest.approx(0.008, abs=1e-4)
    assert np.abs(second[:2]).max() < 1e-6
    assert np.isnan(hands.action(seen(arm))).any()  # no answer in this period, so the robot holds
    later = [hands.action(seen(arm)) for _ in range(20)]
    assert [action is None for action in later].index(True) == 9  # a second without motion
    hands.close()


def test_what_a_leader_does_while_the_watchdog_holds_is_not_made_up_for(arm):
    """The way that the leader went meanwhile was gone at full speed once the watchdog let go."""
    rest = np.array((0.3, 0.1, 0.2, 0.0, 0.03), np.float32)
    up = np.float32((0, 0, 0.012, 0, 0))
    places = [rest, rest + up, rest + 5 * up, rest + 10 * up, rest + 10 * up, rest + 10.5 * up]
    robot = TakeoverRobot(arm, LeaderHands(arm.spec, FakeLeader(places)), "lift it", lambda line: None)
    robot.act(UP)
    taken, *held, back, on = [robot.act(UP), robot.hold(), robot.hold(), robot.act(UP), robot.act(UP)]
    assert [PERSON in each.reasons for each in (taken, *held, back, on)] == [True, False, False, True, True]
    assert np.abs(back.requested[:4]).max() < 1e-6
    assert on.requested[2] == pytest.approx(0.006, abs=1e-4)


def test_hands_that_are_none_are_refused():
    with pytest.raises(ConfigError, match="takeover"):
        make_hands("mouse")
    with pytest.raises(ConfigError, match="--leader leader"):
        make_hands("leader")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--record", "x"], "--record and --takeover go together"),
        (["--takeover", "keyboard"], "--record and --takeover go together"),
        (["--episodes", "3"], "--episodes and --leader are of a recording"),
        (["--leader", "leader.toml"], "--episodes and --leader are of a recording"),
        (["--record", "x", "--takeover", "keyboard"], "--record is of a run on a robot or in real time"),
        (["--real-time", "--record", "x", "--takeover", "mouse"], "takeover"),
        (
            ["--real-time", "--record", "x", "--takeover", "keyboard", "--episodes", "2", "--trace", "t"],
            "--trace, --rerun and --report are of one run",
        ),
    ],
)
def test_the_verb_refuses_what_does_not_go_together(args, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["run", *args]) == 2
    assert message in capsys.readouterr().err


def test_a_simulated_run_in_real_time_is_corrected_and_recorded(tmp_path):
    pytest.importorskip("pybullet")
    recipe = PolicyRecipe(factory="tests.sdk.control.process_policies:for_panda")
    config = RecordConfig(out=tmp_path / "data", task="put the red block in the blue bowl", episodes=1)
    hands = ScriptHands("....hhhh....")
    session = SessionConfig(seconds=20.0, is_spoken=False, trace=tmp_path / "run.jsonl")
    said = []
    report = record_in_simulation(recipe, lambda spec: hands, config, session, said.append)
    assert report.record.is_complete, said
    assert report.human_frames == 4
    dataset = LeRobotDataset(tmp_path / "data")
    assert dataset.info.robot_type == "panda"
    assert (dataset.actions()[dataset.column("intervention")[:, 0]][:, 0] > 0).all()
    assert len(dataset.frames_with_images()) == dataset.num_frames


@pytest.mark.slow
def test_a_bundle_is_corrected_on_the_virtual_serial_arm(tmp_path):
    """The keyboard takes the arm from nano-so101, steers, gives it back and keeps the episode."""
    file = replace(write_files(tmp_path), port=str(tmp_path / "arm"), cameras={"front": CameraFile(device="pattern")})
    write_robot_file(tmp_path / "robot.toml", replace(file, park_after_s=3.0))
    typed = Keys("", "", "", "", "t", "w", "w", "w", "w", "t", "", "", "", "", "\n")
    config = RecordConfig(out=tmp_path / "data", task="put the red block in the blue bowl", episodes=1)
    with VirtualBus(tmp_path / "arm", VirtualBusConfig(robot="so101", is_lockstep=False, has_physics=False)) as bus:
        person = Person(["yes", ""])
        report = record_on_robot(
            tmp_path / "robot.toml",
            named_policy("nano-so101"),
            make_hands("keyboard", keys=typed),
            config,
            SessionConfig(seconds=20.0),
            person,
        )
        assert not any(bus.control.state()["has_torque"])
    assert report.record.is_complete, person.said
    assert report.human_frames == 5
    dataset = LeRobotDataset(tmp_path / "data")
    assert dataset.info.robot_type == "so101"
    assert (dataset.actions()[dataset.column("intervention")[:, 0]][1:5, 0] > 0).all()
    assert {"you have the arm", "the policy has the arm"} <= set(person.said)
