"""The control loop that `roboalign run` uses, on an arm on which something breaks: it holds, and the user hears why."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.drivers.arm.rig import Rig, make_rig
from tests.drivers.arm.test_safety import FORWARD, started
from tests.drivers.setup_bench import Person

from roboalign.drivers.setup.run import _narrator, run_on_robot
from roboalign.sdk.bundle import find_bundle, read_bundle
from roboalign.sdk.control.loop import ControlLoop, Tick
from roboalign.sdk.errors import RobotError
from roboalign.sdk.types import ActionChunk, Observation

PARKED_RAD = 0.05


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    """An arm that follows commands, at its home position."""
    return started(make_rig(tmp_path))


class Forward:
    """A policy that goes on for a second with each answer; at the second one something happens."""

    spec = dataclasses.replace(read_bundle(find_bundle("nano-so101")).manifest.policy, camera_names=())

    def __init__(self, happen: Callable[[], None] = lambda: None) -> None:
        self.happen, self.answers = happen, 0

    def reset(self) -> None:
        """Nothing to forget."""

    def act(self, observation: Observation) -> ActionChunk:
        """Returns ten steps."""
        self.answers += 1
        if self.answers == 2:
            self.happen()
        return ActionChunk(actions=np.tile(FORWARD / 4, (10, 1)), rate_hz=10.0, source="flow", thought="on")


@pytest.mark.parametrize(
    ("kind", "values", "reason"),
    [
        ("hot", {"celsius": 66.0}, r"parking: elbow_flex \(id 3\): 66 C"),
        ("overload", {}, r"fault: elbow_flex \(id 3\): overload"),
        ("dead", {}, r"fault: elbow_flex \(id 3\) is dead"),
    ],
)
def test_a_loop_that_ends_by_a_fault_leaves_the_parking_to_the_owner(
    rig: Rig, kind: str, values: dict[str, object], reason: str
) -> None:
    """The next action raised, `hold` too, and the loop's estop ended the parking that the owner had begun."""
    person = Person(["yes"])
    policy = Forward(lambda: rig.suffer(kind, id=3, **values))
    with pytest.raises(RobotError, match=reason):
        run_on_robot(rig.robot, policy, "go on", person, max_ticks=60, clock=rig.clock)
    assert policy.answers == 2
    assert not any("estop" in line for line in person.said)
    off = [abs(s.position_rad - p) for s, p in zip(rig.plant.states(), rig.parts.spec.park_joint_pos_rad, strict=False)]
    assert max(off[:2] + off[3:]) < PARKED_RAD
    assert rig.torques()[:2] + rig.torques()[3:] == [False] * 5


def silent_for_one_tick(rig: Rig, ticks: list[Tick]) -> Callable[[Tick], None]:
    """Makes the elbow fall silent after the third tick, until after the fourth."""

    def on_tick(tick: Tick) -> None:
        ticks.append(tick)
        if tick.index == 2:
            rig.suffer("dead", id=3)
            rig.link.wait(0.05)
        if tick.index == 3:
            rig.suffer("revive", id=3)
            rig.link.wait(0.05)

    return on_tick


def test_an_action_is_held_while_a_joint_cannot_be_read(rig: Rig) -> None:
    ticks: list[Tick] = []
    loop = ControlLoop(rig.robot, Forward(), rig.clock, on_tick=silent_for_one_tick(rig, ticks))
    report = loop.run("go on", max_ticks=8)
    targets = np.array([tick.applied.joint_target_rad for tick in ticks])
    moved = np.abs(np.diff(targets, axis=0)).max(axis=1) > 1e-4
    assert moved.tolist() == [True, True, False, True, True, True, True]
    (reason,) = (reason for reason in report.change_reasons if "hold: elbow_flex (id 3) cannot be read" in reason)
    assert report.change_reasons[reason] == 1
    assert report.holds == 0, "the policy and the observation were well"


def test_run_says_once_why_it_holds_and_sums_up_at_the_end(rig: Rig) -> None:
    """A joint that could not be read was in `Applied.reasons` alone; nobody at the terminal saw it."""
    ticks: list[Tick] = []
    person = Person(["yes"])
    disturb, tell = silent_for_one_tick(rig, ticks), _narrator(person)
    run_on_robot(
        rig.robot,
        Forward(),
        "go on",
        person,
        max_ticks=8,
        clock=rig.clock,
        on_tick=lambda tick: (tell(tick), disturb(tick))[0],
    )
    told = [line for line in person.said if "hold: elbow_flex (id 3) cannot be read" in line]
    assert len(told) == 2
    assert told[0].startswith("   3  ")
    assert told[1].startswith("1 of 8 actions: ")
