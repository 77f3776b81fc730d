"""A simulated arm in real time: the same processes, loop and limits as on hardware, with a scene instead of a table.

Simulated time passes by commands, one control period for each; between them the arm stands still. A deadline that was
missed is time that the simulated arm never had. For figures of success use the evaluation, whose time is simulated.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from roboalign.sdk.bundle import PolicySpec
from roboalign.sdk.control.loop_report import RunReport
from roboalign.sdk.control.policy_process import PolicyRecipe
from roboalign.sdk.control.session import SessionConfig, run_session
from roboalign.sdk.errors import ConfigError
from roboalign.sdk.robot import Robot
from roboalign.sdk.types import Applied, FloatArray, Observation, RobotSpec

if TYPE_CHECKING:
    from roboalign.sdk.sim.env import SimEnv
    from roboalign.sdk.sim.robot import SimRobot

__all__ = ["PacedRobot", "SimulatedRun", "run_simulated"]


class PacedRobot:
    """A simulated robot whose observations carry the machine's monotonic time, as hardware's do."""

    def __init__(self, robot: SimRobot) -> None:
        """Takes a robot that stands in its scene already."""
        self._robot = robot

    @property
    def spec(self) -> RobotSpec:
        """Names, limits and rates."""
        return self._robot.spec

    def connect(self, *, rearm: bool = False) -> None:
        """Connects the simulation."""
        self._robot.connect(rearm=rearm)

    def observe(self, instruction: str = "", with_images: bool = True) -> Observation:
        """Reads the simulation now."""
        return replace(self._robot.observe(instruction, with_images), time_s=time.monotonic())

    def act(self, action: FloatArray) -> Applied:
        """Lets one control period of simulated time pass with this action."""
        return self._robot.act(action)

    def hold(self) -> Applied:
        """Lets one control period of simulated time pass."""
        return self._robot.hold()

    def park(self) -> None:
        """Parks at once: simulated time passes as fast as it can."""
        self._robot.park()

    def estop(self) -> None:
        """Stops and latches."""
        self._robot.estop()

    def disconnect(self) -> None:
        """Closes the simulation."""
        self._robot.disconnect()


@dataclass(frozen=True, kw_only=True, slots=True)
class SimulatedRun:
    """How a run in real time went."""

    report: RunReport
    """The loop."""
    scene_seed: int
    """The scene."""
    success: bool
    """Whether the task was solved at the end."""


def run_simulated(
    sentence: str,
    recipe: PolicyRecipe,
    config: SessionConfig,
    say: Callable[[str], None],
    *,
    seed: int = 0,
    wrap: Callable[[Robot], Robot] = lambda robot: robot,
    until: Callable[[], bool] = lambda: False,
) -> SimulatedRun:
    """Finds a scene that fits the sentence, and lets the policy act in it in real time until it is solved.

    Args:
        sentence: What to do.
        recipe: How to make the policy.
        config: What the run leaves.
        say: Takes lines for people.
        seed: Chooses among the scenes that fit.
        wrap: Puts something around the arm.
        until: Ends the run by returning true.

    Raises:
        ConfigError: The sentence is not understood, or the policy does not fit the simulated arm.
    """
    from roboalign.sdk.evaluation.play import find_scene, parse_task
    from roboalign.sdk.sim.env import SimEnv

    task = parse_task(sentence)
    scene_seed = find_scene(task, seed)
    env = SimEnv(task.family)
    scene = {"robot": env.robot_spec.name, "task": task.family, "seed": scene_seed}
    robot = PacedRobot(env.robot)

    def admit(needs: PolicySpec) -> None:
        for what, wanted, found in (
            ("rate", needs.rate_hz, robot.spec.control_rate_hz),
            ("cameras", needs.camera_names, robot.spec.camera_names),
            ("picture size", needs.image_size_px, robot.spec.image_size_px),
        ):
            if wanted != found:
                raise ConfigError(f"{config.policy} needs the {what} {wanted}, the simulated arm has {found}")

    try:
        report = run_session(
            wrap(robot),
            recipe,
            task.sentence,
            replace(config, scene=scene),
            say,
            admit=admit,
            use=lambda: _scene(env, scene_seed),
            until=lambda: until() or env.is_success(),
        )
        return SimulatedRun(report=report, scene_seed=scene_seed, success=env.is_success())
    finally:
        env.close()


@contextmanager
def _scene(env: SimEnv, seed: int) -> Iterator[None]:
    env.reset(seed=seed)
    yield
