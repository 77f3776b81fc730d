"""The physics: a PyBullet client with an arm, a table and the objects of one scene.

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
from roboalign.sdk.randomization.actuation import ActuatorModel, DelayLine
from roboalign.sdk.randomization.bodies import SceneBodies, object_colour, tinted, vary_bodies
from roboalign.sdk.randomization.domain import DomainSample
from roboalign.sdk.sim.bodies import RobotBody, add_object, add_table
from roboalign.sdk.sim.camera import Camera, front_camera
from roboalign.sdk.sim.fixtures import Fixtures, build_fixtures
from roboalign.sdk.sim.layout import COLOURS
from roboalign.sdk.sim.renderer import close_client, open_client
from roboalign.sdk.sim.robots import RobotModel, find_robot
from roboalign.sdk.sim.scene import SceneSpec
from roboalign.sdk.sim.truth import FixtureTruth
from roboalign.sdk.types import FloatArray, ImageArray

__all__ = ["CONTROL_RATE_HZ", "PHYSICS_RATE_HZ", "BodyState", "SimWorld"]

PHYSICS_RATE_HZ = 240
"""Physics steps per second."""
CONTROL_RATE_HZ = 10
"""Control steps per second."""
_SUBSTEPS = PHYSICS_RATE_HZ // CONTROL_RATE_HZ

_CONTACT_FORCE_N = 0.1
_MAX_TEXTURES = 64  # a client never frees a texture (0.8 MB); after so many a new one takes its place


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

    def __init__(
        self, *, robot: str | RobotModel = "panda", camera: Camera | None = None, renderer: str = "auto"
    ) -> None:
        """Stores the arm, the camera `front` and the renderer, one of `renderer.RENDERERS`."""
        self.model = find_robot(robot)
        self.renderer = renderer
        self.camera = camera or front_camera(table=self.model.table)
        self._client: int | None = None
        self._bullet: ModuleType | None = None
        self._robot = -1
        self._links: dict[str, int] = {}
        self._joints: dict[str, int] = {}
        self._arm: list[int] = []
        self._gripper: list[int] = []
        self._jaws: list[int] = []
        self._table = -1
        self._objects: dict[str, int] = {}
        self._fixtures: Fixtures | None = None
        self._target: NDArray[np.float64] = np.zeros(len(self.model.arm_joints))
        self.domain = DomainSample.off()
        self._num_textures = 0
        self._actuator: ActuatorModel | None = None
        self._gripper_delay: DelayLine | None = None
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
        self._client = open_client(pybullet, self.renderer, self.camera.size_px)

    def close(self) -> None:
        """Frees the client. Safe to call twice."""
        if self._client is not None and self._bullet is not None:
            close_client(self._bullet, self._client)
        self._client, self._robot, self._num_textures = None, -1, 0

    @property
    def is_built(self) -> bool:
        """True once a scene stands."""
        return self._client is not None and self._robot >= 0

    def _api(self) -> tuple[ModuleType, int]:
        if self._bullet is None or self._client is None:
            raise RobotError("the simulation is not open; call connect() first")
        return self._bullet, self._client

    def robot_body(self) -> RobotBody:
        """Returns the handles of the arm, valid until the next `build` or `close`."""
        p, cid = self._api()
        return RobotBody(bullet=p, client=cid, body=self._robot, joints=self._joints)

    def build(
        self,
        scene: SceneSpec | None,
        joint_pos_rad: NDArray[np.float64] | None = None,
        domain: DomainSample | None = None,
    ) -> None:
        """Empties the simulation, then builds table, objects and the arm at `joint_pos_rad` (None: at home).

        The domain is what the randomisation drew for this episode; None means off.
        """
        if self._num_textures >= _MAX_TEXTURES:
            self.close()
            self.connect()
        p, cid = self._api()
        self._vary_actuators(DomainSample.off() if domain is None else domain)
        self._reset_physics()
        self._table = add_table(p, cid, self.model.table)
        self._add_robot()
        home = self.model.home_joint_pos_rad
        self.set_joints(np.asarray(home if joint_pos_rad is None else joint_pos_rad, np.float64))
        self._add_objects(scene)
        self._fixtures = build_fixtures(p, cid, scene.fixtures) if scene and scene.fixtures else None
        self._vary_scene()
        self.time_s = 0.0

    def _vary_actuators(self, domain: DomainSample) -> None:
        """Takes the randomisation of this episode; the servos begin to follow it with `set_joints`."""
        self.domain = domain
        speeds = self.model.spec(self.camera.size_px).joint_max_speed_rad_s
        self._actuator = ActuatorModel.from_domain(domain, rate_hz=PHYSICS_RATE_HZ, max_speed_rad_s=speeds)
        delay_steps = domain.delay.bus_ms * PHYSICS_RATE_HZ / 1000.0
        self._gripper_delay = DelayLine(delay_steps) if self._actuator else None

    def _vary_scene(self) -> None:
        p, cid = self._api()
        bodies = SceneBodies(
            table=self._table,
            table_width_m=2 * max(self.model.table.table_half_m),
            robot=self._robot,
            arm_joints=self._arm,
            jaws=self._jaws,
            objects=tuple(self._objects.values()),
        )
        self._num_textures += vary_bodies(p, cid, bodies, self.domain)

    def _reset_physics(self) -> None:
        p, cid = self._api()
        p.resetSimulation(physicsClientId=cid)
        p.setPhysicsEngineParameter(
            fixedTimeStep=1.0 / PHYSICS_RATE_HZ,
            numSolverIterations=60,
            deterministicOverlappingPairs=1,
            physicsClientId=cid,
        )
        p.setGravity(0, 0, -9.81, physicsClientId=cid)

    def _add_objects(self, scene: SceneSpec | None) -> None:
        p, cid = self._api()
        items = scene.objects if scene else ()
        self._objects = {}
        for index, item in enumerate(items):
            rgb = object_colour(COLOURS[item.colour], self.domain, index)
            self._objects[item.name] = add_object(p, cid, item, self.model.table, rgb)

    def _add_robot(self) -> None:
        p, cid = self._api()
        flags = p.URDF_ENABLE_CACHED_GRAPHICS_SHAPES
        with self.model.urdf_file(self.domain.colours.robot_tint) as path:
            self._robot = p.loadURDF(path, useFixedBase=True, flags=flags, physicsClientId=cid)
        self._joints, self._links = {}, {}
        for index in range(p.getNumJoints(self._robot, physicsClientId=cid)):
            info = p.getJointInfo(self._robot, index, physicsClientId=cid)
            self._joints[info[1].decode()] = self._links[info[12].decode()] = index
        self._arm = [self._joints[name] for name in self.model.arm_joints]
        self._gripper = [self._joints[name] for name in self.model.gripper.joints]
        self._jaws = [self._links[name] for name in self.model.gripper.jaw_links]
        self._set_surfaces()
        if self.model.gripper.is_geared:
            self._add_gear()

    def _set_surfaces(self) -> None:
        """Colours the arm, takes the default damping off it, and makes the jaws grip."""
        p, cid = self._api()
        hand = {self._links[name] for name in self.model.hand_links} | set(self._jaws)
        for link in range(-1, len(self._links)):
            colour = self.model.hand_colour if link in hand else self.model.colour
            if colour is not None:
                rgba = (*tinted(colour[:3], self.domain.colours.robot_tint), colour[3])
                p.changeVisualShape(self._robot, link, rgbaColor=rgba, physicsClientId=cid)
            p.changeDynamics(self._robot, link, linearDamping=0.0, angularDamping=0.0, physicsClientId=cid)
        for link in self._jaws:
            p.changeDynamics(self._robot, link, lateralFriction=1.2, spinningFriction=0.02, physicsClientId=cid)

    def _add_gear(self) -> None:
        p, cid = self._api()
        left, right = self._gripper
        gear = p.createConstraint(  # the hand's two fingers are driven by one belt
            self._robot, left, self._robot, right, p.JOINT_GEAR, [1, 0, 0], [0, 0, 0], [0, 0, 0], physicsClientId=cid
        )
        p.changeConstraint(gear, gearRatio=-1, erp=0.2, maxForce=80, physicsClientId=cid)

    def set_joints(self, joint_pos_rad: NDArray[np.float64], gripper_width_m: float | None = None) -> None:
        """Puts the arm at these joints at once, without physics, the gripper open unless a width is given."""
        p, cid = self._api()
        for joint, value in zip(self._arm, joint_pos_rad, strict=True):
            p.resetJointState(self._robot, joint, float(value), physicsClientId=cid)
        gripper = self.model.gripper
        width_m = gripper.max_width_m if gripper_width_m is None else gripper_width_m
        for joint, value in zip(self._gripper, gripper.joint_targets(width_m), strict=True):
            p.resetJointState(self._robot, joint, value, physicsClientId=cid)
        self._rest_servos(joint_pos_rad, width_m)

    def place_object(self, name: str, position_m: FloatArray, yaw_rad: float) -> None:
        """Puts an object upright at a place at once, at rest; the position is the one `body_states` gives."""
        p, cid = self._api()
        turn = p.getQuaternionFromEuler((0.0, 0.0, float(yaw_rad)))
        body = self._objects[name]
        p.resetBasePositionAndOrientation(body, [float(v) for v in position_m], turn, physicsClientId=cid)
        p.resetBaseVelocity(body, [0, 0, 0], [0, 0, 0], physicsClientId=cid)

    def _rest_servos(self, joint_pos_rad: NDArray[np.float64], width_m: float) -> None:
        self._target = np.array(joint_pos_rad, np.float64)
        if self._actuator is not None and self._gripper_delay is not None:
            self._actuator.reset(self._target)
            self._gripper_delay.reset(width_m)

    def step_control(
        self, joint_target_rad: NDArray[np.float64], gripper_width_m: float, substeps: int = _SUBSTEPS
    ) -> None:
        """Simulates one control period, or another number of physics steps.

        The arm's targets run linearly to `joint_target_rad`; the fingers move to the width with limited force.
        """
        start, end = self._target, np.asarray(joint_target_rad, np.float64)
        path = [start + (end - start) * (substep / substeps) for substep in range(1, substeps + 1)]
        if self._actuator is None or self._gripper_delay is None:
            self._drive_gripper(gripper_width_m)
            velocity = (end - start) * (PHYSICS_RATE_HZ / substeps)
            for target in path:
                self._drive_arm(target, velocity)
                self._step_physics()
        else:
            for target in path:
                followed, velocity = self._actuator.follow(target)
                self._drive_gripper(float(self._gripper_delay.step(gripper_width_m)[0]))
                self._drive_arm(followed, velocity, self._actuator.position_gain_scale)
                self._step_physics()
        self._target = end.copy()
        self.time_s += substeps / PHYSICS_RATE_HZ

    def _drive_gripper(self, width_m: float) -> None:
        p, cid = self._api()
        gripper = self.model.gripper
        for joint, value in zip(self._gripper, gripper.joint_targets(width_m), strict=True):
            p.setJointMotorControl2(
                self._robot,
                joint,
                p.POSITION_CONTROL,
                targetPosition=value,
                force=gripper.force,
                maxVelocity=gripper.max_speed,
                physicsClientId=cid,
            )

    def _drive_arm(
        self,
        target_rad: NDArray[np.float64],
        velocity_rad_s: NDArray[np.float64],
        gain_scale: NDArray[np.float64] | None = None,
    ) -> None:
        """Gives the motors their targets for one physics step."""
        p, cid = self._api()
        gain = self.model.arm_position_gain
        gains = [gain] * len(self._arm) if gain_scale is None else (gain * gain_scale).tolist()
        p.setJointMotorControlArray(
            self._robot,
            self._arm,
            p.POSITION_CONTROL,
            targetPositions=target_rad.tolist(),
            targetVelocities=velocity_rad_s.tolist(),
            forces=self.model.arm_force,
            positionGains=gains,
            physicsClientId=cid,
        )

    def _step_physics(self) -> None:
        p, cid = self._api()
        p.stepSimulation(physicsClientId=cid)
        if self._fixtures is not None:
            self._fixtures.step()

    def freeze(self, joint_pos_rad: NDArray[np.float64]) -> None:
        """Makes these joints the ones from which the next control step starts; passes no time."""
        self._rest_servos(joint_pos_rad, self.gripper_width_m())

    def joint_pos_rad(self) -> NDArray[np.float64]:
        """Returns float64[J], the measured arm joints."""
        p, cid = self._api()
        return np.array([s[0] for s in p.getJointStates(self._robot, self._arm, physicsClientId=cid)])

    def on_the_way_rad(self) -> NDArray[np.float64]:
        """Returns float64[J], how far the joints still go without another target; zeros unless motors are late."""
        return np.zeros(len(self._arm)) if self._actuator is None else self._actuator.on_the_way_rad

    def gripper_width_m(self) -> float:
        """Returns the measured distance between the fingers."""
        p, cid = self._api()
        states = p.getJointStates(self._robot, self._gripper, physicsClientId=cid)
        return self.model.gripper.width_m([state[0] for state in states])

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
                is_held=pressing.issuperset(self._jaws),
                is_touched=bool(pressing),
            )
        return states

    def fixture_truths(self) -> tuple[FixtureTruth, ...]:
        """Returns how every fixture stands."""
        return () if self._fixtures is None else self._fixtures.truths(self._robot)

    def inverse_kinematics(self, position_m: NDArray[np.float64], quaternion: tuple[float, ...]) -> NDArray[np.float64]:
        """Returns PyBullet's own joint solution from the present joints, a cross-check of `sdk.control.kinematics`."""
        p, cid = self._api()
        solution = p.calculateInverseKinematics(
            self._robot,
            self._links[self.model.tool_link],
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
        tool = self._links[self.model.tool_link]
        state = p.getLinkState(self._robot, tool, computeForwardKinematics=1, physicsClientId=cid)
        return np.array(state[4]), tuple(state[5])

    def render(self, camera: Camera | None = None) -> ImageArray:
        """Returns uint8[H, W, 3] RGB as the camera (default: `front`) sees the scene now."""
        return (camera or self.camera).render(*self._api(), self.domain)[0]

    def render_mask(self, camera: Camera | None = None) -> dict[str, NDArray[np.bool_]]:
        """Returns a bool[H, W] mask of visible pixels for every object and fixture by name, and `robot`."""
        mask = (camera or self.camera).render(*self._api(), self.domain)[1]
        bodies = {**self._objects, **(self._fixtures.body_ids if self._fixtures else {}), "robot": self._robot}
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
