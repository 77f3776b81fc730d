"""setup-motors on virtual servos as they leave the factory: all with id 1, one connected at a time."""

import pytest
from tests.drivers.arm.test_servos import widowx_servos
from tests.drivers.setup_bench import Bench, Person

from roboalign.drivers.arm.models import find_arm
from roboalign.drivers.setup.motors import motors_to_set_up, setup_motors
from roboalign.drivers.virtual.arm import Seat, VirtualArm
from roboalign.drivers.virtual.robots import make_plant, make_servo
from roboalign.drivers.virtual.servo import Encoder
from roboalign.sdk.errors import CheckFailed, ConfigError

SO101 = find_arm("so101")
NAMES = ("gripper", "wrist_roll", "wrist_flex", "elbow_flex", "shoulder_lift", "shoulder_pan")


def fresh(model="sts3215", servo_id=1):
    return make_servo(model, servo_id)


def connects(bench, *servos):
    """An answer that plugs these servos in and presses Enter."""

    def answer(question):
        bench.connect(*servos)
        return ""

    return answer


@pytest.fixture
def bench():
    return Bench(servos=[fresh()])


def test_the_order_is_from_the_hand_to_the_base_and_shadows_are_servos_of_their_own():
    assert [label for label, _, _ in motors_to_set_up(SO101)] == list(NAMES)
    widowx = [(label, number) for label, _, number in motors_to_set_up(find_arm("widowx"), ("shoulder",))]
    assert widowx == [("shoulder", 2), ("shoulder (second servo)", 3)]


def test_six_fresh_servos_become_an_arm(bench):
    servos = [fresh() for _ in NAMES]
    person = Person([connects(bench, servo) for servo in servos])
    done = setup_motors(bench.servos, SO101, person)
    assert [servo.id for servo in servos] == [6, 5, 4, 3, 2, 1]
    assert [servo.baud_hz for servo in servos] == [1_000_000] * 6
    assert [(motor.name, motor.found_id, motor.model) for motor in done] == [(name, 1, "sts3215") for name in NAMES]
    assert [question.split("'")[1] for question in person.asked] == list(NAMES)
    assert bench.servos.read(1, "lock") == 1, "the EEPROM is closed again"


def test_a_second_run_changes_nothing_and_a_cut_one_goes_on(bench):
    servos = [fresh(servo_id=number) for number in (6, 5, 1, 1, 1, 1)]
    memory = bytes(servos[0].kept)
    person = Person([connects(bench, servo) for servo in servos])
    setup_motors(bench.servos, SO101, person)
    assert bytes(servos[0].kept) == memory
    assert [servo.id for servo in servos] == [6, 5, 4, 3, 2, 1]


def test_a_servo_at_another_rate_is_found_and_moved(bench):
    servo = fresh()
    servo.write(6, bytes((4,)))
    servo.kept[6] = 4
    bench.connect(servo)
    assert servo.baud_hz == 115_200
    (done,) = setup_motors(bench.servos, SO101, Person([connects(bench, servo)]), only=("elbow_flex",))
    assert (servo.id, servo.baud_hz, done.found_baud) == (3, 1_000_000, 115_200)


def test_two_servos_with_different_ids_are_refused_and_untouched(bench):
    pair = [fresh(servo_id=1), fresh(servo_id=2)]
    person = Person([connects(bench, *pair), "quit"])
    with pytest.raises(CheckFailed, match="stopped at motor 'elbow_flex'"):
        setup_motors(bench.servos, SO101, person, only=("elbow_flex",))
    assert "2 servos answer, ids 1 (at 1000000 baud), 2 (at 1000000 baud): nothing was written" in person.said[-1]
    assert [servo.id for servo in pair] == [1, 2]


def test_two_servos_with_one_id_are_refused_and_untouched(bench):
    pair = [fresh(), fresh()]
    person = Person([connects(bench, *pair), "quit"])
    with pytest.raises(CheckFailed, match="stopped"):
        setup_motors(bench.servos, SO101, person, only=("elbow_flex",))
    assert "more than one servo answers at id 1: nothing was written" in person.said[-1]
    assert [servo.id for servo in pair] == [1, 1]


def test_nobody_there_is_told_what_to_check_and_asked_again(bench):
    servo = fresh()
    person = Person([connects(bench), connects(bench, servo)])
    bench.connect()
    setup_motors(bench.servos, SO101, person, only=("gripper",))
    assert any("no servo answers on" in line and "power" in line for line in person.said)
    assert servo.id == 6


