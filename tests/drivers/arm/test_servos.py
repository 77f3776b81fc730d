"""The servos of an arm behind the bus, where a joint has two of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.drivers.arm.rig import Port, make_rig

from roboalign.drivers.arm.calibration import MotorCalibration
from roboalign.drivers.arm.joints import Joints
from roboalign.drivers.arm.models import find_arm
from roboalign.drivers.arm.servos import BusServos
from roboalign.drivers.bus.bus import Bus
from roboalign.drivers.bus.dynamixel import Dynamixel
from roboalign.drivers.virtual.arm import Seat, VirtualArm
from roboalign.drivers.virtual.dialects import XDialect
from roboalign.drivers.virtual.line import VirtualLine
from roboalign.drivers.virtual.physics import KinematicPlant
from roboalign.drivers.virtual.robots import make_servo
from roboalign.drivers.virtual.servo import Encoder
from roboalign.sdk.control.clock import FakeClock
from roboalign.sdk.errors import RobotError

DRIVE_MODE, SECONDARY_ID, HOMING, TORQUE, GOAL = 10, 12, 20, 64, 116


def widowx(is_set_up: bool = True) -> tuple[BusServos, VirtualArm]:
    """A WidowX: nine servos on seven axes."""
    model = find_arm("widowx")
    seats = []
    for axis, motor in enumerate(model.motors):
        seats.append(Seat(make_servo("xl430-w250", motor.id), axis))
        for helper in motor.shadow_ids:
            servo = make_servo("xl430-w250", helper, Encoder(sign=-1))
            if is_set_up:
                servo.write(DRIVE_MODE, b"\x01")
                servo.write(SECONDARY_ID, bytes((motor.id,)))
            seats.append(Seat(servo, axis))
    for seat, number in zip(seats, (1020,) * 7 + (1060, 1070), strict=True):
        seat.servo.memory[0:2] = number.to_bytes(2, "little")
    arm = VirtualArm(KinematicPlant(tuple(motor.name for motor in model.motors)), seats)
    clock = FakeClock()
    return widowx_servos(Bus(Port(VirtualLine(arm, XDialect()), clock), Dynamixel(), clock=clock)), arm


def widowx_servos(bus: Bus, calibration: Mapping[str, MotorCalibration] | None = None) -> BusServos:
    """Its servos behind a bus; without a calibration, with one that leaves all offsets at 0."""
    model = find_arm("widowx")
    motors = calibration or {
        motor.name: MotorCalibration(id=motor.id, drive_mode=0, homing_offset=0, range_min=100, range_max=4000)
        for motor in model.motors
    }
    parts = SimpleNamespace(
        file=SimpleNamespace(model=model),
        joints=Joints(model, motors, None, [(-1.5, 1.5)] * 6, 0.07),
        homing_offsets=tuple(motors[motor.name].homing_offset for motor in model.motors),
        drive_modes=tuple(motors[motor.name].drive_mode for motor in model.motors),
    )
    return BusServos(bus, parts)  # type: ignore[arg-type]  # what the servos read of it


def test_a_joint_with_two_servos_is_switched_and_moved_as_one() -> None:
    servos, arm = widowx()
    servos.open()
    assert servos.read(range(7))[1] == {}
    assert [servos.set_torque(motor, True) for motor in range(7)] == [""] * 7
    servos.write_goals({1: 2300})
    assert [int.from_bytes(arm.find(number).memory[GOAL : GOAL + 4], "little") for number in (2, 3)] == [2300, 2300]
    assert servos.has_torque(1) is True
    arm.find(3).memory[TORQUE] = 0
    assert servos.has_torque(1) is False
    assert servos.set_torque(1, False) == ""
    assert not arm.find(2).is_torque_on


def test_a_helper_that_is_silent_makes_its_joint_unreadable() -> None:
    servos, arm = widowx()
    servos.open()
    arm.find(5).is_dead = True
    readings, faults = servos.read(range(7))
    assert sorted(readings) == [0, 1, 3, 4, 5, 6]
    assert "its helper (id 5) timeout" in faults[2]


def test_a_helper_that_does_not_follow_is_refused() -> None:
    servos, _ = widowx(is_set_up=False)
    with pytest.raises(RobotError, match=r"shoulder \(id 2\) has a helper \(id 3\) that follows id 255, not 2"):
        servos.open()


@pytest.mark.parametrize(
    ("number", "address", "data", "says"),
    [
        (3, DRIVE_MODE, b"\x00", r"helper \(id 3\) that turns against it: roboalign setup-motors"),
        (5, HOMING, b"\x64\x00\x00\x00", r"helper \(id 5\) that is at 2148 counts where it is at 2048: .*calibrate"),
        (4, SECONDARY_ID, b"\x02", r"elbow \(id 4\) follows id 2: roboalign setup-motors"),
    ],
)
def test_servos_on_one_axis_that_would_fight_are_refused(number: int, address: int, data: bytes, says: str) -> None:
    """Only `secondary_id` of the helper was looked at; with it alone, the two pull the joint apart."""
    servos, arm = widowx()
    arm.find(number).write(address, data)
    with pytest.raises(RobotError, match=says):
        servos.open()


def test_a_dynamixel_that_has_turned_before_gets_goals_in_its_own_turn(tmp_path: Path) -> None:
    rig = make_rig(tmp_path, "koch")
    for servo in rig.virtual.servos[:-1]:
        servo.write(11, b"\x04")
        servo.encoder.zero_count += 2 * 4096
    rig.virtual.settle()
    rig.robot.connect()
    before = [state.position_rad for state in rig.plant.states()]
    rig.link.wait(0.2)
    after = [state.position_rad for state in rig.plant.states()]
    assert max(abs(a - b) for a, b in zip(before, after, strict=True)) < 0.01
