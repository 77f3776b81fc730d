"""Between a policy and the motors: kinematics, the limiter that nothing goes around, the loop and its clocks."""

from roboalign.sdk.control.cartesian import CartesianController
from roboalign.sdk.control.clock import Clock, FakeClock, MonotonicClock, SimClock
from roboalign.sdk.control.kinematics import IkResult, Kinematics, pose_from_state, state_from_pose, tool_pose
from roboalign.sdk.control.limiter import Limiter
from roboalign.sdk.control.loop import Actor, ControlLoop, LoopReport, Tick

__all__ = [
    "Actor",
    "CartesianController",
    "Clock",
    "ControlLoop",
    "FakeClock",
    "IkResult",
    "Kinematics",
    "Limiter",
    "LoopReport",
    "MonotonicClock",
    "SimClock",
    "Tick",
    "pose_from_state",
    "state_from_pose",
    "tool_pose",
]
