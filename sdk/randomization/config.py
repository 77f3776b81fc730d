"""What may be drawn for each concern: one frozen group of ranges a concern, switched off unless a range is given.

What a parameter means, its unit and its limits stand in `values`, under the same names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from roboalign.sdk.errors import ConfigError
from roboalign.sdk.randomization.ranges import Choice, Each, Integers, Range, Value, fixed, intervals
from roboalign.sdk.randomization.values import (
    BacklashValues,
    BlurValues,
    CameraPoseValues,
    ColourValues,
    Concern,
    DampingValues,
    DeadBandValues,
    DelayValues,
    DropoutValues,
    ExposureValues,
    FieldOfViewValues,
    FrameAgeValues,
    FrictionValues,
    GainValues,
    JpegValues,
    LightValues,
    MassValues,
    NoiseValues,
    ObservationNoiseValues,
    Parameter,
    RateLimitValues,
    TextureValues,
    WhiteBalanceValues,
    parameters,
)

__all__ = [
    "Backlash",
    "Blur",
    "CameraPose",
    "Colours",
    "ConcernRanges",
    "Damping",
    "DeadBand",
    "Delay",
    "Dropouts",
    "Exposure",
    "FieldOfView",
    "FrameAge",
    "Friction",
    "Gain",
    "Jpeg",
    "Light",
    "Mass",
    "Noise",
    "ObservationNoise",
    "RateLimit",
    "Textures",
    "WhiteBalance",
    "check_range",
]

_ZERO, _ONE, _NONE, _FLAT, _CELL = fixed(0.0), fixed(1.0), fixed(0), fixed("flat"), fixed(0.05)


@dataclass(frozen=True, kw_only=True, slots=True)
class ConcernRanges:
    """Base of the ranges of one concern; checks them against what is possible."""

    key: ClassVar[str]
    """Name of the concern, in files and records."""
    values: ClassVar[type[Concern]]
    """The values that are drawn."""

    def __post_init__(self) -> None:
        for parameter in parameters(self.values):
            check_range(f"{self.key}.{parameter.name}", getattr(self, parameter.name), parameter)

    @property
    def is_off(self) -> bool:
        """True when nothing can be drawn but what changes nothing."""
        return all(getattr(self, item.name) == fixed(item.off) for item in parameters(self.values))

    def draw(self, streams: Mapping[str, np.random.Generator]) -> Concern:
        """Returns the values of one episode; every parameter draws from the stream of its own name."""
        drawn: dict[str, Value | tuple[Value, ...]] = {}
        for item in parameters(self.values):
            many = getattr(self, item.name).draw(streams[item.name], item.slots)
            drawn[item.name] = many if item.is_list else many[0]
        return self.values(**drawn)


def check_range(where: str, found: object, parameter: Parameter) -> None:
    """Raises ConfigError when the range is of the wrong kind for the parameter, or leaves what is possible."""
    if not isinstance(found, Range):
        raise ConfigError(f"{where} is {found!r}, expected a range such as Uniform(0.9, 1.1) or fixed(1.0)")
    if isinstance(found, Each):
        if not parameter.is_list or len(found.ranges) != parameter.slots:
            count = parameter.slots if parameter.is_list else "no"
            raise ConfigError(f"{where} holds {len(found.ranges)} ranges, one for each joint, expected {count} of them")
        for item in found.ranges:
            check_range(where, item, parameter)
        return
    if parameter.words:
        words = found.values if isinstance(found, Choice) else (found,)
        unknown = [word for word in words if word not in parameter.words]
        if unknown:
            raise ConfigError(f"{where} is {unknown[0]!r}; choose from {', '.join(parameter.words)}")
        return
    if isinstance(found, Choice) and any(isinstance(value, str) for value in found.values):
        raise ConfigError(f"{where} is {found.values}, expected numbers")
    is_whole = isinstance(found, Integers) or (
        isinstance(found, Choice) and all(isinstance(value, int) for value in found.values)
    )
    if parameter.is_whole and not is_whole:
        raise ConfigError(f"{where} is {found}, expected whole numbers: Integers(low, high) or a Choice of them")
    for low, high in intervals(found):
        if low < parameter.low or high > parameter.high:
            raise ConfigError(
                f"{where} is {found}, possible is {parameter.low:g} to {parameter.high:g} {parameter.unit}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class CameraPose(ConcernRanges):
    """Where the camera stands and points."""

    key: ClassVar[str] = "camera_pose"
    values: ClassVar[type[Concern]] = CameraPoseValues

    orbit_yaw_rad: Range = _ZERO
    orbit_pitch_rad: Range = _ZERO
    distance_scale: Range = _ONE
    offset_x_m: Range = _ZERO
    offset_y_m: Range = _ZERO
    offset_z_m: Range = _ZERO
    pan_rad: Range = _ZERO
    tilt_rad: Range = _ZERO
    roll_rad: Range = _ZERO


@dataclass(frozen=True, kw_only=True, slots=True)
class FieldOfView(ConcernRanges):
    """The lens."""

    key: ClassVar[str] = "field_of_view"
    values: ClassVar[type[Concern]] = FieldOfViewValues

    scale: Range = _ONE


@dataclass(frozen=True, kw_only=True, slots=True)
class Exposure(ConcernRanges):
    """How much light the sensor collects."""

    key: ClassVar[str] = "exposure"
    values: ClassVar[type[Concern]] = ExposureValues

    stops: Range = _ZERO


@dataclass(frozen=True, kw_only=True, slots=True)
class WhiteBalance(ConcernRanges):
    """Gains of the colour channels."""

    key: ClassVar[str] = "white_balance"
    values: ClassVar[type[Concern]] = WhiteBalanceValues

    red_gain: Range = _ONE
    blue_gain: Range = _ONE


@dataclass(frozen=True, kw_only=True, slots=True)
class Noise(ConcernRanges):
    """Noise of the sensor."""

    key: ClassVar[str] = "noise"
    values: ClassVar[type[Concern]] = NoiseValues

    shot_std: Range = _ZERO
    read_std: Range = _ZERO


@dataclass(frozen=True, kw_only=True, slots=True)
class Blur(ConcernRanges):
    """Sharpness of the lens."""

    key: ClassVar[str] = "blur"
    values: ClassVar[type[Concern]] = BlurValues

    sigma_px: Range = _ZERO


@dataclass(frozen=True, kw_only=True, slots=True)
class Jpeg(ConcernRanges):
    """Compression on the way from the camera."""

    key: ClassVar[str] = "jpeg"
    values: ClassVar[type[Concern]] = JpegValues

    quality: Range = _NONE


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameAge(ConcernRanges):
    """How old the newest picture is."""

    key: ClassVar[str] = "frame_age"
    values: ClassVar[type[Concern]] = FrameAgeValues

    steps: Range = _NONE


@dataclass(frozen=True, kw_only=True, slots=True)
class Light(ConcernRanges):
    """The lamp and the light of the room."""

    key: ClassVar[str] = "light"
    values: ClassVar[type[Concern]] = LightValues

    azimuth_rad: Range = _ZERO
    elevation_rad: Range = _ZERO
    ambient_scale: Range = _ONE
    diffuse_scale: Range = _ONE


@dataclass(frozen=True, kw_only=True, slots=True)
class Colours(ConcernRanges):
    """Paint of objects, table and arm."""

    key: ClassVar[str] = "colours"
    values: ClassVar[type[Concern]] = ColourValues

    object_hue_rad: Range = _ZERO
    object_brightness: Range = _ONE
    table_tint: Range = _ONE
    robot_tint: Range = _ONE


@dataclass(frozen=True, kw_only=True, slots=True)
class Textures(ConcernRanges):
    """The pattern on the table."""

    key: ClassVar[str] = "textures"
    values: ClassVar[type[Concern]] = TextureValues

    table: Range = _FLAT
    contrast: Range = _ZERO
    cell_m: Range = _CELL


@dataclass(frozen=True, kw_only=True, slots=True)
class Mass(ConcernRanges):
    """Weight of what stands on the table."""

    key: ClassVar[str] = "mass"
    values: ClassVar[type[Concern]] = MassValues

    object_scale: Range = _ONE


@dataclass(frozen=True, kw_only=True, slots=True)
class Friction(ConcernRanges):
    """Friction coefficients."""

    key: ClassVar[str] = "friction"
    values: ClassVar[type[Concern]] = FrictionValues

    object_scale: Range = _ONE
    table_scale: Range = _ONE
    finger_scale: Range = _ONE


@dataclass(frozen=True, kw_only=True, slots=True)
class Damping(ConcernRanges):
    """What slows motion down without contact."""

    key: ClassVar[str] = "damping"
    values: ClassVar[type[Concern]] = DampingValues

    joint_nm_s_rad: Range = _ZERO
    object_scale: Range = _ONE


@dataclass(frozen=True, kw_only=True, slots=True)
class Gain(ConcernRanges):
    """Stiffness of the servos."""

    key: ClassVar[str] = "gain"
    values: ClassVar[type[Concern]] = GainValues

    position_scale: Range = _ONE


@dataclass(frozen=True, kw_only=True, slots=True)
class Delay(ConcernRanges):
    """Time from sending a command to the servo taking it."""

    key: ClassVar[str] = "delay"
    values: ClassVar[type[Concern]] = DelayValues

    bus_ms: Range = _ZERO
    joint_ms: Range = _ZERO


@dataclass(frozen=True, kw_only=True, slots=True)
class DeadBand(ConcernRanges):
    """Errors that a servo ignores."""

    key: ClassVar[str] = "dead_band"
    values: ClassVar[type[Concern]] = DeadBandValues

    width_rad: Range = _ZERO


@dataclass(frozen=True, kw_only=True, slots=True)
class Backlash(ConcernRanges):
    """Play of the gears."""

    key: ClassVar[str] = "backlash"
    values: ClassVar[type[Concern]] = BacklashValues

    play_rad: Range = _ZERO


@dataclass(frozen=True, kw_only=True, slots=True)
class RateLimit(ConcernRanges):
    """How fast the servos can turn."""

    key: ClassVar[str] = "rate_limit"
    values: ClassVar[type[Concern]] = RateLimitValues

    speed_scale: Range = _ONE


@dataclass(frozen=True, kw_only=True, slots=True)
class ObservationNoise(ConcernRanges):
    """Errors of the measured joints and gripper."""

    key: ClassVar[str] = "observation_noise"
    values: ClassVar[type[Concern]] = ObservationNoiseValues

    joint_std_rad: Range = _ZERO
    joint_bias_rad: Range = _ZERO
    gripper_std_m: Range = _ZERO


@dataclass(frozen=True, kw_only=True, slots=True)
class Dropouts(ConcernRanges):
    """Pictures and readings that get lost."""

    key: ClassVar[str] = "dropouts"
    values: ClassVar[type[Concern]] = DropoutValues

    frame_share: Range = _ZERO
    state_share: Range = _ZERO
