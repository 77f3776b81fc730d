"""A bench for the guided procedures: virtual servos on a line in memory, and a person who follows a script."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from roboalign.drivers.bus.bus import Bus
from roboalign.drivers.bus.dynamixel import Dynamixel
from roboalign.drivers.bus.feetech import Feetech
from roboalign.drivers.setup.servos import ServoBus
from roboalign.drivers.virtual.arm import Seat, VirtualArm
from roboalign.drivers.virtual.dialects import dialect_of
from roboalign.drivers.virtual.line import VirtualLine
from roboalign.drivers.virtual.port import VirtualPort
from roboalign.drivers.virtual.robots import JOINTS, make_arm, make_plant
from roboalign.drivers.virtual.servo import VirtualServo


class BenchPort(VirtualPort):
    """A port whose rate is that of the line."""

    @property
    def baud(self) -> int:
        return self.line.baud_hz or 1_000_000

    def set_baud(self, baud: int) -> None:
        self.line.baud_hz = baud


class Bench:
    """An arm on a bench, its bus, and what can be plugged into it."""

    def __init__(self, robot: str = "so101", *, horn_seed: int | None = None, servos: Sequence[VirtualServo] = ()):
        self.arm = make_arm(robot, horn_seed=horn_seed, start_s=0.0)
        self.line = VirtualLine(self.arm, dialect_of(self.arm.servos[0].model.protocol), baud_hz=1_000_000)
        if servos:
            self.connect(*servos)
        port = BenchPort(self.line)
        self.clock = port.clock
        protocol = self.arm.servos[0].model.protocol
        self.servos = ServoBus(Bus(port, Feetech() if protocol == "feetech" else Dynamixel(), clock=self.clock))
        self.servos.bus.open()

    def connect(self, *servos: VirtualServo) -> None:
        """Leaves only these servos on the line; each turns a joint of its own."""
        seats = [Seat(servo, index) for index, servo in enumerate(servos)]
        self.line.arm = VirtualArm(make_plant(), seats, start_s=0.0)

    def sleep(self, seconds: float) -> None:
        self.clock.sleep_until(self.clock.now() + seconds)

    def place(self, **rad: float) -> None:
        """Turns joints by hand."""
        for joint, angle in rad.items():
            self.arm.plant.place(joint, angle)
        self.arm.settle()

    def place_all(self, angles: Sequence[float]) -> None:
        self.place(**dict(zip(JOINTS, angles, strict=True)))


class Person:
    """Answers questions and, while something runs, does one thing after another until it presses Enter.

    `answers` are tried in order; each is a text, or a function of the question. `hands` are generators of movements,
    one for each time that something runs until Enter.
    """

    def __init__(
        self, answers: Sequence[str | Callable[[str], str]], hands: Sequence[Sequence[Callable[[], None]]] = ()
    ) -> None:
        self.answers, self.hands = list(answers), [list(steps) for steps in hands]
        self.said: list[str] = []
        self.asked: list[str] = []
        self._steps: list[Callable[[], None]] | None = None

    def say(self, text: str) -> None:
        self.said.append(text)

    def ask(self, question: str) -> str:
        self.asked.append(question)
        answer = self.answers.pop(0)
        return answer(question) if callable(answer) else answer

    def is_done(self) -> bool:
        if self._steps is None:  # the call that clears an Enter of before
            self._steps = self.hands.pop(0)
            return False
        if self._steps:
            self._steps.pop(0)()
            return False
        self._steps = None
        return True
