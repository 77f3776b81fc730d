"""Domain randomisation: what may vary between a simulation and a robot, drawn for each episode and written down.

`DomainRandomization` says what may vary, `.sample(seed)` draws a `DomainSample`, and the simulator applies it. What
changes pictures, commands and readings is in `imaging`, `actuation` and `sensing`, which know no simulator.
"""

from __future__ import annotations

from roboalign.sdk.randomization.config import (
    Backlash,
    Blur,
    CameraPose,
    Colours,
    Damping,
    DeadBand,
    Delay,
    Dropouts,
    Exposure,
    FieldOfView,
    FrameAge,
    Friction,
    Gain,
    Jpeg,
    Light,
    Mass,
    Noise,
    ObservationNoise,
    RateLimit,
    Textures,
    WhiteBalance,
)
from roboalign.sdk.randomization.domain import CONCERNS, DomainRandomization, DomainSample
from roboalign.sdk.randomization.hidden import read_hidden
from roboalign.sdk.randomization.presets import (
    HELDOUT_SPLITS,
    PRESETS,
    find_randomization,
    heldout_randomization,
    preset,
)
from roboalign.sdk.randomization.ranges import Choice, Each, Integers, LogUniform, Range, Signed, Uniform, fixed

__all__ = [
    "CONCERNS",
    "HELDOUT_SPLITS",
    "PRESETS",
    "Backlash",
    "Blur",
    "CameraPose",
    "Choice",
    "Colours",
    "Damping",
    "DeadBand",
    "Delay",
    "DomainRandomization",
    "DomainSample",
    "Dropouts",
    "Each",
    "Exposure",
    "FieldOfView",
    "FrameAge",
    "Friction",
    "Gain",
    "Integers",
    "Jpeg",
    "Light",
    "LogUniform",
    "Mass",
    "Noise",
    "ObservationNoise",
    "Range",
    "RateLimit",
    "Signed",
    "Textures",
    "Uniform",
    "WhiteBalance",
    "find_randomization",
    "fixed",
    "heldout_randomization",
    "preset",
    "read_hidden",
]
