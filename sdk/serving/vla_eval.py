"""The protocol of vla-eval's model servers, so that its benchmarks ask a policy that `roboalign serve` serves.

    hello            answered with what the policy takes and gives
    episode_start    starts an episode; not answered
    observation      answered with one action: a chunk is handed out action by action
    episode_end      not answered

A benchmark must give what the policy takes (`images` by camera at its size, `state`, `task_description`) and take its
five numbers. Those that come with vla-eval 0.8.0 speak of other numbers (LIBERO: 8 of state, 7 of action); they are
refused with the first observation. A hold is an error, so that no benchmark takes it for an action.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from roboalign import __version__
from roboalign.sdk.errors import BackendError, DataError
from roboalign.sdk.serving.observations import Needs, read_observation
from roboalign.sdk.serving.wire import pack, unpack_map
from roboalign.sdk.types import ACTION_NAMES, STATE_NAMES, FloatArray

if TYPE_CHECKING:
    from roboalign.sdk.evaluation.episodes import EpisodePolicy

__all__ = ["VlaEvalDialogue"]

_PROTOCOL_VERSION = 1
"""`vla_eval.protocol.messages.PROTOCOL_VERSION` of vla-eval 0.8.0."""
_KINDS = ("hello", "episode_start", "observation", "episode_end", "error")
_STATES = ("state", "states")


class VlaEvalDialogue:
    """One connection of vla-eval's client."""

    def __init__(self, policy: Callable[[], EpisodePolicy], needs: Needs) -> None:
        """Stores where the policy comes from and what it takes."""
        self._policy, self._needs = policy, needs
        self._actions: list[FloatArray] = []
        self._number = 0

    def answer(self, body: bytes) -> bytes | None:
        """Returns the answer to a message; None where none is expected.

        Raises:
            RoboalignError: The message is not what was agreed, or the policy failed or holds.
        """
        self._number = 0
        message = unpack_map(body)
        number, kind, payload = message.get("seq"), message.get("type"), message.get("payload")
        if isinstance(number, bool) or not isinstance(number, int):
            raise DataError(f"the number of a message (seq) is {number!r:.40}, expected a whole number")
        if not isinstance(payload, dict):
            raise DataError(f"the payload of a message is {type(payload).__name__}, expected a map")
        self._number = number
        return self._answer(kind, payload)

    def error(self, text: str) -> bytes:
        """Returns a message of the kind `error`, which vla-eval's client raises."""
        return self._message("error", {"error": text})

    def _answer(self, kind: object, payload: Mapping[str, object]) -> bytes | None:
        if kind == "hello":
            return self._message("hello", self._hello())
        if kind == "observation":
            return self._message("action", {"actions": self._next(payload)})
        if kind in ("episode_start", "episode_end"):
            self._actions = []
            if kind == "episode_start":
                self._policy().reset()
            return None
        if kind == "error":
            return None
        raise DataError(
            f"a message of type {kind!r:.40} came; known are hello, episode_start, observation, episode_end"
        )

    def _next(self, payload: Mapping[str, object]) -> FloatArray:
        """Returns the next action of the chunk; asks the policy when there is none left."""
        if not self._actions:
            images = payload.get("images", {})
            if not isinstance(images, dict):
                raise DataError(f"images is {type(images).__name__}, expected a map from camera to picture")
            observation = read_observation(
                self._needs,
                images=images,
                state=next((payload[name] for name in _STATES if name in payload), None),
                prompt=payload.get("task_description"),
            )
            chunk = self._policy().act(observation)
            if chunk.source == "hold":
                raise BackendError(f"hold: {chunk.reason}")
            self._actions = list(chunk.actions)
        return self._actions.pop(0)

    def _message(self, kind: str, payload: Mapping[str, object]) -> bytes:
        row = {"type": kind, "payload": payload, "seq": self._number, "timestamp": time.time()}
        return pack(row, has_text_names=True)

    def _hello(self) -> dict[str, object]:
        images = {name: _spec(name, 0, "rgb_hwc_uint8") for name in self._needs.camera_names}
        return {
            "harness_version": f"roboalign {__version__}",
            "protocol_version": _PROTOCOL_VERSION,
            "model_server": "roboalign",
            "capabilities": {},
            "action_spec": {
                "position": _spec("position", 3, "delta_xyz_m"),
                "rotation": _spec("rotation", 1, "delta_yaw_rad"),
                "gripper": _spec("gripper", 1, "continuous_01", ", ".join(ACTION_NAMES)),
            },
            "observation_spec": {
                **images,
                "language": _spec("language", 0, "language"),
                "state": _spec("state", len(STATE_NAMES), "tool_xyz_yaw_gripper_width", ", ".join(STATE_NAMES)),
            },
        }


def _spec(name: str, num: int, kind: str, description: str = "") -> dict[str, object]:
    """Returns one `vla_eval.specs.DimSpec` as it travels."""
    return {"name": name, "dims": num, "format": kind, "description": description}
