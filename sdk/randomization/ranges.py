"""What a parameter may be drawn from: an interval, an interval on either side of zero, whole numbers, or a list.

A range knows its bounds and nothing about its parameter; units and what is possible stand in `values`. In a file a
range is `{"uniform": [0.9, 1.1]}`, likewise `log_uniform`, `signed` and `integers`, or `{"choice": [...]}`,
or a bare value, which is a choice of one. What every joint has its own of may have a range for each of them:
`{"each": [...]}`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from roboalign.sdk.errors import ConfigError

__all__ = [
    "Choice",
    "Each",
    "Integers",
    "LogUniform",
    "Range",
    "Signed",
    "Single",
    "Uniform",
    "Value",
    "centre",
    "fixed",
    "intervals",
    "overlaps",
    "range_from_json",
    "range_to_json",
]

Value = float | int | str
"""What a parameter can be: a number, a whole number or a word."""


@dataclass(frozen=True, slots=True)
class Uniform:
    """Every number from `low` to `high`, equally likely."""

    low: float
    """Smallest number."""
    high: float
    """Largest number."""

    def __post_init__(self) -> None:
        _check_bounds("Uniform", self.low, self.high)

    def draw(self, rng: np.random.Generator, count: int) -> tuple[Value, ...]:
        """Returns `count` numbers."""
        return tuple(rng.uniform(self.low, self.high, count).tolist())


@dataclass(frozen=True, slots=True)
class LogUniform:
    """Every number from `low` to `high`, equally likely on a logarithmic scale; both are above zero."""

    low: float
    """Smallest number."""
    high: float
    """Largest number."""

    def __post_init__(self) -> None:
        _check_bounds("LogUniform", self.low, self.high)
        if self.low <= 0:
            raise ConfigError(f"LogUniform.low is {self.low}, expected a number above 0; use Uniform for this range")

    def draw(self, rng: np.random.Generator, count: int) -> tuple[Value, ...]:
        """Returns `count` numbers."""
        drawn = np.exp(rng.uniform(math.log(self.low), math.log(self.high), count))
        return tuple(np.clip(drawn, self.low, self.high).tolist())


@dataclass(frozen=True, slots=True)
class Signed:
    """A number whose size is between `low` and `high`, with either sign: two intervals with a gap around zero."""

    low: float
    """Smallest size, at least 0."""
    high: float
    """Largest size."""

    def __post_init__(self) -> None:
        _check_bounds("Signed", self.low, self.high)
        if self.low < 0:
            raise ConfigError(f"Signed.low is {self.low}, expected a size of at least 0")

    def draw(self, rng: np.random.Generator, count: int) -> tuple[Value, ...]:
        """Returns `count` numbers."""
        size = rng.uniform(self.low, self.high, count)
        return tuple(np.where(rng.random(count) < 0.5, -size, size).tolist())


@dataclass(frozen=True, slots=True)
class Integers:
    """Every whole number from `low` to `high`, both included."""

    low: int
    """Smallest number."""
    high: int
    """Largest number."""

    def __post_init__(self) -> None:
        _check_bounds("Integers", self.low, self.high)
        if not (isinstance(self.low, int) and isinstance(self.high, int)):
            raise ConfigError(f"Integers is {self.low} to {self.high}, expected whole numbers")

    def draw(self, rng: np.random.Generator, count: int) -> tuple[Value, ...]:
        """Returns `count` whole numbers."""
        return tuple(rng.integers(self.low, self.high, count, endpoint=True).tolist())


@dataclass(frozen=True, slots=True)
class Choice:
    """One of the listed values, equally likely; list a value twice to have it twice as often."""

    values: tuple[Value, ...]
    """At least one value."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", tuple(self.values))
        if not self.values:
            raise ConfigError("Choice.values is empty, expected at least one value")
        for value in self.values:
            if isinstance(value, bool) or not isinstance(value, (int, float, str)):
                raise ConfigError(f"Choice.values holds {value!r}, expected numbers or words")
            if isinstance(value, float) and not math.isfinite(value):
                raise ConfigError(f"Choice.values holds {value}, expected finite numbers")

    def draw(self, rng: np.random.Generator, count: int) -> tuple[Value, ...]:
        """Returns `count` of the values."""
        return tuple(self.values[index] for index in rng.integers(len(self.values), size=count))


Single = Uniform | LogUniform | Signed | Integers | Choice
"""What one value can be drawn from."""


