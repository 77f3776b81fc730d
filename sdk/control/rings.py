"""Rings of fixed-size records in memory that processes share: one writer, readers that never wait, and no pickle.

The memory has no name, so it is gone with the last process that holds it, however that one ended. A record is written
into the oldest slot; its sequence number is taken away before and put back after, so that a reader notices a record
that changed while it was copied. A reader may pin one record and use it where it lies: the writer then passes over it.
Nothing here allocates an array once a ring is made.

Python has no memory barriers of its own; `Ring._fence` borrows those of a lock. On x86-64 they are hardly needed. That
they suffice on ARM is unverified, which is why what moves an arm also carries a checksum.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import threading
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roboalign.sdk.errors import ConfigError

__all__ = ["Records", "Ring", "share", "shared_memory"]

Records = NDArray[np.void]
"""Structured array: one element is one record."""

_NEWEST, _PINNED, _NUMBERS = 0, 1, 2
"""Where sequence numbers lie: of the newest record and the pinned one; then those of the slots, then checksums."""
_ALIGNMENT = 64  # bytes: a cache line, so that slots do not share one
_COPY_TRIES = 4


def share(num_bytes: int) -> int:
    """Returns a file descriptor of that much zeroed memory without a name; children get it by `pass_fds`."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("roboalign")
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    os.ftruncate(fd, num_bytes)
    return fd


def shared_memory(fd: int, dtype: np.dtype[np.void], count: int = 1) -> Records:
    """Returns the records that lie in the memory behind `fd`; they stay as long as somebody refers to them."""
    memory = mmap.mmap(fd, dtype.itemsize * count)
    return np.frombuffer(memory, dtype=dtype, count=count)


class Ring:
    """Records of one type in shared memory. One process writes; any number read; one reader may pin."""

    def __init__(self, record: np.dtype[np.void], slots: int, fd: int | None = None) -> None:
        """Makes a ring, or opens the one behind `fd`, which must have been made with the same arguments.

        Raises:
            ConfigError: There are too few slots: the newest, a pinned one and the one being written must all fit.
        """
        if slots < 4:
            raise ConfigError(f"a ring of {slots} slots is too small, expected at least 4")
        size = -(-record.itemsize // _ALIGNMENT) * _ALIGNMENT
        begin = -(-8 * (_NUMBERS + 2 * slots) // _ALIGNMENT) * _ALIGNMENT
        self.fd = share(begin + size * slots) if fd is None else fd
        self.slots, self.record = slots, record
        memory = memoryview(mmap.mmap(self.fd, begin + size * slots))
        self._numbers = memory[:begin].cast("Q")
        places = [memory[at : at + record.itemsize] for at in range(begin, begin + size * slots, size)]
        self._records: list[Records] = [np.frombuffer(place, record) for place in places]
        self._bytes: list[NDArray[np.uint8]] = [np.frombuffer(place, np.uint8) for place in places]
        self._writing = 0
        self._order = threading.Lock()  # of this ring alone: a thread never waits for one that uses another

    @property
    def records(self) -> tuple[Records, ...]:
        """The records where they lie, one for each slot: what `begin` returns is one of them."""
        return tuple(self._records)

    @property
    def newest(self) -> int:
        """Sequence number of the newest record; 0 when there is none. Numbers rise, and may leave some out."""
        return self._numbers[_NEWEST]

    def sequence_in(self, slot: int) -> int:
        """Returns the number of the record in a slot; 0 while there is none, or while it is being written."""
        return self._numbers[_NUMBERS + slot]

    def begin(self) -> Records:
        """Returns the record to fill in; readers do not see it before `commit`. The writer's alone."""
        sequence = self.newest + 1
        while not self._claim(sequence % self.slots):
            sequence += 1
        self._writing = sequence
        return self._records[sequence % self.slots]

    def _fence(self) -> None:
        """Keeps what was written before from being seen after what is read or written next.

        That takes a release and then an acquire, in this order, and must not fail when threads meet in it.
        """
        with self._order:
            pass
        with self._order:
            pass

    def _claim(self, slot: int) -> bool:
        """Takes a slot for writing, unless its record is pinned."""
        was = self._numbers[_NUMBERS + slot]
        self._numbers[_NUMBERS + slot] = 0
        self._fence()
        if was and self._numbers[_PINNED] == was:
            self._numbers[_NUMBERS + slot] = was
            return False
        return True

    def commit(self, *, is_checked: bool = False) -> int:
        """Shows the record to readers, with a checksum if asked for, and returns its sequence number."""
        sequence, slot = self._writing, self._writing % self.slots
        self._numbers[_NUMBERS + self.slots + slot] = _checksum(self._bytes[slot]) if is_checked else 0
        self._fence()
        self._numbers[_NUMBERS + slot] = sequence
        self._fence()
        self._numbers[_NEWEST] = sequence
        return sequence

    def write(self, record: NDArray[np.uint8], *, is_checked: bool = False) -> int:
        """Shows a copy of a record that is given as its bytes."""
        self.begin()
        np.copyto(self._bytes[self._writing % self.slots], record)
        return self.commit(is_checked=is_checked)

    def copy(self, into: Records | NDArray[np.uint8], sequence: int | None = None) -> int:
        """Copies a record, by default the newest, and returns its number; 0 when it is not there any more, or torn.

        `into` is a record, or the bytes of one (`record.view(np.uint8)`), which takes a tenth of the time: fields are
        copied one by one.
        """
        records: Sequence[NDArray[Any]] = self._bytes if into.dtype == np.uint8 else self._records
        for _ in range(_COPY_TRIES):
            wanted = self.newest if sequence is None else sequence
            if wanted == 0 or not self.has(wanted):
                if sequence is not None or wanted == 0:
                    return 0
                continue
            slot = wanted % self.slots
            np.copyto(into, records[slot])
            checksum = self._numbers[_NUMBERS + self.slots + slot]
            if self.has(wanted) and (not checksum or checksum == _checksum(into)):
                return wanted
        return 0

    def pin(self, sequence: int | None = None) -> tuple[int, Records | None]:
        """Pins a record, by default the newest, and returns it where it lies, with its number; 0 when it is gone.

        It stays until the next `pin` or `unpin`.
        """
        for _ in range(_COPY_TRIES):
            wanted = self.newest if sequence is None else sequence
            if wanted == 0:
                break
            self._numbers[_PINNED] = wanted
            if self.has(wanted):
                return wanted, self._records[wanted % self.slots]
        return 0, None

    def has(self, sequence: int) -> bool:
        """Whether the record with this number is there and whole: asked after it was used, that it was whole then."""
        self._fence()
        is_there: bool = self._numbers[_NUMBERS + sequence % self.slots] == sequence
        self._fence()
        return is_there

    def unpin(self) -> None:
        """Lets the writer have the pinned record."""
        self._numbers[_PINNED] = 0

    def close(self) -> None:
        """Closes the descriptor; the memory goes with the last array that lies in it."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _checksum(record: NDArray[Any]) -> int:
    """Returns a number that is never 0, which means that there is none."""
    return zlib.crc32(record.data) + 1
