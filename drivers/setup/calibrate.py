"""Calibration of an arm by hand: zero pose, sweep, check, registers, files. Refuses what would be wrong unnoticed.

But for the operating mode, nothing is written to a servo before every joint has been swept and judged. What is about to
be written then lies beside the calibration file under a temporary name, so that an interruption loses no sweep and
leaves no mixture: the next run finishes it. The files get their names last.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from roboalign.drivers.arm.calibration import (
    CalibrationNotes,
    MotorCalibration,
    MotorNotes,
    bind_notes,
    find_stale_notes,
    read_calibration,
    read_notes,
    sidecar_path,
    write_calibration,
    write_notes,
)
from roboalign.drivers.arm.files import CameraFile, RobotFile, read_robot_file, write_robot_file
from roboalign.drivers.arm.models import COUNTS_PER_TURN, ArmModel
from roboalign.drivers.setup.dialogue import Dialogue
from roboalign.drivers.setup.registers import drive_mode, holds, is_turned, set_modes, write_motor
from roboalign.drivers.setup.servos import ServoBus
from roboalign.drivers.setup.sweep import JointFacts, JointSweep, calibrate_joint, find_problem
from roboalign.sdk.errors import CheckFailed, ConfigError, RobotError
from roboalign.sdk.sim.robots import find_robot

__all__ = ["CalibrateConfig", "calibrate", "check_calibration", "import_calibration", "joint_facts"]

ZERO_POSE = {
    "so101": "upper arm upright, forearm and gripper straight forward, jaws closed and upwards (the URDF's zero)",
}
"""The pose in which the URDF's joints are zero, by simulated arm, in words."""

_SAMPLE_S = 0.02
_MAX_LOST = 25
_MAX_ROUNDS = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrateConfig:
    """What to calibrate, and where the result goes."""

    model: ArmModel
    """The arm."""
    port: str
    """Serial port, for the robot file."""
    calibration: Path
    """LeRobot's file to write; our notes go beside it."""
    robot_file: Path
    """`robot.toml` to write; of one that exists, cameras and limits stay."""
    adapter_serial: str | None = None
    """Serial number of the USB adapter."""
    cameras: Mapping[str, str] = field(default_factory=dict)
    """Devices of cameras by the name that a bundle asks for; one that the robot file has keeps its crop and size."""


def calibrate(
    servos: ServoBus,
    config: CalibrateConfig,
    dialogue: Dialogue,
    *,
    sleep: Callable[[float], None] = time.sleep,
    now: Callable[[], datetime] = lambda: datetime.now(timezone.utc),
) -> RobotFile:
    """Guides through a calibration, writes registers and files, and returns the robot file's content.

    The arm is limp meanwhile and stays so.

    Raises:
        CheckFailed: A joint could not be judged sound; nothing was written.
        RobotError: A servo does not answer, or does not report what it should after its registers were written.
    """
    pending = _pending_path(config.calibration)
    _robot_of(config)
    ids = {joint.name: joint.id for joint in config.model.motors}
    _require_all(servos, config.model)
    if pending.is_file() and _is_wanted(servos, config.model, pending, dialogue):
        return _finish(servos, config, read_calibration(pending), read_notes(sidecar_path(pending)), dialogue)
    dialogue.ask("The arm goes limp now: hold it, then press Enter. ")
    servos.release(config.model.ids)
    set_modes(servos, config.model)
    offsets = {number: servos.read(number, "homing_offset") for number in ids.values()}
    modes = {name: drive_mode(servos, number) for name, number in ids.items()}
    pose = ZERO_POSE.get(config.model.kinematics or "", "the middle of every joint's travel")
    dialogue.ask(f"Hold the arm in its zero pose: {pose}. Then press Enter. ")
    sweeps = {name: JointSweep(count) for name, count in _counts(servos, ids, offsets, sleep).items()}
    zeros = {name: sweep.start for name, sweep in sweeps.items()}
    facts = joint_facts(config.model)
    _sweep_until_sound(servos, ids, offsets, sweeps, zeros, facts, dialogue, sleep)
    results = {name: calibrate_joint(facts[name], sweep, zeros[name]) for name, sweep in sweeps.items()}
    gripper = config.model.gripper.name
    noted = {name: result.notes for name, result in results.items()}
    noted[gripper] = _gripper_notes(results[gripper].calibration, sweeps[gripper], zeros[gripper])
    notes = CalibrationNotes(
        arm=config.model.name,
        date=now().isoformat(timespec="seconds"),
        adapter_serial=config.adapter_serial,
        motors=noted,
    )
    calibration = {
        name: dataclasses.replace(result.calibration, drive_mode=modes[name]) for name, result in results.items()
    }
    write_calibration(pending, calibration)
    write_notes(sidecar_path(pending), bind_notes(notes, calibration))
    return _finish(servos, config, calibration, notes, dialogue)


