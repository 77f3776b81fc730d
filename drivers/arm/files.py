"""`robot.toml`: everything that is particular to one arm on one desk. Read, checked, written.

    arm = "so101"
    port = "/dev/serial/by-id/usb-1a86_USB_Single_Serial_5A7A018090-if00"
    calibration = "so101.json"            # LeRobot's file, relative to this one

    [limits.shoulder_pan]                 # only narrower than the arm's own
    lower_rad = -1.2
    upper_rad = 1.2

    [cameras.front]
    device = "/dev/video0"
    crop = [80, 0, 480, 480]              # x, y, width, height in pixels of the camera
    size_px = 96

A file may be JSON as well (`robot.json`), which is what Python 3.10 can read.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from roboalign.drivers.arm.models import ArmModel, find_arm
from roboalign.drivers.arm.tables import Table
from roboalign.sdk.errors import ConfigError
from roboalign.sdk.settings_file import read_settings

__all__ = [
    "SIMULATED_PREFIX",
    "CameraFile",
    "Geometry",
    "JointLimit",
    "RobotFile",
    "read_robot_file",
    "robot_from_json",
    "robot_to_json",
    "write_robot_file",
]

SIMULATED_PREFIX = "sim:"
"""Begins the `arm` of a robot file whose arm is simulated (`roboalign.drivers.arm.simulation`)."""
_DEFAULT_SIZE_PX = 96


@dataclass(frozen=True, kw_only=True, slots=True)
class JointLimit:
    """Limits of one joint that are narrower than the arm's own; None keeps the arm's."""

    lower_rad: float | None = None
    """Lower position limit."""
    upper_rad: float | None = None
    """Upper position limit."""
    max_speed_rad_s: float | None = None
    """Speed limit."""

    def __post_init__(self) -> None:
        for name in ("lower_rad", "upper_rad", "max_speed_rad_s"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise ConfigError(f"{name} is {value}, expected a finite number")
        if self.lower_rad is not None and self.upper_rad is not None and not self.lower_rad < self.upper_rad:
            raise ConfigError(f"lower_rad {self.lower_rad} is not below upper_rad {self.upper_rad}")
        if self.max_speed_rad_s is not None and self.max_speed_rad_s <= 0:
            raise ConfigError(f"max_speed_rad_s is {self.max_speed_rad_s}, expected more than 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class CameraFile:
    """One camera: which, and which part of its picture the policy sees."""

    device: str
    """Path (`/dev/v4l/by-path/...`) or number of the device."""
    size_px: int = _DEFAULT_SIZE_PX
    """Height and width of the picture that the policy gets."""
    crop: tuple[int, int, int, int] | None = None
    """x, y, width, height in pixels of the camera; None takes the largest square in the middle."""
    width_px: int = 640
    """Width that the camera is asked for."""
    height_px: int = 480
    """Height that the camera is asked for."""
    rate_hz: float = 30.0
    """Pictures per second that the camera is asked for."""

    def __post_init__(self) -> None:
        for name in ("size_px", "width_px", "height_px", "rate_hz"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected more than 0")
        if self.crop is None:
            return
        x, y, width, height = self.crop
        if min(x, y) < 0 or min(width, height) <= 0 or x + width > self.width_px or y + height > self.height_px:
            raise ConfigError(
                f"crop {list(self.crop)} (x, y, width, height) is not inside the {self.width_px} x {self.height_px} "
                "picture of the camera"
            )
        if width != height:
            raise ConfigError(f"crop {list(self.crop)} is not square, but the policy's picture is")


@dataclass(frozen=True, kw_only=True, slots=True)
class Geometry:
    """What an arm needs that no simulated arm of ours has: its URDF and where it may go."""

    urdf: Path
    """URDF of the arm."""
    tool_link: str
    """Link whose frame is the tool, pointing down when z does."""
    home_rad: tuple[float, ...]
    """Joints at the start of an episode, the tool pointing down."""
    park_rad: tuple[float, ...]
    """Joints in which the arm can be left without torque."""
    workspace_lower_m: tuple[float, ...]
    """Smallest tool position that a command may ask for."""
    workspace_upper_m: tuple[float, ...]
    """Largest tool position that a command may ask for."""
    gripper_max_width_m: float
    """Distance between the fingers when fully open."""
    max_step_m: float = 0.03
    """Largest displacement in one control period."""
    max_step_rad: float = 0.2
    """Largest yaw change in one control period."""

    def __post_init__(self) -> None:
        for name in ("workspace_lower_m", "workspace_upper_m"):
            if len(getattr(self, name)) != 3:
                raise ConfigError(f"{name} has {len(getattr(self, name))} numbers, expected x, y, z")
        if len(self.home_rad) != len(self.park_rad):
            raise ConfigError(f"home_rad has {len(self.home_rad)} joints, park_rad {len(self.park_rad)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class RobotFile:
    """One arm on one desk. Paths are absolute."""

    arm: str
    """Key of `ARMS`."""
    port: str
    """Serial port; prefer `/dev/serial/by-id/...`, which survives a replug."""
    calibration: Path
    """LeRobot's calibration file; our notes lie beside it."""
    baud: int | None = None
    """Rate of the bus; None is the arm's own."""
    name: str | None = None
    """What messages call it; None is the arm's name."""
    control_rate_hz: float = 10.0
    """Rate at which a policy acts; the bus runs at its own."""
    park_after_s: float = 0.5
    """Silence of the policy after which the arm parks; a slow policy that thinks between its actions needs more."""
    limits: Mapping[str, JointLimit] = field(default_factory=dict)
    """By joint name."""
    cameras: Mapping[str, CameraFile] = field(default_factory=dict)
    """By the name that a bundle asks for."""
    geometry: Geometry | None = None
    """None takes the simulated arm of the same links."""

    def __post_init__(self) -> None:
        arm = find_arm(self.arm)
        if not self.port:
            raise ConfigError("port is empty; list them with: roboalign doctor")
        if self.baud is not None and self.baud <= 0:
            raise ConfigError(f"baud is {self.baud}, expected e.g. {arm.baud}")
        if not (math.isfinite(self.control_rate_hz) and 0 < self.control_rate_hz <= 50):
            raise ConfigError(f"control_rate_hz is {self.control_rate_hz}, expected above 0, at most 50")
        if not (math.isfinite(self.park_after_s) and 0.2 <= self.park_after_s <= 60):
            raise ConfigError(f"park_after_s is {self.park_after_s}, expected 0.2 to 60")
        for name in self.limits:
            if name == arm.gripper.name:
                raise ConfigError(f"limits.{name}: the gripper is limited by its calibration; limit arm joints here")
            arm.motor(name)
        sizes = {name: camera.size_px for name, camera in self.cameras.items()}
        if len(set(sizes.values())) > 1:
            raise ConfigError(f"cameras have different size_px {sizes}; a policy sees one size")

    @property
    def model(self) -> ArmModel:
        """The kind of arm."""
        return find_arm(self.arm)

    @property
    def label(self) -> str:
        """What messages call it."""
        return self.name or self.arm

    @property
    def image_size_px(self) -> int:
        """Height and width of every camera picture."""
        return next((camera.size_px for camera in self.cameras.values()), _DEFAULT_SIZE_PX)


