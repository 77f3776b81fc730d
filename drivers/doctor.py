"""`examine`: everything that keeps a robot on a desk from working, found by looking and reading, with what to do.

It moves nothing and writes nothing to a servo. A camera is opened for a second to see whether it gives pictures.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from roboalign.drivers.arm.files import CameraFile, RobotFile
from roboalign.drivers.arm.models import find_arm
from roboalign.drivers.arm.simulation import SimulatedFile, read_any_robot_file
from roboalign.drivers.cameras import Camera, list_cameras
from roboalign.drivers.setup.bus_checks import check_bus
from roboalign.drivers.setup.checks import Check, DoctorReport
from roboalign.drivers.setup.machine import Machine, check_machine, check_port
from roboalign.drivers.setup.servos import ServoBus, open_servos
from roboalign.sdk.errors import ConfigError, RoboalignError

__all__ = ["Check", "DoctorReport", "Machine", "examine"]

_WATCH_S = 1.0
_MIN_RATE_SHARE = 0.5


def examine(
    robot: str | Path | None = None,
    *,
    port: str | None = None,
    arm: str | None = None,
    pictures: Path | None = None,
    machine: Machine | None = None,
    open_bus: Callable[[str, str, int], ServoBus] = open_servos,
    sleep: Callable[[float], None] = time.sleep,
) -> DoctorReport:
    """Returns what was found, in the order in which things depend on each other.

    Args:
        robot: A robot file; its port, arm, calibration and cameras are checked.
        port: A serial port, instead of the file's.
        arm: Name of an arm, instead of the file's; without any, both protocols are tried.
        pictures: Folder that gets one picture of each camera, to see which is which.
        machine: Where to look; this machine by default.
        open_bus: Makes a bus for a port, protocol and rate; for tests.
        sleep: Waits while cameras are watched.

    Raises:
        ConfigError: There is no arm of this name.
    """
    where = Machine() if machine is None else machine
    checks, file = check_machine(where), None
    model = None if arm is None else find_arm(arm)
    if robot is not None:
        try:
            found = read_any_robot_file(robot)
            if isinstance(found, SimulatedFile):
                checks.append(Check.passed("robot file", f"{robot}: the simulated {found.arm}, which has no servos"))
                return DoctorReport(checks=tuple(checks))
            file = found
            checks.append(Check.passed("robot file", f"{robot}: {file.label} on {file.port}"))
        except ConfigError as err:
            checks.append(Check.failed("robot file", str(err), "write one: roboalign calibrate"))
    if file is not None:
        model = model or file.model
    chosen = port or (file.port if file is not None else None)
    if chosen is None:
        checks.append(Check.skipped("servos", "no port was named; name one with --port, or a robot file"))
    else:
        checks += check_port(where, chosen)
        if not any(check.status == "failed" and check.name.startswith("port ") for check in checks):
            baud = file.baud if file is not None and file.baud else None
            checks += _check_servos(
                open_bus, chosen, arm=model.name if model is not None else None, baud=baud, file=file
            )
    cameras = file.cameras if file is not None else {}
    checks += _check_cameras(cameras, where, pictures, sleep)
    return DoctorReport(checks=tuple(checks))


def _check_servos(
    open_bus: Callable[[str, str, int], ServoBus],
    port: str,
    *,
    arm: str | None,
    baud: int | None,
    file: RobotFile | None,
) -> list[Check]:
    if arm is not None:
        model = find_arm(arm)
        return check_bus(lambda: open_bus(port, model.protocol, baud or model.baud), model, file)
    found: list[Check] = []
    for protocol in ("feetech", "dynamixel"):
        found = check_bus(lambda protocol=protocol: open_bus(port, protocol, baud or 1_000_000), None)  # type: ignore[misc]
        if found[0].status == "passed" or found[0].name == "bus opens":
            return found
    return found


def _check_cameras(
    cameras: Mapping[str, CameraFile], machine: Machine, pictures: Path | None, sleep: Callable[[float], None]
) -> list[Check]:
    if not cameras:
        there = list_cameras(machine.root)
        found = ", ".join(map(str, there)) if there else "none is plugged in"
        return [Check.skipped("cameras", f"the robot file names none; on this machine: {found}")]
    checks = [_check_order(cameras, machine)]
    for name, config in cameras.items():
        checks += [*_check_device_name(name, config, machine), _watch(name, config, pictures, sleep)]
    return checks


def _check_order(cameras: Mapping[str, CameraFile], machine: Machine) -> Check:
    """Two names for one device: the policy would see one view twice."""
    by_device: dict[str, list[str]] = {}
    for name, config in cameras.items():
        device = f"/dev/video{config.device}" if config.device.isdigit() else config.device
        key = str(machine.at(device).resolve()) if device.startswith("/") else f"{device}:{name}"
        by_device.setdefault(key, []).append(name)
    doubled = [names for names in by_device.values() if len(names) > 1]
    if doubled:
        found = f"{' and '.join(doubled[0])} are the same device"
        return Check.failed(
            "camera order", found, "give each its own device; see them with: roboalign doctor --pictures ."
        )
    shown = ", ".join(f"{name} is {config.device}" for name, config in cameras.items())
    return Check.passed("camera order", shown)


def _check_device_name(name: str, config: CameraFile, machine: Machine) -> list[Check]:
    device = f"/dev/video{config.device}" if config.device.isdigit() else config.device
    if not device.startswith("/dev/video"):
        return []
    known = next((camera for camera in list_cameras(machine.root) if camera.device == device), None)
    better = known.stable_names[0] if known is not None and known.stable_names else "/dev/v4l/by-path/..."
    found = f"{name}: {device} may be another camera after the next start"
    return [Check.warning("camera name", found, f'write device = "{better}" under [cameras.{name}]')]


def _watch(name: str, config: CameraFile, pictures: Path | None, sleep: Callable[[float], None]) -> Check:
    title = f"camera {name}"
    try:
        with Camera(name, config) as camera:
            sleep(_WATCH_S)
            frame = camera.read_latest(max_age_s=2.0)
            stats, raw = camera.stats, camera.read_raw()
    except RoboalignError as err:
        return Check.failed(title, str(err), "plug it in, close what uses it, or name another device in the robot file")
    if pictures is not None:
        from PIL import Image

        pictures.mkdir(parents=True, exist_ok=True)
        Image.fromarray(frame.image).save(pictures / f"{name}.png")
    height, width = raw.image.shape[:2]
    found = f"{width} x {height} at {stats.rate_hz:.0f} pictures a second, seen as {config.size_px} x {config.size_px}"
    if stats.frames > 5 and stats.identical_in_a_row >= stats.frames - 1 and config.device.startswith("/dev"):
        return Check.failed(title, f"{found}; every picture is the same", "unplug it and plug it in again; it hangs")
    if stats.frames > 1 and stats.rate_hz < _MIN_RATE_SHARE * config.rate_hz:
        remedy = "more light (long exposures), another USB socket without a hub, or a smaller width_px and height_px"
        return Check.warning(title, f"{found}, asked for {config.rate_hz:.0f}", remedy)
    return Check.passed(title, found)
