"""What the reduced model leaves out, measured by simulating the whole arm: weight, inertia, torque limits, damping.

The arm is simulated with the same physics as everything else here, at the parameters found so far. The difference to
the reduced model is added to it, and the fit goes on from there; where that settles, the parameters are those of the
whole simulation.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from roboalign.sdk.sim.robots import RobotModel
from roboalign.sdk.sim.world import SimWorld
from roboalign.sdk.sysid.model import STEP_HZ, JointModel

__all__ = ["Defect", "WholeArm"]

Float64Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Defect:
    """What the whole arm does otherwise than the reduced model, at some parameters."""

    offset_rad: Float64Array
    """float64[K, J], to be added to the reduced model."""
    rms_rad: Float64Array
    """float64[J], size of `offset_rad`."""

    def head(self, readings: int) -> Defect:
        """Returns the same for the first readings."""
        return Defect(offset_rad=self.offset_rad[:readings], rms_rad=self.rms_rad)


class WholeArm:
    """Simulates the whole arm under what the actuators make of the recorded targets."""

    def __init__(self, model: RobotModel, joints: JointModel) -> None:
        """Stores the arm and the reduced model of the recording."""
        self._model, self._joints = model, joints
        self._world = SimWorld(robot=model, renderer="tiny")

    def defect(self, values: Float64Array) -> Defect:
        """Returns the difference at float64[P, J] parameters, damping and dry friction last."""
        states, output = self._joints.run_both(values[None])
        reduced = self._joints.sample(states)[:, 0]
        gains = self._model.arm_position_gain * values[1]
        whole = self._joints.sample(self._simulate(output[:, 0], gains, values[-2:]))
        offset = whole - reduced
        return Defect(offset_rad=offset, rms_rad=np.sqrt((offset**2).mean(0)))

    def with_torques(self) -> JointModel:
        """Returns the reduced model with each motor's torque against inertia and weight, as in the middle pose.

        The other joints are held by their motors, so a joint feels the arm behind it as one body.
        """
        world, pose = self._world, self._joints.command_rad.mean(0)
        world.connect()
        world.build(None, pose)
        robot = world.robot_body()
        p, cid, body = robot.bullet, robot.client, robot.body
        infos = [p.getJointInfo(body, index, physicsClientId=cid) for index in range(len(robot.joints))]
        movable = [index for index, info in enumerate(infos) if info[3] >= 0]
        place = [p.getJointState(body, index, physicsClientId=cid)[0] for index in movable]
        still = [0.0] * len(movable)
        mass = np.array(p.calculateMassMatrix(body, place, physicsClientId=cid))
        weight = np.array(p.calculateInverseDynamics(body, place, still, still, physicsClientId=cid))
        rows = [movable.index(robot.joints[name]) for name in self._model.arm_joints]
        inertia = np.diag(mass)[rows]
        self._joints = dataclasses.replace(
            self._joints,
            force_nm=np.asarray(self._model.arm_force),
            inertia_kg_m2=inertia,
            weight_nm=weight[rows],
        )
        return self._joints

    def most_losses(self) -> Float64Array:
        """Returns float64[2, J]: the damping and the friction under which a motor just reaches its speed or moves."""
        force = np.asarray(self._model.arm_force)
        speed = np.asarray(self._model.spec(96).joint_max_speed_rad_s)
        return np.stack([np.minimum(force / speed, 20.0), 0.5 * force])

    def _simulate(self, output: Float64Array, gains: Float64Array, losses: Float64Array) -> Float64Array:
        """Returns float64[N, J], the joints after every step under the actuators' output."""
        world = self._world
        world.connect()
        world.build(None, output[0])
        robot = world.robot_body()
        p, cid, body = robot.bullet, robot.client, robot.body
        indices = [robot.joints[name] for name in self._model.arm_joints]
        for index, damping in zip(indices, losses[0].tolist(), strict=True):
            p.changeDynamics(body, index, jointDamping=damping, physicsClientId=cid)
        force = (np.asarray(self._model.arm_force) - losses[1]).tolist()
        speeds = np.diff(output, axis=0, prepend=output[:1]) * STEP_HZ
        states = np.empty_like(output)
        for step, (target, speed) in enumerate(zip(output.tolist(), speeds.tolist(), strict=True)):
            p.setJointMotorControlArray(
                body,
                indices,
                p.POSITION_CONTROL,
                targetPositions=target,
                targetVelocities=speed,
                forces=force,
                positionGains=gains.tolist(),
                physicsClientId=cid,
            )
            p.stepSimulation(physicsClientId=cid)
            states[step] = [state[0] for state in p.getJointStates(body, indices, physicsClientId=cid)]
        return states

    def close(self) -> None:
        """Frees the simulation."""
        self._world.close()
