"""Records a policy as a LeRobotDataset, reads it back, and replays its actions to the same final state, bit by bit.

python examples/record_and_replay.py --out runs/recorded
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from roboalign import sdk
from roboalign.sdk.data import DatasetWriter, Episode, LeRobotDataset, encode_png, truth_to_json
from roboalign.sdk.evaluation.play import find_scene, parse_task
from roboalign.sdk.sim import SimEnv


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", type=Path, help="bundle folder (default: the shipped one)")
    parser.add_argument("--seed", type=int, default=0, help="which scene that fits the task (default: 0)")
    parser.add_argument("--task", default="put the red block in the blue bowl", help="what to do, in words")
    parser.add_argument("--out", type=Path, help="dataset folder to write (default: a temporary one)")
    return parser.parse_args()


def record(policy: sdk.Policy, env: SimEnv) -> Episode:
    """Lets the policy act until the episode is over; every frame is kept as it was before its action."""
    frames, is_over = [], False
    while not is_over:
        chunk = policy.act(env.observe())
        if chunk.source == "hold":
            raise sdk.RobotError(f"the policy holds, so there is nothing to record: {chunk.reason}")
        for action in chunk.actions:
            frames.append((env.observe(), truth_to_json(env.truth()), action))
            _, _, terminated, truncated, _ = env.step(action)
            if is_over := terminated or truncated:
                break
    seen, truths, actions = zip(*frames, strict=True)
    return Episode(
        task=env.instruction,
        states=np.stack([observation.state for observation in seen]),
        joint_pos_rad=np.stack([observation.joint_pos_rad for observation in seen]),
        actions=np.stack(actions),
        images=tuple(encode_png(observation.images["front"]) for observation in seen),
        truth_json=truths,
        rate_hz=env.robot_spec.control_rate_hz,
    )


def main() -> None:
    options = parse_options()
    task = parse_task(options.task)
    seed = find_scene(task, options.seed)
    env = SimEnv(task=task.family)
    with tempfile.TemporaryDirectory() as folder, sdk.Policy.load(options.bundle) as policy:
        out = options.out or Path(folder) / "recorded"
        env.reset(seed=seed, options={"instruction": task.sentence})
        with DatasetWriter(out, image_size_px=env.robot_spec.image_size_px, num_joints=7) as writer:
            writer.add(record(policy, env))
            writer.write_extra("scene.json", {"seed": seed, "state_hash": env.state_hash()})
        episode, scene = LeRobotDataset(out).episode(0), json.loads((out / "meta" / "scene.json").read_text())
    print(f"recorded   {len(episode)} frames at {episode.rate_hz:g} Hz; final state {scene['state_hash'][:16]}...")
    env.reset(seed=scene["seed"])
    for action in episode.actions:
        env.step(action)
    print(f"replayed   {len(episode)} actions of the dataset; final state {env.state_hash()[:16]}...")
    if env.state_hash() != scene["state_hash"]:
        raise sdk.CheckFailed("the replay ended in another state")
    print("identical  every body and every joint, bit by bit")


if __name__ == "__main__":
    try:
        main()
    except sdk.RoboalignError as error:
        sys.exit(f"error: {error}")
