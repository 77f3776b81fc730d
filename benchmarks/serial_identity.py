"""The shipped SO-101 policy behind serial bytes and without them: the same run bit by bit, and success beside SimEnv's.

    python benchmarks/serial_identity.py --episodes 100 --terminal 10 --out benchmarks/evidence/serial_identity.json

Every scene is played three times by the same policy, from the same start:

    direct   PyBullet's SO-101 with the servos' quantisation and latency, and no bytes (`DirectServos`)
    bytes    the same arm behind Feetech's packets: codec, bus and driver; in memory, and for the first `--terminal`
             scenes also through a pseudo-terminal to `roboalign sim-bus --lockstep` in a process of its own
    plain    `SimEnv`, without quantisation and without latency

`direct` and `bytes` share what is above the servos (kinematics, limiter, the bus owner's cycle) and below them (servos,
PyBullet). In every control period they must agree in joint targets, readings, registers of all servos, physical state,
picture, thought and action. Success of `bytes` and `plain` is compared scene by scene. Time passes by readings, 100 a
second as in the real driver, so nothing depends on the machine.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from roboalign import sdk
from roboalign.drivers.arm.assembly import ArmParts, assemble
from roboalign.drivers.arm.calibration import (
    CalibrationNotes,
    MotorCalibration,
    MotorNotes,
    bind_notes,
    sidecar_path,
    write_calibration,
    write_notes,
)
from roboalign.drivers.arm.core import ArmCore
from roboalign.drivers.arm.files import CameraFile, RobotFile
from roboalign.drivers.arm.links import InlineLink
from roboalign.drivers.arm.models import COUNTS_PER_TURN, find_arm
from roboalign.drivers.arm.readings import ServoPort
from roboalign.drivers.arm.serial_arm import Pictures, SerialArm
from roboalign.drivers.arm.servos import BusServos
from roboalign.drivers.bus.bus import Bus
from roboalign.drivers.bus.feetech import Feetech
from roboalign.drivers.bus.transport import SerialTransport
from roboalign.drivers.bus.types import PortLost
from roboalign.drivers.cameras import CameraSet
from roboalign.drivers.virtual import VirtualBus, VirtualBusConfig, VirtualPort, build_line
from roboalign.drivers.virtual.arm import VirtualArm
from roboalign.drivers.virtual.bullet import BulletPlant
from roboalign.drivers.virtual.control import ControlClient
from roboalign.drivers.virtual.direct import DirectServos
from roboalign.drivers.virtual.faults import LineFault
from roboalign.drivers.virtual.robots import JOINTS
from roboalign.sdk.control import Actor, FakeClock, state_from_pose, tool_pose
from roboalign.sdk.control.pictures import PictureRing
from roboalign.sdk.evaluation.statistics import paired_difference
from roboalign.sdk.sim import SceneSpec, SimEnv, eval_seed, find_robot, find_task, scene_for
from roboalign.sdk.sim.judge import scene_truth
from roboalign.sdk.sim.so101 import so101_spec
from roboalign.sdk.sim.world import BodyState
from roboalign.sdk.types import ImageArray

RATE_HZ = 100.0
TASKS = ("place", "push")
"""What the policy was trained for, in turn."""
IDS = (1, 2, 3, 4, 5, 6)
WAIT_S = 20.0
_GRIPPER_RAD = (-0.174533, 1.74533)
_COUNT_RAD = 2 * math.pi / COUNTS_PER_TURN


def write_robot(folder: Path, port: str) -> ArmParts:
    """Returns the parts of a calibrated SO-101 whose horns sit at their middle, as `sim-bus` mounts them."""
    spec, model = so101_spec(), find_arm("so101")
    limits = [*zip(spec.joint_lower_rad, spec.joint_upper_rad, strict=True), _GRIPPER_RAD]
    middle = COUNTS_PER_TURN // 2
    motors = {
        motor.name: MotorCalibration(
            id=motor.id,
            drive_mode=0,
            homing_offset=0,
            range_min=middle + math.ceil(low / _COUNT_RAD),
            range_max=middle + math.floor(high / _COUNT_RAD),
        )
        for motor, (low, high) in zip(model.motors, limits, strict=True)
    }
    path = folder / "so101.json"
    write_calibration(path, motors)
    notes = {name: MotorNotes(zero_count=middle, seam_checked=True) for name in motors}
    written = CalibrationNotes(arm="so101", date="2026-01-01T00:00:00", motors=notes)
    write_notes(sidecar_path(path), bind_notes(written, motors))
    cameras = {"front": CameraFile(device=f"sim:{port}")}
    return assemble(RobotFile(arm="so101", port=port, calibration=path, cameras=cameras))


@dataclass(frozen=True, kw_only=True)
class Side:
    """One way to the arm."""

    robot: SerialArm
    servos: ServoPort
    place: Callable[[str, float], None]
    memories: Callable[[], list[bytes]]
    joints: Callable[[], list[float]]
    bodies: Callable[[], Mapping[str, BodyState]]
    state_hash: Callable[[], str]

    def start(self, joints_rad: NDArray[np.float64], gripper_rad: float) -> None:
        """Puts the arm where the episode starts, without time, and takes hold of it."""
        for name, rad in zip(JOINTS, (*joints_rad.tolist(), gripper_rad), strict=True):
            self.place(name, rad)
        self.robot.connect()


class PlantPictures:
    """The camera of a plant in this process."""

    age_s = 0.0

    def __init__(self, plant: BulletPlant) -> None:
        self._plant = plant

    def open(self) -> None:
        """Nothing to open."""

    def lend(self, rings: Mapping[str, PictureRing]) -> None:
        """Draws into memory of its own."""

    def read_images(self) -> dict[str, ImageArray]:
        """Draws the scene."""
        return {"front": self._plant.frame("front", 96)}

    def close(self) -> None:
        """Nothing to close."""


class PatientTransport(SerialTransport):
    """A serial port whose deadlines are on a clock that stands still: bytes are waited for by the machine's clock."""

    def __init__(self, port: str, clock: FakeClock) -> None:
        super().__init__(port)
        self._clock = clock

    def write(self, data: bytes, deadline_s: float) -> None:
        """Sends all bytes."""
        super().write(data, time.monotonic() + WAIT_S)

    def read(self, deadline_s: float) -> bytes:
        """Waits for bytes; a deadline that is over takes what is there."""
        if deadline_s <= self._clock.now():
            return super().read(0.0)
        data = super().read(time.monotonic() + WAIT_S)
        if not data:
            raise PortLost(f"{self.name} has not answered for {WAIT_S:g} s")
        return data


