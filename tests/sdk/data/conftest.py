"""Synthetic episodes and a simulator of a few lines, so that these tests need no physics engine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from roboalign.sdk.data import DatasetWriter, Episode, encode_png, truth_to_json
from roboalign.sdk.sim.truth import ObjectTruth, SceneTruth
from roboalign.sdk.types import FloatArray, ImageArray, Observation

IMAGE_SIZE_PX = 16


def make_object(name: str, position_m: tuple[float, float, float] = (0.5, 0.1, 0.02)) -> ObjectTruth:
    colour, shape = name.split()
    return ObjectTruth(
        name=name,
        colour=colour,
        shape=shape,
        position_m=np.asarray(position_m, np.float32),
        yaw_rad=0.25,
        width_m=0.045,
        height_m=0.045,
        speed_m_s=0.0,
        tilt_rad=0.0,
        is_held=False,
        is_touched=True,
    )


def make_truth(
    *, stage: str = "reach", instruction: str = "put the red block in the blue bowl", family: str = "place"
) -> SceneTruth:
    return SceneTruth(
        family=family,
        objects=(make_object("red block"), make_object("blue bowl", (0.45, -0.1, 0.0))),
        target="red block",
        goal="blue bowl",
        instruction=instruction,
        state=np.array([0.4, 0.0, 0.3, 0.0, 0.08], np.float32),
        start_position_m=np.array([0.5, 0.1, 0.02], np.float32),
        stage=stage,
    )


def make_image(seed: int) -> ImageArray:
    return np.random.default_rng(seed).integers(0, 256, (IMAGE_SIZE_PX, IMAGE_SIZE_PX, 3), dtype=np.uint8)


def make_episode(seed: int, *, length: int = 7, image_every: int = 1, task: str = "put the red block down") -> Episode:
    rng = np.random.default_rng(seed)
    return Episode(
        task=task,
        states=rng.standard_normal((length, 5)).astype(np.float32),
        joint_pos_rad=rng.standard_normal((length, 7)).astype(np.float32),
        actions=rng.standard_normal((length, 5)).astype(np.float32),
        images=tuple(
            encode_png(make_image(100 * seed + step)) if step % image_every == 0 else None for step in range(length)
        ),
        truth_json=tuple(truth_to_json(make_truth(instruction=task)) for _ in range(length)),
        rate_hz=10.0,
    )


def make_arm_episode(names: tuple[str, ...], seed: int = 0) -> Episode:
    """An episode of an arm whose states and actions are joint angles."""
    values = np.random.default_rng(seed).standard_normal((7, len(names))).astype(np.float32)
    fields = {"states": values, "actions": values, "state_names": names, "action_names": names}
    return replace(make_episode(seed), **fields)


@pytest.fixture
def toy() -> SimpleNamespace:
    """The helpers of this file, for tests that build their own episodes."""
    return SimpleNamespace(
        env=ToyEnv,
        expert=toy_expert,
        image=make_image,
        episode=make_episode,
        arm_episode=make_arm_episode,
        truth=make_truth,
        image_size_px=IMAGE_SIZE_PX,
    )


@pytest.fixture
def dataset_path(tmp_path: Path) -> Path:
    """Three episodes of 5, 6 and 7 frames with an image on every second one."""
    path = tmp_path / "demos"
    with DatasetWriter(path, image_size_px=IMAGE_SIZE_PX, num_joints=7) as writer:
        for seed in range(3):
            writer.add(make_episode(seed, length=5 + seed, image_every=2, task=f"task {seed % 2}"))
    return path


class ToyEnv:
    """A tool on a line that has to reach x = 0.6; an odd multiple of 16 as seed can never be solved in time."""

    def __init__(self) -> None:
        self.num_renders = 0
        self.drawn: dict[str, object] = {}
        self.cameras = ("front",)
        self.instructions: list[str] = []
        self.executed: list[FloatArray] = []

    def reset(self, *, seed: int | None = None, options: dict[str, object] | None = None) -> None:
        assert seed is not None
        assert options is not None
        self._seed = seed
        self._task = str(options["task"])
        self._x = 0.4
        self._steps = 0
        self._limit = 3 if seed % 32 == 16 else 60
        self.executed = []

    def advance(self, action: FloatArray) -> bool:
        self.executed.append(action)
        self._x += float(action[0])
        self._steps += 1
        return self._steps >= self._limit

    def observe(self, with_image: bool = True) -> Observation:
        self.num_renders += with_image
        images = {camera: make_image(self._seed + self._steps) for camera in self.cameras if with_image}
        state = np.array([self._x, 0, 0.3, 0, 0.08], np.float32)
        return Observation(
            images=images, state=state, joint_pos_rad=np.zeros(7, np.float32), instruction="go", time_s=0.0
        )

    def truth(self) -> SceneTruth:
        stage = "reach" if self._x < 0.495 else "carry"
        instruction = self.instructions[self._steps] if self.instructions else f"{self._task} it"
        return make_truth(stage=stage, instruction=instruction, family=self._task)

    def is_success(self) -> bool:
        return self._x >= 0.595

    def domain(self) -> dict[str, object]:
        return self.drawn


def toy_expert(truth: SceneTruth) -> FloatArray:
    return np.array([0.02, 0.0, 0.0, 0.0, 1.0], np.float32)
