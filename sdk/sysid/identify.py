"""From a robot to its dynamics: wiggle, record, fit, and say how sure it is."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from roboalign.sdk.control.clock import Clock
from roboalign.sdk.errors import ConfigError, RobotError
from roboalign.sdk.robot import JointRobot
from roboalign.sdk.sysid.estimates import conclude
from roboalign.sdk.sysid.play import play_wiggle
from roboalign.sdk.sysid.recording import Recording
from roboalign.sdk.sysid.result import SysidResult
from roboalign.sdk.sysid.solve import JointFit, solve
from roboalign.sdk.sysid.wiggle import Wiggle, WiggleConfig, check_wiggle, find_centre, plan_wiggle

__all__ = ["Identification", "SysidConfig", "fit_recording", "identify", "plan_for"]


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
    begin_s = time.process_time()
    solution = solve(recording, progress or (lambda text: None))
    result = conclude(recording, solution)
    details = {
        **result.provenance,
        "defect_rms_deg": list(solution.defect_deg),
        "is_whole_arm_simulated": bool(solution.defect_deg),
        "fit_cpu_s": round(time.process_time() - begin_s, 2),
    }
    return Identification(recording=recording, fit=solution.fit, result=dataclasses.replace(result, provenance=details))
