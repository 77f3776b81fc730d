"""Who is on the bus: one ping after another, with short waits, instead of a broadcast and its window of 0.8 s.

A late answer counts as well as one in time: whoever speaks is there. Two devices with one id show as two answers to one
ping, or as garbage that comes back every time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from roboalign.drivers.bus.types import Register, Reply

if TYPE_CHECKING:
    from roboalign.drivers.bus.bus import Bus

__all__ = ["Device", "scan"]

_MODEL_ADDRESS = {"feetech": 3, "dynamixel": 0}
_FIRMWARE = {"feetech": (0, 2), "dynamixel": (6, 1)}
_NUM_PASSES = 2
_NUM_CHECKS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """Something that answers."""

    id: int
    """Where."""
    model_number: int | None
    """What it says it is; None when it does not say so twice the same way, or not at all."""
    firmware: str
    """Version, empty when unknown."""
    error: int
    """The error byte of its answer."""
    is_shared: bool
    """True when more than one device seems to have this id: connect them one at a time and give them new ones."""


def scan(bus: Bus, ids: tuple[int, ...], wait_s: float) -> dict[int, Device]:
    """Returns the devices among these ids, in their order."""
    size = bus.protocol.probe_size
    errors: dict[int, int] = {}
    garbled: dict[int, int] = {}
    wanted = set(ids)
    for _ in range(_NUM_PASSES):
        for servo in ids:
            if servo in errors:
                continue
            statuses, num_garbage = bus.exchange.listen(bus.protocol.probe(servo), size, wait_s, is_hasty=True)
            errors.update({status.id: status.error for status in statuses if status.id in wanted})
            if num_garbage and not statuses:
                garbled[servo] = garbled.get(servo, 0) + 1
    bus.exchange.owe(sorted(errors))
    shared = {servo for servo, count in garbled.items() if servo not in errors and count == _NUM_PASSES}
    shared |= {servo for servo in errors if _is_shared(bus, servo, wait_s)}
    found = {servo: _look(bus, servo, errors.get(servo, 0), servo in shared) for servo in sorted({*errors, *shared})}
    bus.exchange.owe(sorted(shared))
    return found


def _is_shared(bus: Bus, servo: int, wait_s: float) -> bool:
    """True when most pings bring two answers, or garbage."""
    num_odd = 0
    for _ in range(_NUM_CHECKS):
        packet = bus.protocol.probe(servo)
        statuses, num_garbage = bus.exchange.listen(packet, bus.protocol.probe_size, wait_s, is_hasty=False)
        num_odd += len([status for status in statuses if status.id == servo]) > 1 or num_garbage > 0
    return num_odd * 2 > _NUM_CHECKS


def _look(bus: Bus, servo: int, error: int, is_shared: bool) -> Device:
    model = bus.read(Register(name="model_number", address=_MODEL_ADDRESS[bus.protocol.name], size=2), servo)
    address, size = _FIRMWARE[bus.protocol.name]
    firmware = bus.read(Register(name="firmware", address=address, size=size), servo)
    return Device(
        id=servo,
        model_number=int.from_bytes(model.data, "little") if isinstance(model, Reply) else None,
        firmware=".".join(str(part) for part in firmware.data) if isinstance(firmware, Reply) else "",
        error=error,
        is_shared=is_shared,
    )
