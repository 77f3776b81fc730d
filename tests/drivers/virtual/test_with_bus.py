"""The drivers' own bus on a bad virtual line, in memory and with a clock that costs no time."""

import pytest

from roboalign.drivers.bus.bus import Bus
from roboalign.drivers.bus.dynamixel import Dynamixel
from roboalign.drivers.bus.dynamixel_table import DYNAMIXEL_REGISTERS
from roboalign.drivers.bus.feetech import Feetech
from roboalign.drivers.bus.feetech_table import FEETECH_REGISTERS
from roboalign.drivers.bus.types import Reply
from roboalign.drivers.virtual import FaultPlan, LineFault, VirtualLine, VirtualPort, make_arm
from roboalign.drivers.virtual.dialects import dialect_of

IDS = (1, 2, 3, 4, 5, 6)
BAD_DAY = (
    LineFault(kind="drop", probability=0.05),
    LineFault(kind="corrupt", probability=0.05),
    LineFault(kind="noise", probability=0.05),
    LineFault(kind="half", probability=0.02),
    LineFault(kind="late", probability=0.01, delay_s=0.06),
    LineFault(kind="split", probability=0.02, delay_s=0.0001),
    LineFault(kind="merge", probability=0.01),
)


@pytest.mark.parametrize("protocol", ["feetech", "dynamixel"])
def test_nothing_wrong_is_believed_on_a_bad_line(protocol: str) -> None:
    robot, codec, table = {
        "feetech": ("so101", Feetech(), FEETECH_REGISTERS),
        "dynamixel": ("koch", Dynamixel(), DYNAMIXEL_REGISTERS),
    }[protocol]
    arm = make_arm(robot)
    line = VirtualLine(arm, dialect_of(protocol), faults=FaultPlan(BAD_DAY, seed=5), step_s=0.02)
    port = VirtualPort(line)
    bus = Bus(port, codec, clock=port.clock)
    bus.open()
    position, goal, torque = (table[name] for name in ("present_position", "goal_position", "torque_enable"))
    bus.sync_write(torque, dict.fromkeys(IDS, 1))
    num_right = num_wrong = 0
    for cycle in range(200):
        port.clock.sleep_until(port.clock.now() + 0.02)
        bus.sync_write(goal, dict.fromkeys(IDS, 2048 + 10 * (cycle % 40)))
        told = bus.sync_read(position, IDS)
        truth = {servo.id: position.decode(servo.read(position.address, position.size)) for servo in arm.servos}
        for number, reply in told.items():
            if isinstance(reply, Reply):
                # A retry lets a step pass: what is told is at most three steps old.
                is_near = abs(position.decode(reply.data) - truth[number]) <= 4 * 70
                num_right += is_near
                num_wrong += not is_near
    bus.close()
    assert num_wrong == 0
    assert num_right > 0.85 * 200 * len(IDS)
    assert sum(line.stats.struck.values()) > 150
