"""Why a stage cannot succeed, found before anything heavy is loaded.

Each check compares the data with the checkpoint that a stage starts from, or the run with the machine. What can only
be known from the numbers themselves (`check_codec_range`) is checked when they are loaded.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from roboalign.sdk.data.meta import DatasetInfo, read_info
from roboalign.sdk.errors import BundleError, ConfigError, DataError, RoboalignError
from roboalign.sdk.fast import FastCodec
from roboalign.sdk.types import FloatArray
from roboalign.trainer.checkpoint import META_FILE, load_checkpoint
from roboalign.trainer.estimate import PARENTS, estimate_stage, free_disk_bytes, parent_of

__all__ = ["check_codec_range", "check_start", "data_info", "find_refusals"]

_MAX_OUTSIDE = 0.25
"""Share of the values of one action field beyond the codec's 1st and 99th percentile; 2 % where they were fitted."""


def check_start(stage: str, config: Any) -> None:
    """Raises the first reason why the stage cannot succeed; data or a parent that are absent are left to the stage."""
    for check in _checks(stage, config):
        check()


def find_refusals(stage: str, config: Any) -> list[str]:
    """Returns every reason why the stage would be refused, one line each."""
    found = []
    for check in (*_presence(stage, config), *_checks(stage, config)):
        try:
            check()
        except RoboalignError as err:
            found.append(str(err))
    return found


def data_info(config: Any) -> DatasetInfo | None:
    """Returns what the dataset of a stage says about itself; None when it has no dataset folder."""
    data = getattr(config, "data", None)
    return read_info(Path(data)) if data is not None and (Path(data) / "meta" / "info.json").is_file() else None


def check_codec_range(codec: FastCodec, chunks: FloatArray, *, where: Path) -> None:
    """Raises DataError when the actions lie outside of what the codec was fitted on: statistics of another robot.

    Args:
        codec: the codec of a checkpoint.
        chunks: float32[N, T, A] actions of the data.
        where: the data, for the message.
    """
    low, high = codec.config.low, codec.config.high
    outside = ((chunks < low) | (chunks > high)).mean(axis=(0, 1))
    worst = int(np.argmax(outside))
    if outside[worst] > _MAX_OUTSIDE:
        name, values = codec.config.names[worst], chunks[..., worst]
        raise DataError(
            f"{outside[worst]:.0%} of the values of {name} in {where} ({values.min():.3g} to {values.max():.3g}) lie "
            f"outside of {low[worst]:.3g} to {high[worst]:.3g}, which the checkpoint's codec was fitted on; these are "
            "actions of another robot or unit: train sft on this data first"
        )


def _presence(stage: str, config: Any) -> Iterator[Callable[[], object]]:
    if getattr(config, "data", None) is not None:
        yield lambda: read_info(Path(config.data))
    parent = parent_of(stage, config)
    if parent is not None and not (stage == "sft" and _is_published(parent)):
        yield lambda: load_checkpoint(parent, expect_stage=PARENTS[stage][1], verify=False)


def _is_published(parent: Path) -> bool:
    """Whether this is a model in the format of its publisher, by folder or by hub id; `sft` may start from one."""
    if parent.is_dir():
        return (parent / "config.json").is_file() and not (parent / META_FILE).is_file()
    return not parent.is_absolute() and len(parent.parts) == 2 and not parent.parent.is_dir()


def _checks(stage: str, config: Any) -> Iterator[Callable[[], object]]:
    info, parent = data_info(config), parent_of(stage, config)
    meta = _read(parent / META_FILE) if parent else None
    codec = _read(parent / "fast.json") if parent else None
    if info is not None:
        yield lambda: _check_data(info, Path(config.data), config, meta, codec)
    if parent is not None and codec is not None:
        yield lambda: _check_vocabulary(parent, codec)
    if parent is not None:
        yield lambda: _check_places(parent, Path(config.out))
    yield lambda: _check_disk(stage, config)


def _check_data(
    info: DatasetInfo, data: Path, config: Any, meta: Mapping[str, Any] | None, codec: Mapping[str, Any] | None
) -> None:
    # A base knows no action yet, so that one robot's may become another's.
    robot = (meta or {}).get("robot") if codec else None
    if robot and info.robot_type and robot != info.robot_type:
        raise DataError(
            f"{data} was recorded with the robot {info.robot_type}, the checkpoint was trained for {robot}; give data "
            f"of {robot}, or train sft on this data"
        )
    rate_hz = codec["config"]["rate_hz"] if codec else getattr(config, "rate_hz", None)
    if rate_hz is not None and abs(info.rate_hz - rate_hz) > 1e-6 * rate_hz:
        whose = "the checkpoint's actions are of" if codec else "the settings say"
        raise DataError(
            f"{data} was recorded at {info.rate_hz:g} Hz, {whose} {rate_hz:g} Hz; a chunk would mean another motion: "
            "resample the data, or train from sft on at its rate"
        )
    if codec and list(info.action_names) != list(codec["config"]["names"]):
        raise DataError(
            f"{data} has the actions {', '.join(info.action_names)}, the checkpoint's codec has "
            f"{', '.join(codec['config']['names'])}; give data of that action space, or train sft on this data"
        )


def _check_vocabulary(parent: Path, codec: Mapping[str, Any]) -> None:
    """Raises BundleError when the tokenizer beside a codec does not have exactly its tokens."""
    tokenizer = _read(parent / "tokenizer.json")
    if tokenizer is None:
        return
    words = {token["content"] for token in tokenizer.get("added_tokens", ())}
    vocabulary = tokenizer.get("model", {}).get("vocab", {})
    words |= set(vocabulary if isinstance(vocabulary, Mapping) else (entry[0] for entry in vocabulary))
    config = codec["config"]
    size = config["max_coefficient"] - config["min_coefficient"] + 1 + len(config["merges"])
    found = sum(word.startswith("<ACTION_") and word[8:-1].isdigit() for word in words)
    if found != size or not {"<ACTION_START>", "<ACTION_END>"} <= words:
        raise BundleError(
            f"{parent}: the tokenizer has {found} action tokens{'' if found else ' and no <ACTION_START>'}, the codec "
            f"(fast.json) has {size}; the two are not of one checkpoint: copy the folder again, or train sft"
        )


def _check_places(parent: Path, out: Path) -> None:
    if parent.resolve() == out.resolve():
        raise ConfigError(f"--out is {out}, the checkpoint that the stage starts from; choose another --out")


def _check_disk(stage: str, config: Any) -> None:
    if stage not in (*PARENTS, "base"):
        return
    needed = estimate_stage(stage, config).disk_bytes
    free = free_disk_bytes(Path(config.out).absolute().parent)
    if needed > free:
        raise DataError(
            f"the run needs about {needed / 1e9:.1f} GB beside {config.out} and {free / 1e9:.1f} GB are free; free "
            "some space, or choose another --out"
        )


def _read(file: Path) -> dict[str, Any] | None:
    """Returns a JSON object; None when there is none that can be read: whoever needs the file says what is wrong."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