def _put_together(parts: ArmParts, servos: ServoPort, clock: FakeClock, pictures: Pictures) -> SerialArm:
    core = ArmCore(servos, parts.joints, parts.settings, clock)
    return SerialArm(parts, cameras=pictures, link=lambda _: InlineLink(core, clock))


def _in_process(arm: VirtualArm, robot: SerialArm, servos: ServoPort) -> Side:
    plant = arm.plant
    assert isinstance(plant, BulletPlant)
    return Side(
        robot=robot,
        servos=servos,
        place=lambda joint, rad: arm.suffer(LineFault(kind="place", joint=joint, rad=rad)),
        memories=lambda: [bytes(arm.find(number).memory) for number in IDS],
        joints=lambda: [state.position_rad for state in plant.states()],
        bodies=plant.body_states,
        state_hash=plant.state_hash,
    )


def open_side(way: str, scene: tuple[int, str], folder: Path, opened: ExitStack) -> Side:
    """Opens one way to the arm in front of the scene of a seed and a task: `direct`, `memory` or `terminal`."""
    seed, task = scene
    config = VirtualBusConfig(robot="so101", is_lockstep=True, rate_hz=RATE_HZ, task=task, seed=seed)
    parts, clock = write_robot(folder, str(folder / "arm")), FakeClock(100.0)
    if way == "terminal":
        bus = opened.enter_context(VirtualBus(folder / "arm", config))
        servos = BusServos(Bus(PatientTransport(bus.port, clock), Feetech(), clock=clock), parts)
        opened.callback(servos.close)
        pictures = CameraSet(parts.file.cameras)
        opened.callback(pictures.close)
        return _behind(bus.control, _put_together(parts, servos, clock, pictures), servos)
    line = build_line(config)
    opened.callback(line.arm.plant.close)
    plant = line.arm.plant
    assert isinstance(plant, BulletPlant)
    if way == "direct":
        direct = DirectServos(line.arm, clock, 1.0 / RATE_HZ)
        return _in_process(line.arm, _put_together(parts, direct, clock, PlantPictures(plant)), direct)
    servos = BusServos(Bus(VirtualPort(line, clock), Feetech(), clock=clock), parts)
    return _in_process(line.arm, _put_together(parts, servos, clock, PlantPictures(plant)), servos)


