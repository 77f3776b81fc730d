"""Simulated pairs: the arm of the simulator with both of its cameras, in scenes that a seed chooses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from roboalign.drivers.pair.reference import make_reference
from roboalign.drivers.pair.session import move_and_look
from roboalign.sdk.sim.seeds import EVAL_OFFSET
from roboalign.sdk.types import Applied, FloatArray, Observation, RobotSpec
from roboalign.sdk.views.reference import Reference

if TYPE_CHECKING:
    from roboalign.sdk.sim.env import SimEnv

__all__ = ["SIMULATION", "TwoCameraRobot", "simulated_reference", "simulated_robot"]

SIMULATION = "sim"
"""What stands for the simulator where a robot is named."""

_SECOND = "show"
_NUM_SCENES, _NUM_PICTURES = 20, 100


class TwoCameraRobot:
    """A simulated arm that has the camera `show`, from the side, beside the policy's `front`."""

    def __init__(self, env: SimEnv) -> None:
        """Takes an environment that was reset; it belongs to the caller."""
        self._env, self._robot = env, env.robot
        self.spec: RobotSpec = replace(env.robot_spec, camera_names=(*env.robot_spec.camera_names, _SECOND))
        """As the arm's, with both cameras."""

    def connect(self, *, rearm: bool = False) -> None:
        """Connects the simulation."""
        self._robot.connect(rearm=rearm)

    def observe(self, instruction: str = "", with_images: bool = True) -> Observation:
        """Reads the arm and renders both cameras."""
        seen = self._robot.observe(instruction, with_images)
        if not with_images:
            return seen
        return replace(seen, images={**seen.images, _SECOND: self._env.render(self.spec.image_size_px)})

    def act(self, action: FloatArray) -> Applied:
        """Simulates one control period with an action."""
        return self._robot.act(action)

    def hold(self) -> Applied:
        """Simulates one control period."""
        return self._robot.hold()

    def park(self) -> None:
        """Moves to the park position."""
        self._robot.park()

    def estop(self) -> None:
        """Stops and latches."""
        self._robot.estop()

    def disconnect(self) -> None:
        """Closes the simulation."""
        self._robot.disconnect()


@contextmanager
def simulated_robot(arm: str, seed: int = 0, *, randomization: str = "off") -> Iterator[tuple[SimEnv, TwoCameraRobot]]:
    """Gives an arm in a scene that no policy was trained on, with both cameras."""
    from roboalign.sdk.sim.env import SimEnv

    env = SimEnv("place", robot=arm, randomization=randomization)
    try:
        env.reset(seed=EVAL_OFFSET + seed)
        yield env, TwoCameraRobot(env)
    finally:
        env.close()


def simulated_reference(
    arm: str, *, scenes: int = _NUM_SCENES, pictures: int = _NUM_PICTURES, randomization: str = "mild"
) -> Reference:
    """Returns how an arm's pair looks in the simulator, over scenes of the training stream.

    Args:
        arm: Name of the simulated arm.
        scenes: Scenes in which the arm moves.
        pictures: Further scenes that are only looked at, for the colours that there are.
        randomization: Preset that is drawn from.
    """
    from roboalign.sdk.sim.env import SimEnv

    env = SimEnv("place", robot=arm, randomization=randomization)
    sessions, more = [], []
    try:
        for seed in range(scenes + pictures):
            env.reset(seed=seed)
            robot = TwoCameraRobot(env)
            if seed >= scenes:
                more.append(robot.observe())
                continue
            kinematics = env.robot.model.kinematics()
            sessions.append(move_and_look(robot, env.instruction, kinematics=kinematics, sleep=lambda seconds: None))
    finally:
        env.close()
    source = f"{scenes + pictures} simulated scenes, the arm moving in {scenes}, randomisation {randomization}"
    return make_reference(sessions, robot=arm, source=source, more=more)
