"""What runs on the robot: types, errors, `Policy`, the control loop, codecs, and the simulator's robot.

Everything in `__all__` is loaded when it is first used, so importing this package costs milliseconds and never loads a
machine-learning framework, a simulator or a serial port. The simulator and the datasets have doors of their own:
`roboalign.sdk.sim`, `roboalign.sdk.data`, `roboalign.sdk.evaluation`.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from roboalign.sdk.errors import (
        BackendError,
        BundleError,
        CheckFailed,
        ConfigError,
        DataError,
        LimitViolation,
        RoboalignError,
        RobotError,
        RobotTimeout,
    )
    from roboalign.sdk.fast import FastCodec
    from roboalign.sdk.policy import Policy
    from roboalign.sdk.reply import parse_reply, write_reply
    from roboalign.sdk.robot import Robot
    from roboalign.sdk.serving.remote import RemotePolicy
    from roboalign.sdk.thinking import Thinking
    from roboalign.sdk.types import ACTION_NAMES, STATE_NAMES, ActionChunk, Applied, Observation, RobotSpec, ThoughtUse

__all__ = [
    "ACTION_NAMES",
    "STATE_NAMES",
    "ActionChunk",
    "Applied",
    "BackendError",
    "BundleError",
    "CheckFailed",
    "ConfigError",
    "DataError",
    "FastCodec",
    "LimitViolation",
    "Observation",
    "Policy",
    "RemotePolicy",
    "RoboalignError",
    "Robot",
    "RobotError",
    "RobotSpec",
    "RobotTimeout",
    "Thinking",
    "ThoughtUse",
    "parse_reply",
    "write_reply",
]

_MODULE_OF = {
    "ACTION_NAMES": "types",
    "STATE_NAMES": "types",
    "ActionChunk": "types",
    "Applied": "types",
    "FastCodec": "fast",
    "Observation": "types",
    "Policy": "policy",
    "RemotePolicy": "serving.remote",
    "Robot": "robot",
    "RobotSpec": "types",
    "Thinking": "thinking",
    "ThoughtUse": "types",
    "parse_reply": "reply",
    "write_reply": "reply",
}
"""Where each public name lives; what is not listed is in `errors`."""

if __name__ == "sdk":
    # Python found this folder because the repository root is on sys.path (`python -c` run there), ahead of src/sdk.py.
    # Names below come from roboalign.sdk all the same; without __path__ no submodule can be imported a second time.
    del __path__
    if find_spec("roboalign") is None:
        raise ImportError("'sdk' is a part of roboalign, which is not installed here: pip install -e . (or make setup)")


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"roboalign.sdk.{_MODULE_OF.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