def import_calibration(servos: ServoBus | None, config: CalibrateConfig, source: Path, dialogue: Dialogue) -> RobotFile:
    """Takes over a calibration file of LeRobot, unchanged, and writes the robot file.

    With `servos`, their registers are compared with it first, and written when the user says so.

    Raises:
        CheckFailed: The file holds what would be wrong unnoticed.
    """
    _robot_of(config)
    calibration = read_calibration(source)
    problems = check_calibration(config.model, calibration)
    if problems:
        raise CheckFailed(f"{source} cannot be used: {'; '.join(problems)}; sweep the arm: roboalign calibrate")
    side = sidecar_path(source)
    today = datetime.now(timezone.utc).isoformat(timespec="seconds")
    notes = read_notes(side) if side.is_file() else _imported_notes(config, calibration, today)
    stale = find_stale_notes(notes, calibration) if side.is_file() else None
    if stale is not None:
        raise CheckFailed(f"{side} is not of {source.name}: {stale}; remove {side.name} to derive zeros from the sweep")
    if servos is None:
        dialogue.say("No servo was asked whether its registers agree: without the arm's port only the file was read.")
        return _write_files(config, calibration, notes, content=source.read_text(encoding="utf-8"))
    _require_all(servos, config.model)
    motors = {joint.name: calibration[joint.name] for joint in config.model.motors}
    turned = [name for name, motor in motors.items() if is_turned(servos, motor) and not motor.drive_mode]
    if turned:
        raise CheckFailed(
            f"{source} says drive mode 0, the servos of {', '.join(turned)} have 1: LeRobot writes 0 into its file "
            "without asking the servo, so nobody knows how they were swept; sweep the arm: roboalign calibrate"
        )
    other = [name for name, motor in motors.items() if not holds(servos, motor)]
    if other:
        what = f"homing offset or drive mode of {', '.join(other)}"
        if dialogue.ask(f"The servos hold another {what}. Write the file's to them? [y/N] ").lower() not in (
            "y",
            "yes",
        ):
            raise CheckFailed(f"{source} is not the calibration of this arm: {what} differ")
        servos.release(config.model.ids)
        set_modes(servos, config.model)
        for name in other:
            write_motor(servos, config.model.motor(name), calibration[name])
    return _write_files(config, calibration, notes, content=source.read_text(encoding="utf-8"))


