"""Looks for what is wrong in the numbers of a dataset: time, numbering, values, statistics, joints, sentences."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roboalign.sdk.data import layout
from roboalign.sdk.data.findings import Finding, episodes_text, frames_text
from roboalign.sdk.data.lerobot import LeRobotDataset
from roboalign.sdk.data.meta import read_stats, read_task_names

__all__ = ["ROW_DETECTORS"]

Detector = Callable[[LeRobotDataset], Iterator[Finding]]

RATE_TOLERANCE = 0.02
"""Allowed difference between the rate of the timestamps and the one in `meta/info.json`."""
GAP_PERIODS = 1.5
"""A longer step between two frames is a gap."""
SATURATED_SHARE = 0.5
"""An action field at its limits in more frames than this carries little information; the scripted expert has 0.25."""
STATS_TOLERANCE = 1e-3
"""Of the range of a column; lerobot keeps its statistics as float32."""
LIMIT_MARGIN_RAD = 0.05
"""How far outside its limits a measured joint may be."""
HALF_TURN_TOLERANCE_RAD = 0.5
"""How near to half a turn from the home pose the start of the episodes must be to be called that."""


def _numeric_keys(dataset: LeRobotDataset) -> list[str]:
    """The recorded numbers: state, action, joints and whatever else is float."""
    features = dataset.info.features
    return [key for key, item in features.items() if item.dtype in ("float32", "float64") and key != "timestamp"]


def _frame_rate(dataset: LeRobotDataset) -> Iterator[Finding]:
    """Timestamps against the rate that `meta/info.json` claims."""
    rate_hz = dataset.info.rate_hz
    steps = _steps_s(dataset)
    measured_s = np.array([np.median(step) if len(step) else 1.0 / rate_hz for step in steps])
    with np.errstate(divide="ignore"):
        off = np.flatnonzero(~(np.abs(1.0 / (measured_s * rate_hz) - 1.0) <= RATE_TOLERANCE))
    if len(off):
        measured_hz = 1.0 / max(float(np.median(measured_s[off])), 1e-9)
        yield Finding(
            kind="frame rate",
            severity="error",
            where=f"{episodes_text(off.tolist())}, timestamp",
            found=f"meta/info.json says {rate_hz:g} frames a second, the timestamps say {measured_hz:.3g}",
            fix=f"set fps to the true rate, or record the timestamps again as frame_index / {rate_hz:g}",
        )


def _time_gaps(dataset: LeRobotDataset) -> Iterator[Finding]:
    """Steps of time that are too long, zero or backward, measured in the episode's own period."""
    late, back = [], []
    for episode, steps in enumerate(_steps_s(dataset)):
        period_s = float(np.median(steps)) if len(steps) else 0.0
        late += [(episode, int(frame)) for frame in np.flatnonzero(steps > GAP_PERIODS * period_s)]
        back += [(episode, int(frame)) for frame in np.flatnonzero(steps <= 0.0)]
    if late:
        yield Finding(
            kind="time gap",
            severity="error",
            where=f"{frames_text(late)}, timestamp",
            found=f"{len(late)} steps are longer than {GAP_PERIODS:g} periods: frames are missing",
            fix="split the episode at the gap, or leave it out; a chunk of actions must not cross it",
        )
    if back:
        yield Finding(
            kind="time gap",
            severity="error",
            where=f"{frames_text(back)}, timestamp",
            found=f"time stands still or runs backward at {len(back)} steps",
            fix="record with a monotonic clock; leave these episodes out",
        )


def _numbering(dataset: LeRobotDataset) -> Iterator[Finding]:
    """`frame_index`, `episode_index` and `index` against the place of each row."""
    starts, episodes = dataset.episode_starts, dataset.episode_of_frame()
    frames = np.arange(dataset.num_frames)
    expected = {"frame_index": frames - starts[episodes], "episode_index": episodes, "index": frames}
    for key, values in expected.items():
        wrong = np.unique(episodes[dataset.column(key)[:, 0] != values])
        if len(wrong):
            yield Finding(
                kind="numbering",
                severity="error",
                where=f"{episodes_text(wrong.tolist())}, {key}",
                found="the numbers do not count through: rows are missing, doubled or in another order",
                fix="write the dataset again with DatasetWriter, which numbers the rows, or leave these episodes out",
            )


