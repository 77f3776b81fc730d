"""Robots and buses, one file each, and the check that every robot passes, simulated or real."""

from roboalign.drivers.arm.loading import load_robot
from roboalign.drivers.conformance import CheckResult, ConformanceReport, check_robot

__all__ = ["CheckResult", "ConformanceReport", "check_robot", "load_robot"]
