"""From a robot to its dynamics: wiggle, record, fit, and say how sure it is."""

from __future__ import annotations

import dataclasses
import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from roboalign.sdk.control.clock import Clock
from roboalign.sdk.errors import ConfigError, RobotError
from roboalign.sdk.robot import JointRobot
from roboalign.sdk.sim.robots import find_robot
from roboalign.sdk.sysid.estimates import conclude
from roboalign.sdk.sysid.fit import LOSSES, JointFit, Target, fit_joints
from roboalign.sdk.sysid.model import STEP_HZ, JointModel
from roboalign.sdk.sysid.physics import WholeArm
from roboalign.sdk.sysid.play import play_wiggle
from roboalign.sdk.sysid.recording import Recording
from roboalign.sdk.sysid.result import SysidResult
from roboalign.sdk.sysid.wiggle import Wiggle, WiggleConfig, check_wiggle, find_centre, plan_wiggle

__all__ = ["Identification", "SysidConfig", "fit_recording", "identify", "plan_for"]

Float64Array = NDArray[np.float64]

_PASSES = ((False, 8), (False, 0))  # around the whole arm: whether to look far away, how often near by
_PHASES = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9)  # of a step
_PLAIN_GAIN = 0.25  # what a gain of 1 means for an arm without a simulated body
_UNKNOWN_S = 2.5
_MOVED = 3.0  # standard deviations in one period: a reading that is then the same as the last one was lost


@dataclass(frozen=True, kw_only=True, slots=True)
class SysidConfig:
    """How an arm is identified."""

    wiggle: WiggleConfig = field(default_factory=WiggleConfig)
    """How it is moved."""


@dataclass(frozen=True, kw_only=True)
class Identification:
    """A result with what it was made of."""

    recording: Recording
    """What was sent and read."""
    fit: JointFit
    """The last fit."""
    result: SysidResult
    """What was found."""
    error: RobotError | KeyboardInterrupt | None = None
    """Why the wiggle ended early."""


def plan_for(robot: JointRobot, config: SysidConfig) -> Wiggle:
    """Returns the wiggle for a robot, checked; nothing moves.

    Raises:
        ConfigError: It would hit a limit or the table, or the robot takes no joint targets.
    """
    if not isinstance(robot, JointRobot):
        raise ConfigError(
            f"{getattr(robot, 'spec', robot)!r:.80} takes no joint targets: sysid needs act_joints and take_readings "
            "(roboalign.sdk.robot.JointRobot)"
        )
    centre = find_centre(robot.spec, robot.kinematics, config.wiggle)
    wiggle = plan_wiggle(robot.spec, centre, config.wiggle, rate_hz=robot.joint_rate_hz)
    check_wiggle(robot.spec, robot.kinematics, wiggle, config.wiggle)
    return wiggle


def identify(
    robot: JointRobot,
    config: SysidConfig | None = None,
    *,
    clock: Clock | None = None,
    progress: Callable[[str], None] | None = None,
    keep: Callable[[Recording], None] | None = None,
) -> Identification:
    """Wiggles a connected robot and returns its dynamics; parking is the caller's.

    Args:
        robot: Connected; its space is clear.
        config: None takes the defaults.
        clock: Paces the targets on hardware; None where the robot lets time pass by itself.
        progress: Told what is being done.
        keep: Given the recording before anything is fitted to it, also of a wiggle that ended early.

    Raises:
        ConfigError: The wiggle would hit a limit; nothing has moved.
        RobotError: The robot stopped answering before there was enough to fit.
    """
    settings = config or SysidConfig()
    say = progress or (lambda text: None)
    played = play_wiggle(robot, plan_for(robot, settings), clock=clock, progress=lambda text: say(f"wiggling: {text}"))
    if keep is not None:
        keep(played.recording)
    if played.error is not None:
        raise played.error
    return fit_recording(played.recording, progress=progress)


