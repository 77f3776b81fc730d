"""Things with one moving part that are fixed to the table: a drawer, a sliding door, a button and a lamp.

They are built from boxes and one sphere for an arm of the Panda's size, which works on them from above. Drawer and door
carry an upright handle that a closed gripper pushes or pulls; dry friction keeps them where they were left. The button
has a spring. A press counts once the cap is down, and the next one only after it came up again; every press switches
the lamp, if the scene has one.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, ModuleType

import numpy as np

from roboalign.sdk.errors import ConfigError
from roboalign.sdk.sim.scene import FixtureSpec
from roboalign.sdk.sim.truth import FixtureTruth

__all__ = ["FIXTURE_SIZES", "FixtureSizes", "Fixtures", "build_fixtures"]

_Colour = tuple[float, float, float]
_WOOD: _Colour = (0.36, 0.23, 0.13)
_LIGHT_WOOD: _Colour = (0.66, 0.47, 0.29)
_HANDLE: _Colour = (0.10, 0.10, 0.11)
_FRAME: _Colour = (0.20, 0.21, 0.24)
_PANEL: _Colour = (0.10, 0.62, 0.66)
_CAP: _Colour = (0.96, 0.42, 0.66)
_LAMP_OFF: _Colour = (0.42, 0.43, 0.44)
_LAMP_ON: _Colour = (1.00, 0.98, 0.72)

_DRY_FRICTION_N = 2.0
_SPRING_N = 4.0
_CONTACT_FORCE_N = 0.1
_PRESS_SHARE = 0.75
"""Share of its way down at which a cap has been pressed."""
_RELEASE_SHARE = 0.4
"""Share above which it has to come up before the next press."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FixtureSizes:
    """Sizes of the fixtures. The base of a fixture is the middle of its footprint, on the table."""

    drawer_half_m: tuple[float, float]
    """Half the extents of the cabinet along x and y."""
    drawer_travel_m: float
    """How far the drawer comes out, towards the camera (+x)."""
    door_half_m: tuple[float, float]
    """Half the extents of the door's frame along x and y."""
    door_travel_m: float
    """How far the door slides along y."""
    body_height_m: float
    """Height of cabinet and frame: the fingers stay above it."""
    handle_height_m: float
    """Height of the upper end of the handles."""
    handle_half_m: tuple[float, float]
    """Half the thickness of a handle along the way of its part, and half its width across it."""
    button_half_m: float
    """Half the width of the button's housing."""
    button_height_m: float
    """Height of the cap's top when nobody presses it."""
    button_travel_m: float
    """How far the cap goes down."""
    lamp_radius_m: float
    """Radius of the lamp; its middle is twice as high."""


FIXTURE_SIZES = FixtureSizes(
    drawer_half_m=(0.050, 0.050),
    drawer_travel_m=0.075,
    door_half_m=(0.012, 0.088),
    door_travel_m=0.090,
    body_height_m=0.042,
    handle_height_m=0.074,
    handle_half_m=(0.006, 0.020),
    button_half_m=0.030,
    button_height_m=0.036,
    button_travel_m=0.008,
    lamp_radius_m=0.022,
)
"""For the Panda: 4 cm below the handles' upper end there is room for its fingertips above everything else."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Part:
    """One box (or ball) of a link."""

    half_m: tuple[float, float, float]
    centre_m: tuple[float, float, float]
    colour: _Colour
    yaw_rad: float = 0.0
    is_ball: bool = False

    def urdf(self, material: str) -> str:
        """Returns the visual and the collision element."""
        size = " ".join(f"{2 * half:.6g}" for half in self.half_m)
        shape = f'<sphere radius="{self.half_m[0]:.6g}"/>' if self.is_ball else f'<box size="{size}"/>'
        place = " ".join(f"{value:.6g}" for value in self.centre_m)
        frame = f'<origin xyz="{place}" rpy="0 0 {self.yaw_rad:.8g}"/><geometry>{shape}</geometry>'
        rgba = " ".join(f"{value:.4g}" for value in self.colour)
        paint = f'<material name="{material}"><color rgba="{rgba} 1"/></material>'
        return f"<visual>{frame}{paint}</visual><collision>{frame}</collision>"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Design:
    """What a kind of fixture is made of: a base and, if it moves, one part on a straight joint."""

    base: tuple[_Part, ...]
    moving: tuple[_Part, ...] = ()
    axis: tuple[float, float, float] = (1.0, 0.0, 0.0)
    lower_m: float = 0.0
    upper_m: float = 0.0
    force_n: float = 0.0
    """Of the motor that stands for dry friction, or for the spring."""
    is_spring: bool = False
    hand_m: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Where the hand works on it, with its moving part at 0."""

    @property
    def urdf(self) -> str:
        """The URDF of the whole fixture."""
        links = [_link("base", self.base, 0.0)]
        if self.moving:
            links.append(_link("part", self.moving, 0.25 if not self.is_spring else 0.03))
            axis = " ".join(f"{value:g}" for value in self.axis)
            links.append(
                '<joint name="way" type="prismatic"><parent link="base"/><child link="part"/>'
                f'<axis xyz="{axis}"/><limit lower="{self.lower_m:.6g}" upper="{self.upper_m:.6g}" '
                'effort="100" velocity="2"/></joint>'
            )
        return f'<?xml version="1.0"?><robot name="fixture">{"".join(links)}</robot>'


