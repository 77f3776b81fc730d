"""What `control_loop.py` and `control_faults.py` share: an arm in memory, policies, and where results go.

Policies are made in a process of their own, from this module's name: it must be importable there (`here`).
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import select
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from roboalign.sdk.bundle import PolicySpec, find_bundle, read_bundle
from roboalign.sdk.control.cartesian import CartesianController
from roboalign.sdk.control.kinematics import state_from_pose
from roboalign.sdk.errors import CameraTimeout
from roboalign.sdk.policy import Policy
from roboalign.sdk.sim.robots import find_robot
from roboalign.sdk.types import ActionChunk, Applied, FloatArray, Observation, RobotSpec

RATE_HZ = 100.0

if "FAKETIME_TIMESTAMP_FILE" in os.environ:  # libfaketime 0.9.10 refuses the system call of Python's sleep
    time.sleep = lambda seconds: select.select((), (), (), seconds) and None


def here() -> None:
    """Lets child processes import this module."""
    paths = [str(Path(__file__).resolve().parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)


def arm_spec(rate_hz: float = RATE_HZ, cameras: tuple[str, ...] = ("front",), size_px: int = 96) -> RobotSpec:
    """Returns the SO-101 at another rate, with an acceleration limit as on hardware."""
    spec = find_robot("so101").spec(size_px)
    return dataclasses.replace(
        spec,
        control_rate_hz=rate_hz,
        camera_names=cameras,
        joint_max_accel_rad_s2=(40.0,) * spec.num_joints,
    )


class MemoryArm:
    """The SO-101's kinematics and limiter, and joints that are where they were sent. Keeps every command."""

    def __init__(self, spec: RobotSpec, clock: Callable[[], float] = time.monotonic) -> None:
        self.spec = spec
        self._clock = clock
        self.controller = CartesianController(spec, find_robot("so101").kinematics())
        self.controller.reset(spec.home_joint_pos_rad, spec.gripper_max_width_m)
        self._images = {name: np.full((spec.image_size_px,) * 2 + (3,), 90, np.uint8) for name in spec.camera_names}
        self.commands: list[tuple[float, bool, FloatArray]] = []
        self.frozen_s: float | None = None

    def picture_age_s(self) -> float:
        """Returns the age of the newest picture; it grows from `frozen_s` on."""
        return 0.0 if self.frozen_s is None else self._clock() - self.frozen_s

    def observe(self, instruction: str = "", with_images: bool = True) -> Observation:
        """Returns where the arm was sent."""
        if self.picture_age_s() > 0.5:
            raise CameraTimeout("camera 'front': its newest picture is old")
        joints = self.controller.joint_target_rad
        state = state_from_pose(self.controller.kinematics.forward(joints), self.controller.gripper_width_m)
        images = self._images if with_images else {}
        return Observation(
            images=images, state=state, joint_pos_rad=joints, instruction=instruction, time_s=self._clock()
        )

    def act(self, action: FloatArray) -> Applied:
        """Goes where limiter and kinematics let it."""
        applied = self.controller.act(action, self.controller.joint_target_rad, 1.0 / self.spec.control_rate_hz)
        self.commands.append((self._clock(), True, applied.joint_target_rad))
        return applied

    def hold(self) -> Applied:
        """Stays."""
        applied = self.controller.hold()
        self.commands.append((self._clock(), False, applied.joint_target_rad))
        return applied

    def estop(self) -> None:
        """Never happens: the limiter leaves the guard nothing to stop."""
        raise AssertionError("the guard stopped the arm")

    def problems(self) -> int:
        """Returns how many commands were outside limits, judged here and not by the limiter."""
        targets = np.array([target for _, _, target in self.commands], np.float64)
        low, high = np.array(self.spec.joint_lower_rad) - 1e-6, np.array(self.spec.joint_upper_rad) + 1e-6
        period_s = 1.0 / self.spec.control_rate_hz
        steps = np.diff(targets, axis=0)
        outside = ~np.isfinite(targets).all(1) | (targets < low).any(1) | (targets > high).any(1)
        fast = (np.abs(steps) > np.array(self.spec.joint_max_speed_rad_s) * period_s + 1e-6).any(1)
        rise = np.maximum(steps[:-1] * np.sign(steps[1:]), 0.0) + 40.0 * period_s**2 + 2e-6
        return int(outside.sum() + fast.sum() + (np.abs(steps[1:]) > rise).any(1).sum())


