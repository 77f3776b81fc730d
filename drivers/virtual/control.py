"""The side channel of a virtual arm: faults at run time, its true state, pictures of its scene.

A Unix socket beside the port (`LINK.ctl`). Each request is one line of JSON with the field `do`; each answer is one
line of JSON with `ok`, and `error` when that is false. The answer to `frame` has `num_bytes`, and so many bytes of a
NumPy file follow its line. docs/virtual-arm.md lists the requests.
"""

from __future__ import annotations

import io
import json
import socket
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from roboalign.drivers.virtual.bullet import BulletPlant
from roboalign.drivers.virtual.faults import LineFault
from roboalign.drivers.virtual.line import VirtualLine
from roboalign.sdk.errors import ConfigError, RoboalignError, RobotError, unknown_name
from roboalign.sdk.sim.world import BodyState
from roboalign.sdk.types import ImageArray

__all__ = ["ControlClient", "answer", "control_path"]

_TIMEOUT_S = 10.0
_REQUESTS = ("fault", "clear", "state", "memory", "step", "frame", "bodies", "move")
_MAX_SIZE_PX = 1024


def control_path(link: Path) -> Path:
    """Returns where the control socket of a port is."""
    return link.with_name(link.name + ".ctl")


def answer(line: VirtualLine, request: bytes) -> bytes:
    """Does what one line of JSON asks and returns the answer's bytes; never raises for a wrong request."""
    try:
        message = json.loads(request)
        if not isinstance(message, dict):
            raise ConfigError(f"a request is a JSON object, found {type(message).__name__}")
        fields, picture = _do(line, message)
    except (RoboalignError, ValueError) as err:
        return json.dumps({"ok": False, "error": str(err)}).encode() + b"\n"
    return json.dumps({"ok": True, **fields}).encode() + b"\n" + picture


def _do(line: VirtualLine, message: dict[str, Any]) -> tuple[dict[str, object], bytes]:
    what = message.pop("do", None)
    if what == "fault":
        line.inject(LineFault.from_table(message, "request fault"))
    elif what == "clear":
        line.faults.clear()
    elif what == "state":
        return _state(line), b""
    elif what == "memory":
        return {"memory": line.arm.find(_whole(message, "id")).memory.hex()}, b""
    elif what == "step":
        return _step(line, _whole(message, "count", 1)), b""
    elif what == "frame":
        return _frame(line, str(message.get("camera", "front")), _whole(message, "size_px", 96))
    elif what == "bodies":
        return _bodies(line), b""
    elif what == "move":
        _move(line, message)
    else:
        raise ConfigError(unknown_name("request", str(what), _REQUESTS))
    return {}, b""


def _whole(message: dict[str, Any], name: str, default: int | None = None) -> int:
    value = message.get(name, default)
    if not isinstance(value, int):
        raise ConfigError(f"{name} is {value!r}, expected a whole number")
    return value


def _state(line: VirtualLine) -> dict[str, object]:
    arm, stats = line.arm, line.stats
    states = arm.plant.states()
    tool = arm.plant.tool_position_m()
    return {
        "time_s": arm.time_s,
        "joints": list(arm.plant.joint_names),
        "position_rad": [state.position_rad for state in states],
        "velocity_rad_s": [state.velocity_rad_s for state in states],
        "torque_share": [state.torque_share for state in states],
        "tool_position_m": None if tool is None else list(tool),
        "ids": [servo.id for servo in arm.servos],
        "has_torque": [servo.is_torque_on for servo in arm.servos],
        "error_bits": [servo.error_bits for servo in arm.servos],
        "temperature_c": [servo.temperature_c for servo in arm.servos],
        "volts": [servo.volts for servo in arm.servos],
        "is_plugged": line.is_plugged,
        "requests": stats.requests,
        "replies": stats.replies,
        "steps": stats.steps,
        "collisions": stats.collisions,
        "struck": dict(stats.struck),
    }


def _step(line: VirtualLine, count: int) -> dict[str, object]:
    if line.step_s is None:
        raise RobotError("step is for an arm in lockstep; this one runs in real time")
    for _ in range(count):
        line.arm.advance(line.step_s)
    line.pass_time(line.arm.time_s)
    return {"time_s": line.arm.time_s}


