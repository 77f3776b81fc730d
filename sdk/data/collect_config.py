"""What to record: the settings of a collection."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from roboalign.sdk.data.recording import SCENE_STEPS, ActionNoise
from roboalign.sdk.errors import ConfigError
from roboalign.sdk.randomization import find_randomization
from roboalign.sdk.types import STATES

__all__ = ["MAX_ATTEMPTS", "SEED_STRIDE", "CollectConfig", "with_defaults"]

MODES = ("demonstrations", "scenes")
MAX_ATTEMPTS = 16
"""Scenes tried for one episode before giving up; the expert fails in a few per cent of them."""
SEED_STRIDE = 10_000_000
"""Training seeds reserved for each value of `CollectConfig.seed`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CollectConfig:
    """What to record, and where to."""

    out: Path
    """Folder of the dataset; it must not exist yet."""
    episodes: int
    """Number of episodes to keep."""
    tasks: tuple[str, ...] = ("place", "push", "stack")
    """Names of tasks, taken in turn; replaced by those of the suite when one is named. The default means those of them
    that the arm has."""
    suite: str | None = None
    """Name of a suite: its tasks in turn, on its robot."""
    robot: str = "panda"
    """Name of the arm."""
    randomization: str = "off"
    """Preset of the domain randomisation."""
    state: str = "measured"
    """`measured` (where the tool is) or `commanded` (where it was last sent), for arms that are late."""
    workers: int = 2
    """Processes; 1 records in the calling process. Does not change the data."""
    seed: int = 0
    """Chooses one of 100 disjoint blocks of training seeds."""
    mode: str = "demonstrations"
    """`demonstrations` (whole successful episodes) or `scenes` (random moments, for pictures and questions)."""
    image_every: int = 2
    """Demonstrations: frames 0, k, 2k ... get an image; 1 makes a dataset that lerobot itself can train on."""
    images_per_episode: int = 3
    """Scenes: number of random moments to render."""
    noise_share: float = 0.3
    """Probability that a step executes a disturbed action; the clean one is recorded."""
    noise_m: float = 0.01
    """Standard deviation of that disturbance, per axis."""
    noise_rad: float = 0.05
    """Standard deviation of the disturbance of the yaw."""
    image_size_px: int = 96
    """Height and width of the images."""
    is_video: bool = False
    """Stores pictures as video instead of lossless; needs `image_every` 1."""
    split: str = "train"
    """Which scenes and sentences occur: `train`, or a held-out split of the tasks."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "out", Path(self.out))
        object.__setattr__(self, "tasks", tuple(self.tasks))
        _require("state", self.state, self.state in STATES, f"one of {', '.join(STATES)}")
        _require("mode", self.mode, self.mode in MODES, f"one of {', '.join(MODES)}")
        _require("tasks", self.tasks, len(self.tasks) > 0, "at least one task")
        _require("episodes", self.episodes, 1 <= self.episodes <= SEED_STRIDE // MAX_ATTEMPTS, "1 to 625000")
        _require("seed", self.seed, 0 <= self.seed < 100, "0 to 99")
        _require("workers", self.workers, self.workers >= 1, "1 or more")
        _require("image_size_px", self.image_size_px, 16 <= self.image_size_px <= 1024, "16 to 1024")
        _require("image_every", self.image_every, self.image_every >= 1, "1 or more")
        is_complete = self.image_every == 1 and self.mode == "demonstrations"
        _require("is_video", self.is_video, is_complete or not self.is_video, "False unless image_every is 1")
        is_fine = 1 <= self.images_per_episode <= SCENE_STEPS
        _require("images_per_episode", self.images_per_episode, is_fine, f"1 to {SCENE_STEPS}")
        _require("noise_share", self.noise_share, 0.0 <= self.noise_share <= 1.0, "0 to 1")
        for name in ("noise_m", "noise_rad"):
            _require(name, getattr(self, name), getattr(self, name) >= 0.0, "0 or more")

    @property
    def noise(self) -> ActionNoise:
        """The disturbance of the executed actions."""
        return ActionNoise(share=self.noise_share, std_m=self.noise_m, std_rad=self.noise_rad)

    def settings(self) -> dict[str, object]:
        """Returns all that decides the content of the dataset, ready for JSON.

        Raises:
            ConfigError: there is no such randomisation.
        """
        fields = dataclasses.asdict(self)
        del fields["out"], fields["workers"]
        fingerprint = find_randomization(self.randomization).fingerprint
        return {**fields, "tasks": list(self.tasks), "randomization_fingerprint": fingerprint}

    def resolved(self) -> CollectConfig:
        """Returns the same configuration with the tasks and the robot of its suite, if it names one.

        Raises:
            ConfigError: there is no such suite, or other tasks or another robot are asked for beside it.
        """
        if self.suite is None:
            from roboalign.sdk.sim.tasks import find_task

            is_default = self.tasks == _default("tasks")
            fitting = tuple(name for name in self.tasks if self.robot in find_task(name).robots) if is_default else ()
            return dataclasses.replace(self, tasks=fitting or self.tasks)
        from roboalign.sdk.suites import find_suite

        suite = find_suite(self.suite)
        if suite.kind != "sim":
            raise ConfigError(f"suite {suite.name!r} is not one of the simulator; collect it with: roboalign libero")
        if self.robot not in (_default("robot"), suite.robot):
            raise ConfigError(f"the suite {suite.name} is laid out for the arm {suite.robot}, asked for {self.robot}")
        if self.tasks not in (_default("tasks"), suite.tasks):
            raise ConfigError(
                f"the suite {suite.name} brings its own tasks, asked for {', '.join(self.tasks)}; leave out one of both"
            )
        return dataclasses.replace(self, tasks=suite.tasks, robot=suite.robot)


def with_defaults(settings: dict[str, object]) -> dict[str, object]:
    """Returns the settings of an older recording as today's; what had no name then had what is the default now."""
    found = {name: _default(name) for name in ("suite", "robot", "randomization", "state", "is_video")} | settings
    found.setdefault("randomization_fingerprint", find_randomization("off").fingerprint)
    if "families" in found:
        found["tasks"] = found.pop("families")
    return found


def _default(name: str) -> object:
    """Returns what a setting is when nobody says anything."""
    return next(field.default for field in dataclasses.fields(CollectConfig) if field.name == name)


def _require(name: str, value: object, is_fine: bool, expected: str) -> None:
    if not is_fine:
        raise ConfigError(f"CollectConfig.{name} is {value!r}, expected {expected}")
