"""System identification: how an arm really follows, found by moving it and by simulating our own model of it.

    plan_for -> identify = play_wiggle -> fit_recording -> SysidResult -> DomainRandomization

A parameter means what `roboalign.sdk.randomization` means by it, because the model that is fitted is the simulator's.
"""

from __future__ import annotations

from roboalign.sdk.sysid.identify import Identification, SysidConfig, fit_recording, identify, plan_for
from roboalign.sdk.sysid.outputs import keep_recording, randomization_toml, write_outputs
from roboalign.sdk.sysid.recording import Recording
from roboalign.sdk.sysid.result import Estimate, SysidResult
from roboalign.sdk.sysid.wiggle import Wiggle, WiggleConfig

__all__ = [
    "Estimate",
    "Identification",
    "Recording",
    "SysidConfig",
    "SysidResult",
    "Wiggle",
    "WiggleConfig",
    "fit_recording",
    "identify",
    "keep_recording",
    "plan_for",
    "randomization_toml",
    "write_outputs",
]
