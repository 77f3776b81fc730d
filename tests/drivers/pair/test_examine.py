"""The whole examination: a bundle alone, with an arm on a virtual line, and what stops it before anything moves."""

import dataclasses
import json

import numpy as np
import pytest
from tests.drivers.arm.rig import make_rig
from tests.drivers.pair.desk import SENTENCE, DeskArm, session
from tests.drivers.pair.planted import healthy_machine
from tests.drivers.setup_bench import Person

from roboalign.drivers.pair.examine import PairConfig, examine_pair
from roboalign.drivers.pair.reference import make_reference
from roboalign.drivers.setup.checks import Check, DoctorReport
from roboalign.sdk.bundle import find_bundle
from roboalign.sdk.errors import BundleError, ConfigError, RobotError
from roboalign.sdk.views.reference import find_reference, read_reference, write_reference

SOUND = DoctorReport(checks=(Check.passed("servos answer", "all"),))


@pytest.fixture
def machine(tmp_path):
    return healthy_machine(tmp_path / "machine")


def examine(tmp_path, machine, person=None, *, rig=None, looked=SOUND, **config):
    told = []

    def load(path):
        told.append("loaded")
        return rig.robot

    given = PairConfig(**{"bundle": "nano-so101", "traces": tmp_path / "runs", **config})
    report = examine_pair(given, person or Person([]), machine=machine, load=load, look=lambda robot, machine: looked)
    return report, told


def statuses(report):
    return {check.name: check.status for check in report.checks}


def test_a_bundle_alone_is_asked_about_what_it_was_compared_on(tmp_path, machine):
    report, _ = examine(tmp_path, machine)
    found = statuses(report)
    assert {check.name for check in report.failed} <= {"policy speed"}  # by the clock of a machine that may be busy
    assert (found["instruction"], found["disk"], found["power mode"]) == ("passed",) * 3
    assert found["pair"] == "skipped"
    assert all(len(line) <= 80 for line in report.wrapped().splitlines())


def test_an_arm_on_a_line_is_moved_after_a_yes_and_put_away(tmp_path, machine):
    rig = make_rig(tmp_path)
    report, _ = examine(tmp_path, machine, Person(["yes"]), rig=rig, robot="robot.toml", task=SENTENCE)
    found = statuses(report)
    assert [found[name] for name in ("joint order", "state units", "gripper sign", "motion axes")] == ["passed"] * 4
    assert not any(rig.torques())
    assert found["fit"] == "failed"  # it has no camera


def test_without_a_yes_nothing_is_opened(tmp_path, machine):
    rig = make_rig(tmp_path)
    before = [bytes(servo.memory) for servo in rig.virtual.servos]
    report, _ = examine(tmp_path, machine, Person(["perhaps"]), rig=rig, robot="robot.toml")
    assert [bytes(servo.memory) for servo in rig.virtual.servos] == before
    assert statuses(report)["pair"] == "skipped"


def test_an_arm_that_does_not_answer_is_a_finding(tmp_path, machine):
    rig = make_rig(tmp_path)
    rig.suffer("dead", id=3)
    report, _ = examine(tmp_path, machine, Person([]), rig=rig, robot="robot.toml", is_sure=True)
    (check,) = [check for check in report.checks if check.name == "robot answers"]
    assert check.status == "failed"
    assert check.remedy


def test_what_the_servos_suffer_from_is_mended_first(tmp_path, machine):
    looked = DoctorReport(checks=(Check.failed("voltage", "12 V", "switch it off"),))
    report, told = examine(tmp_path, machine, robot="robot.toml", looked=looked)
    assert told == []
    assert [check.found for check in report.checks if check.name == "pair"] == ["nothing was moved: mend voltage first"]


def test_a_bundle_for_another_arm_moves_nothing(tmp_path, machine):
    person = Person([])
    report, _ = examine(tmp_path, machine, person, rig=make_rig(tmp_path), robot="robot.toml", bundle="nano-policy")
    (check,) = [check for check in report.checks if check.name == "fit"]
    assert "for the robot panda" in check.found
    assert person.asked == []


def test_there_must_be_a_bundle(tmp_path, machine):
    with pytest.raises(BundleError, match="no bundle at"):
        examine(tmp_path, machine, bundle=tmp_path / "nowhere")


def test_an_unknown_backend_is_a_usage_error(tmp_path, machine):
    with pytest.raises(ConfigError, match="unknown backend 'onyx'"):
        examine(tmp_path, machine, backend="onyx")


def test_a_reference_of_another_arm_is_refused(tmp_path, machine):
    path = find_reference(find_bundle("nano-policy"))
    with pytest.raises(ConfigError, match="is of a panda, the bundle is for a so101"):
        examine(tmp_path, machine, reference=path)


def test_a_reference_needs_a_robot(tmp_path, machine):
    with pytest.raises(ConfigError, match="it takes a robot that moves"):
        examine(tmp_path, machine, make_reference=tmp_path / "reference.json")


def test_a_reference_is_read_back_equal(tmp_path):
    made = make_reference([session()], robot="so101", source="the desk")
    assert read_reference(write_reference(tmp_path / "reference.json", made)) == made
    assert set(made.views) == {"front", "show"}


@pytest.mark.parametrize("content", ["", "[]", '{"version": 9}', json.dumps({"version": 1, "robot": "so101"})])
def test_what_is_no_reference_is_refused(tmp_path, content):
    path = tmp_path / "reference.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match="is no reference"):
        read_reference(path)


def test_a_still_camera_makes_no_reference():
    evidence = session()
    picture = np.zeros((96, 96, 3), np.uint8)
    still = tuple(
        dataclasses.replace(moment, seen=dataclasses.replace(moment.seen, images={"front": picture}))
        for moment in evidence.moments
    )
    with pytest.raises(ConfigError, match="camera front showed 0 of the motions"):
        make_reference([dataclasses.replace(evidence, moments=still)], robot="so101", source="still")


def test_an_arm_that_stops_answering_ends_the_session():
    class Failing(DeskArm):
        def act(self, action):
            if self.time_s > 1.0:
                raise RobotError("servo 3 is silent")
            return super().act(action)

    with pytest.raises(RobotError, match="servo 3"):
        session(Failing())
