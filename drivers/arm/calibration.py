"""Calibration files: LeRobot's JSON, unchanged byte for byte, and beside it what LeRobot does not note.

LeRobot's file says per motor where the encoder's middle was put (`homing_offset`) and how far the joint was swept
(`range_min`, `range_max`, in counts after homing). It does not say which adapter the arm hung on, when it was swept,
whether the encoder's seam lay inside the sweep, or which count is the zero of the URDF: that is our sidecar
(`<name>.roboalign.json`). Without a sidecar the middle of the sweep is the middle of the joint's range.

A sidecar is of one calibration: it repeats offset and sweep, and is refused beside other ones (`find_stale_notes`).
Otherwise an arm that was calibrated again with LeRobot would keep the zeros of before, and be off by the difference.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from roboalign.drivers.arm.models import COUNTS_PER_TURN
from roboalign.sdk.errors import ConfigError

__all__ = [
    "CalibrationNotes",
    "MotorCalibration",
    "MotorNotes",
    "bind_notes",
    "find_stale_notes",
    "read_calibration",
    "read_notes",
    "sidecar_path",
    "write_calibration",
    "write_notes",
]

_FIELDS = ("id", "drive_mode", "homing_offset", "range_min", "range_max")
_BOUND = ("homing_offset", "range_min", "range_max")
_NOTES_VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class MotorCalibration:
    """One motor in LeRobot's calibration file; all values are raw counts."""

    id: int
    """Id on the bus."""
    drive_mode: int
    """1 turns the direction round: applied by the host for Feetech, by the servo itself for Dynamixel."""
    homing_offset: int
    """As in the servo's register: Feetech reports actual - offset, Dynamixel actual + offset."""
    range_min: int
    """Smallest position of the sweep, after homing."""
    range_max: int
    """Largest position of the sweep, after homing."""

    def __post_init__(self) -> None:
        if not 0 <= self.id < 0xFD:
            raise ConfigError(f"calibration: id is {self.id}, expected 0 to 252")
        if self.drive_mode not in (0, 1):
            raise ConfigError(f"calibration of id {self.id}: drive_mode is {self.drive_mode}, expected 0 or 1")
        if not self.range_min < self.range_max:
            found = f"range_min {self.range_min} is not below range_max {self.range_max}"
            raise ConfigError(f"calibration of id {self.id}: {found}; sweep the joint again: roboalign calibrate")
        if self.range_max - self.range_min >= COUNTS_PER_TURN:
            found = f"the range {self.range_min} to {self.range_max} is a turn or more"
            raise ConfigError(f"calibration of id {self.id}: {found}; sweep the joint again: roboalign calibrate")


@dataclass(frozen=True, kw_only=True, slots=True)
class MotorNotes:
    """What LeRobot's file does not say about one motor."""

    zero_count: float | None = None
    """Present position, in counts, at which the URDF's joint is zero; None means: derive it from the sweep."""
    direction: int = 1
    """-1 when the URDF's joint turns against the counts (after `drive_mode`), else 1."""
    closed_count: int | None = None
    """Gripper only: the position at which it is closed; None means the lower end of the sweep."""
    open_count: int | None = None
    """Gripper only: the position at which it is fully open; None means the upper end of the sweep."""
    seam_checked: bool = False
    """True when the samples of the sweep were unwrapped and the seam found outside."""
    homing_offset: int | None = None
    """The offset in the calibration that this was noted for."""
    range_min: int | None = None
    """Its lower end of the sweep."""
    range_max: int | None = None
    """Its upper end."""

    def __post_init__(self) -> None:
        if self.direction not in (-1, 1):
            raise ConfigError(f"calibration notes: direction is {self.direction}, expected 1 or -1")


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationNotes:
    """The sidecar of a calibration file."""

    arm: str
    """Key of `ARMS`."""
    date: str
    """When the arm was swept, ISO 8601."""
    adapter_serial: str | None = None
    """Serial number of the USB adapter the arm hung on; another one deserves a question."""
    motors: Mapping[str, MotorNotes] = field(default_factory=dict)
    """By motor name."""


def sidecar_path(calibration: Path) -> Path:
    """Returns where the notes of a calibration file are: `arm.json` -> `arm.roboalign.json`."""
    return calibration.with_suffix(".roboalign.json")


def bind_notes(notes: CalibrationNotes, calibration: Mapping[str, MotorCalibration]) -> CalibrationNotes:
    """Returns the notes with offset and sweep of the calibration that they are written for."""
    motors = {
        name: dataclasses.replace(note, **{key: getattr(calibration[name], key) for key in _BOUND})
        for name, note in notes.motors.items()
        if name in calibration
    }
    return dataclasses.replace(notes, motors=motors)


