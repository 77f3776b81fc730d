"""How well simulation ranks policies as reality does: Pearson's r and the mean maximum rank violation (MMRV).

Both as in SIMPLER (arXiv 2405.05941, section 4): r over the policies' success rates, and for each policy the largest
gap of *real* success to a policy that simulation orders the other way round, averaged. MMRV is therefore not symmetric,
and every function here takes `sim` and `real` by name alone. A tie in simulation counts against the worse of the two.

Intervals are of the episodes: the policies stay, and each resample weighs the scenes anew (Bayesian bootstrap, Rubin
1981), with one weight for a layout wherever it was played, so that what is paired stays paired. They say nothing about
other policies or other arms. Few episodes alone make violations, so the interval of MMRV tends to lie too high.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from roboalign.sdk.errors import ConfigError
from roboalign.sdk.evaluation.intervals import Interval, success_interval
from roboalign.sdk.evaluation.results import WORLDS

__all__ = [
    "Estimate",
    "GapPoint",
    "GapReport",
    "Outcomes",
    "PolicyOutcomes",
    "Rate",
    "gap",
    "mmrv",
    "pearson",
]

FEW_POLICIES = 6
"""With fewer policies a correlation says next to nothing."""
_CONFIDENCE = 0.95
_BLOCK = 500
_NO_SPREAD = 1e-12

Rates = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcomes:
    """What one policy did in one world."""

    world: str
    """One of `results.WORLDS`."""
    scenes: tuple[str, ...]
    """Name of each scene, once."""
    successes: tuple[bool, ...]
    """Outcome in each scene."""
    layouts: tuple[str, ...] = ()
    """What lay on the table in each scene, by name: equal names are paired, whoever acted and in whichever world."""
    settings: tuple[str, ...] = ()
    """Under which settings, in words; they must be the same for every policy of a world."""
    sources: tuple[str, ...] = ()
    """Where the outcomes were read."""

    def __post_init__(self) -> None:
        where = ", ".join(self.sources) or "the outcomes"
        if self.world not in WORLDS:
            raise ConfigError(f"{where}: world is {self.world!r}, expected {' or '.join(WORLDS)}")
        if not self.scenes or len(self.scenes) != len(self.successes):
            raise ConfigError(f"{where}: found {len(self.scenes)} scenes and {len(self.successes)} outcomes")
        name, count = Counter(self.scenes).most_common(1)[0]
        if count > 1:
            raise ConfigError(f"{where}: the outcome of {name} was entered twice; leave one of them out")
        if not self.layouts:
            object.__setattr__(self, "layouts", self.scenes)
        if len(self.layouts) != len(self.scenes):
            raise ConfigError(f"{where}: found {len(self.layouts)} layouts for {len(self.scenes)} scenes")


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyOutcomes:
    """One policy in both worlds."""

    name: str
    """Name of the policy."""
    sim: Outcomes
    """In simulation."""
    real: Outcomes
    """On the robot, or on what stands for it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rate:
    """A success rate."""

    num_episodes: int
    """Episodes that were run."""
    num_successes: int
    """Episodes that ended in success."""
    rate: float
    """Share of successes."""
    interval: Interval
    """Interval of the rate, `intervals.success_interval`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GapPoint:
    """One policy of the scatter plot."""

    name: str
    """Name of the policy."""
    sim: Rate
    """Success in simulation."""
    real: Rate
    """Success in reality."""
    sources: tuple[str, ...]
    """Where the outcomes were read, those of simulation first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A figure over all policies."""

    value: float | None
    """The figure; None where it is not defined."""
    interval: Interval | None
    """Its interval over episodes; None where it is not defined."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GapReport:
    """How success in simulation goes with success in reality."""

    policies: tuple[GapPoint, ...]
    """Each policy, in the order given."""
    pearson: Estimate
    """Correlation of the success rates, -1 to 1."""
    mmrv: Estimate
    """Mean maximum rank violation, 0 to 1; 0 where simulation ranks the policies as reality does."""
    offset: Estimate
    """Mean over the policies of success in simulation minus success in reality."""
    is_stand_in: bool
    """Whether a simulated arm stood for the real one."""
    num_shared: int
    """Layouts that were played in both worlds."""
    warnings: tuple[str, ...]
    """What a reader must know first."""


def pearson(*, sim: ArrayLike, real: ArrayLike) -> float | None:
    """Returns Pearson's correlation of success rates, one of each for a policy; None where all are alike in one world.

    >>> round(pearson(sim=[0.1, 0.5, 0.9], real=[0.2, 0.3, 0.7]), 3)
    0.945
    """
    value = float(_pearson(*_checked(sim, real))[0])
    return None if np.isnan(value) else value