def _behind(control: ControlClient, robot: SerialArm, servos: ServoPort) -> Side:
    return Side(
        robot=robot,
        servos=servos,
        place=lambda joint, rad: control.fault("place", joint=joint, rad=rad),
        memories=lambda: [control.memory(number) for number in IDS],
        joints=lambda: [float(value) for value in control.state()["position_rad"]],
        bodies=control.bodies,
        state_hash=lambda: str(control.ask("bodies")["state_hash"]),
    )


@dataclass(kw_only=True)
class Played:
    """One episode."""

    success: bool = False
    steps: int = 0
    periods: list[dict[str, str]] = field(default_factory=list)
    """By control period, what must agree: digests by name."""


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:24]


def play(side: Side, policy: Actor, scene: SceneSpec, max_steps: int | None = None) -> Played:
    """Lets the policy act on an arm that has been started, until the task is done or its time is up."""
    task, kinematics = find_task(scene.task_name), find_robot("so101").kinematics()
    last = task.max_steps if max_steps is None else max_steps
    starts_m = {name: body.position_m for name, body in side.bodies().items()}
    played = Played()
    policy.reset()
    while not played.success and played.steps < last:
        seen = side.robot.observe(scene.instruction)
        chunk = policy.act(seen)
        asked = {
            "picture": _digest(seen.images["front"].tobytes()),
            "readings": _digest(seen.state.tobytes(), seen.joint_pos_rad.tobytes()),
            "thought": str(chunk.thought),
            "actions": _digest(chunk.source.encode(), chunk.actions.tobytes()),
        }
        for action in chunk.actions:
            applied = side.robot.act(action)
            played.steps += 1
            side.servos.goal(0)  # answered after all goals: what was sent has arrived when registers are looked at
            joints = side.joints()
            played.periods.append(
                {
                    **asked,
                    "targets": _digest(applied.joint_target_rad.tobytes(), applied.sent.tobytes()),
                    "registers": _digest(*side.memories()),
                    "joints": _digest(np.array(joints).tobytes()),
                    "state": side.state_hash(),
                }
            )
            width_m = find_robot("so101").gripper.width_m((joints[-1],))
            state = state_from_pose(kinematics.forward(np.array(joints[:-1])), width_m)
            truth = scene_truth(scene, side.bodies(), state, starts_m)
            played.success = bool(task.is_success(truth))
            if played.success or played.steps >= last:
                break
    return played


def play_plain(env: SimEnv, policy: sdk.Policy, seed: int, task: str) -> Played:
    """The same scene in `SimEnv`."""
    env.reset(seed=seed, options={"task": task})
    policy.reset()
    played, is_over = Played(), False
    while not is_over:
        for action in policy.act(env.observe()).actions:
            _, _, played.success, is_cut, _ = env.step(action)
            played.steps += 1
            is_over = played.success or is_cut
            if is_over:
                break
    return played


def start_of(scene: SceneSpec) -> tuple[NDArray[np.float64], float]:
    """Returns joints and gripper as `SimRobot.load_scene` starts with them."""
    model = find_robot("so101")
    home = so101_spec().home_joint_pos_rad
    pose = tool_pose(scene.tool_start_m, scene.tool_yaw_rad)
    found = model.kinematics().inverse(pose, home, rest_joint_pos_rad=home, position_tolerance_m=1e-6)
    return found.joint_pos_rad, model.gripper.joint_targets(model.gripper.max_width_m)[0]


