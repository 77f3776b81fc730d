"""The one error tree of roboalign; every error a user can cause is in it.

    RoboalignError
    |-- ConfigError      (ValueError)    a wrong value, name, file or combination given by the user
    |-- DataError        (ValueError)    a dataset or observation that does not have what is needed
    |-- BundleError      (ValueError)    a bundle or checkpoint that is missing, altered, or of another kind
    |-- BackendError     (RuntimeError)  an inference backend or an optional package that cannot be used
    |-- CheckFailed      (RuntimeError)  a check ran and its result is "no" (the command line exits with 1)
    `-- RobotError       (RuntimeError)  the robot did not do what it was asked
        |-- RobotTimeout (TimeoutError)  it did not answer in time
        |   `-- CameraTimeout            a camera gives no new picture
        `-- LimitViolation               a command was refused by the limiter

A message says what was found, what was expected, where, and what to do next, in one or two plain sentences.
"""

import difflib
from collections.abc import Iterable

__all__ = [
    "BackendError",
    "BundleError",
    "CameraTimeout",
    "CheckFailed",
    "ConfigError",
    "DataError",
    "LimitViolation",
    "RoboalignError",
    "RobotError",
    "RobotTimeout",
    "missing_extra",
    "unknown_name",
]


class RoboalignError(Exception):
    """Base of every error that roboalign raises on purpose."""


class ConfigError(RoboalignError, ValueError):
    """A value, name, path or combination given by the user is wrong."""


class DataError(RoboalignError, ValueError):
    """A dataset or observation lacks something, or holds something that cannot be right."""


class BundleError(RoboalignError, ValueError):
    """A bundle or checkpoint is missing, truncated, altered, or made by another stage or version."""


class BackendError(RoboalignError, RuntimeError):
    """An inference backend, or an optional package it needs, cannot be used."""


class CheckFailed(RoboalignError, RuntimeError):
    """A check was run to its end and the answer is no."""


class RobotError(RoboalignError, RuntimeError):
    """The robot did not do what it was asked."""


class RobotTimeout(RobotError, TimeoutError):
    """The robot did not answer within the deadline."""


class CameraTimeout(RobotTimeout):
    """A camera gave no new picture within the deadline."""


class LimitViolation(RobotError):
    """The limiter refused a command that cannot be made safe by clamping."""


def missing_extra(package: str, extra: str, what: str) -> BackendError:
    """Returns the error to raise when an optional package is absent; `what` names what needed it."""
    return BackendError(
        f"{what} needs the package {package!r}, which is not installed: pip install 'roboalign[{extra}]'"
    )


def unknown_name(what: str, name: str, known: Iterable[str]) -> str:
    """Returns the message for a name that is not known: the nearest ones, or all when none is near."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=4, cutoff=0.5)
    if near:
        return f"unknown {what} {name!r}; did you mean {' or '.join(near)}?"
    shown = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    return f"unknown {what} {name!r}; choose one of {shown}"
