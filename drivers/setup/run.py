"""A bundle on a robot: refuses what does not fit, prints the limits, asks before it moves, and parks at the end.

The policy runs in a process of its own (`run_beside`), or in this one where time is simulated (`run_on_robot`). An
interruption parks too, and a second one does not cut the parking short.
"""

from __future__ import annotations

import math
import re
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import FrameType

from roboalign.drivers.arm.files import RobotFile
from roboalign.drivers.arm.loading import load_robot
from roboalign.drivers.arm.serial_arm import SerialArm
from roboalign.drivers.cameras import check_camera_names
from roboalign.drivers.setup.dialogue import Dialogue
from roboalign.sdk.bundle import PolicySpec
from roboalign.sdk.control.clock import Clock
from roboalign.sdk.control.loop import ControlLoop, LoopReport, Tick
from roboalign.sdk.control.loop_report import RunReport
from roboalign.sdk.control.policy_process import PolicyRecipe, SpecifiedActor
from roboalign.sdk.control.session import SessionConfig, run_session
from roboalign.sdk.control.simulated import PacedRobot
from roboalign.sdk.errors import CheckFailed, ConfigError, RobotError, unknown_name
from roboalign.sdk.prompt import PromptFormat
from roboalign.sdk.robot import Robot
from roboalign.sdk.sim.robot import SimRobot
from roboalign.sdk.thinking import Thinking
from roboalign.sdk.types import STATE_NAMES, STATES, RobotSpec

__all__ = [
    "ask_before_moving",
    "check_fit",
    "describe_limits",
    "in_use",
    "interrupted_once",
    "names_in",
    "names_of",
    "put_away",
    "run_beside",
    "run_file",
    "run_on_robot",
]


_MAX_SUMMED = 5
_NUMBERS = re.compile(r"[\d.]+")  # a reason with another figure is not another reason
_PARKING_FIRST = "parking first; the power switch is faster if something is wrong"


def check_fit(robot: RobotSpec, policy: PolicySpec, name: str = "the bundle") -> None:
    """Refuses a policy that was trained for another robot: cameras, sizes, fields, places, rate.

    Raises:
        ConfigError: Something differs; the message says what and what to change.
    """
    check_camera_names(policy.camera_names, robot.camera_names, name)
    if robot.camera_names and policy.image_size_px != robot.image_size_px:
        raise ConfigError(
            f"{name} sees pictures of {policy.image_size_px} pixels, the robot gives {robot.image_size_px}; write "
            f"size_px = {policy.image_size_px} under [cameras.NAME]"
        )
    states = tuple(STATES.values()) if robot.state_names == STATE_NAMES else (robot.state_names,)
    for what, wanted, found in (
        ("state", policy.state_names, states),
        ("action", policy.action_names, (robot.action_names,)),
    ):
        if tuple(wanted) not in found:
            raise ConfigError(f"{name} has the {what} {', '.join(wanted)}, the robot {', '.join(found[0])}")
    _check_places(robot, policy.prompt, name)
    if not math.isclose(policy.rate_hz, robot.control_rate_hz, rel_tol=1e-3):
        raise ConfigError(
            f"{name} acts at {policy.rate_hz:g} Hz, the robot at {robot.control_rate_hz:g} Hz; write "
            f"control_rate_hz = {policy.rate_hz:g} in the robot file"
        )


def _check_places(robot: RobotSpec, prompt: PromptFormat, name: str) -> None:
    """Refuses a policy that cannot tell apart places where the tool may be: it was made for another workspace."""
    box = tuple(zip(prompt.origin_m, prompt.upper_m, strict=True))
    goes = tuple(zip(robot.workspace_lower_m, robot.workspace_upper_m, strict=True))
    slack_m = prompt.length_unit_m
    if all(a - slack_m <= low and high <= b + slack_m for (a, b), (low, high) in zip(box, goes, strict=True)):
        return
    raise ConfigError(
        f"{name} knows places at {_box(box)} m, the tool of {robot.name} goes to {_box(goes)} m: it was trained for "
        f"another arm; name a bundle that was trained for this one (nano-so101 is for an SO-101)"
    )


def _box(sides: Sequence[tuple[float, float]]) -> str:
    return ", ".join(f"{axis} {low:.2f} to {high:.2f}" for axis, (low, high) in zip("xyz", sides, strict=True))


