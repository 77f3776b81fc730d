"""A servo bus by the names of registers, as the guided procedures and the doctor use it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType

from roboalign.drivers.arm.models import COUNTS_PER_TURN
from roboalign.drivers.bus.bus import Bus, Device
from roboalign.drivers.bus.dynamixel import Dynamixel
from roboalign.drivers.bus.dynamixel_table import DYNAMIXEL_BAUDS, DYNAMIXEL_MODELS, DYNAMIXEL_REGISTERS
from roboalign.drivers.bus.eeprom import change_baud
from roboalign.drivers.bus.feetech import Feetech
from roboalign.drivers.bus.feetech_table import FEETECH_BAUDS, FEETECH_MODELS, FEETECH_REGISTERS
from roboalign.drivers.bus.transport import SerialTransport
from roboalign.drivers.bus.types import Register, Reply, ServoModel
from roboalign.sdk.errors import ConfigError, RobotError, unknown_name

__all__ = ["ServoBus", "open_servos"]

_TABLES: Mapping[str, tuple[Mapping[str, Register], Mapping[int, int], Mapping[int, ServoModel]]] = {
    "feetech": (FEETECH_REGISTERS, FEETECH_BAUDS, FEETECH_MODELS),
    "dynamixel": (DYNAMIXEL_REGISTERS, DYNAMIXEL_BAUDS, DYNAMIXEL_MODELS),
}
_VOLTAGE = {"feetech": "present_voltage", "dynamixel": "present_input_voltage"}


class ServoBus:
    """An open bus with the control table of its servos. Use it as a context manager."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.protocol: str = bus.protocol.name
        self.registers, self.bauds, self.models = _TABLES[self.protocol]

    def __enter__(self) -> ServoBus:
        self.bus.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bus.close()

    @property
    def name(self) -> str:
        """The port, for messages."""
        return self.bus.name

    def find(self, ids: Iterable[int], bauds: Iterable[int] | None = None) -> dict[int, dict[int, Device]]:
        """Returns who answers, by rate; at all rates of the table unless some are named."""
        return self.bus.scan_bauds(self.bauds.values() if bauds is None else bauds, ids)

    def read(self, servo: int, name: str) -> int:
        """Returns a register of one servo; raises RobotError when it does not answer."""
        return self.bus.read_value(self.registers[name], servo)

    def read_many(self, servos: Sequence[int], name: str) -> dict[int, int]:
        """Returns a register of those servos that answer."""
        register = self.registers[name]
        answers = self.bus.sync_read(register, servos)
        return {servo: register.decode(found.data) for servo, found in answers.items() if isinstance(found, Reply)}

    def write(self, servo: int, name: str, value: int) -> bool:
        """Writes a register, verified; returns whether it had to be written."""
        return self.bus.write_verified(self.registers[name], servo, value)

    def move_to_baud(self, servo: int, baud: int) -> bool:
        """Changes the rate of one servo; the port has its own rate again afterwards.

        Raises:
            ConfigError: The servos do not know this rate.
        """
        index = next((index for index, rate in self.bauds.items() if rate == baud), None)
        if index is None:
            raise ConfigError(unknown_name("rate", str(baud), map(str, self.bauds.values())))
        return change_baud(self.bus, self.registers["baud_rate"], servo, index, baud)

    def release(self, servos: Sequence[int]) -> None:
        """Turns torque off; one that does not obey never keeps the others from it.

        Raises:
            RobotError: Some did not confirm; names them.
        """
        bad: dict[int, str] = {}
        for servo in servos:
            try:
                self.bus.write_verified(self.registers["torque_enable"], servo, 0)
            except RobotError as err:
                bad[servo] = str(err)
        if bad:
            raise RobotError(f"torque is not off on servo {', '.join(map(str, bad))}: {next(iter(bad.values()))}")

    def encoder_counts(self, servos: Sequence[int], offsets: Mapping[int, int]) -> dict[int, int]:
        """Returns what the encoders of those that answer count, 0 to 4095, without their homing offsets."""
        sign = -1 if self.protocol == "dynamixel" else 1
        present = self.read_many(servos, "present_position")
        return {servo: (value + sign * offsets[servo]) % COUNTS_PER_TURN for servo, value in present.items()}

    def volts(self, servo: int) -> float:
        """Returns the supply that a servo measures."""
        return 0.1 * self.read(servo, _VOLTAGE[self.protocol])


def open_servos(port: str, protocol: str, baud: int) -> ServoBus:
    """Returns a bus on a serial port, not opened yet.

    Raises:
        ConfigError: There is no such protocol.
    """
    if protocol not in _TABLES:
        raise ConfigError(unknown_name("protocol", protocol, _TABLES))
    wire = Feetech() if protocol == "feetech" else Dynamixel()
    return ServoBus(Bus(SerialTransport(port, baud), wire))
