"""What weight, inertia and the other joints do to a joint, found by simulating the whole arm.

The arm is simulated with the same physics as everything else here, at the parameters found so far. Along its motion the
torques are known that each motor has to bear; with those the reduced model comes within a few thousandths of a degree
of it. The rest is added to the reduced model as it is.
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

_MOST_DAMPING = 0.55  # of the torque, at the top speed
_MASS_STEPS = 8  # between two looks at the inertia, which changes slowly


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

    def __init__(self, model: RobotModel) -> None:
        """Stores the arm."""
        self._model = model
        self._world = SimWorld(robot=model, renderer="tiny")

    def refine(self, joints: JointModel, values: Float64Array) -> tuple[JointModel, Defect]:
        """Returns a reduced model under the loads of the motion at float64[P, J] parameters, and what it still lacks.

        A joint whose neighbours' motors do as they should feels their motion and its weight as a torque of its own.
        """
        followed = joints.run_both(values[None])[1][:, 0]
        states = self._simulate(followed, self._model.arm_position_gain * values[1], values[-2:])
        ease, load_nm = self._loads(states)
        joints = dataclasses.replace(joints, ease=ease, load_nm=load_nm)
        offset = joints.sample(states) - joints.simulate(values[None])[:, 0]
        return joints, Defect(offset_rad=offset, rms_rad=np.sqrt((offset**2).mean(0)))

    def with_torques(self, joints: JointModel) -> JointModel:
        """Returns a reduced model with each motor's torque against inertia and weight, as at rest in the middle."""
        pose, shape = joints.command_rad.mean(0), joints.command_rad.shape
        self._world.connect()
        self._world.build(None, pose)
        ease, load_nm = self._loads(np.repeat(pose[None], 3, 0))
        return dataclasses.replace(
            joints,
            force_nm=np.asarray(self._model.arm_force),
            ease=np.broadcast_to(ease[0], shape),
            load_nm=np.broadcast_to(load_nm[0], shape),
        )

    def _loads(self, states: Float64Array) -> tuple[Float64Array, Float64Array]:
        """Returns float64[N, J] twice: how far a torque turns each joint in a step, and what its motor has to bear."""
        robot = self._world.robot_body()
        p, cid, body = robot.bullet, robot.client, robot.body
        infos = [p.getJointInfo(body, index, physicsClientId=cid) for index in range(len(robot.joints))]
        movable = [index for index, info in enumerate(infos) if info[3] >= 0]
        rows = [movable.index(robot.joints[name]) for name in self._model.arm_joints]
        rest = np.array([p.getJointState(body, index, physicsClientId=cid)[0] for index in movable])
        count = len(states)
        place = np.repeat(rest[None], count, 0)
        place[1:, rows] = states[:-1]  # as each step begins
        place[0, rows] = states[0]
        speed, change = np.zeros((2, *place.shape))
        speed[1:] = np.diff(place, axis=0) * STEP_HZ
        change[:-1] = np.diff(speed, axis=0) * STEP_HZ
        torque = np.array(
            [
                p.calculateInverseDynamics(body, *row, physicsClientId=cid)
                for row in zip(place.tolist(), speed.tolist(), change.tolist(), strict=True)
            ]
        )[:, rows]
        some = np.arange(0, count, _MASS_STEPS)
        inertia = np.array(
            [np.diag(p.calculateMassMatrix(body, place[step].tolist(), physicsClientId=cid))[rows] for step in some]
        )
        inertia = np.stack([np.interp(np.arange(count), some, column) for column in inertia.T], 1)
        return 1.0 / (inertia * STEP_HZ**2), torque - inertia * change[:, rows]

    def most_losses(self) -> Float64Array:
        """Returns float64[2, J]: the damping and the friction that leave a motor about half of its torque.

        More damping than that, where nothing shows that it is not there, makes the light joints of a simulation fly.
        """
        force = np.asarray(self._model.arm_force)
        speed = np.asarray(self._model.spec(96).joint_max_speed_rad_s)
        return np.stack([np.minimum(_MOST_DAMPING * force / speed, 20.0), 0.5 * force])

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
