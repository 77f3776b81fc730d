"""Sizes and colours of what stands on the table, in metres, and the painted lines (base frame, table top at z = 0)."""

from __future__ import annotations

import math

__all__ = [
    "BLOCK_SIZE_M",
    "BOWL_BASE_M",
    "BOWL_HEIGHT_M",
    "BOWL_WALL_M",
    "BOWL_WIDTH_M",
    "COLOURS",
    "CYLINDER_HEIGHT_M",
    "CYLINDER_WIDTH_M",
    "GRASPABLE",
    "PUSH_LINE_M",
    "SHAPES",
    "direction_sign",
    "fold_yaw",
    "object_height_m",
    "object_width_m",
]

COLOURS = {
    "red": (0.86, 0.06, 0.08),
    "green": (0.08, 0.58, 0.14),
    "blue": (0.08, 0.22, 0.90),
    "yellow": (0.97, 0.88, 0.08),
    "purple": (0.50, 0.08, 0.66),
    "orange": (1.00, 0.48, 0.02),
}
"""RGB in 0..1 for each colour name; saturated and far apart."""

SHAPES = ("block", "cylinder", "bowl")
"""Names of all shapes."""
GRASPABLE = ("block", "cylinder")
"""Shapes that fit between the fingers."""

BLOCK_SIZE_M = 0.045
"""Edge of a block."""
CYLINDER_WIDTH_M = 0.045
"""Diameter of a cylinder."""
CYLINDER_HEIGHT_M = 0.05
"""Height of a cylinder."""
BOWL_WIDTH_M = 0.115
"""Outer width of a bowl across its flats."""
BOWL_HEIGHT_M = 0.026
"""Height of a bowl's rim."""
BOWL_WALL_M = 0.008
"""Thickness of a bowl's wall."""
BOWL_BASE_M = 0.006
"""Thickness of a bowl's floor."""

PUSH_LINE_M = 0.14
"""Distance from the middle of the table (y = 0) of the two painted lines that a pushed object has to cross."""


def direction_sign(direction: str) -> float:
    """Returns the sign of y for `left` or `right` as seen in the image. The camera faces the robot, so right is +y."""
    return {"left": -1.0, "right": 1.0}[direction]


def object_width_m(shape: str) -> float:
    """Returns the distance across an object of this shape."""
    return {"block": BLOCK_SIZE_M, "cylinder": CYLINDER_WIDTH_M, "bowl": BOWL_WIDTH_M}[shape]


def object_height_m(shape: str) -> float:
    """Returns the height of an object of this shape as it stands."""
    return {"block": BLOCK_SIZE_M, "cylinder": CYLINDER_HEIGHT_M, "bowl": BOWL_HEIGHT_M}[shape]


def fold_yaw(yaw_rad: float, shape: str) -> float:
    """Returns the yaw folded into the shape's symmetry: +-pi/4 for a block, 0 for anything round."""
    if shape != "block":
        return 0.0
    quarter = math.pi / 2
    return (yaw_rad + quarter / 2) % quarter - quarter / 2