def mmrv(*, sim: ArrayLike, real: ArrayLike) -> float:
    """Returns the mean maximum rank violation of success rates, one of each for a policy.

    >>> round(mmrv(sim=[0.2, 0.1, 0.9], real=[0.1, 0.4, 0.8]), 3)  # the first two are swapped: 0.3, 0.3, 0
    0.2
    """
    return float(_mmrv(*_checked(sim, real))[0])


def gap(
    policies: Sequence[PolicyOutcomes], *, is_stand_in: bool = False, num_resamples: int = 10_000, seed: int = 0
) -> GapReport:
    """Compares the outcomes of two or more policies between simulation and reality.

    Args:
        policies: Each with its outcomes in both worlds.
        is_stand_in: A simulated arm, whose parameters the policies' simulation does not know, stands for the real one.
        num_resamples: Resamples of the intervals.
        seed: Of the resampling; the same one gives the same intervals.

    Raises:
        ConfigError: A world is not the one it was given as, or policies were not run alike.
    """
    _check_names(policies)
    for each in policies:
        _check_worlds(each, is_stand_in=is_stand_in)
    for world in ("sim", "real"):
        _check_alike(policies, world)
    sim, real = _table([each.sim for each in policies]), _table([each.real for each in policies])
    rates = sim.rates()[None], real.rates()[None]
    drawn = _resample(sim, real, num_resamples, seed)
    figures: tuple[Callable[[Rates, Rates], Rates], ...] = (_pearson, _mmrv, _offset)
    estimates = [_estimate(figure(*rates)[0], figure(*drawn)) for figure in figures]
    return GapReport(
        policies=tuple(_point(each) for each in policies),
        pearson=estimates[0],
        mmrv=estimates[1],
        offset=estimates[2],
        is_stand_in=is_stand_in,
        num_shared=len(set(sim.layouts) & set(real.layouts)),
        warnings=_warnings(policies, estimates[0], is_stand_in),
    )


def _checked(sim: ArrayLike, real: ArrayLike) -> tuple[Rates, Rates]:
    """Returns both as float64[1, policies]."""
    arrays = np.asarray(sim, np.float64), np.asarray(real, np.float64)
    if arrays[0].ndim != 1 or arrays[0].shape != arrays[1].shape or arrays[0].size < 2:
        raise ConfigError(
            f"found success rates of shape {arrays[0].shape} in simulation and {arrays[1].shape} in reality, expected "
            "one of each for two or more policies"
        )
    if not all(((array >= 0.0) & (array <= 1.0)).all() for array in arrays):
        raise ConfigError("a success rate is outside 0 to 1; give shares, not per cent")
    return arrays[0][None], arrays[1][None]


def _pearson(sim: Rates, real: Rates) -> Rates:
    """Returns float64[N] of float64[N, policies]; NaN where one of them has no spread."""
    sim, real = sim - sim.mean(axis=1, keepdims=True), real - real.mean(axis=1, keepdims=True)
    scale = np.sqrt((sim**2).sum(axis=1) * (real**2).sum(axis=1))
    is_defined = scale > _NO_SPREAD
    value = (sim * real).sum(axis=1) / np.where(is_defined, scale, 1.0)
    return np.where(is_defined, np.clip(value, -1.0, 1.0), np.nan)


def _mmrv(sim: Rates, real: Rates) -> Rates:
    is_violated = (sim[:, :, None] < sim[:, None, :]) != (real[:, :, None] < real[:, None, :])
    sizes = np.abs(real[:, :, None] - real[:, None, :]) * is_violated
    return np.asarray(sizes.max(axis=2).mean(axis=1), np.float64)


def _offset(sim: Rates, real: Rates) -> Rates:
    return np.asarray((sim - real).mean(axis=1), np.float64)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Table:
    """The outcomes of all policies in one world, by layout."""

    layouts: tuple[str, ...]
    num_run: NDArray[np.float64]
    """float64[policies, layouts], how often the policy was run."""
    num_solved: NDArray[np.float64]

    def rates(self, weights: NDArray[np.float64] | None = None) -> Rates:
        """Returns float64[..., policies] for float64[..., layouts] of weights."""
        weights = np.ones(len(self.layouts)) if weights is None else weights
        return np.asarray(weights @ self.num_solved.T / (weights @ self.num_run.T), np.float64)


def _table(outcomes: Sequence[Outcomes]) -> _Table:
    layouts = tuple(dict.fromkeys(name for each in outcomes for name in each.layouts))
    place = {name: index for index, name in enumerate(layouts)}
    num_run, num_solved = np.zeros((2, len(outcomes), len(layouts)))
    for row, each in enumerate(outcomes):
        columns = [place[name] for name in each.layouts]
        np.add.at(num_run[row], columns, 1.0)
        np.add.at(num_solved[row], columns, each.successes)
    return _Table(layouts=layouts, num_run=num_run, num_solved=num_solved)


