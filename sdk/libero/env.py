"""A LIBERO task as an `EpisodeEnv`: the same five actions and states as every robot here, 20 Hz, judged by LIBERO.

Evaluation seed k is the benchmark's frozen initial state k; a training seed is a placement that the benchmark draws
itself, so the two never meet. Every reset seeds the benchmark first and lets the scene settle for 10 periods.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from roboalign.sdk.errors import ConfigError, RobotError
from roboalign.sdk.libero.client import Answer, LiberoClient
from roboalign.sdk.libero.installation import benchmark_client, find_installation
from roboalign.sdk.libero.mapping import MAX_STEP_M, MAX_STEP_RAD, limit_action, native_action
from roboalign.sdk.libero.suites import LIBERO_SUITES, MAX_STEPS, base_of_suite, find_task, suite_of_split, task_ids
from roboalign.sdk.libero.truth import LiberoTask, LiberoTruth, decode_task, decode_truth
from roboalign.sdk.sim.seeds import EVAL_OFFSET, is_eval_seed
from roboalign.sdk.types import FloatArray, ImageArray, Observation, RobotSpec

if TYPE_CHECKING:
    from roboalign.sdk.libero.expert import LiberoExpert

__all__ = ["CAMERAS", "CONTROL_RATE_HZ", "LiberoEnv", "libero_robot_spec", "open_env"]

CONTROL_RATE_HZ = 20.0
CAMERAS: Mapping[str, str] = {"front": "agentview", "wrist": "robot0_eye_in_hand"}
"""The benchmark's camera by our name."""
LIFTED_M = 0.03
"""A held target this far above its place of rest counts as lifted."""
_SHOW_PX = 256


def libero_robot_spec(image_size_px: int = 96, cameras: Sequence[str] = ("front", "wrist")) -> RobotSpec:
    """Returns names, limits and rates of LIBERO's Panda; joint limits and home pose are robosuite 1.4's."""
    home = (0.0, -0.161037389, 0.0, -2.44459747, 0.0, 2.2267522, 0.785398163)
    return RobotSpec(
        name="libero-panda",
        joint_names=tuple(f"robot0_joint{number}" for number in range(1, 8)),
        joint_lower_rad=(-2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973),
        joint_upper_rad=(2.8973, 1.7628, 2.8973, -0.0698, 2.8973, 3.7525, 2.8973),
        joint_max_speed_rad_s=(2.175, 2.175, 2.175, 2.175, 2.61, 2.61, 2.61),
        home_joint_pos_rad=home,
        park_joint_pos_rad=home,
        gripper_max_width_m=0.08,
        workspace_lower_m=(0.10, -0.60, -0.02),
        workspace_upper_m=(0.95, 0.60, 0.70),
        max_step_m=MAX_STEP_M,
        max_step_rad=MAX_STEP_RAD,
        control_rate_hz=CONTROL_RATE_HZ,
        camera_names=tuple(cameras),
        image_size_px=image_size_px,
    )


