"""A policy that a user wrote as a Python function or class, named as `module:name` or `path/to/file.py:name`.

What the name may stand for:

- a function of an observation, its parameter called `observation` or `obs`: called for every chunk of actions;
- a class, or a function whose parameter is called `spec`, or that takes none: called once with the robot's `RobotSpec`,
  it returns an object with `act(observation)`, and `reset()` and `close()` if it needs them, or a function as above.

An answer is an `ActionChunk`, or an array [T, 5] in the order of `ACTION_NAMES`. The code runs in this process with all
rights of its user.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np

from roboalign.sdk.errors import BackendError, ConfigError, DataError, RoboalignError
from roboalign.sdk.evaluation.episodes import SeededPolicy
from roboalign.sdk.types import ACTION_NAMES, ActionChunk, Observation, RobotSpec

__all__ = ["CallablePolicy", "callable_fingerprint", "is_callable_name", "load_callable"]

SOURCE = "callable"
"""Who acted, when the answer is an array."""
_OBSERVATION_NAMES = ("observation", "obs")


def is_callable_name(text: str) -> bool:
    """Whether the text has the form `module:name` or `file.py:name`; an address such as `ws://...` has not."""
    place, colon, name = text.rpartition(":")
    return bool(colon) and name.isidentifier() and bool(place) and "://" not in place


def load_callable(name: str, spec: RobotSpec) -> CallablePolicy:
    """Returns the policy of a name.

    Raises:
        ConfigError: There is no such file, module or name, or it cannot be called as described above.
        BackendError: The code failed while it was loaded.
    """
    place, _, attribute = name.rpartition(":")
    module = _load_module(place)
    found = getattr(module, attribute, None)
    if not callable(found):
        names = sorted(key for key, value in vars(module).items() if callable(value) and not key.startswith("_"))
        shown = ", ".join(names[:12]) or "nothing that can be called"
        raise ConfigError(f"{place} has no function or class {attribute!r}; it has: {shown}")
    if _acts_itself(found, name):
        return CallablePolicy(name, found, None, spec.control_rate_hz)
    takes_spec = "spec" in inspect.signature(found).parameters
    made = _run(name, lambda: found(spec) if takes_spec else found())
    act = getattr(made, "act", made)
    if not callable(act):
        raise ConfigError(f"{name} returned {type(made).__name__}, expected an object with act(observation)")
    return CallablePolicy(name, act, made, spec.control_rate_hz)


def callable_fingerprint(name: str) -> str:
    """Returns a hash of the source file that the name stands for; what it imports is not looked at."""
    place = name.rpartition(":")[0]
    if place.endswith(".py"):
        origin: str | None = place
    else:
        try:
            with _working_folder_on_path():
                found = importlib.util.find_spec(place)
        except (ImportError, ValueError):  # a folder above it is missing, or the name is none
            found = None
        except Exception as err:
            raise _failure(place, err) from err
        origin = found.origin if found is not None else None
    path = Path(origin) if origin else None
    if path is None or not path.is_file():
        raise ConfigError(f"there is no module or file {place!r} to take a policy from")
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


class CallablePolicy:
    """A user's code with the methods of `EpisodePolicy`; what it answers is checked."""

    def __init__(self, name: str, act: Callable[[Observation], object], owner: object | None, rate_hz: float) -> None:
        self._name, self._act, self._owner, self._rate_hz = name, act, owner, rate_hz
        self.needs_image = bool(getattr(owner if owner is not None else act, "needs_image", True))

    def seed_episode(self, seed: int) -> None:
        """Passes the seed on to an object that wants it."""
        owner = self._owner
        if isinstance(owner, SeededPolicy):
            _run(self._name, lambda: owner.seed_episode(seed))

    def reset(self) -> None:
        """Calls the object's `reset` if it has one."""
        self._call("reset")

    def act(self, observation: Observation) -> ActionChunk:
        """Returns the checked answer.

        Raises:
            BackendError: The code failed.
            DataError: The answer is neither a chunk nor an array [T, 5] of finite numbers.
        """
        answer = _run(self._name, lambda: self._act(observation))
        if isinstance(answer, ActionChunk):
            return answer
        try:
            actions = np.asarray(answer, np.float32)
        except (TypeError, ValueError) as err:
            raise DataError(
                f"{self._name} answered {type(answer).__name__}, expected an ActionChunk or an array [T, 5]"
            ) from err
        if actions.ndim != 2 or actions.shape[1] != len(ACTION_NAMES) or len(actions) == 0:
            raise DataError(
                f"{self._name} answered an array of shape {list(actions.shape)}, expected [T, {len(ACTION_NAMES)}]"
                f" with at least one action: {', '.join(ACTION_NAMES)}"
            )
        if not np.isfinite(actions).all():
            raise DataError(f"{self._name} answered numbers that are not finite; to wait, answer ActionChunk.hold(...)")
        return ActionChunk(actions=actions, rate_hz=self._rate_hz, source=SOURCE)

    def close(self) -> None:
        """Calls the object's `close` if it has one."""
        self._call("close")

    def _call(self, method: str) -> None:
        found = getattr(self._owner, method, None)
        if callable(found):
            _run(self._name, found)


