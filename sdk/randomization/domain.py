"""`DomainRandomization`, what may vary, and `DomainSample`, what one episode got.

Every parameter draws from a random stream of its own, which depends on the episode's seed, the concern and the
parameter's name, and on nothing else: not on other concerns, their order, or how many numbers they draw.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np

from roboalign.sdk.errors import ConfigError, unknown_name
from roboalign.sdk.randomization import config, values
from roboalign.sdk.randomization.config import ConcernRanges
from roboalign.sdk.randomization.ranges import Each, centre, range_from_json, range_to_json
from roboalign.sdk.randomization.values import Concern, parameters
from roboalign.sdk.settings_file import read_settings

__all__ = ["CONCERNS", "DomainRandomization", "DomainSample", "stream"]


def stream(seed: int, concern: str, part: str, index: int = 0) -> np.random.Generator:
    """Returns the random stream of one part of one concern in the episode of `seed`, at its beginning.

    `index` counts what is drawn anew within an episode, such as frames, so that asking for frame 7 alone gives what
    frame 7 has among all others.
    """
    key = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") for text in (concern, part)]
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(*key, index)))


@dataclass(frozen=True, kw_only=True, slots=True)
class DomainSample:
    """Every value drawn for one episode; what no value is given for is off."""

    name: str = "off"
    """Name of the randomisation it was drawn from."""
    seed: int = 0
    """Seed of the episode; also begins the streams of what is drawn anew each frame or step."""
    camera_pose: values.CameraPoseValues = field(default_factory=values.CameraPoseValues)
    """Where the camera stands and points."""
    field_of_view: values.FieldOfViewValues = field(default_factory=values.FieldOfViewValues)
    """The lens."""
    exposure: values.ExposureValues = field(default_factory=values.ExposureValues)
    """How much light the sensor collects."""
    white_balance: values.WhiteBalanceValues = field(default_factory=values.WhiteBalanceValues)
    """Gains of the colour channels."""
    noise: values.NoiseValues = field(default_factory=values.NoiseValues)
    """Noise of the sensor."""
    blur: values.BlurValues = field(default_factory=values.BlurValues)
    """Sharpness of the lens."""
    jpeg: values.JpegValues = field(default_factory=values.JpegValues)
    """Compression on the way from the camera."""
    frame_age: values.FrameAgeValues = field(default_factory=values.FrameAgeValues)
    """How old the newest picture is."""
    light: values.LightValues = field(default_factory=values.LightValues)
    """The lamp and the light of the room."""
    colours: values.ColourValues = field(default_factory=values.ColourValues)
    """Paint of objects, table and arm."""
    textures: values.TextureValues = field(default_factory=values.TextureValues)
    """The pattern on the table."""
    mass: values.MassValues = field(default_factory=values.MassValues)
    """Weight of what stands on the table."""
    friction: values.FrictionValues = field(default_factory=values.FrictionValues)
    """Friction coefficients."""
    damping: values.DampingValues = field(default_factory=values.DampingValues)
    """What slows motion down without contact."""
    gain: values.GainValues = field(default_factory=values.GainValues)
    """Stiffness of the servos."""
    delay: values.DelayValues = field(default_factory=values.DelayValues)
    """Time from sending a command to the servo taking it."""
    dead_band: values.DeadBandValues = field(default_factory=values.DeadBandValues)
    """Errors that a servo ignores."""
    backlash: values.BacklashValues = field(default_factory=values.BacklashValues)
    """Play of the gears."""
    rate_limit: values.RateLimitValues = field(default_factory=values.RateLimitValues)
    """How fast the servos can turn."""
    observation_noise: values.ObservationNoiseValues = field(default_factory=values.ObservationNoiseValues)
    """Errors of the measured joints and gripper."""
    dropouts: values.DropoutValues = field(default_factory=values.DropoutValues)
    """Pictures and readings that get lost."""

    @classmethod
    def off(cls) -> DomainSample:
        """Returns the sample that changes nothing."""
        return cls()

    @property
    def is_off(self) -> bool:
        """True when no value changes anything."""
        return all(getattr(self, concern) == kind() for concern, kind in _values_of().items())

    def stream(self, concern: str, part: str, index: int = 0) -> np.random.Generator:
        """Returns the stream of what is drawn anew for frame or step `index`; see `stream`."""
        return stream(self.seed, concern, part, index)

    def to_json(self) -> dict[str, object]:
        """Returns every value by concern and parameter, ready for JSON."""
        found: dict[str, object] = {"name": self.name, "seed": self.seed}
        for concern, kind in _values_of().items():
            group = getattr(self, concern)
            pairs = ((item.name, getattr(group, item.name)) for item in parameters(kind))
            found[concern] = {name: list(value) if isinstance(value, tuple) else value for name, value in pairs}
        return found

    @classmethod
    def from_json(cls, content: Mapping[str, object]) -> DomainSample:
        """Returns the sample that `to_json` wrote.

        Raises:
            ConfigError: A value is missing, unknown or not possible.
        """
        kinds = _values_of()
        _check_names("DomainSample", content, ("name", "seed", *kinds))
        name, seed = content.get("name", "off"), content.get("seed", 0)
        if not isinstance(name, str) or isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise ConfigError(f"DomainSample name is {name!r} and seed {seed!r}, expected a word and a whole number")
        groups = {concern: _group(concern, kinds[concern], content[concern]) for concern in kinds if concern in content}
        return dataclasses.replace(cls(name=name, seed=seed), **groups)  # type: ignore[arg-type] # one type a concern


@dataclass(frozen=True, kw_only=True, slots=True)
class DomainRandomization:
    """What may vary from episode to episode; every concern is off unless ranges are given for it.

    >>> from roboalign.sdk.randomization import DomainRandomization, Light, Uniform
    >>> dim = DomainRandomization(name="dim", light=Light(ambient_scale=Uniform(0.5, 0.7)))
    >>> 0.5 <= dim.sample(3).light.ambient_scale <= 0.7
    True
    """

    name: str = "custom"
    """Name in records and reports."""
    camera_pose: config.CameraPose = field(default_factory=config.CameraPose)
    """Where the camera stands and points."""
    field_of_view: config.FieldOfView = field(default_factory=config.FieldOfView)
    """The lens."""
    exposure: config.Exposure = field(default_factory=config.Exposure)
    """How much light the sensor collects."""
    white_balance: config.WhiteBalance = field(default_factory=config.WhiteBalance)
    """Gains of the colour channels."""
    noise: config.Noise = field(default_factory=config.Noise)
    """Noise of the sensor."""
    blur: config.Blur = field(default_factory=config.Blur)
    """Sharpness of the lens."""
    jpeg: config.Jpeg = field(default_factory=config.Jpeg)
    """Compression on the way from the camera."""
    frame_age: config.FrameAge = field(default_factory=config.FrameAge)
    """How old the newest picture is."""
    light: config.Light = field(default_factory=config.Light)
    """The lamp and the light of the room."""
    colours: config.Colours = field(default_factory=config.Colours)
    """Paint of objects, table and arm."""
    textures: config.Textures = field(default_factory=config.Textures)
    """The pattern on the table."""
    mass: config.Mass = field(default_factory=config.Mass)
    """Weight of what stands on the table."""
    friction: config.Friction = field(default_factory=config.Friction)
    """Friction coefficients."""
    damping: config.Damping = field(default_factory=config.Damping)
    """What slows motion down without contact."""
    gain: config.Gain = field(default_factory=config.Gain)
    """Stiffness of the servos."""
    delay: config.Delay = field(default_factory=config.Delay)
    """Time from sending a command to the servo taking it."""
    dead_band: config.DeadBand = field(default_factory=config.DeadBand)
    """Errors that a servo ignores."""
    backlash: config.Backlash = field(default_factory=config.Backlash)
    """Play of the gears."""
    rate_limit: config.RateLimit = field(default_factory=config.RateLimit)
    """How fast the servos can turn."""
    observation_noise: config.ObservationNoise = field(default_factory=config.ObservationNoise)
    """Errors of the measured joints and gripper."""
    dropouts: config.Dropouts = field(default_factory=config.Dropouts)
    """Pictures and readings that get lost."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ConfigError(f"DomainRandomization.name is {self.name!r}, expected a word")
        for concern, kind in _RANGES_OF.items():
            found = getattr(self, concern)
            if not isinstance(found, kind):
                raise ConfigError(
                    f"DomainRandomization.{concern} is {type(found).__name__}, expected {kind.__name__}(...)"
                )

    @property
    def is_off(self) -> bool:
        """True when no concern can change anything."""
        return not self.concerns

    @property
    def concerns(self) -> tuple[str, ...]:
        """Names of the concerns that are on."""
        return tuple(concern for concern in CONCERNS if not getattr(self, concern).is_off)

    @property
    def fingerprint(self) -> str:
        """A hash of every range: a file may change under its name."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:16]

    def sample(self, seed: int) -> DomainSample:
        """Returns the values of the episode of `seed`; equal seeds give equal values.

        Raises:
            ConfigError: The seed is negative.
        """
        if seed < 0:
            raise ConfigError(f"the seed is {seed}, expected a whole number of at least 0")
        drawn = {}
        for concern in CONCERNS:
            ranges: ConcernRanges = getattr(self, concern)
            streams = {item.name: stream(seed, concern, item.name) for item in parameters(ranges.values)}
            drawn[concern] = ranges.draw(streams)
        return DomainSample(name=self.name, seed=seed, **drawn)  # type: ignore[arg-type] # one type a concern

    def centre(self) -> DomainSample:
        """Returns the sample with the middle of every range: of an identified domain, what was identified."""
        middles: dict[str, Concern] = {}
        for concern in CONCERNS:
            ranges: ConcernRanges = getattr(self, concern)
            found: dict[str, object] = {}
            for item in parameters(ranges.values):
                given = getattr(ranges, item.name)
                many = given.ranges if isinstance(given, Each) else (given,) * item.slots
                middle = tuple(centre(one) for one in many)
                found[item.name] = middle if item.is_list else middle[0]
            middles[concern] = ranges.values(**found)
        return DomainSample(name=f"the centre of {self.name}", **middles)  # type: ignore[arg-type] # one type a concern

    def with_changes(self, changes: Mapping[str, object], *, name: str | None = None) -> DomainRandomization:
        """Returns a copy with some ranges replaced: `{"camera_pose": {"roll_rad": {"uniform": [-0.1, 0.1]}}}`.

        What is not named stays as it is. `False` in place of a concern's parameters switches the concern off.

        Raises:
            ConfigError: A concern or parameter is unknown, or a range is not possible; the message names it.
        """
        _check_names("DomainRandomization", changes, CONCERNS)
        groups: dict[str, ConcernRanges] = {}
        for concern, content in changes.items():
            if content is False:
                groups[concern] = _RANGES_OF[concern]()
                continue
            if not isinstance(content, Mapping):
                raise ConfigError(f"{concern} is {content!r}, expected a table of parameters, or false for off")
            known = tuple(item.name for item in parameters(_RANGES_OF[concern].values))
            _check_names(concern, content, known)
            read = {key: range_from_json(value, f"{concern}.{key}") for key, value in content.items()}
            groups[concern] = dataclasses.replace(getattr(self, concern), **read)
        changed = dataclasses.replace(self, **groups)  # type: ignore[arg-type] # one type a concern
        return dataclasses.replace(changed, name=name or self.name)

    def to_json(self) -> dict[str, object]:
        """Returns every range by concern and parameter, ready for JSON."""
        found: dict[str, object] = {"name": self.name}
        for concern, kind in _RANGES_OF.items():
            group = getattr(self, concern)
            found[concern] = {item.name: range_to_json(getattr(group, item.name)) for item in parameters(kind.values)}
        return found

    @classmethod
    def from_json(cls, content: Mapping[str, object]) -> DomainRandomization:
        """Returns the randomisation written as JSON; `"preset"` names what the other entries change, else all is off.

        Raises:
            ConfigError: Something is unknown or not possible; the message names it.
        """
        from roboalign.sdk.randomization.presets import preset

        changes = dict(content)
        base, name = changes.pop("preset", None), changes.pop("name", "custom")
        if not isinstance(name, str):
            raise ConfigError(f"DomainRandomization.name is {name!r}, expected a word")
        if base is not None and not isinstance(base, str):
            raise ConfigError(f"'preset' is {base!r}, expected the name of a preset")
        return (cls() if base is None else preset(base)).with_changes(changes, name=name)

    @classmethod
    def load(cls, path: str | Path) -> DomainRandomization:
        """Returns the randomisation in a `.json` or `.toml` file.

        Raises:
            ConfigError: The file is missing, is neither, or holds something that is not possible.
        """
        content = read_settings(Path(path), "randomisation")
        try:
            return cls.from_json(content)
        except ConfigError as err:
            raise ConfigError(f"{path}: {err}") from err


def _group(concern: str, kind: type[Concern], content: object) -> Concern:
    """Returns the values of one concern, checked like ranges of one value each."""
    known = {item.name: item for item in parameters(kind)}
    if not isinstance(content, Mapping):
        raise ConfigError(f"{concern} is {content!r}, expected a table of values")
    _check_names(concern, content, tuple(known))
    read: dict[str, object] = {}
    for name, value in content.items():
        many = tuple(value) if isinstance(value, (list, tuple)) else (value,)
        if isinstance(value, (list, tuple)) != known[name].is_list or len(many) != known[name].slots:
            raise ConfigError(f"{concern}.{name} is {value!r}, expected {known[name].slots} values")
        for item in many:
            config.check_range(f"{concern}.{name}", range_from_json(item, f"{concern}.{name}"), known[name])
        read[name] = many if known[name].is_list else value
    return kind(**read)


def _check_names(where: str, found: Mapping[str, object], known: tuple[str, ...]) -> None:
    for name in found:
        if name not in known:
            raise ConfigError(f"{where}: {unknown_name('field', str(name), known)}")


_RANGES_OF: dict[str, type[ConcernRanges]] = {
    item.name: type(item.default_factory())
    for item in fields(DomainRandomization)
    if item.default_factory is not dataclasses.MISSING
}

CONCERNS = tuple(_RANGES_OF)
"""Names of all concerns; each has random streams of its own."""


def _values_of() -> dict[str, type[Concern]]:
    return {concern: kind.values for concern, kind in _RANGES_OF.items()}