def first_difference(one: Played, other: Played) -> str:
    """Returns where two runs differ first, empty when nowhere."""
    for number, (a, b) in enumerate(zip(one.periods, other.periods, strict=False)):
        names = [name for name in a if a[name] != b[name]]
        if names:
            return f"period {number}: {', '.join(names)}"
    return "" if len(one.periods) == len(other.periods) else f"{len(one.periods)} and {len(other.periods)} periods"


def run_on(way: str, seed: int, task: str, policy: Actor, max_steps: int | None = None) -> Played:
    """Plays the scene of a seed and a task on one way to the arm."""
    scene = scene_for(seed, task, "train", "so101")
    with tempfile.TemporaryDirectory() as folder, ExitStack() as opened:
        side = open_side(way, (seed, task), Path(folder), opened)
        side.start(*start_of(scene))
        return play(side, policy, scene, max_steps)


@dataclass(kw_only=True)
class Found:
    """What was found so far, scene by scene."""

    terminal: int
    serial: list[bool] = field(default_factory=list)
    plain: list[bool] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    compared: dict[str, int] = field(default_factory=lambda: {"memory": 0, "terminal": 0})
    start_s: float = field(default_factory=time.process_time)

    def to_json(self) -> dict[str, object]:
        """Returns the result, as it is kept in `evidence/`."""
        count = len(self.serial)
        pairs = paired_difference(self.serial, self.plain, [TASKS[number % len(TASKS)] for number in range(count)])
        return {
            "policy": "nano-so101",
            "tasks": TASKS,
            "scenes": f"eval_seed(0..{count - 1})",
            "episodes": count,
            "episodes_through_a_terminal": min(self.terminal, count),
            "control_periods_compared": self.compared,
            "differences": self.differences,
            "serial_successes": sum(self.serial),
            "plain_successes": sum(self.plain),
            "only_serial": pairs.num_only_first,
            "only_plain": pairs.num_only_second,
            "difference": pairs.difference,
            "interval_95": [pairs.interval.low, pairs.interval.high],
            "cpu_s": round(time.process_time() - self.start_s),
        }


def measure(episodes: int, terminal: int, out: Path | None, say: Callable[[str], None]) -> Found:
    """Plays all scenes and returns what was found; it is written after each one, so that a stopped run counts."""
    found, env = Found(terminal=terminal), SimEnv(TASKS[0], robot="so101")
    with sdk.Policy.load("nano-so101") as policy:
        for number in range(episodes):
            seed, task = eval_seed(number), TASKS[number % len(TASKS)]
            direct = run_on("direct", seed, task, policy)
            for way in ("memory", "terminal")[: 1 + (number < terminal)]:
                behind = run_on(way, seed, task, policy)
                found.compared[way] += len(behind.periods)
                if where := first_difference(direct, behind):
                    found.differences.append(f"{task} {seed}, direct and {way}: {where}")
            found.serial.append(behind.success)
            found.plain.append(play_plain(env, policy, seed, task).success)
            outcome = f"serial {found.serial[-1]:d}  plain {found.plain[-1]:d}"
            say(f"{number + 1:4}  {outcome}  {len(found.differences)} differences")
            if out is not None:
                out.write_text(json.dumps(found.to_json(), indent=2) + "\n", encoding="utf-8")
    env.close()
    return found


def main() -> None:
    """Reads the options, prints each scene and the result; exits with 1 when two runs differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=20, help="scenes (20)")
    parser.add_argument("--terminal", type=int, default=3, help="of these, through a pseudo-terminal as well (3)")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args()
    found = measure(args.episodes, args.terminal, args.out, lambda line: print(line, flush=True))
    print(json.dumps(found.to_json(), indent=2))
    if found.differences:
        raise SystemExit("the two ways to the arm differ")


if __name__ == "__main__":
    main()
