"""The gate on readings."""

import pytest
from tests.drivers.arm.fuzz import fuzz

from roboalign.drivers.arm.plausible import Gate


def a_gate() -> Gate:
    gate = Gate([5.0])
    gate.accept(0, 1.0, 0.0)
    return gate


def test_what_the_joint_can_reach_is_believed() -> None:
    assert a_gate().judge(0, 1.05, 0.01)


def test_what_the_joint_cannot_reach_is_not() -> None:
    assert not a_gate().judge(0, 1.2, 0.01)


def test_three_readings_that_agree_are_believed() -> None:
    gate = a_gate()
    assert [gate.judge(0, angle, time_s) for angle, time_s in ((2.0, 0.010), (2.005, 0.012), (2.0, 0.014))] == [
        False,
        False,
        True,
    ]


def test_readings_that_disagree_are_never_believed() -> None:
    gate = a_gate()
    assert not any(gate.judge(0, angle, 0.01 + index * 0.002) for index, angle in enumerate((2.0, 2.6, 2.0, 0.4, 2.0)))
    assert gate.rejects[0] == 5


def test_the_first_reading_needs_two_more() -> None:
    gate = Gate([5.0])
    assert [gate.judge(0, 1.0, time_s) for time_s in (0.0, 0.001, 0.002)] == [False, False, True]


@pytest.mark.parametrize("kind", ["two bits", "random body"])
def test_damaged_packets_are_not_believed_outside_the_gate(kind: str) -> None:
    found = fuzz(8_000, kind)
    assert found.parsed > 10
    assert found.outside == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["two bits", "random body"])
def test_a_million_damaged_packets_are_not_believed_outside_the_gate(kind: str) -> None:
    found = fuzz(1_000_000, kind)
    assert found.parsed > 1000
    assert found.outside == 0
