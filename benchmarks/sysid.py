"""Identifies hidden virtual arms and compares with the truth: errors, bars, and how often the intervals hold it.

    python benchmarks/sysid.py --draws 20 --out benchmarks/evidence/sysid.json

In parts, at once: `--first-seed 1000 --draws 10 --out a.json`, `--first-seed 1010 --draws 10 --out b.json`, then
`--merge a.json b.json --out benchmarks/evidence/sysid.json`.

Every draw is a virtual SO-101 behind its serial bytes, in memory, its dynamics drawn from the ranges of the preset
`strong`; time is simulated. `roboalign.sdk.sysid` sees what the bus owner sent and read, nothing else. The file is
written anew after every draw, so that a run that was cut short is evidence of as many draws as it says. `fit_cpu_s`
is what the fits cost; `cpu_s` is that and simulating arm and bus, unless `--recordings` had the wiggle from before.
`refused` holds the draws that the driver did not let move, and why.
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
from roboalign.sdk.errors import RobotError
from roboalign.sdk.randomization import DomainRandomization, DomainSample, preset
from roboalign.sdk.sysid import Identification, Recording, SysidConfig, WiggleConfig, fit_recording, plan_for
from roboalign.sdk.sysid.play import play_wiggle

__all__ = ["BARS", "CONCERNS", "draw_arm", "main", "merge", "summary", "truth"]

CONCERNS = ("damping", "gain", "delay", "dead_band", "backlash", "rate_limit", "observation_noise", "dropouts")
"""What is hidden: everything of `strong` that an arm without a camera shows."""
BARS = {"delay_ms": 2.0, "gain": 0.05, "speed_scale": 0.05, "play_rad": float(np.radians(0.2))}
"""Largest error: of gain and top speed as a share of the truth, else in the parameter's unit."""
_RELATIVE = ("gain", "speed_scale")
_COSTS = ("cpu_s", "fit_cpu_s")
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


def identify_draw(seed: int, seconds: float, folder: Path | None) -> tuple[DomainSample, Identification, float]:
    """Plays and fits one hidden arm, or fits what was kept of it; returns also what playing cost in seconds."""
    domain, begin_s = draw_arm(seed), time.process_time()
    kept = None if folder is None else folder / f"{seed}.json"
    if kept is not None and kept.is_file():
        return domain, fit_recording(Recording.load(kept)), 0.0
    recording = record_draw(domain, seconds)
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        recording.save(kept)
    played_s = time.process_time() - begin_s
    return domain, fit_recording(recording), played_s


def record_draw(domain: DomainSample, seconds: float) -> Recording:
    """Plays the wiggle on one hidden arm."""
    with tempfile.TemporaryDirectory() as folder:
        rig = make_rig(Path(folder), plant=BulletPlant(domain=domain, renderer="tiny").open())
        rig.virtual.time_s = rig.clock.now()  # nothing happened before
        rig.clock.advance(_OFFSET_S)
        rig.robot.connect()
        config = SysidConfig(wiggle=WiggleConfig(duration_s=seconds))
        recording = play_wiggle(rig.robot, plan_for(rig.robot, config)).recording
        rig.plant.close()
    return recording


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
    found: dict[str, dict[str, object]] = {}
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
            "width_p50": float(np.median([_width(name, row) for row in mine])),
            "share_identified": float(np.mean([bool(row["is_identified"]) for row in mine])),
        }
    return found


def _width(name: str, row: dict[str, object]) -> float:
    """Returns how wide an interval is, in the unit of the error."""
    low, high, true = (float(str(row[key])) for key in ("low", "high", "true"))
    return (high - low) / true if name in _RELATIVE else high - low


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
        [row for part in parts for row in part["rows"]],
        {name: [cost for part in parts for cost in part[name]] for name in _COSTS},
        {seed: reason for part in parts for seed, reason in part["refused"].items()},
        {
            "draws_asked": sum(part["draws_asked"] for part in parts),
            "first_seed": parts[0]["first_seed"],
            "seconds": parts[0]["seconds"],
        },
    )


def _content(
    rows: list[dict[str, object]],
    costs: dict[str, list[float]],
    refused: dict[str, str],
    made: dict[str, object],
) -> dict[str, object]:
    return {
        "benchmark": "sysid",
        "draws": len(costs["cpu_s"]),
        **made,
        **costs,
        "refused": refused,
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
    parser.add_argument("--seconds", type=float, default=180.0)
    parser.add_argument("--recordings", type=Path, metavar="FOLDER", help="keeps wiggles, and plays none twice")
    parser.add_argument("--merge", type=Path, nargs="+", metavar="PART", help="runs nothing; puts parts together")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if options.merge:
        content = merge(options.merge)
        _write(options.out, content)
        return _report(content["rows"])  # type: ignore[arg-type] # as `_content` made it
    return _report(_run(options))


def _run(options: argparse.Namespace) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    costs: dict[str, list[float]] = {name: [] for name in _COSTS}
    refused: dict[str, str] = {}
    made = {"draws_asked": options.draws, "first_seed": options.first_seed, "seconds": options.seconds}
    for seed in range(options.first_seed, options.first_seed + options.draws):
        try:
            domain, found, played_s = identify_draw(seed, options.seconds, options.recordings)
        except RobotError as err:  # an arm that sinks too far before its torque comes on is not moved
            refused[str(seed)] = str(err)
            print(f"draw {seed}: {err}", flush=True)
            continue
        rows += rows_of(seed, domain, found)
        fit_s = float(str(found.result.provenance["fit_cpu_s"]))
        for name, cost in zip(_COSTS, (round(played_s + fit_s, 1), fit_s), strict=True):
            costs[name].append(cost)
        _write(options.out, _content(rows, costs, refused, made))
        print(f"draw {seed}: {played_s:.1f} CPU s to play, {fit_s} to fit", flush=True)
    return rows


if __name__ == "__main__":
    main()
