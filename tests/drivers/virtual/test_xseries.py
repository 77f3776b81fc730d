"""What the memory of a Dynamixel X servo does with what is written to it."""

import pytest

from roboalign.drivers.bus.dynamixel_table import DYNAMIXEL_BAUDS, DYNAMIXEL_MODELS, DYNAMIXEL_REGISTERS
from roboalign.drivers.virtual.arm import Seat, VirtualArm
from roboalign.drivers.virtual.faults import LineFault
from roboalign.drivers.virtual.physics import KinematicPlant
from roboalign.drivers.virtual.xmodels import XSERIES_BAUDS, XSERIES_MODELS
from roboalign.drivers.virtual.xseries import ACCESS, LIMIT, RANGE, XServo


class Bench:
    """One servo on one joint."""

    def __init__(self, model: str = "xm430-w350") -> None:
        self.servo = XServo(1, XSERIES_MODELS[model])
        self.plant = KinematicPlant(("pan",))
        self.arm = VirtualArm(self.plant, [Seat(self.servo, 0)])

    def get(self, name: str) -> int:
        register = DYNAMIXEL_REGISTERS[name]
        return register.decode(self.servo.read(register.address, register.size))

    def put(self, name: str, value: int) -> int:
        register = DYNAMIXEL_REGISTERS[name]
        return self.servo.write(register.address, register.encode(value))

    def wait(self, seconds: float) -> None:
        for _ in range(round(seconds / 0.02)):
            self.arm.advance(0.02)


def test_the_drivers_table_and_the_devices_agree() -> None:
    bench = Bench()
    assert (bench.get("model_number"), bench.get("id"), bench.get("operating_mode")) == (1020, 1, 3)
    assert (bench.get("max_position_limit"), bench.get("shutdown"), bench.get("return_delay_time")) == (4095, 52, 250)
    assert (bench.get("present_position"), bench.get("present_input_voltage")) == (2048, 120)
    assert bench.get("present_temperature") == 25
    assert {model.number: model.name for model in XSERIES_MODELS.values()}.items() <= {
        number: model.name for number, model in DYNAMIXEL_MODELS.items()
    }.items()
    assert all(XSERIES_BAUDS[index] == baud for index, baud in DYNAMIXEL_BAUDS.items())


def test_a_goal_alone_moves_nothing_and_torque_on_holds() -> None:
    bench = Bench()
    assert bench.put("goal_position", 3000) == 0
    bench.wait(0.5)
    assert (bench.get("torque_enable"), bench.get("present_position")) == (0, 2048)
    bench.put("torque_enable", 1)
    bench.wait(0.5)
    assert bench.get("present_position") == 2048


def test_it_goes_to_a_goal() -> None:
    bench = Bench()
    bench.put("torque_enable", 1)
    bench.put("goal_position", 1000)
    bench.wait(1.0)
    assert bench.get("present_position") == 1000


def test_the_eeprom_is_closed_while_torque_is_on() -> None:
    bench = Bench()
    bench.put("torque_enable", 1)
    assert bench.put("homing_offset", 10) == ACCESS
    bench.put("torque_enable", 0)
    assert bench.put("homing_offset", 10) == 0
    assert bench.get("present_position") == 2058  # actual + offset


def test_rejected_writes_change_nothing() -> None:
    bench = Bench()
    assert bench.servo.write(132, b"\x00\x00\x00\x00") == ACCESS
    assert bench.put("id", 253) == RANGE
    assert bench.put("operating_mode", 7) == RANGE
    assert bench.put("goal_position", 5000) == LIMIT
    assert bench.put("goal_velocity", 100_000) == LIMIT
    assert (bench.get("id"), bench.get("operating_mode"), bench.get("goal_position")) == (1, 3, 0)


def test_extended_positions_count_turns() -> None:
    bench = Bench()
    bench.put("operating_mode", 4)
    bench.put("torque_enable", 1)
    assert bench.put("goal_position", 6000) == 0
    bench.wait(2.0)
    assert bench.get("present_position") == 6000


def test_current_based_position_presses_with_its_goal_current() -> None:
    bench = Bench()
    bench.put("operating_mode", 5)
    bench.put("torque_enable", 1)
    bench.put("goal_current", 100)
    bench.arm.suffer(LineFault(kind="block", joint="pan", upper_rad=0.2))
    bench.put("goal_position", 3000)
    bench.wait(1.0)
    assert bench.get("present_current") == 100