def _load_module(place: str) -> ModuleType:
    if not place.endswith(".py"):
        try:
            with _working_folder_on_path():
                return importlib.import_module(place)
        except ModuleNotFoundError as err:
            raise ConfigError(
                f"there is no module {place!r} ({err}); give module:name or path/to/file.py:name"
            ) from err
        except Exception as err:
            raise _failure(place, err) from err
    path = Path(place)
    if not path.is_file():
        raise ConfigError(f"there is no file {place} to take a policy from")
    # The name is unlike any that could be imported, and the same in every process.
    key = f"_roboalign_policy_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    if key in sys.modules:
        return sys.modules[key]
    found = importlib.util.spec_from_file_location(key, path)
    if found is None or found.loader is None:
        raise ConfigError(f"{place} cannot be loaded as Python code")
    module = importlib.util.module_from_spec(found)
    sys.modules[key] = module
    try:
        found.loader.exec_module(module)
    except Exception as err:
        del sys.modules[key]
        raise _failure(place, err) from err
    return module


class _working_folder_on_path:  # noqa: N801 - used like a function
    """Lets modules of the folder in which the command was typed be found, as `python -m` does."""

    def __enter__(self) -> None:
        self._folder = str(Path.cwd())
        sys.path.insert(0, self._folder)

    def __exit__(self, *_error: object) -> None:
        sys.path.remove(self._folder)


def _acts_itself(found: Callable[..., object], name: str) -> bool:
    """Whether it takes observations; otherwise it is called once to make the policy."""
    if inspect.isclass(found):
        return False
    needed = [p for p in inspect.signature(found).parameters.values() if p.default is p.empty]
    names = [parameter.name for parameter in needed]
    if names in ([], ["spec"]):
        return False
    if len(names) == 1 and names[0] in _OBSERVATION_NAMES:
        return True
    raise ConfigError(
        f"{name} takes ({', '.join(names)}); a policy takes (observation), a function that makes one takes (spec) or"
        " nothing"
    )


def _run(name: str, call: Callable[[], object]) -> object:
    try:
        return call()
    except RoboalignError:
        raise
    except Exception as err:
        raise _failure(name, err) from err


def _failure(name: str, err: Exception) -> BackendError:
    """Returns an error that names the line of the user's code at which it failed."""
    trace = err.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f" at {trace.tb_frame.f_code.co_filename}, line {trace.tb_lineno}" if trace is not None else ""
    if isinstance(err, SyntaxError):  # says itself where; the trace ends in Python's importer
        where = ""
    return BackendError(f"{name} failed with {type(err).__name__}: {err}{where}; use --debug for the traceback")
