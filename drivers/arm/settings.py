"""What the bus owner has to know about one arm."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CoreSettings"]


@dataclass(frozen=True, kw_only=True, slots=True)
class CoreSettings:
    """What the core has to know about one arm. Vectors are per motor: the arm joints, then the gripper."""

    lower_rad: tuple[float, ...]
    """Smallest goals."""
    upper_rad: tuple[float, ...]
    """Largest goals."""
    max_speed_rad_s: tuple[float, ...]
    """Largest speeds of goals."""
    motor_speed_rad_s: tuple[float, ...]
    """What the motors can do, for the gate on readings."""
    park_rad: tuple[float, ...]
    """Arm joints in the park position; the gripper stays as it is."""
    home_rad: tuple[float, ...]
    """Arm joints in the home position."""
    torque_caps: tuple[float, ...]
    """Largest share of its torque that each motor gets."""
    rate_hz: float = 100.0
    """Cycles a second."""
    control_period_s: float = 0.1
    """How often a policy means to send."""
    park_after_s: float = 0.5
    """Without a fresh command for this long the arm parks and lets go."""