def describe_limits(spec: RobotSpec) -> tuple[str, ...]:
    """Returns what bounds every motion, as lines for a person."""
    box = _box(tuple(zip(spec.workspace_lower_m, spec.workspace_upper_m, strict=True)))
    joints = [
        f"  {name:<14} {math.degrees(a):7.1f} to {math.degrees(b):6.1f} deg, up to {math.degrees(v):5.1f} deg/s"
        for name, a, b, v in zip(
            spec.joint_names, spec.joint_lower_rad, spec.joint_upper_rad, spec.joint_max_speed_rad_s, strict=True
        )
    ]
    return (
        f"{spec.name}: {spec.control_rate_hz:g} actions a second, cameras {', '.join(spec.camera_names) or 'none'}",
        f"  tool in metres: {box}; at most {spec.max_step_m:.3f} m and {spec.max_step_rad:.2f} rad an action",
        *joints,
    )


def ask_before_moving(spec: RobotSpec, dialogue: Dialogue, *, is_sure: bool) -> None:
    """Prints the limits, and asks unless the user is sure already.

    Raises:
        CheckFailed: The answer was not yes; nothing has moved.
    """
    for line in describe_limits(spec):
        dialogue.say(line)
    if is_sure:
        return
    answer = dialogue.ask("The arm will move. Clear its space, keep a hand on its power switch. Type yes to go on: ")
    if answer.lower() not in ("y", "yes"):
        raise CheckFailed("nothing has moved: the answer was not yes")


def run_on_robot(
    robot: Robot,
    policy: SpecifiedActor,
    sentence: str,
    dialogue: Dialogue,
    *,
    max_ticks: int,
    is_sure: bool = False,
    name: str = "the bundle",
    replan_every: int | None = None,
    clock: Clock | None = None,
    on_tick: Callable[[Tick], None] | None = None,
) -> LoopReport:
    """Connects, goes to the home position where the robot has one, follows the sentence, parks, disconnects.

    A simulated arm moves without a question.

    Raises:
        ConfigError: The policy does not fit the robot; nothing was opened.
        CheckFailed: The user did not say yes; nothing was opened.
        RobotError: The robot did not do what it was asked; it was parked if it still could be.
    """
    check_fit(robot.spec, policy.spec, name)
    ask_before_moving(robot.spec, dialogue, is_sure=is_sure or isinstance(robot, SimRobot))
    with in_use(robot, dialogue):
        loop = ControlLoop(robot, policy, clock, replan_every=replan_every, on_tick=on_tick)
        report = loop.run(sentence, max_ticks=max_ticks)
    for line in _sum_up(report):
        dialogue.say(line)
    return report


@contextmanager
def in_use(robot: Robot, dialogue: Dialogue) -> Iterator[None]:
    """Connects and goes home where the robot has one; parks and disconnects afterwards, whatever happened."""
    with interrupted_once(dialogue):
        robot.connect()
        try:
            go_home = getattr(robot, "go_home", None)
            if callable(go_home):
                go_home()
            yield
        finally:
            put_away(robot, dialogue)


def run_beside(
    robot: Robot,
    recipe: PolicyRecipe,
    sentence: str,
    dialogue: Dialogue,
    *,
    config: SessionConfig,
    is_sure: bool = False,
    is_asked: bool = False,
    until: Callable[[], bool] | None = None,
    say: Callable[[str], None] | None = None,
) -> RunReport:
    """As `run_on_robot`, with the policy in a process of its own; says what the run was like, also after an error.

    Args:
        robot: Not connected yet.
        recipe: How to make the policy.
        sentence: What to follow.
        dialogue: The person at the robot.
        config: What the run leaves.
        is_sure: Print the limits and do not ask.
        is_asked: The person saw the limits and said yes to this robot before.
        until: Ends the run by returning true; asked after each control period.
        say: Takes the lines about the run; None gives them to the person.

    Raises:
        RoboalignError: The policy cannot be loaded, or does not fit the robot; nothing was opened.
        CheckFailed: The user did not say yes; nothing was opened.
        RobotError: The robot did not do what it was asked; it was parked if it still could be.
    """

    def admit(needs: PolicySpec) -> None:
        check_fit(robot.spec, needs, config.policy)
        if not is_asked:
            ask_before_moving(robot.spec, dialogue, is_sure=is_sure)

    use = partial(in_use, robot, dialogue)
    told = dialogue.say if say is None else say
    return run_session(robot, recipe, sentence, config, told, admit=admit, use=use, until=until)


