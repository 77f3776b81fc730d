"""Robotiq 2F-85 and 2F-140 grippers over Modbus RTU (RS-485, 115200 baud, device 9).

Registers are those of Robotiq's manual of the 2F series. A gripper is activated once, which opens and closes it fully:
keep fingers away. Its own firmware stops at an object and holds it with the force that was asked for. Not tried on
hardware.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from roboalign.drivers.bus.modbus import Modbus
from roboalign.drivers.bus.types import Transport
from roboalign.sdk.control.clock import Clock, MonotonicClock
from roboalign.sdk.errors import RobotError, RobotTimeout

__all__ = ["ROBOTIQ_BAUD", "GripperStatus", "Robotiq2F"]

ROBOTIQ_BAUD = 115_200
"""The rate that a gripper is delivered with."""

_COMMAND, _STATUS, _NUM_REGISTERS = 0x03E8, 0x07D0, 3
_ACTIVATE, _GO, _RELEASE = 0x01, 0x08, 0x10
_FULL = 255
_MILLIAMPS_PER_COUNT = 10
_POLL_S = 0.02
_ACTIVE = 3
_FAULTS = {
    0x00: "",
    0x05: "the action waits for activation",
    0x07: "activate it before moving it",
    0x08: "too hot; it cools down before it moves",
    0x09: "no communication for a second",
    0x0A: "supply below 21.6 V; activate it again",
    0x0B: "automatic release is running",
    0x0C: "internal fault; activate it again",
    0x0D: "activation failed; see that nothing blocks the fingers, then activate it again",
    0x0E: "too much current; activate it again",
    0x0F: "automatic release is done; activate it again",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class GripperStatus:
    """What a gripper says about itself."""

    is_active: bool
    """Activated, and not busy with it."""
    is_moving: bool
    """On the way to the position that was asked for."""
    has_object: bool
    """Stopped by something before it arrived."""
    position: int
    """0 open, 255 closed."""
    width_m: float
    """Distance between the fingers, linear in `position`."""
    current_a: float
    """Motor current."""
    fault: str
    """In words with the remedy, empty for none."""


class Robotiq2F:
    """One gripper; blocking calls, one thread."""

    def __init__(
        self, transport: Transport, *, max_width_m: float = 0.085, device: int = 9, clock: Clock | None = None
    ) -> None:
        """Stores the arguments; 0.140 m is the other model's `max_width_m`."""
        self._clock = clock or MonotonicClock()
        self.modbus = Modbus(transport, clock=self._clock)
        self.max_width_m = max_width_m
        self._device = device

    def open(self) -> None:
        """Opens the port. The gripper does not move."""
        self.modbus.open()

    def close(self) -> None:
        """Closes the port; the gripper keeps holding what it holds."""
        self.modbus.close()

    def status(self) -> GripperStatus:
        """Reads the status."""
        return self._decode(self.modbus.read(self._device, _STATUS, _NUM_REGISTERS))

    def activate(self, timeout_s: float = 10.0) -> GripperStatus:
        """Activates it, unless it is and has no fault. It opens and closes fully; blocks until it is done.

        Raises:
            RobotTimeout: Not done in time.
            RobotError: It reports a fault, or does not answer.
        """
        now = self.status()
        if now.is_active and not now.fault:
            return now
        self._command(0, 0, 0, 0)
        self._command(_ACTIVATE, 0, 0, 0)
        deadline_s = self._clock.now() + timeout_s
        while not (now := self.status()).is_active:
            if self._clock.now() >= deadline_s:
                raise RobotTimeout(f"the gripper is not active after {timeout_s:g} s; {now.fault or 'see its light'}")
            self._clock.sleep_until(self._clock.now() + _POLL_S)
        return now

    def move(self, width_m: float, *, speed: float = 0.5, force: float = 0.25) -> None:
        """Starts to move the fingers; returns at once.

        Args:
            width_m: Distance between the fingers; limited to what it can.
            speed: Share of the highest speed, 0 to 1.
            force: Share of the highest force, 0 to 1.

        Raises:
            RobotError: A value is not finite, a share is out of range, or the gripper does not take it.
        """
        if not all(math.isfinite(value) for value in (width_m, speed, force)):
            raise RobotError(f"the gripper was asked for {width_m} m, speed {speed}, force {force}; nothing was sent")
        if not (0 <= speed <= 1 and 0 <= force <= 1):
            raise RobotError(f"speed and force are shares from 0 to 1, not {speed} and {force}; nothing was sent")
        share = min(1.0, max(0.0, width_m / self.max_width_m))
        self._command(_ACTIVATE | _GO, round(_FULL * (1.0 - share)), round(_FULL * speed), round(_FULL * force))

    def wait(self, timeout_s: float = 5.0) -> GripperStatus:
        """Waits until it has arrived or holds something.

        Raises:
            RobotTimeout: It still moves.
            RobotError: It reports a fault.
        """
        deadline_s = self._clock.now() + timeout_s
        while (now := self.status()).is_moving:
            if now.fault:
                raise RobotError(f"the gripper stopped: {now.fault}")
            if self._clock.now() >= deadline_s:
                raise RobotTimeout(f"the gripper still moves after {timeout_s:g} s, at {now.width_m:.3f} m")
            self._clock.sleep_until(self._clock.now() + _POLL_S)
        return now

    def stop(self) -> None:
        """Stops the fingers where they are; they keep holding."""
        self._command(_ACTIVATE, 0, 0, 0)

    def release(self) -> None:
        """Opens slowly whatever it was doing, then needs `activate`: its emergency release."""
        self._command(_ACTIVATE | _RELEASE, 0, 0, 0)

    def _command(self, action: int, position: int, speed: int, force: int) -> None:
        self.modbus.write(self._device, _COMMAND, (action << 8, position, speed << 8 | force))

    def _decode(self, registers: tuple[int, ...]) -> GripperStatus:
        state, fault = registers[0] >> 8, registers[1] >> 8
        position = registers[2] >> 8
        is_active = bool(state & _ACTIVATE) and state >> 4 & 3 == _ACTIVE
        found = state >> 6
        return GripperStatus(
            is_active=is_active,
            is_moving=is_active and bool(state & _GO) and found == 0,
            has_object=is_active and found in (1, 2),
            position=position,
            width_m=self.max_width_m * (1.0 - position / _FULL),
            current_a=(registers[2] & 0xFF) * _MILLIAMPS_PER_COUNT / 1000,
            fault=_FAULTS.get(fault & 0x0F, f"fault 0x{fault & 0x0F:02x}"),
        )
