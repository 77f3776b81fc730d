"""The plan of a reproduction: arms, seeds, the commands of each, and which arms are compared.

A plan is a TOML (or JSON) file. Its commands are those of the command line, without `roboalign` and `--out`; a name in
braces stands for the output of another step, and that is all there is to say about what depends on what:

    [step.sft]
    run = "train sft {shipped-base} --data {data} --recipe nano --seed {seed}"

Other names in braces: `{seed}`; `{scenes}` and `{first}`, the number of evaluation scenes of a seed and the first of
them (no two seeds share a scene); `{shipped-base}`; `{matched}`, the updates with which the first of the two steps
named by `match` would take as many CPU seconds as both of them took; and in the templates `{backbone}`, `{head}` and
`{policy}`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import TypeVar

from roboalign.sdk.errors import ConfigError, unknown_name
from roboalign.sdk.settings_file import read_settings

__all__ = ["PLANS", "ArmSpec", "Plan", "StepSpec", "Template", "find_plan", "read_plan"]

PLANS = Path(__file__).with_name("plans")
"""The plans that come with the package, by the name of their file."""
BUILT_IN = ("seed", "scenes", "first", "shipped-base", "matched")
"""Names in braces that are not steps."""
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_BRACES = re.compile(r"\{([^{}]*)\}")
_TYPES: Mapping[str, tuple[type, ...]] = {"str": (str,), "bool": (bool,), "int": (int,), "float": (int, float)}

_Kind = TypeVar("_Kind")


@dataclass(frozen=True, kw_only=True, slots=True)
class StepSpec:
    """One command of the plan."""

    run: str
    """The command as it is typed, without `roboalign` and `--out`, outputs of other steps in braces."""
    minutes: float = 10.0
    """How long it takes, as a guess for `--dry-run` until it was measured."""
    may_refuse: bool = False
    """Whether exit code 1 (a check said no) is an answer: arms that need the step are then reported as refused."""
    match: tuple[str, ...] = ()
    """Two training steps that `{matched}` is computed from."""

    def __post_init__(self) -> None:
        if self.match and len(self.match) != 2:
            raise ConfigError(
                f"match names {len(self.match)} steps, expected two: the one to lengthen, the one to match"
            )
        if ("matched" in self.names) != bool(self.match):
            raise ConfigError("{matched} in a command and `match` beside it belong together; one of them is missing")

    @property
    def names(self) -> tuple[str, ...]:
        """Names in braces, in order."""
        return tuple(_BRACES.findall(self.run))


@dataclass(frozen=True, kw_only=True, slots=True)
class Template:
    """What becomes of a trained model: the same commands for every arm."""

    head: StepSpec
    """Trains the action head on `{backbone}`."""
    export: StepSpec
    """Makes the bundle of `{head}`."""
    eval: StepSpec
    """Measures `{policy}`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ArmSpec:
    """One way to make a policy; exactly one of `backbone`, `policy` and `policy_of` is given."""

    label: str
    """What tables call it."""
    backbone: str = ""
    """Step that trains a model; head, bundle and evaluation follow the template."""
    policy: str = ""
    """What `roboalign eval` is given at once: a step in braces, or words such as `random`."""
    policy_of: str = ""
    """Arm whose policy is evaluated again, with other words in `eval`."""
    eval: str = ""
    """More words for `roboalign eval`, e.g. `--no-think`."""

    def __post_init__(self) -> None:
        given = [name for name in ("backbone", "policy", "policy_of") if getattr(self, name)]
        if len(given) != 1:
            raise ConfigError(
                f"found {' and '.join(given) or 'none of them'}, expected exactly one of backbone, policy, policy_of"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Everything that a reproduction does."""

    title: str
    """Heading of the report."""
    seeds: tuple[int, ...]
    """Training seeds."""
    scenes: int
    """Evaluation scenes of each seed; no two seeds share one."""
    template: Template
    """Commands that every arm has in common."""
    step: Mapping[str, StepSpec]
    """Commands by name."""
    arm: Mapping[str, ArmSpec]
    """Arms by name, in the order of the tables."""
    primary: tuple[str, ...]
    """The two arms of the one hypothesis: the first is expected to be better than the second."""
    secondary: tuple[tuple[str, ...], ...] = ()
    """Further pairs, with Holm's correction."""
    first_scene: int = 0
    """Number of the first evaluation scene; scenes that were looked at while arms were chosen lie before it."""
    notes: tuple[str, ...] = ()
    """What a reader of the results must know about this plan."""

    def __post_init__(self) -> None:
        if not self.seeds or len({seed for seed in self.seeds if type(seed) is int}) != len(self.seeds):
            raise ConfigError(f"seeds is {list(self.seeds)}, expected different numbers, at least one")
        if self.scenes < 1:
            raise ConfigError(f"scenes is {self.scenes}, expected at least 1")
        if self.first_scene < 0:
            raise ConfigError(f"first_scene is {self.first_scene}, expected 0 or more")
        for name in (*self.step, *self.arm):
            if not _NAME.fullmatch(name) or name in BUILT_IN:
                raise ConfigError(
                    f"{name!r} cannot be a name; expected small letters, digits and hyphens, e.g. sft-longer"
                )
        for pair in self.comparisons:
            if len(pair) != 2:
                raise ConfigError(f"the comparison {list(pair)} names {len(pair)} arms, expected two")
            for name in pair:
                _require("arm", name, self.arm)
        for name, spec in self.step.items():
            for used in (*(n for n in spec.names if n not in BUILT_IN), *spec.match):
                _require("step", used, self.step, where=f"step {name}: ")
        for name, arm in self.arm.items():
            self._check_arm(name, arm)

    def _check_arm(self, name: str, arm: ArmSpec) -> None:
        where = f"arm {name}: "
        if arm.policy_of:
            _require("arm", arm.policy_of, self.arm, where=where)
            if self.arm[arm.policy_of].policy_of:
                raise ConfigError(f"{where}{arm.policy_of} has no policy of its own; name the arm that it borrows from")
        if arm.backbone:
            _require("step", arm.backbone, {**self.step, "shipped-base": ""}, where=where)
        for used in _BRACES.findall(arm.policy):
            _require("step", used, self.step, where=where)

    @property
    def comparisons(self) -> tuple[tuple[str, ...], ...]:
        """The primary comparison, then the secondary ones."""
        return (self.primary, *self.secondary)


def find_plan(name: str) -> Path:
    """Returns the file of a plan: a path, or the name of one that comes with the package."""
    path = Path(name)
    if path.suffix in (".toml", ".json"):
        if not path.is_file():
            raise ConfigError(f"there is no plan file {path}; give another, or one of {', '.join(_names())}")
        return path
    if name not in _names():
        raise ConfigError(unknown_name("plan", name, _names()) + "; a plan of your own is a .toml or .json file")
    return PLANS / f"{name}.toml"


def read_plan(path: Path) -> Plan:
    """Reads a plan; ConfigError names the file and the place of what is wrong."""
    content = read_settings(path, "plan")
    try:
        return _plan(content)
    except ConfigError as err:
        raise ConfigError(f"{path}: {str(err).removeprefix(f'{path}: ')}") from err


def _names() -> list[str]:
    return sorted(path.stem for path in PLANS.glob("*.toml"))


def _plan(content: object) -> Plan:
    row = _table("the plan", content)
    row["template"] = _build(
        Template,
        "template",
        {k: _build(StepSpec, f"template.{k}", v) for k, v in _table("template", row.get("template")).items()},
    )
    for name, kind in (("step", StepSpec), ("arm", ArmSpec)):
        row[name] = {key: _build(kind, f"{name}.{key}", value) for key, value in _table(name, row.get(name)).items()}
    row["secondary"] = tuple(_tuple(pair) for pair in _tuple(row.get("secondary", ())))
    return _build(Plan, "the plan", row)


def _build(kind: type[_Kind], where: str, content: object) -> _Kind:
    """Returns a dataclass from a table of the file; every problem names its place."""
    row = _table(where, content)
    known = {item.name: item for item in fields(kind)}  # type: ignore[arg-type]  # a dataclass, by its callers
    for name in row:
        _require("setting", name, known, where=f"{where}: ")
    for name, item in known.items():
        if name not in row:
            if item.default is MISSING:
                raise ConfigError(f"{where} lacks {name}")
            continue
        if str(item.type).startswith("tuple"):
            row[name] = _tuple(row[name])
        elif type(row[name]) not in _TYPES.get(str(item.type), (type(row[name]),)):
            raise ConfigError(f"{where}: {name} is {row[name]!r}, expected {item.type}")
    try:
        return kind(**row)
    except ConfigError as err:
        raise ConfigError(str(err) if kind is Plan else f"{where}: {err}") from err


def _table(where: str, content: object) -> dict[str, object]:
    if not isinstance(content, Mapping):
        raise ConfigError(f"{where} is {content!r}, expected a table")
    return {str(key): value for key, value in content.items()}


def _tuple(value: object) -> tuple[object, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ConfigError(f"found {value!r}, expected a list")
    return tuple(value)


def _require(what: str, name: str, known: Iterable[str], *, where: str = "") -> None:
    if name not in known:
        raise ConfigError(where + unknown_name(what, name, known))