def _link(name: str, parts: tuple[_Part, ...], mass_kg: float) -> str:
    inertia = 'ixx="0.0002" ixy="0" ixz="0" iyy="0.0002" iyz="0" izz="0.0002"'
    inertial = f'<inertial><mass value="{mass_kg:.4g}"/><inertia {inertia}/></inertial>'
    shapes = "".join(part.urdf(f"{name}{i}") for i, part in enumerate(parts))
    return f'<link name="{name}">{inertial}{shapes}</link>'


def _box(
    x: tuple[float, float], y: tuple[float, float], z: tuple[float, float], colour: _Colour, yaw_rad: float = 0.0
) -> _Part:
    half = tuple((high - low) / 2 for low, high in (x, y, z))
    centre = tuple((high + low) / 2 for low, high in (x, y, z))
    return _Part(
        half_m=(half[0], half[1], half[2]), centre_m=(centre[0], centre[1], centre[2]), colour=colour, yaw_rad=yaw_rad
    )


def _drawer(sizes: FixtureSizes) -> _Design:
    """A cabinet with an open-topped box in it; the front carries the handle."""
    half_x, half_y = sizes.drawer_half_m
    top, wall = sizes.body_height_m, 0.006
    inner, thick, wide = half_y - wall - 0.002, sizes.handle_half_m[0], sizes.handle_half_m[1]
    front = (half_x - 0.001, half_x + 2 * thick)
    cabinet = (
        _box((-half_x, half_x), (-half_y, half_y), (top - wall, top), _WOOD),
        _box((-half_x, half_x), (-half_y, wall - half_y), (0.0, top - wall), _WOOD),
        _box((-half_x, half_x), (half_y - wall, half_y), (0.0, top - wall), _WOOD),
        _box((-half_x, wall - half_x), (wall - half_y, half_y - wall), (0.0, top - wall), _WOOD),
    )
    drawer = (
        _box((wall - half_x, front[0]), (-inner, inner), (0.003, 0.007), _WOOD),
        _box((wall - half_x, front[0]), (-inner, 0.004 - inner), (0.007, top - 0.010), _LIGHT_WOOD),
        _box((wall - half_x, front[0]), (inner - 0.004, inner), (0.007, top - 0.010), _LIGHT_WOOD),
        _box(front, (-half_y, half_y), (0.003, top), _LIGHT_WOOD),
        _box((half_x, front[1]), (-wide, wide), (top, sizes.handle_height_m), _HANDLE),
    )
    return _Design(
        base=cabinet,
        moving=drawer,
        axis=(1.0, 0.0, 0.0),
        upper_m=sizes.drawer_travel_m,
        force_n=_DRY_FRICTION_N,
        hand_m=(half_x + thick, 0.0, sizes.handle_height_m),
    )


