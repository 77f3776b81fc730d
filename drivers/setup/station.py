"""What a person steers: a simulated arm at a table unless a robot file is named, and the pilot of their choice.

In simulation there is nothing to look at but the camera, so its picture can be drawn in the terminal.
"""

from __future__ import annotations

import sys
import termios
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from roboalign.drivers.arm.files import RobotFile, read_robot_file
from roboalign.drivers.arm.loading import load_robot
from roboalign.drivers.arm.simulation import SimulatedFile, read_any_robot_file
from roboalign.drivers.setup.dialogue import Dialogue
from roboalign.drivers.setup.pilots import GamepadPilot, KeyboardPilot, LeaderPilot, Pilot, read_keys
from roboalign.drivers.setup.run import ask_before_moving, interrupted_once, put_away
from roboalign.drivers.setup.teleop import RecordConfig, RecordReport, TeleopReport, record, steer
from roboalign.sdk.control.clock import Clock
from roboalign.sdk.errors import ConfigError, unknown_name
from roboalign.sdk.robot import Robot
from roboalign.sdk.sim.robot import SimRobot
from roboalign.sdk.types import Applied, ImageArray, Observation, RobotSpec

__all__ = ["PILOTS", "StationConfig", "draw", "make_pilot", "record_at_station", "steer_at_station", "terminal_keys"]

PILOTS = ("keyboard", "gamepad", "leader")
"""Who can steer."""
_VIEW_COLUMNS = 48
_VIEW_EVERY = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class StationConfig:
    """A place where a person steers."""

    robot_file: Path | None = None
    """The robot, on a port or simulated; None is the simulated arm of the next three fields."""
    arm: str = "so101"
    """Simulated arm when there is no file."""
    scene: str = "place"
    """Task whose scene lies on its table."""
    seed: int = 0
    """First scene; each episode has the next one."""
    is_sure: bool = False
    """Do not ask before hardware moves."""


class _Station:
    """An open robot, and how its scene is reset."""

    def __init__(self, config: StationConfig, dialogue: Dialogue) -> None:
        self._config, self._dialogue = config, dialogue
        if config.robot_file is None:
            file: RobotFile | SimulatedFile = SimulatedFile(arm=config.arm, task=config.scene, seed=config.seed)
        else:
            file = read_any_robot_file(config.robot_file)
        self._simulated = file if isinstance(file, SimulatedFile) else None
        self.robot: Robot = load_robot(file)

    @property
    def is_simulated(self) -> bool:
        """Whether nothing can be hurt."""
        return self._simulated is not None

    def open(self) -> None:
        """Asks before hardware moves, connects, and goes home."""
        if not self.is_simulated:
            ask_before_moving(self.robot.spec, self._dialogue, is_sure=self._config.is_sure)
        self.robot.connect()

    def reset(self, number: int) -> str | None:
        """Lays out the next scene and returns its sentence; at a real table the person does."""
        if self._simulated is not None and isinstance(self.robot, SimRobot):
            scene = self._simulated.scene(number)
            if scene is not None:
                self.robot.load_scene(scene)
            return None if scene is None else scene.instruction
        go_home = getattr(self.robot, "go_home", None)
        if callable(go_home):
            go_home()
        self._dialogue.say(f"episode {number}: set the scene; the arm is at home, and your first motion begins it")
        return None


def steer_at_station(
    config: StationConfig,
    pilot: Callable[[RobotSpec], Pilot],
    dialogue: Dialogue,
    *,
    seconds: float | None = None,
    view: Callable[[str], None] | None = None,
    clock: Clock | None = None,
) -> TeleopReport:
    """Opens the station, lets the pilot steer, puts the robot away. `view` gets the camera's picture as text."""
    with _opened(config, dialogue) as station, terminal_keys():
        sentence = station.reset(0)
        if sentence:
            dialogue.say(f"on the table: {sentence}")
        steering = pilot(station.robot.spec)
        try:
            return steer(
                station.robot,
                steering,
                with_images=view is not None,
                max_ticks=None if seconds is None else max(1, round(seconds * station.robot.spec.control_rate_hz)),
                clock=clock,
                on_frame=_viewer(view),
            )
        finally:
            steering.close()