def read_robot_file(path: str | Path) -> RobotFile:
    """Returns the robot in a `.toml` or `.json` file; relative paths in it are relative to it.

    Raises:
        ConfigError: The file cannot be read, or a field is missing, unknown, or cannot be; the message names it.
    """
    file = Path(path)
    return _robot(read_settings(file, "robot file"), file)


def robot_from_json(content: Mapping[str, object]) -> RobotFile:
    """Returns the robot that `robot_to_json` wrote, for another process."""
    return _robot(content, Path("/robot"))


def robot_to_json(robot: RobotFile) -> str:
    """Returns a robot as one line of JSON with absolute paths."""
    return json.dumps(_plain(robot, None))


def _robot(content: Mapping[str, object], file: Path) -> RobotFile:
    top = Table(content, str(file))
    if str(content.get("arm")).startswith(SIMULATED_PREFIX):
        raise ConfigError(f"{file}: arm is {content['arm']!r}, which has no servos; name the file of an arm on a port")
    limits = {name: _limit(table) for name, table in top.tables("limits").items()}
    cameras = {name: _camera(table) for name, table in top.tables("cameras").items()}
    geometry = top.table("geometry")
    return top.build(
        RobotFile,
        arm=top.text("arm"),
        port=top.text("port"),
        calibration=_absolute(file, top.text("calibration")),
        baud=top.optional(top.whole, "baud"),
        name=top.optional(top.text, "name"),
        control_rate_hz=top.number("control_rate_hz", 10.0),
        park_after_s=top.number("park_after_s", 0.5),
        limits=limits,
        cameras=cameras,
        geometry=None if geometry is None else _geometry(geometry, file),
    )


