"""A policy acts, a person may take the arm from it, and both are recorded: corrections become training data.

The person's actions go where the policy's go: through the robot's own limiter, the guard and the watchdog. Every frame
of the LeRobotDataset v3.0 says in the column `intervention` whether the person acted (the name that LeRobot's own
rollouts with corrections use). While the policy has no action, or a camera is silent, the arm holds, also for the
person, who is heard in every control period nevertheless.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from roboalign.drivers.arm.files import read_robot_file
from roboalign.drivers.arm.loading import load_robot
from roboalign.drivers.setup.dialogue import Dialogue
from roboalign.drivers.setup.hands import Hands
from roboalign.drivers.setup.pilots import Wish
from roboalign.drivers.setup.run import ask_before_moving, run_beside
from roboalign.drivers.setup.station import terminal_keys
from roboalign.drivers.setup.teleop import EpisodeKeeper, Frame, RecordConfig, RecordReport, TeleopReport, open_writer
from roboalign.drivers.setup.trials import contender_for
from roboalign.sdk.control.loop_report import RunReport
from roboalign.sdk.control.policy_process import PolicyRecipe
from roboalign.sdk.control.session import SessionConfig
from roboalign.sdk.control.simulated import run_simulated
from roboalign.sdk.errors import DataError, RobotError, RobotTimeout
from roboalign.sdk.evaluation import PolicyRef
from roboalign.sdk.robot import Robot
from roboalign.sdk.types import Applied, FloatArray, Observation, RobotSpec

__all__ = [
    "PERSON",
    "TakeoverReport",
    "TakeoverRobot",
    "record_in_simulation",
    "record_on_robot",
    "record_takeover",
]

PERSON = "a person acts"
"""The reason that is given for what was sent in the policy's place."""


