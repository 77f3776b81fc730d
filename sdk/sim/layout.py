"""Sizes, colours and views of a table (base frame, table top at z = 0): what depends on the arm that stands behind it.

Every arm has a `TableLayout` of its own; what a scene, its physics, its pictures and the scripted expert need to know
about sizes is read from there and from nowhere else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from roboalign.sdk.errors import ConfigError

__all__ = [
    "COLOURS",
    "GRASPABLE",
    "PANDA_TABLE",
    "SHAPES",
    "SO101_TABLE",
    "ExpertSizes",
    "TableLayout",
    "View",
    "direction_sign",
    "fold_yaw",
    "object_height_m",
    "object_width_m",
    "y_limit_m",
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


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """Where a camera stands and where it looks, in the base frame."""

    eye_m: tuple[float, float, float]
    """Position of the camera."""
    aim_m: tuple[float, float, float]
    """Point in the middle of the picture."""
    fov_deg: float
    """Angle between the upper and the lower edge of the picture."""

    def __post_init__(self) -> None:
        if not 0.0 < self.fov_deg < 180.0:
            raise ConfigError(f"View.fov_deg is {self.fov_deg}, expected more than 0 and less than 180")
        if self.eye_m[:2] == self.aim_m[:2]:
            raise ConfigError(f"View looks straight up or down from {self.eye_m}; move eye_m or aim_m sideways")


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertSizes:
    """Heights, widths and steps of the scripted expert. Heights are those of the tool above the table."""

    step_m: float
    """Longest step."""
    descent_m: float
    """Longest step down: the last centimetres are slow enough for the arm to follow closely."""
    hover_m: float
    """Height at which the open gripper travels."""
    travel_low_m: float
    """Up to this height an open gripper may not move sideways near objects."""
    travel_free_m: float
    """From this height on it may, without restraint."""
    carry_bottom_m: float
    """Height of a carried object's underside: clears every standing object."""
    done_m: float
    """Height at which the expert has nothing left to do."""
    min_grasp_m: float
    """Lowest height at which the gripper closes."""
    grasp_tolerance_m: float
    """Sideways error with which the gripper may close."""
    open_width_m: float
    """Fingers wider apart than this are open."""
    free_width_m: float
    """Fingers wider apart than this have let go; a bowl's wall may keep them from opening further until they rise."""
    empty_width_m: float
    """Fingers closer than this have missed: every graspable object is wider."""
    closed_width_m: float
    """Fingers closer than this are closed enough to push."""
    rim_clear_m: float
    """Lower than this, fingers inside a bowl cannot open without lifting it."""
    place_bottom_m: float
    """Height of an object's underside at which it is let go into a bowl."""
    push_height_m: float
    """Height at which the closed gripper pushes."""
    push_standoff_m: float
    """Distance behind an object's centre at which the gripper comes down to push it."""
    push_contact_m: float
    """Distance from an object's centre at which the closed gripper touches it."""
    push_min_m: float
    """Nearer to an object's centre than this, the gripper is not behind it."""
    push_aside_m: tuple[float, float]
    """Sideways error up to which a push goes at full speed, and from which on it starts over."""
    push_step_m: float
    """Longest step of a push."""
    push_overshoot_m: float
    """How far beyond the line an object is pushed."""
    grip_shift_m: float
    """How far a gripper with one moving jaw drags an object along the tool's y axis while it closes; 0 for two."""
    closed_shift_m: float
    """How far such a gripper's closed jaws lie from the tool along that axis; 0 for two moving jaws."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TableLayout:
    """All sizes of a table, of what stands on it and of the cameras that look at it, for one arm."""

    block_size_m: float
    """Edge of a block."""
    cylinder_width_m: float
    """Diameter of a cylinder."""
    cylinder_height_m: float
    """Height of a cylinder."""
    bowl_width_m: float
    """Outer width of a bowl across its flats."""
    bowl_height_m: float
    """Height of a bowl's rim."""
    bowl_wall_m: float
    """Thickness of a bowl's wall."""
    bowl_base_m: float
    """Thickness of a bowl's floor."""
    object_mass_kg: float
    """Mass of a block and of a cylinder."""
    bowl_mass_kg: float
    """Mass of a bowl."""

    table_half_m: tuple[float, float, float]
    """Half the extents of the table top."""
    table_x_m: float
    """Position of its middle."""
    line_half_m: tuple[float, float, float]
    """Half the extents of a painted line."""
    line_x_m: float
    """Position of its middle."""
    push_line_m: float
    """Distance from the middle of the table (y = 0) of the two lines that a pushed object has to cross."""

    x_range_m: tuple[float, float]
    """Where objects may start."""
    object_y_limit_m: float
    """Blocks and cylinders start at most this far from y = 0."""
    bowl_y_limit_m: float
    """Bowls start at most this far from y = 0."""
    spacing_m: float
    """Least distance between two centres, so that the fingers find room."""
    bowl_spacing_m: float
    """The same when one of the two is a bowl."""
    push_start_y_m: float
    """An object to be pushed starts at most this far from y = 0."""
    push_lane_m: float
    """Least distance along x of any other object from one that is to be pushed."""
    view_lane_m: float
    """A goal that stands further from the camera than its target is at least this far aside."""

    tool_start_m: tuple[float, float, float]
    """Mean start of the tool."""
    tool_jitter_m: float
    """The start differs from it by at most this along x and y, and by half of it along z."""
    lift_m: float
    """An object whose underside is higher than this has been lifted."""

    front: View
    """The camera that the policy sees through: opposite to the robot, the workspace filling the picture."""
    show: View
    """A wider view from the side, for people."""
    expert: ExpertSizes
    """Sizes of the scripted expert."""


