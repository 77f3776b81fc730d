"""A desk in memory: an SO-101 that follows at once, and two cameras that draw it; no simulator, no time."""

from dataclasses import replace

import numpy as np

from roboalign.drivers.pair.session import move_and_look
from roboalign.sdk.bundle import find_bundle, read_bundle
from roboalign.sdk.control.cartesian import CartesianController
from roboalign.sdk.control.kinematics import state_from_pose
from roboalign.sdk.sim.robots import find_robot
from roboalign.sdk.types import ActionChunk, Observation

KINEMATICS = find_robot("so101").kinematics()
SPEC = replace(find_robot("so101").spec(96), camera_names=("front", "show"))
NEEDS = read_bundle(find_bundle("nano-so101")).manifest.policy
SENTENCE = "put the red block in the yellow bowl"
VIEWS = {
    "front": np.array([[0.6, 0.0], [0.0, 4.0], [-1.6, 0.0], [0.2, 0.5]]),
    "show": np.array([[0.4, -1.6], [0.6, 1.0], [-1.4, 0.7], [0.35, 0.75]]),
}
"""Where in the pictures the tool is, by its position with a one behind."""


class DeskArm:
    """A robot that is where it was asked to be, on a grey table with a red block and a yellow bowl."""

    spec = SPEC

    def __init__(self, seed=0):
        self.dice = np.random.default_rng(seed)
        self.controller = CartesianController(SPEC, KINEMATICS)
        self.joints, self.width_m, self.time_s = np.array(SPEC.home_joint_pos_rad), 0.03, 0.0
        self.controller.reset(self.joints, self.width_m)
        self.block, self.bowl = self.dice.integers(50, 80, 2), self.dice.integers(5, 30, 2)

    def observe(self, instruction="", with_images=True):
        state = state_from_pose(KINEMATICS.forward(self.joints), self.width_m)
        return Observation(
            images={name: self.draw(name, state) for name in VIEWS} if with_images else {},
            state=state,
            joint_pos_rad=self.joints.astype(np.float32),
            instruction=instruction,
            time_s=self.time_s,
        )

    def draw(self, view, state):
        picture = np.full((96, 96, 3), 150.0)
        for (row, column), colour in ((self.block, (200, 20, 25)), (self.bowl, (230, 210, 20))):
            picture[row : row + 12, column : column + 12] = colour
        row, column = (np.array([*state[:3], 1.0]) @ VIEWS[view] * 96).round().astype(int)
        picture[max(row - 6, 0) : max(row + 6, 0), max(column - 6, 0) : max(column + 6, 0)] = 240.0
        return np.clip(picture + self.dice.normal(0, 2, picture.shape), 0, 255).astype(np.uint8)

    def act(self, action):
        applied = self.controller.act(action, self.joints, 0.1)
        self.joints, self.width_m = np.array(applied.joint_target_rad), self.controller.gripper_width_m
        self.time_s += 0.1
        return applied


class Listener:
    """A policy that does what its sentence says, or does not listen."""

    spec = NEEDS

    def __init__(self, *, listens=True):
        self.listens = listens

    def reset(self):
        pass

    def act(self, observation):
        words = observation.instruction if self.listens else ""
        actions = np.full((8, 5), 0.001 * (len(words) % 7), np.float32)
        return ActionChunk(actions=actions, rate_hz=10.0, source="flow", thought=words)


def session(robot=None, sentence=SENTENCE, kinematics=KINEMATICS):
    """What the doctor sees of a robot that it moves."""
    return move_and_look(robot or DeskArm(), sentence, kinematics=kinematics, sleep=lambda seconds: None)
