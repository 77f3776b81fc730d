"""The policy in a process of its own: it is made there, from a recipe, and answers through shared memory.

Whatever happens to it, the control process keeps its rhythm: neither the interpreter lock nor a crash, a leak or a hung
call of an inference library reaches the other side. A thread beats, to show that the process runs at all.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib import import_module
from typing import Any, Literal, Protocol, cast

import numpy as np

from roboalign.sdk.bundle import PolicySpec, policy_spec_from_json
from roboalign.sdk.control.channels import Channels
from roboalign.sdk.control.child import Child, Parent
from roboalign.sdk.control.loop import Actor
from roboalign.sdk.control.realtime import die_with_parent
from roboalign.sdk.control.records import LATENCIES, MAX_STEPS, SOURCES, put_text
from roboalign.sdk.control.rings import Records
from roboalign.sdk.errors import ConfigError, DataError
from roboalign.sdk.typed_json import from_json
from roboalign.sdk.types import ActionChunk, Observation, RobotSpec

__all__ = [
    "PolicyProcess",
    "PolicyRecipe",
    "SpecifiedActor",
    "observation_of",
    "open_policy",
    "serve_policy",
    "warm_up",
    "write_chunk",
    "write_words",
]

BEAT_S = 0.02
_LOAD_TIMEOUT_S = 600.0
_NICENESS = 5  # without real-time priorities the arm still comes first


class SpecifiedActor(Actor, Protocol):
    """A policy that says what it needs, as `sdk.Policy` does."""

    @property
    def spec(self) -> PolicySpec:
        """What it needs from the robot."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyRecipe:
    """How to make a policy in another process; nothing is pickled."""

    factory: str = "roboalign.sdk.control.policy_process:open_policy"
    """`module:function` that returns a `SpecifiedActor`."""
    settings: Mapping[str, object] = field(default_factory=dict)
    """Its keyword arguments, ready for JSON."""

    def make(self) -> SpecifiedActor:
        """Makes the policy here.

        Raises:
            ConfigError: There is no such function.
        """
        module, _, name = self.factory.partition(":")
        try:
            factory = getattr(import_module(module), name)
        except (ImportError, AttributeError, ValueError) as err:
            raise ConfigError(f"policy recipe {self.factory!r}: {err}; expected 'module:function'") from err
        return cast(SpecifiedActor, factory(**self.settings))


def open_policy(
    bundle: str | None = None,
    *,
    actions: str = "flow",
    think: bool = True,
    thinking: Mapping[str, Any] | None = None,
    robot: list[str] | tuple[str, ...] = (),
    backend: str = "auto",
    threads: int = 1,
) -> SpecifiedActor:
    """Returns the policy of a bundle, or of the server at an address; `thinking` has the fields of `Thinking`.

    Raises:
        ConfigError: How a served policy acts was to be chosen here.
    """
    from roboalign.sdk.policy import Policy
    from roboalign.sdk.serving.remote import RemotePolicy, is_address
    from roboalign.sdk.thinking import Thinking

    if bundle is None or not is_address(bundle):
        actor = cast(Literal["flow", "fast"], actions)
        when = None if thinking is None else Thinking(**thinking)
        more: dict[str, Any] = {"think": think, "thinking": when, "robot": tuple(robot), "threads": threads}
        return Policy.load(bundle, backend=backend, actions=actor, **more)
    if actions != "flow" or not think or thinking is not None or backend != "auto":
        raise ConfigError(
            f"how {bundle} acts was chosen where it is served; give --actions, --thinking and --backend there"
        )
    return RemotePolicy(bundle)


def warm_up(policy: Actor, spec: RobotSpec, sentence: str) -> float:
    """Lets the policy answer twice about black pictures, with no robot open; returns the second answer's seconds."""
    size = spec.image_size_px
    middle_m = 0.5 * (np.array(spec.workspace_lower_m) + np.array(spec.workspace_upper_m))
    blank = Observation(
        images={name: np.zeros((size, size, 3), np.uint8) for name in spec.camera_names},
        state=np.array((*middle_m, 0.0, spec.gripper_max_width_m), np.float32),
        joint_pos_rad=np.array(spec.home_joint_pos_rad, np.float32),
        instruction=sentence,
        time_s=0.0,
        commanded=np.array((*middle_m, 0.0), np.float32),
    )
    policy.reset()
    policy.act(blank)
    start_s = time.monotonic()
    policy.act(blank)
    return time.monotonic() - start_s


class PolicyProcess:
    """The control process's end: starts the policy, asks it, and knows whether it runs."""

    def __init__(self, recipe: PolicyRecipe, channels: Channels) -> None:
        """Stores what to start."""
        self.recipe = recipe
        self.latency_s = math.nan
        self._channels = channels
        self._child = Child("policy", "the policy's process")

    @property
    def pid(self) -> int | None:
        """Process id; None when it does not run."""
        return self._child.pid

    @property
    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self._child.is_alive

    def open(self, instruction: str, timeout_s: float = _LOAD_TIMEOUT_S) -> PolicySpec:
        """Starts the process and blocks until the policy is loaded and has answered twice; returns what it needs.

        Raises:
            RoboalignError: It cannot be loaded; nothing is left running.
        """
        fds = self._channels.fds
        config = {
            "recipe": asdict(self.recipe),
            "robot": asdict(self._channels.spec),
            "fds": fds,
            "instruction": instruction,
        }
        self._child.start(config, tuple(fds.values()))
        try:
            answer = self._child.answer(timeout_s)
        except BaseException:
            self.close()
            raise
        self.latency_s = float(cast(float, answer["latency_s"]))
        return policy_spec_from_json(answer["spec"], "the policy's spec")

    def ask(self) -> None:
        """Says that there is something new to look at; does not wait."""
        self._child.ring()

    def close(self) -> None:
        """Ends the process. Idempotent."""
        self._child.close()


