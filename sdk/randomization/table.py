"""The table of all parameters for the documentation, made from the presets themselves."""

from __future__ import annotations

from roboalign.sdk.randomization.domain import CONCERNS
from roboalign.sdk.randomization.presets import HELDOUT_SPLITS, preset
from roboalign.sdk.randomization.ranges import Choice, Each, Integers, LogUniform, Range, Signed, Value
from roboalign.sdk.randomization.values import parameters

__all__ = ["parameter_table"]

_COLUMNS = ("mild", "strong", *HELDOUT_SPLITS.values())


def parameter_table() -> str:
    """Returns a Markdown table: one row a parameter, with its unit, its meaning, and its range in each preset."""
    titles = ("concern", "parameter", "unit", "meaning", "off", *_COLUMNS)
    lines = [_row(titles), _row(("---",) * len(titles))]
    for concern in CONCERNS:
        groups = [getattr(preset(name), concern) for name in _COLUMNS]
        for item in parameters(groups[0].values):
            ranges = [getattr(group, item.name) for group in groups]
            cells = (_text(found) if found != Choice((item.off,)) else "" for found in ranges)
            lines.append(_row((f"`{concern}`", f"`{item.name}`", item.unit, item.about, _number(item.off), *cells)))
    return "\n".join(lines) + "\n"


def _row(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cells) + " |"


def _text(found: Range) -> str:
    """Returns a range for people."""
    if isinstance(found, Choice):
        counts = {value: found.values.count(value) for value in found.values}
        total = len(found.values)
        is_even = len(set(counts.values())) == 1
        words = (
            _number(value) if is_even else f"{_number(value)} ({count}/{total})" for value, count in counts.items()
        )
        return ", ".join(words)
    if isinstance(found, Each):
        return "; ".join(_text(item) for item in found.ranges)
    low, high = _number(found.low), _number(found.high)
    if isinstance(found, Signed):
        return f"+-({low} to {high})"
    if isinstance(found, Integers):
        return f"{low} to {high}, whole"
    if isinstance(found, LogUniform):
        return f"{low} to {high}, log"
    return f"+-{high}" if found.low == -found.high else f"{low} to {high}"


def _number(value: Value) -> str:
    return value if isinstance(value, str) else f"{value:g}"
