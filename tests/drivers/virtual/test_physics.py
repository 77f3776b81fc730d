"""The joints behind the servos, with and without physics."""

from collections.abc import Iterator

import pytest

from roboalign.drivers.virtual import LineFault, make_arm
from roboalign.drivers.virtual.arm import Seat, VirtualArm
from roboalign.drivers.virtual.bullet import BulletPlant
from roboalign.drivers.virtual.physics import OFF, KinematicPlant, MotorCommand
from roboalign.drivers.virtual.servo import Encoder
from roboalign.drivers.virtual.xmodels import XSERIES_MODELS
from roboalign.drivers.virtual.xseries import XServo
from roboalign.sdk.errors import ConfigError


def run(plant: KinematicPlant, command: MotorCommand, num_steps: int = 100) -> None:
    for _ in range(num_steps):
        plant.step([command], 0.02)


def test_a_joint_follows_within_its_speed() -> None:
    plant = KinematicPlant(("pan",))
    command = MotorCommand("position", 2.0, max_speed_rad_s=1.0)
    run(plant, command, 50)
    assert 0.9 < plant.states()[0].position_rad < 1.001
    run(plant, command, 100)
    assert plant.states()[0].position_rad == pytest.approx(2.0, abs=1e-3)
    assert plant.states()[0].torque_share == pytest.approx(0.0, abs=0.05)


def test_an_obstacle_stops_a_joint_and_its_motor_presses_up_to_its_limit() -> None:
    plant = KinematicPlant(("pan",))
    plant.block("pan", None, 0.3)
    run(plant, MotorCommand("position", 1.0, limit_share=0.6))
    state = plant.states()[0]
    assert (state.position_rad, state.velocity_rad_s, state.torque_share) == (0.3, 0.0, 0.6)
    run(plant, MotorCommand("position", 0.36, limit_share=0.6))
    assert plant.states()[0].torque_share == pytest.approx(0.4)
    plant.block("pan", None, None)
    run(plant, MotorCommand("position", 1.0))
    assert plant.states()[0].position_rad == pytest.approx(1.0, abs=1e-3)


def test_an_outside_torque_is_felt_and_wins_over_a_weak_motor() -> None:
    plant = KinematicPlant(("pan",))
    plant.push("pan", 0.5)
    run(plant, MotorCommand("position", 0.0))
    assert plant.states()[0].torque_share == pytest.approx(-0.5, abs=0.01)
    assert plant.states()[0].position_rad == pytest.approx(0.0, abs=1e-3)
    run(plant, MotorCommand("position", 0.0, limit_share=0.2), 10)
    assert plant.states()[0].position_rad > 0.1
    before = plant.states()[0].position_rad
    run(plant, OFF, 10)
    assert plant.states()[0].position_rad > before


def test_joints_stay_between_their_stops_and_names_are_checked() -> None:
    plant = KinematicPlant(("pan",), [(-1.0, 1.0)])
    plant.place("pan", 5.0)
    assert plant.states()[0].position_rad == 1.0
    with pytest.raises(ConfigError, match="unknown joint 'pen'; did you mean pan"):
        plant.place("pen", 0.0)


def test_a_shadow_servo_carries_half() -> None:
    servos = [XServo(number, XSERIES_MODELS["xm430-w350"], Encoder()) for number in (1, 2)]
    plant = KinematicPlant(("shoulder",))
    arm = VirtualArm(plant, [Seat(servo, 0) for servo in servos])
    plant.block("shoulder", None, 0.1)
    for servo in servos:
        servo.write(64, b"\x01")
        servo.write(116, (3000).to_bytes(4, "little"))
    for _ in range(20):
        arm.advance(0.02)
    assert plant.states()[0].torque_share == 1.0
    servos[1].write(64, b"\x00")
    arm.advance(0.02)
    assert plant.states()[0].torque_share == 0.5


@pytest.fixture
def bullet() -> Iterator[tuple[VirtualArm, BulletPlant]]:
    pytest.importorskip("pybullet", reason="pip install 'roboalign[sim]'")
    plant = BulletPlant().open()
    yield make_arm(plant=plant), plant
    plant.close()


def lift(arm: VirtualArm, num_steps: int = 75) -> None:
    """Brings all joints to zero: the arm stretches forward."""
    for servo in arm.servos:
        servo.write(42, (2048).to_bytes(2, "little"))
    for _ in range(num_steps):
        arm.advance(0.02)


def test_with_torque_it_holds_and_without_it_falls(bullet: tuple[VirtualArm, BulletPlant]) -> None:
    arm, plant = bullet
    lift(arm)
    height_m = plant.tool_position_m()[2]
    for _ in range(50):
        arm.advance(0.02)
    assert abs(plant.tool_position_m()[2] - height_m) < 0.001
    for servo in arm.servos:
        servo.write(40, b"\x00")
    for _ in range(50):
        arm.advance(0.02)
    assert plant.tool_position_m()[2] < height_m - 0.1


def test_gravity_is_in_the_load(bullet: tuple[VirtualArm, BulletPlant]) -> None:
    arm, _ = bullet
    lift(arm)
    loads = [servo.state.torque_share for servo in arm.servos]
    assert abs(loads[0]) < 0.02 < 0.1 < abs(loads[1])


def test_a_blocked_joint_shows_load_and_current(bullet: tuple[VirtualArm, BulletPlant]) -> None:
    arm, plant = bullet
    lift(arm)
    arm.suffer(LineFault(kind="block", joint="elbow_flex", upper_rad=0.3))
    elbow = arm.find(3)
    elbow.write(42, (2400).to_bytes(2, "little"))
    for _ in range(50):
        arm.advance(0.02)
    assert plant.states()[2].position_rad == pytest.approx(0.3, abs=0.02)
    assert elbow.read(60, 2) == (1000).to_bytes(2, "little")
    assert int.from_bytes(elbow.read(69, 2), "little") == round(2.7 / 0.0065)
    arm.suffer(LineFault(kind="free", joint="elbow_flex"))
    for _ in range(50):
        arm.advance(0.02)
    assert elbow.read(56, 2) == (2400).to_bytes(2, "little")


def test_a_push_from_outside_is_felt(bullet: tuple[VirtualArm, BulletPlant]) -> None:
    arm, _ = bullet
    lift(arm)
    arm.suffer(LineFault(kind="push", joint="shoulder_pan", share=0.4))
    for _ in range(20):
        arm.advance(0.02)
    assert arm.find(1).state.torque_share == pytest.approx(-0.4, abs=0.05)


def test_velocity_torque_and_hand_move_joints_of_the_simulation(bullet: tuple[VirtualArm, BulletPlant]) -> None:
    arm, plant = bullet
    lift(arm)
    pan = arm.find(1)
    pan.write(33, b"\x01")
    pan.write(46, (600).to_bytes(2, "little"))
    for _ in range(25):
        arm.advance(0.02)
    assert plant.states()[0].velocity_rad_s == pytest.approx(600 * 2 * 3.14159 / 4096, rel=0.05)
    plant.place("shoulder_pan", -0.5)
    assert plant.states()[0].position_rad == pytest.approx(-0.5)
    pan.write(33, b"\x02")
    pan.write(44, (100).to_bytes(2, "little"))
    for _ in range(10):
        arm.advance(0.02)
    assert plant.states()[0].velocity_rad_s > 0.5
