"""A virtual SO-101 on a line in memory, with a calibration and a robot file: everything runs, no time passes."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

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
from roboalign.drivers.arm.files import Geometry, RobotFile
from roboalign.drivers.arm.links import InlineLink
from roboalign.drivers.arm.models import find_arm
from roboalign.drivers.arm.serial_arm import SerialArm
from roboalign.drivers.arm.servos import BusServos
from roboalign.drivers.bus.bus import Bus
from roboalign.drivers.bus.dynamixel import Dynamixel
from roboalign.drivers.bus.feetech import Feetech
from roboalign.drivers.virtual.arm import VirtualArm
from roboalign.drivers.virtual.dialects import FeetechDialect, XDialect
from roboalign.drivers.virtual.faults import FaultPlan, LineFault
from roboalign.drivers.virtual.line import VirtualLine
from roboalign.drivers.virtual.physics import JointPlant
from roboalign.drivers.virtual.port import VirtualPort
from roboalign.drivers.virtual.robots import make_arm
from roboalign.sdk.control.clock import FakeClock
from roboalign.sdk.sim.robots import find_robot
from roboalign.sdk.sim.so101 import so101_spec, so101_urdf

MIDDLE = 2048
COUNT_RAD = 2 * math.pi / 4096


def write_files(folder: Path, arm: str = "so101", **changes: object) -> RobotFile:
    """Writes calibration and notes of a virtual arm, and returns its robot file, not written."""
    spec, names = so101_spec(), [motor.name for motor in find_arm(arm).motors]
    limits = [*zip(spec.joint_lower_rad, spec.joint_upper_rad, strict=True), (-0.174533, 1.74533)]
    motors = {
        name: MotorCalibration(
            id=number,
            drive_mode=0,
            homing_offset=0,
            range_min=MIDDLE + math.ceil(low / COUNT_RAD),
            range_max=MIDDLE + math.floor(high / COUNT_RAD),
        )
        for number, (name, (low, high)) in enumerate(zip(names, limits, strict=True), start=1)
    }
    path = folder / f"{arm}.json"
    write_calibration(path, motors)
    notes = {name: MotorNotes(zero_count=MIDDLE, seam_checked=True) for name in motors}
    noted = CalibrationNotes(arm=arm, date="2026-01-01T00:00:00", motors=notes)
    write_notes(sidecar_path(path), bind_notes(noted, motors))
    values: dict[str, object] = {"arm": arm, "port": "virtual0", "calibration": path}
    if find_arm(arm).kinematics is None:
        values["geometry"] = so101_geometry(folder)
    return RobotFile(**(values | changes))  # type: ignore[arg-type]


def so101_geometry(folder: Path) -> Geometry:
    """The links of the SO-101 as a URDF of the user's own."""
    urdf = folder / "arm.urdf"
    urdf.write_text(so101_urdf())
    spec = so101_spec()
    return Geometry(
        urdf=urdf,
        tool_link=find_robot("so101").tool_link,
        home_rad=spec.home_joint_pos_rad,
        park_rad=spec.park_joint_pos_rad,
        workspace_lower_m=spec.workspace_lower_m,
        workspace_upper_m=spec.workspace_upper_m,
        gripper_max_width_m=0.05,
    )


class Port(VirtualPort):
    """A port with a rate, as a bus wants it."""

    baud = 1_000_000

    def set_baud(self, baud: int) -> None:
        """Changes the rate."""
        self.baud = baud


@dataclass
class Rig:
    """One arm, from the policy's end to the joints."""

    clock: FakeClock
    line: VirtualLine
    virtual: VirtualArm
    plant: JointPlant
    parts: ArmParts
    servos: BusServos
    core: ArmCore
    link: InlineLink
    robot: SerialArm

    def suffer(self, kind: str, **values: object) -> None:
        """Lets a fault happen now."""
        self.line.inject(LineFault(kind=kind, **values))  # type: ignore[arg-type]

    def torques(self) -> list[bool]:
        """Which servos have torque, as they know it."""
        return [servo.is_torque_on for servo in self.virtual.servos]

    def word(self, number: int, address: int) -> int:
        """Two bytes in the memory of a servo."""
        return int.from_bytes(self.virtual.find(number).memory[address : address + 2], "little")


def make_rig(
    folder: Path, arm: str = "so101", *, plant: JointPlant | None = None, seed: int = 0, **file: object
) -> Rig:
    """Puts a rig together; nothing is connected."""
    parts = assemble(write_files(folder, arm, **file))
    clock = FakeClock(100.0)
    virtual = make_arm(arm, plant=plant)
    is_feetech = parts.file.model.protocol == "feetech"
    line = VirtualLine(virtual, FeetechDialect() if is_feetech else XDialect(), faults=FaultPlan(seed=seed))
    port = Port(line, clock)
    servos = BusServos(Bus(port, Feetech() if is_feetech else Dynamixel(), clock=clock), parts)
    core = ArmCore(servos, parts.joints, parts.settings, clock)
    link = InlineLink(core, clock)
    robot = SerialArm(parts, link=lambda _: link)
    return Rig(clock, line, virtual, virtual.plant, parts, servos, core, link, robot)


def with_settings(rig: Rig, **changes: object) -> None:
    """Changes settings of a core that was not opened yet."""
    rig.core.settings = dataclasses.replace(rig.core.settings, **changes)  # type: ignore[arg-type]
