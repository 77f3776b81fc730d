"""What the memory of a Feetech servo does with what is written to it."""

from roboalign.drivers.bus.feetech_table import FEETECH_REGISTERS
from roboalign.drivers.virtual.arm import Seat, VirtualArm
from roboalign.drivers.virtual.faults import LineFault
from roboalign.drivers.virtual.physics import KinematicPlant
from roboalign.drivers.virtual.servo import Encoder
from roboalign.drivers.virtual.sts import STS_BAUDS, StsFirmware, StsServo


class Bench:
    """One servo on one joint."""

    def __init__(self, firmware: StsFirmware | None = None, zero_count: int = 2048) -> None:
        self.servo = StsServo(1, encoder=Encoder(zero_count=zero_count), firmware=firmware)
        self.plant = KinematicPlant(("pan",))
        self.arm = VirtualArm(self.plant, [Seat(self.servo, 0)])

    def get(self, name: str) -> int:
        register = FEETECH_REGISTERS[name]
        return register.decode(self.servo.read(register.address, register.size))

    def put(self, name: str, value: int) -> None:
        register = FEETECH_REGISTERS[name]
        self.servo.write(register.address, register.encode(value))

    def wait(self, seconds: float) -> None:
        for _ in range(round(seconds / 0.02)):
            self.arm.advance(0.02)

    def power_cycle(self) -> None:
        self.servo.power(False, 0.0, 0.0)
        self.servo.power(True, 0.0, 0.0)


def test_the_drivers_table_and_the_devices_agree() -> None:
    bench = Bench()
    assert bench.get("model_number") == 777
    assert (bench.get("id"), bench.get("baud_rate"), bench.get("return_delay")) == (1, 0, 250)
    assert (bench.get("min_position_limit"), bench.get("max_position_limit")) == (0, 4095)
    assert (bench.get("max_torque_limit"), bench.get("torque_limit"), bench.get("lock")) == (1000, 1000, 1)
    assert (bench.get("present_position"), bench.get("present_voltage")) == (2048, 120)
    assert (bench.get("overload_torque"), bench.get("protective_torque")) == (80, 20)


def test_a_goal_switches_the_torque_on_and_the_joint_goes_there() -> None:
    bench = Bench()
    bench.put("goal_position", 3000)
    assert bench.get("torque_enable") == 1
    bench.wait(1.0)
    assert bench.get("present_position") == 3000
    assert bench.get("moving") == 0


def test_firmware_without_automatic_torque_stays_off() -> None:
    bench = Bench(StsFirmware(is_torque_automatic=False))
    bench.put("goal_position", 3000)
    bench.wait(0.5)
    assert (bench.get("torque_enable"), bench.get("present_position")) == (0, 2048)


def test_switching_on_holds_where_the_joint_is() -> None:
    bench = Bench()
    bench.plant.place("pan", 0.5)
    bench.arm.settle()
    before = bench.get("present_position")
    bench.put("torque_enable", 1)
    bench.wait(0.5)
    assert bench.get("goal_position") == bench.get("present_position") == before


def test_goals_are_clamped_to_the_limits_in_silence() -> None:
    bench = Bench()
    bench.put("max_position_limit", 2500)
    bench.put("goal_position", 4000)
    bench.wait(1.0)
    assert (bench.get("goal_position"), bench.get("present_position")) == (4000, 2500)


def test_a_locked_write_lasts_until_the_power_goes() -> None:
    bench = Bench()
    bench.put("max_position_limit", 2500)
    assert bench.get("max_position_limit") == 2500
    bench.power_cycle()
    assert bench.get("max_position_limit") == 4095


def test_an_unlocked_write_stays_and_the_lock_closes_at_power_on() -> None:
    bench = Bench()
    bench.put("lock", 0)
    bench.put("max_position_limit", 2500)
    bench.power_cycle()
    assert (bench.get("max_position_limit"), bench.get("lock")) == (2500, 1)


def test_firmware_may_refuse_locked_writes() -> None:
    bench = Bench(StsFirmware(locked_write="refused"))
    bench.put("max_position_limit", 2500)
    assert bench.get("max_position_limit") == 4095


def test_present_is_actual_minus_offset() -> None:
    bench = Bench()
    bench.put("homing_offset", -100)
    assert bench.get("present_position") == 2148


def test_128_makes_here_the_middle_for_good() -> None:
    bench = Bench(zero_count=300)
    bench.put("torque_enable", 128)
    assert bench.get("present_position") == 2048
    bench.power_cycle()
    assert (bench.get("present_position"), bench.get("homing_offset")) == (2048, 300 - 2048)


def test_one_turn_wraps_and_phase_bit_4_unwraps() -> None:
    bench = Bench(zero_count=4000)
    bench.plant.place("pan", 0.5)
    bench.arm.settle()
    assert bench.get("present_position") == 4326 - 4096
    bench.put("phase", bench.get("phase") | 0x10)
    assert bench.get("present_position") == 4326


def test_speed_and_acceleration_limit_the_setpoint() -> None:
    bench = Bench()
    bench.put("goal_velocity", 400)
    bench.put("goal_position", 3248)
    bench.wait(1.0)
    assert abs(bench.get("present_position") - 2448) < 20
    assert abs(bench.get("present_velocity") - 400) < 10
    bench.wait(2.5)
    bench.put("acceleration", 2)
    bench.put("goal_position", 2048)
    bench.wait(1.0)
    assert 3248 - bench.get("present_position") < 130  # 0.5 * 200 counts/s^2