def _not_finite(dataset: LeRobotDataset) -> Iterator[Finding]:
    """NaN and infinity in any recorded number."""
    episodes, starts = dataset.episode_of_frame(), dataset.episode_starts
    for key in [*_numeric_keys(dataset), "timestamp"]:
        rows = np.flatnonzero(~np.isfinite(dataset.column(key)).all(axis=1))
        if len(rows):
            places = [(int(episodes[row]), int(row - starts[episodes[row]])) for row in rows]
            yield Finding(
                kind="not finite",
                severity="error",
                where=f"{frames_text(places)}, {key}",
                found=f"{len(rows)} frames hold NaN or infinity",
                fix="leave these episodes out, and check the sensor or the calibration that made them",
            )


def _saturated_actions(dataset: LeRobotDataset) -> Iterator[Finding]:
    """Action fields that sit at their own smallest or largest value most of the time."""
    actions = dataset.actions()
    for number, name in enumerate(dataset.info.action_names):
        values = actions[:, number]
        values = values[np.isfinite(values)]
        if len(np.unique(values)) <= 3:
            continue  # a switch, such as a gripper that is open or closed
        margin = 1e-3 * float(np.ptp(values))
        share = float(np.mean((values <= values.min() + margin) | (values >= values.max() - margin)))
        if share > SATURATED_SHARE:
            yield Finding(
                kind="saturated action",
                severity="warning",
                where=f"action, {name}",
                found=f"{share:.0%} of the frames are at {values.min():.3g} or {values.max():.3g}, its limits",
                fix="record slower motion, or raise the limit of the controller that clips it",
            )


def _statistics(dataset: LeRobotDataset) -> Iterator[Finding]:
    """`meta/stats.json` (v2.1: the statistics of each episode) against the numbers themselves."""
    is_v3 = dataset.info.codebase_version == layout.CODEBASE_VERSION
    stats = read_stats(dataset.path)
    if is_v3 and stats is None:
        yield Finding(
            kind="statistics",
            severity="error",
            where="meta/stats.json",
            found="there is none, so nothing says how to normalise",
            fix="write the dataset again with DatasetWriter, or compute them with lerobot",
        )
    starts = dataset.episode_starts
    unsaid = [key for key in _numeric_keys(dataset) if is_v3 and stats is not None and key not in stats]
    if unsaid:
        yield Finding(
            kind="statistics",
            severity="error",
            where="meta/stats.json",
            found=f"it says nothing of {', '.join(unsaid)}",
            fix="write the dataset again with DatasetWriter, or compute them with lerobot",
        )
    for key in _numeric_keys(dataset):
        values = dataset.column(key).astype(np.float64)
        if not np.isfinite(values).all():
            continue  # said by `_not_finite`
        wrong = _disagreement(stats[key], values) if stats is not None and key in stats else ""
        where = "meta/stats.json"
        for episode, span in enumerate(dataset.spans):
            if not wrong and span.stats is not None and key in span.stats:
                wrong = _disagreement(span.stats[key], values[starts[episode] : starts[episode + 1]])
                where = f"meta/episodes_stats.jsonl, episode {episode}"
        if wrong:
            yield Finding(
                kind="statistics",
                severity="error",
                where=f"{where}, {key}",
                found=wrong,
                fix="compute the statistics again from the data: normalised actions would be scaled wrongly",
            )


