"""Loads a policy, tells it one sentence, and lets it move the simulated Panda.

    python examples/load_and_act.py --task "push the green cylinder to the left"

Without --bundle, the policy that comes with the package acts.
"""

import argparse
import sys
import textwrap
from pathlib import Path

from roboalign import sdk
from roboalign.sdk.evaluation.play import find_scene, parse_task
from roboalign.sdk.sim import SimEnv


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", type=Path, help="bundle folder (default: the shipped one)")
    parser.add_argument("--seed", type=int, default=0, help="which scene that fits the task (default: 0)")
    parser.add_argument("--task", default="put the red block in the blue bowl", help="what to do, in words")
    return parser.parse_args()


def act(policy: sdk.Policy, env: SimEnv) -> bool:
    """Asks for chunks and applies them until the task is done, time is up, or the policy has no answer."""
    step, is_over = 0, False
    while not is_over:
        chunk = policy.act(env.observe())
        if chunk.source == "hold":
            print(f"  the policy holds: {chunk.reason}")
            return False
        limited = 0
        for action in chunk.actions:
            _, _, terminated, truncated, _ = env.step(action)  # one control period, through the limiter
            limited += env.last_applied is not None and env.last_applied.is_changed
            is_over = terminated or truncated
            step += 1
            if is_over:
                break
        note = f", {limited} actions limited" if limited else ""
        print(f"  step {step:2d}: {chunk.source} acted, {100 * env.progress():3.0f} % of the way{note}")
    return env.is_success()


def main() -> None:
    options = parse_options()
    task = parse_task(options.task)
    env = SimEnv(task=task.family)
    env.reset(seed=find_scene(task, options.seed), options={"instruction": task.sentence})
    with sdk.Policy.load(options.bundle) as policy:
        spec = policy.spec
        print(textwrap.fill(f'The robot is told: "{env.instruction}".', 80))
        print(textwrap.fill("On the table: " + ", ".join(item.name for item in env.truth().objects) + ".", 80))
        print(f"The policy answers {spec.horizon} actions at a time, for {spec.rate_hz:g} Hz.")
        is_done = act(policy, env)
    print("Success: the task is done." if is_done else "No success this time.")
    env.close()


if __name__ == "__main__":
    try:
        main()
    except sdk.RoboalignError as error:
        sys.exit(f"error: {error}")