def _door(sizes: FixtureSizes) -> _Design:
    """A board in a frame, behind a panel that covers its left or its right half."""
    half_x, half_y = sizes.door_half_m
    top, thick, wide = sizes.body_height_m, *sizes.handle_half_m
    reach, post = half_y - 0.006, 0.006
    panel_half = reach - sizes.door_travel_m / 2
    frame = (
        _box((-half_x, half_x), (-half_y, half_y), (0.0, 0.005), _FRAME),
        _box((-half_x, -half_x + 0.008), (-reach, reach), (0.005, top - 0.006), _FRAME),
        _box((-half_x, half_x), (-half_y, post - half_y), (0.005, top), _FRAME),
        _box((-half_x, half_x), (half_y - post, half_y), (0.005, top), _FRAME),
    )
    panel = (
        _box((0.0, half_x), (-panel_half, panel_half), (0.006, top), _PANEL),
        _box((half_x - 2 * wide, half_x), (-thick, thick), (top, sizes.handle_height_m), _HANDLE),
    )
    return _Design(
        base=frame,
        moving=panel,
        axis=(0.0, 1.0, 0.0),
        lower_m=-sizes.door_travel_m / 2,
        upper_m=sizes.door_travel_m / 2,
        force_n=_DRY_FRICTION_N,
        hand_m=(half_x - wide, 0.0, sizes.handle_height_m),
    )


def _button(sizes: FixtureSizes) -> _Design:
    """An eight-sided cap on a spring."""
    half, top = sizes.button_half_m, sizes.button_height_m
    radius = 0.75 * half
    side = math.tan(math.pi / 8) * radius
    cap = tuple(
        _box((-radius, radius), (-side, side), (top - 0.018, top), _CAP, yaw_rad=i * math.pi / 4) for i in range(4)
    )
    return _Design(
        base=(_box((-half, half), (-half, half), (0.0, top - 0.016), _FRAME),),
        moving=cap,
        axis=(0.0, 0.0, -1.0),
        upper_m=sizes.button_travel_m,
        force_n=_SPRING_N,
        is_spring=True,
        hand_m=(0.0, 0.0, top),
    )


def _light(sizes: FixtureSizes) -> _Design:
    """A ball on a socket; its colour says whether it is on."""
    radius = sizes.lamp_radius_m
    ball = _Part(half_m=(radius,) * 3, centre_m=(0.0, 0.0, 2 * radius), colour=_LAMP_OFF, is_ball=True)
    socket = _box((-radius, radius), (-radius, radius), (0.0, 1.3 * radius), _FRAME)
    return _Design(base=(ball, socket), hand_m=(0.0, 0.0, 3 * radius))


_DESIGNS: MappingProxyType[str, Callable[[FixtureSizes], _Design]] = MappingProxyType(
    {"drawer": _drawer, "door": _door, "button": _button, "light": _light}
)
_BALL_INDEX = 0  # of the lamp's ball among the parts of its base


