"""Measures how many demonstrations of a suite one core makes in a minute, and what a second process adds.

    python benchmarks/throughput.py --suite object --seconds 30

A demonstration is the expert's episode with the noise of data collection and a picture at every step, kept when it
succeeds; nothing is encoded or written. CPU time tells what a core can do; wall time is also given, with how busy the
machine's cores were before and during each run (`/proc/stat`), for that decides what a second process can add.
"""

from __future__ import annotations

import argparse
import json
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from roboalign.sdk.data.recording import ActionNoise
from roboalign.sdk.sim.seeds import train_seed
from roboalign.sdk.suites import find_suite

NOISE = ActionNoise(share=0.3, std_m=0.008, std_rad=0.05)
SETTLE_S = 3.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What one process did."""

    num_demonstrations: int
    num_episodes: int
    num_steps: int
    cpu_s: float
    wall_s: float


def collect(suite_name: str, image_size_px: int, seconds: float, first: int, stride: int) -> Work:
    """Collects demonstrations for so many seconds of wall time; imports and the first scene are not counted."""
    from roboalign.sdk.sim.env import SimEnv

    suite = find_suite(suite_name)
    env = SimEnv(suite.tasks[0], robot=suite.robot, image_size_px=image_size_px)
    env.reset(seed=train_seed(0))
    env.observe()
    num_kept = num_episodes = num_steps = 0
    start_s, cpu_s = time.monotonic(), time.process_time()
    index = first
    while time.monotonic() - start_s < seconds:
        env.reset(seed=train_seed(index), options={"task": suite.tasks[index % len(suite.tasks)]})
        rng = np.random.default_rng(index)
        is_over = is_solved = False
        while not is_over and not is_solved:
            env.observe()
            is_over = env.advance(NOISE.disturb(env.expert_action(), rng))
            is_solved = env.is_success()
            num_steps += 1
        num_kept += is_solved
        num_episodes += 1
        index += stride
    work = Work(
        num_demonstrations=num_kept,
        num_episodes=num_episodes,
        num_steps=num_steps,
        cpu_s=time.process_time() - cpu_s,
        wall_s=time.monotonic() - start_s,
    )
    env.close()
    return work


def busy_and_total() -> tuple[int, int]:
    """Returns clock ticks of all cores since boot: busy ones, and all."""
    ticks = list(map(int, Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()[1:9]))
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)


class CoresInUse:
    """Measures how many of the machine's cores were busy between two moments."""

    def __init__(self) -> None:
        self._start = busy_and_total()
        self._num_cores = len([line for line in Path("/proc/stat").read_text().splitlines() if line[:3] == "cpu"]) - 1

    def stop(self) -> float:
        """Returns the mean number of busy cores since the start."""
        busy, total = busy_and_total()
        return self._num_cores * (busy - self._start[0]) / max(1, total - self._start[1])


def run(num_processes: int, options: argparse.Namespace) -> dict[str, object]:
    """Runs so many processes at the same time and returns what they did together."""
    before = CoresInUse()
    time.sleep(SETTLE_S)
    busy_before = before.stop()
    with ProcessPoolExecutor(num_processes, mp_context=get_context("spawn")) as pool:
        list(pool.map(find_suite, [options.suite] * num_processes))
        during = CoresInUse()
        parts = [
            pool.submit(collect, options.suite, options.image_size_px, options.seconds, first, num_processes)
            for first in range(num_processes)
        ]
        works = [part.result() for part in parts]
        busy_during = during.stop()
    own = sum(work.cpu_s / work.wall_s for work in works)
    return {
        "processes": num_processes,
        "demonstrations_per_cpu_minute": 60 * sum(w.num_demonstrations for w in works) / sum(w.cpu_s for w in works),
        "demonstrations_per_minute": sum(60 * work.num_demonstrations / work.wall_s for work in works),
        "own_cores": own,
        "busy_cores_before": busy_before,
        "busy_cores_during": busy_during,
        "cores_of_others_during": max(0.0, busy_during - own),
        "works": [asdict(work) for work in works],
    }


def main() -> None:
    """Measures one process, then two, and prints what they did."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--suite", default="object", help="default: object")
    parser.add_argument("--image-size-px", type=int, default=96, help="default: 96")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each run (default: 30)")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    options = parser.parse_args()
    runs = [run(1, options), run(2, options)]
    for found in runs:
        print(
            f"{found['processes']} process(es): {found['demonstrations_per_cpu_minute']:.0f} per CPU minute,"
            f" {found['demonstrations_per_minute']:.0f} per minute of wall time on {found['own_cores']:.2f} cores;"
            f" busy cores before {found['busy_cores_before']:.2f}, others during {found['cores_of_others_during']:.2f}"
        )
    wall = runs[1]["demonstrations_per_minute"] / runs[0]["demonstrations_per_minute"]  # type: ignore[operator] # floats
    cores = runs[1]["own_cores"] / runs[0]["own_cores"]  # type: ignore[operator] # floats
    print(f"two processes make {wall:.2f} times as many, with {cores:.2f} times the processor time")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(runs, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
