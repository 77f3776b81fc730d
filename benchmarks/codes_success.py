"""Does a trained policy lose by int4 weights, and by products on the codes themselves? Paired, on the same scenes.

    roboalign export HEAD --precision int4 --out runs/int4
    python benchmarks/codes_success.py runs/int4 --episodes 300 --out runs/codes-success.json

Plays three on place and push: the shipped policy; the int4 bundle with its codes decoded once, which a bundle of its
size does by itself; and the same bundle with its codes multiplied as they are and activations rounded to 8 bits, which
a large one does. The bundle has to be made of the policy that it is compared with (`--policy`).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path

from roboalign.sdk.backends import in_place
from roboalign.sdk.bundle import shipped_bundle_path
from roboalign.sdk.evaluation import EvalConfig, EvalReport, PolicyRef, compare, evaluate

__all__ = ["play"]


def play(bundle: Path, episodes: int, first_episode: int, *, on_codes: bool) -> EvalReport:
    """Plays the scenes of the evaluation stream; `on_codes` says how codes are multiplied, whatever their size."""
    in_place.prefers_codes = lambda _: on_codes
    with tempfile.TemporaryDirectory() as folder:
        tasks = ("place", "push")
        config = EvalConfig(out=Path(folder), episodes=episodes, first_episode=first_episode, tasks=tasks, films=0)
        return evaluate(config, PolicyRef(kind="bundle", path=str(bundle)))


def main() -> None:
    """Plays, compares and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path, help="int4 or int8 bundle for cpu")
    parser.add_argument("--policy", type=Path, default=shipped_bundle_path(), help="default: the shipped policy")
    parser.add_argument("--episodes", type=int, default=300, help="default: 300")
    parser.add_argument("--first-episode", type=int, default=0, help="default: 0")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    options = parser.parse_args()
    scenes = options.episodes, options.first_episode
    plain = play(options.policy, *scenes, on_codes=False)
    found = {"policy": asdict(plain.total)}
    print(f"policy            {plain.total.num_successes} of {options.episodes}")
    for name, on_codes in (("codes decoded", False), ("codes multiplied", True)):
        report = play(options.bundle, *scenes, on_codes=on_codes)
        pair = compare(report, plain).total
        low, high = 100 * pair.interval.low, 100 * pair.interval.high
        solved = f"{report.total.num_successes} of {options.episodes}"
        print(
            f"{name:17} {solved}, {100 * pair.difference:+.1f} points [{low:+.1f}, {high:+.1f}], p = {pair.p_value:.2g}"
        )
        found[name] = {**asdict(report.total), "minus_policy": asdict(pair)}
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
