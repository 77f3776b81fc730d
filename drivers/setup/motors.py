"""Ids for the servos of a new arm, one servo at a time, checked at every step; a second run goes on where it was.

Beside id and rate, what connecting demands and no calibration writes: a mode with positions, Feetech's phase bit 4, and
for Dynamixel whom a servo follows, and which way the second servo of a joint turns.

All servos leave the factory with the same id, so only one may hang on the bus while it is given another. Which motor of
the arm it becomes is a question of which one the user connects, and of its model, which is checked.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from roboalign.drivers.arm.models import MOTORS, POSITION_MODES, ArmModel, JointModel
from roboalign.drivers.bus.bus import Device
from roboalign.drivers.setup.dialogue import Dialogue
from roboalign.drivers.setup.servos import ServoBus
from roboalign.sdk.errors import CheckFailed, ConfigError, RobotError

__all__ = ["MotorSetup", "motors_to_set_up", "setup_motors"]

_ALL_IDS = range(253)
_LIKELY_IDS = range(1, 31)
_MAX_TRIES = 5
_THOROUGH_TRY = 2  # this try looks at every id, which takes half a minute
_SEVERAL_TURNS = 0x10  # Feetech, `phase`: positions over several turns, which have no calibration
_FIRST_NOBODY, _NOBODY = 253, 255  # Dynamixel, `secondary_id`: from 253 on it names no servo


@dataclass(frozen=True, kw_only=True, slots=True)
class MotorSetup:
    """What became of one motor."""

    name: str
    """Motor of the arm."""
    id: int
    """Its id now."""
    found_id: int
    """Its id before."""
    found_baud: int
    """Its rate before."""
    model: str
    """What it says it is."""
    changed: tuple[str, ...] = ()
    """Other registers that connecting demands and that had to be written."""


def motors_to_set_up(model: ArmModel, only: Sequence[str] = ()) -> tuple[tuple[str, JointModel, int], ...]:
    """Returns label, joint and id of each servo, from the hand to the base, shadows included; `only` chooses some.

    Raises:
        ConfigError: A name in `only` is no motor of this arm.
    """
    for name in only:
        model.motor(name)
    wanted = [joint for joint in reversed(model.motors) if not only or joint.name in only]
    return tuple(
        (joint.name if number == joint.id else f"{joint.name} (second servo)", joint, number)
        for joint in wanted
        for number in (joint.id, *joint.shadow_ids)
    )


def setup_motors(
    servos: ServoBus, model: ArmModel, dialogue: Dialogue, *, only: Sequence[str] = (), baud: int | None = None
) -> tuple[MotorSetup, ...]:
    """Guides through all motors; each is verified at its new id and rate before the next.

    A motor that already has its id and rate is left as it is, so a run that was cut can be repeated, and `only` goes on
    with some of them.

    Args:
        servos: The bus, open.
        model: The arm.
        dialogue: Asks to connect one motor after another.
        only: Names of motors; empty for all.
        baud: Rate to set; None is the arm's.

    Raises:
        CheckFailed: Five tries did not bring exactly the servo that is expected.
    """
    if servos.protocol != model.protocol:
        raise ConfigError(f"{model.name} has {model.protocol} servos, the bus was opened for {servos.protocol}")
    rate = model.baud if baud is None else baud
    done = []
    dialogue.say(
        "Each question names one motor: connect it alone to the board, all others unplugged, then press Enter."
    )
    for label, _, number in motors_to_set_up(model, only):
        done.append(_setup_one(servos, dialogue, model, label, number, rate))
        changed = "".join(f", {name} set" for name in done[-1].changed)
        dialogue.say(f"  {label}: id {number} at {rate} baud{changed}, verified ({done[-1].model})")
    dialogue.say("All motors have their ids. Connect the whole chain, then check it with: roboalign doctor")
    return tuple(done)


def _setup_one(servos: ServoBus, dialogue: Dialogue, model: ArmModel, label: str, number: int, baud: int) -> MotorSetup:
    joint = next(joint for joint in model.motors if number in (joint.id, *joint.shadow_ids))
    problem = ""
    for attempt in range(_MAX_TRIES):
        answer = dialogue.ask(f"Connect only the motor '{label}' and press Enter (or type quit): ")
        if answer.lower() in ("q", "quit"):
            raise CheckFailed(
                f"stopped at motor {label!r}; go on with: roboalign setup-motors, those before it are done"
            )
        try:
            wanted = _ALL_IDS if attempt == _THOROUGH_TRY else sorted({*_LIKELY_IDS, number})
            found_baud, device = _only_one(servos, wanted)
            name = _require_model(servos, device, joint)
            _give_id(servos, device.id, found_baud, number, baud)
            changed = _set_registers(servos, model, joint, number)
        except RobotError as err:
            problem = str(err)
            dialogue.say(f"  {problem}")
            continue
        return MotorSetup(name=label, id=number, found_id=device.id, found_baud=found_baud, model=name, changed=changed)
    raise CheckFailed(f"motor {label!r} could not be set up: {problem}")


def _only_one(servos: ServoBus, ids: Iterable[int]) -> tuple[int, Device]:
    """Returns rate and device of the one servo on the bus; RobotError when there is none, or more than one."""
    found = servos.find(ids)
    devices = [(baud, device) for baud, group in found.items() for device in group.values()]
    shared = [device.id for _, device in devices if device.is_shared]
    if shared:
        raise RobotError(
            f"more than one servo answers at id {shared[0]}: nothing was written; leave only one connected"
        )
    if len(devices) > 1:
        answering = ", ".join(f"{device.id} (at {baud} baud)" for baud, device in devices)
        raise RobotError(f"{len(devices)} servos answer, ids {answering}: nothing was written; connect one alone")
    if not devices:
        raise RobotError(
            f"no servo answers on {servos.name} at any rate: check that its power is on and its cable is in the right "
            "socket, and whose protocol it speaks"
        )
    return devices[0]


def _require_model(servos: ServoBus, device: Device, joint: JointModel) -> str:
    wanted = MOTORS[joint.motor]
    if device.model_number == wanted.number:
        return wanted.name
    known = servos.models.get(device.model_number if device.model_number is not None else -1)
    found = known.name if known is not None else f"a servo of unknown model {device.model_number}"
    raise RobotError(f"servo {device.id} is {found}, but {joint.name} needs {wanted.name}: nothing was written")


def _give_id(servos: ServoBus, found_id: int, found_baud: int, number: int, baud: int) -> None:
    servos.bus.set_baud(found_baud)
    servos.release((found_id,))
    servos.write(found_id, "id", number)
    servos.move_to_baud(number, baud)
    servos.bus.set_baud(baud)
    if servos.read(number, "id") != number:
        raise RobotError(f"servo {number} does not confirm its new id; run this motor again")


def _set_registers(servos: ServoBus, model: ArmModel, joint: JointModel, number: int) -> tuple[str, ...]:
    """Writes what connecting demands besides id and rate, each verified; returns what had to be written.

    A servo obeys what is written to the id that it follows, so it begins to follow last, and this one must be alone.
    """
    wanted: dict[str, int] = {}
    if servos.read(number, "operating_mode") not in POSITION_MODES[model.protocol]:
        wanted["operating_mode"] = model.position_mode(joint)
    if model.protocol == "feetech":
        wanted["phase"] = servos.read(number, "phase") & ~_SEVERAL_TURNS
    else:
        is_helper = number != joint.id
        if joint.shadow_ids:  # they face each other
            wanted["drive_mode"] = servos.read(number, "drive_mode") & ~1 | is_helper
        follows = servos.read(number, "secondary_id")
        is_free = follows == number or follows >= _FIRST_NOBODY
        wanted["secondary_id"] = joint.id if is_helper else follows if is_free else _NOBODY
    return tuple(name for name, value in wanted.items() if servos.write(number, name, value))
