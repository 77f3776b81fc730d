"""Identifies hidden virtual arms and compares with the truth: errors, bars, and how often the intervals hold it.

    python benchmarks/sysid.py --draws 20 --out benchmarks/evidence/sysid.json

In parts, at once: `--first-seed 1000 --draws 10 --out a.json`, `--first-seed 1010 --draws 10 --out b.json`, then
`--merge a.json b.json --out benchmarks/evidence/sysid.json`.

Every draw is a virtual SO-101 behind its serial bytes, in memory, its dynamics drawn from the ranges of the preset
`strong`; time is simulated. `roboalign.sdk.sysid` sees what the bus owner sent and read, nothing else. The file is
written anew after every draw, so that a run that was cut short is evidence of as many draws as it says.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.drivers.arm.rig import make_rig  # the folder above is on the path

from roboalign.drivers.virtual.bullet import BulletPlant
from roboalign.sdk.randomization import DomainRandomization, DomainSample, preset
from roboalign.sdk.sysid import Identification, SysidConfig, WiggleConfig, identify

__all__ = ["BARS", "CONCERNS", "draw_arm", "main", "merge", "summary", "truth"]

CONCERNS = ("damping", "gain", "delay", "dead_band", "backlash", "rate_limit", "observation_noise", "dropouts")
"""What is hidden: everything of `strong` that an arm without a camera shows."""
BARS = {"delay_ms": 2.0, "gain": 0.05, "speed_scale": 0.05, "play_rad": float(np.radians(0.2))}
"""Largest error: of gain and top speed as a share of the truth, else in the parameter's unit."""
_RELATIVE = ("gain", "speed_scale")
_OFFSET_S = 0.0011  # the host's cycles begin inside the arm's steps, as they do in life, and not on their edges


def draw_arm(seed: int) -> DomainSample:
    """Returns the hidden dynamics of one draw."""
    strong = preset("strong")
    return DomainRandomization(name="hidden", **{name: getattr(strong, name) for name in CONCERNS}).sample(seed)


def truth(domain: DomainSample, joints: int) -> dict[str, list[float]]:
    """Returns what is to be found, by the names of the result."""
    slots = range(joints)
    return {
        "delay_ms": [domain.delay.bus_ms + domain.delay.joint_ms[slot] for slot in slots],
        "gain": [domain.gain.position_scale[slot] for slot in slots],
        "speed_scale": [domain.rate_limit.speed_scale[slot] for slot in slots],
        "play_rad": [domain.backlash.play_rad[slot] for slot in slots],
        "dead_band_rad": [domain.dead_band.width_rad[slot] for slot in slots],
        "damping_nm_s_rad": [domain.damping.joint_nm_s_rad[slot] for slot in slots],
        "bias_rad": [domain.observation_noise.joint_bias_rad[slot] for slot in slots],
        "noise_std_rad": [domain.observation_noise.joint_std_rad for slot in slots],
    }


def identify_draw(seed: int, seconds: float) -> tuple[DomainSample, Identification]:
    """Plays and fits one hidden arm."""
    domain = draw_arm(seed)
    with tempfile.TemporaryDirectory() as folder:
        rig = make_rig(Path(folder), plant=BulletPlant(domain=domain, renderer="tiny").open())
        rig.virtual.time_s = rig.clock.now()  # nothing happened before
        rig.clock.advance(_OFFSET_S)
        rig.robot.connect()
        found = identify(rig.robot, SysidConfig(wiggle=WiggleConfig(duration_s=seconds)))
        rig.plant.close()
    return domain, found


def rows_of(seed: int, domain: DomainSample, found: Identification) -> list[dict[str, object]]:
    """Returns a row for every parameter of every joint."""
    result, rows = found.result, []
    for name, values in truth(domain, len(result.joint_names)).items():
        for joint, true, item in zip(result.joint_names, values, result.joints[name], strict=True):
            error = item.value - true
            rows.append(
                {
                    "seed": seed,
                    "joint": joint,
                    "parameter": name,
                    "true": true,
                    "value": item.value,
                    "low": item.low,
                    "high": item.high,
                    "is_identified": item.is_identified,
                    "error": error / true if name in _RELATIVE else error,
                    "is_covered": item.low <= true <= item.high,
                }
            )
    return rows


def summary(rows: list[dict[str, object]]) -> dict[str, dict[str, object]]:
    """Returns errors, bars and coverage of every parameter."""
    found = {}
    for name in dict.fromkeys(str(row["parameter"]) for row in rows):
        mine = [row for row in rows if row["parameter"] == name]
        errors = np.abs([float(str(row["error"])) for row in mine])
        bar = BARS.get(name)
        found[name] = {
            "count": len(mine),
            "error_p50": float(np.median(errors)),
            "error_p95": float(np.quantile(errors, 0.95)),
            "error_max": float(errors.max()),
            "bar": bar,
            "share_within_bar": None if bar is None else float((errors <= bar).mean()),
            "coverage": float(np.mean([bool(row["is_covered"]) for row in mine])),
            "share_identified": float(np.mean([bool(row["is_identified"]) for row in mine])),
        }
    return found


def merge(paths: list[Path]) -> dict[str, object]:
    """Returns one content of several parts.

    Raises:
        SystemExit: A seed is in two of them, or they were made differently.
    """
    parts = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    if len({part["seconds"] for part in parts}) > 1:
        raise SystemExit(f"the parts were made with {[part['seconds'] for part in parts]} seconds; make them alike")
    seeds = [seed for part in parts for seed in dict.fromkeys(row["seed"] for row in part["rows"])]
    if len(set(seeds)) < len(seeds):
        raise SystemExit(f"the parts hold the seeds {seeds}, some of them twice; give each draw once")
    parts.sort(key=lambda part: int(part["first_seed"]))
    return _content(
        rows=[row for part in parts for row in part["rows"]],
        costs_s=[cost for part in parts for cost in part["cpu_s"]],
        asked=sum(part["draws_asked"] for part in parts),
        first_seed=parts[0]["first_seed"],
        seconds=parts[0]["seconds"],
    )


def _content(
    *, rows: list[dict[str, object]], costs_s: list[float], asked: int, first_seed: int, seconds: float
) -> dict[str, object]:
    return {
        "benchmark": "sysid",
        "draws": len(costs_s),
        "draws_asked": asked,
        "first_seed": first_seed,
        "seconds": seconds,
        "cpu_s": costs_s,
        "summary": summary(rows),
        "rows": rows,
    }


def _write(path: Path, content: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def _report(rows: list[dict[str, object]]) -> None:
    for name, row in summary(rows).items():
        print(name, json.dumps(row))


def main() -> None:
    """Runs the draws, or merges parts, and prints a line a parameter."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--merge", type=Path, nargs="+", metavar="PART", help="runs nothing; puts parts together")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    rows: list[dict[str, object]] = []
    if options.merge:
        content = merge(options.merge)
        _write(options.out, content)
        rows = content["rows"]  # type: ignore[assignment] # as `_content` made it
        return _report(rows)
    costs_s: list[float] = []
    for seed in range(options.first_seed, options.first_seed + options.draws):
        begin_s = time.process_time()
        rows += rows_of(seed, *identify_draw(seed, options.seconds))
        costs_s.append(round(time.process_time() - begin_s, 1))
        content = _content(
            rows=rows,
            costs_s=costs_s,
            asked=options.draws,
            first_seed=options.first_seed,
            seconds=options.seconds,
        )
        _write(options.out, content)
        print(f"draw {seed}: {costs_s[-1]} CPU s", flush=True)
    return _report(rows)


if __name__ == "__main__":
    main()
