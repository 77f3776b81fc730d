"""The hidden dynamics of a virtual arm: what the randomisation says about servos and readings, behind the wire.

A `DomainSample` means here what it means in `roboalign.sdk.sim`: the same `ActuatorModel` stands between a servo's
setpoint and its motor, 240 times a second whatever the steps of the line, and the same `JointSensor` tells what is
read. The gripper's servo has the bus's delay and its own noise, as there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from roboalign.sdk.randomization.actuation import ActuatorModel
from roboalign.sdk.randomization.domain import DomainSample
from roboalign.sdk.randomization.sensing import FrameBuffer, JointSensor
from roboalign.sdk.sim.model import RobotModel
from roboalign.sdk.sim.so101 import so101_gripper_rad, so101_gripper_width_m
from roboalign.sdk.sim.world import CONTROL_RATE_HZ, PHYSICS_RATE_HZ

__all__ = ["HiddenDynamics"]

_WHOLE = 1e-6  # of a step: a time this close to its end is meant to be there


class HiddenDynamics:
    """What one drawn sample does to the servos of an SO-101; the last joint is the gripper."""

    def __init__(self, domain: DomainSample, model: RobotModel) -> None:
        """Takes the sample apart; `rest` comes before the first step."""
        self.domain = domain
        speeds = np.array(model.spec(96).joint_max_speed_rad_s)
        count = len(speeds)
        slots = np.arange(count) % len(domain.gain.position_scale)
        scale = np.append(np.array(domain.rate_limit.speed_scale)[slots], 1.0)
        self._actuator = ActuatorModel(
            rate_hz=PHYSICS_RATE_HZ,
            delay_ms=domain.delay.bus_ms + np.append(np.array(domain.delay.joint_ms)[slots], 0.0),
            dead_band_rad=np.append(np.array(domain.dead_band.width_rad)[slots], 0.0),
            backlash_rad=np.append(np.array(domain.backlash.play_rad)[slots], 0.0),
            max_speed_rad_s=np.where(scale < 1.0, np.append(speeds, np.inf) * scale, np.inf),
            position_gain_scale=np.append(np.array(domain.gain.position_scale)[slots], 1.0),
        )
        self.gain_scale: list[float] = self._actuator.position_gain_scale.tolist()
        """Of each motor's position gain."""
        self.frames = FrameBuffer(domain)
        """The camera's pictures, by control steps of the arm's time."""
        self._sensor = JointSensor(domain)
        self._owed = 0.0
        self._steps = 0

    def rest(self, position_rad: Sequence[float]) -> None:
        """Starts at rest at these joints."""
        self._actuator.reset(position_rad)

    def whole_steps(self, period_s: float) -> Iterator[float]:
        """Lets a period pass, physics step by physics step; gives how long before its end each of them ends.

        The last one ends with the period; what is left of a step is owed to the next period.
        """
        self._owed += period_s * PHYSICS_RATE_HZ
        count = int(self._owed + _WHOLE)
        self._owed -= count
        for left in reversed(range(count)):
            self._steps += 1
            yield left / PHYSICS_RATE_HZ

    @property
    def is_control_step(self) -> bool:
        """True when the physics step that was taken last ended a control step."""
        return self._steps % (PHYSICS_RATE_HZ // CONTROL_RATE_HZ) == 0

    def follow(
        self, target_rad: Sequence[float], free: Sequence[int], position_rad: Sequence[float]
    ) -> tuple[list[float], list[float]]:
        """Returns where the motors are driven in one physics step, and how fast; `free` ones are where they are."""
        target = np.array(target_rad, np.float64)
        for joint in free:
            target[joint] = position_rad[joint]
            self._actuator.place(joint, position_rad[joint])
        followed, speed = self._actuator.follow(target)
        return followed.tolist(), speed.tolist()

    def errors_rad(self, position_rad: Sequence[float]) -> tuple[float, ...] | None:
        """Returns by how much each joint reads wrong in the reading that begins now; None: the last one comes again."""
        if self._sensor.is_exact:
            return (0.0,) * len(position_rad)
        joints, width_m = np.array(position_rad[:-1]), so101_gripper_width_m(position_rad[-1])
        if self._sensor.advance(joints, max(0.0, width_m)):
            return None
        seen, seen_m = self._sensor.read()
        gripper = so101_gripper_rad(seen_m) - so101_gripper_rad(max(0.0, width_m))
        return (*(seen - joints).tolist(), gripper)
