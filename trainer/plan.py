"""A stage before it is run: its settings, its data, what it will need, and why it would be refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roboalign.sdk.errors import DataError
from roboalign.trainer.estimate import Estimate, estimate_stage, free_disk_bytes, parent_of
from roboalign.trainer.refusals import data_info, find_refusals
from roboalign.trainer.run import plain_settings

__all__ = ["StagePlan", "plan_stage"]

_LABEL_WIDTH = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class StagePlan:
    """What `--dry-run` shows."""

    stage: str
    """The stage."""
    settings: Mapping[str, Any]
    """The resolved configuration."""
    found: Mapping[str, str]
    """Data and parent, in words."""
    estimate: Estimate
    """What it will need."""
    free_disk_bytes: int
    """Where the checkpoint will be."""
    refusals: tuple[str, ...]
    """Every reason why the stage would be refused; empty when it would start."""

    def lines(self) -> list[str]:
        """Returns the plan as text, for a terminal of 80 columns."""
        rows = dict(self.found)
        guess = self.estimate
        rows["parameters"] = "unknown" if guess.parameters is None else f"{guess.parameters / 1e6:.2f} million"
        total = sum(guess.memory_bytes.values())
        rows["memory, estimated"] = _size(total)
        rows |= {f"  {name}": _size(size) for name, size in guess.memory_bytes.items() if size}
        rows["disk, estimated"] = f"{_size(guess.disk_bytes)} of {_size(self.free_disk_bytes)} free"
        if guess.cpu_s is None:
            rows["time"] = "unknown: no rate was measured for this stage or size"
        else:
            rows["time, estimated"] = f"{_duration(guess.cpu_s)} of one CPU core"
        if guess.done_share:
            rows["done already"] = f"{guess.done_share:.0%}; the same command goes on"
        lines = [
            f"{self.stage}: nothing was started",
            *(f"{name:{_LABEL_WIDTH}} {value}" for name, value in rows.items()),
        ]
        lines += ["settings", *(f"  {name} = {value}" for name, value in _flat(self.settings).items())]
        return lines + [f"refused: {reason}" for reason in self.refusals]


def plan_stage(stage: str, config: Any) -> StagePlan:
    """Returns the plan of a stage; nothing is written, and neither data nor weights are loaded."""
    found: dict[str, str] = {}
    num_frames, size_px = 0, 0
    try:
        info = data_info(config)
    except DataError:  # among the refusals
        info = None
    if info is not None:
        num_frames, size_px = info.total_frames, info.image_size_px if info.cameras else 0
        found["data"] = (
            f"{Path(config.data).name}: {info.total_episodes} episodes, {num_frames} frames, {info.robot_type}, "
            f"{info.rate_hz:g} Hz"
        )
    parent = parent_of(stage, config)
    if parent is not None:
        found["starts from"] = str(parent)
    return StagePlan(
        stage=stage,
        settings=plain_settings(config),
        found=found,
        estimate=estimate_stage(stage, config, num_frames=num_frames, image_size_px=size_px),
        free_disk_bytes=free_disk_bytes(Path(config.out).absolute().parent),
        refusals=tuple(find_refusals(stage, config)),
    )


def _size(num_bytes: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes / 1e3:.0f} kB"


def _duration(seconds: float) -> str:
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} hours"
    return f"{seconds / 60:.0f} minutes" if seconds >= 90 else f"{seconds:.0f} seconds"


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat
