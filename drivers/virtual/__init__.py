"""Virtual servos, the line they hang on, and the arm they move: hardware in the loop without hardware.

servos (sts, xseries) on joints (physics, bullet) = arm -> dialects -> line -> port (memory) or server (pty)
"""

from roboalign.drivers.virtual.config import VirtualBusConfig, build_line
from roboalign.drivers.virtual.control import ControlClient
from roboalign.drivers.virtual.faults import FaultPlan, LineFault, read_faults
from roboalign.drivers.virtual.line import VirtualLine
from roboalign.drivers.virtual.port import VirtualPort
from roboalign.drivers.virtual.process import VirtualBus
from roboalign.drivers.virtual.robots import VIRTUAL_ROBOTS, make_arm, make_servo
from roboalign.drivers.virtual.server import VirtualBusServer

__all__ = [
    "VIRTUAL_ROBOTS",
    "ControlClient",
    "FaultPlan",
    "LineFault",
    "VirtualBus",
    "VirtualBusConfig",
    "VirtualBusServer",
    "VirtualLine",
    "VirtualPort",
    "build_line",
    "make_arm",
    "make_servo",
    "read_faults",
]
