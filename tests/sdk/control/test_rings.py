"""Shared-memory rings: what is read is whole, what is pinned stays, what is gone is said, nothing is left behind."""

import subprocess
import sys
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from roboalign.sdk.control.rings import Ring
from roboalign.sdk.errors import ConfigError

RECORD = np.dtype([("number", "<u8"), ("values", "<u8", (64,))])


@pytest.fixture
def ring():
    ring = Ring(RECORD, 4)
    yield ring
    ring.close()


def write(ring, number, **options):
    row = ring.begin()
    row["number"][0] = number
    row["values"][0] = number
    return ring.commit(**options)


def test_the_newest_record_is_read(ring):
    into = np.zeros(1, RECORD)
    assert (ring.newest, ring.copy(into), ring.pin()) == (0, 0, (0, None))
    assert [write(ring, number) for number in (7, 8)] == [1, 2]
    assert ring.copy(into) == 2
    assert into["number"][0] == 8
    assert (into["values"] == 8).all()


def test_a_record_is_not_seen_before_it_is_shown(ring):
    write(ring, 7)
    ring.begin()["number"][0] = 9
    into = np.zeros(1, RECORD)
    assert ring.copy(into) == 1
    assert into["number"][0] == 7


def test_an_overwritten_record_is_gone(ring):
    into = np.zeros(1, RECORD)
    for number in range(1, 8):
        write(ring, number)
    assert [ring.copy(into, number) for number in range(1, 8)] == [0, 0, 0, 4, 5, 6, 7]


def test_a_pinned_record_stays_and_the_writer_passes_over_it(ring):
    write(ring, 1)
    sequence, record = ring.pin()
    for number in range(2, 20):
        write(ring, number)
    assert sequence == 1
    assert record["number"][0] == 1
    assert (record["values"] == 1).all()
    ring.unpin()
    for number in range(20, 26):
        write(ring, number)
    assert record["number"][0] != 1


def test_a_record_is_written_and_read_as_its_bytes(ring):
    given, into = np.zeros(1, RECORD), np.zeros(1, RECORD)
    given["number"], given["values"] = 7, 9
    assert ring.write(given.view(np.uint8), is_checked=True) == 1
    assert ring.copy(into.view(np.uint8)) == 1
    assert into == given
    ring.records[1]["values"][0, 3] = 0
    assert ring.copy(into.view(np.uint8)) == 0, "the checksum is of the bytes"


def test_a_record_is_pinned_by_its_number(ring):
    for number in range(1, 7):
        write(ring, number)
    assert ring.pin(2) == (0, None)
    sequence, record = ring.pin(4)
    write(ring, 7), write(ring, 8)
    assert (sequence, record["number"][0], ring.has(4), ring.has(2)) == (4, 4, True, False)


def test_a_checked_record_that_was_changed_is_refused(ring):
    into = np.zeros(1, RECORD)
    write(ring, 7, is_checked=True)
    assert ring.copy(into) == 1
    ring._records[1]["values"][0, 3] = 0
    assert ring.copy(into) == 0


def test_a_record_that_is_overwritten_while_it_is_copied_is_read_again(ring, monkeypatch):
    real, writes = np.copyto, iter((5, 6, 7, 8))

    def copy_slowly(into, source):
        real(into[..., :1], source[..., :1])
        for number in writes:
            write(ring, number)
        real(into, source)

    into = np.zeros(1, RECORD)
    write(ring, 1)
    monkeypatch.setattr(np, "copyto", copy_slowly)
    assert ring.copy(into) == 5
    assert into["number"][0] == 8
    writes = iter((9, 10, 11, 12))
    assert ring.copy(into, 5) == 0, "a record that was asked for by number is not replaced by another"


def test_a_ring_that_is_too_small_is_refused():
    with pytest.raises(ConfigError, match="3 slots is too small"):
        Ring(RECORD, 3)


def test_threads_that_use_rings_of_their_own_do_not_meet(often):
    """All rings of a process once shared the lock that orders memory: a thread that came between two others raised."""
    rings, asked = [Ring(RECORD, 4) for _ in range(5)], []

    def ask(ring) -> None:
        write(ring, 1)
        asked.append(all(ring.has(1) for _ in range(50_000)))

    threads = [Thread(target=ask, args=(ring,)) for ring in rings]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert asked == [True] * 5


READER = """
import sys
import numpy as np
from tests.sdk.control.test_rings import RECORD
from roboalign.sdk.control.rings import Ring
ring, into, torn, read = Ring(RECORD, 4, int(sys.argv[1])), np.zeros(1, RECORD), 0, 0
for _ in range(20000):
    if ring.copy(into if _ % 2 else into.view(np.uint8)):
        read += 1
        torn += not (into["values"] == into["number"]).all()
    _, record = ring.pin()
    if record is not None:
        number = record["number"][0]
        torn += not (record["values"] == number).all()
    ring.unpin()
print(read, torn)
"""


def test_no_reader_in_another_process_ever_sees_half_a_record(ring):
    """The writer never pauses."""
    command = [sys.executable, "-c", READER, str(ring.fd)]
    number = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, pass_fds=(ring.fd,)) as reader:
        while reader.poll() is None:
            number += 1
            write(ring, number)
        read, torn = map(int, reader.stdout.read().split())
    assert torn == 0
    assert read > 1000


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_closed_ring_leaves_no_descriptor(ring):
    before = descriptors()
    other = Ring(RECORD, 4)
    assert descriptors() > before
    other.close()
    other.close()
    del other
    assert descriptors() == before
