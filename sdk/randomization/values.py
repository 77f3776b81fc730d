"""Every parameter of the randomisation, once: its meaning, its unit, what is possible, and its value when it is off.

One frozen dataclass a concern holds the values of one episode. A value a joint or an object has a slot for each: slot k
belongs to joint k of the arm, or to object k of the scene (from the ninth on, the slots are used again from the first).
"""

from __future__ import annotations

import math
from dataclasses import Field, dataclass, field, fields
from typing import Any

__all__ = [
    "CHANNELS",
    "NUM_JOINT_SLOTS",
    "NUM_OBJECT_SLOTS",
    "TABLE_TEXTURES",
    "BacklashValues",
    "BlurValues",
    "CameraPoseValues",
    "ColourValues",
    "Concern",
    "DampingValues",
    "DeadBandValues",
    "DelayValues",
    "DropoutValues",
    "ExposureValues",
    "FieldOfViewValues",
    "FrameAgeValues",
    "FrictionValues",
    "GainValues",
    "JpegValues",
    "LightValues",
    "MassValues",
    "NoiseValues",
    "ObservationNoiseValues",
    "Parameter",
    "RateLimitValues",
    "TextureValues",
    "WhiteBalanceValues",
    "parameters",
]

NUM_JOINT_SLOTS = 8
"""Values drawn for a parameter that every joint has its own of."""
NUM_OBJECT_SLOTS = 8
"""Values drawn for a parameter that every object has its own of."""
CHANNELS = ("red", "green", "blue")
"""Order of a parameter that every colour channel has its own of."""
TABLE_TEXTURES = ("flat", "checker", "noise", "gradient")
"""Patterns that the table can have; `flat` is none."""

_MAX_RAD = math.pi


@dataclass(frozen=True, kw_only=True, slots=True)
class Parameter:
    """What is fixed about one parameter."""

    name: str
    """Name of the field, with its unit."""
    unit: str
    """Unit for people; `1` for a pure number."""
    about: str
    """What it changes, in a few words."""
    off: float | int | str
    """The value that changes nothing."""
    low: float
    """Smallest possible value; unused for words."""
    high: float
    """Largest possible value; unused for words."""
    words: tuple[str, ...]
    """Possible words; empty for a number."""
    slots: int
    """Values drawn for an episode."""
    is_list: bool
    """True when every joint, object or channel has its own value."""

    @property
    def is_whole(self) -> bool:
        """True for a whole number."""
        return isinstance(self.off, int)


class Concern:
    """Base of the values of one concern: nothing but a common name for the type checker."""

    __slots__ = ()


def _value(
    off: float | int | str,
    unit: str,
    about: str,
    low: float = 0.0,
    high: float = 0.0,
    *,
    words: tuple[str, ...] = (),
    slots: int = 0,
) -> Any:
    """Declares a parameter; with `slots` the field is a tuple of so many values."""
    facts = {"off": off, "unit": unit, "about": about, "low": low, "high": high, "words": words}
    facts |= {"slots": slots or 1, "is_list": slots > 0}
    return field(default=(off,) * slots if slots else off, metadata=facts)


def parameters(concern: type[Concern]) -> tuple[Parameter, ...]:
    """Returns the parameters of a concern in order."""
    found: tuple[Field[object], ...] = fields(concern)  # type: ignore[arg-type] # every concern is a dataclass
    return tuple(Parameter(name=item.name, **item.metadata) for item in found)


@dataclass(frozen=True, kw_only=True, slots=True)
class CameraPoseValues(Concern):
    """Where the camera stands and points. The orbit keeps what it aims at in the middle; offset and rotation do not."""

    orbit_yaw_rad: float = _value(0.0, "rad", "camera carried around the vertical through its aim", -1.2, 1.2)
    orbit_pitch_rad: float = _value(0.0, "rad", "camera carried upwards around its aim", -0.5, 0.5)
    distance_scale: float = _value(1.0, "1", "distance from camera to aim", 0.5, 2.0)
    offset_x_m: float = _value(0.0, "m", "mounting error to the image's right", -0.2, 0.2)
    offset_y_m: float = _value(0.0, "m", "mounting error to the image's top", -0.2, 0.2)
    offset_z_m: float = _value(0.0, "m", "mounting error away from the scene", -0.2, 0.2)
    pan_rad: float = _value(0.0, "rad", "pointing error to the left", -0.3, 0.3)
    tilt_rad: float = _value(0.0, "rad", "pointing error upwards", -0.3, 0.3)
    roll_rad: float = _value(0.0, "rad", "rotation about the optical axis", -_MAX_RAD, _MAX_RAD)