def test_velocity_mode_and_profile_velocity() -> None:
    bench = Bench()
    bench.put("operating_mode", 1)
    bench.put("torque_enable", 1)
    bench.put("goal_velocity", -50)
    bench.wait(0.5)
    assert bench.get("present_velocity") == -50
    bench.put("torque_enable", 0)
    bench.put("operating_mode", 4)
    bench.put("torque_enable", 1)
    bench.put("profile_velocity", 20)
    bench.put("goal_position", 100_000)
    bench.wait(0.5)
    assert bench.get("present_velocity") == 20


def test_drive_mode_1_turns_the_other_way() -> None:
    bench = Bench()
    bench.put("drive_mode", 1)
    assert bench.get("present_position") == 2048
    bench.put("torque_enable", 1)
    bench.put("goal_position", 3000)
    bench.wait(1.0)
    assert bench.get("present_position") == 3000
    assert bench.plant.states()[0].position_rad < 0


def test_the_bus_watchdog_stops_motion_and_closes_the_goals() -> None:
    bench = Bench()
    bench.put("operating_mode", 1)
    bench.put("torque_enable", 1)
    bench.put("goal_velocity", 50)
    bench.put("bus_watchdog", 5)
    bench.wait(0.08)
    bench.servo.touch()
    bench.wait(0.08)
    assert bench.get("present_velocity") == 50
    bench.wait(0.5)
    assert (bench.get("bus_watchdog"), bench.get("present_velocity")) == (-1, 0)
    assert bench.put("goal_velocity", 50) == RANGE
    assert bench.put("bus_watchdog", 0) == 0
    assert bench.put("goal_velocity", 50) == 0


def test_a_hardware_error_lasts_until_reboot() -> None:
    bench = Bench()
    bench.put("torque_enable", 1)
    bench.arm.suffer(LineFault(kind="hot", id=1, celsius=90.0))
    bench.wait(0.02)
    assert (bench.get("hardware_error_status"), bench.servo.error_bits, bench.get("torque_enable")) == (4, 0x80, 0)
    bench.arm.suffer(LineFault(kind="hot", id=1, celsius=30.0))
    bench.wait(0.02)
    assert bench.put("torque_enable", 1) == ACCESS
    bench.servo.is_restart_asked = True
    bench.arm.restart_asked()
    assert bench.put("torque_enable", 1) == 0


@pytest.mark.parametrize(("model", "torque"), [("xl330-m288", 0), ("xl430-w250", 1)])
def test_the_shutdown_mask_decides_what_low_voltage_does(model: str, torque: int) -> None:
    bench = Bench(model)
    bench.put("torque_enable", 1)
    low = 3.5 if model.startswith("xl330") else 6.0
    bench.servo.model = type(bench.servo.model)(**{**_fields(bench.servo), "brownout_v": 1.0})
    bench.arm.suffer(LineFault(kind="voltage", volts=low - 0.3))
    bench.wait(0.02)
    assert (bench.get("hardware_error_status"), bench.get("torque_enable")) == (1, torque)


def _fields(servo: XServo) -> dict[str, object]:
    return {name: getattr(servo.model, name) for name in servo.model.__slots__}


def test_overload_after_a_second_of_pressing() -> None:
    bench = Bench()
    bench.put("torque_enable", 1)
    bench.arm.suffer(LineFault(kind="block", joint="pan", upper_rad=0.2))
    bench.put("goal_position", 3500)
    bench.wait(0.8)
    assert bench.get("hardware_error_status") == 0
    bench.wait(0.8)
    assert (bench.get("hardware_error_status"), bench.get("torque_enable")) == (32, 0)


def test_indirect_registers_gather_bytes() -> None:
    bench = Bench()
    for index, address in enumerate((132, 133, 146)):
        bench.servo.write(168 + 2 * index, address.to_bytes(2, "little"))
    assert bench.servo.read(224, 3) == b"\x00\x08\x19"


def test_reset_kinds() -> None:
    bench = Bench()
    bench.put("id", 7)
    bench.put("baud_rate", 3)
    bench.servo.reset(2)
    assert (bench.servo.id, bench.servo.baud_hz) == (7, 1_000_000)
    bench.servo.reset(1)
    assert (bench.servo.id, bench.servo.baud_hz) == (7, 57_600)
    bench.servo.reset(0xFF)
    assert bench.servo.id == 1
