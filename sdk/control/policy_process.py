"""The policy in a process of its own: it is made there, from a recipe, and answers through shared memory.

Whatever happens to it, the control process keeps its rhythm: neither the interpreter lock nor a crash, a leak or a hung
call of an inference library reaches the other side. A thread beats, to show that the process runs at all.
"""

from __future__ import annotations

import math
import os
import resource
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
from roboalign.sdk.control.chunk_writer import ChunkWriter
from roboalign.sdk.control.loop import Actor
from roboalign.sdk.control.realtime import die_with_parent, is_real_time
from roboalign.sdk.control.records import MAX_STEPS, put_text
from roboalign.sdk.control.rings import Ring
from roboalign.sdk.control.sight import Sight
from roboalign.sdk.errors import ConfigError, DataError
from roboalign.sdk.typed_json import from_json
from roboalign.sdk.types import ActionChunk, Observation, RobotSpec

__all__ = [
    "PolicyProcess",
    "PolicyRecipe",
    "SpecifiedActor",
    "open_policy",
    "serve_policy",
    "warm_up",
    "write_words",
]

BEAT_S = 0.02
_LOAD_TIMEOUT_S = 600.0
_SOON, _NOW = b"?", b"!"
_READY_S = 2e-3  # reading a robot takes less, or so long that waking up is nothing to it
_REHEARSALS = 2
_RESTS = 32  # questions that are not announced after one for which the process had to make room
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
        self._crowded = channels.board["crowded"]
        self._crowded_before = self._rests = 0
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

    def announce(self) -> None:
        """Says that it will be asked within a moment; does not wait.

        Only where this process has real-time priority: without it, it has to make room itself. And where other programs
        want every processor, a policy that waits without sleeping is made to wait for them, which costs more than it
        saves: after that, some questions come unannounced.
        """
        if not is_real_time():
            return
        crowded = int(self._crowded[0])
        if crowded != self._crowded_before:
            self._crowded_before, self._rests = crowded, _RESTS
        if self._rests:
            self._rests -= 1
        else:
            self._child.ring(_SOON)

    def ask(self) -> None:
        """Says that there is something new to look at; does not wait."""
        self._child.ring(_NOW)

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
    desk = _Desk(channels, policy, instruction)
    with suppress(EOFError):
        while True:
            if parent.wait_for_bell().endswith(_SOON):
                desk.get_ready()
            desk.answer()
    close = getattr(policy, "close", None)
    if callable(close):
        close()


def _beat(channels: Channels) -> None:
    beat = channels.board["policy_beat_s"]
    while True:
        beat[0] = time.monotonic()
        time.sleep(BEAT_S)


class _Desk:
    """Answers questions of the control process."""

    def __init__(self, channels: Channels, policy: Actor, instruction: str) -> None:
        self._policy = policy
        self._sight, self._chunks = Sight(channels, instruction), ChunkWriter(channels.chunks)
        self._question, self._answered = channels.board["question"], channels.board["answered"]
        self._busy_since_s, self._crowded = channels.board["busy_since_s"], channels.board["crowded"]
        self._last = 0
        self._spare = ChunkWriter(Ring(channels.chunks.record, 4))
        self._chunk = ActionChunk.hold("nothing was asked yet", rate_hz=math.nan)

    def get_ready(self) -> None:
        """Waits for a question without sleeping, for a moment, after it has rehearsed the answer.

        What other programs pushed out of the processor's caches takes longer than all the rest.
        """
        until_s, preempted = time.monotonic() + _READY_S, _preempted()
        for _ in range(_REHEARSALS):
            if int(self._question[0]) > self._last:
                break
            if self._sight.look() is not None and self._sight.was_whole():
                self._spare.put(self._chunk, self._sight.sequence, self._sight.fields)
            self._sight.close()
        while int(self._question[0]) <= self._last and time.monotonic() < until_s:
            pass
        if _preempted() > preempted:
            self._crowded[0] += 1

    def answer(self) -> None:
        """Answers from the newest observation, if something was asked since the one that was answered from."""
        if int(self._question[0]) <= self._last:
            return
        sight = self._sight
        begun_s = time.monotonic()
        self._busy_since_s[0] = begun_s
        try:
            observation = sight.look()
            if not sight.sequence:
                return
            chunk = _ask(self._policy, observation) if observation is not None else _unseen()
            if not sight.was_whole():
                chunk = _unseen()
            self._chunk = chunk
        finally:
            self._busy_since_s[0] = 0.0
        self._chunks.put(chunk, sight.sequence, sight.fields, begun_s)
        sight.close()
        self._answered[0] = self._last = sight.sequence


def _preempted() -> int:
    """Returns how often this thread had to make room for another program."""
    return resource.getrusage(getattr(resource, "RUSAGE_THREAD", resource.RUSAGE_SELF)).ru_nivcsw


def _unseen() -> ActionChunk:
    return ActionChunk.hold("what it was asked about was overwritten while it looked at it", rate_hz=math.nan)


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


def write_words(channels: Channels, text: str) -> None:
    """Puts a thought, as far as it is written, into the ring."""
    put_text(channels.words.begin(), "thought", text)
    channels.words.commit(is_checked=True)
