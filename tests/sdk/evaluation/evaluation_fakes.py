"""A scene without physics and policies without a model, for the tests of the evaluation: one number must reach 1."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from roboalign.sdk.errors import DataError
from roboalign.sdk.evaluation.episodes import EpisodeEnv, EpisodePolicy
from roboalign.sdk.sim.truth import ObjectTruth, SceneTruth
from roboalign.sdk.types import ActionChunk, FloatArray, Observation, RobotSpec

MAX_STEPS = 20


SPEC = RobotSpec(
    name="fake",
    joint_names=("j",),
    joint_lower_rad=(-1.0,),
    joint_upper_rad=(1.0,),
    joint_max_speed_rad_s=(1.0,),
    home_joint_pos_rad=(0.0,),
    park_joint_pos_rad=(0.0,),
    gripper_max_width_m=0.08,
    workspace_lower_m=(0.3, -0.26, 0.005),
    workspace_upper_m=(0.7, 0.26, 0.35),
    max_step_m=0.04,
    max_step_rad=0.2,
    control_rate_hz=10.0,
    camera_names=("front",),
    image_size_px=96,
)


class LineEnv:
    """The tool moves along x; the episode is solved when it has moved as far as the seed asks.

    With `num_goals` it is a sequence: the way is cut into equal parts, each with its own sentence.
    """

    robot_spec = SPEC

    def __init__(self, num_goals: int = 1) -> None:
        self.num_goals = num_goals
        self.x = 0.0
        self.steps = 0
        self.wanted = 1.0
        self.sentence = ""
        self.task = ""
        self.num_images = 0
        self.actions: list[FloatArray] = []

    def reset(self, *, seed: int, options: dict[str, str]) -> tuple[object, object]:
        self.x, self.steps, self.actions = 0.0, 0, []
        self.task = options["task"]
        self.wanted = 0.1 + 0.05 * (seed % 5)
        self.sentence = f"{self.task} for {seed}"
        return {}, {}

    @property
    def instruction(self) -> str:
        part = f", part {min(self.goals_done() + 1, self.num_goals)}" if self.num_goals > 1 else ""
        return self.sentence + part

    def goals_done(self) -> int:
        return min(self.num_goals, int(self.num_goals * (self.x + 1e-6) / self.wanted))

    def domain(self) -> dict[str, object]:
        return {"friction": 0.5}

    def step(self, action: FloatArray) -> tuple[object, object, bool, bool, object]:
        self.actions.append(np.array(action))
        self.x += float(action[0])
        self.steps += 1
        return {}, 0.0, self.is_success(), self.steps >= MAX_STEPS, {}

    def observe(self, with_image: bool) -> Observation:
        self.num_images += with_image
        image = np.full((96, 96, 3), int(200 * min(1.0, abs(self.x))), np.uint8)
        return Observation(
            images={"front": image} if with_image else {},
            state=np.array([self.x, 0, 0.2, 0, 0.08], np.float32),
            joint_pos_rad=np.zeros(7, np.float32),
            instruction=self.instruction,
            time_s=0.1 * self.steps,
        )

    def render(self) -> np.ndarray:
        return self.observe(True).images["front"]

    def close(self) -> None:
        pass

    def is_success(self) -> bool:
        return self.x >= self.wanted - 1e-6

    def progress(self) -> float:
        return float(np.clip(self.x / self.wanted, 0.0, 1.0))

    def state_hash(self) -> str:
        return hashlib.sha256(np.array([self.x, self.wanted]).tobytes()).hexdigest()


class WalkPolicy:
    """Moves by `step_m` in chunks of four; thinks, and holds at every `hold_every`-th call."""

    def __init__(self, step_m: float = 0.04, hold_every: int = 0) -> None:
        self.step_m, self.hold_every = step_m, hold_every
        self.calls = 0
        self.told: list[str] = []
        self.is_closed = False

    def reset(self) -> None:
        self.calls = 0

    def act(self, observation: Observation) -> ActionChunk:
        self.calls += 1
        self.told.append(observation.instruction)
        if self.hold_every and self.calls % self.hold_every == 0:
            return ActionChunk.hold("nothing to say", rate_hz=10.0)
        actions = np.zeros((4, 5), np.float32)
        actions[:, 0] = self.step_m
        return ActionChunk(
            actions=actions,
            rate_hz=10.0,
            source="flow",
            thought=f"move {self.calls}",
            latency_s={"total": 0.01, "thought": 0.004},
        )

    def close(self) -> None:
        self.is_closed = True


@dataclass(frozen=True)
class LineScene:
    """Opens `LineEnv`."""

    num_goals: int = 1

    def open(self) -> EpisodeEnv:
        return LineEnv(self.num_goals)


@dataclass(frozen=True)
class WalkSetup:
    """Opens `WalkPolicy`; `step_m` 0.04 solves every seed, 0.01 only the near ones."""

    step_m: float = 0.04
    hold_every: int = 0
    fails: bool = False
    dies: bool = False

    def open(self, env: EpisodeEnv, *, split: str) -> EpisodePolicy:
        if self.dies:
            os._exit(3)
        if self.fails:
            raise DataError("broken on purpose")
        return WalkPolicy(self.step_m, self.hold_every)

    def describe(self) -> Mapping[str, object]:
        return {"name": "walk", "step_m": self.step_m, "think": True}


def make_object(name: str) -> ObjectTruth:
    """Returns an object that lies still."""
    colour, shape = name.split()
    return ObjectTruth(
        name=name,
        colour=colour,
        shape=shape,
        position_m=np.zeros(3, np.float32),
        yaw_rad=0.0,
        width_m=0.045,
        height_m=0.045,
        speed_m_s=0.0,
        tilt_rad=0.0,
        is_held=False,
        is_touched=False,
    )


def make_truth(family: str, target: str, goal: str, *names: str) -> SceneTruth:
    """Returns the truth of a scene with these objects."""
    return SceneTruth(
        family=family,
        objects=tuple(make_object(name) for name in names),
        target=target,
        goal=goal,
        instruction="true",
        state=np.zeros(5, np.float32),
        start_position_m=np.zeros(3, np.float32),
        stage="reach",
    )