def _sum_up(report: LoopReport) -> list[str]:
    """Returns why actions were held or changed, as lines for a person, most frequent first."""
    counts = Counter({**report.hold_reasons, **report.change_reasons})
    lines = [f"{count} of {report.ticks} actions: {reason}" for reason, count in counts.most_common(_MAX_SUMMED)]
    return lines + ([f"and {len(counts) - _MAX_SUMMED} more reasons"] if len(counts) > _MAX_SUMMED else [])


def put_away(robot: Robot, dialogue: Dialogue, *, is_parked: bool = True) -> None:
    """Parks and disconnects, whatever of it fails; says what did. Ctrl-C waits."""
    with _uninterrupted(dialogue):
        try:
            if is_parked:
                dialogue.say("parking; keep your hands away until it is done")
                robot.park()
        except RobotError as err:
            dialogue.say(f"not parked: {err}")
        finally:
            try:
                robot.disconnect()
            except RobotError as err:
                dialogue.say(str(err))


@contextmanager
def interrupted_once(dialogue: Dialogue) -> Iterator[None]:
    """Lets the first Ctrl-C through and answers further ones with a word: they must not cut short what it began."""
    count = 0

    def handle(number: int, frame: object) -> None:
        nonlocal count
        count += 1
        if count == 1:
            raise KeyboardInterrupt
        dialogue.say(_PARKING_FIRST)

    with _handler(handle):
        yield


@contextmanager
def _uninterrupted(dialogue: Dialogue) -> Iterator[None]:
    """Holds Ctrl-C off: an arm that is halfway to its park position would fall."""
    with _handler(lambda number, frame: dialogue.say(_PARKING_FIRST)):
        yield


@contextmanager
def _handler(handle: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Only the main thread may take signals; in another one nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def run_file(
    robot_file: str | Path,
    bundle: str | None,
    sentence: str,
    dialogue: Dialogue,
    *,
    config: SessionConfig,
    is_sure: bool = False,
    actions: str = "flow",
    think: bool = True,
    thinking: Thinking | None = None,
    backend: str = "auto",
) -> RunReport:
    """Loads a robot file and a bundle (or the address of a served policy), and runs the one on the other.

    Raises:
        ConfigError: They do not fit, no bundle is named, or `actions` is neither.
    """
    if actions not in ("flow", "fast"):
        raise ConfigError(unknown_name("who acts", actions, ("flow", "fast")))
    if bundle is None:
        raise ConfigError(
            "a robot needs a policy for its own arm: name a bundle, nano-so101 or the folder that "
            "'roboalign export' wrote"
        )
    robot = load_robot(robot_file)
    names = names_of(robot)
    settings = {"bundle": bundle, "actions": actions, "think": think, "robot": names, "backend": backend}
    if thinking is not None:
        settings["thinking"] = asdict(thinking)
    recipe = PolicyRecipe(settings=settings)
    is_simulated = isinstance(robot, SimRobot)
    moved = PacedRobot(robot) if isinstance(robot, SimRobot) else robot
    asked = replace(config, policy=bundle)
    return run_beside(moved, recipe, sentence, dialogue, config=asked, is_sure=is_sure or is_simulated)


def names_of(robot: SerialArm | SimRobot) -> tuple[str, ...]:
    """Returns what datasets call this robot; of an arm on a port, `names_in` its file."""
    return (robot.model.name,) if isinstance(robot, SimRobot) else names_in(robot.parts.file)


def names_in(file: RobotFile) -> tuple[str, ...]:
    """Returns what datasets call the arm of a file: its kind, its own name, the simulated arm of the same links."""
    return (file.arm, file.label, *((file.model.kinematics,) if file.model.kinematics else ()))


def _narrator(dialogue: Dialogue) -> Callable[[Tick], None]:
    """Says each thought once, why the loop holds, and why the robot did something else: when that begins."""
    last: list[object] = [None]
    lasting: set[str] = set()

    def tell(tick: Tick) -> None:
        if tick.hold_reason is not None:
            dialogue.say(f"{tick.index:4d}  holding: {tick.hold_reason}")
        elif tick.chunk is not None and tick.chunk is not last[0]:
            last[0] = tick.chunk
            dialogue.say(f"{tick.index:4d}  {tick.chunk.thought or tick.chunk.source}")
        reasons = {} if tick.hold_reason is not None else {_NUMBERS.sub("", why): why for why in tick.applied.reasons}
        for kind, why in reasons.items():
            if kind not in lasting:
                dialogue.say(f"{tick.index:4d}  {why}")
        lasting.clear()
        lasting.update(reasons)

    return tell
