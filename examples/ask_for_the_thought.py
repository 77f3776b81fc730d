"""Prints what the policy thinks before each chunk of actions, and how long each part of the answer took.

    python examples/ask_for_the_thought.py --chunks 4

The same scene is played three times: thought and action head (the default), the head without a thought (which it was
not trained for), and action tokens instead of the head.
"""

import argparse
import sys
import textwrap
from pathlib import Path
from typing import Literal

from roboalign import sdk
from roboalign.sdk.evaluation.play import find_scene, parse_task
from roboalign.sdk.sim import SimEnv

WAYS: tuple[tuple[bool, Literal["flow", "fast"]], ...] = ((True, "flow"), (False, "flow"), (True, "fast"))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", type=Path, help="bundle folder (default: the shipped one)")
    parser.add_argument("--seed", type=int, default=0, help="which scene that fits the task (default: 0)")
    parser.add_argument("--task", default="put the red block in the blue bowl", help="what to do, in words")
    parser.add_argument("--chunks", type=int, default=3, help="answers to ask for each time (default: 3)")
    return parser.parse_args()


def say(chunk: sdk.ActionChunk, time_s: float) -> None:
    """Prints one answer: when, what was thought, who acted, and the time that it took."""
    thought = chunk.thought if chunk.thought is not None else "(no thought)"
    print(textwrap.fill(thought, 80, initial_indent=f"{time_s:5.1f} s  ", subsequent_indent=" " * 9))
    names = {"vision_prompt": "reading", "thought": "thinking", "action": "acting", "total": "in all"}
    parts = [f"{name} {1000 * chunk.latency_s[key]:.0f} ms" for key, name in names.items() if key in chunk.latency_s]
    print(f"{'':9}{chunk.source}: {', '.join(parts)}")


def play(policy: sdk.Policy, env: SimEnv, chunks: int) -> None:
    policy.act(env.observe())  # the first answer of a process is slower; it is not the one to show
    policy.reset()
    start_s = env.observe(with_image=False).time_s
    for _ in range(chunks):
        observation = env.observe()
        chunk = policy.act(observation)
        say(chunk, observation.time_s - start_s)
        # no action when the policy holds; the third and fourth of what a step returns end the episode
        if any(any(env.step(action)[2:4]) for action in chunk.actions):
            return


def main() -> None:
    options = parse_options()
    task = parse_task(options.task)
    seed = find_scene(task, options.seed)
    env = SimEnv(task=task.family)
    print(textwrap.fill(f'The robot is told: "{task.sentence}".', 80))
    for think, actions in WAYS:
        with sdk.Policy.load(options.bundle, think=think, actions=actions) as policy:
            print(f'\nPolicy.load(think={think}, actions="{actions}")')
            env.reset(seed=seed, options={"instruction": task.sentence})
            play(policy, env, options.chunks)
    env.close()


if __name__ == "__main__":
    try:
        main()
    except sdk.RoboalignError as error:
        sys.exit(f"error: {error}")