def test_pressing_for_two_seconds_latches_overload_and_cuts_the_torque_to_a_fifth() -> None:
    bench = Bench()
    bench.arm.suffer(LineFault(kind="block", joint="pan", upper_rad=0.2))
    bench.put("goal_position", 3000)
    bench.wait(1.9)
    assert bench.servo.error_bits == 0
    assert bench.get("present_load") == 1000
    bench.wait(0.4)
    assert bench.servo.error_bits == 32
    assert bench.get("present_load") == 200
    bench.put("torque_enable", 0)
    assert bench.servo.error_bits == 0


def test_overload_ends_when_the_goal_moves_away() -> None:
    bench = Bench()
    bench.arm.suffer(LineFault(kind="block", joint="pan", upper_rad=0.2))
    bench.put("goal_position", 3000)
    bench.wait(2.5)
    bench.put("goal_position", 3001)
    assert bench.servo.error_bits == 32
    bench.put("goal_position", 2048)
    assert bench.servo.error_bits == 0


def test_heat_switches_the_motor_off_until_it_is_cool_and_torque_was_off() -> None:
    bench = Bench()
    bench.put("torque_enable", 1)
    bench.arm.suffer(LineFault(kind="hot", id=1, celsius=75.0))
    bench.wait(0.02)
    assert (bench.servo.error_bits, bench.get("torque_enable"), bench.get("present_temperature")) == (4, 0, 75)
    bench.arm.suffer(LineFault(kind="hot", id=1, celsius=30.0))
    bench.put("torque_enable", 0)
    bench.wait(0.02)
    assert bench.servo.error_bits == 0


def test_overcurrent_after_its_time_switches_the_motor_off() -> None:
    bench = Bench()
    bench.put("protection_current", 250)
    bench.put("over_current_protection_time", 50)
    bench.arm.suffer(LineFault(kind="block", joint="pan", upper_rad=0.2))
    bench.put("goal_position", 3000)
    bench.wait(0.4)
    assert bench.get("present_current") > 250
    bench.wait(0.5)
    assert (bench.servo.error_bits, bench.get("torque_enable")) == (8, 0)


def test_low_voltage_is_flagged_while_it_lasts() -> None:
    bench = Bench()
    bench.arm.suffer(LineFault(kind="voltage", volts=3.9))
    bench.wait(0.02)
    assert (bench.servo.error_bits, bench.get("present_voltage")) == (1, 39)
    bench.arm.suffer(LineFault(kind="voltage", volts=12.0))
    bench.wait(0.02)
    assert bench.servo.error_bits == 0


def test_a_brownout_forgets_torque_and_goal_but_not_the_eeprom() -> None:
    bench = Bench()
    bench.put("lock", 0)
    bench.put("max_position_limit", 3500)
    bench.put("goal_position", 3000)
    bench.wait(0.5)
    bench.arm.suffer(LineFault(kind="brownout", delay_s=0.1))
    assert bench.arm.hearing(None) == []
    bench.wait(0.3)
    assert bench.arm.hearing(None) == []  # it starts up
    bench.wait(0.3)
    assert bench.arm.hearing(None) == [bench.servo]
    assert (bench.get("torque_enable"), bench.get("goal_position"), bench.get("max_position_limit")) == (0, 0, 3500)


def test_torque_limit_is_what_presses() -> None:
    bench = Bench()
    bench.arm.suffer(LineFault(kind="block", joint="pan", upper_rad=0.2))
    bench.put("torque_limit", 300)
    bench.put("goal_position", 3000)
    bench.wait(1.0)
    assert bench.get("present_load") == 300


def test_velocity_and_pwm_modes_turn_the_joint() -> None:
    bench = Bench()
    bench.put("operating_mode", 1)
    bench.put("goal_velocity", -500)
    bench.put("torque_enable", 1)
    bench.wait(0.5)
    assert abs(bench.get("present_velocity") + 500) < 5
    bench.put("operating_mode", 2)
    bench.put("goal_time", 500)
    bench.wait(0.5)
    assert bench.get("present_velocity") > 1000


def test_read_only_registers_ignore_writes() -> None:
    bench = Bench()
    bench.servo.write(56, b"\x00\x00")
    assert bench.get("present_position") == 2048


def test_factory_reset_keeps_the_id() -> None:
    bench = Bench()
    bench.put("lock", 0)
    bench.put("id", 7)
    bench.put("max_position_limit", 99)
    bench.servo.reset()
    assert (bench.servo.id, bench.get("max_position_limit")) == (7, 4095)


def test_the_baud_index_follows_the_makers_list() -> None:
    bench = Bench()
    for index, baud in enumerate(STS_BAUDS):
        bench.put("baud_rate", index)
        assert bench.servo.baud_hz == baud
    assert STS_BAUDS[5:] == (76_800, 57_600, 38_400)


def test_the_supply_sags_under_load() -> None:
    bench = Bench()
    bench.arm.suffer(LineFault(kind="block", joint="pan", upper_rad=0.2))
    bench.put("goal_position", 3000)
    bench.wait(1.0)
    assert bench.get("present_voltage") == 119
