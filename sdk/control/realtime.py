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

__all__ = ["Granted", "die_with_parent", "raise_priority", "real_time"]

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


@contextmanager
def real_time() -> Iterator[Granted]:
    """Asks for real-time priority of this thread, locked memory and a quiet garbage collector; gives them back after.

    Yields what was granted; nothing is refused loudly, because an arm that is late now and then is still an arm.
    """
    gc.collect()
    gc.freeze()
    gc.disable()
    before = os.sched_getscheduler(0) if hasattr(os, "sched_getscheduler") else None
    try:
        yield Granted(scheduler=raise_priority(), is_memory_locked=_memory("mlockall", _ALL_PAGES), is_gc_frozen=True)
    finally:
        _memory("munlockall")
        if before is not None:
            with suppress(OSError):
                os.sched_setscheduler(0, before, os.sched_param(0))
        gc.enable()
        gc.unfreeze()


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
