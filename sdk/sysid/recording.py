"""What a wiggle left behind: targets, readings, their times, and which robot it was. One JSON file."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roboalign.sdk.errors import DataError
from roboalign.sdk.robot import JointDrive, JointReading
from roboalign.sdk.sysid.camera import CameraTrace
from roboalign.sdk.types import RobotSpec

__all__ = ["RECORDING_FORMAT", "Recording"]

Float64Array = NDArray[np.float64]

RECORDING_FORMAT = 1
"""Version of the file."""
_DIGITS = 7
_MIN_READINGS = 500
_ARRAYS = ("sent_s", "target_rad", "target_width_m", "read_s", "position_rad", "width_m")


@dataclass(frozen=True, kw_only=True)
class Recording:
    """Targets and readings of one robot, in order of time; `[K]` or `[K, J]`, one row a target that was sent."""

    robot: str
    """Name in the robot's spec."""
    joint_names: tuple[str, ...]
    """Arm joints in the order of all columns."""
    max_speed_rad_s: tuple[float, ...]
    """Speed limit of each joint."""
    rate_hz: float
    """Targets a second."""
    path: str
    """How targets become motion, see `JointDrive`."""
    setpoint_speed_rad_s: tuple[float, ...]
    """See `JointDrive`."""
    resolution_rad: float
    """Step of the encoders."""
    body: str | None
    """The simulated arm with the same links."""
    has_gripper_motor: bool
    """See `JointDrive`."""
    gripper_max_width_m: float
    """Distance between the fingers when fully open."""
    start_rad: Float64Array
    """float64[J], the targets before the first."""
    sent_s: Float64Array
    """When each target was sent."""
    target_rad: Float64Array
    """Joint targets."""
    target_width_m: Float64Array
    """Gripper targets."""
    read_s: Float64Array
    """When the joints were read."""
    position_rad: Float64Array
    """Joints as read."""
    width_m: Float64Array
    """Gripper as read."""
    camera: CameraTrace | None = None
    """What the pictures did; None without a camera."""
    end: str = "complete"
    """`complete`, or why the wiggle ended before its time."""

    def __post_init__(self) -> None:
        count, joints = len(self.sent_s), len(self.joint_names)
        for name in _ARRAYS:
            value = getattr(self, name)
            wanted = (count, joints) if name in ("target_rad", "position_rad") else (count,)
            if value.shape != wanted:
                raise DataError(f"the recording's {name} has shape {value.shape}, expected {wanted}")
            if not np.isfinite(value).all():
                raise DataError(f"the recording's {name} holds numbers that are not finite; record it again")
        for name in ("sent_s", "read_s"):
            if count > 1 and (np.diff(getattr(self, name)) <= 0).any():
                raise DataError(
                    f"the recording's {name} does not grow: without the time of every row no delay can be told; record "
                    "it again with roboalign sysid"
                )

    @classmethod
    def of(
        cls, spec: RobotSpec, rate_hz: float, drive: JointDrive, readings: Sequence[JointReading], *, end: str
    ) -> Recording:
        """Returns the recording of what a robot read.

        Raises:
            DataError: There is too little of it, or rows have no times of their own.
        """
        if len(readings) < 2:
            raise DataError(
                f"only {len(readings)} readings were recorded before the end ({end}); nothing can be fitted"
            )
        columns = {
            "sent_s": [item.sent_s for item in readings],
            "target_rad": [item.target_rad for item in readings],
            "target_width_m": [item.target_width_m for item in readings],
            "read_s": [item.time_s for item in readings],
            "position_rad": [item.joint_pos_rad for item in readings],
            "width_m": [item.gripper_width_m for item in readings],
        }
        arrays: dict[str, Any] = {name: np.array(values, np.float64) for name, values in columns.items()}
        return cls(
            robot=spec.name,
            joint_names=spec.joint_names,
            max_speed_rad_s=spec.joint_max_speed_rad_s,
            rate_hz=rate_hz,
            path=drive.path,
            setpoint_speed_rad_s=drive.setpoint_speed_rad_s,
            resolution_rad=drive.resolution_rad,
            body=drive.body,
            has_gripper_motor=drive.has_gripper_motor,
            gripper_max_width_m=spec.gripper_max_width_m,
            start_rad=np.array(readings[0].target_rad),
            end=end,
            **arrays,
        )

    def shifted(self, seconds: float) -> Recording:
        """Returns the same with other times."""
        return dataclasses.replace(self, sent_s=self.sent_s + seconds, read_s=self.read_s + seconds)

    def require(self, spec: RobotSpec) -> None:
        """Refuses the trace of another robot.

        Raises:
            DataError: Joints or speed limits differ.
        """
        if self.joint_names != spec.joint_names:
            found = f"the recording is of {self.robot} with the joints {', '.join(self.joint_names)}"
            raise DataError(f"{found}; {spec.name} has {', '.join(spec.joint_names)}: give its own recording")
        if not np.allclose(self.max_speed_rad_s, spec.joint_max_speed_rad_s, rtol=1e-3):
            found = f"the recording is of {self.robot} with speed limits of {self.max_speed_rad_s} rad/s"
            raise DataError(f"{found}; {spec.name} has {spec.joint_max_speed_rad_s}: record it again")

    def require_enough(self) -> None:
        """Raises DataError when there is too little to fit anything."""
        if len(self.sent_s) < _MIN_READINGS:
            raise DataError(
                f"the recording holds {len(self.sent_s)} readings, expected at least {_MIN_READINGS}; it ended "
                f"because: {self.end}"
            )

    def save(self, path: Path) -> None:
        """Writes the file under a temporary name, then renames it."""
        content: dict[str, object] = {"format": RECORDING_FORMAT}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, np.ndarray):
                value = np.round(value, _DIGITS).tolist()
            content[field.name] = dataclasses.asdict(value) if isinstance(value, CameraTrace) else value
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path) -> Recording:
        """Returns the recording in a file, or in the folder that `roboalign sysid` wrote.

        Raises:
            DataError: It cannot be read, is of another version, or lacks something, such as the times.
        """
        path = path / "recording.json" if path.is_dir() else path
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as err:
            raise DataError(f"cannot read the recording {path}: {err}") from err
        if not isinstance(content, Mapping):
            raise DataError(f"{path} holds a {type(content).__name__}, expected a recording of roboalign sysid")
        version = content.get("format")
        if version != RECORDING_FORMAT:
            raise DataError(f"{path} has format {version!r}, this version reads {RECORDING_FORMAT}")
        names = [field.name for field in dataclasses.fields(cls)]
        missing = [name for name in names if name not in content]
        if missing:
            hint = ": without times no delay can be told" if {"sent_s", "read_s"} & set(missing) else ""
            raise DataError(f"{path} lacks {', '.join(missing)}{hint}; record it with roboalign sysid")
        values = {name: content[name] for name in names}
        try:
            for name in (*_ARRAYS, "start_rad"):
                values[name] = np.array(values[name], np.float64)
            for name in ("joint_names", "max_speed_rad_s", "setpoint_speed_rad_s"):
                values[name] = tuple(values[name])
            if values["camera"] is not None:
                values["camera"] = CameraTrace(**{name: tuple(many) for name, many in values["camera"].items()})
            return cls(**values)
        except (TypeError, ValueError, AttributeError) as err:
            raise DataError(f"{path} is damaged: {err}") from err