def _resample(sim: _Table, real: _Table, num: int, seed: int) -> tuple[Rates, Rates]:
    """Returns rates with the layouts weighed anew; one of both worlds has the same weight in both."""
    names = tuple(dict.fromkeys(sim.layouts + real.layouts))
    place: Mapping[str, int] = {name: index for index, name in enumerate(names)}
    columns = [[place[name] for name in table.layouts] for table in (sim, real)]
    rng, parts = np.random.default_rng(seed), []
    for start in range(0, num, _BLOCK):
        weights = rng.standard_exponential((min(_BLOCK, num - start), len(names)))
        parts.append([table.rates(weights[:, chosen]) for table, chosen in zip((sim, real), columns, strict=True)])
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def _estimate(value: float, drawn: Rates) -> Estimate:
    found = drawn[~np.isnan(drawn)]
    if np.isnan(value) or not len(found):
        return Estimate(value=None, interval=None)
    low, high = np.quantile(found, [0.5 - _CONFIDENCE / 2.0, 0.5 + _CONFIDENCE / 2.0])
    return Estimate(value=float(value), interval=Interval(low=float(low), high=float(high), confidence=_CONFIDENCE))


def _point(each: PolicyOutcomes) -> GapPoint:
    rates = []
    for outcomes in (each.sim, each.real):
        num, wins = len(outcomes.successes), sum(outcomes.successes)
        interval = success_interval(wins, num)
        rates.append(Rate(num_episodes=num, num_successes=wins, rate=wins / num, interval=interval))
    return GapPoint(name=each.name, sim=rates[0], real=rates[1], sources=each.sim.sources + each.real.sources)


def _check_names(policies: Sequence[PolicyOutcomes]) -> None:
    if len(policies) < 2:
        raise ConfigError(f"found {len(policies)} policy, expected two or more: one alone has no rank")
    names = [each.name for each in policies]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"the policy {twice!r} was entered twice; give each policy once")


def _check_worlds(each: PolicyOutcomes, *, is_stand_in: bool) -> None:
    """Refuses worlds that were swapped."""
    if each.sim.world != "simulation":
        raise ConfigError(
            f"{each.name}: what was given as simulation ({', '.join(each.sim.sources)}) was measured on a robot; "
            "simulation and reality are swapped"
        )
    if each.real.world != "robot" and not is_stand_in:
        raise ConfigError(
            f"{each.name}: what was given as reality ({', '.join(each.real.sources)}) was measured in simulation; give "
            "an evaluation on a robot, or say that a simulated arm stands for the real one (--stand-in)"
        )
    if each.real.world == "robot" and is_stand_in:
        raise ConfigError(
            f"{each.name}: {', '.join(each.real.sources)} was measured on a robot; leave out --stand-in, which is for "
            "a simulated arm in its place"
        )


def _check_alike(policies: Sequence[PolicyOutcomes], world: str) -> None:
    """Refuses policies that were not run under the same settings in a world: their ranks would mean nothing."""
    first: Outcomes = getattr(policies[0], world)
    for each in policies[1:]:
        other: Outcomes = getattr(each, world)
        differing = sorted(set(first.settings) ^ set(other.settings))
        if differing:
            who = policies[0].name if differing[0] in first.settings else each.name
            raise ConfigError(
                f"{policies[0].name} and {each.name} were not run alike ({world}): only {who} was run with "
                f"{differing[0]}; run every policy with the same settings"
            )


def _warnings(policies: Sequence[PolicyOutcomes], correlation: Estimate, is_stand_in: bool) -> tuple[str, ...]:
    lines = []
    if is_stand_in:
        lines.append("A simulated arm stood for the real one: this says nothing about hardware.")
    if len(policies) < FEW_POLICIES:
        lines.append(f"{len(policies)} policies are too few to believe a correlation; {FEW_POLICIES} or more are.")
    if correlation.value is None:
        lines.append("All policies succeed equally often in one of the worlds, so there is no correlation.")
    for world, label in (("sim", "simulation"), ("real", "reality")):
        scenes = [frozenset(getattr(each, world).scenes) for each in policies]
        if len(set(scenes)) > 1:
            lines.append(
                f"Not every policy was run on the same scenes in {label}; run them on the same for a fair rank."
            )
    certain = [e.name for e in policies for o in (e.sim, e.real) if sum(o.successes) in (0, len(o.successes))]
    if certain:
        names = ", ".join(dict.fromkeys(certain))
        lines.append(f"All episodes ended alike in a world for {names}: the intervals below take that rate as certain.")
    return tuple(lines)
