"""Plants faults between a shipped policy, its arm and its machine, and counts how many `roboalign doctor` names.

    python benchmarks/doctor.py --draws 20 --healthy 100 --jobs 2 --out benchmarks/evidence/doctor.json
    python benchmarks/doctor.py --draws 3 --healthy 6 --kinds "camera swap,joint order" --first-seed 900000

A draw is an arm (SO-101 and Panda in turn), a scene, a draw of the randomisation `mild` and a form of the fault, all by
its seed. It counts as named when the check of that name fails and no other does. Healthy draws are the same without a
fault; of these every failed check is a false alarm. Thresholds were chosen on scenes of the training stream; the scenes
here are of the evaluation stream. Everything is simulated: PyBullet, both shipped bundles, and folders that look like
a machine.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.drivers.pair.planted import KINDS, Planted, PlantedPolicy, PlantedRobot, healthy_machine, plant

from roboalign import __version__
from roboalign.drivers.pair.examine import (
    PairConfig,
    check_fitting,
    examine_evidence,
    examine_machine,
    examine_policy,
)
from roboalign.drivers.pair.session import Evidence, move_and_look
from roboalign.drivers.pair.simulated import simulated_robot
from roboalign.sdk.bundle import Bundle, find_bundle, read_bundle
from roboalign.sdk.control.kinematics import Kinematics
from roboalign.sdk.evaluation.intervals import wilson
from roboalign.sdk.policy import Policy
from roboalign.sdk.sim.robots import find_robot
from roboalign.sdk.types import Applied, Observation
from roboalign.sdk.views.reference import Reference, find_reference, read_reference

ARMS = {"so101": "nano-so101", "panda": "nano-policy"}
HEALTHY = "healthy"
FIRST_SEED = 50_000
OF_MACHINE = ("backend", "power mode", "disk")


@dataclass(frozen=True, kw_only=True, slots=True)
class Draw:
    """One examined pair."""

    kind: str
    """What was planted, or `healthy`."""
    form: str
    """Which form it took."""
    arm: str
    """The arm."""
    seed: int
    """Of scene, randomisation and form."""
    named: tuple[str, ...]
    """Checks that failed."""
    untold: tuple[str, ...]
    """Checks that could not tell."""
    found: str
    """What the first failed check said."""
    seconds: float
    """How long it took."""

    @property
    def is_right(self) -> bool:
        """Whether exactly what was planted was named."""
        return self.named == (() if self.kind == HEALTHY else (self.kind,))


@cache
def loaded(arm: str) -> tuple[Bundle, Policy, Reference]:
    """The shipped bundle of an arm, its policy and its reference."""
    bundle = read_bundle(find_bundle(ARMS[arm]))
    path = find_reference(bundle.path)
    assert path is not None, f"{ARMS[arm]} has no reference"
    return bundle, Policy.load(bundle.path), read_reference(path)


class Replay:
    """A robot that answers a second session with the same motions as it answered the first."""

    def __init__(self, evidence: Evidence) -> None:
        self.spec = evidence.spec
        self._moments, self._place = evidence.moments, 0

    def observe(self, instruction: str = "", with_images: bool = True) -> Observation:
        """What was sensed after the last action; before the first one, the same as after it."""
        seen = self._moments[max(self._place - 1, 0)].seen
        return replace(seen, instruction=instruction, images=seen.images if with_images else {})

    def act(self, action: np.ndarray) -> Applied:
        """Goes on by one period; the action must be the one of the first session."""
        moment = self._moments[self._place]
        assert np.array_equal(action, moment.action), (action, moment.action)
        self._place += 1
        reasons = () if moment.is_free else ("limited",)
        return Applied(requested=action, sent=action, joint_target_rad=np.zeros(1, np.float32), reasons=reasons)


def examine_scene(seed: int, kinds: Sequence[str]) -> list[Draw]:
    """Lets the doctor look at one healthy scene, then at the same session with faults planted into it.

    What a session asks for does not depend on what is sensed, so faults of the senses can be planted into what was
    recorded; faults of what is done, and of the machine, need a session or a machine of their own.
    """
    arm = sorted(ARMS)[seed % len(ARMS)]
    draws = []
    kinematics = find_robot(arm).kinematics()
    with tempfile.TemporaryDirectory(prefix="doctor-") as folder:
        start = time.perf_counter()
        with simulated_robot(arm, seed, randomization="mild") as (env, robot):
            sentence = env.instruction
            evidence = move_and_look(robot, sentence, kinematics=kinematics, sleep=no_wait)
        sound = Planted(HEALTHY)
        draws.append(judge(sound, arm, seed, evidence, Path(folder) / HEALTHY, start))
        for kind in kinds:
            start, root = time.perf_counter(), Path(folder) / kind
            planted = plant(kind, seed, arm, root)
            if kind in OF_MACHINE or (kind == "instruction" and planted.form == "policy"):
                draws.append(judge(planted, arm, seed, evidence, root, start))
                continue
            if planted.is_of_motion:
                with simulated_robot(arm, seed, randomization="mild") as (env, robot):
                    found = look(PlantedRobot(robot, planted), sentence, kinematics)
            else:
                found = look(PlantedRobot(Replay(evidence), planted), sentence, kinematics)
            draws.append(judge(planted, arm, seed, found, root, start))
    return draws


def look(robot: PlantedRobot, sentence: str, kinematics: Kinematics) -> Evidence:
    """A session with a planted robot."""
    return move_and_look(robot, sentence, kinematics=kinematics, sleep=no_wait)


def no_wait(seconds: float) -> None:
    """Simulated time passes with `act`."""


def judge(planted: Planted, arm: str, seed: int, evidence: Evidence, root: Path, start: float) -> Draw:
    """All checks of one pair."""
    bundle, policy, reference = loaded(arm)
    needs = bundle.manifest.policy
    config = PairConfig(bundle=ARMS[arm], backend=planted.backend, traces=planted.traces or root / "runs")
    checks = examine_machine(bundle, config, planted.machine or healthy_machine(root / "machine"))
    checks += check_fitting(evidence.spec, needs, ARMS[arm])
    checks += examine_evidence(evidence, needs, reference)
    seen = [moment.seen for moment in evidence.moments]
    sentences = (evidence.sentence, *reference.sentences)
    # No time passes: how busy this machine is, is no property of the pair.
    checks += examine_policy(PlantedPolicy(policy, planted), seen, sentences, clock=lambda: 0.0)
    failed = [check for check in checks if check.status == "failed"]
    return Draw(
        kind=planted.kind,
        form=planted.form,
        arm=arm,
        seed=seed,
        named=tuple(dict.fromkeys(check.name for check in failed)),
        untold=tuple(check.name for check in checks if "cannot tell" in check.found),
        found=failed[0].found if failed else "",
        seconds=round(time.perf_counter() - start, 1),
    )


def measure(kinds: Sequence[str], draws: int, healthy: int, first_seed: int, jobs: int) -> list[Draw]:
    """Examines every pair, several at a time; each scene carries a few kinds, each kind `draws` scenes."""
    groups = max(1, healthy // draws)
    planted = [
        [kind for place, kind in enumerate(kinds) if index // 2 % groups == place % groups and index < groups * draws]
        for index in range(healthy)
    ]
    found = []
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        for rows in pool.map(examine_scene, range(first_seed, first_seed + healthy), planted):
            for draw in rows:
                found.append(draw)
                mark = "ok" if draw.is_right else f"WRONG: {', '.join(draw.named) or 'nothing'}: {draw.found}"
                line = f"{draw.kind:<20} {draw.arm:<6} {draw.seed} {draw.form:<40} {draw.seconds:5.1f} s  {mark}"
                print(line, flush=True)
    return found


def summarize(draws: Sequence[Draw]) -> dict[str, object]:
    """Counts by kind, with 95 % intervals."""
    table = {}
    for kind in dict.fromkeys(draw.kind for draw in draws):
        rows = [draw for draw in draws if draw.kind == kind]
        right = sum(draw.is_right for draw in rows)
        interval = wilson(right, len(rows))
        table[kind] = {
            "draws": len(rows),
            "right": right,
            "interval": [round(interval.low, 3), round(interval.high, 3)],
            "wrong": [asdict(draw) for draw in rows if not draw.is_right],
            "forms": dict(sorted({form: sum(d.form == form for d in rows) for form in {d.form for d in rows}}.items())),
        }
    return table


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a line a draw and a table, and writes it when asked to."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--draws", type=int, default=20, help="draws of each kind")
    parser.add_argument("--healthy", type=int, default=100, help="scenes, each also looked at without a fault")
    parser.add_argument("--kinds", default=",".join(KINDS), help="kinds of faults, separated by commas")
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED, help="of the scenes; 50000 is what was published")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args(argv)
    kinds = [kind.strip() for kind in args.kinds.split(",") if kind.strip()]
    draws = measure(kinds, args.draws, args.healthy, args.first_seed, args.jobs)
    table = summarize(draws)
    for kind, row in table.items():
        print(f"{kind:<22} {row['right']:>3} of {row['draws']}")
    if args.out is None:
        return
    content = {
        "command": f"python benchmarks/doctor.py --draws {args.draws} --healthy {args.healthy}",
        "roboalign": __version__,
        "python": platform.python_version(),
        "first_seed": args.first_seed,
        "kinds": table,
        "untold": {
            name: sum(name in draw.untold for draw in draws) for name in sorted({n for d in draws for n in d.untold})
        },
        "median_seconds": round(float(np.median([draw.seconds for draw in draws])), 1),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