class TakeoverRobot:
    """A robot whose actions a person can replace; what happens in each control period is noted."""

    def __init__(self, robot: Robot, hands: Hands, sentence: str, say: Callable[[str], None]) -> None:
        """Takes a robot that is connected later."""
        self._robot, self._hands, self._sentence, self._say = robot, hands, sentence, say
        self._seen: Observation | None = None
        self._has_person = False
        self._is_started = self._has_acted = False
        self.frames: list[Frame] = []
        """Reading and command of each period from the first action on."""
        self.is_human: list[bool] = []
        """Whether the person acted, for each frame."""
        self.wish = Wish.GO_ON
        """What the person wants."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._robot, name)

    @property
    def spec(self) -> RobotSpec:
        """Names, limits and rates."""
        return self._robot.spec

    def connect(self, *, rearm: bool = False) -> None:
        """Connects the robot and reads it once, so that the person is heard whatever fails later."""
        self._robot.connect(rearm=rearm)
        self._look(with_images=False)

    def observe(self, instruction: str = "", with_images: bool = True) -> Observation:
        """Reads the robot."""
        return self._robot.observe(instruction, with_images)

    def act(self, action: FloatArray) -> Applied:
        """Sends the person's action while they have the arm, else the policy's; holds while a camera is silent."""
        seen = self._look(with_images=True)
        wanted = self._hear()
        if seen is None:
            return self._robot.hold()
        self._has_acted = True
        applied = self._robot.act(action if wanted is None else wanted)
        self._note(seen, applied, is_human=wanted is not None)
        if wanted is None:
            return applied
        self._hands.took(applied)
        return replace(applied, reasons=(*applied.reasons, PERSON))

    def hold(self) -> Applied:
        """Holds, whoever has the arm; the person is heard, and hands that fail are an error of the next action."""
        seen = self._look(with_images=self._has_acted)
        with suppress(RobotError):
            self._hear()
        applied = self._robot.hold()
        if seen is not None and self._has_acted:
            self._note(seen, applied, is_human=False)
        return applied

    def park(self) -> None:
        """Parks the robot."""
        self._robot.park()

    def estop(self) -> None:
        """Stops the robot."""
        self._robot.estop()

    def disconnect(self) -> None:
        """Disconnects the robot."""
        self._robot.disconnect()

    def _look(self, *, with_images: bool) -> Observation | None:
        """Returns what was asked for; None when something does not answer, about which the loop has its own say."""
        for has_images in dict.fromkeys((with_images, False)):
            try:
                self._seen = self._robot.observe(self._sentence, has_images)
            except (DataError, RobotTimeout):
                continue
            return self._seen if has_images is with_images else None
        return None

    def _hear(self) -> FloatArray | None:
        """Returns the action of a person who has the arm, by the newest reading there is; notes what they want."""
        if self._seen is None:
            return None
        if not self._is_started:
            self._hands.start(self._seen)
            self._is_started = True
        try:
            wanted = self._hands.action(self._seen)
        finally:
            if self.wish is Wish.GO_ON:
                self.wish = self._hands.wish()
        if (wanted is not None) != self._has_person:
            self._has_person = not self._has_person
            self._say("you have the arm" if self._has_person else "the policy has the arm")
        return wanted

    def _note(self, seen: Observation, applied: Applied, *, is_human: bool) -> None:
        """Keeps a frame; a hold between two deadlines is none."""
        half_s = 0.5 / self.spec.control_rate_hz
        if self.frames and seen.time_s - self.frames[-1][0].time_s < half_s:
            return
        self.frames.append((seen, applied))
        self.is_human.append(is_human)

    def drop_end(self) -> None:
        """Leaves out the hold with which the loop ends a run."""
        if len(self.frames) > 1 and not self.is_human[-1]:
            del self.frames[-1], self.is_human[-1]


@dataclass(kw_only=True, slots=True)
class TakeoverReport:
    """What became of a recording with corrections."""

    record: RecordReport
    """Episodes."""
    frames: int = 0
    """Frames of the episodes that were kept now."""
    human_frames: int = 0
    """Those in which the person acted."""


Wrap = Callable[[Robot], TakeoverRobot]
Run = Callable[[int, Wrap, Callable[[], bool]], RunReport]


def record_takeover(
    spec: RobotSpec,
    hands_of: Callable[[RobotSpec], Hands],
    config: RecordConfig,
    run: Run,
    *,
    say: Callable[[str], None],
    before_episode: Callable[[int], None] = lambda _: None,
) -> TakeoverReport:
    """Lets a policy act and a person correct it until there are enough episodes.

    Complete episodes outlive whatever ends it: the same call goes on with them.

    Args:
        spec: Of the robot.
        hands_of: Makes the person's hands.
        config: What to record.
        run: Runs the policy once: gets the number of the episode, what to wrap the robot with, and what ends the run.
        say: Gets lines for the person.
        before_episode: Called with the number of the episode, to reset the scene.

    Raises:
        ConfigError: The dataset exists already, or the robot has no camera.
        RobotError: The person's device is not there, and nothing has moved; the robot did not do what it was asked; or
            the loop is too slow for the stated rate.
    """
    hands = hands_of(spec)
    try:
        hands.open()
        with open_writer(config.out, spec, state=config.state, has_intervention=True) as kept:
            keeper = EpisodeKeeper(kept.writer, spec, say, state=config.state)
            report = TakeoverReport(record=keeper.report)
            while keeper.report.kept < config.episodes:
                before_episode(keeper.report.kept)
                robots: list[TakeoverRobot] = []

                def wrap(robot: Robot, robots: list[TakeoverRobot] = robots) -> TakeoverRobot:
                    robots.append(TakeoverRobot(robot, hands, config.task, say))
                    return robots[-1]

                def is_over(robots: list[TakeoverRobot] = robots) -> bool:
                    return bool(robots) and robots[-1].wish is not Wish.GO_ON

                with terminal_keys():
                    ran = run(keeper.report.kept, wrap, is_over)
                if robots[-1].wish is Wish.QUIT:
                    break
                _keep(keeper, robots[-1], ran, config.task, report)
            if keeper.report.kept >= config.episodes:
                kept.close()
                keeper.report.path, keeper.report.is_complete = config.out, True
        return report
    finally:
        hands.close()


def record_on_robot(
    robot_file: str | Path,
    policy: PolicyRef,
    hands_of: Callable[[RobotSpec], Hands],
    config: RecordConfig,
    session: SessionConfig,
    dialogue: Dialogue,
    *,
    is_sure: bool = False,
) -> TakeoverReport:
    """Records corrections on the robot of a file; asks once before it moves, and before each scene.

    Raises:
        ConfigError: The policy does not fit the robot, or the dataset exists already.
        CheckFailed: The person did not want the robot to move.
        RobotError: The robot did not do what it was asked; it was parked if it still could be.
    """
    file = read_robot_file(robot_file)
    robot = load_robot(file)
    recipe = contender_for(file, policy).recipe
    ask_before_moving(robot.spec, dialogue, is_sure=is_sure)

    def run(number: int, wrap: Wrap, is_over: Callable[[], bool]) -> RunReport:
        return run_beside(wrap(robot), recipe, config.task, dialogue, config=session, is_asked=True, until=is_over)

    def before(number: int) -> None:
        dialogue.ask(f"episode {number}: set the scene, then Enter: ")

    return record_takeover(robot.spec, hands_of, config, run, say=dialogue.say, before_episode=before)


def record_in_simulation(
    recipe: PolicyRecipe,
    hands_of: Callable[[RobotSpec], Hands],
    config: RecordConfig,
    session: SessionConfig,
    say: Callable[[str], None],
    *,
    seed: int = 0,
) -> TakeoverReport:
    """Records corrections of the simulated Panda in real time; an episode is over when its task is solved.

    Raises:
        ConfigError: The sentence is not understood, or the policy does not fit the simulated arm.
    """
    from roboalign.sdk.sim.robots import find_robot

    def run(number: int, wrap: Wrap, is_over: Callable[[], bool]) -> RunReport:
        return run_simulated(config.task, recipe, session, say, seed=seed + number, wrap=wrap, until=is_over).report

    return record_takeover(find_robot("panda").spec(96), hands_of, config, run, say=say)


def _keep(keeper: EpisodeKeeper, robot: TakeoverRobot, ran: RunReport, sentence: str, report: TakeoverReport) -> None:
    """Keeps an episode, or says why not."""
    robot.drop_end()
    if not robot.frames:
        keeper.refuse(f"the policy never acted: {ran.stopped_by}")
        return
    if robot.wish is Wish.GO_ON and ran.stopped_by not in ("until", "max_ticks"):
        keeper.refuse(f"the run ended by itself: {ran.stopped_by}")
        return
    found = TeleopReport(
        ticks=len(robot.frames),
        misses=ran.misses,
        changed=sum(applied.is_changed for _, applied in robot.frames),
        duration_s=ran.duration_s,
        wish=robot.wish,
    )
    if keeper.take(robot.frames, sentence, found, interventions=tuple(robot.is_human)):
        report.frames += len(robot.frames)
        report.human_frames += sum(robot.is_human)
