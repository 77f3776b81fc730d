"""The servos of an arm behind a `Bus`: what is read and written where, for Feetech STS and Dynamixel X.

A torque limit is `torque_limit` for Feetech and `goal_pwm` for Dynamixel, which limits the drive in every mode that has
a goal position. Unverified on hardware: that `acceleration` 0 means none, that both limits act at once while holding,
and that a Feetech servo forgets a latched overload when its torque is switched off.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from roboalign.drivers.arm.assembly import ArmParts
from roboalign.drivers.arm.models import MOTORS, POSITION_MODES, JointModel
from roboalign.drivers.arm.readings import Alert, MotorLimits, MotorReading
from roboalign.drivers.bus.bus import Bus
from roboalign.drivers.bus.dynamixel_table import DYNAMIXEL_REGISTERS, DYNAMIXEL_TELEMETRY
from roboalign.drivers.bus.feetech_table import FEETECH_REGISTERS, FEETECH_TELEMETRY
from roboalign.drivers.bus.types import Block, Fault, PortLost, Register, Reply
from roboalign.sdk.errors import RobotError

__all__ = ["BusServos"]

_RPM_UNIT = 0.229 * 2 * 3.141592653589793 / 60
_COUNT_RAD = 2 * 3.141592653589793 / 4096
_PWM_FULL = 885
_CURRENT_UNIT_A = {"xl330": 0.001, "xc330": 0.001, "xm430": 0.00269, "xm540": 0.00269}
_WATCHDOG_TICKS = 5  # of 20 ms
_WATCHDOG_GAP_S = 0.08
_HARDWARE_ALERT = 0x80
_NOBODY = 253  # from here on `secondary_id` names no servo
_HELPER_COUNTS = 60  # 5 degrees: a helper gets the goals of its motor
_FEETECH_ALERTS = (
    (0x01, Alert.VOLTAGE),
    (0x02, Alert.SENSOR),
    (0x04, Alert.TEMPERATURE),
    (0x08, Alert.CURRENT),
    (0x10, Alert.OTHER),
    (0x20, Alert.OVERLOAD),
)
_DYNAMIXEL_ALERTS = (
    (0x01, Alert.VOLTAGE),
    (0x04, Alert.TEMPERATURE),
    (0x08, Alert.SENSOR),
    (0x10, Alert.CURRENT),
    (0x20, Alert.OVERLOAD),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Table:
    """Where a family keeps what the arm needs."""

    registers: Mapping[str, Register]
    telemetry: Block
    share: str
    max_share: str
    full_share: int
    max_temperature: str
    modes: tuple[int, ...]
    at_rest: tuple[str, ...]  # registers set to 0, so that goals alone rule the motion


_FEETECH = _Table(
    registers=FEETECH_REGISTERS,
    telemetry=FEETECH_TELEMETRY,
    share="torque_limit",
    max_share="max_torque_limit",
    full_share=1000,
    max_temperature="max_temperature_limit",
    modes=POSITION_MODES["feetech"],
    at_rest=("acceleration", "goal_time", "goal_velocity"),
)
_DYNAMIXEL = _Table(
    registers=DYNAMIXEL_REGISTERS,
    telemetry=DYNAMIXEL_TELEMETRY,
    share="goal_pwm",
    max_share="pwm_limit",
    full_share=_PWM_FULL,
    max_temperature="temperature_limit",
    modes=POSITION_MODES["dynamixel"],
    at_rest=("profile_acceleration", "profile_velocity"),
)


class BusServos:
    """Implements `roboalign.drivers.arm.readings.ServoPort`."""

    def __init__(self, bus: Bus, parts: ArmParts) -> None:
        """Stores the bus, closed, and what the servos must be."""
        self.bus, self.parts = bus, parts
        self._motors = parts.file.model.motors
        self._is_feetech = parts.file.model.protocol == "feetech"
        self._table = _FEETECH if self._is_feetech else _DYNAMIXEL
        self._turns = [0] * len(self._motors)
        self._raw = [0] * len(self._motors)
        self._alerts = [Alert.NONE] * len(self._motors)
        self._max_share = [self._table.full_share] * len(self._motors)
        self._is_watched = False
        self._sent_s = 0.0
        self._decode = self._decode_feetech if self._is_feetech else self._decode_dynamixel

    @property
    def num_motors(self) -> int:
        """Arm joints and the gripper."""
        return len(self._motors)

    def open(self) -> Sequence[MotorLimits]:
        """Opens the port and checks that the right servos answer."""
        self.bus.open()
        return self._check()

    def reopen(self) -> None:
        """Opens a lost port again, whoever answers there."""
        self.bus.reopen()
        self._is_watched = False

    def check(self) -> str:
        """Checks the servos again; returns what is wrong, empty when nothing is."""
        try:
            self._check()
        except PortLost:
            raise
        except RobotError as err:
            return str(err)
        return ""

    def close(self) -> None:
        """Closes the port. Idempotent."""
        self.bus.close()

    def counts(self) -> dict[str, int]:
        """Returns what the bus counts."""
        stats = self.bus.stats
        names = ("transactions", "replies", "timeouts", "corrupt", "stale_bytes", "fences", "retries", "reopens")
        return {name: getattr(stats, name) for name in names}

    def read(self, motors: Sequence[int], *, is_eager: bool = False) -> tuple[dict[int, MotorReading], dict[int, str]]:
        """Reads these motors; returns what was read, and why the others were not."""
        ids = [id_ for index in motors for id_ in self._ids(index)]
        if is_eager:
            answers = {id_: self.bus.read(self._table.telemetry, id_) for id_ in ids}
        else:
            answers = self.bus.sync_read(self._table.telemetry, ids)
        readings: dict[int, MotorReading] = {}
        faults: dict[int, str] = {}
        for index in motors:
            main, *helpers = (answers[id_] for id_ in self._ids(index))
            if isinstance(main, Fault):
                faults[index] = f"{main.kind.value}: {main.detail}"
                continue
            alerts = Alert.NONE
            for helper in helpers:
                if isinstance(helper, Fault):
                    faults[index] = f"its helper (id {helper.id}) {helper.kind.value}: {helper.detail}"
                else:
                    alerts |= self._decode(index, helper).alerts
            if index not in faults:
                readings[index] = reading = self._decode(index, main, alerts)
                self._raw[index], self._alerts[index] = reading.position, reading.alerts
        return readings, faults

    def write_goals(self, counts: Mapping[int, int]) -> None:
        """Sends goal positions; nobody answers."""
        if self._is_watched and self.bus.now() - self._sent_s > _WATCHDOG_GAP_S:
            self._start_watchdog()  # it may have expired while nothing was sent
        self._sent_s = self.bus.now()
        goals = {self._motors[index].id: count + self._turns[index] for index, count in counts.items()}
        self.bus.sync_write(self._register("goal_position"), goals)

    def write_shares(self, shares: Mapping[int, float]) -> None:
        """Sends torque limits; nobody answers."""
        full = self._table.full_share
        values = {
            id_: min(round(share * full), self._max_share[index])
            for index, share in shares.items()
            for id_ in self._ids(index)
        }
        self.bus.sync_write(self._register(self._table.share), values)

    def set_torque(self, motor: int, is_on: bool) -> str:
        """Switches torque and reads it back; returns why it is not as asked, empty when it is."""
        torque = self._register("torque_enable")
        if is_on and self._alerts[motor] & ~Alert.VOLTAGE and (why := self._clear_alerts(motor)):
            return why
        if is_on and not self._is_feetech:
            self._turns[motor] = self._raw[motor] - self.parts.joints.units[motor].unwrapped(self._raw[motor])
        for id_ in self._ids(motor):
            answer = self.bus.write(torque, id_, int(is_on))
            found = self.bus.read(torque, id_)
            if isinstance(found, Fault):
                return f"{found.kind.value}: {found.detail}"
            if torque.decode(found.data) != int(is_on):
                detail = f" ({answer.detail})" if isinstance(answer, Fault) else ""
                return f"its torque is {'off' if is_on else 'on'} still{detail}"
        return ""

    def _clear_alerts(self, motor: int) -> str:
        """Makes servos forget what they latched: Feetech by switching torque off, Dynamixel by a restart."""
        for id_ in self._ids(motor):
            if self._is_feetech:
                self.bus.write(self._register("torque_enable"), id_, 0)
            else:
                self.bus.reboot(id_)
        if self._is_feetech:
            return ""
        return "it was restarted because of a hardware error; wait a second and connect again"

    def has_torque(self, motor: int) -> bool | None:
        """Returns whether torque is on in all servos of a motor; None when one does not answer."""
        values = [self._value("torque_enable", id_) for id_ in self._ids(motor)]
        return None if None in values else all(values)

    def goal(self, motor: int) -> int | None:
        """Returns the goal position in the servo's register; None when it does not answer."""
        value = self._value("goal_position", self._motors[motor].id)
        return None if value is None else value - self._turns[motor]

    def watch(self, is_on: bool) -> None:
        """Arms or clears the bus watchdog of Dynamixel servos; Feetech has none."""
        if self._is_feetech:
            return
        self._is_watched = is_on
        self._start_watchdog() if is_on else self._write_all("bus_watchdog", 0)

    def _start_watchdog(self) -> None:
        self._write_all("bus_watchdog", 0)
        self._write_all("bus_watchdog", _WATCHDOG_TICKS)

    def _write_all(self, name: str, value: int) -> None:
        self.bus.sync_write(self._register(name), dict.fromkeys(self.parts.file.model.ids, value))

    def _register(self, name: str) -> Register:
        return self._table.registers[name]

    def _ids(self, motor: int) -> tuple[int, ...]:
        joint = self._motors[motor]
        return (joint.id, *joint.shadow_ids)

    def _value(self, name: str, id_: int) -> int | None:
        register = self._register(name)
        answer = self.bus.read(register, id_)
        return None if isinstance(answer, Fault) else register.decode(answer.data)

    def _decode_feetech(self, index: int, reply: Reply, alerts: Alert = Alert.NONE) -> MotorReading:
        values = self._table.telemetry.decode(reply.data)
        bits = values["status"] | reply.error
        return MotorReading(
            position=values["present_position"],
            velocity_rad_s=values["present_velocity"] * _COUNT_RAD,
            load=values["present_load"] / 1000,
            volts=values["present_voltage"] / 10,
            temperature_c=float(values["present_temperature"]),
            current_a=values["present_current"] * 0.0065,
            alerts=alerts | _alerts(bits, _FEETECH_ALERTS),
            time_s=reply.time_s,
        )

    def _decode_dynamixel(self, index: int, reply: Reply, alerts: Alert = Alert.NONE) -> MotorReading:
        values = self._table.telemetry.decode(reply.data)
        unit = _CURRENT_UNIT_A.get(self._motors[index].motor.partition("-")[0])
        if reply.error & _HARDWARE_ALERT:
            bits = self._value("hardware_error_status", reply.id)
            alerts |= Alert.OTHER if bits is None else _alerts(bits, _DYNAMIXEL_ALERTS)
        return MotorReading(
            position=values["present_position"],
            velocity_rad_s=values["present_velocity"] * _RPM_UNIT,
            load=values["present_pwm"] / _PWM_FULL,
            volts=values["present_input_voltage"] / 10,
            temperature_c=float(values["present_temperature"]),
            current_a=None if unit is None else values["present_current"] * unit,
            alerts=alerts,
            time_s=reply.time_s,
        )

    def _check(self) -> list[MotorLimits]:
        """Reads what servos are and how they are set up. Raises RobotError that names what is wrong, servo by servo."""
        model = self._ask("model_number")
        offset, mode = self._ask("homing_offset"), self._ask("operating_mode")
        low, high = self._ask("min_position_limit"), self._ask("max_position_limit")
        turned = self._ask("phase" if self._is_feetech else "drive_mode")
        min_volts, max_volts = self._ask("min_voltage_limit"), self._ask("max_voltage_limit")
        leader = {} if self._is_feetech else self._ask("secondary_id")
        position = self._ask("present_position") if any(motor.shadow_ids for motor in self._motors) else {}
        max_temperature, max_share = self._ask(self._table.max_temperature), self._ask(self._table.max_share)
        problems = []
        for index, motor in enumerate(self._motors):
            wanted = MOTORS[motor.motor]
            units, where = self.parts.joints.units[index], f"{motor.name} (id {motor.id})"
            for id_ in self._ids(index):
                if model[id_] != wanted.number:
                    problems.append(f"{where} is model {model[id_]}, expected {wanted.name} ({wanted.number})")
            if offset[motor.id] != self.parts.homing_offsets[index]:
                found = f"{where} has homing offset {offset[motor.id]}, its calibration says"
                problems.append(f"{found} {self.parts.homing_offsets[index]}: roboalign calibrate")
            if mode[motor.id] not in self._table.modes:
                problems.append(f"{where} is in operating mode {mode[motor.id]}: roboalign setup-motors")
            is_narrow = low[motor.id] > units.range_min or high[motor.id] < units.range_max
            if is_narrow and low[motor.id] < high[motor.id] and mode[motor.id] != 4:
                found = f"{where} stops at {low[motor.id]} to {high[motor.id]} by its own limits"
                problems.append(f"{found}, its sweep is {units.range_min} to {units.range_max}: roboalign calibrate")
            problems += self._check_axis(motor, where, leader, turned, position)
            problems += self._check_direction(motor, where, index, turned[motor.id])
            self._max_share[index] = min(max_share[id_] for id_ in self._ids(index)) or self._table.full_share
        if problems:
            raise RobotError(f"{self.bus.name}: {'; '.join(problems)}")
        for name in self._table.at_rest:
            self._write_all(name, 0)
        return [
            MotorLimits(
                min_volts=max(min_volts[id_] for id_ in self._ids(index)) / 10,
                max_volts=min(max_volts[id_] for id_ in self._ids(index)) / 10,
                max_temperature_c=float(min(max_temperature[id_] for id_ in self._ids(index))),
            )
            for index in range(self.num_motors)
        ]

    def _check_axis(
        self,
        motor: JointModel,
        where: str,
        leader: Mapping[int, int],
        turned: Mapping[int, int],
        position: Mapping[int, int],
    ) -> list[str]:
        """Servos on one axis get the same goals; one that follows another, turns or counts otherwise would fight."""
        problems = []
        if leader.get(motor.id, _NOBODY) not in (motor.id, *range(_NOBODY, 256)):
            problems.append(f"{where} follows id {leader[motor.id]}: roboalign setup-motors")
        for id_ in motor.shadow_ids:
            helper = f"{where} has a helper (id {id_}) that"
            if leader.get(id_) != motor.id:
                problems.append(f"{helper} follows id {leader.get(id_)}, not {motor.id}: roboalign setup-motors")
            elif not (turned[id_] ^ turned[motor.id]) & 1:
                problems.append(f"{helper} turns against it: roboalign setup-motors")
            elif abs(position[id_] - position[motor.id]) > _HELPER_COUNTS:
                found = f"{helper} is at {position[id_]} counts where it is at {position[motor.id]}"
                problems.append(f"{found}: switch its power off and on, then roboalign calibrate")
        return problems

    def _check_direction(self, motor: JointModel, where: str, index: int, register: int) -> list[str]:
        if self._is_feetech:
            is_multi_turn = register & 0x10
            return [f"{where} counts several turns (phase bit 4): roboalign setup-motors"] if is_multi_turn else []
        wanted = self.parts.drive_modes[index]
        found = f"{where} has drive mode {register}, its calibration says {wanted}: roboalign calibrate"
        return [found] if register & 1 != wanted else []

    def _ask(self, name: str) -> dict[int, int]:
        """Returns one register of every servo. Raises RobotError that names those that do not answer."""
        register, ids = self._register(name), self.parts.file.model.ids
        answers = self.bus.sync_read(register, ids)
        silent = {id_: answer for id_, answer in answers.items() if isinstance(answer, Fault)}
        for id_ in silent:
            answers[id_] = self.bus.read(register, id_)
        faults = [answer for answer in answers.values() if isinstance(answer, Fault)]
        if faults:
            names = {number: joint.name for joint in self._motors for number in (joint.id, *joint.shadow_ids)}
            told = "; ".join(
                f"{names[fault.id]} (id {fault.id}) {fault.kind.value}: {fault.detail}" for fault in faults
            )
            raise RobotError(f"{self.bus.name}: {told}; check cables, power and ids: roboalign doctor")
        return {id_: register.decode(answer.data) for id_, answer in answers.items() if isinstance(answer, Reply)}


def _alerts(bits: int, table: Sequence[tuple[int, Alert]]) -> Alert:
    found = Alert.NONE
    for bit, alert in table:
        if bits & bit:
            found |= alert
    return found