def record_at_station(
    config: StationConfig,
    pilot: Callable[[RobotSpec], Pilot],
    dialogue: Dialogue,
    *,
    out: Path,
    task: str,
    episodes: int,
    seconds: float,
    state: str = "measured",
    clock: Clock | None = None,
) -> RecordReport:
    """Opens the station and records episodes; the same call goes on with an interrupted recording."""
    with _opened(config, dialogue) as station, terminal_keys():
        max_ticks = max(1, round(seconds * station.robot.spec.control_rate_hz))
        recording = RecordConfig(out=out, task=task, episodes=episodes, max_ticks=max_ticks, state=state)
        steering = pilot(station.robot.spec)
        try:
            return record(
                station.robot, steering, recording, before_episode=station.reset, clock=clock, say=dialogue.say
            )
        finally:
            steering.close()


def make_pilot(
    kind: str,
    *,
    leader: Path | None = None,
    gamepad: Path = Path("/dev/input/js0"),
    keys: Callable[[], str] = read_keys,
) -> Callable[[RobotSpec], Pilot]:
    """Returns what makes the pilot once the robot's spec is known.

    Raises:
        ConfigError: There is no such pilot, or a leader was asked for without its robot file.
    """
    if kind not in PILOTS:
        raise ConfigError(unknown_name("pilot", kind, PILOTS))
    if kind == "keyboard":
        return lambda spec: KeyboardPilot(spec, keys)
    if kind == "gamepad":
        return lambda spec: GamepadPilot(spec, gamepad)
    if leader is None:
        raise ConfigError("the pilot 'leader' needs the leader arm's robot file: --leader leader.toml")
    file = read_robot_file(leader)
    return lambda spec: LeaderPilot(spec, file, keys=keys)


@contextmanager
def terminal_keys() -> Iterator[None]:
    """Makes the terminal give letters at once and silently, after the questions; puts it back afterwards."""
    if not (hasattr(sys.stdin, "isatty") and sys.stdin.isatty()):
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def draw(image: ImageArray, columns: int = _VIEW_COLUMNS) -> str:
    """Returns a picture as lines of coloured half blocks, for a terminal with 24-bit colour."""
    from PIL import Image

    height, width = image.shape[:2]
    rows = max(2, 2 * (columns * height // width // 2))
    small = Image.fromarray(image).resize((columns, rows), Image.Resampling.BOX)
    pixels = [[small.getpixel((x, y)) for x in range(columns)] for y in range(rows)]
    lines = []
    for upper, lower in zip(pixels[::2], pixels[1::2], strict=True):
        cells = [f"\x1b[38;2;{_rgb(top)};48;2;{_rgb(bottom)}m\u2580" for top, bottom in zip(upper, lower, strict=True)]
        lines.append("".join(cells) + "\x1b[0m")
    return "\n".join(lines)


def _rgb(pixel: object) -> str:
    assert isinstance(pixel, tuple)
    return ";".join(str(value) for value in pixel)


def _viewer(view: Callable[[str], None] | None) -> Callable[[Observation, Applied], None] | None:
    if view is None:
        return None
    count = 0

    def show(seen: Observation, applied: Applied) -> None:
        nonlocal count
        count += 1
        if seen.images and count % _VIEW_EVERY == 0:
            image = next(iter(seen.images.values()))
            lines = draw(image)
            view(f"\x1b[H{lines}\n{'; '.join(applied.reasons)[:70]:<70}")

    return show


@contextmanager
def _opened(config: StationConfig, dialogue: Dialogue) -> Iterator[_Station]:
    station = _Station(config, dialogue)
    with interrupted_once(dialogue):
        station.open()
        try:
            yield station
        finally:
            put_away(station.robot, dialogue, is_parked=not station.is_simulated)
