"""What was identified: a value, an interval and whether the data tell, for every parameter; and what it is good for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from roboalign.sdk.errors import DataError
from roboalign.sdk.randomization.domain import DomainRandomization, DomainSample
from roboalign.sdk.randomization.presets import preset
from roboalign.sdk.randomization.ranges import Each, Integers, Single, Uniform, fixed, range_to_json
from roboalign.sdk.randomization.values import NUM_JOINT_SLOTS

__all__ = ["UNITS", "Estimate", "SysidResult"]

UNITS = {
    "delay_ms": "ms",
    "gain": "1",
    "speed_scale": "1",
    "play_rad": "rad",
    "dead_band_rad": "rad",
    "damping_nm_s_rad": "N m s/rad",
    "friction_nm": "N m",
    "bias_rad": "rad",
    "noise_std_rad": "rad",
    "state_share": "1",
    "frame_age_steps": "control steps",
    "frame_share": "1",
}
"""Unit of every parameter; `1` for a pure number."""

_PER_JOINT = {
    "gain": ("gain", "position_scale"),
    "speed_scale": ("rate_limit", "speed_scale"),
    "play_rad": ("backlash", "play_rad"),
    "dead_band_rad": ("dead_band", "width_rad"),
    "damping_nm_s_rad": ("damping", "joint_nm_s_rad"),
    "bias_rad": ("observation_noise", "joint_bias_rad"),
}
"""Where the randomisation has them: concern and parameter."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """One parameter of one joint."""

    value: float
    """Most likely."""
    low: float
    """Lower end of the 95 % interval."""
    high: float
    """Upper end."""
    is_identified: bool
    """False when the data hardly narrow down what is possible; then use the interval and not the value."""


@dataclass(frozen=True, kw_only=True)
class SysidResult:
    """What `identify` found out about one robot."""

    robot: str
    """Name of the robot."""
    joint_names: tuple[str, ...]
    """Arm joints in the order of all lists."""
    joints: Mapping[str, tuple[Estimate, ...]]
    """By parameter, one estimate a joint; `UNITS` names them."""
    whole: Mapping[str, Estimate]
    """What the arm has one of."""
    residual_deg: tuple[float, ...]
    """What the simulation under these values leaves unexplained, root mean square a joint."""
    residual_ms: tuple[float, ...]
    """The same as time: how much later or earlier the simulation would have to be, on average over the motion."""
    provenance: Mapping[str, object] = field(default_factory=dict)
    """Versions, settings and counts of this identification."""

    def to_json(self) -> dict[str, object]:
        """Returns everything, ready for JSON."""
        return {
            "format": 1,
            "robot": self.robot,
            "joint_names": list(self.joint_names),
            "joints": {
                name: {"unit": UNITS[name], "estimates": [dataclasses.asdict(item) for item in many]}
                for name, many in self.joints.items()
            },
            "whole": {name: {"unit": UNITS[name], **dataclasses.asdict(item)} for name, item in self.whole.items()},
            "residual_deg": list(self.residual_deg),
            "residual_ms": list(self.residual_ms),
            "sample": self.sample().to_json(),
            "provenance": dict(self.provenance),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, object]) -> SysidResult:
        """Returns the result that `to_json` wrote.

        Raises:
            DataError: It is none, or of another version.
        """
        if content.get("format") != 1:
            raise DataError(f"sysid.json has format {content.get('format')!r}, this version reads 1")
        try:
            values: dict[str, object] = {name: content[name] for name in ("robot", "provenance")}
            for name in ("joint_names", "residual_deg", "residual_ms"):
                values[name] = tuple(content[name])  # type: ignore[arg-type] # a wrong type is a DataError below
            joints, whole = content["joints"], content["whole"]
            values["joints"] = {
                name: tuple(Estimate(**item) for item in many["estimates"])
                for name, many in joints.items()  # type: ignore[attr-defined] # the same
            }
            values["whole"] = {
                name: Estimate(**{key: value for key, value in item.items() if key != "unit"})
                for name, item in whole.items()  # type: ignore[attr-defined] # the same
            }
            return cls(**values)  # type: ignore[arg-type] # the same
        except (KeyError, TypeError, AttributeError) as err:
            raise DataError(f"sysid.json is damaged: {err!r}") from err

    def sample(self) -> DomainSample:
        """Returns the arm as identified, one value each: what `load_scene(scene, sample)` simulates."""
        values = {name: [item.value for item in many] for name, many in self.joints.items()}
        bus_ms = min(values["delay_ms"])
        groups: dict[str, dict[str, object]] = {
            "delay": {
                "bus_ms": min(bus_ms, 300.0),
                "joint_ms": _slots([value - bus_ms for value in values["delay_ms"]]),
            },
        }
        for name, (concern, parameter) in _PER_JOINT.items():
            groups.setdefault(concern, {})[parameter] = _slots(values[name])
        noise = self.whole["noise_std_rad"].value
        groups["observation_noise"]["joint_std_rad"] = noise
        groups["dropouts"] = {"state_share": self.whole["state_share"].value}
        if "frame_age_steps" in self.whole:
            groups["frame_age"] = {"steps": round(self.whole["frame_age_steps"].value)}
            groups["dropouts"]["frame_share"] = self.whole["frame_share"].value
        return DomainSample.from_json({"name": f"sysid-{self.robot}", "seed": 0, **groups})

    def changes(self) -> dict[str, dict[str, object]]:
        """Returns the ranges of what was identified, by concern and parameter, as they stand in a file.

        Every joint has its own range: its 95 % interval.
        """
        delays = self.joints["delay_ms"]
        bus_ms = min(min(item.low for item in delays), 300.0)
        found: dict[str, dict[str, object]] = {
            "delay": {
                "bus_ms": range_to_json(fixed(round(bus_ms, 6))),
                "joint_ms": _each([_span(item.low - bus_ms, item.high - bus_ms) for item in delays]),
            }
        }
        for name, (concern, parameter) in _PER_JOINT.items():
            found.setdefault(concern, {})[parameter] = _each([_span(e.low, e.high) for e in self.joints[name]])
        noise, lost = self.whole["noise_std_rad"], self.whole["state_share"]
        found["observation_noise"]["joint_std_rad"] = range_to_json(_span(noise.low, noise.high))
        found["dropouts"] = {"state_share": range_to_json(_span(lost.low, lost.high))}
        if "frame_age_steps" in self.whole:
            age, frames = self.whole["frame_age_steps"], self.whole["frame_share"]
            found["frame_age"] = {"steps": range_to_json(Integers(round(age.low), round(age.high)))}
            found["dropouts"]["frame_share"] = range_to_json(_span(frames.low, frames.high))
        return found

    def randomization(self, base: str | None = None) -> DomainRandomization:
        """Returns the randomisation around this arm; what was not identified is as in the preset `base`."""
        start = preset("off" if base is None else base)
        return start.with_changes(self.changes(), name=f"sysid-{self.robot}")


def _slots(values: list[float]) -> list[float]:
    return [values[index % len(values)] for index in range(NUM_JOINT_SLOTS)]


def _span(low: float, high: float) -> Single:
    return Uniform(float(np.round(low, 7)), float(np.round(max(low, high), 7)))


def _each(ranges: list[Single]) -> object:
    return range_to_json(Each(tuple(ranges[index % len(ranges)] for index in range(NUM_JOINT_SLOTS))))
