"""JSON into frozen dataclasses, checked against their annotations: what does not fit is refused by its name."""

from __future__ import annotations

import math
import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from types import MappingProxyType
from typing import Union, cast, get_args, get_origin, get_type_hints

from roboalign.sdk.errors import BundleError
from roboalign.sdk.prompt import UNSAID, PromptFormat

__all__ = ["from_json"]

_NONE: Mapping[type, frozenset[str]] = MappingProxyType({})


def from_json(kind: object, value: object, where: str, *, absent: Mapping[type, frozenset[str]] = _NONE) -> object:
    """Returns a value of an annotated type from JSON.

    Args:
        kind: a dataclass, `str`, `int`, `float`, `bool`, `tuple[X, ...]`, `Mapping[str, X]` or `X | None`.
        value: what `json` read.
        where: what messages call it.
        absent: by dataclass, fields that must not be there; they keep their default.

    Raises:
        BundleError: something does not fit, is missing or is unknown, or a number is not finite.
    """
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return None if value is None else from_json(args[0], value, where, absent=absent)
    if kind is float and type(value) in (int, float) and math.isfinite(cast(float, value)):
        return float(cast(float, value))
    if origin is tuple and isinstance(value, list) and (args[-1] is ... or len(args) == len(value)):
        return tuple(from_json(args[0], item, f"{where}[{i}]", absent=absent) for i, item in enumerate(value))
    if origin is Mapping and isinstance(value, dict):
        return {str(key): from_json(args[1], item, f"{where}.{key}", absent=absent) for key, item in value.items()}
    if isinstance(kind, type) and is_dataclass(kind) and isinstance(value, dict):
        return _dataclass(kind, value, where, absent)
    if isinstance(kind, type) and origin is None and type(value) is kind and kind is not float:
        return value
    raise BundleError(f"{where} is {value!r:.40}, expected {getattr(kind, '__name__', kind)}")


def _dataclass(kind: type, value: Mapping[str, object], where: str, absent: Mapping[type, frozenset[str]]) -> object:
    names = {f.name for f in fields(kind)} - absent.get(kind, frozenset())
    if kind is PromptFormat:
        value = {**UNSAID, **value}
    if set(value) != names:
        raise BundleError(f"{where} has missing or unknown fields {sorted(set(value) ^ names)}")
    hints = get_type_hints(kind)
    return cast(
        object,
        kind(**{name: from_json(hints[name], item, f"{where}.{name}", absent=absent) for name, item in value.items()}),
    )