PANDA_TABLE = TableLayout(
    block_size_m=0.045,
    cylinder_width_m=0.045,
    cylinder_height_m=0.05,
    bowl_width_m=0.115,
    bowl_height_m=0.026,
    bowl_wall_m=0.008,
    bowl_base_m=0.006,
    object_mass_kg=0.08,
    bowl_mass_kg=0.4,
    table_half_m=(0.6, 0.7, 0.05),
    table_x_m=0.3,
    line_half_m=(0.17, 0.003, 0.0005),
    line_x_m=0.52,
    push_line_m=0.14,
    x_range_m=(0.40, 0.62),
    object_y_limit_m=0.155,
    bowl_y_limit_m=0.15,
    spacing_m=0.112,
    bowl_spacing_m=0.138,
    push_start_y_m=0.065,
    push_lane_m=0.085,
    view_lane_m=0.09,
    tool_start_m=(0.475, 0.0, 0.20),
    tool_jitter_m=0.04,
    lift_m=0.03,
    front=View(eye_m=(1.20, 0.0, 0.85), aim_m=(0.515, 0.0, 0.045), fov_deg=20.5),
    show=View(eye_m=(1.25, 0.75, 0.75), aim_m=(0.42, 0.0, 0.15), fov_deg=38.0),
    expert=ExpertSizes(
        step_m=0.04,
        descent_m=0.03,
        hover_m=0.10,
        travel_low_m=0.06,
        travel_free_m=0.085,
        carry_bottom_m=0.075,
        done_m=0.115,
        min_grasp_m=0.02,
        grasp_tolerance_m=0.009,
        open_width_m=0.068,
        free_width_m=0.053,
        empty_width_m=0.030,
        closed_width_m=0.03,
        rim_clear_m=0.036,
        place_bottom_m=0.026,
        push_height_m=0.022,
        push_standoff_m=0.062,
        push_contact_m=0.04,
        push_min_m=0.028,
        push_aside_m=(0.006, 0.018),
        push_step_m=0.032,
        push_overshoot_m=0.012,
        grip_shift_m=0.0,
        closed_shift_m=0.0,
    ),
)
"""The table of the Panda. The shipped policies were trained on these numbers: a change makes other scenes of them."""

SO101_TABLE = TableLayout(
    block_size_m=0.028,
    cylinder_width_m=0.028,
    cylinder_height_m=0.028,
    bowl_width_m=0.072,
    bowl_height_m=0.015,
    bowl_wall_m=0.005,
    bowl_base_m=0.0035,
    object_mass_kg=0.02,
    bowl_mass_kg=0.12,
    table_half_m=(0.35, 0.45, 0.05),
    table_x_m=0.15,
    line_half_m=(0.085, 0.002, 0.0005),
    line_x_m=0.21,
    push_line_m=0.085,
    x_range_m=(0.16, 0.245),
    object_y_limit_m=0.092,
    bowl_y_limit_m=0.08,
    spacing_m=0.062,
    bowl_spacing_m=0.076,
    push_start_y_m=0.035,
    push_lane_m=0.045,
    view_lane_m=0.05,
    tool_start_m=(0.20, 0.0, 0.066),
    tool_jitter_m=0.02,
    lift_m=0.018,
    front=View(eye_m=(0.62, 0.0, 0.50), aim_m=(0.20, 0.0, 0.02), fov_deg=21.5),
    show=View(eye_m=(0.62, 0.42, 0.45), aim_m=(0.16, 0.0, 0.08), fov_deg=38.0),
    expert=ExpertSizes(
        step_m=0.028,
        descent_m=0.02,
        hover_m=0.055,
        travel_low_m=0.035,
        travel_free_m=0.05,
        carry_bottom_m=0.036,
        done_m=0.058,
        min_grasp_m=0.012,
        grasp_tolerance_m=0.006,
        open_width_m=0.044,
        free_width_m=0.033,
        empty_width_m=0.020,
        closed_width_m=0.008,
        rim_clear_m=0.0,
        place_bottom_m=0.017,
        push_height_m=0.013,
        push_standoff_m=0.043,
        push_contact_m=0.026,
        push_min_m=0.014,
        push_aside_m=(0.004, 0.011),
        push_step_m=0.02,
        push_overshoot_m=0.008,
        grip_shift_m=0.008,
        closed_shift_m=0.0205,
    ),
)
"""The table of the SO-101: objects for jaws that open by 5 cm, where the tool reaches them pointing down."""


def direction_sign(direction: str) -> float:
    """Returns the sign of y for `left` or `right` as seen in the image. The camera faces the robot, so right is +y."""
    return {"left": -1.0, "right": 1.0}[direction]


def object_width_m(shape: str, table: TableLayout = PANDA_TABLE) -> float:
    """Returns the distance across an object of this shape."""
    return {"block": table.block_size_m, "cylinder": table.cylinder_width_m, "bowl": table.bowl_width_m}[shape]


def object_height_m(shape: str, table: TableLayout = PANDA_TABLE) -> float:
    """Returns the height of an object of this shape as it stands."""
    return {"block": table.block_size_m, "cylinder": table.cylinder_height_m, "bowl": table.bowl_height_m}[shape]


def y_limit_m(shape: str, table: TableLayout = PANDA_TABLE) -> float:
    """Returns how far from y = 0 an object of this shape may start."""
    return table.bowl_y_limit_m if shape == "bowl" else table.object_y_limit_m


def fold_yaw(yaw_rad: float, shape: str) -> float:
    """Returns the yaw folded into the shape's symmetry: +-pi/4 for a block, 0 for anything round."""
    if shape != "block":
        return 0.0
    quarter = math.pi / 2
    return (yaw_rad + quarter / 2) % quarter - quarter / 2
