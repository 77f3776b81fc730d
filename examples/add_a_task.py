"""Adds a task of our own, "hold the cylinder over the block", and lets its expert solve it.

    python examples/add_a_task.py --seed 3

To share it, put this file into a package whose pyproject.toml says:

    [project.entry-points."roboalign.tasks"]
    hover = "my_package.add_a_task:TASK"

Then every command, `SimEnv("hover")` and the Gymnasium id `roboalign/Hover-Panda-v0` know it.
"""

import argparse

import numpy as np

from roboalign.sdk.sim import ObjectSpec, SceneSpec, SceneTruth, SimEnv, expert_action, register_task


class Hover:
    name, robots, splits, max_steps = "hover", ("panda",), ("train",), 60

    def sample(self, rng: np.random.Generator, *, robot: str, split: str) -> SceneSpec:
        x_m, y_m = rng.uniform((0.42, 0.06), (0.60, 0.14), size=(2, 2)).T
        target = ObjectSpec(colour="red", shape="cylinder", x_m=x_m[0], y_m=y_m[0])
        goal = ObjectSpec(colour="blue", shape="block", x_m=x_m[1], y_m=-y_m[1])
        said = "hold the red cylinder over the blue block"
        things = {"objects": (target, goal), "target": target.name, "goal": goal.name, "robot": robot}
        return SceneSpec(family="stack", task=self.name, instruction=said, tool_start_m=(0.48, 0.0, 0.2), **things)

    def is_success(self, truth: SceneTruth) -> bool:
        target, goal = truth.find(truth.target), truth.find(truth.goal)
        offset = target.position_m - goal.position_m
        return target.is_held and np.hypot(*offset[:2]) < 0.02 and offset[2] > 0.055

    def progress(self, truth: SceneTruth) -> float:
        return 1.0 if self.is_success(truth) else 0.5 * truth.find(truth.target).is_held

    def expert(self, truth: SceneTruth) -> np.ndarray:
        return np.zeros(5, np.float32) if self.is_success(truth) else expert_action(truth)


TASK = Hover()

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="which scene (default: 0)")
    register_task(TASK)
    env = SimEnv("hover")
    env.reset(seed=parser.parse_args().seed)
    print(f'The robot is told: "{env.instruction}".')
    is_over = False
    while not is_over:
        _, _, is_solved, is_cut, info = env.step(env.expert_action())
        is_over = is_solved or is_cut
        print(f"step {info['steps']:2}: {info['stage']:8} progress {info['progress']:.2f}")
    print("Success: the task is done." if is_solved else "No success this time.")