def _task_names(dataset: LeRobotDataset) -> Iterator[Finding]:
    """Every `task_index` of the frames against the list of sentences; reads its file even where nobody else does."""
    known = read_task_names(dataset.path)
    used = {int(number) for number in np.unique(dataset.column("task_index"))}
    if missing := sorted(used - set(known)):
        yield Finding(
            kind="task list",
            severity="error",
            where="meta/tasks.parquet",
            found=f"it names {len(known)} sentences; the frames ask for numbers it does not have: {missing[:5]}",
            fix="copy the file again from where the dataset was recorded, or write the dataset again",
        )


def _joint_zero(dataset: LeRobotDataset) -> Iterator[Finding]:
    """Joint angles in degrees, beyond the limits of the arm, or counted from another zero."""
    for key in (layout.JOINTS_KEY, layout.STATE_KEY, layout.ACTION_KEY):
        if key not in dataset.info.features:
            continue
        values = dataset.column(key).astype(np.float64)
        names = _names(dataset, key)
        angles = [number for number, name in enumerate(names) if name.endswith("_rad")]
        turned = [number for number in angles if np.nanmax(np.abs(values[:, number])) > 2.0 * np.pi]
        if turned:
            largest = np.nanmax(np.abs(values[:, turned]))
            yield Finding(
                kind="joint zero",
                severity="error",
                where=f"{key}, {', '.join(names[number] for number in turned)}",
                found=f"angles up to {largest:.4g} cannot be radians of an arm; they look like degrees",
                fix="multiply by pi / 180 when recording",
            )
        elif key == layout.JOINTS_KEY:
            yield from _against_the_arm(dataset, values, names)


def _instructions(dataset: LeRobotDataset) -> Iterator[Finding]:
    """Episodes without a sentence, or without the language rows that others have."""
    silent = [index for index, span in enumerate(dataset.spans) if not all(task.strip() for task in span.tasks)]
    if silent:
        yield Finding(
            kind="language missing",
            severity="error",
            where=episodes_text(silent),
            found="the instruction is empty",
            fix="write the sentence that the demonstrator followed into meta/tasks and meta/episodes",
        )
    if layout.LANGUAGE_PERSISTENT_KEY in dataset.info.features:
        rows = [dataset.first_row(index)[layout.LANGUAGE_PERSISTENT_KEY] for index in range(dataset.num_episodes)]
        bare = [index for index, found in enumerate(rows) if not found]
        if bare and len(bare) < len(rows):
            yield Finding(
                kind="language missing",
                severity="warning",
                where=f"{episodes_text(bare)}, {layout.LANGUAGE_PERSISTENT_KEY}",
                found=f"{len(bare)} of {len(rows)} episodes have no subtasks, the others have",
                fix="annotate these episodes too, or train without subtasks",
            )


def _doubled_episodes(dataset: LeRobotDataset) -> Iterator[Finding]:
    """Episodes that are the same recording."""
    states, actions, starts = dataset.states(), dataset.actions(), dataset.episode_starts
    first: dict[bytes, int] = {}
    pairs = []
    for index in range(dataset.num_episodes):
        rows = slice(starts[index], starts[index + 1])
        content = states[rows].tobytes() + actions[rows].tobytes() + dataset.tasks[index].encode()
        original = first.setdefault(hashlib.sha256(content).digest(), index)
        if original != index:
            pairs.append((original, index))
    if pairs:
        yield Finding(
            kind="doubled episode",
            severity="error",
            where=episodes_text([copy for _, copy in pairs]),
            found=f"state and action are those of {episodes_text([original for original, _ in pairs])}",
            fix="leave the copies out: they are counted twice in training, and can end up in both halves of a split",
        )


ROW_DETECTORS: Mapping[str, Detector] = {
    "frame rate": _frame_rate,
    "time gap": _time_gaps,
    "numbering": _numbering,
    "not finite": _not_finite,
    "saturated action": _saturated_actions,
    "statistics": _statistics,
    "task list": _task_names,
    "joint zero": _joint_zero,
    "language missing": _instructions,
    "doubled episode": _doubled_episodes,
}
"""What is looked for in the rows, by the kind of finding."""


