"""Applies a sample to the bodies of a PyBullet client: weight, friction, damping, paint and patterns.

What a sample leaves off is not touched, not even with its own value, so that the simulation stays the same bit by bit.
"""

from __future__ import annotations

import colorsys
import re
import struct
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np

from roboalign.sdk.errors import BackendError
from roboalign.sdk.randomization.domain import DomainSample
from roboalign.sdk.randomization.textures import table_texture
from roboalign.sdk.types import ImageArray

__all__ = ["SceneBodies", "object_colour", "tinted", "tinted_urdf", "vary_bodies"]

Colour = tuple[float, float, float]

_OBJECT_DAMPING = 0.04  # PyBullet's own for every body, linear and angular; it cannot be read back
_TEXTURE_TILES = 4  # the top of a PyBullet box shows a quarter of a texture along each side


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneBodies:
    """Which body is what."""

    table: int
    """Body id of the table."""
    table_width_m: float
    """Its longer side."""
    robot: int
    """Body id of the arm."""
    arm_joints: Sequence[int]
    """Joints of the arm in order."""
    jaws: Sequence[int]
    """Links that hold objects."""
    objects: Sequence[int]
    """Body ids of the objects in the order of the scene."""


def vary_bodies(p: ModuleType, client: int, bodies: SceneBodies, domain: DomainSample) -> int:
    """Applies `mass`, `friction`, `damping`, the table's colour and `textures`, each only where it differs from off.

    Objects and arm are painted when they are made (`object_colour`, `tinted_urdf`): PyBullet cannot repaint one part of
    a link and leave the others.

    Returns the number of textures that were loaded. PyBullet keeps the content of every texture file until its client
    is closed, by the file's name, so a client has to be replaced after some of them.
    """
    _vary_objects(p, client, bodies.objects, domain)
    for joint, damping in _slots(bodies.arm_joints, domain.damping.joint_nm_s_rad):
        if damping != 0.0:  # neither arm's model has any of its own
            p.changeDynamics(bodies.robot, joint, jointDamping=damping, physicsClientId=client)
    if domain.friction.table_scale != 1.0:
        _scale_friction(p, client, bodies.table, -1, domain.friction.table_scale)
    if domain.friction.finger_scale != 1.0:
        for link in bodies.jaws:
            _scale_friction(p, client, bodies.robot, link, domain.friction.finger_scale)
    if domain.colours.table_tint != DomainSample.off().colours.table_tint:
        rgba = p.getVisualShapeData(bodies.table, physicsClientId=client)[0][7]
        colour = (*tinted(rgba[:3], domain.colours.table_tint), rgba[3])
        p.changeVisualShape(bodies.table, -1, rgbaColor=colour, physicsClientId=client)
    texture = table_texture(domain, bodies.table_width_m)
    if texture is not None:
        handle = _load_texture(p, client, np.tile(texture, (_TEXTURE_TILES, _TEXTURE_TILES, 1)))
        p.changeVisualShape(bodies.table, -1, textureUniqueId=handle, physicsClientId=client)
    return int(texture is not None)


def object_colour(rgb: Colour, domain: DomainSample, index: int) -> Colour:
    """Returns the paint of object `index` of a scene, given its plain colour; hue and brightness vary."""
    colours = domain.colours
    slot = index % len(colours.object_hue_rad)
    hue_rad, brightness = colours.object_hue_rad[slot], colours.object_brightness[slot]
    if (hue_rad, brightness) == (0.0, 1.0):
        return rgb
    hue, saturation, value = colorsys.rgb_to_hsv(*rgb)
    turned = (hue + hue_rad / (2 * np.pi)) % 1.0
    return colorsys.hsv_to_rgb(turned, saturation, min(1.0, value * brightness))


def tinted_urdf(urdf: str, tint: Sequence[float]) -> str:
    """Returns a URDF's text with every colour in it tinted."""

    def paint(found: re.Match[str]) -> str:
        red, green, blue, *rest = map(float, found.group(1).split())
        return 'rgba="' + " ".join(f"{value:.6g}" for value in (*tinted((red, green, blue), tint), *rest)) + '"'

    return re.sub(r'rgba="([^"]*)"', paint, urdf)


def tinted(rgb: Colour, tint: Sequence[float]) -> Colour:
    """Returns a colour with each channel scaled; all values are 0 to 1."""
    red, green, blue = (min(1.0, value * gain) for value, gain in zip(rgb, tint, strict=True))
    return red, green, blue


def _vary_objects(p: ModuleType, client: int, objects: Sequence[int], domain: DomainSample) -> None:
    for body, scale in _slots(objects, domain.mass.object_scale):
        if scale != 1.0:
            mass = p.getDynamicsInfo(body, -1, physicsClientId=client)[0]
            p.changeDynamics(body, -1, mass=mass * scale, physicsClientId=client)
    for body, scale in _slots(objects, domain.friction.object_scale):
        if scale != 1.0:
            _scale_friction(p, client, body, -1, scale)
    for body, scale in _slots(objects, domain.damping.object_scale):
        if scale != 1.0:
            damping = _OBJECT_DAMPING * scale
            p.changeDynamics(body, -1, linearDamping=damping, angularDamping=damping, physicsClientId=client)


def _slots(items: Sequence[int], values: Sequence[float]) -> list[tuple[int, float]]:
    """Pairs items with their slots; after the last slot comes the first again."""
    return [(item, values[index % len(values)]) for index, item in enumerate(items)]


def _scale_friction(p: ModuleType, client: int, body: int, link: int, scale: float) -> None:
    friction = p.getDynamicsInfo(body, link, physicsClientId=client)[1]
    p.changeDynamics(body, link, lateralFriction=friction * scale, physicsClientId=client)


def _load_texture(p: ModuleType, client: int, image: ImageArray) -> int:
    """Gives the client a texture. PyBullet reads textures from files only; this one is gone when it returns.

    Its name is new every time: a name used before would bring back the picture it had then.
    """
    height, width, _ = image.shape
    with tempfile.TemporaryDirectory(prefix="roboalign-texture-") as folder:
        path = Path(folder) / "texture.tga"
        header = struct.pack("<BBBHHBHHHHBB", 0, 0, 2, 0, 0, 0, 0, 0, width, height, 24, 0x20)
        path.write_bytes(header + image[:, :, ::-1].tobytes())  # uncompressed, from the top, blue first
        handle = int(p.loadTexture(str(path), physicsClientId=client))
    if handle < 0:
        raise BackendError(f"pybullet refused the texture {path}; is the folder for temporary files writable?")
    return handle
