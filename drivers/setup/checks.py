"""What a check of the machine or the robot says: what was found, and what to do about it."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

from roboalign.sdk.errors import CheckFailed

__all__ = ["Check", "DoctorReport"]

_MARKS = {"passed": "ok  ", "warning": "WARN", "failed": "FAIL", "skipped": "skip"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One check. One that did not pass carries its remedy."""

    name: str
    """What was looked at, e.g. `latency timer`."""
    status: str
    """`passed`, `warning`, `failed` or `skipped`."""
    found: str
    """What was found; of a skipped one, why."""
    remedy: str = ""
    """What to do, as commands where possible; empty when it passed or was skipped."""

    def __post_init__(self) -> None:
        assert self.status in _MARKS, self.status
        assert bool(self.remedy) == (self.status in ("warning", "failed")), f"{self.name}: {self.status} and its remedy"

    @classmethod
    def passed(cls, name: str, found: str) -> Check:
        """Returns a check that found nothing wrong."""
        return cls(name=name, status="passed", found=found)

    @classmethod
    def warning(cls, name: str, found: str, remedy: str) -> Check:
        """Returns a check that found what will be a nuisance."""
        return cls(name=name, status="warning", found=found, remedy=remedy)

    @classmethod
    def failed(cls, name: str, found: str, remedy: str) -> Check:
        """Returns a check that found what keeps the robot from working."""
        return cls(name=name, status="failed", found=found, remedy=remedy)

    @classmethod
    def skipped(cls, name: str, why: str) -> Check:
        """Returns a check that could not be made."""
        return cls(name=name, status="skipped", found=why)

    def __str__(self) -> str:
        line = f"{_MARKS[self.status]} {self.name}: {self.found}"
        return f"{line}\n     fix: {self.remedy}" if self.remedy else line


@dataclass(frozen=True, kw_only=True, slots=True)
class DoctorReport:
    """All checks, in the order they were made."""

    checks: tuple[Check, ...]
    """Each one with its remedy."""

    @property
    def is_ok(self) -> bool:
        """True when nothing failed; warnings do not count."""
        return not self.failed

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if check.status == "failed")

    def raise_if_failed(self) -> None:
        """Raises `CheckFailed` that names what failed."""
        if not self.is_ok:
            names = ", ".join(check.name for check in self.failed)
            raise CheckFailed(f"{len(self.failed)} of {len(self.checks)} checks failed: {names}")

    def __str__(self) -> str:
        return "\n".join(map(str, self.checks))

    def wrapped(self, width: int = 80) -> str:
        """Returns the checks for a narrow screen; a command in a remedy may be cut where it has a space."""
        lines = [line for check in self.checks for line in str(check).splitlines()]
        return "\n".join(
            textwrap.fill(line, width, subsequent_indent="     ", break_long_words=False, break_on_hyphens=False)
            for line in lines
        )
