"""From a plan to its steps: every command for every seed, in an order in which each finds what it needs."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from roboalign.reproduce.plan import BUILT_IN, ArmSpec, Plan, StepSpec
from roboalign.sdk.errors import ConfigError, unknown_name

__all__ = ["Evaluation", "Graph", "PlannedStep", "expand"]

_BRACES = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedStep:
    """One command for one seed, its inputs still to be filled in."""

    id: str
    """Name, with the seed where it depends on one: `sft.s0`."""
    name: str
    """Name without the seed."""
    words: tuple[str, ...]
    """What is typed after `roboalign`, ids of other steps in braces, without `--out`."""
    needs: tuple[str, ...]
    """Ids of the steps that must be done before."""
    match: tuple[str, ...] = ()
    """Ids of the two steps that `{matched}` is computed from."""
    may_refuse: bool = False
    """Whether exit code 1 is an answer and not a failure."""
    minutes: float = 10.0
    """How long it takes, as a guess."""

    @property
    def verb(self) -> str:
        """First word of the command."""
        return self.words[0]


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """One arm for one seed."""

    arm: str
    """Name of the arm."""
    seed: int
    """Training seed."""
    step: str
    """Id of the step that measures it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Graph:
    """Everything to run."""

    steps: Mapping[str, PlannedStep]
    """By id; what a step needs stands before it."""
    evaluations: tuple[Evaluation, ...]
    """What is measured, in the order of the arms, then of the seeds."""

    def chain(self, step: str) -> tuple[PlannedStep, ...]:
        """Returns a step and all that it needs, in order."""
        wanted = {step}
        for id_ in reversed(list(self.steps)):
            if id_ in wanted:
                wanted.update(self.steps[id_].needs)
        return tuple(planned for id_, planned in self.steps.items() if id_ in wanted)


def expand(plan: Plan, *, arms: Sequence[str] = (), seeds: Sequence[int] = ()) -> Graph:
    """Returns the steps of some arms and seeds; none given means all of the plan.

    The arms of the primary comparison come first, then the others; seeds come one after the other, so that a run that
    is stopped early has whole seeds.
    """
    for name in arms:
        if name not in plan.arm:
            raise ConfigError(unknown_name("arm", name, plan.arm))
    for seed in seeds:
        if seed not in plan.seeds:
            raise ConfigError(f"the plan has no seed {seed}, it has {', '.join(map(str, plan.seeds))}")
    chosen = [name for name in plan.arm if not arms or name in arms]
    builder = _Builder(plan)
    found = {
        (arm, seed): builder.evaluation(arm, seed)
        for is_primary in (True, False)
        for seed in plan.seeds
        if not seeds or seed in seeds
        for arm in chosen
        if (arm in plan.primary) == is_primary
    }
    evaluations = [found[arm, seed] for arm in chosen for seed in plan.seeds if (arm, seed) in found]
    return Graph(steps=builder.steps, evaluations=tuple(evaluations))


class _Builder:
    """Collects steps; each is added after what it needs."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.steps: dict[str, PlannedStep] = {}
        self._path: list[str] = []
        self._seeded: set[str] = set()

    def evaluation(self, name: str, seed: int) -> Evaluation:
        """Adds what one arm needs for one seed."""
        arm = self.plan.arm[name]
        owner = self.plan.arm[arm.policy_of] if arm.policy_of else arm
        step = self._add(
            f"eval.{name}",
            self.plan.template.eval,
            seed,
            {"policy": self._policy(owner, seed)},
            more=shlex.split(arm.eval),
        )
        return Evaluation(arm=name, seed=seed, step=step)

    def _policy(self, arm: ArmSpec, seed: int) -> str:
        """Returns what `{policy}` stands for: words with ids in braces."""
        if arm.policy:
            return _BRACES.sub(lambda match: f"{{{self._step(match[1], seed)}}}", arm.policy)
        template = self.plan.template
        backbone = "{shipped-base}" if arm.backbone == "shipped-base" else f"{{{self._step(arm.backbone, seed)}}}"
        head = self._add(f"head.{arm.backbone}", template.head, seed, {"backbone": backbone})
        return f"{{{self._add(f'export.{arm.backbone}', template.export, seed, {'head': f'{{{head}}}'})}}}"

    def _step(self, name: str, seed: int) -> str:
        if name in self._path:
            raise ConfigError(f"the steps {' -> '.join((*self._path, name))} need one another; break the circle")
        self._path.append(name)
        id_ = self._add(name, self.plan.step[name], seed, {})
        self._path.pop()
        return id_

    def _add(self, name: str, spec: StepSpec, seed: int, given: Mapping[str, str], *, more: Sequence[str] = ()) -> str:
        """Adds a step for a seed, and what it needs, and returns its id."""
        plan = self.plan
        first = plan.first_scene + plan.scenes * plan.seeds.index(seed)
        numbers = {"seed": seed, "scenes": plan.scenes, "first": first}
        values: dict[str, str] = {key: str(value) for key, value in numbers.items()} | dict(given)
        for used in spec.names:
            if used in ("matched", "shipped-base"):
                values[used] = f"{{{used}}}"
            elif used not in values:
                values[used] = f"{{{self._step(used, seed)}}}" if used in plan.step else _unknown(name, used, given)
        match = tuple(self._step(used, seed) for used in spec.match)
        words = [*shlex.split(_BRACES.sub(lambda found: values[found[1]], spec.run)), *more]
        needs = dict.fromkeys([used for word in words for used in _BRACES.findall(word) if used not in BUILT_IN])
        needs |= dict.fromkeys(match)
        is_seeded = bool({"seed", "first"} & set(spec.names)) or not self._seeded.isdisjoint(needs)
        id_ = f"{name}.s{seed}" if is_seeded else name
        if is_seeded:
            self._seeded.add(id_)
        self.steps.setdefault(
            id_,
            PlannedStep(
                id=id_,
                name=name,
                words=tuple(words),
                needs=tuple(needs),
                match=match,
                may_refuse=spec.may_refuse,
                minutes=spec.minutes,
            ),
        )
        return id_


def _unknown(step: str, name: str, given: Mapping[str, str]) -> str:
    known = [*BUILT_IN, *given]
    raise ConfigError(f"{step}: " + unknown_name("name in braces", name, known))
