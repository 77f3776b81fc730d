"""A benchmark process that speaks the real protocol about a made-up world: a box, a basket and a tool that obeys.

Run as `fake_benchmark.py [--renderer egl] [misbehaviour]`; the client cannot tell it from the real one.
"""

import os
import sys
import time
from typing import Any

import numpy as np

from roboalign.sdk.libero import server

SHARE = 0.35
"""Of a commanded displacement that the tool covers in one period."""
HALF = np.array([[0.02, 0.025, 0.05], [0.08, 0.08, 0.07]])
CLOSED_M = 2 * HALF[0, 0]
BASE = np.array([-0.6, 0.0, 0.0])


class FakeScene:
    """Kinematics only: what is between closed fingers follows them, what is let go drops."""

    def __init__(self, suite: str, task: str) -> None:
        self.key, self.goals = (suite, task), [["in", "milk_1", "basket_1_contain_region"]]
        self.steps = 0

    def describe(self) -> tuple[dict[str, Any], dict[str, Any]]:
        header = {
            "suite": self.key[0],
            "task": self.key[1],
            "file_words": self.key[1].replace("_", " "),
            "sentence": "the sentence of the file",
            "goals": self.goals,
            "objects": ["milk_1", "basket_1"],
            "num_fixtures": 0,
            "num_states": 50,
            "joint_names": [f"j{number}" for number in range(7)],
        }
        return header, {"joint_range": np.tile([-2.0, 2.0], (7, 1)), "base_pose": np.array([*BASE, 0, 0, 0, 1.0])}

    def reset(self, seed: int, state: int | None) -> tuple[dict[str, Any], dict[str, Any]]:
        rng = np.random.default_rng(seed)
        print("the benchmark likes to talk on stdout")
        self.tool, self.yaw, self.width = np.array([-0.15, 0.0, 0.25]), 0.0, 0.08
        self.milk = np.array([*rng.uniform([0.0, -0.15], [0.1, -0.05]), HALF[0, 2]])
        self.basket = np.array([0.0, 0.25, HALF[1, 2]])
        self.steps = 0
        header, arrays = self.frame()
        return header, {**arrays, "extents": np.stack([-HALF, HALF], axis=1)}

    def step(self, action: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        move = SHARE * 0.05 * np.clip(action[:3], -1, 1)
        held = self.is_held
        self.yaw += SHARE * 0.5 * float(np.clip(action[5], -1, 1))
        self.width = float(np.clip(self.width + (0.02 if action[6] < 0 else -0.02), self.narrowest, 0.08))
        self.tool = np.maximum(self.tool + move, [-1, -1, 0.005])
        if held and self.is_held:
            self.milk = self.milk + move
        elif not self.is_held:
            self.milk[2] = HALF[0, 2]
        self.steps += 1
        return self.frame()

    @property
    def is_near(self) -> bool:
        return bool(np.all(np.abs(self.tool - self.milk) < [0.02, 0.02, 0.045]))

    @property
    def narrowest(self) -> float:
        return CLOSED_M if self.is_near else 0.0

    @property
    def is_held(self) -> bool:
        return self.is_near and self.width <= CLOSED_M + 1e-9

    def frame(self) -> tuple[dict[str, Any], dict[str, Any]]:
        done = bool(np.all(np.abs(self.milk - self.basket)[:2] < 0.05)) and not self.is_held and self.steps > 0
        turn = np.array(
            [[np.cos(self.yaw), -np.sin(self.yaw), 0], [np.sin(self.yaw), np.cos(self.yaw), 0], [0, 0, 1.0]]
        )
        home = np.array([[0.0, 1, 0], [1, 0, 0], [0, 0, -1]])
        header = {"is_success": done, "goals_done": [done], "time_s": self.steps / 20}
        return header, {
            "joints": np.zeros(7),
            "fingers": np.array([self.width / 2, -self.width / 2]),
            "tool_position": self.tool.copy(),
            "tool_rotation": turn @ home,
            "positions": np.stack([self.milk, self.basket]),
            "rotations": np.stack([np.eye(3)[[1, 0, 2]] * [1, -1, 1], np.eye(3)]),
            "touched": np.array([[self.is_held] * 2, [False] * 2]),
            "state": np.array([self.steps / 20, *self.milk, *self.tool, self.width]),
        }

    def render(self, cameras: list[str], size_px: int) -> dict[str, Any]:
        image = np.random.default_rng(self.steps).integers(0, 255, (size_px, size_px, 3), np.uint8)
        return dict.fromkeys(cameras, image)

    def close(self) -> None:
        """Nothing to free."""


class FakeServer(server.Server):
    """Answers like the real one, or misbehaves as it was told to."""

    def __init__(self, misbehaviour: str) -> None:
        super().__init__()
        self.misbehaviour = misbehaviour

    def answer(self, header: dict[str, Any], arrays: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        kind = header["op"]
        if kind == "hello":
            protocol = 99 if self.misbehaviour == "other-protocol" else server.PROTOCOL
            return {"protocol": protocol, "versions": {"mujoco": "0"}, "renderer": "egl"}, {}
        if kind == "step" and self.misbehaviour == "die":
            print("Segmentation fault, more or less", file=sys.stderr, flush=True)
            os._exit(3)
        if kind == "step" and self.misbehaviour == "hang":
            time.sleep(60)
        if kind == "render" and self.misbehaviour == "blank":
            return {}, {name: np.zeros((header["size_px"],) * 2 + (3,), np.uint8) for name in header["cameras"]}
        return super().answer(header, arrays)

    def _open(self, suite: str, task: str) -> Any:
        if self.scene is None or self.scene.key != (suite, task):
            self.scene = FakeScene(suite, task)  # type: ignore[assignment] # it has the same methods
        return self.scene


if __name__ == "__main__":
    chosen = sys.argv.pop() if len(sys.argv) > 1 and not sys.argv[-1].startswith(("-", "egl", "osmesa")) else ""
    server.main(lambda: FakeServer(chosen))
