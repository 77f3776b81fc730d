"""The physics: a PyBullet client with a Panda arm, a table and the objects of one scene.

Every build starts from an empty simulation. A client that is reused after `removeBody`, or after `restoreState`,
carries solver state over from earlier episodes and is not repeatable; `resetSimulation` plus a rebuild is (20 ms).
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from roboalign.sdk.errors import RobotError, missing_extra
from roboalign.sdk.sim.bodies import add_object, add_table
from roboalign.sdk.sim.camera import Camera, front_camera
from roboalign.sdk.sim.panda import ARM_JOINTS, FINGER_JOINTS, HOME_JOINT_POS_RAD, TOOL_LINK, panda_urdf_file
from roboalign.sdk.sim.tasks import SceneSpec
from roboalign.sdk.types import FloatArray, ImageArray

__all__ = ["CONTROL_RATE_HZ", "PHYSICS_RATE_HZ", "BodyState", "SimWorld"]

PHYSICS_RATE_HZ = 240
"""Physics steps per second."""
CONTROL_RATE_HZ = 10
"""Control steps per second."""
_SUBSTEPS = PHYSICS_RATE_HZ // CONTROL_RATE_HZ

_GRIPPER_FORCE_N = 40.0
_GRIPPER_SPEED_M_S = 0.12
_ARM_FORCE_NM = (87.0, 87.0, 87.0, 87.0, 12.0, 12.0, 12.0)
_ARM_POSITION_GAIN = 0.25
_CONTACT_FORCE_N = 0.1
_ROBOT_COLOUR = (0.90, 0.90, 0.92, 1.0)
_HAND_COLOUR = (0.25, 0.25, 0.28, 1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class BodyState:
    """Pose, speed and contacts of one object at one moment."""

    position_m: FloatArray
    """float32[3], origin of the body in the base frame."""
    yaw_rad: float
    """Rotation about the vertical."""
    tilt_rad: float
    """Angle between the body's own vertical axis and the world's."""
    speed_m_s: float
    """Speed of its centre."""
    is_held: bool
    """True when both fingers press on it."""
    is_touched: bool
    """True when any part of the robot presses on it."""


class SimWorld:
    """One simulated table with a robot. `connect` opens the client, `build` makes a scene, `close` frees it.

    Not thread-safe; use one process per world, threads do not speed PyBullet up.
    """

    def __init__(self, *, camera: Camera | None = None) -> None:
        self.camera = camera or front_camera()
        self._client: int | None = None
        self._bullet: ModuleType | None = None
        self._robot = -1
        self._arm: list[int] = []
        self._fingers: list[int] = []
        self._tool_link = -1
        self._objects: dict[str, int] = {}
        self._target: NDArray[np.float64] = np.zeros(len(ARM_JOINTS))
        self.time_s = 0.0

    def connect(self) -> None:
        """Opens the physics client; does nothing when it is open."""
        if self._client is not None:
            return
        try:
            import pybullet
        except ImportError as err:
            raise missing_extra("pybullet", "sim", "the simulated robot") from err
        self._bullet = pybullet
        self._client = pybullet.connect(pybullet.DIRECT)

    def close(self) -> None:
        """Frees the client. Safe to call twice."""
        if self._client is not None and self._bullet is not None:
            self._bullet.disconnect(physicsClientId=self._client)
        self._client, self._robot = None, -1

    @property
    def is_built(self) -> bool:
        """True once a scene stands."""
        return self._client is not None and self._robot >= 0

    def _api(self) -> tuple[ModuleType, int]:
        if self._bullet is None or self._client is None:
            raise RobotError("the simulation is not open; call connect() first")
        return self._bullet, self._client

    def build(self, scene: SceneSpec | None, joint_pos_rad: NDArray[np.float64] | None = None) -> None:
        """Empties the simulation, then builds table, objects and the arm at `joint_pos_rad` (None: at home)."""
        p, cid = self._api()
        p.resetSimulation(physicsClientId=cid)
        p.setPhysicsEngineParameter(
            fixedTimeStep=1.0 / PHYSICS_RATE_HZ,
            numSolverIterations=60,
            deterministicOverlappingPairs=1,
            physicsClientId=cid,
        )
        p.setGravity(0, 0, -9.81, physicsClientId=cid)
        add_table(p, cid)
        self._add_robot()
        self.set_joints(np.asarray(HOME_JOINT_POS_RAD if joint_pos_rad is None else joint_pos_rad, np.float64))
        self._objects = {item.name: add_object(p, cid, item) for item in scene.objects} if scene else {}
        self.time_s = 0.0

    def _add_robot(self) -> None:
        p, cid = self._api()
        flags = p.URDF_ENABLE_CACHED_GRAPHICS_SHAPES
        with panda_urdf_file() as path:
            self._robot = p.loadURDF(path, useFixedBase=True, flags=flags, physicsClientId=cid)
        joints, links = {}, {}
        for index in range(p.getNumJoints(self._robot, physicsClientId=cid)):
            info = p.getJointInfo(self._robot, index, physicsClientId=cid)
            joints[info[1].decode()] = links[info[12].decode()] = index
        self._arm = [joints[name] for name in ARM_JOINTS]
        self._fingers = [joints[name] for name in FINGER_JOINTS]
        self._tool_link = links[TOOL_LINK]
        for link in range(-1, len(joints)):
            is_hand = link in self._fingers or link == links["panda_hand"]
            p.changeVisualShape(
                self._robot, link, rgbaColor=_HAND_COLOUR if is_hand else _ROBOT_COLOUR, physicsClientId=cid
            )
            p.changeDynamics(self._robot, link, linearDamping=0.0, angularDamping=0.0, physicsClientId=cid)
        for link in self._fingers:
            p.changeDynamics(self._robot, link, lateralFriction=1.2, spinningFriction=0.02, physicsClientId=cid)
        left, right = self._fingers
        gear = p.createConstraint(  # the hand's two fingers are driven by one belt
            self._robot, left, self._robot, right, p.JOINT_GEAR, [1, 0, 0], [0, 0, 0], [0, 0, 0], physicsClientId=cid
        )
        p.changeConstraint(gear, gearRatio=-1, erp=0.2, maxForce=80, physicsClientId=cid)

    def set_joints(self, joint_pos_rad: NDArray[np.float64], gripper_width_m: float = 0.08) -> None:
        """Puts the arm at these joints at once, without physics."""
        p, cid = self._api()
        for joint, value in zip(self._arm, joint_pos_rad, strict=True):
            p.resetJointState(self._robot, joint, float(value), physicsClientId=cid)
        for joint in self._fingers:
            p.resetJointState(self._robot, joint, gripper_width_m / 2, physicsClientId=cid)
        self._target = np.array(joint_pos_rad, np.float64)

    def step_control(self, joint_target_rad: NDArray[np.float64], gripper_width_m: float) -> None:
        """Simulates one control period.

        The arm's targets run linearly to `joint_target_rad`; the fingers move to the width with limited force.
        """
        p, cid = self._api()
        for joint in self._fingers:
            p.setJointMotorControl2(
                self._robot,
                joint,
                p.POSITION_CONTROL,
                targetPosition=gripper_width_m / 2,
                force=_GRIPPER_FORCE_N,
                maxVelocity=_GRIPPER_SPEED_M_S,
                physicsClientId=cid,
            )
        start, end = self._target, np.asarray(joint_target_rad, np.float64)
        velocities = ((end - start) * CONTROL_RATE_HZ).tolist()
        gains = [_ARM_POSITION_GAIN] * len(self._arm)
        for substep in range(1, _SUBSTEPS + 1):
            p.setJointMotorControlArray(
                self._robot,
                self._arm,
                p.POSITION_CONTROL,
                targetPositions=(start + (end - start) * (substep / _SUBSTEPS)).tolist(),
                targetVelocities=velocities,
                forces=_ARM_FORCE_NM,
                positionGains=gains,
                physicsClientId=cid,
            )
            p.stepSimulation(physicsClientId=cid)
        self._target = end.copy()
        self.time_s += 1.0 / CONTROL_RATE_HZ

    def freeze(self, joint_pos_rad: NDArray[np.float64]) -> None:
        """Makes these joints the ones from which the next control step starts; passes no time."""
        self._target = np.array(joint_pos_rad, np.float64)

    def joint_pos_rad(self) -> NDArray[np.float64]:
        """Returns float64[7], the measured arm joints."""
        p, cid = self._api()
        return np.array([s[0] for s in p.getJointStates(self._robot, self._arm, physicsClientId=cid)])

    def gripper_width_m(self) -> float:
        """Returns the measured distance between the fingers."""
        p, cid = self._api()
        return float(sum(s[0] for s in p.getJointStates(self._robot, self._fingers, physicsClientId=cid)))

    def body_states(self) -> dict[str, BodyState]:
        """Returns pose, speed and contacts of every object by name."""
        p, cid = self._api()
        states = {}
        for name, body in self._objects.items():
            position, (x, y, z, w) = p.getBasePositionAndOrientation(body, physicsClientId=cid)
            contacts = p.getContactPoints(self._robot, body, physicsClientId=cid)
            pressing = {contact[3] for contact in contacts if contact[9] > _CONTACT_FORCE_N}
            states[name] = BodyState(
                position_m=np.asarray(position, np.float32),
                yaw_rad=math.atan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z)),
                tilt_rad=math.acos(max(-1.0, min(1.0, 1 - 2 * (x * x + y * y)))),
                speed_m_s=float(np.linalg.norm(p.getBaseVelocity(body, physicsClientId=cid)[0])),
                is_held=pressing.issuperset(self._fingers),
                is_touched=bool(pressing),
            )
        return states

    def inverse_kinematics(self, position_m: NDArray[np.float64], quaternion: tuple[float, ...]) -> NDArray[np.float64]:
        """Returns PyBullet's own joint solution from the present joints, a cross-check of `sdk.control.kinematics`."""
        p, cid = self._api()
        solution = p.calculateInverseKinematics(
            self._robot,
            self._tool_link,
            list(map(float, position_m)),
            quaternion,
            maxNumIterations=500,
            residualThreshold=1e-6,
            physicsClientId=cid,
        )
        return np.array(solution[: len(self._arm)])

    def tool_pose(self) -> tuple[NDArray[np.float64], tuple[float, ...]]:
        """Returns position and quaternion of the tool by PyBullet's forward kinematics."""
        p, cid = self._api()
        state = p.getLinkState(self._robot, self._tool_link, computeForwardKinematics=1, physicsClientId=cid)
        return np.array(state[4]), tuple(state[5])

    def render(self, camera: Camera | None = None) -> ImageArray:
        """Returns uint8[H, W, 3] RGB as the camera (default: `front`) sees the scene now."""
        return (camera or self.camera).render(*self._api())[0]

    def render_mask(self, camera: Camera | None = None) -> dict[str, NDArray[np.bool_]]:
        """Returns a bool[H, W] mask of visible pixels for every object by name, and for `robot`."""
        mask = (camera or self.camera).render(*self._api())[1]
        bodies = {**self._objects, "robot": self._robot}
        return {name: mask == body for name, body in bodies.items()}

    def state_hash(self) -> str:
        """Returns the SHA-256 of every body's and joint's position and velocity as float64 bytes."""
        p, cid = self._api()
        digest = hashlib.sha256()
        for index in range(p.getNumBodies(physicsClientId=cid)):
            body = p.getBodyUniqueId(index, physicsClientId=cid)
            position, quaternion = p.getBasePositionAndOrientation(body, physicsClientId=cid)
            linear, angular = p.getBaseVelocity(body, physicsClientId=cid)
            values = [*position, *quaternion, *linear, *angular]
            for joint in range(p.getNumJoints(body, physicsClientId=cid)):
                values.extend(p.getJointState(body, joint, physicsClientId=cid)[:2])
            digest.update(np.asarray(values, np.float64).tobytes())
        return digest.hexdigest()
