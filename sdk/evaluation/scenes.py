"""`SceneRef`: where to evaluate, as plain values that travel to a worker process and are opened there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from roboalign.sdk.errors import ConfigError, unknown_name
from roboalign.sdk.evaluation.episodes import EpisodeEnv
from roboalign.sdk.randomization import find_randomization
from roboalign.sdk.sim.tasks import SPLITS

__all__ = ["SceneRef"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneRef:
    """An environment by name. Opening it twice gives two that behave alike."""

    suite: str | None = None
    """Name of a suite, of the simulator or of an outside benchmark; None for single tasks of the simulator."""
    task: str = "mix"
    """Any task that the arm and the split have; the one to play is named at every reset."""
    robot: str = "panda"
    """Name of the arm; an outside benchmark has its own."""
    split: str = "train"
    """What differs from training, one of `roboalign.sdk.sim.tasks.SPLITS`, or one that the outside benchmark has."""
    randomization: str = "off"
    """Preset of the domain randomisation."""
    image_size_px: int = 96
    """Height and width of the pictures that the policy gets."""

    def __post_init__(self) -> None:
        if not 16 <= self.image_size_px <= 1024:
            raise ConfigError(f"image_size_px is {self.image_size_px}, expected 16 to 1024")
        if self.suite is None and self.split not in SPLITS:
            raise ConfigError(unknown_name("split", self.split, SPLITS))
        find_randomization(self.randomization)  # a wrong name is reported before anything is opened
        if self.kind == "libero" and self.randomization != "off":
            raise ConfigError(f"the suite {self.suite} is an outside benchmark, it cannot be randomised")

    @property
    def kind(self) -> str:
        """`sim` for the simulator of this package, `libero` for the outside benchmark."""
        if self.suite is None:
            return "sim"
        from roboalign.sdk.suites import find_suite

        return find_suite(self.suite).kind

    def describe(self) -> Mapping[str, object]:
        """Says where the evaluation takes place, ready for JSON."""
        return asdict(self)

    def open(self) -> EpisodeEnv:
        """Returns the environment; it belongs to the caller."""
        if self.kind == "libero":
            from roboalign.sdk.libero import open_env

            assert self.suite is not None, "an outside benchmark is chosen by its suite"
            return open_env(self.suite, self.split, self.image_size_px)
        from roboalign.sdk.sim.env import SimEnv

        return SimEnv(
            self.task,
            robot=self.robot,
            split=self.split,
            randomization=self.randomization,
            image_size_px=self.image_size_px,
        )
