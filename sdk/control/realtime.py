"""What the operating system grants a process that must not be late, and the words for what it refused."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

__all__ = ["Granted", "die_with_parent", "high_priority", "is_real_time", "quiet_memory", "raise_priority", "real_time"]

_ALL_PAGES = 1 | 2  # MCL_CURRENT, MCL_FUTURE
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Granted:
    """What was asked for and got."""

    scheduler: str
    """`fifo`, `nice`, or `normal` when neither was permitted."""
    is_memory_locked: bool
    """Whether pages stay in memory (`mlockall`)."""
    is_gc_frozen: bool
    """Whether the garbage collector leaves the loop alone."""

    def __str__(self) -> str:
        refused = [] if self.scheduler == "fifo" else ["SCHED_FIFO (needs CAP_SYS_NICE or an rtprio limit)"]
        refused += [] if self.is_memory_locked else ["mlockall (needs CAP_IPC_LOCK or a memlock limit)"]
        got = [self.scheduler] + ["memory locked"] * self.is_memory_locked + ["gc frozen"] * self.is_gc_frozen
        return ", ".join(got) + (f"; refused: {', '.join(refused)}" if refused else "")


def raise_priority() -> str:
    """Lets this thread run before others, as far as it may, and returns `fifo`, `nice` or `normal`.

    With `CAP_SYS_NICE` or an rtprio limit the lowest real-time priority, under which Linux leaves other processes a
    twentieth of the time whatever happens; else a niceness of -5, which only root may take. Threads and processes that
    it starts afterwards are normal again.
    """
    try:
        policy = os.SCHED_FIFO | getattr(os, "SCHED_RESET_ON_FORK", 0)
        os.sched_setscheduler(0, policy, os.sched_param(os.sched_get_priority_min(os.SCHED_FIFO)))
    except (AttributeError, OSError):
        try:
            os.nice(-5)
        except OSError:
            return "normal"
        return "nice"
    return "fifo"


def is_real_time() -> bool:
    """Whether this thread runs before all programs of normal priority."""
    if not hasattr(os, "sched_getscheduler"):
        return False
    return os.sched_getscheduler(0) & ~getattr(os, "SCHED_RESET_ON_FORK", 0) == os.SCHED_FIFO


@contextmanager
def real_time() -> Iterator[Granted]:
    """Asks for all of `quiet_memory` and `high_priority`, and gives it back after; yields what was granted."""
    with quiet_memory() as is_locked, high_priority() as scheduler:
        yield Granted(scheduler=scheduler, is_memory_locked=is_locked, is_gc_frozen=True)


@contextmanager
def quiet_memory() -> Iterator[bool]:
    """Locks memory and stops the garbage collector, gives both back after, and yields whether memory was locked.

    All that is mapped is read in, which takes seconds where the disk is slow: enter it before anything waits.
    """
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield _memory("mlockall", _ALL_PAGES)
    finally:
        _memory("munlockall")
        gc.enable()
        gc.unfreeze()


@contextmanager
def high_priority() -> Iterator[str]:
    """Raises the priority of this thread, gives it back after, and yields the scheduler that was granted.

    Nothing is refused loudly, because an arm that is late now and then is still an arm.
    """
    before = os.sched_getscheduler(0) if hasattr(os, "sched_getscheduler") else None
    try:
        yield raise_priority()
    finally:
        if before is not None:
            with suppress(OSError):
                os.sched_setscheduler(0, before, os.sched_param(0))


def _memory(call: str, *arguments: int) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    with suppress(OSError, AttributeError):
        return int(getattr(ctypes.CDLL(None), call)(*arguments)) == 0
    return False


def die_with_parent(parent_pid: int) -> None:
    """Lets the kernel kill this process when the thread that started it ends; where it cannot, nothing happens."""
    if sys.platform.startswith("linux"):
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        raise SystemExit("the process that started this one is gone")
