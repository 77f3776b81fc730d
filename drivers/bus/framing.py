"""Packets in a stream of bytes: what both codecs share, and the parser that resynchronises after garbage.

A codec brings one function, `measure`: what starts at this place, and how long is it? From that, `scan` finds every
packet of a buffer. Two rules keep damage from becoming data. After a bad checksum the search goes on one byte later, so
a packet behind the damage is found. And once all bytes are in (`is_final`), a packet whose tail is the head of another
valid one is dropped together with it: a reply that lost its last bytes would otherwise borrow those of the next one,
which an 8-bit sum accepts once in 256 times.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

__all__ = ["Frame", "Measure", "Scan", "StreamParser", "scan"]

T = TypeVar("T")


class Frame(NamedTuple):
    """A packet whose checksum was right."""

    id: int
    """The id byte."""
    code: int
    """The byte after the length: an instruction, or Feetech's error byte."""
    data: bytes
    """Everything between that byte and the checksum, without stuffing."""


class Measure(NamedTuple):
    """What a codec says of the first place in a buffer, at or after a given one, where a packet may start."""

    start: int
    """Where a packet may start; everything before it is garbage."""
    end: int
    """Where it ends when `frame` is given or bytes are still missing; else `start + 1`, where to look on."""
    frame: Frame | None
    """The packet, None when it is incomplete or wrong."""
    is_incomplete: bool
    """True when more bytes could complete it."""


class Scan(NamedTuple):
    """What is in a buffer."""

    frames: list[Frame]
    """Every packet with a right checksum, in order."""
    num_used: int
    """Bytes that need not be looked at again; the rest may be the beginning of a packet."""
    num_discarded: int
    """How many of them belonged to no packet."""


def scan(measure: Callable[[bytes, int], Measure], data: bytes, *, is_final: bool = False) -> Scan:
    """Returns the packets of a buffer.

    Args:
        measure: The codec's rule.
        data: All bytes so far.
        is_final: No more will come: what is incomplete is garbage, and overlapping packets are both dropped.
    """
    frames: list[Frame] = []
    at = num_kept = 0
    while at < len(data):
        found = measure(data, at)
        if found.frame is not None:
            rival_end = _rival(measure, data, found) if is_final else 0
            if rival_end:
                at = rival_end
                continue
            frames.append(found.frame)
            num_kept += found.end - found.start
            at = found.end
        elif found.is_incomplete and not is_final:
            return Scan(frames, found.start, found.start - num_kept)
        else:
            at = max(found.start + 1, at + 1) if found.is_incomplete else max(found.end, at + 1)
    return Scan(frames, len(data), len(data) - num_kept)


def _rival(measure: Callable[[bytes, int], Measure], data: bytes, found: Measure) -> int:
    """Returns the end of a valid packet that starts inside `found` and ends behind it, 0 when there is none."""
    at = found.start + 1
    while at < found.end:
        other = measure(data, at)
        if other.start >= found.end:
            return 0
        if other.frame is not None and other.end > found.end:
            return other.end
        at = other.start + 1
    return 0


class StreamParser(Generic[T]):
    """Takes bytes in any pieces and returns packets; implements `roboalign.drivers.bus.types.Parser`."""

    def __init__(self, measure: Callable[[bytes, int], Measure], wrap: Callable[[Frame], T | None]) -> None:
        """Stores the codec's rule, and what makes a packet of a frame or refuses it with None."""
        self._measure = measure
        self._wrap = wrap
        self._rest = b""
        self._num_discarded = 0

    @property
    def num_discarded(self) -> int:
        """Bytes that belonged to no valid packet, so far; a packet that was refused counts too."""
        return self._num_discarded

    def feed(self, data: bytes) -> list[T]:
        """Takes the next bytes and returns the packets that they complete."""
        return self._take(data, is_final=False)

    def flush(self) -> list[T]:
        """Gives up what is incomplete, and returns the packets that it hid."""
        return self._take(b"", is_final=True)

    def clear(self) -> int:
        """Forgets what is incomplete; returns how many bytes that were, which count as discarded."""
        num_bytes = len(self._rest)
        self._num_discarded += num_bytes
        self._rest = b""
        return num_bytes

    def _take(self, data: bytes, *, is_final: bool) -> list[T]:
        held = self._rest + data if self._rest else bytes(data)
        result = scan(self._measure, held, is_final=is_final)
        self._rest = held[result.num_used :]
        self._num_discarded += result.num_discarded
        packets: list[T] = []
        for frame in result.frames:
            packet = self._wrap(frame)
            if packet is None:
                self._num_discarded += len(frame.data)
            else:
                packets.append(packet)
        return packets
