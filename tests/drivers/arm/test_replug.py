"""A port that was lost and is back, with servos that are not: what is told, who is let go, and that nothing moves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.drivers.arm.rig import Rig, make_rig
from tests.drivers.arm.test_safety import CYCLE_S, FORWARD, Wire, in_motion, run_until, started
from tests.drivers.setup_bench import Person

from roboalign.drivers.arm.messages import Command, Order
from roboalign.drivers.arm.states import State
from roboalign.drivers.bus.types import PortLost
from roboalign.drivers.setup.run import put_away
from roboalign.sdk.errors import RobotError

OTHERS = (0, 1, 3, 4, 5)


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    """An arm that follows commands, at its home position."""
    return started(make_rig(tmp_path))


def replug(rig: Rig, kind: str = "dead", **values: object) -> None:
    """Unplugs a moving arm, lets something happen to the elbow meanwhile, and plugs it in again."""
    in_motion(rig)
    rig.suffer("unplug")
    rig.link.wait(0.3)
    rig.suffer(kind, id=3, **values)
    rig.suffer("replug")
    rig.link.wait(0.5)


def places(rig: Rig) -> np.ndarray:
    return np.array([state.position_rad for state in rig.plant.states()])


def test_a_servo_that_is_silent_after_a_replug_is_told_and_nothing_moves(rig: Rig) -> None:
    """The port was opened and the servos were checked in one; one silent servo made the arm count as lost."""
    replug(rig)
    wire = Wire(rig)
    rig.link.wait(1.0)
    assert rig.core.machine.state is State.FAULT
    assert "is back, but virtual1: elbow_flex (id 3)" in rig.core.machine.reason
    assert not wire.goals


def test_a_servo_that_is_silent_after_a_replug_keeps_no_other_from_being_let_go(rig: Rig) -> None:
    """The arm counted as lost, so `disconnect` closed the port and five servos kept their torque."""
    replug(rig)
    wire, before, shares = Wire(rig), places(rig), []
    rig.link.ask(Command(order=Order.CLOSE))
    while not rig.core.is_done:
        shares.append(rig.core.torque.now[1])
        rig.link.wait(CYCLE_S)
    assert [rig.torques()[index] for index in OTHERS] == [False] * 5
    assert np.abs(places(rig) - before).max() < 0.02
    assert len(shares) * CYCLE_S >= 0.9, "gently"
    assert max(-np.diff(shares[:-1])) < 0.05
    assert all(3 not in goal for goal in wire.goals), "nobody knows where it is"


def test_disconnect_tells_who_kept_torque(rig: Rig) -> None:
    """It returned as if all had been let go; the owner's last reason never reached the caller."""
    replug(rig)
    with pytest.raises(RobotError, match=r"elbow_flex \(id 3\) did not let go: .*cut the power"):
        rig.robot.disconnect()
    rig.robot.disconnect()


def test_a_run_says_who_kept_torque(rig: Rig) -> None:
    replug(rig)
    person = Person([])
    put_away(rig.robot, person, is_parked=False)
    assert "elbow_flex (id 3) did not let go" in person.said[-1]


def test_a_rearm_is_refused_with_what_the_check_found_until_it_is_mended(rig: Rig) -> None:
    replug(rig)
    with pytest.raises(RobotError, match=r"elbow_flex \(id 3\) timeout.*roboalign doctor"):
        rig.robot.connect(rearm=True)
    assert rig.core.machine.state is State.FAULT
    rig.suffer("revive", id=3)
    rig.robot.connect(rearm=True)
    rig.robot.act(FORWARD)
    assert rig.core.machine.state is State.ACTIVE


def test_a_rearm_is_refused_when_another_arm_was_plugged_in(rig: Rig) -> None:
    """Its offsets are others; with the check at the reopening alone, the next re-arm would not have looked again."""
    in_motion(rig)
    rig.suffer("unplug")
    rig.link.wait(0.3)
    rig.virtual.find(2).memory[31:33] = b"\x05\x00"
    rig.suffer("replug")
    rig.link.wait(0.5)
    with pytest.raises(RobotError, match=r"shoulder_lift \(id 2\) has homing offset 5"):
        rig.robot.connect(rearm=True)


def test_an_estop_after_a_replug_reaches_those_that_answer_and_names_the_others(rig: Rig) -> None:
    replug(rig)
    wire = Wire(rig)
    with pytest.raises(RobotError, match=r"elbow_flex \(id 3\) did not confirm it: cut the power"):
        rig.robot.estop()
    assert set(wire.goals[0]) == {1, 2, 4, 5, 6}
    with pytest.raises(RobotError, match=r"elbow_flex \(id 3\) did not let go"):
        rig.robot.disconnect()
    assert [rig.torques()[index] for index in OTHERS] == [False] * 5


def test_a_servo_that_restarted_while_unplugged_is_not_switched_on_to_be_let_go(rig: Rig) -> None:
    """A goal switches a Feetech servo on: the limp elbow was taken up, only to be let go."""
    replug(rig, "brownout", delay_s=0.02)
    wire = Wire(rig)
    assert not rig.torques()[2]
    rig.robot.disconnect()
    assert wire.goals
    assert all(3 not in goal for goal in wire.goals)
    assert rig.torques() == [False] * 6


def test_an_estop_does_not_switch_on_a_servo_that_restarted(rig: Rig) -> None:
    in_motion(rig)
    rig.suffer("brownout", id=3, delay_s=0.02)
    while rig.core.machine.state is not State.FAULT:
        rig.link.ask(Command(order=Order.HOLD))
        rig.link.wait(0.05)
    rig.robot.estop()
    rig.link.wait(0.1)
    assert rig.torques() == [True, True, False, True, True, True]


def test_closing_waits_for_a_port_that_is_just_coming_back(rig: Rig) -> None:
    """Closing without the port gave up at once, between two attempts to open it."""
    in_motion(rig)
    rig.suffer("unplug")
    rig.link.wait(0.3)
    rig.link.ask(Command(order=Order.CLOSE))
    rig.link.wait(0.1)
    rig.suffer("replug")
    run_until(rig, lambda: rig.core.is_done)
    assert rig.torques() == [False] * 6


def test_closing_without_the_port_says_that_the_torque_stays(rig: Rig) -> None:
    in_motion(rig)
    rig.suffer("unplug")
    rig.link.wait(0.1)
    with pytest.raises(RobotError, match=r"the port is lost.*keeps it.*cut the power"):
        rig.robot.disconnect()


def lose_once(rig: Rig) -> Callable[[bool], None]:
    """Returns a watchdog call during which the port is lost, the first time."""
    watch, calls = rig.core._servos.watch, []

    def lost(is_on: bool) -> None:
        calls.append(is_on)
        if len(calls) == 1:
            raise PortLost("virtual0: unplugged")
        watch(is_on)

    return lost


def test_a_port_that_is_lost_while_a_stopped_arm_is_closed_escapes_no_cycle(rig: Rig) -> None:
    """`step` ended the arm outside its try, so a port lost there went up to the owner's loop as a crash."""
    in_motion(rig)
    rig.suffer("unplug")
    rig.link.wait(0.05)
    with pytest.raises(RobotError, match="the stop could not be sent"):
        rig.robot.estop()
    rig.suffer("replug")
    rig.link.wait(0.5)
    rig.core._servos.watch = lose_once(rig)  # type: ignore[method-assign]
    rig.link.ask(Command(order=Order.CLOSE))
    rig.core.step()
    assert not rig.core.is_done
    run_until(rig, lambda: rig.core.is_done)
    assert rig.torques() == [False] * 6
