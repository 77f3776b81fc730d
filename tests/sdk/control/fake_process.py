"""A robot, a policy's process and a clock that a test moves, for the loop that runs beside a policy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from roboalign.sdk.control import FakeClock
from roboalign.sdk.control.channels import Channels
from roboalign.sdk.control.chunk_writer import ChunkWriter
from roboalign.sdk.control.tick import LoopSettings, RealTimeLoop
from roboalign.sdk.control.watchdog import Guard
from roboalign.sdk.types import ActionChunk, Applied, Observation

STEP = 0.01


class EchoRobot:
    """Writes down its commands with the clock's time, and may break."""

    def __init__(self, spec, clock: FakeClock) -> None:
        self.spec, self.clock = spec, clock
        self.log: list[tuple[str, float]] = []
        self.actions: list[np.ndarray] = []
        self.broken: dict[str, Exception] = {}
        self.target = np.array(spec.home_joint_pos_rad, np.float32)
        self.refuse = lambda action: ()
        self.age_s = 0.0
        self.estops = 0
        self.commanded: np.ndarray | None = None

    def picture_age_s(self) -> float:
        return self.age_s

    def observe(self, instruction: str = "", with_images: bool = True) -> Observation:
        self._maybe_raise("observe")
        images = {name: np.zeros((self.spec.image_size_px,) * 2 + (3,), np.uint8) for name in self.spec.camera_names}
        return Observation(
            images=images,
            state=np.zeros(5, np.float32),
            joint_pos_rad=self.target,
            instruction=instruction,
            time_s=self.clock.now(),
            commanded=self.commanded,
        )

    def act(self, action) -> Applied:
        self.actions.append(np.array(action))
        return self._command("act", action, self.refuse(action))

    def hold(self) -> Applied:
        return self._command("hold", np.zeros(5, np.float32), ("hold",))

    def estop(self) -> None:
        self.estops += 1

    def _command(self, kind: str, action, reasons: tuple[str, ...]) -> Applied:
        self._maybe_raise(kind)
        self.log.append((kind, round(self.clock.now(), 6)))
        return Applied(requested=action, sent=action, joint_target_rad=self.target.copy(), reasons=reasons)

    def _maybe_raise(self, kind: str) -> None:
        if kind in self.broken:
            raise self.broken[kind]


class FakeProcess(FakeClock):
    """A clock with a policy beside it: what it answers after `latency_s` gets into the ring when the time has come."""

    def __init__(self, channels: Channels, *, horizon: int = 8, latency_s: float = 0.15) -> None:
        super().__init__(100.0)
        self.channels, self.horizon, self.latency_s = channels, horizon, latency_s
        self.is_alive = self.is_beating = True
        self.announced: list[float] = []
        self.asked: list[float] = []
        self.answer: Callable[[int], ActionChunk] = self.number
        self.spoil: Callable[[], None] = lambda: None
        self.events: list[tuple[float, Callable[[], object]]] = []
        self._due_s: float | None = None
        self._seen = np.zeros(1, channels.observations.record)
        self._chunks = ChunkWriter(channels.chunks)
        self.board = channels.board
        self.board["policy_beat_s"][0] = self.now()

    def number(self, count: int) -> ActionChunk:
        """Actions that tell the chunk and the step: dx is the chunk's number, dy the step."""
        actions = np.zeros((self.horizon, 5), np.float32)
        actions[:, 0], actions[:, 1] = count * STEP / 10, np.arange(self.horizon) * STEP / 10
        return ActionChunk(actions=actions, rate_hz=10.0, source="flow", thought=f"thought {count}")

    def announce(self) -> None:
        self.announced.append(self.now())

    def ask(self) -> None:
        self.asked.append(self.now())
        self.sequence = self.channels.observations.copy(self._seen)
        self._due_s = self.now() + self.latency_s
        self.board["busy_since_s"][0] = self.now()

    def at(self, time_s: float, event: Callable[[], object]) -> None:
        """Lets something happen at a time after the start."""
        self.events.append((100.0 + time_s, event))
        self.events.sort(key=lambda item: item[0])

    def sleep_until(self, time_s: float) -> None:
        while self.events and self.events[0][0] <= time_s:
            at_s, event = self.events.pop(0)
            self._run_to(at_s)
            event()
            if self.now() < at_s:  # set back: a sleep does not last longer for it
                return
        self._run_to(time_s)

    def _run_to(self, time_s: float) -> None:
        is_running = self.is_alive and self.is_beating
        if is_running and self._due_s is not None and self._due_s <= time_s:
            super().sleep_until(self._due_s)
            self._due_s = None
            self._chunks.put(self.answer(len(self.asked)), self.sequence, self._seen)
            self.spoil()
            self.board["busy_since_s"][0] = 0.0
            self.board["answered"][0] = self.sequence
        super().sleep_until(time_s)
        if is_running:
            self.board["policy_beat_s"][0] = self.now()


class Bench:
    """All of it together."""

    def __init__(self, spec, **policy) -> None:
        self.channels = Channels(spec)
        self.process = FakeProcess(self.channels, **policy)
        self.robot = EchoRobot(spec, self.process)
        self.guard = Guard(self.robot)
        self.loop: RealTimeLoop | None = None

    def run(self, max_ticks: int = 30, *, until=None, **settings):
        self.loop = RealTimeLoop(self.guard, self.process, self.channels, LoopSettings(**settings), self.process)
        return self.loop.run("push the cup", max_ticks=max_ticks, until=until)

    def moves(self) -> list[tuple[int, int]]:
        """Chunk and step of each action that was sent."""
        return [(round(a[0] * 10 / STEP), round(a[1] * 10 / STEP)) for a in self.robot.actions]

    def close(self) -> None:
        self.channels.close()
