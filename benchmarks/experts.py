"""Measures the scripted experts: share of solved episodes of every task of every suite, plain and under action noise.

    python benchmarks/experts.py --suite spatial --out runs/experts.json
    python benchmarks/experts.py --out runs/experts.json --limit-s 120     # repeat until it says that all is measured

Episodes are the frozen initial states (evaluation seeds 0 to 49). `noise` disturbs every executed step by a Gaussian of
8 mm on dx, dy and dz. What is in the output file already, of as many episodes, is not measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from zlib import crc32

import numpy as np

from roboalign.sdk.data.recording import ActionNoise
from roboalign.sdk.sim.seeds import eval_seed
from roboalign.sdk.suites import find_suite, suite_names

NOISE_STD_M = 0.008
"""Standard deviation of the disturbance of every step."""
BARS = {"plain": 0.95, "noise": 0.85}
"""Least share of solved episodes per task; 0.90 for the SO-101 without noise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """What is measured together: one task, arm and kind of execution."""

    task: str
    robot: str
    kind: str
    split: str = "train"

    @property
    def key(self) -> str:
        """Name of the cell in the output file."""
        return f"{self.robot}|{self.task}|{self.kind}" + ("" if self.split == "train" else f"|{self.split}")

    @property
    def bar(self) -> float:
        """Least share that the expert has to solve."""
        return 0.90 if self.robot != "panda" and self.kind == "plain" else BARS[self.kind]


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """What was measured of a cell."""

    num_episodes: int
    num_solved: int
    mean_steps: float
    """Steps of the solved episodes."""
    failed: tuple[int, ...]
    """Indices of the evaluation seeds that were not solved."""
    cpu_s: float


def measure(cell: Cell, num_episodes: int) -> Result:
    """Plays the expert from the first `num_episodes` evaluation seeds."""
    from roboalign.sdk.sim.env import SimEnv

    noise = ActionNoise(share=1.0 if cell.kind == "noise" else 0.0, std_m=NOISE_STD_M, std_rad=0.0)
    start_s = time.process_time()
    steps, failed = [], []
    env = SimEnv(cell.task, robot=cell.robot, split=cell.split)
    for index in range(num_episodes):
        env.reset(seed=eval_seed(index))
        rng = np.random.default_rng([index, crc32(cell.key.encode())])
        count, is_over, is_solved = 0, False, False
        while not is_over and not is_solved:
            is_over = env.advance(noise.disturb(env.expert_action(), rng))
            is_solved = env.is_success()
            count += 1
        steps += [count] if is_solved else []
        failed += [] if is_solved else [index]
    env.close()
    return Result(
        num_episodes=num_episodes,
        num_solved=len(steps),
        mean_steps=float(np.mean(steps)) if steps else 0.0,
        failed=tuple(failed),
        cpu_s=time.process_time() - start_s,
    )


def cells(suites: list[str], only: str, split: str) -> Iterator[Cell]:
    """Yields every cell of these suites whose name contains `only`."""
    for name in suites:
        suite = find_suite(name)
        for task in suite.tasks if suite.kind == "sim" else ():
            for kind in BARS:
                cell = Cell(task=task, robot=suite.robot, kind=kind, split=split)
                if only in cell.key:
                    yield cell


def load(path: Path) -> dict[str, dict[str, object]]:
    """Returns what an earlier run measured."""
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def save(path: Path, found: dict[str, dict[str, object]]) -> None:
    """Writes the results; a kill leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    temporary.replace(path)


def table(found: dict[str, dict[str, object]], wanted: list[Cell]) -> str:
    """Returns the results as text, one task a line."""
    lines = [f"{'task':38} {'robot':6} {'kind':6} {'solved':>8} {'steps':>6} {'CPU s':>6}"]
    for cell in wanted:
        if cell.key not in found:
            continue
        row = Result(**found[cell.key])  # type: ignore[arg-type] # as `asdict` wrote them
        mark = "" if row.num_solved >= cell.bar * row.num_episodes else f"  below {cell.bar:.0%}: {list(row.failed)}"
        share = f"{row.num_solved}/{row.num_episodes}"
        lines.append(
            f"{cell.task:38} {cell.robot:6} {cell.kind:6} {share:>8} {row.mean_steps:6.1f} {row.cpu_s:6.1f}{mark}"
        )
    return "\n".join(lines)


def parse_options() -> argparse.Namespace:
    """Returns the options of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--suite", action="append", choices=suite_names(), help="default: all suites of the simulator")
    parser.add_argument("--only", default="", help="measure cells whose name `robot|task|kind` contains this text")
    parser.add_argument("--episodes", type=int, default=50, help="evaluation seeds per task (default: 50)")
    parser.add_argument("--split", default="train", help="split of the scenes (default: train)")
    parser.add_argument("--workers", type=int, default=1, help="processes (default: 1)")
    parser.add_argument("--limit-s", type=float, default=float("inf"), help="start nothing new after so many seconds")
    parser.add_argument("--out", type=Path, required=True, help="JSON file, added to")
    return parser.parse_args()


def main() -> int:
    """Measures what is missing, prints the table; 0 when every bar is met, 1 when not, 3 when some is missing."""
    options = parse_options()
    wanted = list(cells(options.suite or list(suite_names()), options.only, options.split))
    found = load(options.out)
    missing = [cell for cell in wanted if found.get(cell.key, {}).get("num_episodes") != options.episodes]
    end_s = time.monotonic() + options.limit_s
    run = partial(measure, num_episodes=options.episodes)
    pool = ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) if options.workers > 1 else None
    while missing and time.monotonic() < end_s:
        batch, missing = missing[: options.workers], missing[options.workers :]
        for cell, result in zip(batch, pool.map(run, batch) if pool else map(run, batch), strict=True):
            found[cell.key] = asdict(result)
            print(f"{cell.key}: {result.num_solved}/{result.num_episodes}", file=sys.stderr, flush=True)
        save(options.out, found)
    if pool:
        pool.shutdown()
    print(table(found, wanted))
    if missing:
        print(f"{len(missing)} of {len(wanted)} not measured yet; run the same command again", file=sys.stderr)
        return 3
    rows = [(cell, Result(**found[cell.key])) for cell in wanted]  # type: ignore[arg-type] # as `asdict` wrote them
    return int(any(row.num_solved < cell.bar * row.num_episodes for cell, row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
