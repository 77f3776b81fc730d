"""Draws the initial states that are frozen, and writes or checks the store.

python -m roboalign.sdk.suites.states            # compares the store with what this version draws
python -m roboalign.sdk.suites.states --write    # writes a new one; --force replaces one that differs
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from zlib import crc32

import numpy as np

from roboalign.sdk.errors import ConfigError, DataError, RoboalignError
from roboalign.sdk.sim.scene import SceneSpec, scene_to_json
from roboalign.sdk.sim.seeds import eval_seed
from roboalign.sdk.sim.tasks import FAMILIES, find_task, scene_for
from roboalign.sdk.suites.splits import rounded
from roboalign.sdk.suites.store import FOLDER, FORMAT, MANIFEST, read_lines, read_manifest
from roboalign.sdk.suites.suite import Suite, find_suite, suite_names

__all__ = ["check_store", "draw_state", "main", "scene_hash", "scene_hashes", "state_lines", "write_store"]


def draw_state(task: str, index: int, *, robot: str = "panda", split: str = "train") -> SceneSpec:
    """Returns the scene of evaluation seed `index` as the task's sampler draws it, whatever is stored."""
    if task in FAMILIES:
        return scene_for(eval_seed(index), task, split, robot)
    rng = np.random.default_rng([eval_seed(index), crc32(task.encode())])
    scene = find_task(task).sample(rng, robot=robot, split=split)
    if scene != rounded(scene):
        raise DataError(f"task {task!r} draws more digits than are stored; end its sampler with splits.rounded")
    return scene


def scene_hash(task: str, *, robot: str, split: str, num_states: int) -> str:
    """Returns the SHA-256 of the first `num_states` evaluation scenes of a task in a split."""
    digest = hashlib.sha256()
    for index in range(num_states):
        scene = draw_state(task, index, robot=robot, split=split)
        digest.update(scene_to_json(scene).encode() + b"\n")
    return digest.hexdigest()


def scene_hashes() -> dict[str, str]:
    """Returns `scene_hash` of every task and split of every suite of the simulator, by `robot|task|split`."""
    return {
        f"{suite.robot}|{task}|{split}": scene_hash(task, robot=suite.robot, split=split, num_states=suite.num_states)
        for suite in _sim_suites()
        for task in suite.tasks
        for split in find_task(task).splits
    }


def _sim_suites() -> Iterator[Suite]:
    return (suite for suite in map(find_suite, suite_names()) if suite.kind == "sim")


def state_lines() -> dict[str, tuple[str, ...]]:
    """Returns the lines of every file of the store by its name; the families of the SO-101 are hashed, not stored."""
    return {
        f"{suite.name}.jsonl.gz": tuple(
            scene_to_json(draw_state(task, index, robot=suite.robot))
            for task in suite.tasks
            for index in range(suite.num_states)
        )
        for suite in _sim_suites()
        if suite.tasks and all("/" in task for task in suite.tasks)
    }


def check_store(folder: Path) -> list[str]:
    """Returns what differs between the store in `folder` and what this version draws, one line each."""
    manifest = read_manifest(folder)
    drawn = state_lines()
    found = [f"{file} is not in the store" for file in drawn if file not in manifest["files"]]
    found += [f"{file} belongs to no suite" for file in manifest["files"] if file not in drawn]
    for file in sorted(set(drawn) & set(manifest["files"])):
        stored = [line for lines in read_lines(folder, file).values() for line in lines]
        num_other = sum(a != b for a, b in zip(stored, drawn[file], strict=False)) + abs(len(stored) - len(drawn[file]))
        found += [f"{file}: {num_other} of {len(drawn[file])} states differ"] if num_other else []
    return found + _differing(manifest["scenes"], scene_hashes())


def _differing(stored: Mapping[str, str], drawn: Mapping[str, str]) -> list[str]:
    return [f"scenes of {key} differ" for key in sorted({*stored, *drawn}) if stored.get(key) != drawn.get(key)]


def write_store(folder: Path, *, is_forced: bool = False) -> int:
    """Writes the store and returns its size in bytes; the manifest comes last, every file by rename.

    Raises:
        ConfigError: There is a store that differs, and `is_forced` is not set.
    """
    if (folder / MANIFEST).exists() and not is_forced:
        differing = check_store(folder)
        if differing:
            raise ConfigError(
                f"{folder} holds other states ({len(differing)} differences, first: {differing[0]}); published scores"
                " would no longer compare. Pass --force to replace them"
            )
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        file: gzip.compress("".join(f"{line}\n" for line in lines).encode(), compresslevel=9, mtime=0)
        for file, lines in state_lines().items()
    }
    for file, data in files.items():
        _replace(folder / file, data)
    manifest = {
        "format": FORMAT,
        "files": {file: hashlib.sha256(data).hexdigest() for file, data in files.items()},
        "scenes": scene_hashes(),
    }
    text = json.dumps(manifest, indent=1, sort_keys=True) + "\n"
    _replace(folder / MANIFEST, text.encode())
    return sum(map(len, files.values())) + len(text)


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def main(arguments: list[str] | None = None) -> int:
    """Checks or writes the store; 0 when all is well, 1 when the store differs, 2 when the request cannot be met."""
    parser = argparse.ArgumentParser(prog="python -m roboalign.sdk.suites.states", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the store")
    parser.add_argument("--force", action="store_true", help="replace a store that differs")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the store is")
    options = parser.parse_args(arguments)
    try:
        if options.write:
            size = write_store(options.folder, is_forced=options.force)
            print(f"wrote {options.folder}: {size / 1e3:.0f} kB")
            return 0
        differing = check_store(options.folder)
    except RoboalignError as err:
        print(f"error: {err}", file=sys.stderr)
        return 2
    print("\n".join(differing) or f"{options.folder} holds what this version draws")
    return 1 if differing else 0


if __name__ == "__main__":
    raise SystemExit(main())
