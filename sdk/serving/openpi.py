"""openpi's protocol: the server says who it serves, then each observation is a map and gets a map of actions.

openpi's names are taken, with or without their prefix `observation/`, and a few are ours:

    image                the first camera, uint8[H, W, 3] or uint8[3, H, W] RGB
    images               instead: a map from camera to picture
    state                float32[5] or float64[5] in the order of `STATE_NAMES`
    prompt               the sentence to follow
    joint_position       radians; for policies that read joints, may be left out
    time_s               when the state was read; may be left out
    commanded            float32[4], the tool where it was last sent; for policies that act from there
    reset, seed          {"reset": True} alone starts an episode, with a seed where the policy draws random numbers
    holds                True: the client knows that an answer can be a hold

The answer has `actions` (float32[T, 5] in the order of `ACTION_NAMES`), `thought`, `source`, `reason`, `tokens`,
`rate_hz`, `latency_s`, `thought_use` (which thought, and how old) and openpi's `server_timing`. A hold has no actions.
A client that does not say `holds` gets it as text, which openpi's client raises like any error, so that nobody moves a
robot by it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from roboalign import __version__
from roboalign.sdk.errors import DataError
from roboalign.sdk.serving.observations import Needs, finite_number, read_observation
from roboalign.sdk.serving.wire import PROTOCOL_VERSION, pack, unpack_map
from roboalign.sdk.types import ActionChunk, Observation, ThoughtUse

if TYPE_CHECKING:
    from roboalign.sdk.evaluation.episodes import EpisodePolicy

__all__ = ["OpenPiDialogue", "Request", "chunk_from_map", "chunk_to_map", "observation_to_map", "read_request"]

_NAMES = ("images", "image", "state", "joint_position", "prompt", "time_s", "commanded", "holds", "reset", "seed")
_PREFIX = "observation/"
_MAX_SEED = 2**63


class OpenPiDialogue:
    """One connection of openpi's client, or of `RemotePolicy`."""

    def __init__(self, policy: Callable[[], EpisodePolicy], needs: Needs) -> None:
        """Stores where the policy comes from and what it takes."""
        self._policy, self._needs = policy, needs

    def greeting(self, describe: Mapping[str, object]) -> bytes:
        """Returns the first message: who is served, and what the policy takes."""
        who = {"protocol": "roboalign", "version": PROTOCOL_VERSION, "roboalign": __version__}
        return pack({**who, "policy": dict(describe), **self._needs.to_map()})

    def answer(self, body: bytes) -> bytes | str:
        """Returns the answer to a message.

        Raises:
            RoboalignError: The message is not what was agreed, or the policy failed.
        """
        request = read_request(unpack_map(body), self._needs)
        policy = self._policy()
        if request.observation is None:
            seed_episode = getattr(policy, "seed_episode", None)
            if request.seed is not None and callable(seed_episode):
                seed_episode(request.seed)
            policy.reset()
            return pack({"reset": True})
        start_s = time.perf_counter()
        chunk = policy.act(request.observation)
        infer_ms = 1000.0 * (time.perf_counter() - start_s)
        if chunk.source == "hold" and not request.takes_holds:
            return self.error(f"hold: {chunk.reason}")
        return pack({**chunk_to_map(chunk), "server_timing": {"infer_ms": infer_ms}})

    def error(self, text: str) -> str:
        """Returns text: openpi's client raises what is not binary."""
        return text


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One message of a client."""

    observation: Observation | None
    """What the robot senses; None when the message starts an episode."""
    seed: int | None = None
    """Seed of the episode, for a policy that draws random numbers."""
    takes_holds: bool = False
    """Whether the client knows that an answer can be a hold."""


def read_request(row: Mapping[str, object], needs: Needs) -> Request:
    """Returns the request in a message.

    Raises:
        DataError: A name is unknown, or a value is not what the policy takes.
    """
    plain = {name.removeprefix(_PREFIX): value for name, value in row.items()}
    unknown = sorted(set(plain) - set(_NAMES))
    if unknown or len(plain) != len(row):
        found = ", ".join(unknown or sorted(row))
        raise DataError(f"the observation has the fields {found:.200}; known and each once are {', '.join(_NAMES)}")
    if plain.get("reset", False) is not False:
        return _reset(plain)
    takes_holds = plain.get("holds", False)
    if "seed" in plain or not isinstance(takes_holds, bool):
        raise DataError("a seed comes with a reset, and holds is true or false")
    observation = read_observation(
        needs,
        images=_images(plain, needs),
        state=plain.get("state"),
        prompt=plain.get("prompt"),
        joint_position=plain.get("joint_position"),
        time_s=plain.get("time_s", 0.0),
        commanded=plain.get("commanded"),
    )
    return Request(observation=observation, takes_holds=takes_holds)


def _reset(plain: Mapping[str, object]) -> Request:
    if plain["reset"] is not True or set(plain) - {"reset", "seed"}:
        raise DataError("reset is true and comes alone or with a seed; send the observation in the next message")
    seed = plain.get("seed")
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < _MAX_SEED):
        raise DataError(f"the seed of a reset is {seed!r:.40}, expected a whole number from 0 on")
    return Request(observation=None, seed=seed)


def _images(plain: Mapping[str, object], needs: Needs) -> Mapping[object, object]:
    images = plain.get("images", {})
    if not isinstance(images, dict):
        raise DataError(f"images is {type(images).__name__}, expected a map from camera to picture")
    if "image" not in plain:
        return images
    if images or not needs.camera_names:
        raise DataError("pictures came as image and as images; send image for the first camera, or images by camera")
    return {needs.camera_names[0]: plain["image"]}


def observation_to_map(observation: Observation, camera_names: tuple[str, ...]) -> dict[str, object]:
    """Returns an observation as a message, with the pictures of these cameras."""
    return {
        "images": {name: image for name, image in observation.images.items() if name in camera_names},
        "state": observation.state,
        "joint_position": observation.joint_pos_rad,
        "prompt": observation.instruction,
        "time_s": float(observation.time_s),
        "holds": True,
        **({} if observation.commanded is None else {"commanded": observation.commanded}),
    }


def chunk_to_map(chunk: ActionChunk) -> dict[str, object]:
    """Returns an answer as a message."""
    return {
        "actions": chunk.actions,
        "rate_hz": float(chunk.rate_hz),
        "source": chunk.source,
        "thought": chunk.thought,
        "reason": chunk.reason,
        "tokens": [int(token) for token in chunk.tokens],
        "latency_s": {name: float(seconds) for name, seconds in chunk.latency_s.items()},
        "thought_use": None if chunk.thought_use is None else asdict(chunk.thought_use),
    }


def chunk_from_map(row: Mapping[str, object]) -> ActionChunk:
    """Returns the answer of a message; raises DataError for anything else."""
    try:
        actions, latency_s, tokens = row["actions"], row["latency_s"], row["tokens"]
        if not isinstance(actions, np.ndarray) or not isinstance(latency_s, dict) or not isinstance(tokens, list):
            raise DataError("actions, latency_s or tokens are of another type")
        return ActionChunk(
            actions=actions,
            rate_hz=finite_number(row["rate_hz"]),
            source=_text(row["source"]) or "",
            thought=_text(row["thought"]),
            reason=_text(row["reason"]),
            tokens=tuple(int(finite_number(token)) for token in tokens),
            latency_s={str(name): finite_number(seconds) for name, seconds in latency_s.items()},
            thought_use=_thought_use(row.get("thought_use")),
        )
    except (KeyError, DataError) as err:
        raise DataError(f"the message is not an answer of a policy: {err}") from err


def _thought_use(value: object) -> ThoughtUse | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise DataError(f"thought_use is {type(value).__name__}, expected a map")
    number, ages = value.get("id"), (value.get("age_s"), value.get("image_age_s"))
    age_s, image_age_s = (None if age is None else finite_number(age) for age in ages)
    return ThoughtUse(
        status=_text(value.get("status")) or "",
        id=None if number is None else int(finite_number(number)),
        age_s=age_s,
        image_age_s=image_age_s,
        reason=_text(value.get("reason")),
    )


def _text(value: object) -> str | None:
    if value is not None and not isinstance(value, str):
        raise DataError(f"found {type(value).__name__}, expected text")
    return value