def test_the_wrong_model_is_refused():
    bench = Bench("koch", servos=[fresh("xl330-m288")])
    person = Person([connects(bench, fresh("xl330-m288")), "quit"])
    with pytest.raises(CheckFailed):
        setup_motors(bench.servos, find_arm("koch"), person, only=("shoulder_pan",))
    assert "servo 1 is xl330-m288, but shoulder_pan needs xl430-w250: nothing was written" in person.said[-1]


def test_dynamixel_servos_get_ids_too():
    bench = Bench("koch", servos=[fresh("xl330-m288")])
    servo = fresh("xl330-m288")
    setup_motors(bench.servos, find_arm("koch"), Person([connects(bench, servo)]), only=("gripper",))
    assert (servo.id, servo.baud_hz) == (6, 1_000_000)


def test_a_fresh_widowx_connects_after_its_motors_were_set_up():
    """What connecting demands of shadow servos was never written: it was refused until another tool had done it."""
    model = find_arm("widowx")
    bench = Bench("widowx", servos=[fresh("xm430-w350")])
    servos = {}
    for _, joint, number in motors_to_set_up(model):
        servos[number] = make_servo(joint.motor, 1, Encoder(sign=1 if number == joint.id else -1))
    person = Person([connects(bench, servo) for servo in servos.values()])
    done = setup_motors(bench.servos, model, person)
    assert {motor.name: motor.changed for motor in done if motor.changed} == {
        "elbow (second servo)": ("drive_mode", "secondary_id"),
        "shoulder (second servo)": ("drive_mode", "secondary_id"),
    }
    axes = [Seat(servos[number], axis) for axis, motor in enumerate(model.motors) for number in motor_ids(motor)]
    bench.line.arm = VirtualArm(make_plant("widowx"), axes, start_s=0.0)
    bench.servos.bus.close()
    widowx_servos(bench.servos.bus).open()


def motor_ids(joint):
    return (joint.id, *joint.shadow_ids)


@pytest.mark.parametrize(
    ("register", "before", "after"), [("phase", 0x1C, 0x0C), ("operating_mode", 1, 0)], ids=("phase", "mode")
)
def test_a_feetech_servo_that_connecting_would_refuse_is_set_right(bench, register, before, after):
    servo = fresh()
    bench.connect(servo)
    bench.servos.write(1, register, before)
    (done,) = setup_motors(bench.servos, SO101, Person([connects(bench, servo)]), only=("elbow_flex",))
    assert (done.changed, bench.servos.read(3, register)) == ((register,), after)
    assert bench.servos.read(3, "lock") == 1


def test_a_dynamixel_servo_in_another_mode_gets_positions_again():
    bench = Bench("koch", servos=[fresh("xl330-m288")])
    servo = fresh("xl330-m288")
    servo.write(11, b"\x01")
    (done,) = setup_motors(bench.servos, find_arm("koch"), Person([connects(bench, servo)]), only=("gripper",))
    assert (done.changed, bench.servos.read(6, "operating_mode")) == (("operating_mode",), 5)


def test_a_shadow_servo_that_becomes_a_main_one_follows_nobody_any_more():
    """It would obey the goals of the shoulder, too."""
    bench = Bench("widowx", servos=[fresh("xm430-w350")])
    servo = fresh("xm430-w350", 3)
    servo.write(12, b"\x02")
    setup_motors(bench.servos, find_arm("widowx"), Person([connects(bench, servo)]), only=("waist",))
    assert (servo.id, bench.servos.read(1, "secondary_id")) == (1, 255)


def test_five_tries_are_enough(bench):
    with pytest.raises(CheckFailed, match="'gripper' could not be set up: no servo answers"):
        setup_motors(bench.servos, SO101, Person([connects(bench)] * 5), only=("gripper",))


def test_the_protocol_and_the_names_are_checked_first(bench):
    with pytest.raises(ConfigError, match="koch has dynamixel servos"):
        setup_motors(bench.servos, find_arm("koch"), Person([]))
    with pytest.raises(ConfigError, match=r"unknown joint of so101 'elbow'; did you mean elbow_flex"):
        setup_motors(bench.servos, SO101, Person([]), only=("elbow",))
