"""One recorded episode in memory, and the truth of the simulator as text."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from roboalign.sdk.errors import DataError
from roboalign.sdk.types import ACTION_NAMES, STATE_NAMES, FloatArray

if TYPE_CHECKING:
    from roboalign.sdk.sim.truth import SceneTruth

__all__ = ["Episode", "LanguageRow", "action_chunks", "truth_from_json", "truth_to_json"]

TRUTH_DECIMALS = 6
"""Micrometres and microradians: below what the simulator resolves, and short as text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LanguageRow:
    """One row of a language column (lerobot 0.6.1, `datasets/language.py`)."""

    role: str
    """Who speaks: `user` or `assistant`."""
    content: str | None
    """The text; None only for a pure tool call."""
    style: str | None
    """`subtask`, `plan`, `memory`, `motion`, `task_aug` (persistent) or `vqa`, `trace`, `interjection` (event)."""
    timestamp_s: float | None = None
    """Time in the episode from which a persistent row holds; None for an event."""
    camera: str | None = None
    """Image feature that the row speaks about; only for `vqa` and `trace`."""
    tool_calls: tuple[str, ...] | None = None
    """One JSON text for each tool call."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Episode:
    """One demonstration of N frames; every array is recorded before the action of its frame is applied."""

    task: str
    """The instruction; the first one, when it changes on the way."""
    states: FloatArray
    """float32[N, S] in the order of `state_names`."""
    joint_pos_rad: FloatArray
    """float32[N, J]; J is 0 when joints were not recorded."""
    actions: FloatArray
    """float32[N, A] in the order of `action_names`: what the demonstrator meant to do, without injected noise."""
    images: tuple[bytes | None, ...]
    """A PNG file per frame, or None where nothing was rendered; of the first camera."""
    truth_json: tuple[str | None, ...]
    """`SceneTruth` as JSON per frame; None in data of a real robot."""
    rate_hz: float
    """Frames per second."""
    index: int = 0
    """Position of the episode in its dataset."""
    language_persistent: tuple[LanguageRow, ...] = ()
    """Rows that hold from their timestamp on."""
    language_events: tuple[tuple[LanguageRow, ...], ...] = ()
    """Rows of each frame; empty, or one entry for each of the N frames."""
    other_images: Mapping[str, tuple[bytes | None, ...]] = field(default_factory=dict)
    """The same as `images` for further cameras, by name."""
    state_names: tuple[str, ...] = STATE_NAMES
    """Entries of a state; other robots have others."""
    action_names: tuple[str, ...] = ACTION_NAMES
    """Entries of an action."""
    instructions: tuple[str, ...] = ()
    """The instruction of each frame when it changes on the way; else empty."""
    domain: Mapping[str, object] = field(default_factory=dict)
    """Every value that the simulator's randomisation drew for this episode, ready for JSON; empty when it was off."""
    interventions: tuple[bool, ...] = ()
    """Whether a person acted in a policy's place, for each frame; empty where nobody could."""

    def __post_init__(self) -> None:
        length = len(self.actions)
        for name, width in (("states", len(self.state_names)), ("actions", len(self.action_names))):
            values = np.asarray(getattr(self, name), dtype=np.float32)
            if values.shape != (length, width):
                raise DataError(f"episode {self.index}: {name} have shape {values.shape}, expected ({length}, {width})")
            if not np.isfinite(values).all():
                raise DataError(f"episode {self.index}: {name} hold values that are not finite")
            object.__setattr__(self, name, values)
        columns = {name: getattr(self, name) for name in ("joint_pos_rad", "images", "truth_json")}
        columns.update({f"other_images[{camera!r}]": images for camera, images in self.other_images.items()})
        for name, column in columns.items():
            if len(column) != length:
                raise DataError(f"episode {self.index}: {name} has {len(column)} frames, the actions have {length}")
        if length == 0:
            raise DataError(f"episode {self.index} has no frames")
        for name in ("language_events", "instructions", "interventions"):
            found = len(getattr(self, name))
            if found not in (0, length):
                raise DataError(f"episode {self.index}: {name} has {found} frames, expected 0 or {length}")

    def __len__(self) -> int:
        return len(self.actions)

    @property
    def frames_with_images(self) -> NDArray[np.int64]:
        """int64[M] frame numbers, within the episode, that have an image."""
        return np.flatnonzero([image is not None for image in self.images]).astype(np.int64)

    @property
    def truths(self) -> tuple[SceneTruth, ...]:
        """The simulator's truth of each frame (decoded at each access)."""
        return tuple(self.truth(frame) for frame in range(len(self)))

    def truth(self, frame: int) -> SceneTruth:
        """Returns the simulator's truth of one frame.

        Raises:
            DataError: the dataset was not recorded in the simulator.
        """
        text = self.truth_json[frame]
        if text is None:
            raise DataError(f"episode {self.index} frame {frame} has no simulator truth (column roboalign.truth)")
        return truth_from_json(text)

    def action_chunks(self, horizon: int) -> FloatArray:
        """Returns float32[N, horizon, 5]; see `action_chunks`.

        Raises:
            DataError: the actions are those of another robot.
        """
        if self.action_names != ACTION_NAMES:
            raise DataError(
                f"episode {self.index}: the actions are {', '.join(self.action_names)}, expected "
                f"{', '.join(ACTION_NAMES)}; convert them before training"
            )
        return action_chunks(self.actions, horizon)


