"""Servos on the joints of a plant, with their power supplies and a common time: everything behind the wire."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from roboalign.drivers.virtual.faults import LineFault
from roboalign.drivers.virtual.physics import OFF, JointPlant, JointState, MotorCommand
from roboalign.drivers.virtual.servo import Encoder, Supply, VirtualServo
from roboalign.drivers.virtual.sts import STS_BAUDS, StsServo
from roboalign.drivers.virtual.xmodels import XSERIES_BAUDS
from roboalign.drivers.virtual.xseries import XServo
from roboalign.sdk.errors import ConfigError

__all__ = ["Seat", "VirtualArm"]

_DUPLICATE_COUNTS = 500
_STEP_S = 1.0 / 240.0
_LONG_STEP_S, _LONG_LAG_S = 0.02, 0.2  # a clock that jumped, in memory: coarser steps will do


@dataclass(frozen=True, slots=True)
class Seat:
    """Where a servo sits."""

    servo: VirtualServo
    """The servo."""
    joint: int | None
    """Index of the joint that it turns; None: it turns nothing."""


class VirtualArm:
    """The arm behind the wire. Time passes only in `advance`."""

    def __init__(self, plant: JointPlant, seats: Sequence[Seat], *, start_s: float = 0.3) -> None:
        """Stores plant and servos; `start_s` is how long a servo starts up after its power came."""
        self.plant = plant
        self.time_s = 0.0
        """Time of the arm since it was made."""
        self._seats = list(seats)
        self._start_s = start_s
        self._power_back_s: dict[int, float] = {}
        self.supplies = {
            volts: Supply(source_v=volts) for volts in sorted({seat.servo.model.nominal_v for seat in seats})
        }
        """Power rails by nominal voltage."""
        self.settle()

    @property
    def servos(self) -> list[VirtualServo]:
        """All servos, in the order of the line."""
        return [seat.servo for seat in self._seats]

    def find(self, id: int) -> VirtualServo:  # noqa: A002 - the protocols' own word
        """Returns the first servo with this id.

        Raises:
            ConfigError: There is none.
        """
        for servo in self.servos:
            if servo.id == id:
                return servo
        raise ConfigError(f"no servo has id {id}; there are {', '.join(str(servo.id) for servo in self.servos)}")

    def hearing(self, baud_hz: int | None) -> list[VirtualServo]:
        """Returns the servos that hear a host at this rate; None: whatever their rate is."""
        return [
            servo for servo in self.servos if servo.hears(self.time_s) and (baud_hz is None or servo.baud_hz == baud_hz)
        ]

    def settle(self) -> None:
        """Takes the joints as they are into the servos' readings, without time."""
        states = self.plant.states()
        for seat in self._seats:
            servo = seat.servo
            servo.state = servo.state if seat.joint is None else states[seat.joint]
            if servo.is_powered and not servo.is_dead:
                servo.sense()

    def advance(self, period_s: float) -> None:
        """Lets time pass: controllers, joints, readings, protections, and the power supply, in this order."""
        commands: list[list[MotorCommand]] = [[] for _ in self.plant.joint_names]
        for servo, joint in ((seat.servo, seat.joint) for seat in self._seats):
            command = servo.command(period_s)
            if joint is not None:
                commands[joint].append(command)
        self.plant.step([_together(found) for found in commands], period_s)
        self.time_s += period_s
        states = self.plant.states()
        rails = {nominal: supply.volts for nominal, supply in self.supplies.items()}
        for supply in self.supplies.values():
            supply.current_a = 0.0
        for seat in self._seats:
            servo = seat.servo
            nominal = servo.model.nominal_v
            if self._power_back_s or not servo.is_powered or rails[nominal] < servo.model.brownout_v:
                self._power(servo, rails[nominal])
            servo.update(servo.state if seat.joint is None else states[seat.joint], rails[nominal], period_s)
            self.supplies[nominal].current_a += servo.current_a

    def look(self) -> None:
        """Begins a reading of the positions: what reads wrong does so by another amount, or the last one comes again.

        Only an arm with hidden dynamics has such; on every other one nothing happens.
        """
        errors = self.plant.errors_rad()
        if errors is None:
            for servo in self.servos:
                servo.lost_count = servo.seen_count
        elif not any(errors):
            return
        else:
            for seat in self._seats:
                seat.servo.lost_count = None
                seat.servo.error_rad = 0.0 if seat.joint is None else errors[seat.joint]
                seat.servo.seen_count = seat.servo.read_count
        for servo in self.servos:
            if servo.is_powered and not servo.is_dead:
                servo.sense()

    def advance_to(self, time_s: float, max_lag_s: float = math.inf) -> None:
        """Lets time pass until the arm's time is less than 1/240 s behind `time_s`, how often it is called or not.

        What is more than `max_lag_s` behind is left out.
        """
        self.time_s = max(self.time_s, time_s - max_lag_s)
        while (left := time_s - self.time_s) >= _STEP_S:
            self.advance(_LONG_STEP_S if left > _LONG_LAG_S else _STEP_S)

    def _power(self, servo: VirtualServo, volts: float) -> None:
        back_s = self._power_back_s.get(id(servo), 0.0)
        is_on = volts >= servo.model.brownout_v and self.time_s >= back_s
        if is_on != servo.is_powered:
            servo.power(is_on, self.time_s, self._start_s)

    def restart_asked(self) -> None:
        """Restarts the servos that were asked to reboot."""
        for servo in self.servos:
            if servo.is_restart_asked:
                servo.is_restart_asked = False
                servo.power(False, self.time_s, self._start_s)
                servo.power(True, self.time_s, self._start_s)

    def suffer(self, fault: LineFault) -> None:
        """Lets a fault of the arm happen; what concerns the plug is the line's."""
        if fault.kind in ("block", "free", "push", "place"):
            self._suffer_joint(fault)
        elif fault.kind in ("voltage", "brownout"):
            self._suffer_power(fault)
        else:
            self._suffer_servo(fault)
        self.settle()

    def _suffer_joint(self, fault: LineFault) -> None:
        joint = fault.joint or ""
        if fault.kind == "place":
            self.plant.place(joint, fault.rad)
        elif fault.kind == "push":
            self.plant.push(joint, fault.share)
        else:
            is_block = fault.kind == "block"
            self.plant.block(joint, fault.lower_rad if is_block else None, fault.upper_rad if is_block else None)

    def _suffer_power(self, fault: LineFault) -> None:
        hit = [servo for servo in self.servos if fault.id in (None, servo.id)]
        if fault.kind == "voltage":
            for volts in {servo.model.nominal_v for servo in hit}:
                self.supplies[volts].source_v = fault.volts
            return
        for servo in hit:
            self._power_back_s[id(servo)] = self.time_s + fault.delay_s
            servo.power(False, self.time_s, self._start_s)

    def _suffer_servo(self, fault: LineFault) -> None:
        servo = self.find(fault.id if fault.id is not None else -1)
        if fault.kind in ("dead", "revive"):
            servo.is_dead = fault.kind == "dead"
        elif fault.kind == "duplicate":
            self._seats.append(Seat(_twin(servo), None))
        elif fault.kind == "overload" and isinstance(servo, (StsServo, XServo)):
            servo.overload()
        elif fault.kind == "hot":
            servo.temperature_c = fault.celsius
        elif fault.kind == "wrong_baud":
            rates = STS_BAUDS if isinstance(servo, StsServo) else XSERIES_BAUDS
            if fault.baud not in rates:
                raise ConfigError(f"a {servo.model.name} has no rate of {fault.baud}; choose one of {rates}")
            at = 6 if isinstance(servo, StsServo) else 8
            servo.memory[at] = servo.kept[at] = rates.index(fault.baud)


def _together(commands: list[MotorCommand]) -> MotorCommand:
    """What several servos on one axis ask of it; a joint's torque is given as a share of all of them."""
    if len(commands) == 1:
        return commands[0]
    active = [command for command in commands if command.mode != "off"]
    if not active:
        return OFF
    return replace(active[0], limit_share=sum(command.limit_share for command in active) / len(commands))


def _twin(servo: VirtualServo) -> VirtualServo:
    """A second servo with the same settings, elsewhere."""
    encoder = Encoder(zero_count=servo.encoder.zero_count + _DUPLICATE_COUNTS)
    twin: VirtualServo
    if isinstance(servo, StsServo):
        twin = StsServo(servo.id, servo.model, encoder, servo.firmware)
    else:
        assert isinstance(servo, XServo)
        twin = XServo(servo.id, servo.model, encoder, servo.firmware)
    twin.kept[:] = servo.kept
    twin.memory[:] = servo.memory
    twin.state = JointState(0.0, 0.0, 0.0)
    twin.reload()
    twin.sense()
    return twin