def _steps_s(dataset: LeRobotDataset) -> list[NDArray[np.float64]]:
    """Seconds between the frames of each episode."""
    times, starts = dataset.column("timestamp")[:, 0].astype(np.float64), dataset.episode_starts
    return [np.diff(times[start:stop]) for start, stop in pairwise(starts)]


def _names(dataset: LeRobotDataset, key: str) -> tuple[str, ...]:
    names = {layout.STATE_KEY: dataset.info.state_names, layout.ACTION_KEY: dataset.info.action_names}
    return names.get(key) or dataset.info.features[key].names or ()


def _disagreement(stats: Mapping[str, Any], values: NDArray[np.float64]) -> str:
    """Says how stored statistics differ from those of the values; empty when they do not."""
    expected = {
        "min": values.min(axis=0),
        "max": values.max(axis=0),
        "mean": values.mean(axis=0),
        "std": values.std(axis=0),
    }
    allowed = STATS_TOLERANCE * np.ptp(values, axis=0) + 1e-5 * (1.0 + np.abs(values).max(axis=0))
    for name, value in expected.items():
        if name not in stats:
            return f"{name} is missing"
        stored = np.asarray(stats[name], np.float64).ravel()
        if stored.shape != value.shape:
            return f"{name} has {len(stored)} entries, the column has {len(value)}"
        if not (np.abs(stored - value) <= allowed).all():
            entry = int(np.argmax(np.abs(stored - value)))
            return f"{name}[{entry}] is {stored[entry]:.4g}, of the data it is {value[entry]:.4g}"
    # lerobot averages the quantiles of its episodes, so only their order and range are certain.
    quantiles = [
        np.asarray(stats[name], np.float64).ravel() for name in ("q01", "q10", "q50", "q90", "q99") if name in stats
    ]
    ladder = np.array([expected["min"] - allowed, *quantiles, expected["max"] + allowed])
    if (np.diff(ladder, axis=0) < -2.0 * allowed).any():
        return "the quantiles are not in order between min and max"
    count = int(np.ravel(stats.get("count", [len(values)]))[0])
    return "" if count == len(values) else f"count is {count}, there are {len(values)} frames"


def _against_the_arm(dataset: LeRobotDataset, values: NDArray[np.float64], names: tuple[str, ...]) -> Iterator[Finding]:
    from roboalign.sdk.sim.robots import ROBOTS

    model = ROBOTS.get(dataset.info.robot_type or "")
    if model is None or len(model.arm_joints) != values.shape[1]:
        return
    spec = model.spec(96)
    lower, upper = np.asarray(spec.joint_lower_rad), np.asarray(spec.joint_upper_rad)
    start = np.median(values[dataset.episode_starts[:-1]], axis=0) - np.asarray(spec.home_joint_pos_rad)
    is_turned = np.abs(np.abs(start) - np.pi) < HALF_TURN_TOLERANCE_RAD
    low, high = np.nanmin(values, axis=0), np.nanmax(values, axis=0)
    is_outside = (low < lower - LIMIT_MARGIN_RAD) | (high > upper + LIMIT_MARGIN_RAD)
    for number in np.flatnonzero(is_turned | is_outside):
        reach = f"{low[number]:.3f} to {high[number]:.3f} rad"
        if is_turned[number]:
            found = f"episodes start {start[number]:+.2f} rad from the home pose: half a turn"
            fix = f"subtract {np.copysign(np.pi, start[number]):.4f} rad: the zero is that of another convention"
        else:
            found = f"{reach} were measured, the limits of {model.name} are {lower[number]:.3f} to {upper[number]:.3f}"
            fix = "calibrate the zero of this joint, and correct or leave out what was recorded"
        yield Finding(
            kind="joint zero", severity="error", where=f"{layout.JOINTS_KEY}, {names[number]}", found=found, fix=fix
        )