def _frame(line: VirtualLine, camera: str, size_px: int) -> tuple[dict[str, object], bytes]:
    if not 8 <= size_px <= _MAX_SIZE_PX:
        raise ConfigError(f"size_px is {size_px}, expected 8 to {_MAX_SIZE_PX}")
    buffer = io.BytesIO()
    np.save(buffer, line.arm.plant.frame(camera, size_px), allow_pickle=False)
    data = buffer.getvalue()
    return {"num_bytes": len(data), "time_s": line.arm.time_s}, data


def _bodies(line: VirtualLine) -> dict[str, object]:
    plant = line.arm.plant
    if not isinstance(plant, BulletPlant):
        raise RobotError("there are no objects: this arm has no physics")
    return {
        "bodies": {
            name: {**asdict(body), "position_m": body.position_m.tolist()} for name, body in plant.body_states().items()
        },
        "state_hash": plant.state_hash(),
    }


def _move(line: VirtualLine, message: dict[str, Any]) -> None:
    plant, name, place = line.arm.plant, str(message.get("body")), message.get("position_m")
    if not isinstance(plant, BulletPlant):
        raise RobotError("there are no objects: this arm has no physics")
    if name not in (there := plant.body_states()):
        raise ConfigError(unknown_name("object", name, there))
    if not isinstance(place, list) or len(place) != 3 or not np.isfinite(np.asarray(place, np.float64)).all():
        raise ConfigError(f"position_m is {place!r}, expected three numbers")
    plant.move_body(name, np.asarray(place, np.float32), float(message.get("yaw_rad", 0.0)))


class ControlClient:
    """A host's end of the control socket, for tests and for cameras that look at a virtual arm."""

    def __init__(self, link: str | Path) -> None:
        """Stores the port, whose control socket lies beside it."""
        self._path = control_path(Path(link))
        self._socket: socket.socket | None = None
        self._file: io.BufferedRWPair | None = None

    def open(self) -> ControlClient:
        """Connects.

        Raises:
            RobotError: Nobody listens.
        """
        if self._socket is None:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.settimeout(_TIMEOUT_S)
            try:
                connection.connect(str(self._path))
            except OSError as err:
                connection.close()
                raise RobotError(f"no virtual arm listens at {self._path}: start `roboalign sim-bus` ({err})") from err
            self._socket = connection
            self._file = connection.makefile("rwb")
        return self

    def close(self) -> None:
        """Disconnects. Idempotent."""
        if self._file is not None:
            self._file.close()
        if self._socket is not None:
            self._socket.close()
        self._socket = self._file = None

    def __enter__(self) -> ControlClient:
        return self.open()

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, do: str, **fields: object) -> dict[str, Any]:
        """Sends one request and returns the fields of its answer.

        Raises:
            RobotError: The arm refused, or is gone.
        """
        return self._ask(do, fields)[0]

    def fault(self, kind: str, **fields: object) -> None:
        """Lets something go wrong; fields as in `roboalign.drivers.virtual.faults.LineFault`."""
        self.ask("fault", kind=kind, **fields)

    def state(self) -> dict[str, Any]:
        """Returns what is true: time, joints, tool, servos, counts."""
        return self.ask("state")

    def memory(self, id: int) -> bytes:  # noqa: A002 - the protocols' own word
        """Returns the control table of a servo."""
        return bytes.fromhex(self.ask("memory", id=id)["memory"])

    def bodies(self) -> dict[str, BodyState]:
        """Returns every object on the table, as it is."""
        found = self.ask("bodies")["bodies"]
        return {
            name: BodyState(**{**body, "position_m": np.array(body["position_m"], np.float32)})
            for name, body in found.items()
        }

    def frame(self, camera: str = "front", size_px: int = 96) -> ImageArray:
        """Returns uint8[size, size, 3], the scene as a camera sees it now."""
        image: ImageArray = np.load(io.BytesIO(self._ask("frame", {"camera": camera, "size_px": size_px})[1]))
        return image

    def _ask(self, do: str, fields: dict[str, object]) -> tuple[dict[str, Any], bytes]:
        file = self.open()._file
        assert file is not None
        try:
            file.write(json.dumps({"do": do, **fields}).encode() + b"\n")
            file.flush()
            line = file.readline()
            found = json.loads(line) if line else {"ok": False, "error": "it closed the connection"}
            data = file.read(int(str(found.get("num_bytes", 0))))
        except OSError as err:
            raise RobotError(f"the virtual arm at {self._path} does not answer: {err}") from err
        if not found.pop("ok"):
            raise RobotError(f"the virtual arm refused {do}: {found['error']}")
        return found, data
