"""The states of an arm, and what its monitor says."""

from __future__ import annotations

import pytest

from roboalign.drivers.arm.monitor import Action, Monitor
from roboalign.drivers.arm.readings import Alert, MotorLimits, MotorReading
from roboalign.drivers.arm.states import State, StateMachine
from roboalign.sdk.errors import RobotError

LIMITS = MotorLimits(min_volts=6.0, max_volts=14.0)


def test_nothing_but_a_rearm_leaves_a_fault_or_an_estop() -> None:
    for latched in (State.FAULT, State.ESTOP):
        for target in (State.ARMED, State.ACTIVE, State.HOLD, State.CONNECTED):
            machine = StateMachine()
            machine.to(State.CONNECTED, "open", 0.0)
            machine.to(latched, "why", 1.0)
            with pytest.raises(RobotError, match=r"connect\(rearm=True\)"):
                machine.to(target, "go", 2.0)
            machine.rearm("a person looked", 3.0)
            assert machine.state is State.CONNECTED


def test_an_arm_cannot_be_active_without_a_soft_start() -> None:
    machine = StateMachine()
    machine.to(State.CONNECTED, "open", 0.0)
    with pytest.raises(RobotError, match="from connected"):
        machine.to(State.ACTIVE, "go", 1.0)


def test_every_change_is_kept_with_its_reason() -> None:
    machine = StateMachine()
    machine.to(State.CONNECTED, "open", 0.0)
    machine.to(State.ARMED, "soft start", 1.0)
    machine.to(State.ARMED, "soft start", 2.0)
    assert [(change.state, change.reason) for change in machine.history] == [
        (State.CONNECTED, "open"),
        (State.ARMED, "soft start"),
    ]


def reading(time_s: float, **changes: object) -> MotorReading:
    values: dict[str, object] = {
        "position": 2048,
        "velocity_rad_s": 0.0,
        "load": 0.0,
        "volts": 12.0,
        "temperature_c": 30.0,
        "current_a": 0.1,
        "alerts": Alert.NONE,
        "time_s": time_s,
    }
    return MotorReading(**(values | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "actions"),
    [
        ({}, []),
        ({"temperature_c": 56.0}, [Action.SLOW]),
        ({"temperature_c": 66.0}, [Action.PARK]),
        ({"alerts": Alert.OVERLOAD}, [Action.FAULT]),
        ({"alerts": Alert.SENSOR | Alert.CURRENT}, [Action.FAULT, Action.FAULT]),
        ({"volts": 5.9}, [Action.FAULT]),
        ({"volts": 14.5}, [Action.FAULT]),
        ({"volts": 10.0}, [Action.SLOW]),
        ({"volts": 0.0}, []),
    ],
)
def test_what_a_reading_asks_for(changes: dict[str, object], actions: list[Action]) -> None:
    monitor = Monitor([LIMITS])
    assert not monitor.look(0, reading(0.0), 0.0, 0.0)
    assert [alarm.action for alarm in monitor.look(0, reading(0.01, **changes), 0.0, 0.0)] == actions


def stalled_after(load: float, error: float, speed: float) -> float | None:
    """Returns when a motor counts as stalled, None within a second."""
    monitor = Monitor([LIMITS])
    for cycle in range(100):
        position = speed * cycle * 0.01
        for alarm in monitor.look(0, reading(cycle * 0.01, load=load), position, position + error):
            if alarm.action is Action.RELIEVE:
                return cycle * 0.01
    return None


@pytest.mark.parametrize(
    ("load", "error", "speed", "is_stall"),
    [
        (0.6, 0.1, 0.0, True),
        (-0.6, -0.1, 0.0, True),
        (0.6, 0.1, 0.5, False),
        (0.2, 0.1, 0.0, False),
        (0.6, 0.01, 0.0, False),
    ],
)
def test_a_stall_is_drive_and_error_without_motion(load: float, error: float, speed: float, is_stall: bool) -> None:
    found = stalled_after(load, error, speed)
    assert (found is not None) is is_stall
    assert found is None or 0.1 <= found <= 0.2


def test_a_heavy_load_is_relieved_after_a_second() -> None:
    monitor = Monitor([LIMITS])
    found = [bool(monitor.look(0, reading(cycle * 0.05, load=0.9), 0.0, 0.01)) for cycle in range(30)]
    assert 19 <= found.index(True) <= 21
