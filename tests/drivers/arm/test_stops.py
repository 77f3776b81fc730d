"""Who stops an arm that is being looked after already: what a review of the first drivers found, told one by one."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.drivers.arm.rig import Rig, make_rig
from tests.drivers.arm.test_safety import FORWARD, started

from roboalign.drivers.setup.run import put_away
from roboalign.drivers.setup.teleop import _stop
from roboalign.sdk.errors import RobotError


class Person:
    """Hears what is said."""

    is_done = True

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        """Notes it."""
        self.said.append(text)

    def ask(self, question: str) -> str:
        """Says yes."""
        return "yes"


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    """An arm that follows commands, at its home position."""
    return started(make_rig(tmp_path))


@pytest.mark.parametrize(("kind", "values"), [("hot", {"celsius": 66.0}), ("overload", {}), ("dead", {})])
def test_a_loop_that_ends_by_a_fault_leaves_the_parking_to_the_owner(
    rig: Rig, kind: str, values: dict[str, object]
) -> None:
    """A servo at 65 C began to park; the next action raised, `hold` too, and the loop's estop ended the parking."""
    rig.suffer(kind, id=3, **values)
    with pytest.raises(RobotError, match="takes no commands"):
        for _ in range(60):
            rig.robot.act(FORWARD)
    _stop(rig.robot)
    person = Person()
    put_away(rig.robot, person)
    assert person.said[-1].startswith("not parked: ") and "estop" not in person.said[-1]
    parked = rig.parts.spec.park_joint_pos_rad
    off = [abs(state.position_rad - want) for state, want in zip(rig.plant.states(), parked, strict=False)]
    assert max(off[:2] + off[3:]) < 0.05
    assert rig.torques()[:2] + rig.torques()[3:] == [False] * 5
