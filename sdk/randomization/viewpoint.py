"""Where a camera ends up, and where the lamp: plain geometry in the base frame, z up."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from roboalign.sdk.randomization.domain import DomainSample
from roboalign.sdk.randomization.values import CameraPoseValues

__all__ = ["Lamp", "Viewpoint", "move_camera", "move_lamp"]

Point = tuple[float, float, float]
_Vector = NDArray[np.float64]

_STEEPEST_RAD = math.radians(88.0)  # further up, "up" in the picture would be undefined


@dataclass(frozen=True, kw_only=True, slots=True)
class Viewpoint:
    """A pinhole camera."""

    eye_m: Point
    """Where it is."""
    aim_m: Point
    """A point in the middle of the picture."""
    up: Point
    """A direction that points up in the picture."""
    fov_deg: float
    """Angle between the picture's top and bottom."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Lamp:
    """The light of a scene."""

    direction: Point
    """From the scene towards the lamp; only its direction counts."""
    ambient: float
    """Share of light from everywhere."""
    diffuse: float
    """Share of light from the lamp."""


def move_camera(viewpoint: Viewpoint, domain: DomainSample) -> Viewpoint:
    """Returns the camera as it is mounted in this episode; with pose and lens off it is the one given, bit by bit."""
    fov_deg = viewpoint.fov_deg * domain.field_of_view.scale
    pose = domain.camera_pose
    if pose == CameraPoseValues():
        return Viewpoint(eye_m=viewpoint.eye_m, aim_m=viewpoint.aim_m, up=viewpoint.up, fov_deg=fov_deg)
    aim = np.array(viewpoint.aim_m)
    back = _turned_on_sphere(np.array(viewpoint.eye_m) - aim, pose.orbit_yaw_rad, pose.orbit_pitch_rad)
    back *= pose.distance_scale
    axes = _axes(back, np.array(viewpoint.up))
    offset = axes.T @ (pose.offset_x_m, pose.offset_y_m, pose.offset_z_m)
    eye = aim + back + offset
    axes = _rotation(pose) @ axes
    forward = -axes[2] * float(np.linalg.norm(back))
    return Viewpoint(eye_m=_point(eye), aim_m=_point(eye + forward), up=_point(axes[1]), fov_deg=fov_deg)


def move_lamp(lamp: Lamp, domain: DomainSample) -> Lamp:
    """Returns the light of this episode; with light off it is the one given, bit by bit."""
    light = domain.light
    direction = lamp.direction
    if light.azimuth_rad != 0.0 or light.elevation_rad != 0.0:
        direction = _point(_turned_on_sphere(np.array(direction), light.azimuth_rad, light.elevation_rad))
    return Lamp(
        direction=direction, ambient=lamp.ambient * light.ambient_scale, diffuse=lamp.diffuse * light.diffuse_scale
    )


def _turned_on_sphere(vector: _Vector, yaw_rad: float, pitch_rad: float) -> _Vector:
    """Returns the vector carried around the vertical and then upwards, its length kept."""
    x, y, z = vector.tolist()
    length, flat = math.sqrt(x * x + y * y + z * z), math.hypot(x, y)
    azimuth = math.atan2(y, x) + yaw_rad
    elevation = min(math.atan2(z, flat) + pitch_rad, _STEEPEST_RAD)
    flat = length * math.cos(elevation)
    return np.array([flat * math.cos(azimuth), flat * math.sin(azimuth), length * math.sin(elevation)])


def _axes(back: _Vector, up: _Vector) -> _Vector:
    """Returns float64[3, 3]: the picture's right, its top, and the way from the scene to the camera, as rows."""
    back = back / np.linalg.norm(back)
    right = np.cross(up, back)
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(back, right), back])


def _rotation(pose: CameraPoseValues) -> _Vector:
    """Returns float64[3, 3] that turns the camera's axes (rows): roll about its own back, then tilt, then pan."""
    pan, tilt, roll = pose.pan_rad, pose.tilt_rad, pose.roll_rad
    turns = []
    for axis, angle in ((1, pan), (0, tilt), (2, roll)):
        turn = np.eye(3)
        first, second = [(1, 2), (2, 0), (0, 1)][axis]
        turn[first, first] = turn[second, second] = math.cos(angle)
        turn[first, second], turn[second, first] = math.sin(angle), -math.sin(angle)
        turns.append(turn)
    rotation: _Vector = turns[2] @ turns[1] @ turns[0]
    return rotation


def _point(vector: _Vector) -> Point:
    x, y, z = vector.tolist()
    return x, y, z
