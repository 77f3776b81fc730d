"""Takes the fields of a settings table one by one; what cannot be is named: field, value, and what was expected."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TypeVar

from roboalign.sdk.errors import ConfigError, unknown_name

__all__ = ["Table"]

_T = TypeVar("_T")


class Table:
    """One table of a settings file. Every field is asked for once; `build` refuses what nobody asked for."""

    def __init__(self, content: Mapping[str, object], where: str, prefix: str = "") -> None:
        """`where` names the file, `prefix` the place in it (`cameras.front.`)."""
        self._content = content
        self._where, self._prefix = where, prefix
        self._asked: list[str] = []

    def __contains__(self, name: str) -> bool:
        return name in self._content

    def build(self, kind: Callable[..., _T], **values: object) -> _T:
        """Returns `kind(**values)`; its ConfigErrors, and fields that nobody asked for, are told with the place."""
        place = f"{self._where}: [{self._prefix[:-1]}]" if self._prefix else self._where
        strange = sorted(set(self._content) - set(self._asked))
        if strange:
            raise ConfigError(f"{place}: {unknown_name('field', strange[0], self._asked)}")
        try:
            return kind(**values)
        except ConfigError as err:
            raise ConfigError(f"{place}: {err}") from err

    def optional(self, take: Callable[[str], _T], name: str) -> _T | None:
        """Returns `take(name)`, or None when the field is absent."""
        self._asked.append(name)
        return take(name) if name in self._content else None

    def text(self, name: str) -> str:
        """Returns a required string."""
        value = self._take(name)
        if not isinstance(value, str):
            raise self._wrong(name, value, "a string")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """Returns a finite number; required without a default."""
        value = self._take(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise self._wrong(name, value, "a finite number")
        return float(value)

    def has_whole(self, name: str) -> bool:
        """True when the field is there and a whole number."""
        return type(self._content.get(name)) is int

    def whole(self, name: str, default: int | None = None) -> int:
        """Returns a whole number; required without a default."""
        value = self._take(name, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._wrong(name, value, "a whole number")
        return value

    def numbers(self, name: str) -> tuple[float, ...]:
        """Returns a required list of finite numbers."""
        value = self._take(name)
        is_list = isinstance(value, list) and all(type(item) in (int, float) for item in value)
        if not isinstance(value, list) or not is_list or not all(math.isfinite(item) for item in value):
            raise self._wrong(name, value, "a list of finite numbers")
        return tuple(float(item) for item in value)

    def wholes(self, name: str, count: int) -> tuple[int, ...]:
        """Returns a required list of `count` whole numbers."""
        value = self._take(name)
        if not isinstance(value, list) or len(value) != count or not all(type(item) is int for item in value):
            raise self._wrong(name, value, f"a list of {count} whole numbers")
        return tuple(value)

    def table(self, name: str) -> Table | None:
        """Returns a table inside, or None when it is absent."""
        self._asked.append(name)
        value = self._content.get(name)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self._wrong(name, value, "a table")
        return Table(value, self._where, f"{self._prefix}{name}.")

    def tables(self, name: str) -> dict[str, Table]:
        """Returns the tables of a table by name; empty when it is absent."""
        outer = self.table(name)
        if outer is None:
            return {}
        inner = {key: outer.table(key) for key in outer._content}
        return {key: table for key, table in inner.items() if table is not None}

    def _take(self, name: str, default: object = None) -> object:
        self._asked.append(name)
        value = self._content.get(name, default)
        if value is None:
            raise ConfigError(f"{self._where}: {self._prefix}{name} is missing")
        return value

    def _wrong(self, name: str, value: object, expected: str) -> ConfigError:
        return ConfigError(f"{self._where}: {self._prefix}{name} is {value!r}, expected {expected}")
