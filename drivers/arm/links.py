"""The ways to a bus owner: inside this process, on a clock that tests move; a process of its own is in `owner`."""

from __future__ import annotations

from typing import Protocol

from roboalign.drivers.arm.core import ArmCore
from roboalign.drivers.arm.messages import ArmState, Command
from roboalign.sdk.control.clock import FakeClock

__all__ = ["InlineLink", "OwnerLink"]


class OwnerLink(Protocol):
    """A connection to the bus owner."""

    @property
    def last_word(self) -> ArmState | None:
        """How the owner left the arm; None while it runs, or when it ended without a word."""
        ...

    def open(self) -> None:
        """Starts the owner and lets it open the port. Raises RobotError; nothing is left running then."""
        ...

    def ask(self, command: Command) -> ArmState:
        """Sends a command and returns the answer. Raises RobotError when the owner does not answer."""
        ...

    def wait(self, period_s: float) -> None:
        """Lets time pass."""
        ...

    def pace(self, period_s: float) -> None:
        """Lets time pass where it passes only when told, as in simulation; on hardware returns at once."""
        ...

    def close(self) -> None:
        """Ends the connection; the owner parks, lets go and ends by itself. Idempotent."""
        ...


class InlineLink:
    """An owner inside this process, for tests: deterministic, and time passes only in `wait` and `pace`."""

    def __init__(self, core: ArmCore, clock: FakeClock) -> None:
        """Stores the core, which must tell the time by `clock`."""
        self.core, self._clock = core, clock
        self._is_open = False

    @property
    def last_word(self) -> ArmState | None:
        """How the core left the arm."""
        return self.core.state() if self.core.is_done else None

    def open(self) -> None:
        """Opens the port."""
        if not self._is_open:
            self.core.open()
            self._is_open = True

    def ask(self, command: Command) -> ArmState:
        """Hands the command over."""
        return self.core.handle(command)

    def wait(self, period_s: float) -> None:
        """Runs cycles until the clock is `period_s` further; a cycle that took longer delays the next."""
        end_s = self._clock.now() + period_s
        cycle_s = 1.0 / self.core.settings.rate_hz
        while self._clock.now() < end_s - 1e-9:
            next_s = min(self._clock.now() + cycle_s, end_s)
            self.core.step()
            self._clock.sleep_until(next_s)

    def pace(self, period_s: float) -> None:
        """As `wait`."""
        self.wait(period_s)

    def close(self) -> None:
        """Lets the owner end, as when the policy's process is gone."""
        if self._is_open:
            self._is_open = False
            self.core.lose_client()
            while not self.core.is_done:
                self.wait(1.0 / self.core.settings.rate_hz)
