"""Loads a policy into a program of one's own and lets it move whatever robot a file names; the file alone differs.

    python examples/one_program.py --robot robot.toml --task "put the red block in the blue bowl"

With `arm = "sim:so101"` in robot.toml it moves PyBullet's arm, with the port of `roboalign sim-bus` virtual servos, and
with a port under /dev/serial/by-id an arm on the desk: it prints its limits and asks first; Ctrl-C parks.
"""

import argparse
import sys
from pathlib import Path

from roboalign import sdk
from roboalign.drivers import load_robot
from roboalign.drivers.setup.dialogue import Terminal
from roboalign.drivers.setup.run import names_of, run_on_robot
from roboalign.sdk.control import Tick


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--robot", type=Path, required=True, help="robot file (robot.toml)")
    parser.add_argument("--bundle", default="nano-so101", help="bundle (default: nano-so101)")
    parser.add_argument("--task", default="put the red block in the blue bowl", help="what to do, in words")
    parser.add_argument("--seconds", type=float, default=6.0, help="how long to act (default: 6)")
    parser.add_argument("--yes", action="store_true", help="do not ask before an arm moves")
    return parser.parse_args()


def tell(tick: Tick) -> None:
    """Prints the beginning of each answer; this is the place for a program's own eyes and rules."""
    if tick.hold_reason is not None:
        print(f"  {tick.index:3}  holds: {tick.hold_reason}")
    elif tick.step == 0 and tick.chunk is not None:
        print(f"  {tick.index:3}  {(tick.chunk.thought or tick.chunk.source)[:70]}")


def main() -> None:
    options = parse_options()
    robot = load_robot(options.robot)
    with sdk.Policy.load(options.bundle, robot=names_of(robot)) as policy:
        print(f'{robot.spec.name} is told: "{options.task}".')
        report = run_on_robot(
            robot,
            policy,
            options.task,
            Terminal(lambda text: print(text, file=sys.stderr)),
            max_ticks=max(1, round(options.seconds * robot.spec.control_rate_hz)),
            is_sure=options.yes,
            name=options.bundle,
            on_tick=tell,
        )
    print(f"{report.ticks} actions, {report.holds} holds, {report.changed} changed by the limiter.")


if __name__ == "__main__":
    try:
        main()
    except sdk.RoboalignError as error:
        sys.exit(f"error: {error}")