@dataclass(frozen=True, kw_only=True, slots=True)
class FieldOfViewValues(Concern):
    """The lens."""

    scale: float = _value(1.0, "1", "field of view, as an angle", 0.5, 2.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class ExposureValues(Concern):
    """How much light the sensor collects."""

    stops: float = _value(0.0, "EV", "exposure; +1 doubles the light", -3.0, 3.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class WhiteBalanceValues(Concern):
    """Gains of the colour channels after the sensor; green stays."""

    red_gain: float = _value(1.0, "1", "gain of red, linear light", 0.5, 2.0)
    blue_gain: float = _value(1.0, "1", "gain of blue, linear light", 0.5, 2.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class NoiseValues(Concern):
    """Noise of the sensor, in linear light where white is 1; drawn anew for every frame."""

    shot_std: float = _value(0.0, "white", "noise of a white pixel from counting photons", 0.0, 0.3)
    read_std: float = _value(0.0, "white", "noise of a black pixel from reading it", 0.0, 0.1)


@dataclass(frozen=True, kw_only=True, slots=True)
class BlurValues(Concern):
    """Sharpness of the lens."""

    sigma_px: float = _value(0.0, "px at 96 px", "Gaussian blur; grows with the picture's size", 0.0, 4.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class JpegValues(Concern):
    """Compression on the way from the camera."""

    quality: int = _value(0, "1", "JPEG quality, 4:2:0; 0 sends the picture as it is", 0, 95)


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameAgeValues(Concern):
    """How old the newest picture is."""

    steps: int = _value(0, "control steps", "age of every picture when it arrives", 0, 20)


@dataclass(frozen=True, kw_only=True, slots=True)
class LightValues(Concern):
    """The lamp and the light of the room."""

    azimuth_rad: float = _value(0.0, "rad", "lamp carried around the vertical", -_MAX_RAD, _MAX_RAD)
    elevation_rad: float = _value(0.0, "rad", "lamp raised towards the vertical", -0.8, 0.6)
    ambient_scale: float = _value(1.0, "1", "light from everywhere", 0.2, 2.0)
    diffuse_scale: float = _value(1.0, "1", "light from the lamp", 0.0, 3.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class ColourValues(Concern):
    """Paint. Hues stay close enough that a red block is still called red."""

    object_hue_rad: tuple[float, ...] = _value(
        0.0, "rad", "turn of the hue of each object", -0.2, 0.2, slots=NUM_OBJECT_SLOTS
    )
    object_brightness: tuple[float, ...] = _value(
        1.0, "1", "brightness of each object", 0.4, 1.5, slots=NUM_OBJECT_SLOTS
    )
    table_tint: tuple[float, ...] = _value(1.0, "1", "red, green, blue of the table", 0.2, 1.25, slots=len(CHANNELS))
    robot_tint: tuple[float, ...] = _value(1.0, "1", "red, green, blue of the arm", 0.2, 1.1, slots=len(CHANNELS))


@dataclass(frozen=True, kw_only=True, slots=True)
class TextureValues(Concern):
    """The pattern on the table."""

    table: str = _value("flat", "", "pattern on the table", words=TABLE_TEXTURES)
    contrast: float = _value(0.0, "1", "how much darker the pattern's darkest spot is", 0.0, 0.8)
    cell_m: float = _value(0.05, "m", "size of the pattern's cells", 0.01, 0.5)


@dataclass(frozen=True, kw_only=True, slots=True)
class MassValues(Concern):
    """Weight of what stands on the table."""

    object_scale: tuple[float, ...] = _value(1.0, "1", "mass of each object", 0.1, 10.0, slots=NUM_OBJECT_SLOTS)


@dataclass(frozen=True, kw_only=True, slots=True)
class FrictionValues(Concern):
    """Friction coefficients; two bodies in contact multiply theirs."""

    object_scale: tuple[float, ...] = _value(1.0, "1", "friction of each object", 0.2, 3.0, slots=NUM_OBJECT_SLOTS)
    table_scale: float = _value(1.0, "1", "friction of the table", 0.2, 3.0)
    finger_scale: float = _value(1.0, "1", "friction of the fingers", 0.2, 3.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class DampingValues(Concern):
    """What slows motion down without contact."""

    joint_nm_s_rad: tuple[float, ...] = _value(
        0.0, "N m s/rad", "viscous friction added to each joint", 0.0, 20.0, slots=NUM_JOINT_SLOTS
    )
    object_scale: tuple[float, ...] = _value(
        1.0, "1", "damping of each object's motion", 0.0, 25.0, slots=NUM_OBJECT_SLOTS
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class GainValues(Concern):
    """Stiffness of the servos."""

    position_scale: tuple[float, ...] = _value(
        1.0, "1", "proportional gain of each joint's servo", 0.1, 2.0, slots=NUM_JOINT_SLOTS
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class DelayValues(Concern):
    """Time from sending a command to the servo taking it."""

    bus_ms: float = _value(0.0, "ms", "delay common to all joints and the gripper", 0.0, 300.0)
    joint_ms: tuple[float, ...] = _value(0.0, "ms", "further delay of each joint", 0.0, 100.0, slots=NUM_JOINT_SLOTS)


@dataclass(frozen=True, kw_only=True, slots=True)
class DeadBandValues(Concern):
    """Errors that a servo ignores."""

    width_rad: tuple[float, ...] = _value(
        0.0, "rad", "each joint stands until the target is further away", 0.0, 0.05, slots=NUM_JOINT_SLOTS
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class BacklashValues(Concern):
    """Play of the gears."""

    play_rad: tuple[float, ...] = _value(
        0.0, "rad", "motion each joint loses on reversing", 0.0, 0.1, slots=NUM_JOINT_SLOTS
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class RateLimitValues(Concern):
    """How fast the servos can turn."""

    speed_scale: tuple[float, ...] = _value(
        1.0, "1", "top speed of each joint; 1 limits nothing", 0.1, 1.0, slots=NUM_JOINT_SLOTS
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class ObservationNoiseValues(Concern):
    """Errors of the measured joints and gripper; the tool's pose follows from the measured joints."""

    joint_std_rad: float = _value(0.0, "rad", "noise of every joint, drawn anew each step", 0.0, 0.1)
    joint_bias_rad: tuple[float, ...] = _value(
        0.0, "rad", "error of each joint's zero, fixed in an episode", -0.1, 0.1, slots=NUM_JOINT_SLOTS
    )
    gripper_std_m: float = _value(0.0, "m", "noise of the gripper's width, drawn anew each step", 0.0, 0.01)


@dataclass(frozen=True, kw_only=True, slots=True)
class DropoutValues(Concern):
    """What gets lost on the way; the last one that arrived is seen again."""

    frame_share: float = _value(0.0, "1", "probability that a picture is lost", 0.0, 0.9)
    state_share: float = _value(0.0, "1", "probability that a reading of the joints is lost", 0.0, 0.9)
