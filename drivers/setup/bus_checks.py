"""What the doctor asks of the servos, by reading alone: who answers, what they are, their supply, errors and offsets.

Nothing is written, and nothing moves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from roboalign.drivers.arm.calibration import find_stale_notes, read_calibration, read_notes, sidecar_path
from roboalign.drivers.arm.files import RobotFile
from roboalign.drivers.arm.models import MOTORS, ArmModel
from roboalign.drivers.bus.bus import Device
from roboalign.drivers.bus.types import Reply
from roboalign.drivers.setup.calibrate import check_calibration
from roboalign.drivers.setup.checks import Check
from roboalign.drivers.setup.registers import find_difference
from roboalign.drivers.setup.servos import ServoBus
from roboalign.sdk.errors import RoboalignError, RobotError

__all__ = ["check_bus"]

_LIKELY_IDS = range(1, 31)
_NUM_READS = 50
_MAX_LOSS = 0.02
_HOT_C = 55
_MAX_SPREAD_V = 1.0

_ERROR_REMEDIES = (
    (
        "overload",
        "relieve the joint and switch the power off and on; if it comes back, something blocks or a gear is worn",
    ),
    ("voltage", "check the power adapter: its voltage must be the servos', and it must give 5 A or more"),
    ("temperature", "let it cool down; a joint that holds a load for long gets hot"),
    ("current", "look for a short circuit or a blocked joint, then switch the power off and on"),
    ("", "switch the power off and on; if it comes back, replace the servo"),
)


def check_bus(open_bus: Callable[[], ServoBus], model: ArmModel | None, file: RobotFile | None = None) -> list[Check]:
    """Returns what can be said about the servos behind a port; opens and closes it.

    Args:
        open_bus: Makes a bus at the rate that the arm should have.
        model: The arm; None when only what is there is asked.
        file: The robot file, for its calibration.
    """
    try:
        with open_bus() as servos:
            return _examine(servos, model, file)
    except RobotError as err:
        return [Check.failed("bus opens", str(err), "see the checks of the port above")]


def _examine(servos: ServoBus, model: ArmModel | None, file: RobotFile | None) -> list[Check]:
    baud = servos.bus.transport.baud
    wanted = sorted({*_LIKELY_IDS, *(model.ids if model is not None else ())})
    devices = servos.bus.scan(wanted)
    if not devices:
        return [_silence(servos, wanted, baud)]
    checks = [Check.passed("servos answer", f"ids {_list(devices)} at {baud} baud"), _duplicates(devices)]
    if model is not None:
        checks += [_ids(model, devices), _models(servos, model, devices)]
    else:
        checks.append(
            Check.passed("models", "; ".join(f"{number}: {_name(servos, d)}" for number, d in devices.items()))
        )
    sound = [number for number, device in devices.items() if not device.is_shared]
    checks += [_firmware(devices), *_supply(servos, sound), _errors(servos, devices), _temperature(servos, sound)]
    checks.append(_line(servos, sound))
    if file is not None and model is not None:
        checks.append(_calibration(servos, model, file, sound))
    return checks


def _silence(servos: ServoBus, ids: Sequence[int], baud: int) -> Check:
    """Nobody at this rate: at another one, or nobody at all."""
    found = servos.find(ids, [rate for rate in servos.bauds.values() if rate != baud])
    if found:
        where = "; ".join(f"ids {_list(group)} at {rate} baud" for rate, group in found.items())
        remedy = f"roboalign setup-motors --port {servos.name} (it sets ids and rate, one servo at a time)"
        return Check.failed("servos answer", f"nobody at {baud} baud, but {where}", remedy)
    remedy = (
        "switch the servos' power on (the USB cable does not feed them), check the cable from the board to the first "
        "servo, and that --arm names servos of this protocol"
    )
    return Check.failed("servos answer", f"no {servos.protocol} servo at any rate", remedy)


def _duplicates(devices: Mapping[int, Device]) -> Check:
    shared = [number for number, device in devices.items() if device.is_shared]
    if not shared:
        return Check.passed("duplicate ids", "none")
    found = f"more than one servo has id {_list(shared)}"
    return Check.failed("duplicate ids", found, "connect one of them alone and give it its id: roboalign setup-motors")


def _ids(model: ArmModel, devices: Mapping[int, Device]) -> Check:
    names = {number: joint.name for joint in model.motors for number in (joint.id, *joint.shadow_ids)}
    missing = [f"{number} ({name})" for number, name in names.items() if number not in devices]
    strange = [number for number in devices if number not in (*names, *model.others.values())]
    if missing:
        remedy = (
            "check the cable to it and to its neighbour; if it never had its id: roboalign setup-motors --only NAME; "
            "if several at the end of the chain are missing, the first of them is where it breaks"
        )
        return Check.failed("ids", f"id {', '.join(missing)} does not answer", remedy)
    if strange:
        found = f"id {_list(strange)} is no servo of {model.name}"
        return Check.warning("ids", found, "name the right arm, or take the other servos off this bus")
    return Check.passed("ids", f"all {len(names)} of {model.name}")


def _models(servos: ServoBus, model: ArmModel, devices: Mapping[int, Device]) -> Check:
    wrong, mute = [], []
    for joint in model.motors:
        for number in (joint.id, *joint.shadow_ids):
            device = devices.get(number)
            if device is None or device.is_shared or device.model_number == MOTORS[joint.motor].number:
                continue
            if device.model_number is None:
                mute.append(number)
            else:
                wrong.append(f"{joint.name} (id {number}) is {_name(servos, device)}, expected {joint.motor}")
    if mute and not wrong:
        remedy = "it answers too late or damaged: see the check of the readings below"
        return Check.failed("models", f"id {_list(mute)} answers, but did not say what it is", remedy)
    if wrong:
        return Check.failed("models", "; ".join(wrong), "swap the servos, or name the right arm")
    return Check.passed("models", ", ".join(dict.fromkeys(_name(servos, device) for device in devices.values())))


def _firmware(devices: Mapping[int, Device]) -> Check:
    versions: dict[tuple[int | None, str], list[int]] = {}
    for number, device in devices.items():
        versions.setdefault((device.model_number, device.firmware), []).append(number)
    by_model: dict[int | None, list[str]] = {}
    for (model, version), numbers in versions.items():
        by_model.setdefault(model, []).append(f"{version or 'unknown'} (id {_list(numbers)})")
    mixed = [", ".join(found) for found in by_model.values() if len(found) > 1]
    if mixed:
        remedy = "bring all to the newest version with the maker's tool (FD for Feetech, Wizard 2.0 for Dynamixel)"
        return Check.warning("firmware", f"servos of one model differ: {'; '.join(mixed)}", remedy)
    return Check.passed("firmware", ", ".join(found for group in by_model.values() for found in group))


def _supply(servos: ServoBus, ids: Sequence[int]) -> list[Check]:
    """A 7.4 V servo on 12 V burns, a 12 V one on 5 V stalls; both STS3215 have one model number (SO-ARM100 #174)."""
    volts, problems = {}, []
    for number in ids:
        try:
            volts[number] = servos.volts(number)
            low, high = (0.1 * servos.read(number, f"{end}_voltage_limit") for end in ("min", "max"))
        except RobotError:
            continue
        if not low - 0.05 <= volts[number] <= high + 0.05:
            problems.append(f"id {number} has {volts[number]:.1f} V, it is set up for {low:.1f} to {high:.1f} V")
    if not volts:
        return [Check.skipped("voltage", "no servo told it")]
    if problems:
        remedy = (
            "switch the power off now; use the adapter that the servos are made for (STS3215: 5 to 7.4 V or 12 V, "
            "printed on its label; XL330: 5 V), and never mix both kinds in one chain"
        )
        return [Check.failed("voltage", "; ".join(problems), remedy)]
    lowest, highest = min(volts, key=lambda n: volts[n]), max(volts, key=lambda n: volts[n])
    if volts[highest] - volts[lowest] > _MAX_SPREAD_V:
        found = f"{volts[highest]:.1f} V at id {highest}, {volts[lowest]:.1f} V at id {lowest}"
        return [Check.warning("voltage", found, "a plug or cable between them is bad, or the adapter is too weak")]
    return [Check.passed("voltage", f"{volts[lowest]:.1f} to {volts[highest]:.1f} V")]


def _errors(servos: ServoBus, devices: Mapping[int, Device]) -> Check:
    found = {n: servos.bus.protocol.describe_error(device.error) for n, device in devices.items() if device.error}
    if not found:
        return Check.passed("servo errors", "none")
    text = "; ".join(f"id {number}: {words}" for number, words in found.items())
    remedy = next(remedy for word, remedy in _ERROR_REMEDIES if word in text.lower())
    return Check.failed("servo errors", text, remedy)


def _temperature(servos: ServoBus, ids: Sequence[int]) -> Check:
    found = servos.read_many(ids, "present_temperature")
    if not found:
        return Check.skipped("temperature", "no servo told it")
    hot = [f"id {number}: {value} C" for number, value in found.items() if value >= _HOT_C]
    if hot:
        return Check.warning("temperature", ", ".join(hot), "let it cool down before you go on; check what it holds")
    return Check.passed("temperature", f"up to {max(found.values())} C")


def _line(servos: ServoBus, ids: Sequence[int]) -> Check:
    """How many of many readings arrive: a loose plug shows here before it stops an episode."""
    register = servos.registers["present_position"]
    lost = 0
    for _ in range(_NUM_READS):
        lost += sum(not isinstance(answer, Reply) for answer in servos.bus.sync_read(register, ids).values())
    stats, total = servos.bus.stats, max(1, _NUM_READS * len(ids))
    found = f"{total - lost} of {total} readings arrived; {stats.retries} retries, {stats.corrupt} damaged packets"
    if lost / total > _MAX_LOSS or stats.retries > _NUM_READS * _MAX_LOSS:
        remedy = "press every plug in, keep the cable away from the motors' power, try another USB port without a hub"
        return Check.failed("readings", found, remedy)
    return Check.passed("readings", found)


def _calibration(servos: ServoBus, model: ArmModel, file: RobotFile, ids: Sequence[int]) -> Check:
    try:
        calibration = read_calibration(file.calibration)
        side = sidecar_path(file.calibration)
        stale = find_stale_notes(read_notes(side), calibration) if side.is_file() else None
    except RoboalignError as err:
        return Check.failed("calibration", str(err), "roboalign calibrate")
    if stale is not None:
        remedy = f"roboalign calibrate; or remove {side.name}, then roboalign calibrate --from {file.calibration.name}"
        return Check.failed("calibration", f"{side.name} is not of {file.calibration.name}: {stale}", remedy)
    problems = check_calibration(model, calibration)
    unread = []
    for joint in model.motors:
        name, motor = joint.name, calibration.get(joint.name)
        if motor is None:
            continue
        try:
            difference = find_difference(servos, motor) if motor.id in ids else None
        except RobotError:
            difference = None
        if difference is None:
            unread.append(name)
        elif difference:
            problems.append(f"{name} {difference}")
    if problems:
        remedy = f"roboalign calibrate; if another arm's file was named, put the right one into {file.calibration.name}"
        return Check.failed("calibration", "; ".join(problems), remedy)
    if unread:
        found = f"{file.calibration.name} is sound; the offset of {', '.join(unread)} could not be compared with it"
        return Check.warning("calibration", found, "mend what the checks above name, then look again")
    return Check.passed("calibration", f"{file.calibration.name} is sound and is in the servos")


def _name(servos: ServoBus, device: Device) -> str:
    known = servos.models.get(device.model_number if device.model_number is not None else -1)
    return known.name if known is not None else f"unknown model {device.model_number}"


def _list(numbers: Mapping[int, object] | Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