def find_stale_notes(notes: CalibrationNotes, calibration: Mapping[str, MotorCalibration]) -> str | None:
    """Returns how notes differ from the calibration they lie beside; None when they are of this one.

    Notes that do not say what they were made for may be of any calibration, and so count as different.
    """
    for name, note in notes.motors.items():
        motor = calibration.get(name)
        for key in _BOUND if motor is not None else ():
            noted, found = getattr(note, key), getattr(motor, key)
            if noted is None:
                return f"{name} lacks {key}, so it may be of another calibration"
            if noted != found:
                return f"{name} was noted for {key} {noted}, the calibration has {found}"
    return None


def read_calibration(path: Path) -> dict[str, MotorCalibration]:
    """Returns LeRobot's calibration by motor name, in the order of the file.

    Raises:
        ConfigError: The file is missing, no JSON, or an entry is not one motor's calibration.
    """
    motors: dict[str, MotorCalibration] = {}
    for name, entry in _read_json(path, "calibration").items():
        if not isinstance(entry, dict):
            raise ConfigError(f"{path}: {name} is {entry!r}, expected a table with {', '.join(_FIELDS)}")
        _check_fields(entry, _FIELDS, f"{path}: {name}")
        missing = [key for key in _FIELDS if key not in entry]
        if missing:
            raise ConfigError(f"{path}: {name} lacks {', '.join(missing)}; is this LeRobot's calibration file?")
        wrong = [key for key in _FIELDS if type(entry[key]) is not int]
        if wrong:
            raise ConfigError(f"{path}: {name}.{wrong[0]} is {entry[wrong[0]]!r}, expected a whole number of counts")
        try:
            motors[name] = MotorCalibration(**{key: int(entry[key]) for key in _FIELDS})
        except ConfigError as err:
            raise ConfigError(f"{path}: {name}: {err}") from err
    if not motors:
        raise ConfigError(f"{path} holds no motor; calibrate the arm: roboalign calibrate")
    return motors


def write_calibration(path: Path, motors: Mapping[str, MotorCalibration]) -> None:
    """Writes LeRobot's calibration file, byte for byte as LeRobot does. Replaces the file in one step."""
    _write_text(path, json.dumps({name: dataclasses.asdict(motor) for name, motor in motors.items()}, indent=4))


def read_notes(path: Path) -> CalibrationNotes:
    """Returns a sidecar.

    Raises:
        ConfigError: The file is missing, no JSON, of a newer version, or says something that cannot be.
    """
    content = _read_json(path, "calibration notes")
    version = content.pop("version", None)
    if version != _NOTES_VERSION:
        raise ConfigError(f"{path}: version is {version!r}, this roboalign reads {_NOTES_VERSION}; calibrate again")
    _check_fields(content, [item.name for item in dataclasses.fields(CalibrationNotes)], str(path))
    motors = content.pop("motors", {})
    if not isinstance(motors, dict):
        raise ConfigError(f"{path}: motors is {motors!r}, expected a table by motor name")
    known = [item.name for item in dataclasses.fields(MotorNotes)]
    for name, entry in motors.items():
        if not isinstance(entry, dict):
            raise ConfigError(f"{path}: motors.{name} is {entry!r}, expected a table")
        _check_fields(entry, known, f"{path}: motors.{name}")
    try:
        return CalibrationNotes(
            arm=str(content.get("arm", "")),
            date=str(content.get("date", "")),
            adapter_serial=None if content.get("adapter_serial") is None else str(content["adapter_serial"]),
            motors={name: MotorNotes(**entry) for name, entry in motors.items()},
        )
    except (ConfigError, TypeError) as err:
        raise ConfigError(f"{path}: {err}") from err


def write_notes(path: Path, notes: CalibrationNotes) -> None:
    """Writes a sidecar. Replaces the file in one step."""
    content = {"version": _NOTES_VERSION, **dataclasses.asdict(notes)}
    _write_text(path, json.dumps(content, indent=4) + "\n")


def _read_json(path: Path, what: str) -> dict[str, object]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as err:
        raise ConfigError(f"there is no {what} {path}; make one: roboalign calibrate") from err
    except (OSError, UnicodeDecodeError) as err:
        raise ConfigError(f"cannot read the {what} {path}: {err}") from err
    except json.JSONDecodeError as err:
        raise ConfigError(f"the {what} {path} is no JSON: {err}") from err
    if not isinstance(content, dict):
        raise ConfigError(f"the {what} {path} holds a {type(content).__name__}, expected a table by motor name")
    return content


def _check_fields(entry: Mapping[str, object], known: list[str] | tuple[str, ...], where: str) -> None:
    strange = sorted(set(entry) - set(known))
    if strange:
        raise ConfigError(f"{where} has the unknown field {strange[0]!r}; expected {', '.join(known)}")


def _write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
