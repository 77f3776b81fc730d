"""Who stops an arm that is being looked after already: what a review of the first drivers found, told one by one."""

from __future__ import annotations

import os
import pty
import time
import tty
from pathlib import Path

import pytest
from tests.drivers.arm.rig import Rig, make_rig
from tests.drivers.arm.test_safety import FORWARD, started

from roboalign.drivers.arm.core import FIRST_COMMAND_S
from roboalign.drivers.arm.messages import Command, Order
from roboalign.drivers.arm.states import State
from roboalign.drivers.bus.transport import SerialTransport
from roboalign.drivers.bus.types import PortLost
from roboalign.sdk.errors import RobotError, RobotTimeout


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    """An arm that follows commands, at its home position."""
    return started(make_rig(tmp_path))


def test_a_policy_that_is_lost_on_the_way_home_is_parked_at_once(rig: Rig) -> None:
    """Losing the policy on the way home was noticed only at home; the arm went all the way, then waited."""
    rig.link.ask(Command(order=Order.HOME))
    rig.link.wait(0.2)
    rig.core.lose_client()
    rig.link.wait(0.05)
    assert rig.core._parking.lets_go
    assert rig.core.machine.reason == rig.core._parking.reason
    assert rig.core.machine.state is State.PARKING
    assert "the policy's process is gone" in rig.core.machine.reason


def test_an_adapter_that_takes_no_bytes_is_a_lost_port() -> None:
    """A blocked write was a RobotTimeout, a "crash" to the owner; after three it left with torque on."""
    ours, theirs = pty.openpty()
    try:
        tty.setraw(theirs)
        port = SerialTransport(os.ttyname(theirs))
        port.open()
        with pytest.raises(PortLost, match="takes no more bytes"):
            port.write(bytes(1_000_000), time.monotonic() + 0.05)
        port.close()
    finally:
        os.close(ours)
        os.close(theirs)


def failing(rig: Rig, motor: int) -> None:
    """Makes one servo's torque switch raise what a blocked line raises."""
    servos, switch = rig.core._servos, rig.core._servos.set_torque

    def set_torque(index: int, is_on: bool) -> str:
        if index == motor:
            raise RobotTimeout("the write took too long")
        return switch(index, is_on)

    servos.set_torque = set_torque  # type: ignore[method-assign]


def test_a_servo_that_raises_keeps_no_other_from_being_let_go(rig: Rig) -> None:
    """Only a lost port was caught, so a timeout at the first servo left the torque of all behind it on."""
    failing(rig, 0)
    said = rig.core._holder.let_go()
    assert "shoulder_pan (id 1) did not let go: the write took too long" in said
    assert rig.torques() == [True, False, False, False, False, False]


def test_an_owner_that_gives_up_lets_go_and_closes(rig: Rig) -> None:
    """After three failed cycles the owner left its loop, and the arm kept its torque without anybody watching."""
    failing(rig, 5)
    rig.core.give_up()
    assert rig.torques() == [False] * 5 + [True]
    assert rig.core.is_done


def test_a_stop_that_no_owner_confirms_says_to_cut_the_power(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message said to disconnect and connect again, of an arm that nobody holds back."""

    def gone(_command: Command) -> None:
        raise RobotError("the bus owner has ended")

    monkeypatch.setattr(rig.robot, "_ask", gone)
    with pytest.raises(RobotError, match=r"not confirmed \(the bus owner has ended\): cut the power"):
        rig.robot.estop()


def test_a_policy_that_hangs_before_its_first_action_is_parked_and_let_go(rig: Rig) -> None:
    """Silence was counted from the first command, so without one the arm kept its torque for ever."""
    rig.link.wait(FIRST_COMMAND_S - 0.5)
    assert rig.core.machine.state is State.ACTIVE
    rig.link.wait(4.0)
    assert rig.torques() == [False] * 6
    assert "no command within 5 s of connect()" in rig.core.machine.reason


def test_a_dynamixel_that_is_back_takes_goals_before_a_re_arm(tmp_path: Path) -> None:
    """Its watchdog expired while the cable was out, and goals and limits were refused until somebody cleared it."""
    rig = started(make_rig(tmp_path, "koch"))
    rig.robot.act(FORWARD)
    rig.suffer("unplug")
    rig.link.wait(0.5)
    rig.suffer("replug")
    rig.link.wait(1.0)
    assert {servo.memory[98] for servo in rig.virtual.servos} == {0xFF}
    rig.core._holder.take_back()
    rig.core._holder.send(0.01)
    assert 0xFF not in {servo.memory[98] for servo in rig.virtual.servos}
