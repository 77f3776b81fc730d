"""The Dynamixel X servos that can be had virtually, by the figures of https://emanual.robotis.com."""

from __future__ import annotations

import math

from roboalign.drivers.virtual.servo import ServoModel

__all__ = ["XSERIES_BAUDS", "XSERIES_MODELS"]

XSERIES_BAUDS = (9_600, 57_600, 115_200, 1_000_000, 2_000_000, 3_000_000, 4_000_000, 4_500_000)
"""Rates by the value of register 8."""


def _model(name: str, number: int, volts: tuple[float, float, float], rpm: float, stall_a: float) -> ServoModel:
    nominal, low, high = volts
    return ServoModel(
        name=name,
        number=number,
        protocol="dynamixel",
        nominal_v=nominal,
        min_v=low,
        max_v=high,
        max_speed_rad_s=rpm * 2 * math.pi / 60,
        stall_current_a=stall_a,
    )


XSERIES_MODELS = {
    model.name: model
    for model in (
        _model("xl330-m077", 1190, (5.0, 3.5, 7.0), 383, 1.47),
        _model("xl330-m288", 1200, (5.0, 3.5, 7.0), 103, 1.47),
        _model("xc330-t181", 1210, (12.0, 5.5, 14.0), 129, 0.8),
        _model("xc330-t288", 1220, (12.0, 5.5, 14.0), 65, 0.8),
        _model("xl430-w250", 1060, (12.0, 6.5, 14.0), 61, 1.3),
        _model("xc430-w150", 1070, (12.0, 6.5, 14.0), 106, 1.4),
        _model("xm430-w350", 1020, (12.0, 9.5, 16.0), 46, 2.3),
        _model("xm540-w270", 1120, (12.0, 9.5, 16.0), 30, 4.4),
    )
}
"""Servos by name; voltage limits are the factory values of registers 32 and 34."""