class LiberoEnv:
    """One suite of the benchmark. The constructor stores its arguments; the process starts at the first reset.

    `step` draws nothing and `observe` draws the cameras on demand. Loading another task takes seconds, so run the
    episodes of a task one after another. Close it: it owns a process.
    """

    def __init__(
        self,
        suite: str,
        *,
        split: str = "train",
        image_size_px: int = 96,
        cameras: Sequence[str] = ("front", "wrist"),
        max_steps: int | None = None,
        make_client: Callable[[], LiberoClient] | None = None,
    ) -> None:
        """Stores the settings.

        Args:
            suite: One of `LIBERO_SUITES`.
            split: `train` is the suite itself, `language`, `object`, `swap` and `task` are its LIBERO-PRO variants.
            image_size_px: Height and width of the images.
            cameras: Which of `front` and `wrist` `observe` draws; each costs 50 to 100 ms.
            max_steps: Control periods of an episode; None takes openpi's (280 object, 220 spatial).
            make_client: Opens the benchmark's process; None takes what `roboalign libero setup` installed.
        """
        self.native_suite = suite_of_split(suite, split)
        unknown = [name for name in cameras if name not in CAMERAS]
        if unknown:
            raise ConfigError(f"LIBERO has no camera {', '.join(unknown)}; choose from {', '.join(CAMERAS)}")
        if max_steps is not None and max_steps < 1:
            raise ConfigError(f"LiberoEnv max_steps is {max_steps}, expected at least 1 or None")
        if not 16 <= image_size_px <= 1024:
            raise ConfigError(f"LiberoEnv image_size_px is {image_size_px}, expected 16 to 1024")
        self.suite, self.split = suite, split
        self.max_steps = max_steps or MAX_STEPS[base_of_suite(suite)]
        self._spec = libero_robot_spec(image_size_px, cameras)
        self._make_client = make_client or (lambda: benchmark_client(find_installation()))
        self._client: LiberoClient | None = None
        self._task: LiberoTask | None = None
        self._truth: LiberoTruth | None = None
        self._extents_m: NDArray[np.float64] = np.zeros((0, 2, 3))
        self._start_m: dict[str, float] = {}
        self._steps = 0
        self._is_over = False
        self._limited: tuple[str, ...] = ()
        self.num_limited = 0
        """Actions of this episode that exceeded the controller's range and were clipped to it."""

    def __enter__(self) -> LiberoEnv:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def robot_spec(self) -> RobotSpec:
        """Names, limits and rates of the robot; available before the first reset."""
        return self._spec

    @property
    def tasks(self) -> tuple[str, ...]:
        """Ids of the suite's tasks."""
        return task_ids(self.suite)

    @property
    def task(self) -> LiberoTask:
        """The task that is open."""
        if self._task is None:
            raise RobotError("the LIBERO environment has no scene yet; call reset() first")
        return self._task

    @property
    def versions(self) -> Mapping[str, str]:
        """Packages of the benchmark's environment; empty before the first reset."""
        return {} if self._client is None else self._client.versions

    @property
    def instruction(self) -> str:
        """The sentence: the file name as words, as LIBERO's scripts use it; for a PRO variant its `:language` entry."""
        is_variant = self.native_suite != base_of_suite(self.native_suite)
        return self.task.sentence if is_variant else self.task.file_words

    @property
    def num_goals(self) -> int:
        """Predicates of the task."""
        return len(self.task.goals)

    def reset(
        self, *, seed: int, options: Mapping[str, object] | None = None
    ) -> tuple[dict[str, NDArray[np.float32]], dict[str, object]]:
        """Lays out a scene.

        Args:
            seed: `eval_seed(k)`: frozen initial state k. A training seed: a placement drawn by the benchmark.
            options: `task`, an id of `tasks` or what identifies it; required at the first reset.

        Raises:
            ConfigError: unknown task or option, or k is not among the frozen states.
            BackendError: the benchmark is not installed, or its process failed.
        """
        options = dict(options or {})
        task = options.pop("task", None)
        if options:
            raise ConfigError(f"LiberoEnv reset option {', '.join(options)} is unknown; there is only 'task'")
        if task is None and self._task is None:
            raise ConfigError(f"LiberoEnv needs options={{'task': ...}} at the first reset, e.g. {self.tasks[0]}")
        name = self.task.name if task is None else LIBERO_SUITES[self.suite][find_task(self.suite, str(task))]
        if seed < 0:
            raise ConfigError(f"LiberoEnv seed is {seed}, expected 0 or more")
        state = seed - EVAL_OFFSET if is_eval_seed(seed) else None
        self._open(name)
        if state is not None and state >= self.task.num_states:
            raise ConfigError(
                f"evaluation seed {seed} asks for initial state {state} of {name}, which has {self.task.num_states}"
            )
        header, arrays = self._ask("reset", {"seed": seed, "state": state})
        self._extents_m = np.asarray(arrays["extents"], np.float64)
        self._truth = decode_truth(self.task, self._extents_m, header, arrays)
        self._start_m = {item.name: item.bottom_m for item in self._truth.objects}
        self._steps, self._is_over, self._limited, self.num_limited = 0, False, (), 0
        return self._obs(), self._info()

    def step(self, action: FloatArray) -> tuple[dict[str, NDArray[np.float32]], float, bool, bool, dict[str, object]]:
        """Applies one action for one control period; success by the benchmark's check ends the episode.

        Raises:
            LimitViolation: the action has the wrong shape or is not finite.
            RobotError: there is no scene, or the episode is over.
        """
        if self._is_over:
            raise RobotError(f"the episode of {self.task.name} is over after {self._steps} steps; call reset()")
        is_cut = self.advance(action)
        success = self.is_success()
        self._is_over = success or is_cut
        return self._obs(), float(success), success, is_cut, self._info()

    def advance(self, action: FloatArray) -> bool:
        """Applies one action; returns True when the episode is cut off. Stepping on after success is allowed."""
        truth = self.truth()
        limited, self._limited = limit_action(action)
        self.num_limited += bool(self._limited)
        header, arrays = self._ask("step", {}, {"action": native_action(limited, truth.tool_rotation)})
        self._truth = decode_truth(self.task, self._extents_m, header, arrays)
        self._steps += 1
        return self._steps >= self.max_steps

    def observe(self, with_image: bool = True) -> Observation:
        """Returns what the robot senses now, with the instruction; images are drawn here."""
        truth = self.truth()
        return Observation(
            images=self._draw(self._spec.camera_names, self._spec.image_size_px) if with_image else {},
            state=truth.state,
            joint_pos_rad=truth.joint_pos_rad,
            instruction=self.instruction,
            time_s=truth.time_s,
        )

    def expert_policy(self) -> LiberoExpert:
        """Returns the scripted expert for this environment."""
        from roboalign.sdk.libero.expert import LiberoExpert

        return LiberoExpert(self)

    def truth(self) -> LiberoTruth:
        """Returns all that is true now."""
        if self._truth is None:
            raise RobotError("the LIBERO environment has no scene yet; call reset() first")
        return self._truth

    def is_success(self) -> bool:
        """The benchmark's own check, now."""
        return self.truth().is_success

    def goals_done(self) -> int:
        """Predicates of the task that hold now, by the benchmark's own check."""
        return sum(self.truth().goals_done)

    def progress(self) -> float:
        """1 when solved; else, for "put A in/on B", 1/4 held, 1/2 held and lifted, 3/4 held above B, mean over goals.

        Only success is the benchmark's; the stages are ours.
        """
        truth = self.truth()
        if truth.is_success:
            return 1.0
        parts = [
            1.0 if done else self._stage(goal) for goal, done in zip(self.task.goals, truth.goals_done, strict=True)
        ]
        return min(sum(parts) / len(parts), 0.99)

    def state_hash(self) -> str:
        """Returns the SHA-256 of the benchmark's state."""
        return hashlib.sha256(self.truth().sim_state.tobytes()).hexdigest()

    def domain(self) -> dict[str, object]:
        """Returns {}: the benchmark's scenes are not randomised here."""
        return {}

    def render(self, size_px: int = _SHOW_PX) -> ImageArray:
        """Returns uint8[H, W, 3], the front camera, for people; does not change the scene."""
        self.truth()
        return self._draw(("front",), size_px)["front"]

    def close(self) -> None:
        """Ends the benchmark's process; idempotent."""
        if self._client is not None:
            self._client.close()
        self._client = self._task = self._truth = None

    def _open(self, name: str) -> None:
        if self._client is None or not self._client.is_open:
            self._client, self._task = self._make_client(), None
            self._client.open()
        if self._task is None or self._task.name != name:
            self._truth = self._task = None
            self._task = decode_task(*self._ask("open", {"suite": self.native_suite, "task": name}))

    def _ask(self, kind: str, fields: Mapping[str, object], arrays: Mapping[str, NDArray[Any]] | None = None) -> Answer:
        if self._client is None:
            raise RobotError("the LIBERO environment is closed; call reset() first")
        return self._client.ask(kind, fields, arrays)

    def _draw(self, cameras: Sequence[str], size_px: int) -> dict[str, ImageArray]:
        _, images = self._ask("render", {"cameras": [CAMERAS[name] for name in cameras], "size_px": size_px})
        return {name: np.asarray(images[CAMERAS[name]], np.uint8) for name in cameras}

    def _stage(self, goal: tuple[str, ...]) -> float:
        if len(goal) != 3 or goal[0] not in ("in", "on"):
            return 0.0
        truth = self.truth()
        item, place = truth.find(goal[1]), truth.find(goal[2])
        if not item.is_held:
            return 0.0
        if item.bottom_m - self._start_m[item.name] < LIFTED_M:
            return 0.25
        offset = np.abs(item.position_m - place.position_m)[:2]
        return 0.75 if bool((offset < place.half_extent_m[:2]).all()) else 0.5

    def _obs(self) -> dict[str, NDArray[np.float32]]:
        return {"state": self.truth().state.copy()}

    def _info(self) -> dict[str, object]:
        return {
            "task": self.task.name,
            "instruction": self.instruction,
            "success": self.is_success(),
            "progress": self.progress(),
            "steps": self._steps,
            "limited": self._limited,
        }


def open_env(
    suite: str,
    split: str = "train",
    image_size_px: int = 96,
    *,
    cameras: Sequence[str] = ("front", "wrist"),
    max_steps: int | None = None,
) -> LiberoEnv:
    """Returns the environment of a suite and split; see `LiberoEnv`. Nothing is started before the first reset."""
    return LiberoEnv(suite, split=split, image_size_px=image_size_px, cameras=cameras, max_steps=max_steps)
