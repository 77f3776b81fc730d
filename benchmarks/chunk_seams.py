"""Measures how smooth the seams of chunks are when they come late: each strategy at each delay, on simulated scenes.

    python benchmarks/chunk_seams.py --episodes 6 --out runs/chunk-seams.json

The shipped policy acts without thoughts on a clock on which an answer takes so many control periods. Printed is the
mean change at a seam in mean changes inside a chunk: of the tool's speed, and the step of the joint targets. Success is
counted too, on few scenes. Nothing here depends on the machine.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from math import isfinite
from pathlib import Path

from roboalign.sdk.control.chunks import CHUNK_STRATEGIES
from roboalign.sdk.evaluation import EvalConfig, PolicyRef, evaluate
from roboalign.sdk.evaluation.latency import LatencyProfile

__all__ = ["measure"]

_FIRST_EPISODE = 200_000
"""Scenes of its own: nothing is chosen on those that success is reported on."""


def measure(strategy: str, delay: int, episodes: int) -> dict[str, object]:
    """Plays the episodes; returns ratios, counts and success."""
    seconds = 0.1 * delay - 0.01 if delay else 0.0
    policy = PolicyRef(kind="bundle", think=False, latency=LatencyProfile(prefill_s=seconds), chunks=strategy)
    with tempfile.TemporaryDirectory() as folder:
        config = EvalConfig(out=Path(folder), episodes=episodes, first_episode=_FIRST_EPISODE, films=0)
        report = evaluate(config, policy)
    return {
        "strategy": strategy,
        "delay": delay,
        "solved": report.total.num_successes,
        "episodes": episodes,
        "stood_share": report.stood_share,
        # Where every action has a chunk of its own, nothing changes inside one.
        **{f"{name}_ratio": seam.ratio if isfinite(seam.ratio) else None for name, seam in report.seams.items()},
        "num_seams": report.seams["velocity"].num_across if "velocity" in report.seams else 0,
    }


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=6)
    parser.add_argument("--delays", default="0,1,2,3,4,5,6,7")
    parser.add_argument("--strategies", default=",".join(CHUNK_STRATEGIES))
    parser.add_argument("--out", type=Path, default=Path("runs/chunk-seams.json"))
    options = parser.parse_args()
    rows = []
    for delay in map(int, options.delays.split(",")):
        for strategy in options.strategies.split(","):
            rows.append(measure(strategy, delay, options.episodes))
            print({name: round(value, 2) if isinstance(value, float) else value for name, value in rows[-1].items()})
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(options.out)


if __name__ == "__main__":
    _main()
