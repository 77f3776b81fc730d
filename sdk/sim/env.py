"""The simulated tasks as Gymnasium environments, with what data collection and evaluation need beside them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from functools import partial

import gymnasium
import numpy as np
from numpy.typing import NDArray

from roboalign.sdk.errors import ConfigError, RobotError, unknown_name
from roboalign.sdk.randomization import DomainRandomization, DomainSample, heldout_randomization
from roboalign.sdk.sim.camera import Camera, front_camera, show_camera
from roboalign.sdk.sim.goals import is_goal_reached
from roboalign.sdk.sim.judge import scene_truth
from roboalign.sdk.sim.layout import fold_yaw
from roboalign.sdk.sim.robot import SimRobot
from roboalign.sdk.sim.robots import find_robot
from roboalign.sdk.sim.scene import SceneSpec
from roboalign.sdk.sim.seeds import EVAL_OFFSET
from roboalign.sdk.sim.tasks import FAMILIES, MIX, Task, find_task, fitting_task, scene_for
from roboalign.sdk.sim.truth import SceneTruth
from roboalign.sdk.types import ACTION_NAMES, STATE_NAMES, Applied, FloatArray, ImageArray, Observation, RobotSpec

__all__ = ["SimEnv"]

Obs = dict[str, np.ndarray]

_RESET_OPTIONS = ("task", "instruction", "scene", "domain")


class SimEnv(gymnasium.Env[Obs, np.ndarray]):
    """One robot, one table, one task per episode: robot, scene, task and randomisation put together.

    The scene is a function of the seed, the task, the split and the robot alone, whatever ran before; what is
    randomised depends on the seed and has streams of its own, so that it never moves an object. An action is float32[5]
    in the order of `ACTION_NAMES`; every action goes through the robot's limiter. `step` renders only when
    `image_in_obs` or `render_mode="rgb_array"` asks for it; `observe` renders on demand.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 - gymnasium's own convention

    def __init__(
        self,
        task: str = MIX,
        *,
        robot: str = "panda",
        split: str = "train",
        randomization: str | DomainRandomization = "off",
        image_size_px: int = 96,
        max_steps: int | None = None,
        image_in_obs: bool = False,
        render_mode: str | None = None,
    ) -> None:
        """Stores the settings; the simulation opens at the first reset. `max_steps` None means the task's own.

        `randomization` is a preset's name, the path of a file, or made by hand; the splits `camera` and `lighting` move
        their own concern of it to ranges that no preset for training reaches.

        Raises:
            ConfigError: A name is unknown (the nearest ones are listed), or a value is out of range.
        """
        model = find_robot(robot)
        for name in FAMILIES if task == MIX else (task,):
            fitting_task(name, robot=model.name, split=split)
        if render_mode not in (None, "rgb_array"):
            raise ConfigError(f"SimEnv render_mode is {render_mode!r}; choose None or 'rgb_array'")
        if max_steps is not None and max_steps < 1:
            raise ConfigError(f"SimEnv max_steps is {max_steps}, expected at least 1 or None")
        self.task, self.split, self.render_mode = task, split, render_mode
        self.randomization = heldout_randomization(split, randomization)
        self.robot = SimRobot(robot=model, image_size_px=image_size_px)
        self._twin = partial(
            SimEnv,
            task,
            robot=robot,
            split=split,
            randomization=randomization,
            image_size_px=image_size_px,
            max_steps=max_steps,
        )
        self._table = model.table
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
        self._episode: _Episode | None = None
        self.last_applied: Applied | None = None
        self._show: dict[int, Camera] = {}

    def twin(self) -> SimEnv:
        """Returns another environment with the same settings, not reset yet; it belongs to the caller."""
        return self._twin()

    @property
    def robot_spec(self) -> RobotSpec:
        """Names, limits and rates of the robot; available before the first reset."""
        return self.robot.spec

    @property
    def scene(self) -> SceneSpec:
        """The scene as it was laid out."""
        return self._running().scene

    @property
    def instruction(self) -> str:
        """The sentence to follow now; it changes during a sequence, at every goal that is reached."""
        return self._running().instruction

    @property
    def max_steps(self) -> int:
        """Control steps after which this episode is cut off."""
        return self._max_steps or self._running().task.max_steps

    @property
    def num_goals(self) -> int:
        """Number of goals of this episode."""
        return len(self.scene.all_goals)

    def goals_done(self) -> int:
        """Returns how many goals are reached now; in a sequence, how many were reached in their turn."""
        truth = self.truth()
        return sum(truth.done) if truth.goals else int(self.is_success())

    def domain(self) -> dict[str, object]:
        """Returns every value that was drawn for this episode by the randomisation, ready for JSON; {} when off."""
        domain = self._running().domain
        return {} if domain is None else domain.to_json()

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, object] | None = None
    ) -> tuple[Obs, dict[str, object]]:
        """Lays out the scene of `seed`; None draws one of the training stream.

        Options: `task` overrides the environment's, `instruction` replaces the sentence (not the goal), and `scene`,
        a SceneSpec, is built as it is. `domain`, a DomainSample, replaces what the randomisation would draw.
        """
        super().reset(seed=seed)
        options = dict(options or {})
        for name in options:
            if name not in _RESET_OPTIONS:
                raise ConfigError(unknown_name("reset option", name, _RESET_OPTIONS))
        # Who asks for any scene is training: the seeds above are kept for evaluation.
        seed = int(self.np_random.integers(EVAL_OFFSET)) if seed is None else seed
        scene = options.get("scene")
        if scene is None:
            scene = scene_for(seed, str(options.get("task", self.task)), self.split, self.robot_spec.name)
        if not isinstance(scene, SceneSpec):
            raise ConfigError(f"SimEnv reset option 'scene' is {type(scene).__name__}, expected a SceneSpec")
        if scene.robot != self.robot_spec.name:
            raise ConfigError(
                f"the scene is laid out for {scene.robot!r}, the environment has {self.robot_spec.name!r}"
            )
        if "instruction" in options:
            sentence = str(options["instruction"])
            scene = dataclasses.replace(scene, instruction=sentence, instructions=(sentence,) * len(scene.instructions))
        domain = options.get("domain", None if self.randomization.is_off else self.randomization.sample(seed))
        if not isinstance(domain, (DomainSample, type(None))):
            raise ConfigError(f"SimEnv reset option 'domain' is {type(domain).__name__}, expected a DomainSample")
        self.robot.load_scene(scene, domain)
        starts = {name: state.position_m for name, state in self.robot.world.body_states().items()}
        self._episode = _Episode(
            seed=seed, scene=scene, task=find_task(scene.task_name), starts_m=starts, domain=domain
        )
        self.last_applied = None
        return self._obs(), self._info()

    def step(self, action: np.ndarray) -> tuple[Obs, float, bool, bool, dict[str, object]]:
        """Applies one action; reward is 1 when the task is solved, which ends the episode.

        What the limiter changed is named in `info["limited"]`.

        Raises:
            RobotError: There was no reset, or the episode has ended.
            ConfigError: The action has the wrong shape or is not finite.
        """
        episode = self._running()
        if episode.is_over:
            raise RobotError("the episode has ended; call reset() before the next step()")
        self.advance(_checked(action))
        success = self.is_success()
        is_cut = episode.steps >= self.max_steps
        episode.is_over = success or is_cut
        return self._obs(), float(success), success, is_cut, self._info()

    def advance(self, action: FloatArray) -> bool:
        """Applies one action and renders nothing; returns True when the episode is cut off.

        For recorders: it may go on after the end, and an action that is not finite is a hold, as on a robot.
        """
        episode = self._running()
        self.last_applied = self.robot.act(action)
        episode.steps += 1
        if episode.scene.is_sequence:
            self._count_reached()
        return episode.steps >= self.max_steps

    def observe(self, with_image: bool = True) -> Observation:
        """Returns what the robot senses now, with the instruction."""
        return self.robot.observe(self.instruction, with_images=with_image)

    def truth(self) -> SceneTruth:
        """Returns all that is true now; computed once per step."""
        episode = self._running()
        if episode.truth is None or episode.truth_time_s != self.robot.world.time_s:
            episode.truth, episode.truth_time_s = self._read_truth(), self.robot.world.time_s
        return episode.truth

    def _read_truth(self) -> SceneTruth:
        episode, world = self._running(), self.robot.world
        truth = scene_truth(
            episode.scene,
            world.body_states(),
            self.robot.tool_state(),
            episode.starts_m,
            fixtures=world.fixture_truths(),
            num_reached=episode.num_reached,
        )
        return dataclasses.replace(truth, instruction=episode.instruction)

    def _count_reached(self) -> None:
        """Latches the present goal of a sequence when it is reached; the next one starts with the next step."""
        episode = self._running()
        goals = episode.scene.goals
        if episode.num_reached < len(goals) and is_goal_reached(self.truth(), goals[episode.num_reached]):
            episode.num_reached += 1
            states = self.robot.world.body_states()
            episode.starts_m = {name: state.position_m for name, state in states.items()}
            episode.truth = None

    def is_success(self) -> bool:
        """True when the task is solved now."""
        return bool(self._running().task.is_success(self.truth()))

    def progress(self) -> float:
        """Returns how far the task is now, 0 to 1."""
        return float(self._running().task.progress(self.truth()))

    def foreseen(self, truth: SceneTruth) -> SceneTruth:
        """Returns the present truth as it will be when the arm has followed all that was sent; what it holds moves too.

        The demonstrator plans from there: on an arm that is late, a plan from what is seen asks for the same way twice.
        It is the truth itself on an arm without delay and with full speed, and while it pushes: how far what is pushed
        will go is not foreseen.
        """
        ahead = self.robot.tool_ahead()
        if truth.stage == "push" or not ahead.any():
            return truth
        state = truth.state + np.append(ahead, np.float32(0.0))
        state[3] = math.remainder(state[3], 2 * math.pi)
        objects = tuple(
            dataclasses.replace(
                item,
                position_m=item.position_m + ahead[:3],
                yaw_rad=fold_yaw(item.yaw_rad + float(ahead[3]), item.shape),
            )
            if item.is_held
            else item
            for item in truth.objects
        )
        return dataclasses.replace(truth, state=state, objects=objects)

    def expert_action(self) -> FloatArray:
        """Returns float32[5], what the task's demonstrator would do now."""
        return np.asarray(self._running().task.expert(self.foreseen(self.truth())), np.float32)

    def state_hash(self) -> str:
        """Returns the SHA-256 of all bodies' states."""
        return self.robot.world.state_hash()

    def render(self, size_px: int = 320, *, view: str = "show") -> ImageArray:
        """Returns uint8[H, W, 3] for people: a wider view from the side, or `view="front"` as the robot sees it."""
        if view not in ("show", "front"):
            raise ConfigError(f"SimEnv view is {view!r}; choose one of show, front")
        key = size_px if view == "show" else -size_px
        if key not in self._show:
            make = show_camera if view == "show" else front_camera
            self._show[key] = make(size_px, self._table)
        return self.robot.world.render(self._show[key])

    def close(self) -> None:
        """Frees the simulation."""
        self.robot.disconnect()

    def _running(self) -> _Episode:
        if self._episode is None:
            raise RobotError("the environment has no scene yet; call reset() first")
        return self._episode

    def _obs(self) -> Obs:
        observation = self.observe(with_image=self._has_image)
        obs: Obs = {"state": np.array(observation.state)}
        if self._has_image:
            obs["image"] = observation.images["front"]
        return obs

    def _info(self) -> dict[str, object]:
        truth, episode = self.truth(), self._running()
        applied = self.last_applied
        return {
            "seed": episode.seed,
            "task": truth.task_name,
            "instruction": truth.instruction,
            "target": truth.target,
            "goal": truth.goal,
            "stage": truth.stage,
            "success": self.is_success(),
            "progress": self.progress(),
            "goals_done": self.goals_done(),
            "steps": episode.steps,
            "limited": applied.reasons if applied is not None else (),
            "domain": self.domain(),
        }


@dataclasses.dataclass(kw_only=True, slots=True)
class _Episode:
    """What changes from reset to reset and from step to step."""

    seed: int
    scene: SceneSpec
    task: Task
    starts_m: Mapping[str, FloatArray]
    domain: DomainSample | None
    steps: int = 0
    num_reached: int = 0
    is_over: bool = False
    truth: SceneTruth | None = None
    truth_time_s: float = -1.0

    @property
    def instruction(self) -> str:
        if not self.scene.is_sequence:
            return self.scene.instruction
        return self.scene.instructions[min(self.num_reached, len(self.scene.instructions) - 1)]


def _checked(action: NDArray[np.generic]) -> FloatArray:
    values = np.asarray(action)
    if values.shape != (len(ACTION_NAMES),) or not np.issubdtype(values.dtype, np.number):
        found = f"{values.dtype}{list(values.shape)}"
        raise ConfigError(f"action is {found}, expected {len(ACTION_NAMES)} numbers: {', '.join(ACTION_NAMES)}")
    bad = [name for name, value in zip(ACTION_NAMES, values, strict=True) if not np.isfinite(value)]
    if bad:
        raise ConfigError(f"action is not finite in {', '.join(bad)}; nothing was moved")
    return values.astype(np.float32)
