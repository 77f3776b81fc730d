"""The wire of a virtual arm: half-duplex bytes with their times, several devices, and what goes wrong between them.

`VirtualLine` has no thread and no clock of its own: whoever holds it says what time it is. `VirtualPort` (in memory)
and `roboalign.drivers.virtual.server` (behind a pseudo-terminal) do that.

With `has_byte_time` a byte takes ten bit times, devices wait their return delay, and a host that speaks while a device
does garbles both. A reply is delivered when its last byte is there, as USB adapters do. Without it, replies are there
at once. A device that is missing in a sync read costs no time here; in hardware the next one waits a little.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass, field

from roboalign.drivers.bus.types import Instruction
from roboalign.drivers.virtual.arm import VirtualArm
from roboalign.drivers.virtual.dialects import Dialect, Slot
from roboalign.drivers.virtual.faults import REPLY_FAULTS, FaultPlan, LineFault

__all__ = ["Burst", "LineStats", "VirtualLine"]

_ON_REPLY = tuple(kind for kind in REPLY_FAULTS if kind != "echo")
_SILENCE_S = 0.05  # half a packet that is not continued for so long is forgotten by the devices
_BITS_PER_BYTE = 10


@dataclass(slots=True)
class Burst:
    """Bytes that arrive at the host in one piece."""

    arrival_s: float
    """When."""
    data: bytes
    """Which."""
    start_s: float
    """When the first of them is on the wire."""

    def __lt__(self, other: Burst) -> bool:
        return self.arrival_s < other.arrival_s


@dataclass(kw_only=True, slots=True)
class LineStats:
    """Counts since the line was made."""

    requests: int = 0
    """Instructions that the devices understood."""
    replies: int = 0
    """Packets that devices sent."""
    bytes_in: int = 0
    """Bytes from the host."""
    bytes_out: int = 0
    """Bytes to the host."""
    collisions: int = 0
    """Times that the host spoke while a device did."""
    steps: int = 0
    """Control steps in lockstep."""
    struck: dict[str, int] = field(default_factory=dict)
    """How often each fault happened."""


class VirtualLine:
    """One bus with its devices; see the module."""

    def __init__(
        self,
        arm: VirtualArm,
        dialect: Dialect,
        *,
        faults: FaultPlan | None = None,
        step_s: float | None = None,
        has_byte_time: bool = False,
        baud_hz: int | None = None,
    ) -> None:
        """Puts the servos of an arm on a line.

        Args:
            arm: Servos and joints.
            dialect: The protocol.
            faults: What goes wrong; more can be added at run time.
            step_s: Lockstep: each sync read of the present position lets so much time pass for the arm, nothing else
                does. None: the arm's time is the line's.
            has_byte_time: See the module.
            baud_hz: The host's rate; devices with another one do not hear it. None: rates do not matter.
        """
        self.arm = arm
        self.dialect = dialect
        self.faults = faults or FaultPlan()
        self.step_s = step_s
        self.has_byte_time = has_byte_time
        self.baud_hz = baud_hz
        self.is_plugged = True
        """False while the adapter is pulled out."""
        self.num_replugs = 0
        """How often it was put in again; whoever opened the port before has lost it."""
        self.max_lag_s = math.inf
        """How far the arm's time may be behind the line's; what is more is left out, on a machine that is too slow."""
        self.stats = LineStats(struck=self.faults.num_struck)
        self.log: Callable[[str, float, bytes], None] | None = None
        """Called with `>` or `<`, the arm's time and bytes: an instruction without its frame (id, code, parameters), or
        what devices put on the wire, damaged if it was. In lockstep equal instructions give equal calls."""
        self._parser = dialect.parser()
        self._heard_s = 0.0
        self._pending: list[Burst] = []
        self._held = b""
        self._queue_s = 0.0
        self._cut_after: int | None = None

    def receive(self, data: bytes, now_s: float) -> None:
        """Takes what the host sends, and lets the devices do it."""
        if not self.is_plugged or not data:
            return
        self.stats.bytes_in += len(data)
        data = self._cut(data)
        if now_s - self._heard_s > _SILENCE_S:
            self._parser.clear()
        self._heard_s = now_s
        if self.has_byte_time and self._collide(now_s):
            return
        if self.faults.has_replies and self.faults.strike(("echo",), None):
            self._push(data, now_s, now_s + len(data) * self._byte_s)
        for instruction in self._parser.feed(data):
            self._obey(instruction, now_s + len(data) * self._byte_s)
        if self._cut_after == 0:
            self.unplug()

    def take(self, now_s: float) -> bytes:
        """Returns what has arrived at the host by now, and forgets it."""
        pending = self._pending
        if not pending or not self.is_plugged:
            return b""
        num = 0
        while num < len(pending) and pending[num].arrival_s <= now_s:
            num += 1
        data = self._cut(b"".join(burst.data for burst in pending[:num]))
        del pending[:num]
        if data:
            self.stats.bytes_out += len(data)
        return data

    def next_s(self) -> float | None:
        """Returns when the next bytes arrive, None when nothing is under way."""
        return self._pending[0].arrival_s if self._pending else None

    def pass_time(self, now_s: float) -> None:
        """Tells a line that is not in lockstep what time it is, so that the arm goes on while nobody asks."""
        if self.step_s is None:
            self.arm.advance_to(now_s, self.max_lag_s)
        self._let_faults_happen()

    def inject(self, fault: LineFault) -> None:
        """Adds a fault; one of the arm that has no time happens at once."""
        self.faults.add(fault)
        self._let_faults_happen()

    def unplug(self, after_bytes: int = 0) -> None:
        """Pulls the adapter out, now or after so many bytes; what was under way is lost."""
        if after_bytes > 0:
            self._cut_after = after_bytes
            return
        self.is_plugged, self._cut_after = False, None
        self.quiet()

    def replug(self) -> None:
        """Puts the adapter in again."""
        self.num_replugs += not self.is_plugged
        self.is_plugged = True

    def quiet(self) -> None:
        """Forgets all bytes under way, as when the host closes and opens the port."""
        self._pending.clear()
        self._held, self._queue_s = b"", 0.0
        self._parser.clear()

    @property
    def _byte_s(self) -> float:
        return _BITS_PER_BYTE / (self.baud_hz or 1_000_000) if self.has_byte_time else 0.0

    def _cut(self, data: bytes) -> bytes:
        """Spends the bytes after which the adapter is pulled out."""
        if self._cut_after is None:
            return data
        data = data[: self._cut_after]
        self._cut_after -= len(data)
        return data

    def cut_if_spent(self) -> None:
        """Pulls the adapter out when the bytes until then are spent; called when what `take` gave was delivered."""
        if self._cut_after == 0:
            self.unplug()

    def _collide(self, now_s: float) -> bool:
        """Garbles what devices are sending while the host speaks; returns True when they were."""
        speaking = [burst for burst in self._pending if burst.start_s < now_s < burst.arrival_s]
        for burst in speaking:
            noise = self.faults.noise(len(burst.data))
            burst.data = bytes(a & b for a, b in zip(burst.data, noise, strict=True))
        self.stats.collisions += bool(speaking)
        return bool(speaking)

    def _let_faults_happen(self) -> None:
        if not self.faults.has_events:
            return
        for fault in self.faults.due(self.arm.time_s, self.stats.requests):
            if fault.kind == "unplug":
                self.unplug(fault.after_bytes)
            elif fault.kind == "replug":
                self.replug()
            else:
                self.arm.suffer(fault)

    def _obey(self, instruction: Instruction, end_s: float) -> None:
        self.stats.requests += 1
        if self.log is not None:
            self.log(">", self.arm.time_s, bytes((instruction.id, instruction.code)) + instruction.data)
        if self.step_s is None:
            self.arm.advance_to(end_s, self.max_lag_s)
        elif self.dialect.is_heartbeat(instruction):
            self.arm.advance(self.step_s)
            self.stats.steps += 1
        if self.dialect.is_heartbeat(instruction):
            self.arm.look()
        self._let_faults_happen()
        if not self.is_plugged:
            return
        slots = self.dialect.respond(instruction, self.arm.hearing(self.baud_hz))
        self.stats.replies += len(slots)
        if self.has_byte_time or self.faults.has_replies or self._held:
            self._speak(slots, end_s)
        elif slots:
            data = b"".join(self._voice(slot) for slot in slots)
            self._push(data, end_s, end_s)
        self.arm.restart_asked()

    def _voice(self, slot: Slot) -> bytes:
        """The bytes of a slot; devices with one id pull the line low together, one of them a little later."""
        data = slot.speeches[0].packet
        for speech in slot.speeches[1:]:
            shift = self.faults.below(3)
            mine = data + b"\xff" * max(0, shift + len(speech.packet) - len(data))
            theirs = b"\xff" * shift + speech.packet
            theirs += b"\xff" * (len(mine) - len(theirs))
            data = bytes(a & b for a, b in zip(mine, theirs, strict=True))
        return data

    def _speak(self, slots: list[Slot], end_s: float) -> None:
        """Puts the packets of devices on the wire, one after another, each with what happens to it."""
        at_s, byte_s = end_s, self._byte_s
        for slot in slots:
            servo = slot.speeches[0].servo
            if self.has_byte_time:
                at_s += servo.return_delay_s + slot.wait_bytes * byte_s
            data = self._voice(slot)
            at_s = self._send(data, servo.id, at_s, self.faults.strike(_ON_REPLY, servo.id))

    def _send(self, data: bytes, id: int, at_s: float, struck: list[LineFault]) -> float:  # noqa: A002
        """Sends one packet with its faults and returns when the wire is free again."""
        kinds = {fault.kind: fault for fault in struck}
        for fault in struck:
            data = self._damage(data, fault)
        wire_s = at_s + len(data) * self._byte_s
        if "drop" in kinds:
            return wire_s
        if "merge" in kinds:
            self._held += data
            return wire_s
        data, self._held = self._held + data, b""
        late = kinds.get("late")
        if late is not None:
            at_s, wire_s = at_s + late.delay_s, wire_s + late.delay_s
        split = kinds.get("split")
        if split is None:
            self._push(data, at_s, wire_s, is_overtaken=late is not None and late.is_overtaken)
            return wire_s if late is None or not late.is_overtaken else wire_s - late.delay_s
        pieces = min(split.pieces or len(data), len(data))
        bounds = [len(data) * k // pieces for k in range(pieces + 1)]
        for k in range(pieces):
            self._push(data[bounds[k] : bounds[k + 1]], at_s, wire_s + k * split.delay_s)
        return wire_s + (pieces - 1) * split.delay_s

    def _damage(self, data: bytes, fault: LineFault) -> bytes:
        """What the bytes of a packet become."""
        if fault.kind == "half":
            return data[: len(data) // 2 if fault.bytes is None else fault.bytes]
        if fault.kind == "noise":
            return self.faults.noise(3 if fault.bytes is None else fault.bytes) + data
        if fault.kind == "garbage":
            return self.faults.noise(max(1, len(data) // 2))
        if fault.kind != "corrupt":
            return data
        damaged = bytearray(data)
        if fault.bytes is not None:
            for place in self.faults.places(len(data), fault.bytes):
                damaged[place] ^= 1 + self.faults.below(255)
        else:
            for place in self.faults.places(len(data) * 8, fault.bits):
                damaged[place // 8] ^= 1 << place % 8
        return bytes(damaged)

    def _push(self, data: bytes, start_s: float, arrival_s: float, *, is_overtaken: bool = False) -> None:
        """Puts bytes under way; unless they may be overtaken, what is sent later queues behind them."""
        if not data:
            return
        if self.log is not None:
            self.log("<", self.arm.time_s, data)
        if not is_overtaken:
            arrival_s = self._queue_s = max(arrival_s, self._queue_s)
        insort(self._pending, Burst(arrival_s, data, start_s))