def policy_spec(rate_hz: float, cameras: tuple[str, ...], size_px: int) -> PolicySpec:
    """Returns what a policy for `arm_spec` needs."""
    spec = read_bundle(find_bundle("nano-so101")).manifest.policy
    return dataclasses.replace(spec, rate_hz=rate_hz, camera_names=cameras, image_size_px=size_px, horizon=16)


def swing(steps: int) -> FloatArray:
    """Actions that go up and down."""
    actions = np.zeros((steps, 5), np.float32)
    actions[:, 2], actions[:, 4] = 1e-3 * np.sin(np.arange(steps) / steps * 2 * np.pi), 1.0
    return actions


class EchoPolicy:
    """Answers at once: what is left is transport."""

    def __init__(self, rate_hz: float = RATE_HZ, cameras: tuple[str, ...] = ("front",), size_px: int = 96) -> None:
        self.spec = policy_spec(rate_hz, tuple(cameras), size_px)
        self._chunk = ActionChunk(actions=swing(16), rate_hz=rate_hz, source="flow")

    def reset(self) -> None:
        """Forgets nothing: there is nothing."""

    def act(self, observation: Observation) -> ActionChunk:
        """Answers."""
        return self._chunk


class BusyPolicy:
    """The shipped SO-101 policy, thought and flow, answering flat out; its actions are those of `swing`."""

    def __init__(self, backend: str = "cpu") -> None:
        self._policy = Policy.load("nano-so101", backend=backend)
        self.spec = dataclasses.replace(self._policy.spec, rate_hz=RATE_HZ)
        self._actions = swing(16)

    def reset(self) -> None:
        """Forgets the episode before."""
        self._policy.reset()

    def act(self, observation: Observation) -> ActionChunk:
        """Thinks and answers, whatever the answer is."""
        chunk = self._policy.act(observation)
        return dataclasses.replace(chunk, actions=self._actions, rate_hz=RATE_HZ, source="flow", reason=None)


class FaultyPolicy:
    """Swings, and from its `after`-th answer on does something wrong: `hang`, `nan` or, once, `stall`."""

    def __init__(self, do: str = "nothing", after: int = 8) -> None:
        self.spec = policy_spec(RATE_HZ, ("front",), 96)
        self._do, self._after, self._count = do, after, 0

    def reset(self) -> None:
        """Forgets the warm-up."""
        self._count = 0

    def act(self, observation: Observation) -> ActionChunk:
        """Answers after 20 ms."""
        self._count += 1
        time.sleep(0.02)
        chunk = ActionChunk(actions=swing(16), rate_hz=RATE_HZ, source="flow")
        if self._count >= self._after and self._do == "hang":
            time.sleep(3600.0)
        if self._count == self._after and self._do == "stall":
            time.sleep(1.0)
        if self._count >= self._after and self._do == "nan":
            bad = chunk.actions.copy()
            bad[self._count % 16, self._count % 5] = (np.nan, np.inf, -np.inf)[self._count % 3]
            object.__setattr__(chunk, "actions", bad)  # a chunk refuses them; a broken library would not
        return chunk


def machine() -> dict[str, object]:
    """Returns where and when a figure was measured."""
    model = next(
        (x.split(":")[1].strip() for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x), ""
    )
    return {
        "date": time.strftime("%Y-%m-%d"),
        "processor": model,
        "cores": os.cpu_count(),
        "load": os.getloadavg(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "is_root": os.geteuid() == 0,
    }


def write(out: Path, name: str, content: object) -> None:
    """Puts a result beside the others of the same file."""
    known = json.loads(out.read_text()) if out.is_file() else {}
    known[name] = {"machine": machine(), "result": content}
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_suffix(".partial")
    partial.write_text(json.dumps(known, indent=1) + "\n")
    partial.replace(out)
    print(json.dumps({name: content}))
