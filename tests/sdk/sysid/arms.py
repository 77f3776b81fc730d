"""Recordings and robots for the tests of system identification."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from roboalign.sdk.randomization.actuation import ActuatorModel
from roboalign.sdk.sim.so101 import so101_spec
from roboalign.sdk.sysid.model import STEP_HZ, command_grid
from roboalign.sdk.sysid.recording import Recording
from roboalign.sdk.sysid.wiggle import WiggleConfig, plan_wiggle
from roboalign.sdk.types import RobotSpec

RATE_HZ = 120.0
GAIN = 0.25


def make_recording(
    values: NDArray[np.float64], *, seconds: float = 12.0, noise_rad: float = 0.0, bias_rad: float = 0.0
) -> Recording:
    """A recording of joints with these parameters, by `ActuatorModel` and the motor written out step by step."""
    spec = so101_spec()
    joints = spec.num_joints
    config = WiggleConfig(duration_s=seconds)
    wiggle = plan_wiggle(spec, spec.home_joint_pos_rad, config, rate_hz=RATE_HZ)
    sent = np.arange(len(wiggle.targets_rad)) / RATE_HZ
    blank = recording_of(spec, sent, wiggle.targets_rad, np.zeros_like(wiggle.targets_rad))
    start_s, command = command_grid(blank)
    states = walk(values, command)
    index = np.rint((blank.read_s - start_s) * STEP_HZ).astype(int) - 1
    rng = np.random.default_rng(5)
    read = states[index] + bias_rad + noise_rad * rng.standard_normal((len(sent), joints))
    return recording_of(spec, sent, wiggle.targets_rad, read)


def walk(values: NDArray[np.float64], command: NDArray[np.float64]) -> NDArray[np.float64]:
    """The joints after every step, by the randomisation's own actuator."""
    delay, gain, scale, play, band = values
    speed = np.array(so101_spec().joint_max_speed_rad_s)
    model = ActuatorModel(
        rate_hz=STEP_HZ,
        delay_ms=delay,
        dead_band_rad=band,
        backlash_rad=play,
        max_speed_rad_s=np.where(scale < 1.0, speed * scale, np.inf),
    )
    model.reset(command[0])
    position, found = command[0].copy(), np.empty_like(command)
    for step, target in enumerate(command):
        followed, velocity = model.follow(target)
        position = position + GAIN * gain * (followed - position) + velocity / STEP_HZ
        found[step] = position
    return found


def recording_of(
    spec: RobotSpec, sent_s: NDArray[np.float64], targets: NDArray[np.float64], read: NDArray[np.float64]
) -> Recording:
    """A recording with these rows, read at the end of each period."""
    count = len(sent_s)
    return Recording(
        robot=spec.name,
        joint_names=spec.joint_names,
        max_speed_rad_s=spec.joint_max_speed_rad_s,
        rate_hz=RATE_HZ,
        path="linear",
        setpoint_speed_rad_s=(),
        resolution_rad=0.0,
        body=None,
        has_gripper_motor=False,
        gripper_max_width_m=0.05,
        start_rad=targets[0].copy(),
        sent_s=sent_s,
        target_rad=targets,
        target_width_m=np.zeros(count),
        read_s=sent_s + 1 / RATE_HZ,
        position_rad=read,
        width_m=np.zeros(count),
    )