def action_chunks(actions: FloatArray, horizon: int) -> FloatArray:
    """Returns float32[N, horizon, 5]: the actions from each frame on.

    Beyond the end of the episode the arm stays still (`dx..dyaw` = 0) and the gripper keeps its last command.
    """
    stay = np.array(actions[-1])
    stay[:-1] = 0.0
    padded = np.concatenate([actions, np.repeat(stay[None], horizon - 1, axis=0)])
    steps = np.arange(len(actions))[:, None] + np.arange(horizon)[None]
    return np.asarray(padded[steps], dtype=np.float32)


def truth_to_json(truth: SceneTruth) -> str:
    """Returns the truth as one line of JSON; numbers are rounded to 1e-6 (metres, radians), defaults are left out."""
    return json.dumps(_plain(truth), separators=(",", ":"))


def truth_from_json(text: str) -> SceneTruth:
    """Returns the truth that `truth_to_json` wrote.

    Raises:
        DataError: the text does not hold the fields of a `SceneTruth`.
    """
    from roboalign.sdk.sim.scene import Goal
    from roboalign.sdk.sim.truth import FixtureTruth, ObjectTruth, SceneTruth

    try:
        fields = json.loads(text)
        parts: dict[str, Any] = {
            "objects": tuple(ObjectTruth(**_restore_fields(item)) for item in fields.pop("objects")),
            "fixtures": tuple(FixtureTruth(**_restore_fields(item)) for item in fields.pop("fixtures", ())),
            "goals": tuple(Goal(**item) for item in fields.pop("goals", ())),
            "done": tuple(fields.pop("done", ())),
        }
        return SceneTruth(**parts, **_restore_fields(fields))
    except (TypeError, KeyError, AttributeError, ValueError) as err:
        raise DataError(f"a truth record does not fit this version of roboalign ({err}): {text[:80]}") from err


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value):
        fields = [(field, getattr(value, field.name)) for field in dataclasses.fields(value)]
        # An array field has no default, so the comparison is between plain values.
        is_said = [field.default is dataclasses.MISSING or found != field.default for field, found in fields]
        return {field.name: _plain(found) for (field, found), said in zip(fields, is_said, strict=True) if said}
    if isinstance(value, np.ndarray):
        return [_plain(item) for item in value.tolist()]
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (float, np.floating)):
        return round(float(value), TRUTH_DECIMALS) + 0.0
    if isinstance(value, (int, np.integer)):
        return int(value)
    return value


def _restore_fields(fields: dict[str, Any]) -> dict[str, Any]:
    """Turns lists back into float32 vectors; the lists of other things were taken out before."""
    return {key: np.asarray(item, dtype=np.float32) if isinstance(item, list) else item for key, item in fields.items()}
