"""Do policies gain from an identified arm? Twenty simulated SO-101 with hidden dynamics stand for real ones.

    python benchmarks/transfer.py arms                        # draws them: runs/transfer/arms
    roboalign sysid --seconds 60 --hidden runs/transfer/arms/arm-00.json --out runs/transfer/found/arm-00   # ... arm-19
    python benchmarks/transfer.py pool                        # wide.toml, and identified.toml from what sysid found
    roboalign collect --robot so101 --tasks place,push --episodes 970 --seed 1 --out DATA [--randomize TOML]
        [--state commanded]
    python benchmarks/transfer.py adapt --data DATA --name identified-adapted.s1 --seed 1     # from nano-so101
    python benchmarks/transfer.py play --policy nominal-adapted.s1=BUNDLE --policy identified-adapted.s1=BUNDLE ...
    python benchmarks/transfer.py report

An arm keeps its dynamics, delays, camera and light in all its episodes; the camera and the light are drawn as `mild`
draws them, what moves differently from a part of what `strong` draws that does not hold the plain simulation. `wide`
randomises over all of `strong`, `identified` over the hull of the intervals that `roboalign sysid` stated for the arms
(within `strong`; what it does not state stays as in `wide`). Every policy plays the same 15 scenes on each arm. `play`
can be repeated: what was played is not played again. `report` compares every way of training, the name before the dot,
with `nominal` of the same suffix, seed by seed, and keeps what it found before about others. In the evidence
`*-adapted` are the shipped `nano-so101` trained on; `nominal` was trained from the base, and `*-memoryless` as well,
from an expert that did not foresee where a late arm comes to rest; `wide` and `identified` are a new head on the
backbone of `nominal`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import tomllib

from roboalign.sdk.evaluation.intervals import success_interval
from roboalign.sdk.evaluation.statistics import paired_difference
from roboalign.sdk.randomization import DomainRandomization

NUM_ARMS = 20
SCENES_EACH = 15
FIRST_SEED = 880_000
FIRST_SCENE = 200_000
FIRST_PLAIN_SCENE = 300_000
NUM_PLAIN, PLAIN_EACH = 4, 25
SFT_STEPS, SFT_RATE, HEAD_STEPS = 700, 1e-3, 1500
OUT = Path(__file__).resolve().parent / "evidence" / "transfer.json"

Ranges = Mapping[str, Mapping[str, object]]

FLEET: Ranges = {
    "damping": {"joint_nm_s_rad": {"uniform": [0.15, 0.4]}},
    "gain": {"position_scale": {"uniform": [0.5, 0.75]}},
    "delay": {"bus_ms": {"uniform": [45, 75]}, "joint_ms": {"uniform": [0, 10]}},
    "dead_band": {"width_rad": {"uniform": [0.001, 0.004]}},
    "backlash": {"play_rad": {"uniform": [0.004, 0.01]}},
    "rate_limit": {"speed_scale": {"uniform": [0.4, 0.6]}},
    "observation_noise": {
        "joint_std_rad": {"uniform": [0.001, 0.005]},
        "joint_bias_rad": {"uniform": [-0.008, 0.008]},
        "gripper_std_m": {"uniform": [0.0002, 0.0015]},
    },
    "dropouts": {"frame_share": {"uniform": [0, 0.08]}, "state_share": {"uniform": [0, 0.08]}},
    "frame_age": {"steps": {"choice": [1, 2]}},
}
"""What the hidden arms are drawn from, besides what `mild` draws."""
WIDE: Ranges = {
    "damping": {"joint_nm_s_rad": {"uniform": [0, 0.5]}},
    "gain": {"position_scale": {"uniform": [0.5, 1.2]}},
    "delay": {"bus_ms": {"uniform": [0, 80]}, "joint_ms": {"uniform": [0, 10]}},
    "dead_band": {"width_rad": {"uniform": [0, 0.004]}},
    "backlash": {"play_rad": {"uniform": [0, 0.01]}},
    "rate_limit": {"speed_scale": {"uniform": [0.4, 1]}},
    "observation_noise": {
        "joint_std_rad": {"uniform": [0, 0.006]},
        "joint_bias_rad": {"uniform": [-0.01, 0.01]},
        "gripper_std_m": {"uniform": [0, 0.002]},
    },
    "dropouts": {"frame_share": {"uniform": [0, 0.1]}, "state_share": {"uniform": [0, 0.1]}},
    "frame_age": {"steps": {"choice": [0, 1, 2]}},
}
"""What `strong` draws for the same, besides what `mild` draws for everything else."""


def draw_arms(out: Path) -> None:
    """Writes each arm as a drawn sample, for `sysid --hidden`, and as a randomisation that draws nothing else."""
    fleet = DomainRandomization.from_json({"preset": "mild", "name": "fleet", **FLEET})
    folder = out / "arms"
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(NUM_ARMS):
        sample = fleet.sample(FIRST_SEED + number).to_json()
        name = f"arm-{number:02}"
        (folder / f"{name}.json").write_text(json.dumps(sample, indent=1) + "\n", encoding="utf-8")
        same: dict[str, object] = {"name": name}
        for concern, values in sample.items():
            if isinstance(values, dict):
                same[concern] = {key: {"each": v} if isinstance(v, list) else v for key, v in values.items()}
        (folder / f"{name}.fixed.json").write_text(json.dumps(same) + "\n", encoding="utf-8")


def pool(out: Path) -> None:
    """Writes `wide.toml`, and `identified.toml` around what was found on all arms."""
    hull: dict[tuple[str, str], tuple[float, float]] = {}
    found = sorted((out / "found").glob("arm-*/randomization.toml"))
    for path in found:
        for concern, values in tomllib.loads(path.read_text(encoding="utf-8")).items():
            for name, given in values.items() if isinstance(values, dict) else ():
                low, high = _ends(given)
                before = hull.get((concern, name), (low, high))
                hull[concern, name] = (min(low, before[0]), max(high, before[1]))
    around = {concern: dict(values) for concern, values in WIDE.items()}
    for (concern, name), (low, high) in hull.items():
        known = WIDE.get(concern, {}).get(name)
        least, most = (low, high) if known is None else _ends(known)
        low, high = max(low, least), min(high, most)
        whole = known.get("choice") if isinstance(known, Mapping) else None
        drawn = {"uniform": [low, high]} if whole is None else {"choice": [n for n in whole if low <= n <= high]}
        around.setdefault(concern, {})[name] = drawn
    _write_ranges(out / "wide.toml", "wide", WIDE)
    _write_ranges(out / "identified.toml", f"around {len(found)} arms", around)


def _ends(given: object) -> tuple[float, float]:
    """Returns the ends of a range as it stands in a file."""
    if isinstance(given, (int, float)):
        return float(given), float(given)
    assert isinstance(given, Mapping)
    kind, content = next(iter(given.items()))
    if kind == "each":
        ends = [_ends(item) for item in content]
        return min(low for low, _ in ends), max(high for _, high in ends)
    return float(min(content)), float(max(content))


def _write_ranges(path: Path, name: str, ranges: Ranges) -> None:
    lines = ['preset = "mild"', f'name = "{name}"']
    for concern, values in ranges.items():
        lines += ["", f"[{concern}]"]
        for key, given in values.items():
            assert isinstance(given, Mapping)
            kind, content = next(iter(given.items()))
            lines.append(f"{key} = {{ {kind} = {json.dumps(content)} }}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    DomainRandomization.load(path)


def adapt(out: Path, data: Path, name: str, seed: int) -> Path:
    """Trains the shipped SO-101 policy on: SFT, a new head, export. Returns the bundle; finished stages are kept."""
    from roboalign.export import ExportConfig, export
    from roboalign.sdk.bundle import find_bundle
    from roboalign.trainer.head import train_head
    from roboalign.trainer.recipes import RECIPES
    from roboalign.trainer.sft import train_sft

    recipe, folders = RECIPES["nano-so101"], [out / "adapted" / stage / name for stage in ("sft", "head", "bundle")]
    sft, head, bundle = folders
    if not sft.is_dir():
        start = find_bundle("nano-so101")
        train_sft(recipe.sft_config(data=data, base=start, out=sft, seed=seed, steps=SFT_STEPS, peak_rate=SFT_RATE))
    if not head.is_dir():
        train_head(replace(recipe.head_config(data=data, backbone=sft, out=head, seed=seed), steps=HEAD_STEPS))
    return bundle if bundle.is_dir() else export(ExportConfig(run=head, out=bundle))


def play(out: Path, policies: Mapping[str, str], workers: int) -> None:
    """Lets every policy play on every hidden arm, and in simulation without and with what was identified."""
    jobs = []
    for number in range(NUM_ARMS):
        first, where = FIRST_SCENE + SCENES_EACH * number, str(out / "arms" / f"arm-{number:02}.fixed.json")
        for name, bundle in policies.items():
            jobs.append((bundle, out / "played" / name / f"arm-{number:02}", first, SCENES_EACH, where))
    for number in range(NUM_PLAIN):
        first = FIRST_PLAIN_SCENE + PLAIN_EACH * number
        for name, bundle in policies.items():
            for world, where in (("off", "off"), ("ident", str(out / "identified.toml"))):
                jobs.append((bundle, out / "played" / name / f"{world}-{number}", first, PLAIN_EACH, where))
    with ThreadPoolExecutor(workers) as threads:
        list(threads.map(_evaluate, jobs))


def _evaluate(job: tuple[str, Path, int, int, str]) -> None:
    bundle, folder, first, count, randomization = job
    if (folder / "report.json").is_file():
        return
    command = [sys.executable, "-m", "roboalign", "eval", bundle, "--robot", "so101", "--tasks", "place,push",
               "--episodes", str(count), "--first-episode", str(first), "--films", "0",
               "--randomize", randomization, "--out", str(folder)]  # fmt: skip
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    print(folder, flush=True)


def outcomes(out: Path, policy: str, world: str) -> dict[tuple[str, int], bool]:
    """Returns success by arm (or part) and seed of the scene."""
    found: dict[tuple[str, int], bool] = {}
    for folder in sorted((out / "played" / policy).glob(f"{world}-*")):
        lines = (folder / "episodes.jsonl").read_text(encoding="utf-8").splitlines() if folder.is_dir() else []
        rows = (json.loads(line) for line in lines)
        found |= {(folder.name, row["seed"]): bool(row["success"]) for row in rows if "success" in row}
    return found


def report(out: Path) -> dict[str, object]:
    """Compares the three ways to train over seeds, arms and scenes, and prints what is found."""
    names = sorted(path.name for path in (out / "played").iterdir() if path.is_dir())
    worlds = {world: {name: outcomes(out, name, world) for name in names} for world in ("arm", "off", "ident")}
    result: dict[str, Any] = json.loads(OUT.read_text(encoding="utf-8"))
    assert (result["arms"], result["scenes_each"]) == (NUM_ARMS, SCENES_EACH)
    for name in names:
        row: dict[str, Any] = {}
        for world, by_name in worlds.items():
            solved, count = sum(by_name[name].values()), len(by_name[name])
            if count:
                interval = success_interval(solved, count)
                row[world] = {"solved": solved, "episodes": count, "interval": [interval.low, interval.high]}
        result["policies"][name] = row
        print(name, *(f"{world} {cell['solved']}/{cell['episodes']}" for world, cell in row.items()))
    for way in sorted({name.partition(".")[0] for name in names}):
        base, dash, suffix = way.partition("-")
        for second in ("nominal", "wide") if base == "identified" else ("nominal",):
            pairs = _pairs(worlds["arm"], way, f"{second}{dash}{suffix}") if second != base else []
            if pairs:
                key = f"{way} - {second}{dash}{suffix}"
                result["pairs"][key] = _compared(pairs)
                print(key, result["pairs"][key])
    OUT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def _pairs(
    played: Mapping[str, Mapping[tuple[str, int], bool]], first: str, second: str
) -> list[tuple[str, bool, bool]]:
    """Returns (arm, first, second) of every scene that both ways played, seed by seed."""
    found = []
    for name, episodes in played.items():
        way, _, seed = name.partition(".")
        other = played.get(f"{second}.{seed}", {})
        if way == first:
            found += [(key[0], ok, other[key]) for key, ok in episodes.items() if key in other]
    return found


def _compared(pairs: Sequence[tuple[str, bool, bool]]) -> dict[str, object]:
    arms, ones, others = zip(*pairs, strict=True)
    difference = paired_difference(ones, others, arms)
    return {"rates": [sum(ones) / len(ones), sum(others) / len(others)], **asdict(difference)}


def main() -> None:
    """Does what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("arms", "pool", "adapt", "play", "report"))
    parser.add_argument("--out", type=Path, default=Path("runs/transfer"))
    parser.add_argument("--policy", action="append", default=[], metavar="NAME=BUNDLE")
    parser.add_argument("--data", type=Path, help="what adapt learns from")
    parser.add_argument("--name", help="of what adapt makes, e.g. identified-adapted.s1")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    given = parser.parse_args()
    if given.what == "arms":
        draw_arms(given.out)
    elif given.what == "pool":
        pool(given.out)
    elif given.what == "adapt":
        print(adapt(given.out, given.data, given.name, given.seed))
    elif given.what == "play":
        play(given.out, dict(text.split("=", 1) for text in given.policy), given.workers)
    else:
        report(given.out)


if __name__ == "__main__":
    main()
