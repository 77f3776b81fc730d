"""The simulated tasks as a Gymnasium environment, with what data collection and evaluation need beside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import gymnasium
import numpy as np

from roboalign.sdk.errors import ConfigError, RobotError
from roboalign.sdk.sim import tasks
from roboalign.sdk.sim.camera import Camera, front_camera, show_camera
from roboalign.sdk.sim.expert import expert_stage
from roboalign.sdk.sim.language import SPLITS
from roboalign.sdk.sim.layout import fold_yaw, object_height_m, object_width_m
from roboalign.sdk.sim.robot import SimRobot
from roboalign.sdk.sim.tasks import FAMILIES, MAX_STEPS, ObjectSpec, SceneSpec, sample_scene
from roboalign.sdk.sim.truth import ObjectTruth, SceneTruth
from roboalign.sdk.sim.world import BodyState
from roboalign.sdk.types import ACTION_NAMES, STATE_NAMES, Applied, FloatArray, ImageArray, Observation, RobotSpec

__all__ = ["SimEnv", "scene_for"]

Obs = dict[str, np.ndarray]


def scene_for(seed: int, family: str, split: str = "train") -> SceneSpec:
    """Returns the scene of a seed; `mix` lets the seed choose the family. Equal arguments give equal scenes."""
    rng = np.random.default_rng(seed)
    drawn = FAMILIES[int(rng.integers(len(FAMILIES)))]
    return sample_scene(rng, drawn if family == "mix" else family, split)


class SimEnv(gymnasium.Env[Obs, np.ndarray]):
    """One robot, one table, one instruction per episode.

    The scene is a function of the seed and the family alone, whatever ran before. An action is float32[5] in the order
    of `ACTION_NAMES`; every action goes through the robot's limiter. `step` renders only when `image_in_obs` or
    `render_mode="rgb_array"` asks for it; `observe` renders on demand. Stepping on after success is allowed.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 - gymnasium's own convention

    def __init__(
        self,
        family: str = "mix",
        *,
        image_size_px: int = 96,
        max_steps: int | None = None,
        split: str = "train",
        image_in_obs: bool = False,
        render_mode: str | None = None,
    ) -> None:
        """Stores the settings; the simulation opens at the first reset. `max_steps` None means the family's own."""
        _check("family", family, (*FAMILIES, "mix"))
        _check("split", split, SPLITS)
        if render_mode not in (None, "rgb_array"):
            raise ConfigError(f"SimEnv render_mode is {render_mode!r}; choose None or 'rgb_array'")
        if max_steps is not None and max_steps < 1:
            raise ConfigError(f"SimEnv max_steps is {max_steps}, expected at least 1 or None")
        self.family, self.split, self.render_mode = family, split, render_mode
        self.robot = SimRobot(image_size_px=image_size_px)
        self._max_steps = max_steps
        self._has_image = image_in_obs or render_mode == "rgb_array"
        spec = self.robot.spec
        spaces: dict[str, gymnasium.Space[np.ndarray]] = {
            "state": gymnasium.spaces.Box(-4.0, 4.0, (len(STATE_NAMES),), np.float32)
        }
        if self._has_image:
            spaces["image"] = gymnasium.spaces.Box(0, 255, (image_size_px, image_size_px, 3), np.uint8)
        self.observation_space = gymnasium.spaces.Dict(spaces)  # type: ignore[assignment] # Dict is a Space of dicts
        high = np.array([spec.max_step_m] * 3 + [spec.max_step_rad, 1.0], np.float32)
        low = np.array([-spec.max_step_m] * 3 + [-spec.max_step_rad, 0.0], np.float32)
        self.action_space = gymnasium.spaces.Box(low, high, (len(ACTION_NAMES),), np.float32)
        self._scene: SceneSpec | None = None
        self._truth: SceneTruth | None = None
        self._truth_time_s = -1.0
        self._start_m = np.zeros(3, np.float32)
        self._seed = -1
        self._steps = 0
        self.last_applied: Applied | None = None
        self._show: dict[int, Camera] = {}

    @property
    def robot_spec(self) -> RobotSpec:
        """Names, limits and rates of the robot; available before the first reset."""
        return self.robot.spec

    @property
    def scene(self) -> SceneSpec:
        """The scene as it was laid out."""
        if self._scene is None:
            raise RobotError("the environment has no scene yet; call reset() first")
        return self._scene

    @property
    def instruction(self) -> str:
        """The sentence of this scene."""
        return self.scene.instruction

    @property
    def max_steps(self) -> int:
        """Control steps after which this episode is cut off."""
        return self._max_steps or MAX_STEPS[self.scene.family]

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, object] | None = None
    ) -> tuple[Obs, dict[str, object]]:
        """Lays out the scene of `seed` (drawn when None).

        Options: `family` overrides the environment's, `instruction` replaces the sentence (not the task), and `scene`,
        a SceneSpec, is built as it is.
        """
        super().reset(seed=seed)
        known = ("family", "instruction", "scene")
        options = dict(options or {})
        for name in options:
            _check("reset option", name, known)
        self._seed = int(self.np_random.integers(2**31)) if seed is None else seed
        scene = options.get("scene")
        if scene is None:
            family = str(options.get("family", self.family))
            _check("family", family, (*FAMILIES, "mix"))
            scene = scene_for(self._seed, family, self.split)
        if not isinstance(scene, SceneSpec):
            raise ConfigError(f"SimEnv reset option 'scene' is {type(scene).__name__}, expected a SceneSpec")
        if "instruction" in options:
            scene = dataclasses.replace(scene, instruction=str(options["instruction"]))
        self._scene, self._truth, self._steps, self.last_applied = scene, None, 0, None
        self.robot.load_scene(scene)
        self._start_m = self.robot.world.body_states()[scene.target].position_m
        return self._obs(), self._info()

    def step(self, action: np.ndarray) -> tuple[Obs, float, bool, bool, dict[str, object]]:
        """Applies one action; reward is 1 when the task is solved, which ends the episode."""
        self.advance(action)
        success = self.is_success()
        return self._obs(), float(success), success, self._steps >= self.max_steps, self._info()

    def advance(self, action: FloatArray) -> bool:
        """Applies one action and renders nothing; returns True when the episode is cut off."""
        limit = self.max_steps
        self.last_applied = self.robot.act(action)
        self._steps += 1
        return self._steps >= limit

    def observe(self, with_image: bool = True) -> Observation:
        """Returns what the robot senses now, with the instruction."""
        return self.robot.observe(self.instruction, with_images=with_image)

    def truth(self) -> SceneTruth:
        """Returns all that is true now; computed once per step."""
        if self._truth is None or self._truth_time_s != self.robot.world.time_s:
            scene = self.scene
            states = self.robot.world.body_states()
            truth = SceneTruth(
                family=scene.family,
                objects=tuple(_object_truth(item, states[item.name]) for item in scene.objects),
                target=scene.target,
                goal=scene.goal,
                instruction=scene.instruction,
                state=self.robot.tool_state(),
                start_position_m=self._start_m,
                stage="reach",
            )
            self._truth = dataclasses.replace(truth, stage=expert_stage(truth))
            self._truth_time_s = self.robot.world.time_s
        return self._truth

    def is_success(self) -> bool:
        """True when the task is solved now."""
        return tasks.is_success(self.truth())

    def progress(self) -> float:
        """Returns how far the task is now, 0 to 1."""
        return tasks.progress(self.truth())

    def state_hash(self) -> str:
        """Returns the SHA-256 of all bodies' states."""
        return self.robot.world.state_hash()

    def render(self, size_px: int = 320, *, view: str = "show") -> ImageArray:
        """Returns uint8[H, W, 3] for people: a wider view from the side, or `view="front"` as the robot sees it."""
        _check("view", view, ("show", "front"))
        key = size_px if view == "show" else -size_px
        if key not in self._show:
            self._show[key] = show_camera(size_px) if view == "show" else front_camera(size_px)
        return self.robot.world.render(self._show[key])

    def close(self) -> None:
        """Frees the simulation."""
        self.robot.disconnect()

    def _obs(self) -> Obs:
        obs: Obs = {"state": self.truth().state.copy()}
        if self._has_image:
            obs["image"] = self.robot.world.render()
        return obs

    def _info(self) -> dict[str, object]:
        truth = self.truth()
        applied = self.last_applied
        return {
            "seed": self._seed,
            "family": truth.family,
            "instruction": truth.instruction,
            "target": truth.target,
            "goal": truth.goal,
            "stage": truth.stage,
            "success": self.is_success(),
            "progress": self.progress(),
            "steps": self._steps,
            "limited": applied.reasons if applied is not None else (),
        }


def _object_truth(item: ObjectSpec, state: BodyState) -> ObjectTruth:
    return ObjectTruth(
        name=item.name,
        colour=item.colour,
        shape=item.shape,
        position_m=state.position_m,
        yaw_rad=fold_yaw(state.yaw_rad, item.shape),
        width_m=object_width_m(item.shape),
        height_m=object_height_m(item.shape),
        speed_m_s=state.speed_m_s,
        tilt_rad=state.tilt_rad,
        is_held=state.is_held,
        is_touched=state.is_touched,
    )


def _check(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"SimEnv {name} is {value!r}; choose one of {', '.join(choices)}")
