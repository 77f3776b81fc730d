"""Reads the chain of joints between two links of a URDF file; standard library and numpy only.

Only what kinematics needs is read: joint types, origins, axes, limits. Inertia, meshes, transmissions, xacro and
`<safety_controller>` are ignored; a mimic joint inside the chain is refused.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from roboalign.sdk.errors import ConfigError

__all__ = ["JointChain", "read_chain"]

Float64Array = NDArray[np.float64]

_MOVABLE = ("revolute", "continuous", "prismatic")


@dataclass(frozen=True, kw_only=True, slots=True)
class JointChain:
    """The movable joints from a root link to a tip link, with the fixed joints folded in."""

    joint_names: tuple[str, ...]
    """Movable joints, root first."""
    lower: Float64Array
    """float64[J]: lower position limits, radians (metres for a prismatic joint)."""
    upper: Float64Array
    """float64[J]: upper position limits."""
    max_speed: Float64Array
    """float64[J]: speed limits per second."""
    origins: Float64Array
    """float64[J, 4, 4]: the fixed transform in front of each joint."""
    axes: Float64Array
    """float64[J, 3]: unit axis of each joint in its own frame."""
    is_prismatic: tuple[bool, ...]
    """True for a joint that slides."""
    tip: Float64Array
    """float64[4, 4]: the fixed transform behind the last joint."""

    def __post_init__(self) -> None:
        if not np.all(self.lower <= self.upper):
            raise ConfigError(f"joint limits: the lower ones {self.lower} exceed the upper ones {self.upper}")


def read_chain(path_or_text: str | Path, tip_link: str) -> JointChain:
    """Returns the chain from the root link to `tip_link`.

    Args:
        path_or_text: A file, or the XML itself (recognised by its leading `<`).
        tip_link: The link whose frame is the tool.

    Raises:
        ConfigError: The file is missing or no URDF, the tip is absent, or a joint is of an unsupported type.
    """
    root, where = _read_urdf(path_or_text)
    chain = _joints_to(root, tip_link, where)
    movable = [joint for joint in chain if joint.get("type") in _MOVABLE]
    if not movable:
        raise ConfigError(f"{where}: nothing moves between the root link and {tip_link!r}; choose another tip link")
    origins, pending = [], np.eye(4)
    for joint in chain:
        pending = pending @ _origin(joint, where)
        if joint.get("type") in _MOVABLE:
            origins.append(pending)
            pending = np.eye(4)
    limits = np.array([_limits(joint, where) for joint in movable])
    return JointChain(
        joint_names=tuple(joint.get("name", "") for joint in movable),
        lower=limits[:, 0],
        upper=limits[:, 1],
        max_speed=limits[:, 2],
        origins=np.array(origins),
        axes=np.array([_axis(joint, where) for joint in movable]),
        is_prismatic=tuple(joint.get("type") == "prismatic" for joint in movable),
        tip=pending,
    )


def _read_urdf(path_or_text: str | Path) -> tuple[ElementTree.Element, str]:
    """Returns the `<robot>` element and a name for it in messages."""
    is_text = isinstance(path_or_text, str) and path_or_text.lstrip().startswith("<")
    where = "URDF text" if is_text else f"URDF {path_or_text}"
    try:
        text = str(path_or_text) if is_text else Path(path_or_text).read_text(encoding="utf-8")
        root = ElementTree.fromstring(text)
    except (OSError, UnicodeDecodeError) as err:
        raise ConfigError(f"{where} cannot be read: {err}") from err
    except ElementTree.ParseError as err:
        raise ConfigError(f"{where} is not well-formed XML: {err}") from err
    if root.tag != "robot":
        raise ConfigError(f"{where} starts with <{root.tag}>, expected <robot>")
    return root, where


def _joints_to(root: ElementTree.Element, tip_link: str, where: str) -> list[ElementTree.Element]:
    """Returns the joints from the root link to `tip_link`, fixed ones included."""
    links = {link.get("name") for link in root.findall("link")}
    if tip_link not in links:
        names = ", ".join(sorted(str(name) for name in links))
        raise ConfigError(f"{where} has no link {tip_link!r}; its links are {names}")
    by_child = {_attribute(joint, "child", "link", where): joint for joint in root.findall("joint")}
    chain: list[ElementTree.Element] = []
    link = tip_link
    while link in by_child:
        joint = by_child.pop(link)
        kind = "mimic" if joint.find("mimic") is not None else joint.get("type")
        if kind not in (*_MOVABLE, "fixed"):
            choices = ", ".join((*_MOVABLE, "fixed"))
            raise ConfigError(f"{where}: joint {joint.get('name')!r} is {kind!r}, expected one of {choices}")
        chain.append(joint)
        link = _attribute(joint, "parent", "link", where)
    return chain[::-1]


def _attribute(joint: ElementTree.Element, tag: str, name: str, where: str) -> str:
    child = joint.find(tag)
    value = None if child is None else child.get(name)
    if value is None:
        raise ConfigError(f"{where}: joint {joint.get('name')!r} lacks <{tag} {name}=...>")
    return value


def _numbers(text: str, count: int, joint: ElementTree.Element, where: str) -> Float64Array:
    try:
        values = np.array([float(word) for word in text.split()])
    except ValueError as err:
        raise ConfigError(f"{where}: joint {joint.get('name')!r} has {text!r}, expected {count} numbers") from err
    if values.shape != (count,) or not np.isfinite(values).all():
        raise ConfigError(f"{where}: joint {joint.get('name')!r} has {text!r}, expected {count} finite numbers")
    return values


def _origin(joint: ElementTree.Element, where: str) -> Float64Array:
    """Returns the fixed transform of `<origin>`: fixed-axis roll, pitch, yaw, then the offset."""
    pose = np.eye(4)
    origin = joint.find("origin")
    if origin is None:
        return pose
    roll, pitch, yaw = _numbers(origin.get("rpy", "0 0 0"), 3, joint, where)
    cr, cp, cy = (math.cos(angle) for angle in (roll, pitch, yaw))
    sr, sp, sy = (math.sin(angle) for angle in (roll, pitch, yaw))
    pose[:3, :3] = (
        (cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr),
        (sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr),
        (-sp, cp * sr, cp * cr),
    )
    pose[:3, 3] = _numbers(origin.get("xyz", "0 0 0"), 3, joint, where)
    return pose


def _axis(joint: ElementTree.Element, where: str) -> Float64Array:
    axis = joint.find("axis")
    values = _numbers("1 0 0" if axis is None else axis.get("xyz", "1 0 0"), 3, joint, where)
    norm = float(np.linalg.norm(values))
    if norm < 1e-9:
        raise ConfigError(f"{where}: joint {joint.get('name')!r} moves but its axis is zero")
    unit: Float64Array = values / norm
    return unit


def _limits(joint: ElementTree.Element, where: str) -> tuple[float, float, float]:
    """Returns lower limit, upper limit and speed limit; a continuous joint has no position limits."""
    limit = joint.find("limit")
    if joint.get("type") == "continuous":
        speed = None if limit is None else limit.get("velocity")
        return -math.inf, math.inf, math.inf if speed is None else float(_numbers(speed, 1, joint, where)[0])
    lower, upper, speed = (_attribute(joint, "limit", name, where) for name in ("lower", "upper", "velocity"))
    low, high = _numbers(f"{lower} {upper}", 2, joint, where)
    return float(low), float(high), float(_numbers(speed, 1, joint, where)[0])
