"""What goes wrong on a virtual line, when and how often: a seeded plan, read from a file or filled at run time.

seed = 7
[[fault]]
kind = "drop"            # a reply that never comes
probability = 0.05       # each reply; without it, the next `count` replies (default 1)
[[fault]]
kind = "hot"
id = 3
celsius = 75
at_s = 2.0               # time of the arm, which in lockstep is counted in steps
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from roboalign.sdk.errors import ConfigError, unknown_name
from roboalign.sdk.settings_file import read_settings

__all__ = ["ARM_FAULTS", "REPLY_FAULTS", "FaultPlan", "LineFault", "read_faults"]

REPLY_FAULTS = ("drop", "late", "corrupt", "half", "split", "merge", "echo", "noise", "garbage")
"""What can happen to bytes on their way: never there; later by `delay_s`; `bits` flipped or `bytes` replaced; the first
`bytes` only (default: half); in `pieces` that are `delay_s` apart; held back until the next reply and then in one piece
with it; the request comes back first; `bytes` of noise before it; as if read at another rate."""
ARM_FAULTS = (
    "dead",
    "revive",
    "duplicate",
    "wrong_baud",
    "overload",
    "hot",
    "voltage",
    "brownout",
    "block",
    "free",
    "push",
    "place",
    "unplug",
    "replug",
)
"""What can happen to servos, joints, the power supply and the plug."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LineFault:
    """One thing that goes wrong."""

    kind: str
    """One of `REPLY_FAULTS` and `ARM_FAULTS`."""
    id: int | None = None
    """Servo that it happens to; None: any, or for `voltage` and `brownout` all."""
    joint: str | None = None
    """Joint, for `block`, `free`, `push` and `place`."""
    probability: float | None = None
    """For replies: chance of each; None: certain."""
    count: int | None = None
    """For replies: how many at most; None: one, or with a probability without end."""
    skip: int = 0
    """For replies: how many that it could happen to pass first."""
    at_s: float | None = None
    """For the arm: time of the arm at which it happens; None: at once."""
    at_request: int | None = None
    """For the arm: number of the request before which it happens; the first is 1."""
    delay_s: float = 0.05
    """`late`: by how much; `split`: time between the pieces; `brownout`: how long."""
    bits: int = 1
    """`corrupt`: bits that flip, in different places."""
    bytes: int | None = None
    """`corrupt`: bytes replaced instead of bits; `half`: bytes that arrive; `noise`: how many (default 3)."""
    pieces: int | None = None
    """`split`: pieces; None: single bytes."""
    is_overtaken: bool = False
    """`late`: what was sent later may arrive earlier; false: everything queues behind it."""
    celsius: float = 80.0
    """`hot`: temperature."""
    volts: float = 4.0
    """`voltage`: of the supply."""
    baud: int = 57_600
    """`wrong_baud`: rate to which the servo changes."""
    lower_rad: float | None = None
    """`block`: obstacle below, None for none."""
    upper_rad: float | None = None
    """`block`: obstacle above, None for none."""
    rad: float = 0.0
    """`place`: angle to which the joint is turned by hand."""
    share: float = 0.0
    """`push`: outside torque as a share of the stall torque."""
    after_bytes: int = 0
    """`unplug`: after so many bytes, counted both ways."""

    def __post_init__(self) -> None:
        kinds = (*REPLY_FAULTS, *ARM_FAULTS)
        if self.kind not in kinds:
            raise ConfigError(unknown_name("fault", self.kind, kinds))
        if self.probability is not None and not 0 <= self.probability <= 1:
            raise ConfigError(f"probability of fault {self.kind} is {self.probability}, expected 0 to 1")
        for name, least in (("count", 1), ("bits", 1), ("pieces", 1), ("skip", 0), ("bytes", 0), ("after_bytes", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name} of fault {self.kind} is {value}, expected {least} or more")
        if not self.delay_s >= 0:
            raise ConfigError(f"delay_s of fault {self.kind} is {self.delay_s}, expected 0 or more")
        if self.kind in ("block", "free", "push", "place") and self.joint is None:
            raise ConfigError(f"fault {self.kind} needs a joint")
        if self.kind in ("dead", "revive", "duplicate", "wrong_baud", "overload", "hot") and self.id is None:
            raise ConfigError(f"fault {self.kind} needs an id")

    @property
    def is_timed(self) -> bool:
        """True when it waits for a moment."""
        return self.at_s is not None or self.at_request is not None

    @classmethod
    def from_table(cls, table: Mapping[str, object], where: str) -> LineFault:
        """Returns the fault that a table of a file or a control message describes.

        Raises:
            ConfigError: A field is unknown or of another type; `where` names the place.
        """
        fields = {field.name: str(field.type) for field in dataclasses.fields(cls)}
        for name, value in table.items():
            if name not in fields:
                raise ConfigError(f"{where}: {unknown_name('field', name, fields)}")
            if not _fits(value, fields[name]):
                raise ConfigError(f"{where}: {name} is {value!r}, expected {fields[name]}")
        if "kind" not in table:
            raise ConfigError(f"{where}: kind is missing")
        try:
            return cls(**table)  # type: ignore[arg-type]  # checked above, field by field
        except ConfigError as err:
            raise ConfigError(f"{where}: {err}") from err


class FaultPlan:
    """Faults that are still to come, and the dice. Equal seeds and equal traffic give equal faults."""

    def __init__(self, faults: Iterable[LineFault] = (), seed: int = 0) -> None:
        """Stores what is to go wrong."""
        self._random = random.Random(seed)
        self._replies: list[_Running] = []
        self._events: list[LineFault] = []
        self.num_struck: dict[str, int] = {}
        """How often each kind happened."""
        for fault in faults:
            self.add(fault)

    def add(self, fault: LineFault) -> None:
        """Adds one; an arm fault without a time is due at once."""
        if fault.kind in REPLY_FAULTS:
            self._replies.append(_Running(fault))
        else:
            self._events.append(fault)

    def clear(self) -> None:
        """Forgets all that are still to come."""
        self._replies.clear()
        self._events.clear()

    @property
    def has_replies(self) -> bool:
        """True when bytes may still be disturbed."""
        return bool(self._replies)

    @property
    def has_events(self) -> bool:
        """True when the arm may still be disturbed."""
        return bool(self._events)

    def due(self, time_s: float, request: int) -> list[LineFault]:
        """Takes out the arm's faults whose time has come."""
        found = [
            fault
            for fault in self._events
            if not fault.is_timed
            or (fault.at_s is not None and time_s >= fault.at_s - 1e-9)
            or (fault.at_request is not None and request >= fault.at_request)
        ]
        for fault in found:
            self._events.remove(fault)
            self._count(fault.kind)
        return found

    def strike(self, kinds: tuple[str, ...], id: int | None) -> list[LineFault]:  # noqa: A002 - the protocols' word
        """Returns what happens to this reply (or request, with id None), in the order in which it was planned."""
        struck = []
        for running in list(self._replies):
            fault = running.fault
            if (
                fault.kind in kinds
                and (fault.id is None or id is None or fault.id == id)
                and running.roll(self._random)
            ):
                struck.append(fault)
                self._count(fault.kind)
                if running.is_over:
                    self._replies.remove(running)
        return struck

    def noise(self, size: int) -> bytes:
        """Returns random bytes."""
        return self._random.randbytes(size)

    def below(self, number: int) -> int:
        """Returns a random number from 0 to `number` - 1."""
        return self._random.randrange(number)

    def places(self, number: int, count: int) -> list[int]:
        """Returns `count` different random numbers below `number`, fewer when there are not so many."""
        return self._random.sample(range(number), min(count, number))

    def _count(self, kind: str) -> None:
        self.num_struck[kind] = self.num_struck.get(kind, 0) + 1


class _Running:
    """A reply fault and how far it is."""

    def __init__(self, fault: LineFault) -> None:
        self.fault = fault
        self._skip = fault.skip
        self._left = fault.count if fault.count is not None else (None if fault.probability is not None else 1)

    def roll(self, dice: random.Random) -> bool:
        """True when it happens now."""
        if self._skip > 0:
            self._skip -= 1
            return False
        if self.fault.probability is not None and dice.random() >= self.fault.probability:
            return False
        if self._left is not None:
            self._left -= 1
        return True

    @property
    def is_over(self) -> bool:
        return self._left == 0


def read_faults(path: Path) -> FaultPlan:
    """Returns the plan in a `.toml` or `.json` file: `seed`, and a list of tables `fault`.

    Raises:
        ConfigError: The file cannot be read or says something that cannot be; the message names the place.
    """
    content = read_settings(path, "faults")
    strange = sorted(set(content) - {"seed", "fault"})
    if strange:
        raise ConfigError(f"{path}: {unknown_name('field', strange[0], ('seed', 'fault'))}")
    seed, tables = content.get("seed", 0), content.get("fault", [])
    if not isinstance(seed, int) or not isinstance(tables, list):
        raise ConfigError(f"{path}: expected a whole number seed and a list of tables fault")
    faults = []
    for number, table in enumerate(tables, start=1):
        if not isinstance(table, Mapping):
            raise ConfigError(f"{path}: fault {number} is no table")
        faults.append(LineFault.from_table(table, f"{path}: fault {number}"))
    return FaultPlan(faults, seed)


def _fits(value: object, kind: str) -> bool:
    if value is None:
        return "None" in kind
    if kind == "bool":
        return isinstance(value, bool)
    if isinstance(value, bool):
        return False
    if "float" in kind:
        return isinstance(value, (int, float))
    return isinstance(value, int) if "int" in kind else isinstance(value, str)