@dataclass(frozen=True, slots=True)
class Each:
    """A range of its own for every joint, in order; for parameters that every joint has its own value of."""

    ranges: tuple[Single, ...]
    """One for each value that is drawn."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "ranges", tuple(self.ranges))
        if not self.ranges or not all(isinstance(item, Single) for item in self.ranges):
            raise ConfigError(f"Each.ranges is {self.ranges!r}, expected one range for every value")

    def draw(self, rng: np.random.Generator, count: int) -> tuple[Value, ...]:
        """Returns `count` values, the k-th from the k-th range; after the last one they begin again."""
        return tuple(self.ranges[index % len(self.ranges)].draw(rng, 1)[0] for index in range(count))


Range = Single | Each
"""Anything a parameter can be drawn from."""

_KINDS: dict[str, type[Uniform | LogUniform | Signed | Integers]] = {
    "uniform": Uniform,
    "log_uniform": LogUniform,
    "signed": Signed,
    "integers": Integers,
}
_KEYS = (*_KINDS, "choice", "each")


def fixed(value: Value) -> Choice:
    """Returns the range that holds one value."""
    return Choice((value,))


def centre(value: Single) -> Value:
    """Returns the middle of a range; of a list its middle value in order, of words the first.

    >>> centre(Uniform(0.8, 1.0)), centre(Signed(0.1, 0.2)), centre(Integers(1, 4)), centre(fixed("flat"))
    (0.9, 0.0, 2, 'flat')
    """
    if isinstance(value, Choice):
        numbers = sorted(item for item in value.values if not isinstance(item, str))
        return numbers[len(numbers) // 2] if numbers else value.values[0]
    if isinstance(value, Signed):
        return 0.0
    if isinstance(value, Integers):
        return (value.low + value.high) // 2
    return math.sqrt(value.low * value.high) if isinstance(value, LogUniform) else (value.low + value.high) / 2


def range_to_json(value: Range) -> object:
    """Returns the range as it stands in a file."""
    if isinstance(value, Choice):
        return value.values[0] if len(value.values) == 1 else {"choice": list(value.values)}
    if isinstance(value, Each):
        return {"each": [range_to_json(item) for item in value.ranges]}
    name = next(key for key, kind in _KINDS.items() if type(value) is kind)
    return {name: [value.low, value.high]}


def range_from_json(value: object, where: str) -> Range:
    """Returns the range written as `value`; `where` names the parameter in errors.

    Raises:
        ConfigError: It is no range.
    """
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        return _named(where, lambda: fixed(value))
    if not (isinstance(value, Mapping) and len(value) == 1 and next(iter(value)) in _KEYS):
        raise ConfigError(
            f"{where} is {value!r}, expected a value or one of "
            + ", ".join(f"{{{key!r}: [low, high]}}" for key in _KINDS)
            + ", {'choice': [...]}, {'each': [...]}"
        )
    key, content = next(iter(value.items()))
    if not isinstance(content, (list, tuple)):
        raise ConfigError(f"{where}: {key!r} holds {content!r}, expected a list")
    if key == "choice":
        return _named(where, lambda: Choice(tuple(content)))
    if key == "each":
        items = tuple(range_from_json(item, where) for item in content)
        return _named(where, lambda: Each(items))  # type: ignore[arg-type] # Each refuses one inside another
    if len(content) != 2:
        raise ConfigError(f"{where}: {key!r} holds {len(content)} values, expected [low, high]")
    return _named(where, lambda: _KINDS[key](content[0], content[1]))


def intervals(value: Range) -> tuple[tuple[float, float], ...]:
    """Returns the closed intervals of numbers that can be drawn; words have none."""
    if isinstance(value, Choice):
        return tuple((float(item), float(item)) for item in value.values if not isinstance(item, str))
    if isinstance(value, Signed):
        return (-value.high, -value.low), (value.low, value.high)
    if isinstance(value, Each):
        return tuple(found for item in value.ranges for found in intervals(item))
    return ((value.low, value.high),)


def overlaps(one: Range, other: Range) -> bool:
    """True when some number or word can come from both ranges."""
    if isinstance(one, Choice) and isinstance(other, Choice):
        return bool(set(one.values) & set(other.values))
    return any(
        low <= other_high and other_low <= high
        for low, high in intervals(one)
        for other_low, other_high in intervals(other)
    )


def _named(where: str, make: Callable[[], Range]) -> Range:
    """Makes a range; what is wrong with it is told with the parameter's name."""
    try:
        return make()
    except ConfigError as err:
        raise ConfigError(f"{where}: {err}") from err


def _check_bounds(name: str, low: object, high: object) -> None:
    for side, value in (("low", low), ("high", high)):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ConfigError(f"{name}.{side} is {value!r}, expected a finite number")
    assert isinstance(low, (int, float))
    assert isinstance(high, (int, float))
    if low > high:
        raise ConfigError(f"{name} is {low} to {high}, expected the smaller number first")
