"""What goes through the rings between control, policy and the page: one fixed layout for each, and plain reasons."""

from __future__ import annotations

from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roboalign.sdk.control.rings import Records
from roboalign.sdk.types import ACTION_NAMES, STATE_NAMES, RobotSpec

__all__ = [
    "BOARD",
    "CHUNK",
    "LATENCIES",
    "MAX_STEPS",
    "SOURCES",
    "STAGES",
    "WORDS",
    "Fields",
    "Reason",
    "fields_of",
    "observation_record",
    "put_text",
    "read_text",
    "tick_record",
]

MAX_STEPS = 256
"""Most actions in a chunk that goes through a ring."""
STAGES = ("wake", "decide", "send", "observe", "publish", "note")
"""Parts of a control period that are timed: waking up after the deadline, choosing and checking the action, the
command itself, reading the robot, showing it to the policy, and writing down."""
LATENCIES = ("vision_prompt", "thought", "action", "total")
_THOUGHT_BYTES, _REASON_BYTES, _NOTE_BYTES = 2048, 256, 192
_NUM_ACTIONS = len(ACTION_NAMES)

SOURCES = ("hold", "flow", "fast", "expert", "random", "other")
"""Who acted, as a number in a record."""


class Reason(str, Enum):
    """Why the arm does not move. `moving` is the one value that says it does."""

    MOVING = "moving"
    """An action was sent as the policy asked, or shortened."""
    WARMING = "warming"
    """The policy is being loaded, or has not answered once."""
    NO_CHUNK = "no_chunk"
    """The policy has answered before, and what it answered was dropped or came too late."""
    EXHAUSTED = "exhausted"
    """All actions of the newest chunk were used before the next one came."""
    STALE_CAMERA = "stale_camera"
    """A camera gives no new picture."""
    LIMITER = "limiter"
    """The limiter or the kinematics refused the action."""
    WATCHDOG = "watchdog"
    """The policy's process is silent or gone, takes too long, or what it saw is too old."""
    STOPPED = "stopped"
    """Somebody pressed stop; it stays."""
    DISCONNECTED = "disconnected"
    """The robot does not answer."""
    POLICY = "policy"
    """The policy says that it holds, and why."""

    @property
    def code(self) -> int:
        """Number in a record."""
        return _REASONS.index(self)

    @classmethod
    def of(cls, code: int) -> Reason:
        """Returns the reason with this number."""
        return _REASONS[code]


_REASONS = tuple(Reason)

CHUNK = np.dtype(
    [
        ("observation", "<u8"),  # sequence number of the observation that was asked about
        ("moves", "<i8"),  # actions that had been used up when it was made
        ("observed_s", "<f8"),
        ("computed_s", "<f8"),
        ("thought_s", "<f8"),  # when what was thought about was observed; NaN when nothing is known
        ("rate_hz", "<f8"),
        ("steps", "<u4"),
        ("source", "<u4"),
        ("latency_s", "<f8", (len(LATENCIES),)),
        ("actions", "<f4", (MAX_STEPS, _NUM_ACTIONS)),
        ("reason", f"S{_REASON_BYTES}"),
        ("thought", f"S{_THOUGHT_BYTES}"),
    ],
    align=True,
)
"""An answer of the policy."""

WORDS = np.dtype([("thought", f"S{_THOUGHT_BYTES}")], align=True)
"""A thought as far as it is written."""

BOARD = np.dtype(
    [
        # written by the policy's process
        ("policy_beat_s", "<f8"),
        ("busy_since_s", "<f8"),  # 0 while it waits
        ("crowded", "<u8"),  # announcements at which it had to make room for another program
        ("answered", "<u8"),  # observation that it is done with, whatever came of it
        # written by the control process
        ("control_beat_s", "<f8"),
        ("question", "<u8"),  # observation that the policy is to answer, or a newer one
        ("reason", "<u8"),
        ("is_over", "<u8"),
        # written by the page
        ("stop", "<u8"),
        # written by the recorder
        ("recorder_beat_s", "<f8"),
        ("trace_lost", "<u8"),
        ("trace_failed", "<u8"),
    ],
    align=True,
)
"""Numbers that every process may read at any time; each is written by one."""


def observation_record(spec: RobotSpec) -> np.dtype[np.void]:
    """Returns the layout of an observation of this robot; `pictures` follow `spec.camera_names`."""
    fields: list[tuple[str, str] | tuple[str, str, tuple[int, ...]]] = [
        ("moves", "<i8"),  # actions used up so far, which a chunk that answers this must not repeat
        ("time_s", "<f8"),
        ("state", "<f4", (len(STATE_NAMES),)),
        ("joints", "<f4", (spec.num_joints,)),
        ("commanded", "<f4", (4,)),  # NaN where the robot does not say
    ]
    if spec.camera_names:
        fields.append(("pictures", "<u8", (len(spec.camera_names),)))  # their numbers in the rings of the cameras
    return np.dtype(fields, align=True)


def tick_record(spec: RobotSpec) -> np.dtype[np.void]:
    """Returns the layout of what is written down about one control period of this robot."""
    return np.dtype(
        [
            ("index", "<i8"),
            ("due", "<i8"),
            ("time_s", "<f8"),
            ("lateness_s", "<f8"),
            ("chunk", "<u8"),
            ("step", "<i4"),
            ("reason", "<u4"),
            ("interrupts", "<u4"),  # holds that were sent after the period before, ahead of this one
            ("age_s", "<f8"),
            ("thought_age_s", "<f8"),
            ("requested", "<f4", (_NUM_ACTIONS,)),
            ("sent", "<f4", (_NUM_ACTIONS,)),
            ("targets", "<f4", (spec.num_joints,)),
            ("measured", "<f4", (spec.num_joints,)),
            ("measured_s", "<f8"),  # when; NaN before the first reading
            ("stages_s", "<f4", (len(STAGES),)),
            ("note", f"S{_NOTE_BYTES}"),
        ],
        align=True,
    )


Fields = dict[str, NDArray[Any]]
"""The fields of one record, by name; see `fields_of`."""


def fields_of(record: Records) -> Fields:
    """Returns arrays that lie in the record: of a number or a text, the array of one; of an array, that array.

    Naming a field of a record makes a new array each time, so who writes a record in each control period names its
    fields once.
    """
    assert record.dtype.names is not None
    named = {name: record[name] for name in record.dtype.names}
    return {name: field if field.ndim == 1 else field[0] for name, field in named.items()}


def put_text(record: Records | Fields, field: str, text: str | None) -> None:
    """Writes a text into a record, cut at a character where it is too long."""
    place = record[field]
    kept = (text or "").encode()[: place.dtype.itemsize]
    place[0] = kept.decode(errors="ignore").encode()


def read_text(record: Records | Fields, field: str) -> str:
    """Returns the text in a record."""
    return bytes(record[field][0]).decode(errors="replace")
