"""Shows that an episode depends on its seed and settings alone: 200 episodes over all suites, hashed in several ways.

    python benchmarks/determinism.py --out runs/determinism.json

Every episode plays the expert with noise and hashes every body's state after each fifth step, and the picture. The
hashes have to be the same in any order, in one process and in two. Randomisation of pictures must not move a body, and
must not change what the randomisation of the physics draws.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from roboalign.sdk.data.recording import ActionNoise
from roboalign.sdk.randomization import DomainRandomization, preset
from roboalign.sdk.sim.seeds import eval_seed
from roboalign.sdk.suites import find_suite, suite_names

HASH_EVERY = 5
PICTURES = ("camera_pose", "field_of_view", "exposure", "white_balance", "noise", "blur", "light", "colours")
PHYSICS = ("mass", "friction", "damping", "gain")


@dataclass(frozen=True, slots=True)
class Job:
    """One episode."""

    task: str
    robot: str
    seed: int


Hashes = dict[Job, tuple[str, str]]
"""Hash of the states and hash of the pictures of each episode."""


def all_jobs(count: int) -> list[Job]:
    """Returns `count` episodes, dealt evenly to the tasks of all suites of the simulator."""
    suites = [suite for suite in map(find_suite, suite_names()) if suite.kind == "sim"]
    pairs = [(task, suite.robot) for suite in suites for task in suite.tasks]
    return [Job(*pairs[i % len(pairs)], eval_seed(i // len(pairs))) for i in range(count)]


def only(concerns: Sequence[str]) -> DomainRandomization:
    """Returns the preset `strong` with all but these concerns off."""
    strong, off = preset("strong"), DomainRandomization(name="off")
    return dataclasses.replace(off, name="-".join(concerns), **{name: getattr(strong, name) for name in concerns})


def play(jobs: Sequence[Job], steps: int, randomization: DomainRandomization) -> Hashes:
    """Plays the episodes one after another in one environment for each arm."""
    from roboalign.sdk.sim.env import SimEnv

    envs = {robot: SimEnv("place", robot=robot, randomization=randomization) for robot in {job.robot for job in jobs}}
    found = {}
    for job in jobs:
        env, rng = envs[job.robot], np.random.default_rng(job.seed)
        noise = ActionNoise(share=0.3, std_m=0.008, std_rad=0.05)
        env.reset(seed=job.seed, options={"task": job.task})
        states, pictures = hashlib.sha256(), hashlib.sha256()
        for step in range(steps):
            if step % HASH_EVERY == 0:
                states.update(env.state_hash().encode())
                pictures.update(env.observe().images["front"].tobytes())
            env.advance(noise.disturb(env.expert_action(), rng))
        states.update(env.state_hash().encode())
        found[job] = (states.hexdigest(), pictures.hexdigest())
    for env in envs.values():
        env.close()
    return found


def play_in_two(jobs: Sequence[Job], steps: int, randomization: DomainRandomization) -> Hashes:
    """Plays every other episode in a process of its own."""
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        parts = [pool.submit(play, jobs[i::2], steps, randomization) for i in range(2)]
        return {job: hashes for part in parts for job, hashes in part.result().items()}


def compare(one: Hashes, other: Hashes, *, with_pictures: bool) -> list[str]:
    """Returns the episodes whose hashes differ."""
    count = 2 if with_pictures else 1
    return [f"{job.task} {job.robot} seed {job.seed}" for job in one if one[job][:count] != other[job][:count]]


def parse_options() -> argparse.Namespace:
    """Returns the options of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--episodes", type=int, default=200, help="episodes in each pass (default: 200)")
    parser.add_argument("--steps", type=int, default=20, help="steps of an episode (default: 20)")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    return parser.parse_args()


def main() -> int:
    """Plays the passes and compares them; 0 when nothing differs."""
    options = parse_options()
    jobs, steps = all_jobs(options.episodes), options.steps
    shuffled = [jobs[i] for i in np.random.default_rng(0).permutation(len(jobs))]
    off, pictures, physics = DomainRandomization(name="off"), only(PICTURES), only(PHYSICS)
    both = only((*PICTURES, *PHYSICS))
    passes = {
        "shuffled, one process": (lambda: play(shuffled, steps, off), "in order", True),
        "two processes": (lambda: play_in_two(jobs, steps, off), "in order", True),
        "pictures randomised": (lambda: play(jobs, steps, pictures), "in order", False),
        "physics randomised": (lambda: play(jobs, steps, physics), "", False),
        "physics and pictures randomised": (lambda: play(jobs, steps, both), "physics randomised", False),
    }
    start_s = time.monotonic()
    found = {"in order": play(jobs, steps, off)}
    result: dict[str, object] = {"episodes": len(jobs), "tasks": len({(job.task, job.robot) for job in jobs})}
    num_failed = 0
    for name, (run, against, with_pictures) in passes.items():
        found[name] = run()
        differing = compare(found[name], found[against], with_pictures=with_pictures) if against else []
        num_failed += bool(differing)
        what = "states and pictures" if with_pictures else "states"
        if against:
            print(f"{name:32} {len(differing)} of {len(jobs)} differ from '{against}' in {what}", flush=True)
            result[name] = differing
    num_moved = len(compare(found["physics randomised"], found["in order"], with_pictures=False))
    num_seen = sum(found["pictures randomised"][job][1] != found["in order"][job][1] for job in jobs)
    print(f"for contrast: physics randomised moved {num_moved}, pictures randomised looked different in {num_seen}")
    digest = hashlib.sha256("".join(states + seen for states, seen in found["in order"].values()).encode()).hexdigest()
    result |= {"moved_by_physics": num_moved, "seen_by_pictures": num_seen, "sha256": digest}
    print(f"all of it: {digest[:16]}, {time.monotonic() - start_s:.0f} s", file=sys.stderr)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return int(num_failed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