def fit_recording(recording: Recording, *, progress: Callable[[str], None] | None = None) -> Identification:
    """Returns the dynamics that explain a recording.

    Raises:
        DataError: There is too little of it.
    """
    recording.require_enough()
    say = progress or (lambda text: None)
    begin_s = time.process_time()
    body = None if recording.body is None else find_robot(recording.body)
    model = JointModel.of(recording, motor_gain=_PLAIN_GAIN if body is None else body.arm_position_gain)
    has_whole = body is not None and _has_physics()
    whole = WholeArm(body, model) if body is not None and has_whole else None
    model = model if whole is None else whole.with_torques()
    # Where in its play and dead band a joint began is not known; after its first ways it no longer matters.
    is_begun = recording.read_s > recording.sent_s[0] + _UNKNOWN_S
    counts = np.repeat(is_begun[:, None].astype(np.float64), len(recording.joint_names), 1)
    target = Target(
        model=model,
        measured_rad=recording.position_rad,
        weight=counts,
        most_losses=np.zeros((len(LOSSES), len(recording.joint_names))) if whole is None else whole.most_losses(),
    )
    fit = fit_joints(target, generations=0 if has_whole else 8, progress=say)
    if recording.path == "setpoint":
        model = _in_phase(recording, model, fit)
    if whole is not None and body is not None:
        whole.close()
        whole = WholeArm(body, model)
    target = dataclasses.replace(target, model=model)
    lost, moved = _lost(recording, fit)
    before = fit
    defect_deg: list[float] = []
    try:
        for number, (is_wide, generations) in enumerate(_PASSES if whole is not None else _PASSES[-1:]):
            target = dataclasses.replace(target, weight=counts * ~lost[:, None])
            if whole is not None:
                say(f"simulating the whole arm, pass {number + 1} of {len(_PASSES)}")
                defect = whole.defect(fit.values)
                target = dataclasses.replace(target, defect=defect)
                defect_deg = np.degrees(defect.rms_rad).tolist()
            before = fit
            fit = fit_joints(target, start=fit.values, generations=generations, is_wide=is_wide, progress=say)
            lost, moved = _lost(recording, fit)
    finally:
        if whole is not None:
            whole.close()
    result = conclude(recording, target, fit, before, num_lost=int(lost.sum()), num_moved=int(moved.sum()))
    details = {
        **result.provenance,
        "defect_rms_deg": defect_deg,
        "is_whole_arm_simulated": whole is not None,
        "fit_cpu_s": round(time.process_time() - begin_s, 2),
    }
    return Identification(recording=recording, fit=fit, result=dataclasses.replace(result, provenance=details))


def _in_phase(recording: Recording, model: JointModel, fit: JointFit) -> JointModel:
    """Returns the model whose steps lie against the clock as the servos' do: nobody tells when those begin."""
    best, least = model, np.inf
    for phase_s in (*(share / STEP_HZ for share in _PHASES), None):
        moved = dataclasses.replace(
            JointModel.of(recording, motor_gain=model.motor_gain, phase_s=phase_s),
            force_nm=model.force_nm,
            inertia_kg_m2=model.inertia_kg_m2,
            weight_nm=model.weight_nm,
        )
        left = recording.position_rad - moved.simulate(fit.values[None])[:, 0]
        left -= np.median(left, 0)
        cost = float(np.minimum(np.abs(left), 5 * fit.std_rad).sum())
        if cost < least:
            best, least = moved, cost
    return best


def _has_physics() -> bool:
    return importlib.util.find_spec("pybullet") is not None


def _lost(recording: Recording, fit: JointFit) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Returns which readings repeat the last one although the arm moved, and in which periods it moved."""
    is_same, is_moved = np.zeros((2, len(recording.read_s)), bool)
    is_same[1:] = (recording.position_rad[1:] == recording.position_rad[:-1]).all(1)
    least = _MOVED * fit.std_rad + 2 * recording.resolution_rad + 1e-5
    is_moved[1:] = (np.abs(np.diff(fit.predicted_rad, axis=0)) > least).any(1)
    return is_same & is_moved, is_moved
