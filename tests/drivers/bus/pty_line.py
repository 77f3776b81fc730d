"""Servos in memory behind a pseudo-terminal, served by a thread; can be pulled out after any byte, and plugged in."""

from __future__ import annotations

import os
import select
import threading
import tty
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from roboalign.drivers.bus.memory import Line


class PtyLine:
    """A port at `link`, whose target has another name after each `plug`."""

    def __init__(self, line: Line, link: Path) -> None:
        self.line = line
        self.link = link
        self.cut_after: int | None = None
        self._fds: list[int] = []
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()

    def __enter__(self) -> PtyLine:
        self.plug()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.unplug()

    def plug(self) -> None:
        self._stop.clear()
        master, slave = os.openpty()
        tty.setraw(slave)
        self.link.unlink(missing_ok=True)
        self.link.symlink_to(os.ttyname(slave))
        self._fds = [master, slave]
        self._thread = threading.Thread(target=self._serve, args=(master,), daemon=True)
        self._thread.start()

    def unplug(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self._drop()

    def _drop(self) -> None:
        self.link.unlink(missing_ok=True)
        fds, self._fds = self._fds, []
        for fd in fds:
            os.close(fd)

    def _serve(self, master: int) -> None:
        while not self._stop.is_set():
            if not select.select([master], [], [], 0.01)[0]:
                continue
            asked = self._cut(os.read(master, 4096))
            for _, answer in self.line(asked):
                with suppress(OSError):
                    os.write(master, self._cut(answer))
            if self.cut_after == 0:
                self._drop()
                return

    def _cut(self, data: bytes) -> bytes:
        """Lets pass what may still pass before the plug is pulled."""
        if self.cut_after is None:
            return data
        passed = data[: self.cut_after]
        self.cut_after -= len(passed)
        return passed