def check_calibration(model: ArmModel, calibration: Mapping[str, MotorCalibration]) -> list[str]:
    """Returns what would be wrong unnoticed in a calibration: seams, unmoved joints, ids, travel against the URDF."""
    problems = []
    facts = joint_facts(model)
    missing = [joint.name for joint in model.motors if joint.name not in calibration]
    if missing:
        problems.append(f"it lacks {', '.join(missing)}")
    for name, motor in calibration.items():
        if name in model.others:
            continue
        if name not in facts:
            problems.append(f"{model.name} has no motor {name!r}")
            continue
        if motor.id != facts[name].id:
            problems.append(f"{name} has id {motor.id}, expected {facts[name].id}")
        if motor.range_min < 0 or motor.range_max >= COUNTS_PER_TURN:
            problems.append(f"{name}: {motor.range_min} to {motor.range_max} holds the encoder's seam")
            continue
        sweep = JointSweep(motor.range_min)
        for part in range(1, 9):
            sweep.add(motor.range_min + (motor.range_max - motor.range_min) * part // 8)
        problem = find_problem(facts[name], sweep)
        if problem is not None:
            problems.append(problem)
    return problems


def joint_facts(model: ArmModel) -> dict[str, JointFacts]:
    """Returns what is known about each motor; limits where a simulated arm has the same links."""
    limits: dict[str, tuple[float, float]] = {}
    if model.kinematics is not None:
        spec = find_robot(model.kinematics).spec(96)
        limits = dict(zip(model.joint_names, zip(spec.joint_lower_rad, spec.joint_upper_rad, strict=True), strict=True))
    return {
        joint.name: JointFacts(
            name=joint.name,
            id=joint.id,
            protocol=model.protocol,
            limits_rad=limits.get(joint.name),
            is_full_turn=joint.name in model.full_turn,
        )
        for joint in model.motors
    }


def _is_wanted(servos: ServoBus, model: ArmModel, pending: Path, dialogue: Dialogue) -> bool:
    """Asks whether an earlier run is to be finished; one that was swept with another drive mode cannot be."""
    waiting = read_calibration(pending)
    known = {joint.name for joint in model.motors}
    turned = [name for name, motor in waiting.items() if name in known and is_turned(servos, motor)]
    if turned:
        dialogue.say(f"What waits in {pending} was swept with another drive mode of {', '.join(turned)}: sweep again.")
        return False
    question = f"A calibration of an earlier run waits in {pending} to be written. Finish it? [Y/n] "
    return dialogue.ask(question).lower() in ("", "y", "yes")


def _sweep_until_sound(
    servos: ServoBus,
    ids: Mapping[str, int],
    offsets: Mapping[int, int],
    sweeps: dict[str, JointSweep],
    zeros: Mapping[str, int],
    facts: Mapping[str, JointFacts],
    dialogue: Dialogue,
    sleep: Callable[[float], None],
) -> None:
    dialogue.say("Now move every joint slowly from one end stop to the other, the gripper too. Press Enter when done.")
    problems: list[str] = []
    for _ in range(_MAX_ROUNDS):
        dialogue.is_done()  # an Enter of before does not count
        lost = [name for name, sweep in sweeps.items() if sweep.is_lost]
        for name, count in (_counts(servos, ids, offsets, sleep) if lost else {}).items():
            if name in lost:
                sweeps[name] = JointSweep(count)
        while True:
            for name, count in _counts(servos, ids, offsets, sleep).items():
                sweeps[name].add(count)
            if dialogue.is_done():
                break
            sleep(_SAMPLE_S)
        found = [find_problem(facts[name], sweep, zeros[name]) for name, sweep in sweeps.items()]
        problems = [problem for problem in found if problem is not None]
        if not problems:
            return
        for problem in problems:
            dialogue.say(f"  {problem}")
        if any(sweep.travel >= COUNTS_PER_TURN for name, sweep in sweeps.items() if not facts[name].is_full_turn):
            break
        dialogue.say("Move those joints again (what was swept counts), then press Enter; Ctrl-C gives up.")
    raise CheckFailed(f"calibration refused, nothing was written: {'; '.join(problems)}")


def _counts(
    servos: ServoBus, ids: Mapping[str, int], offsets: Mapping[int, int], sleep: Callable[[float], None]
) -> dict[str, int]:
    """Returns one reading of all motors; waits for one that is missing, because a gap would hide which way it went."""
    for _ in range(_MAX_LOST):
        counts = servos.encoder_counts(tuple(ids.values()), offsets)
        if len(counts) == len(ids):
            return {name: counts[number] for name, number in ids.items()}
        sleep(_SAMPLE_S)
    lost = [name for name, number in ids.items() if number not in counts]
    raise RobotError(
        f"{', '.join(lost)} stopped answering during the sweep; check the cable there, nothing was written"
    )


def _require_all(servos: ServoBus, model: ArmModel) -> None:
    silent = [joint.name for joint in model.motors if joint.id not in servos.read_many((joint.id,), "present_position")]
    if silent:
        raise RobotError(
            f"{', '.join(silent)} does not answer on {servos.name}; find out why: roboalign doctor --port {servos.name}"
        )


def _gripper_notes(calibration: MotorCalibration, sweep: JointSweep, closed: int) -> MotorNotes:
    """In the zero pose the jaws are closed: whichever end of the sweep is nearer is where they close.

    A gripper that closes at the upper end opens against the counts: with direction 1 every goal but "closed" lay
    outside its sweep, so it never opened, and its width read 0.
    """
    is_low = abs(sweep.near(closed) - sweep.low) <= abs(sweep.near(closed) - sweep.high)
    ends = (calibration.range_min, calibration.range_max)
    closed_count, open_count = ends if is_low else ends[::-1]
    direction = 1 if is_low else -1
    return MotorNotes(direction=direction, closed_count=closed_count, open_count=open_count, seam_checked=True)


def _imported_notes(
    config: CalibrateConfig, calibration: Mapping[str, MotorCalibration], date: str
) -> CalibrationNotes:
    """LeRobot's degrees are zero at the middle of the range; the URDF's zero follows from its limits."""
    facts = joint_facts(config.model)
    motors = {}
    for name, fact in facts.items():
        motor, limits = calibration[name], fact.limits_rad
        middle = (motor.range_min + motor.range_max) / 2
        zero = None if limits is None or fact.is_full_turn else middle - _counts_of((limits[0] + limits[1]) / 2)
        motors[name] = MotorNotes(zero_count=zero)
    return CalibrationNotes(arm=config.model.name, date=date, adapter_serial=config.adapter_serial, motors=motors)


def _counts_of(rad: float) -> float:
    return rad * COUNTS_PER_TURN / 6.283185307179586


def _finish(
    servos: ServoBus,
    config: CalibrateConfig,
    calibration: Mapping[str, MotorCalibration],
    notes: CalibrationNotes,
    dialogue: Dialogue,
) -> RobotFile:
    """Writes the registers, then the files, then forgets what was pending."""
    servos.release(config.model.ids)
    for name, motor in calibration.items():
        write_motor(servos, config.model.motor(name), motor)
        dialogue.say(f"  {name}: offset {motor.homing_offset:+d}, {motor.range_min} to {motor.range_max} counts")
    robot = _write_files(config, calibration, notes)
    pending = _pending_path(config.calibration)
    for path in (pending, sidecar_path(pending)):
        path.unlink(missing_ok=True)
    dialogue.say(f"Written: {config.calibration}, {sidecar_path(config.calibration).name}, {config.robot_file}")
    return robot


def _write_files(
    config: CalibrateConfig,
    calibration: Mapping[str, MotorCalibration],
    notes: CalibrationNotes,
    *,
    content: str | None = None,
) -> RobotFile:
    """Writes calibration, notes and robot file; `content` is a LeRobot file to take over byte for byte."""
    if content is None:
        write_calibration(config.calibration, calibration)
    else:
        config.calibration.parent.mkdir(parents=True, exist_ok=True)
        partial = config.calibration.with_name(f".{config.calibration.name}.partial")
        partial.write_text(content, encoding="utf-8")
        partial.replace(config.calibration)
    write_notes(sidecar_path(config.calibration), bind_notes(notes, calibration))
    robot = _robot_of(config)
    write_robot_file(config.robot_file, robot)
    return robot


def _robot_of(config: CalibrateConfig) -> RobotFile:
    """The robot file to write: what is there already stays, but one of another arm is not overwritten."""
    path = config.calibration.absolute()
    known = RobotFile(arm=config.model.name, port=config.port, calibration=path)
    if config.robot_file.is_file():
        known = read_robot_file(config.robot_file)
    if known.arm != config.model.name:
        raise ConfigError(
            f"{config.robot_file} is of a {known.arm}, not of a {config.model.name}; name another file with --out"
        )
    new = CameraFile(device="", size_px=known.image_size_px)
    cameras = {
        name: dataclasses.replace(known.cameras.get(name, new), device=device)
        for name, device in config.cameras.items()
    }
    return dataclasses.replace(known, port=config.port, calibration=path, cameras={**known.cameras, **cameras})


def _pending_path(calibration: Path) -> Path:
    return calibration.with_name(f".{calibration.stem}.pending{calibration.suffix}")
