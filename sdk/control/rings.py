"""Rings of fixed-size records in memory that processes share: one writer, readers that never wait, and no pickle.

The memory has no name, so it is gone with the last process that holds it, however that one ended. A record is written
into the oldest slot; its sequence number is taken away before and put back after, so that a reader notices a record
that changed while it was copied. A reader may pin one record and use it where it lies: the writer then passes over it.
Nothing here allocates an array once a ring is made.

Python has no memory barriers of its own; `_fence` borrows those of a lock. On x86-64 they are hardly needed. That they
suffice on ARM is unverified, which is why what moves an arm also carries a checksum.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import threading
import zlib

import numpy as np
from numpy.typing import NDArray

from roboalign.sdk.errors import ConfigError

__all__ = ["Records", "Ring", "share", "shared_memory"]

Records = NDArray[np.void]
"""Structured array: one element is one record."""

_HEADER = np.dtype([("newest", "<u8"), ("pinned", "<u8")])
_ALIGNMENT = 64  # bytes: a cache line, so that slots do not share one
_COPY_TRIES = 4

_lock = threading.Lock()
_lock.acquire()


def _fence() -> None:
    """Keeps what was written before from being seen after what is written next: a release, then an acquire."""
    _lock.release()
    _lock.acquire()


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
        fields = [("sequence", "<u8"), ("checksum", "<u8"), ("record", record)]
        size = -(-(record.itemsize + 16) // _ALIGNMENT) * _ALIGNMENT
        slot = np.dtype({"names": [n for n, _ in fields], "formats": [f for _, f in fields], "offsets": [0, 8, 16],
                         "itemsize": size})  # fmt: skip
        whole = np.dtype({"names": ["header", "slots"], "formats": [_HEADER, (slot, (slots,))],
                          "offsets": [0, _ALIGNMENT], "itemsize": _ALIGNMENT + size * slots})  # fmt: skip
        self.fd = share(whole.itemsize) if fd is None else fd
        self.slots, self.record = slots, record
        memory = shared_memory(self.fd, whole)
        self._header = memory["header"]
        rows = memory["slots"][0]
        self._sequences, self._checksums = rows["sequence"], rows["checksum"]
        self._records: list[Records] = [rows["record"][index : index + 1] for index in range(slots)]
        self._newest, self._pinned = self._header["newest"], self._header["pinned"]
        self._writing = 0

    @property
    def records(self) -> tuple[Records, ...]:
        """The records where they lie, one for each slot: what `begin` returns is one of them."""
        return tuple(self._records)

    @property
    def newest(self) -> int:
        """Sequence number of the newest record; 0 when there is none. Numbers rise, and may leave some out."""
        return int(self._newest[0])

    def begin(self) -> Records:
        """Returns the record to fill in; readers do not see it before `commit`. The writer's alone."""
        sequence = self.newest + 1
        while not self._claim(sequence % self.slots):
            sequence += 1
        self._writing = sequence
        return self._records[sequence % self.slots]

    def _claim(self, slot: int) -> bool:
        """Takes a slot for writing, unless its record is pinned."""
        was = int(self._sequences[slot])
        self._sequences[slot] = 0
        _fence()
        if was and int(self._pinned[0]) == was:
            self._sequences[slot] = was
            return False
        return True

    def commit(self, *, is_checked: bool = False) -> int:
        """Shows the record to readers, with a checksum if asked for, and returns its sequence number."""
        sequence, slot = self._writing, self._writing % self.slots
        self._checksums[slot] = _checksum(self._records[slot]) if is_checked else 0
        _fence()
        self._sequences[slot] = sequence
        _fence()
        self._newest[0] = sequence
        return sequence

    def copy(self, into: Records, sequence: int | None = None) -> int:
        """Copies a record, by default the newest, and returns its number; 0 when it is not there any more, or torn."""
        for _ in range(_COPY_TRIES):
            wanted = self.newest if sequence is None else sequence
            slot = wanted % self.slots
            if wanted == 0 or int(self._sequences[slot]) != wanted:
                if sequence is not None or wanted == 0:
                    return 0
                continue
            _fence()
            np.copyto(into, self._records[slot])
            checksum = int(self._checksums[slot])
            _fence()
            if int(self._sequences[slot]) == wanted and checksum in (0, _checksum(into)):
                return wanted
        return 0

    def pin(self) -> tuple[int, Records | None]:
        """Pins the newest record and returns it where it lies; it stays until the next `pin` or `unpin`."""
        for _ in range(_COPY_TRIES):
            wanted = self.newest
            if wanted == 0:
                break
            self._pinned[0] = wanted
            _fence()
            if int(self._sequences[wanted % self.slots]) == wanted:
                return wanted, self._records[wanted % self.slots]
        return 0, None

    def unpin(self) -> None:
        """Lets the writer have the pinned record."""
        self._pinned[0] = 0

    def close(self) -> None:
        """Closes the descriptor; the memory goes with the last array that lies in it."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _checksum(record: Records) -> int:
    """Returns a number that is never 0, which means that there is none."""
    return zlib.crc32(record.data) + 1