class Fixtures:
    """The fixtures of one scene; made by `build_fixtures`. `step` is to be called after every physics step."""

    def __init__(self, p: ModuleType, client: int, specs: tuple[FixtureSpec, ...], body_ids: dict[str, int]) -> None:
        self._p = p
        self._client = client
        self._specs = {spec.kind: spec for spec in specs}
        self._designs = {spec.kind: _DESIGNS[spec.kind](FIXTURE_SIZES) for spec in specs}
        self.body_ids = body_ids
        """Body id of each fixture by its name."""
        self._is_lit = "light" in self._specs and self._specs["light"].opening > 0.5
        self._is_down = False
        self._num_presses = 0
        if "light" in self._specs:
            self._paint_lamp()

    def step(self) -> None:
        """Counts presses of the button and switches the lamp; call it after every physics step."""
        if "button" not in self.body_ids:
            return
        share = self._share("button")[0]
        if self._is_down:
            self._is_down = share > _RELEASE_SHARE
        elif share > _PRESS_SHARE:
            self._is_down = True
            self._num_presses += 1
            if "light" in self.body_ids:
                self._is_lit = not self._is_lit
                self._paint_lamp()

    def truths(self, robot_body: int) -> tuple[FixtureTruth, ...]:
        """Returns how every fixture stands, in the order of the scene; `robot_body` is who may touch them."""
        return tuple(self._truth(kind, robot_body) for kind in self._specs)

    def _truth(self, kind: str, robot_body: int) -> FixtureTruth:
        spec, design = self._specs[kind], self._designs[kind]
        opening, speed_m_s, way_m = float(self._is_lit), 0.0, 0.0
        if design.moving:
            opening, speed_m_s, way_m = self._share(kind)
        hand = np.array(design.hand_m) + way_m * np.array(design.axis) + (spec.x_m, spec.y_m, 0.0)
        touching = self._p.getContactPoints(robot_body, self.body_ids[kind], physicsClientId=self._client)
        return FixtureTruth(
            name=kind,
            position_m=hand.astype(np.float32),
            opening=opening,
            speed_m_s=abs(speed_m_s),
            num_presses=self._num_presses if kind == "button" else 0,
            is_touched=any(contact[9] > _CONTACT_FORCE_N for contact in touching),
        )

    def _share(self, kind: str) -> tuple[float, float, float]:
        """Returns share of the way (0 to 1), speed, and position of the moving part."""
        position, speed = self._p.getJointState(self.body_ids[kind], 0, physicsClientId=self._client)[:2]
        design = self._designs[kind]
        share = (position - design.lower_m) / (design.upper_m - design.lower_m)
        return float(min(1.0, max(0.0, share))), float(speed), float(position)

    def _paint_lamp(self) -> None:
        colour = (*(_LAMP_ON if self._is_lit else _LAMP_OFF), 1.0)
        body = self.body_ids["light"]
        self._p.changeVisualShape(body, -1, shapeIndex=_BALL_INDEX, rgbaColor=colour, physicsClientId=self._client)


def build_fixtures(p: ModuleType, client: int, specs: tuple[FixtureSpec, ...]) -> Fixtures:
    """Adds the fixtures of a scene to a client, each as one body; without any, the client is not touched.

    Raises:
        ConfigError: A kind occurs twice, or a button does not start released.
    """
    kinds = [spec.kind for spec in specs]
    if len(set(kinds)) != len(kinds):
        raise ConfigError(f"a scene has at most one fixture of each kind, found {', '.join(kinds)}")
    for spec in specs:
        if spec.kind == "button" and spec.opening:
            raise ConfigError(f"FixtureSpec.opening of the button is {spec.opening}, expected 0: it springs back")
    return Fixtures(p, client, specs, {spec.kind: _add(p, client, spec) for spec in specs})


def _add(p: ModuleType, client: int, spec: FixtureSpec) -> int:
    design = _DESIGNS[spec.kind](FIXTURE_SIZES)
    with tempfile.TemporaryDirectory(prefix=f"roboalign-{spec.kind}-") as folder:
        path = Path(folder) / f"{spec.kind}.urdf"
        path.write_text(design.urdf, encoding="utf-8")
        body = int(p.loadURDF(str(path), (spec.x_m, spec.y_m, 0.0), useFixedBase=True, physicsClientId=client))
    for link in range(-1, p.getNumJoints(body, physicsClientId=client)):
        p.changeDynamics(body, link, lateralFriction=0.4, physicsClientId=client)
    if not design.moving:
        return body
    start = design.lower_m + spec.opening * (design.upper_m - design.lower_m)
    p.resetJointState(body, 0, start, physicsClientId=client)
    p.changeDynamics(body, 0, jointDamping=0.0, linearDamping=0.0, angularDamping=0.0, physicsClientId=client)
    mode = p.POSITION_CONTROL if design.is_spring else p.VELOCITY_CONTROL
    target = {"targetPosition": 0.0} if design.is_spring else {"targetVelocity": 0.0}
    p.setJointMotorControl2(body, 0, mode, force=design.force_n, physicsClientId=client, **target)
    return body
