"""How long a bus waits for an answer, and when it asks a silent device again."""

from __future__ import annotations

from dataclasses import dataclass

from roboalign.sdk.errors import ConfigError

__all__ = ["BusSettings", "Debt", "Patience"]

_FIRST_INTERVAL_S = 0.02
_NUM_QUICK = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class BusSettings:
    """How patient a bus is."""

    reply_timeout_s: float = 0.03
    """Longest wait for an answer, beyond its time on the wire. Shortened to what this line has shown to need."""
    min_timeout_s: float = 0.006
    """Shortest such wait: USB takes 1 ms, and the operating system may let us sleep some more."""
    return_delay_s: float = 0.0005
    """Pause of a device before it answers; 250 x 2 us is the factory setting of both makes."""
    num_retries: int = 2
    """How often a read, write or ping of one device is tried again."""
    num_sync_retries: int = 1
    """How often a sync or bulk read is tried again, for those that did not answer."""
    max_silence_s: float = 1.0
    """A silent device is asked again at growing intervals up to this one, so that the others lose no time."""
    has_fast_read: bool = False
    """Dynamixel: let sync reads be fast ones. Needs a firmware that knows them on every device."""

    def __post_init__(self) -> None:
        if not 0 < self.min_timeout_s <= self.reply_timeout_s:
            raise ConfigError(
                f"BusSettings: min_timeout_s {self.min_timeout_s} and reply_timeout_s {self.reply_timeout_s} must be "
                "above 0, the second not below the first"
            )
        if min(self.return_delay_s, self.num_retries, self.num_sync_retries) < 0 or self.max_silence_s <= 0:
            raise ConfigError("BusSettings: delays and numbers of retries must not be negative, max_silence_s above 0")


class Patience:
    """How long to wait, from how long it took: as TCP estimates its timeouts."""

    def __init__(self, shortest_s: float, longest_s: float) -> None:
        """Waits the longest time until it knows better."""
        self._shortest_s, self._longest_s = shortest_s, longest_s
        self._mean_s = self._spread_s = 0.0
        self.wait_s = longest_s

    def answered(self, took_s: float) -> None:
        """Learns from an answer."""
        deviation_s = took_s - self._mean_s
        self._mean_s += deviation_s / 8
        self._spread_s += (abs(deviation_s) - self._spread_s) / 8
        self.wait_s = min(self._longest_s, max(self._shortest_s, self._mean_s + 6 * self._spread_s))

    def failed(self) -> None:
        """Waits longer until the next answer."""
        self.wait_s = min(self._longest_s, 2 * self.wait_s)


@dataclass(slots=True)
class Debt:
    """An answer that a device owes."""

    since_s: float
    """When it was last asked for anything but a fence."""
    due_s: float
    """When it is asked for again."""
    failed_s: float = 0.0
    """When it last did not answer."""
    num_failed: int = 0
    """How often it was silent while others answered."""

    def fail(self, now_s: float, longest_s: float, *, is_alone: bool) -> None:
        """Puts the next attempt off: further and further, once it is clear that it is this device and not the line."""
        self.num_failed += is_alone
        self.failed_s = now_s
        doublings = max(0, self.num_failed - _NUM_QUICK)
        self.due_s = now_s + min(longest_s, _FIRST_INTERVAL_S * 2**doublings)