def serve_policy(parent: Parent, parent_pid: int) -> None:
    """The other end: makes the policy, then answers each question until the control process is gone."""
    die_with_parent(parent_pid)
    with suppress(OSError):
        os.nice(_NICENESS)
    config = parent.first()
    instruction = str(config["instruction"])
    try:
        spec = cast(RobotSpec, from_json(RobotSpec, config["robot"], "robot"))
        channels = Channels(spec, cast(Mapping[str, int], config["fds"]))
        recipe = cast(Mapping[str, Any], config["recipe"])
        policy = PolicyRecipe(factory=recipe["factory"], settings=recipe["settings"]).make()
        latency_s = warm_up(policy, spec, instruction)
    except Exception as err:  # noqa: BLE001 - said where the user is
        parent.tell_error(err)
        return
    policy.reset()
    listen = getattr(policy, "listen", None)  # a policy that can be heard while it thinks, as `sdk.Policy`
    if callable(listen):
        listen(lambda text: write_words(channels, text))
    threading.Thread(target=_beat, args=(channels,), daemon=True).start()
    parent.tell({"latency_s": latency_s, "spec": asdict(policy.spec)})
    answered = 0
    with suppress(EOFError):
        while True:
            parent.wait()
            answered = _answer(channels, policy, instruction, answered)
    close = getattr(policy, "close", None)
    if callable(close):
        close()


def _beat(channels: Channels) -> None:
    beat = channels.board["policy_beat_s"]
    while True:
        beat[0] = time.monotonic()
        time.sleep(BEAT_S)


def _answer(channels: Channels, policy: Actor, instruction: str, answered: int) -> int:
    """Answers from the newest observation if there is a new question; returns the number of the one answered from."""
    board = channels.board
    if int(board["question"][0]) <= answered:
        return answered
    sequence, record = channels.observations.pin()
    if record is None:
        return answered
    begun_s = time.monotonic()
    board["busy_since_s"][0] = begun_s
    try:
        chunk = _ask(policy, observation_of(record, channels.spec, instruction))
    finally:
        board["busy_since_s"][0] = 0.0
    write_chunk(channels, chunk, sequence, record, begun_s)
    channels.observations.unpin()
    board["answered"][0] = sequence
    return sequence


def _ask(policy: Actor, observation: Observation) -> ActionChunk:
    try:
        chunk: object = policy.act(observation)
        if not isinstance(chunk, ActionChunk):
            raise DataError(f"policy returned {type(chunk).__name__}, expected ActionChunk")
        if len(chunk.actions) > MAX_STEPS:
            raise DataError(f"policy returned {len(chunk.actions)} actions, expected at most {MAX_STEPS}")
    except Exception as err:  # noqa: BLE001 - the arm holds, and the reason is told
        return ActionChunk.hold(f"policy raised {type(err).__name__}: {err}", rate_hz=math.nan)
    return chunk


def observation_of(record: Records, spec: RobotSpec, instruction: str) -> Observation:
    """Returns an observation whose arrays lie in the record."""
    pictures = record["images"][0] if spec.camera_names else ()
    return Observation(
        images=dict(zip(spec.camera_names, pictures, strict=True)),
        state=record["state"][0],
        joint_pos_rad=record["joints"][0],
        instruction=instruction,
        time_s=float(record["time_s"][0]),
        commanded=None if math.isnan(record["commanded"][0][0]) else record["commanded"][0],
    )


def write_chunk(
    channels: Channels, chunk: ActionChunk, sequence: int, observation: Records, begun_s: float = math.nan
) -> None:
    """Puts an answer that was begun at `begun_s` into the ring, with the age of what it and its thought are about."""
    row = channels.chunks.begin()
    row["observation"][0] = sequence
    row["moves"][0], row["observed_s"][0] = observation["moves"][0], observation["time_s"][0]
    row["computed_s"][0] = time.monotonic()
    use = getattr(chunk, "thought_use", None)  # of a policy that thinks beside its actions
    age_s = None if use is None else use.image_age_s
    if age_s is not None:
        row["thought_s"][0] = begun_s - age_s
    else:
        row["thought_s"][0] = observation["time_s"][0] if chunk.thought else math.nan
    row["rate_hz"][0] = chunk.rate_hz
    row["steps"][0] = len(chunk.actions)
    row["source"][0] = SOURCES.index(chunk.source if chunk.source in SOURCES else "other")
    for index, part in enumerate(LATENCIES):
        row["latency_s"][0][index] = chunk.latency_s.get(part, math.nan)
    row["actions"][0][: len(chunk.actions)] = chunk.actions
    put_text(row, "reason", chunk.reason)
    put_text(row, "thought", chunk.thought)
    channels.chunks.commit(is_checked=True)


def write_words(channels: Channels, text: str) -> None:
    """Puts a thought, as far as it is written, into the ring."""
    put_text(channels.words.begin(), "thought", text)
    channels.words.commit(is_checked=True)
