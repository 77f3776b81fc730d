"""The servos of a virtual arm without bytes: what an arm's safety needs of them, straight from their controllers.

`DirectServos` stands where `roboalign.drivers.arm.servos.BusServos` does. Counts, the servos' setpoints and the order
of reading and writing are the same; there is no codec, no bus, no port, no pseudo-terminal and no other process. An arm
on it is the simulated arm "with the same quantisation and latency" that the one behind the bytes is compared with, bit
by bit (`benchmarks/serial_identity.py`). Feetech servos only, one servo a joint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from roboalign.drivers.arm.readings import Alert, MotorLimits, MotorReading
from roboalign.drivers.virtual.arm import VirtualArm
from roboalign.drivers.virtual.servo import RAD_PER_COUNT
from roboalign.drivers.virtual.sts import OVERLOAD, TEMPERATURE, VOLTAGE, StsServo
from roboalign.sdk.control.clock import Clock
from roboalign.sdk.errors import ConfigError

__all__ = ["DirectServos"]

_CURRENT_UNIT_A = 0.0065
_ALERTS = ((VOLTAGE, Alert.VOLTAGE), (TEMPERATURE, Alert.TEMPERATURE), (8, Alert.CURRENT), (OVERLOAD, Alert.OVERLOAD))
# Of Feetech's memory table, apart from the drivers' own (`roboalign.drivers.bus.feetech_table`).
_TORQUE, _ACCELERATION, _GOAL, _GOAL_TIME, _GOAL_SPEED, _LIMIT = 40, 41, 42, 44, 46, 48


class DirectServos:
    """Implements `roboalign.drivers.arm.readings.ServoPort` on a virtual arm; each reading lets one step pass."""

    def __init__(self, arm: VirtualArm, clock: Clock, step_s: float) -> None:
        """Stores the arm, the clock of readings, and how much of the arm's time a reading of its motors takes.

        Raises:
            ConfigError: A servo is not a Feetech one.
        """
        servos = [servo for servo in arm.servos if isinstance(servo, StsServo)]
        if len(servos) != len(arm.servos):
            raise ConfigError("servos without bytes are Feetech ones; this arm has others")
        self._arm, self._servos, self._clock, self._step_s = arm, servos, clock, step_s

    @property
    def num_motors(self) -> int:
        """Arm joints and the gripper."""
        return len(self._servos)

    def open(self) -> Sequence[MotorLimits]:
        """Returns what the servos can bear, and lets goals alone rule their motion."""
        for servo in self._servos:
            for address, size in ((_ACCELERATION, 1), (_GOAL_TIME, 2), (_GOAL_SPEED, 2)):
                servo.write(address, bytes(size))
        return [
            MotorLimits(min_volts=servo.model.min_v, max_volts=servo.model.max_v, max_temperature_c=70.0)
            for servo in self._servos
        ]

    def read(self, motors: Sequence[int], *, is_eager: bool = False) -> tuple[dict[int, MotorReading], dict[int, str]]:
        """Lets a step pass and returns how these motors are, in the steps of their encoders and registers."""
        if not is_eager:
            self._arm.advance(self._step_s)
        return {index: self._reading(self._servos[index]) for index in motors}, {}

    def _reading(self, servo: StsServo) -> MotorReading:
        state, sign, bits = servo.state, servo.encoder.sign, servo.error_bits
        share = state.torque_share * sign
        alerts = Alert.NONE
        for bit, alert in _ALERTS:
            alerts |= alert if bits & bit else Alert.NONE
        return MotorReading(
            position=servo.present,
            velocity_rad_s=round(state.velocity_rad_s * sign / RAD_PER_COUNT) * RAD_PER_COUNT,
            load=round(share * 1000) / 1000,
            volts=round(servo.volts * 10) / 10,
            temperature_c=float(round(servo.temperature_c)),
            current_a=round(share * servo.model.stall_current_a / _CURRENT_UNIT_A) * _CURRENT_UNIT_A,
            alerts=alerts,
            time_s=self._clock.now(),
        )

    def write_goals(self, counts: Mapping[int, int]) -> None:
        """Gives the servos their goals."""
        for index, count in counts.items():
            self._servos[index].write(_GOAL, count.to_bytes(2, "little"))

    def write_shares(self, shares: Mapping[int, float]) -> None:
        """Gives the servos their torque limits."""
        for index, share in shares.items():
            self._servos[index].write(_LIMIT, round(share * 1000).to_bytes(2, "little"))

    def set_torque(self, motor: int, is_on: bool) -> str:
        """Switches torque."""
        self._servos[motor].write(_TORQUE, bytes((is_on,)))
        return ""

    def has_torque(self, motor: int) -> bool:
        """Returns whether torque is on."""
        return self._servos[motor].is_torque_on

    def goal(self, motor: int) -> int:
        """Returns the goal position."""
        return self._servos[motor].word(_GOAL)

    def watch(self, is_on: bool) -> None:
        """Does nothing: Feetech servos have no watchdog."""

    def reopen(self) -> None:
        """Does nothing: there is no port that could be lost."""

    def check(self) -> str:
        """Returns that nothing is wrong."""
        return ""

    def close(self) -> None:
        """Does nothing."""

    def counts(self) -> dict[str, int]:
        """Returns nothing: there is no bus that counts."""
        return {}
