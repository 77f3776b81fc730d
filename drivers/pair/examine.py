"""`examine_pair`: a policy, the machine under it, what feeds it and what it moves; every fault with its remedy."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from roboalign.drivers.arm.loading import load_robot
from roboalign.drivers.arm.serial_arm import SerialArm
from roboalign.drivers.doctor import examine
from roboalign.drivers.pair.host_checks import check_backend, check_disk, check_power
from roboalign.drivers.pair.picture_checks import check_pictures
from roboalign.drivers.pair.policy_checks import (
    ProbedPolicy,
    ask_policy,
    check_arrival,
    check_instruction,
    check_speed,
)
from roboalign.drivers.pair.reference import make_reference
from roboalign.drivers.pair.session import Evidence, move_and_look
from roboalign.drivers.pair.simulated import SIMULATION, simulated_reference, simulated_robot
from roboalign.drivers.pair.state_checks import check_axes, check_gripper, check_state
from roboalign.drivers.setup.checks import Check, DoctorReport
from roboalign.drivers.setup.dialogue import Dialogue
from roboalign.drivers.setup.machine import Machine
from roboalign.drivers.setup.run import ask_before_moving, check_fit, in_use, names_of
from roboalign.sdk.bundle import Bundle, PolicySpec, find_bundle, read_bundle, require_robot
from roboalign.sdk.errors import CheckFailed, ConfigError, RoboalignError, RobotError
from roboalign.sdk.policy import Policy
from roboalign.sdk.seen import VECTORS_NAME, read_seen
from roboalign.sdk.sim.robot import SimRobot
from roboalign.sdk.sim.robots import ROBOTS
from roboalign.sdk.types import Observation, RobotSpec
from roboalign.sdk.views.reference import Reference, find_reference, read_reference, write_reference

__all__ = ["PairConfig", "check_fitting", "examine_evidence", "examine_machine", "examine_pair", "examine_policy"]

_SENTENCES = ("put the red block in the blue bowl", "push the green cylinder to the left")


@dataclass(frozen=True, kw_only=True, slots=True)
class PairConfig:
    """What to examine."""

    bundle: str | Path
    """Folder, or the name of a shipped bundle."""
    robot: str | Path | None = None
    """Robot file, or `sim`; None examines the policy alone."""
    task: str | None = None
    """A sentence that fits what stands before the arm; None takes one that the bundle knows."""
    backend: str = "auto"
    """The backend that should be active."""
    traces: Path = Path("runs")
    """Folder in which traces are written."""
    reference: Path | None = None
    """How the pair looks when it is in order; None looks beside the bundle."""
    make_reference: Path | None = None
    """File to write a reference of this pair to, which must be in order."""
    is_sure: bool = False
    """Do not ask before the arm moves."""


def examine_pair(
    config: PairConfig,
    dialogue: Dialogue,
    *,
    machine: Machine | None = None,
    load: Callable[[str | Path], SerialArm | SimRobot] = load_robot,
    look: Callable[..., DoctorReport] = examine,
) -> DoctorReport:
    """Returns what was found. Moves the arm of a robot file only after a yes.

    Args:
        config: What to examine.
        dialogue: Where it asks before it moves.
        machine: Where to look; this machine by default.
        load: Makes the arm of a robot file; for tests.
        look: Looks at its port, servos and cameras before it is moved; for tests.

    Raises:
        BundleError: There is no such bundle, or it is damaged.
        ConfigError: A name is unknown, or a reference was asked for and cannot be made.
    """
    where = Machine() if machine is None else machine
    bundle = read_bundle(find_bundle(config.bundle))
    reference = _find_reference(config, bundle)
    checks = [Check.passed("bundle", f"{config.bundle}: {bundle.manifest.name}, every file as it was written")]
    checks += examine_machine(bundle, config, where)
    backend = checks[1]
    seen = read_seen(bundle.file(VECTORS_NAME)) if VECTORS_NAME in bundle.manifest.files else ()
    known = (*(o.instruction for o in seen), *(() if reference is None else reference.sentences), *_SENTENCES)
    evidence: Evidence | None = None
    if config.robot is None:
        checks.append(Check.skipped("pair", "no robot was named; add --robot robot.toml, or --robot sim"))
    elif config.robot == SIMULATION:
        evidence = _simulate(bundle, config.task)
    else:
        looked = look(config.robot, machine=where)
        checks += looked.checks
        if looked.is_ok:
            found, evidence = _move(
                load(config.robot), bundle, config.task or known[0], dialogue, is_sure=config.is_sure
            )
            checks += found
        else:
            failed = ", ".join(check.name for check in looked.failed)
            checks.append(Check.skipped("pair", f"nothing was moved: mend {failed} first"))
    if evidence is not None:
        checks += check_fitting(evidence.spec, bundle.manifest.policy, str(config.bundle))
        checks += examine_evidence(evidence, bundle.manifest.policy, reference)
        seen, known = tuple(moment.seen for moment in evidence.moments), (evidence.sentence, *known)
    if config.make_reference is not None:
        _write_reference(config, config.make_reference, evidence, checks)
    sentences = known if config.task is None else (config.task, *known)
    checks += _examine_loaded(bundle, config.backend, seen, sentences, backend)
    return DoctorReport(checks=tuple(checks))


def _find_reference(config: PairConfig, bundle: Bundle) -> Reference | None:
    path = config.reference or find_reference(bundle.path)
    if path is None:
        return None
    reference, identity = read_reference(path), bundle.manifest.robot
    if identity is not None and identity.name and reference.robot != identity.name:
        raise ConfigError(
            f"{path} is of a {reference.robot}, the bundle is for a {identity.name}; name the reference of this pair"
        )
    return reference


def _simulate(bundle: Bundle, task: str | None) -> Evidence:
    with simulated_robot(_simulated_arm(bundle)) as (env, robot):
        kinematics = env.robot.model.kinematics()
        return move_and_look(robot, task or env.instruction, kinematics=kinematics, sleep=_no_wait)


def examine_machine(bundle: Bundle, config: PairConfig, machine: Machine) -> list[Check]:
    """Returns what can be said without a robot and without asking the policy anything."""
    return [check_backend(bundle, config.backend, machine), check_power(machine), check_disk(config.traces, machine)]


def check_fitting(robot: RobotSpec, policy: PolicySpec, name: str) -> list[Check]:
    """Returns whether names, sizes, places and rates are the same; cameras that only the robot has are a warning."""
    extra = [camera for camera in robot.camera_names if camera not in policy.camera_names]
    given = tuple(camera for camera in robot.camera_names if camera in policy.camera_names)
    try:
        check_fit(replace(robot, camera_names=given), policy, name)
    except ConfigError as err:
        return [Check.failed("fit", str(err), "change what it names in robot.toml, or name the right bundle")]
    if extra:
        found = f"the robot has the camera {', '.join(extra)} too, which the policy does not know"
        return [Check.warning("fit", found, "remove it from robot.toml before you run; run refuses it")]
    return [Check.passed("fit", "cameras, sizes, fields, places and rate are the policy's")]


def examine_evidence(evidence: Evidence, policy: PolicySpec, reference: Reference | None) -> list[Check]:
    """Returns what is wrong between a policy and a robot that was looked at while it moved."""
    reading = check_state(evidence)
    checks = [*reading.checks, check_gripper(evidence, reading), check_axes(evidence, reading)]
    checks += check_pictures(evidence, policy.camera_names, reading.tool, reference)
    arrival = check_arrival(evidence)
    return checks if arrival is None else [*checks, arrival]


def examine_policy(
    policy: ProbedPolicy,
    observations: Sequence[Observation],
    sentences: Sequence[str],
    clock: Callable[[], float] = time.perf_counter,
) -> list[Check]:
    """Returns whether a policy listens, and answers in time."""
    try:
        answers = ask_policy(policy, observations, sentences, clock)
    except RoboalignError as err:
        return [Check.failed("instruction", f"the policy cannot answer: {err}", "mend what it says, then look again")]
    return [check_instruction(answers, policy.spec), check_speed(answers, policy.spec)]


def _examine_loaded(
    bundle: Bundle, backend: str, seen: Sequence[Observation], sentences: Sequence[str], opened: Check
) -> list[Check]:
    if not seen:
        why = "cannot tell: the bundle holds no observations; name a robot, or export it again"
        return [Check.skipped("instruction", why), Check.skipped("policy speed", why)]
    try:
        policy = Policy.load(bundle.path, backend=backend)
    except RoboalignError:
        if opened.status != "failed":
            raise
        return [Check.skipped(name, "see backend") for name in ("instruction", "policy speed")]
    with policy:
        return examine_policy(policy, seen, sentences)


def _simulated_arm(bundle: Bundle) -> str:
    identity = bundle.manifest.robot
    if identity is None or identity.name not in ROBOTS:
        name = "an unnamed robot" if identity is None else identity.name
        raise ConfigError(f"bundle {bundle.path} is for {name}, which is not simulated; name a robot file instead")
    return identity.name


def _move(
    arm: SerialArm | SimRobot, bundle: Bundle, sentence: str, dialogue: Dialogue, *, is_sure: bool
) -> tuple[list[Check], Evidence | None]:
    """Moves the arm and looks, where the bundle is for it and after a yes; else says why it did not."""
    needs = bundle.manifest.policy
    try:
        require_robot(bundle.manifest, names_of(arm), bundle.path)
        check_fit(replace(arm.spec, camera_names=needs.camera_names), needs, bundle.path.name)
    except RoboalignError as err:
        return [Check.failed("fit", str(err), "name a bundle that was trained for this arm")], None
    try:
        ask_before_moving(arm.spec, dialogue, is_sure=is_sure or isinstance(arm, SimRobot))
    except CheckFailed as err:
        return [Check.skipped("pair", f"{err}; --yes skips the question")], None
    try:
        with in_use(arm, dialogue):
            sleep = _no_wait if isinstance(arm, SimRobot) else time.sleep
            return [], move_and_look(arm, sentence, kinematics=arm.kinematics, sleep=sleep)
    except RobotError as err:
        remedy = "see what stopped it; roboalign doctor robot.toml looks at the servos without moving them"
        return [Check.failed("robot answers", str(err), remedy)], None


def _write_reference(config: PairConfig, out: Path, evidence: Evidence | None, checks: Sequence[Check]) -> None:
    """Remembers a pair that is in order; the checks that need a reference are not asked."""
    if evidence is None:
        raise ConfigError("no reference was made: it takes a robot that moves; add --robot robot.toml, or --robot sim")
    needing = ("camera swap", "picture orientation", "colour order")
    wrong = [check.name for check in checks if check.status == "failed" and check.name not in needing]
    if wrong:
        raise ConfigError(f"no reference was made, because the pair is not in order: {', '.join(wrong)}")
    if config.robot == SIMULATION:
        write_reference(out, simulated_reference(evidence.spec.name))
        return
    source = f"one session, {time.strftime('%Y-%m-%d')}"
    write_reference(out, make_reference([evidence], robot=evidence.spec.name, source=source))


def _no_wait(seconds: float) -> None:
    """Simulated time passes with `act`."""