def _limit(table: Table) -> JointLimit:
    names = ("lower_rad", "upper_rad", "max_speed_rad_s")
    return table.build(JointLimit, **{name: table.optional(table.number, name) for name in names})


def _camera(table: Table) -> CameraFile:
    device = str(table.whole("device")) if table.has_whole("device") else table.text("device")
    crop = table.wholes("crop", 4) if "crop" in table else None
    return table.build(
        CameraFile,
        device=device,
        crop=crop,
        size_px=table.whole("size_px", _DEFAULT_SIZE_PX),
        width_px=table.whole("width_px", 640),
        height_px=table.whole("height_px", 480),
        rate_hz=table.number("rate_hz", 30.0),
    )


def _geometry(table: Table, file: Path) -> Geometry:
    return table.build(
        Geometry,
        urdf=_absolute(file, table.text("urdf")),
        tool_link=table.text("tool_link"),
        home_rad=table.numbers("home_rad"),
        park_rad=table.numbers("park_rad"),
        workspace_lower_m=table.numbers("workspace_lower_m"),
        workspace_upper_m=table.numbers("workspace_upper_m"),
        gripper_max_width_m=table.number("gripper_max_width_m"),
        max_step_m=table.number("max_step_m", 0.03),
        max_step_rad=table.number("max_step_rad", 0.2),
    )


def _absolute(file: Path, text: str) -> Path:
    return Path(os.path.normpath(file.absolute().parent / Path(text).expanduser()))


def write_robot_file(path: str | Path, robot: RobotFile) -> None:
    """Writes a robot file that `read_robot_file` reads back equal. Replaces the file in one step."""
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    content = _plain(robot, file.absolute().parent)
    text = json.dumps(content, indent=4) + "\n" if file.suffix == ".json" else _toml(content)
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(file)


def _plain(value: object, folder: Path | None) -> dict[str, object]:
    """Returns the fields of a settings object that are set, paths relative to `folder` where they lie inside."""
    content: dict[str, object] = {}
    for item in dataclasses.fields(value):  # type: ignore[arg-type]  # only settings objects are passed
        found = getattr(value, item.name)
        if dataclasses.is_dataclass(found):
            content[item.name] = _plain(found, folder)
        elif isinstance(found, Mapping):
            content[item.name] = {name: _plain(entry, folder) for name, entry in found.items()}
        elif isinstance(found, Path):
            is_inside = folder is not None and found.is_relative_to(folder)
            content[item.name] = str(found.relative_to(folder) if is_inside and folder is not None else found)
        elif found is not None:
            content[item.name] = list(found) if isinstance(found, tuple) else found
    return content


def _toml(content: Mapping[str, object], prefix: str = "") -> str:
    """Returns TOML: what is plain first, then the tables. JSON's strings and numbers are TOML's too."""
    lines = [f"{key} = {json.dumps(item)}" for key, item in content.items() if not isinstance(item, Mapping)]
    blocks = ["\n".join(lines) + "\n"] if lines else []
    for key, item in content.items():
        if isinstance(item, Mapping) and item:
            name = f"{prefix}{key if key.replace('_', '').replace('-', '').isalnum() else json.dumps(key)}"
            is_bare = all(isinstance(inner, Mapping) for inner in item.values())
            blocks.append(("" if is_bare else f"[{name}]\n") + _toml(item, f"{name}."))
    return "\n".join(blocks)
