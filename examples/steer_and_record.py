"""Steers an arm by a program of one's own, in place of a keyboard, and records what it did as a LeRobotDataset.

    python examples/steer_and_record.py --out runs/circles

The simulated SO-101 moves. With --robot robot.toml a real one would: it prints its limits and asks first.
"""

import argparse
import math
import sys
import tempfile
from pathlib import Path

import numpy as np

from roboalign import sdk
from roboalign.drivers.setup.dialogue import Terminal
from roboalign.drivers.setup.pilots import ScriptPilot, Wish
from roboalign.drivers.setup.station import StationConfig, record_at_station
from roboalign.sdk.control import FakeClock
from roboalign.sdk.data import LeRobotDataset


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--robot", type=Path, help="robot file of a real arm (default: simulation)")
    parser.add_argument("--episodes", type=int, default=2, help="circles to record (default: 2)")
    parser.add_argument("--out", type=Path, help="dataset folder to write (default: a temporary one)")
    return parser.parse_args()


def circle(radius_m: float, steps: int = 16) -> list[np.ndarray]:
    """The displacements of the tool that make a level circle; the gripper opens halfway round."""
    turn = 2 * math.pi / steps
    side_m = 2 * radius_m * math.sin(turn / 2)
    return [
        np.array((side_m * math.cos(turn * k), side_m * math.sin(turn * k), 0, 0, k >= steps // 2), np.float32)
        for k in range(steps)
    ]


def main() -> None:
    options = parse_options()
    pilot = ScriptPilot([(circle(0.02), Wish.KEEP)] * options.episodes)
    with tempfile.TemporaryDirectory() as folder:
        out = options.out or Path(folder) / "circles"
        report = record_at_station(
            StationConfig(robot_file=options.robot),
            lambda spec: pilot,
            Terminal(lambda text: print(text, file=sys.stderr)),
            out=out,
            task="draw a circle in the air",
            episodes=options.episodes,
            seconds=10.0,
            clock=FakeClock() if options.robot is None else None,  # simulated time costs none of ours
        )
        dataset = LeRobotDataset(out)
        for index in range(report.kept):
            episode = dataset.episode(index)
            width_m, depth_m = np.ptp(episode.states[:, :2], axis=0)
            print(f"episode {index}: {len(episode)} frames, {100 * width_m:.1f} x {100 * depth_m:.1f} cm")
    print(f"recorded {report.kept} episodes at {episode.rate_hz:g} Hz")


if __name__ == "__main__":
    try:
        main()
    except sdk.RoboalignError as error:
        sys.exit(f"error: {error}")
