"""Damaged status packets of a Feetech servo through codec and gate, as the reader of an arm meets them."""

from __future__ import annotations

import random
from dataclasses import dataclass

from roboalign.drivers.arm.models import MOTORS
from roboalign.drivers.arm.plausible import Gate
from roboalign.drivers.bus.feetech import Feetech
from roboalign.drivers.bus.feetech_table import FEETECH_TELEMETRY

COUNT_RAD = 0.0015339807878856412
SPEED_RAD_S = 1.2 * MOTORS["sts3215"].max_speed_rad_s
CYCLE_S = 0.01
BOUND_RAD = SPEED_RAD_S * CYCLE_S + 0.012 + 1e-9


@dataclass
class Fuzzed:
    """What came of it."""

    packets: int = 0
    """Damaged packets that were sent."""
    parsed: int = 0
    """Those whose checksum was right all the same, and which say another position."""
    believed: int = 0
    """Those that the gate believed too."""
    outside: int = 0
    """Those that were further than one cycle of full speed, and the margin, from the last true position."""


def fuzz(packets: int, kind: str, seed: int = 0) -> Fuzzed:
    """Sends damaged packets, up to three a cycle, then a true one; `kind` is `two bits` or `random body`."""
    dice, wire, found = random.Random(seed), Feetech(), Fuzzed()
    gate = Gate([SPEED_RAD_S])
    position, now_s = 2048, 0.0
    gate.accept(0, position * COUNT_RAD, now_s)
    while found.packets < packets:
        before = position
        now_s += CYCLE_S
        position = min(3900, max(100, position + dice.randint(-34, 34)))
        body = bytearray(position.to_bytes(2, "little") + bytes((10, 0, 40, 0, 120, 30, 0, 0, 1, 0, 0, 5, 0)))
        good = wire.encode_status(1, 0, bytes(body))
        for attempt in range(3):
            found.packets += 1
            bad = bytearray(good)
            if kind == "two bits":
                for place in dice.sample(range(len(bad) * 8), 2):
                    bad[place // 8] ^= 1 << place % 8
            else:
                bad[5:] = dice.randbytes(len(bad) - 5)
            statuses, _ = wire.scan(bytes(bad), is_final=True)
            told = [status for status in statuses if status.id == 1 and len(status.data) == FEETECH_TELEMETRY.size]
            count = FEETECH_TELEMETRY.registers[0].decode(told[0].data) if told else position
            if count == position:
                continue
            found.parsed += 1
            if gate.judge(0, count * COUNT_RAD, now_s + attempt * 0.002):
                found.believed += 1
                found.outside += abs(count - before) * COUNT_RAD > BOUND_RAD + SPEED_RAD_S * attempt * 0.002
        gate.accept(0, position * COUNT_RAD, now_s + 0.006)
    return found
